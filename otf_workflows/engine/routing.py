"""Which worker runs which job: from the stage of a job to the category that FireWorks filters by.

jobflow hands a job's ``manager_config`` on to the jobs it makes, so that everything a controller
emits would stay in the controller's queue. Here the category follows the stage of each job, also
of those made while the workflow runs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from otf_workflows.engine.base import ROLE_OF_STAGE
from otf_workflows.errors import InputError
from otf_workflows.types import Role, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobflow import Flow, Job

CATEGORY = "_category"
PRIORITY = "_priority"
HELPER = "store_inputs"
"""Name of the job with which jobflow collects the outputs of a replacement."""
PRIORITIES = {Role.CONTROL: 20, Role.TRAIN: 10, Role.MD: 5, Role.DFT: 1}
"""For workers that serve several roles: what others wait for comes first."""
LATE = 0
"""Priority of a label that its cycle waits for no longer."""


def route(flow: Flow, *, campaign: str, cycle: int, kind: str) -> Flow:
    """Give every job of a flow, present and future, its key and its worker category.

    Call it once per flow: each call is inherited by all jobs made later.

    Parameters
    ----------
    flow
        The flow; changed in place.
    campaign, cycle, kind
        Key of the workflow; every job can be found by it.

    Returns
    -------
    Flow
        The same flow.
    """
    check_stages(flow)
    flow.update_config(
        {
            "manager_config": {CATEGORY: str(Role.CONTROL), PRIORITY: PRIORITIES[Role.CONTROL]},
            "pass_manager_config": False,
        },
        attributes=["manager_config", "pass_manager_config"],
        dynamic=True,
    )
    flow.update_metadata({"campaign": campaign, "cycle": cycle, "kind": kind}, dynamic=True)
    # Configuration can only be filtered by name or function, metadata by any test; and metadata
    # become keys of the firework's spec, after those of the configuration.
    for role, is_for in _FILTERS.items():
        flow.update_metadata(
            {CATEGORY: str(role), PRIORITY: PRIORITIES[role]}, callback_filter=is_for, dynamic=True
        )
    return flow


def role_of(metadata: Mapping[str, Any]) -> Role:
    """Return the role that runs a job with these metadata; control if it has no stage."""
    stage = metadata.get("stage")
    return ROLE_OF_STAGE.get(Stage(stage), Role.CONTROL) if stage else Role.CONTROL


def is_for_md(job: Job | Flow) -> bool:
    """Tell whether a job runs on an ``md`` worker; public, since it is stored by name."""
    return _role_of_job(job) is Role.MD


def is_for_dft(job: Job | Flow) -> bool:
    """Tell whether a job runs on a ``dft`` worker."""
    return _role_of_job(job) is Role.DFT


def is_for_train(job: Job | Flow) -> bool:
    """Tell whether a job runs on a ``train`` worker."""
    return _role_of_job(job) is Role.TRAIN


def is_helper(job: Job | Flow) -> bool:
    """Tell whether a job is jobflow's own, which inherits the metadata of the job it ends."""
    return job.name == HELPER


_FILTERS = {
    Role.MD: is_for_md,
    Role.DFT: is_for_dft,
    Role.TRAIN: is_for_train,
    Role.CONTROL: is_helper,
}


def _role_of_job(job: Job | Flow) -> Role | None:
    from jobflow import Job

    return role_of(job.metadata) if isinstance(job, Job) else None


def check_stages(flow: Flow) -> None:
    """Refuse a job whose stage is not one of ours; it would wait for a worker for ever."""
    known = _stages()
    for job, _ in flow.iterflow():
        stage = job.metadata.get("stage")
        if stage is not None and stage not in known:
            raise InputError(f"Job '{job.name}' has an unknown stage '{stage}'.", where=flow.name)


@lru_cache(maxsize=1)
def _stages() -> frozenset[str]:
    return frozenset(str(stage) for stage in Stage)
