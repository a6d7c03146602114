"""The small interface between our loop and whatever runs the jobs.

FireWorks is the default; :class:`~otf_workflows.engine.local.LocalEngine` runs the same flows in
this process. The loop (:mod:`otf_workflows.reconcile`) knows only what stands here.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, Field

from otf_workflows.types import Role, Stage

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from jobflow import Flow

ROLE_OF_STAGE = {
    Stage.SEED: Role.MD,
    Stage.EXPLORE: Role.MD,
    Stage.PRODUCE: Role.MD,
    Stage.LABEL: Role.DFT,
    Stage.FINETUNE: Role.TRAIN,
    Stage.EVALUATE: Role.TRAIN,
}
"""Stages not listed run on the control role."""
RELABEL = "relabel"
"""Kind of a label job that no cycle waits for; its result joins the next data set."""


class JobState(StrEnum):
    """State of a job, in words that every engine can answer in."""

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    PAUSED = "paused"


class JobRecord(BaseModel):
    """What an engine knows about one job."""

    engine_id: int | str = Field(description="Firework id, or the like.")
    uuid: str | None = Field(None, description="jobflow uuid of the output.")
    name: str
    state: JobState
    role: Role
    stage: Stage | None = Field(None, description="None for jobflow's own helper jobs.")
    campaign: str
    cycle: int
    kind: str = Field("cycle", description="cycle, production or relabel.")
    label_key: str | None = None
    worker: str | None = None
    host: str | None = None
    directory: str | None = None
    started: datetime | None = None
    finished: datetime | None = None
    failure: dict[str, Any] | None = Field(
        None, description="LabelFailed.to_dict() for labels; {'message', 'traceback'} else."
    )


class Engine(Protocol):
    """Runs flows and answers for them."""

    def submit(self, flow: Flow, *, campaign: str, cycle: int, kind: str) -> list[int | str]:
        """Mark all jobs with this key, route and start them; return the workflow ids."""

    def find(self, *, campaign: str, cycle: int, kind: str) -> list[int | str]:
        """Return the ids of workflows already submitted under this key."""

    def jobs(
        self,
        *,
        campaign: str,
        cycle: int | None = None,
        kind: str | None = None,
        label_keys: Collection[str] | None = None,
    ) -> list[JobRecord]:
        """Return all jobs of a campaign (of one cycle, of some labels), oldest first."""

    def output(self, uuid: str) -> Any | None:
        """Return the output of a finished job, blobs loaded, or None."""

    def rerun(self, engine_ids: Sequence[int | str]) -> None:
        """Run failed jobs again whose dependants have not started; refuse others."""

    def let_go(self, engine_ids: Sequence[int | str]) -> list[int | str]:
        """Let what waits for these jobs go on without them; return those that had not ended.

        They stay jobs of their campaign, of kind ``relabel``, and run when a worker takes them.
        """

    def pause(self, campaign: str) -> int:
        """Hold jobs that have not started; return how many."""

    def resume(self, campaign: str) -> int:
        """Release held jobs; return how many."""

    def cancel(self, campaign: str) -> int:
        """Give up jobs that have not started; return how many."""

    def recover(self) -> list[str]:
        """Put back jobs whose worker is gone, free stale locks; return sentences."""
