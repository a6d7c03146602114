"""What is in the database, as tables, trees, files and versioned JSON."""

import numpy as np
import pytest
from ase.io import read

from otf_workflows.types import LabelState


def test_status_of_all_is_one_line_each(otf, finished, site):
    done = otf("status")
    assert done.code == 0
    assert done.out.splitlines()[1].startswith(finished)


def test_status_of_one_has_stages_errors_and_costs(otf, finished, site):
    done = otf("status", finished)
    assert "force RMSE (eV/Å)" in done.out
    assert "AIMD steps not computed" in done.out


def test_status_as_json_has_a_schema(otf, finished, site):
    found = otf("status", finished, "--json").json()
    assert found["schema"] == "otf.status/1"
    assert found["campaigns"][0]["name"] == finished


def test_status_can_fail_for_cron(otf, finished, store, site):
    state = store.campaign(finished).state
    assert otf("status", "--fail-on", state).code == 1
    assert otf("status", "--fail-on", "failed").code == 0


def test_watching_a_finished_campaign_ends(otf, finished, site):
    assert finished in otf("status", finished, "--watch").out


def test_an_empty_database_says_how_to_begin(otf, site):
    done = otf("status")
    assert done.code == 0
    assert done.out == ""
    assert "otf init" in done.err


def test_an_unknown_campaign_is_exit_code_3_with_the_nearest(otf, finished, site):
    done = otf("status", finished[:-1])
    assert done.code == 3
    assert finished in done.err


def test_labels_are_listed_with_whole_keys(otf, finished, store, site):
    keys = [label.key for label in store.labels(campaign=finished, light=True)]
    out = otf("labels", "list").out
    assert all(key in out for key in keys)


def test_labels_are_filtered(otf, finished, store, site):
    found = otf("labels", "list", "-c", finished, "--cycle", "0", "--json").json()["labels"]
    assert 0 < len(found) < len(store.labels(campaign=finished, light=True))
    failed = otf("labels", "list", "--failed", "--json").json()["labels"]
    assert {label["state"] for label in failed} <= {"failed"}
    assert otf("labels", "list", "--grep", "no such reason").code == 3
    assert otf("labels", "list", "--grep", "(").code == 2


def test_a_label_is_shown_by_the_beginning_of_its_key(otf, finished, store, site):
    key = store.labels(campaign=finished, states=[LabelState.DONE], limit=1)[0].key
    done = otf("labels", "show", key[:12])
    assert key in done.out
    assert otf("labels", "show", key[:12], "--json").json()["label"]["key"] == key
    assert otf("labels", "show", "zzz").code == 3


def test_models_are_listed_shown_and_exported(otf, finished, store, site, tmp_path):
    model = store.campaign(finished).incumbent_id
    assert model in otf("models", "list").out
    assert model in otf("models", "show", model).out
    assert otf("models", "show", model, "--json").json()["model"]["model_id"] == model
    done = otf("models", "export", "chgnet-0.3.0", "-o", tmp_path / "x")
    assert done.code == 3
    assert "part of its package" in done.err


def test_lineage_leads_from_a_model_to_its_labels(otf, finished, store, site):
    model = store.campaign(finished).incumbent_id
    out = otf("lineage", model).out
    assert out.startswith(model)
    assert "chgnet-0.3.0  (pretrained)" in out
    entries = store.latest_dataset(finished).entries
    assert out.count("label ") > 0.5 * len(entries)
    found = otf("lineage", model, "--json").json()
    assert found["lineage"]["model_id"] == model


def test_a_report_is_written_where_asked(otf, finished, site, tmp_path):
    path = tmp_path / "r.html"
    assert otf("report", finished, "-o", path).out.strip() == str(path)
    assert "<html" in path.read_text()[:2000]
    found = otf("report", finished, "--json").json()
    assert found["schema"] == "otf.report/1"
    assert found["report"]["campaign"] == finished


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("keys", ["ref", "plain"])
def test_exported_labels_are_read_back_as_computed(otf, finished, store, tmp_path, keys):
    path = tmp_path / "labels.extxyz"
    assert otf("export", finished, "-o", path, "--keys", keys).code == 0
    by_key = {label.key: label for label in store.labels(campaign=finished, states=["done"])}
    frames = read(path, ":")
    assert len(frames) == len(by_key)
    for atoms in frames:
        result = by_key[atoms.info["label_key"]].result
        if keys == "ref":
            energy, forces = atoms.info["REF_energy"], atoms.arrays["REF_forces"]
            stress = atoms.info["REF_stress"]
        else:
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            stress = atoms.get_stress(voigt=False)
        assert energy == pytest.approx(result.energy_eV)
        assert forces == pytest.approx(np.array(result.forces_eV_A), abs=1e-6)
        assert stress == pytest.approx(np.array(result.stress_eV_A3), abs=1e-7)
        assert atoms.positions == pytest.approx(np.array(result.frame.positions_A), abs=1e-6)
        assert atoms.info["split"] in {"train", "validation", "audit", "unassigned"}
    assert otf("export", finished, "-o", path).code == 2


def test_an_export_can_be_of_one_split(otf, finished, site, tmp_path):
    path = tmp_path / "audit.extxyz"
    assert otf("export", finished, "-o", path, "--split", "audit").code == 0
    assert {atoms.info["purpose"] for atoms in read(path, ":")} == {"audit"}


def test_the_terminal_shows_the_glance_of_the_dashboard(finished, site, store):
    from rich.console import Console

    from otf_workflows.cli.session import Session
    from otf_workflows.cli.status import look, picture
    from otf_workflows.testing.launchpad import synthetic_launchpad

    synthetic_launchpad(store, finished)
    here = Session(site_file=site.source)
    console = Console(width=160, record=True)
    console.print(picture(here, look(here, None), None))
    shown = console.export_text()
    assert finished in shown
    assert "dft: 2 failed" in shown
    assert "labels (scf)" in shown
    assert "database     ✔ answers in" in shown
    assert "batch queue" in shown
