"""What the analysis returns is what the report reads."""

import numpy as np
import pytest
from ase.build import bulk

from otf_workflows.analysis import mean_square_displacement, radial_distribution
from otf_workflows.report.production import md_curves, production_summary
from otf_workflows.schemas import PropertyDocument


@pytest.fixture(scope="module")
def frames():
    start = bulk("LiCl", "rocksalt", a=5.14, cubic=True)
    rng = np.random.default_rng(1)
    made = []
    for _ in range(60):
        atoms = start.copy()
        atoms.positions += rng.normal(0.0, 0.1, atoms.positions.shape)
        made.append(atoms)
    return made


def document(**values) -> PropertyDocument:
    conditions = {"timestep_fs": 2.0}
    return PropertyDocument(
        campaign="c", model_id="m", kind="production", conditions=conditions, values=values,
        trajectory_uuid="u",
    )  # fmt: skip


@pytest.mark.parametrize("together", [True, False])
def test_curves_and_sentences_of_the_real_analysis_are_read(frames, together):
    msd = (
        mean_square_displacement(frames, dt_fs=20.0)
        if together
        else {s: mean_square_displacement(frames, dt_fs=20.0, species=s) for s in ("Li", "Cl")}
    )
    found = document(rdf=radial_distribution(frames, r_max_A=5.0), msd=msd)
    curves = md_curves([found])
    assert [c.name for c in curves["rdf"]] == ["Cl-Cl", "Cl-Li", "Li-Li"]
    assert {c.name for c in curves["msd"]} == {"Li", "Cl"}
    assert max(curves["msd"][0].x) == pytest.approx(11 * 20.0 / 1000)
    summary = production_summary([found], audit=None)
    assert len(summary.diffusion) == 2
    assert all("no diffusion coefficient" in sentence for sentence in summary.diffusion)
    near = {(c.centre, c.neighbour): c for c in summary.coordination}
    assert near["Li", "Cl"].number == pytest.approx(6.0, abs=0.2)
    assert 2.6 < near["Li", "Cl"].up_to_A < 4.4


def test_a_single_frame_gives_curves_without_bands(frames):
    one = frames[:1]
    found = document(
        rdf=radial_distribution(one, r_max_A=5.0), msd=mean_square_displacement(one, dt_fs=1.0)
    )
    curves = md_curves([found])
    assert all(c.error is None for c in curves["rdf"])
    assert curves["msd"] == []


def test_a_run_that_a_guard_ended_says_why():
    run = document(n_steps=100, n_steps_run=40, stop_reason="distance", stop_message="Li met Cl")
    summary = production_summary([run], audit=None)
    assert summary.n_steps == 40
    assert summary.stopped == "Li met Cl"
    assert production_summary([document(n_steps=100)], audit=None).stopped == ""


def test_without_a_production_run_there_is_nothing():
    assert production_summary([], audit=None) is None
    assert md_curves([]) == {}
