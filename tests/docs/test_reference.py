"""The reference pages say what the models say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location(
        "generate_reference", ROOT / "docs/generate_reference.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["campaign_file", "site_file", "documents", "exit_codes"])
def test_page_is_what_the_models_say(generator, name):
    committed = (ROOT / "docs/reference" / f"{name}.md").read_text()
    assert committed == generator.PAGES[f"{name}.md"](), "run: python docs/generate_reference.py"


def test_unique_keys_are_those_of_the_store(generator):
    from otf_workflows.store import _INDEXES

    unique = {
        name: next((", ".join(key for key, _ in keys) for keys, only in indexes if only), "none")
        for name, indexes in _INDEXES.items()
    }
    assert {name: key for name, (_, key) in generator.COLLECTIONS.items()} == unique


def test_every_campaign_section_has_its_table(generator):
    from otf_workflows.campaign import Campaign

    page = generator.campaign_page()
    for key, field in Campaign.model_fields.items():
        assert f"`{key}`" in page
        section = generator.submodel(field.annotation)
        if section is not None and key != "structure":
            assert f"## `{key}`" in page
            assert all(f"| `{inner}` |" in page for inner in section.model_fields)


def test_every_error_class_has_its_exit_code(generator):
    from otf_workflows.errors import ConfigurationError, InputError

    page = generator.exit_codes_page()
    assert f"| {InputError.exit_code} | `InputError` |" in page
    assert f"| {ConfigurationError.exit_code} | `ConfigurationError` |" in page


def test_secrets_are_not_documented_as_keys(generator):
    assert "`password`" not in generator.site_page()
