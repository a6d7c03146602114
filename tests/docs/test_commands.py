"""Every command, option, file and key that the documentation names exists."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "deploy/README.md", *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)")
INLINE = re.compile(r"`(otf [^`\n]+)`")


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for word, body in FENCE.findall(page.read_text()) if word in languages]


def commands() -> list[tuple[str, str]]:
    """Return (page, command line) for every use of ``otf`` in the documentation."""
    found = []
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        for block in blocks(page, "bash"):
            lines = block.replace("\\\n", " ").splitlines()
            words = [re.sub(r"^(docker compose exec otf )", "", line.strip()) for line in lines]
            found += [(name, line) for line in words if line.startswith("otf ")]
        found += [(name, line) for line in INLINE.findall(page.read_text())]
    return found


def resolve(line: str) -> str | None:
    """Return what is wrong with a command line: unknown command or option; None if nothing."""
    from otf_workflows.cli.main import app, global_options_first

    words = global_options_first(shlex.split(line, comments=True)[1:])
    if words[:1] == ["--site"]:
        del words[:2]
    command = typer.main.get_command(app)
    options = option_names(command)
    for word in words:
        if word.startswith("-"):
            if word.split("=")[0] not in options | {"--help", "-h"}:
                return f"{command.name} has no option {word}"
        elif getattr(command, "commands", None):
            if word.isupper():  # a placeholder such as COMMAND
                return None
            if word in command.commands:
                command = command.commands[word]
                options |= option_names(command)
            else:
                return f"{command.name} has no command {word}"
    return None


def option_names(command) -> set[str]:
    return {name for param in command.params for name in (*param.opts, *param.secondary_opts)}


def test_the_documentation_shows_commands():
    assert len(commands()) > 30


@pytest.mark.parametrize(("page", "line"), commands())
def test_command_in_the_documentation_exists(page, line):
    assert resolve(line) is None


def test_a_wrong_command_or_option_would_be_noticed():
    assert resolve("otf lables list")
    assert resolve("otf labels lits")
    assert resolve("otf labels list --faild")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    targets = [(page.parent / link).resolve() for link in LINK.findall(page.read_text())]
    missing = [str(target) for target in targets if not target.exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_and_yaml_blocks_are_valid(page):
    for block in blocks(page, "python"):
        ast.parse(block)
    for block in blocks(page, "yaml"):
        yaml.safe_load(block)


def test_names_imported_in_python_blocks_exist():
    from importlib import import_module

    for page in PAGES:
        for block in blocks(page, "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("otf_workflows"):
                    module = import_module(node.module)
                    assert all(hasattr(module, alias.name) for alias in node.names), block


def test_site_examples_are_accepted():
    from otf_workflows.settings import Site

    examples = [
        yaml.safe_load(block) for block in blocks(ROOT / "docs/how-to/run_on_a_cluster.md", "yaml")
    ]
    assert len(examples) == 2
    for example in examples:
        Site.model_validate(example)


def test_recipe_examples_are_accepted():
    from otf_workflows.labelers import get_labeler
    from otf_workflows.labelers.base import Resources

    examples = map(yaml.safe_load, blocks(ROOT / "docs/how-to/add_a_dft_code.md", "yaml"))
    sections = [section for example in examples for section in example.items()]
    assert [name for name, _ in sections] == ["labels", "labels", "codes"]
    for name, section in sections:
        if name == "labels":
            assert set(section) <= set(get_labeler(section["code"]).recipe_model.model_fields)
        else:
            for resources in section.values():
                Resources.model_validate(resources)


def test_every_page_is_found_from_the_index():
    index = ROOT / "docs/README.md"
    linked = {(index.parent / link).resolve() for link in LINK.findall(index.read_text())}
    pages = {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - {index}
    assert pages <= linked


def test_numerical_settings_named_in_the_documentation_may_be_changed():
    from otf_workflows.labelers import check_numerics

    lines = [line for _, line in commands() if "labels rerun" in line and "--set" in line]
    assert lines
    for line in lines:
        pairs = [p.split("=") for p in re.findall(r"--set (\S+)", line)]
        check_numerics("espresso", {key: yaml.safe_load(value) for key, value in pairs})


def test_the_checks_of_the_tutorial_end_as_it_says():
    page = ROOT / "docs/tutorials/first_campaign.md"
    lines = [
        line
        for block in blocks(page, "bash")
        for line in block.splitlines()
        if line.startswith("otf validate")
    ]
    assert len(lines) == 2
    for line in lines:
        ended = subprocess.run(
            [sys.executable, "-m", "otf_workflows.cli.main", *shlex.split(line, comments=True)[1:]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == (2 if line.endswith("# fails") else 0), ended.stderr
        if ended.returncode:
            assert "timestep_fs" in ended.stderr
