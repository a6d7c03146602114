"""The middle of a cycle by itself, and workers in this process: to test what labels go through."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from otf_workflows.schemas import CycleDocument, WalkerSegment
from otf_workflows.types import CycleState, Role, StopReason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from otf_workflows.campaign import Campaign
    from otf_workflows.engine.base import Engine
    from otf_workflows.schemas import Frame
    from otf_workflows.settings import Site
    from otf_workflows.store import Store


class Run(Protocol):
    """Lets workers take jobs; returns how many were run."""

    def __call__(self, *roles: Role, most: int = 1000) -> int:
        """Run at most so many jobs of these roles (all roles if none is named)."""


def walker_that_met(frames: Sequence[Frame]) -> WalkerSegment:
    """Return what a walker reports: the first frame trusted, the others candidates.

    Features, uncertainties and places are set so that each frame differs from all others.
    """
    met = [
        frame.model_copy(
            update={
                "sigma_eV_A": 0.5 + 0.01 * i,
                "features": [float(i), float(i * i)],
                "origin": frame.origin.model_copy(update={"walker": 0, "step": i}),
            }
        )
        for i, frame in enumerate(frames)
    ]
    return WalkerSegment(
        walker=0,
        temperature_K=300,
        model_id="toy-lj",
        first_step=0,
        n_steps=10,
        n_steps_run=10,
        n_checked=len(met),
        n_above=len(met) - 1,
        stop_reason=StopReason.COMPLETED,
        candidates=met[1:],
        pool=met[:1],
        seconds=0.1,
    )


def ask_for_labels(
    campaign: Campaign, segment: WalkerSegment, store: Store, engine: Engine, *, cycle: int = 0
) -> str:
    """Submit the part of a cycle that asks for labels and gathers them.

    Returns
    -------
    str
        uuid of the output of gather.
    """
    from jobflow import Flow

    from otf_workflows import control
    from otf_workflows.jobs.gather import gather
    from otf_workflows.jobs.select import select

    control.submit(campaign, store)
    store.open_cycle(
        CycleDocument(
            campaign=campaign.name, cycle=cycle, state=CycleState.RUNNING, incumbent_id="toy-lj"
        )
    )
    chosen = select([segment], [], campaign=campaign, cycle=cycle)
    batch = gather(chosen.output, campaign=campaign, cycle=cycle)
    flow = Flow([chosen, batch])
    ids = engine.submit(flow, campaign=campaign.name, cycle=cycle, kind="cycle")
    store.set_cycle(campaign.name, cycle, engine_ids=ids)
    return batch.uuid


@contextmanager
def workers_here(site: Site, *roles: Role) -> Iterator[Run]:
    """Run jobs of FireWorks in this process, one after the other, when told to.

    Parameters
    ----------
    site
        The site.
    *roles
        One worker for each of these; for every role if none is named.
    """
    import jobflow

    from otf_workflows.engine.worker import Worker

    before = jobflow.SETTINGS.JOB_STORE  # a worker puts its own in that place
    workers = {role: Worker(site, role, reconcile=False) for role in roles or tuple(Role)}

    def run(*named: Role, most: int = 1000) -> int:
        done = 0
        while done < most:
            ran = 0
            for role in named or tuple(workers):
                if done + ran < most:
                    ran += workers[role].run_one()
            if not ran:
                break
            done += ran
        return done

    try:
        yield run
    finally:
        for worker in workers.values():
            worker.engine.close()
        jobflow.SETTINGS.JOB_STORE = before
