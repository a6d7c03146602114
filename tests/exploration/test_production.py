"""Production runs average what is equilibrated, and say why they end."""

import pytest
from ase.build import bulk

from otf_workflows.campaign import Production
from otf_workflows.exploration import ProductionRun, decode_trajectory, run_production
from otf_workflows.schemas import Calibration, Frame, Origin
from otf_workflows.testing.potential import ToyPotential
from otf_workflows.types import Purpose, StopReason

COPPER = Frame.from_atoms(bulk("Cu", cubic=True, a=3.62))


def produce(potential=None, *, frame=COPPER, rules=None, **changes):
    sections = {
        "temperature_K": 300,
        "supercell": (2, 1, 1),
        "steps": 150,
        "audit_steps": 100,
        **(rules or {}),
    }
    arguments = {"tolerance_eV_A": 0.2, "calibration": Calibration(), "seed": 5, "n_audit": 3}
    return run_production(
        frame, potential or ToyPotential(), rules=Production(**sections), **(arguments | changes)
    )


def content(run):
    return run.model_dump(mode="json", exclude={"seconds", "steps_per_second"})


def test_equilibration_is_left_out_of_averages_and_frames():
    run = produce()
    assert run.stop_reason == StopReason.COMPLETED
    assert (run.n_atoms, run.n_steps_run, run.n_equilibration) == (8, 150, 30)
    assert run.n_checked == 13
    assert [atoms.info["step"] for atoms in run.frames()] == list(range(30, 151, 10))
    assert run.n_equilibration_frames == 3
    assert run.fraction_above == run.n_above / 13
    assert "blob" not in run.summary()
    late = [t for s, t in zip(run.steps, run.temperatures_K, strict=True) if s >= 30]
    assert run.mean_temperature_K == pytest.approx(sum(late) / 13)
    assert run.mean_temperature_error_K > 0


def test_audit_frames_are_from_the_labelled_cell_with_features():
    run = produce(origin=Origin(campaign="c"), model_id="m", audit_starts=[COPPER])
    assert run.audit_stop_reason == StopReason.COMPLETED
    assert len(run.candidates) == 3
    assert all(frame.purpose == Purpose.AUDIT and frame.n_atoms == 4 for frame in run.candidates)
    assert len(run.candidates[0].features) == 8
    steps = [frame.origin.step for frame in run.candidates]
    assert steps == sorted(set(steps))
    assert min(steps) >= 20
    kept = {a.info["step"]: a for a in decode_trajectory(run.blob["audit_trajectory"])}
    assert run.candidates[0].positions_A == pytest.approx(kept[steps[0]].positions, abs=1e-5)


def test_no_audit_is_made_if_none_is_wanted():
    run = produce(n_audit=0)
    assert (run.candidates, run.audit_stop_reason, run.audit_n_steps_run) == ([], None, 0)


def test_guards_end_the_run_with_a_reason():
    atoms = bulk("Cu", cubic=True, a=3.62)
    atoms.positions[1] = atoms.positions[0] + [1.2, 0, 0]
    run = produce(frame=Frame.from_atoms(atoms))
    assert run.stop_reason == run.audit_stop_reason == StopReason.DISTANCE
    assert "covalent radii" in run.stop_message
    assert run.fraction_above is None
    assert run.mean_temperature_K is None
    assert run.candidates == []


def test_interrupted_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
    rules = {"steps": 130}
    whole = produce(rules=rules)
    calls = []
    original = ToyPotential.predict

    def failing(self, atoms, **options):
        calls.append(1)
        if len(calls) == 12:
            raise RuntimeError
        return original(self, atoms, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ToyPotential, "predict", failing)
        with pytest.raises(RuntimeError):
            produce(rules=rules, scratch=tmp_path)
    assert content(produce(rules=rules, scratch=tmp_path)) == content(whole)


def test_document_survives_json():
    run = produce()
    assert ProductionRun.model_validate_json(run.model_dump_json()) == run


def test_checks_of_a_larger_cell_are_read_as_those_of_the_calibrated_one():
    """Same atoms, same motion: only how many of them the worst one is the worst of differs."""
    plain = produce(rules={"supercell": (2, 2, 1)})
    sized = produce(rules={"supercell": (2, 2, 1)}, calibration=Calibration(n=20, n_atoms=4))
    assert plain.n_atoms == 16
    assert (plain.worst_of_atoms, sized.worst_of_atoms) == (None, 4)
    assert sized.temperatures_K == plain.temperatures_K
    ratios = [b / a for a, b in zip(plain.sigmas_eV_A, sized.sigmas_eV_A, strict=True) if a > 1e-6]
    assert len(ratios) > 10
    assert min(ratios) >= 0.5
    assert max(ratios) < 1
