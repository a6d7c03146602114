"""A confirmed rerun of labels, carried out away from the dashboard's own process."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from otf_workflows.control import RerunPlan
from otf_workflows.errors import PartialError

if TYPE_CHECKING:
    from otf_workflows.settings import Site


class RerunOrder(BaseModel):
    """What was confirmed."""

    plan: RerunPlan
    batch: str = Field(description="Number under which it is recorded.")
    asked: int = Field(description="Labels that were confirmed.")


class RerunDone(BaseModel):
    """What was done, in sentences."""

    done: list[str] = Field(default_factory=list)


def rerun(order: RerunOrder, site: Site) -> RerunDone:
    """Run labels again; those that changed a moment before are left alone.

    Those that were run again have an event of this batch, from which its page counts them.
    """
    from otf_workflows import control
    from otf_workflows.connection import connect
    from otf_workflows.dashboard.actions import DashboardStore
    from otf_workflows.engine.choice import open_engine
    from otf_workflows.store import Store

    store = DashboardStore(Store(connect(site)), batch=order.batch, asked=order.asked)
    done: list[str] = []
    with suppress(PartialError):
        done = control.rerun(order.plan, store, open_engine(site))
    return RerunDone(done=done)
