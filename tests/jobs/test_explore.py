"""What a walker starts with before there is any label."""

from ase.build import bulk

from otf_workflows.exploration import Walker
from otf_workflows.jobs import explore as job
from otf_workflows.schemas import Frame
from otf_workflows.testing.potential import ToyPotential

START = Frame.from_atoms(bulk("Cu", cubic=True))
WALKER = Walker(START, 0, temperature_K=300.0, seed=3)


class Pretrained(ToyPotential):
    """A potential that can be told what is usual."""

    def familiar_with(self, structures):
        self.__dict__["usual"] = list(structures)
        return self


def test_the_pretrained_model_learns_which_surroundings_are_usual(monkeypatch):
    monkeypatch.setattr(job, "load_model", lambda *_: Pretrained())
    usual = job.cold_start("toy-lj", [WALKER]).usual
    assert len(usual) >= 2
    assert {len(atoms) for atoms in usual} == {4}
    again = job.cold_start("toy-lj", [WALKER]).usual
    assert all((a.positions == b.positions).all() for a, b in zip(usual, again, strict=True))


def test_walkers_of_one_job_share_what_is_usual_in_all_their_starts(monkeypatch):
    monkeypatch.setattr(job, "load_model", lambda *_: Pretrained())
    larger = Walker(
        Frame.from_atoms(bulk("Cu", cubic=True) * (2, 1, 1)), 1, temperature_K=300.0, seed=4
    )
    alone = [job.cold_start("toy-lj", [walker]).usual for walker in (WALKER, larger)]
    both = job.cold_start("toy-lj", [WALKER, larger]).usual
    assert [len(a) for a in both] == [len(a) for usual in alone for a in usual]


def test_a_potential_that_cannot_learn_it_is_taken_as_it_is(monkeypatch):
    monkeypatch.setattr(job, "load_model", lambda *_: ToyPotential())
    assert job.cold_start("toy-lj", [WALKER]) == ToyPotential()
