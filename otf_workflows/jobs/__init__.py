"""The jobs: one thin file per stage. Load, call a pure function, return a document.

Only control jobs (select, gather, assess, audit, conclude) touch our collections; the others are
functions of their inputs, so that they run under any engine and on machines without database.
"""

from __future__ import annotations

import base64
from functools import wraps
from typing import TYPE_CHECKING, Any

from jobflow import CURRENT_JOB, JobConfig, OnMissing, OutputReference, job

from otf_workflows.schemas import BLOB_KEYS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from otf_workflows.potentials.base import Potential
    from otf_workflows.types import Stage


def otf_job(
    stage: Stage, *, tolerate_missing: bool = False, expose_store: bool = False
) -> Callable[[Callable], Callable]:
    """Turn a function into a job of one stage, with our storage policy.

    Large keys (:data:`~otf_workflows.schemas.BLOB_KEYS`) go to the ``data`` store, and the stage
    goes into the metadata, where engines route by it.

    Parameters
    ----------
    stage
        Stage of the job.
    tolerate_missing
        Resolve outputs of failed jobs to None instead of failing as well.
    expose_store
        Let the job look at the JobStore through ``CURRENT_JOB.store``.
    """
    config = JobConfig(
        on_missing_references=OnMissing.NONE if tolerate_missing else OnMissing.ERROR,
        expose_store=expose_store,
        pass_manager_config=False,
    )

    def decorate(function: Callable) -> Callable:
        make = job(function, data=BLOB_KEYS, config=config)

        @wraps(function)
        def build(*args: Any, **kwargs: Any) -> Any:
            made = make(*args, **kwargs)
            made.metadata["stage"] = str(stage)
            return made

        build.original = function  # type: ignore[attr-defined]
        return build

    return decorate


def earlier_output() -> Any | None:
    """Return what the current job returned when it ran before; None if it never got so far.

    The job must be made with ``expose_store``. So a plain rerun of a long job costs nothing, and
    what others have taken from its output (checkpoints, weights) stays what it was.
    """
    if CURRENT_JOB.store is None:
        return None
    return OutputReference(CURRENT_JOB.job.uuid).resolve(
        CURRENT_JOB.store, on_missing=OnMissing.NONE
    )


def load_model(potential: str, weights: str | None) -> Potential:
    """Return a potential from its registry name and its base64 blob (None: as shipped).

    It is where the site file wants it: on the GPU of this machine, or on its CPU.

    Raises
    ------
    ConfigurationError
        If a GPU is wanted, and PyTorch sees none.
    """
    from otf_workflows.potentials import load_potential
    from otf_workflows.potentials.device import choose_device
    from otf_workflows.settings import load_site

    blob = base64.b64decode(weights) if weights else None
    return load_potential(potential, blob, device=choose_device(load_site().device))


def scratch_folder() -> Path:
    """Return a folder that a rerun of the current job finds again, for checkpoints."""
    from otf_workflows.settings import load_site

    folder = load_site().resolved_state_dir / "scratch" / CURRENT_JOB.job.uuid
    folder.mkdir(parents=True, exist_ok=True)
    return folder
