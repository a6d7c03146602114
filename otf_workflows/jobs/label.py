"""The label job: one frame, one DFT calculation, once."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobflow import CURRENT_JOB

from otf_workflows.jobs import otf_job
from otf_workflows.schemas import Frame, LabelResult
from otf_workflows.types import FailureCause, Stage

if TYPE_CHECKING:
    from pymongo.database import Database

    from otf_workflows.labelers.base import Resources

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}


@otf_job(Stage.LABEL, expose_store=True)
def label(
    frame: Frame,
    *,
    key: str,
    recipe: dict[str, Any],
    numerics: dict[str, Any] | None = None,
    worker: str | None = None,
    walltime_s: float | None = None,
) -> LabelResult:
    """Compute energy, forces and stress of a frame at the level of theory of the recipe.

    A rerun finds the finished result of an earlier run by its key and returns it; a job of another
    campaign for the same label is waited for. No label is ever computed twice, whoever asks.

    Parameters
    ----------
    frame
        Structure.
    key
        Content hash of structure and recipe.
    recipe
        The campaign's ``labels`` section.
    numerics
        Numerical settings for the first try, from a person's rerun.
    worker
        Which entry ``CODE@worker`` of the site's codes to use instead of ``CODE``.
    walltime_s
        Time limit (s) instead of the site's.

    Raises
    ------
    LabelFailed
        After all permitted retries.
    """
    from otf_workflows.claims import computed_once

    def compute() -> LabelResult:
        resources = _resources(recipe["code"], worker=worker, walltime_s=walltime_s)
        return run_labeler(
            frame,
            key=key,
            recipe=recipe,
            resources=resources,
            numerics=numerics,
            directory=Path.cwd(),
        )

    database = _database()
    if database is None:
        return compute()
    return computed_once(
        database,
        key,
        by=CURRENT_JOB.job.uuid,
        known=lambda: _known(database, key),
        compute=compute,
    )


def _resources(code: str, *, worker: str | None, walltime_s: float | None) -> Resources:
    from otf_workflows.settings import load_site

    resources = load_site().resources(code, worker)
    return resources.model_copy(update={"walltime_s": walltime_s}) if walltime_s else resources


def run_labeler(
    frame: Frame,
    *,
    key: str,
    recipe: dict[str, Any],
    resources: Resources,
    numerics: dict[str, Any] | None,
    directory: Path,
) -> LabelResult:
    """Compute a label here and now; a machine that cannot write is a failure like any other.

    Raises
    ------
    LabelFailed
        After all permitted retries, or because of the disk.
    """
    from otf_workflows.labelers import get_labeler, parse_recipe
    from otf_workflows.labelers.outcome import failed

    try:
        return get_labeler(recipe["code"]).label(
            frame,
            parse_recipe(recipe),
            key=key,
            directory=directory,
            resources=resources,
            numerics=numerics,
        )
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise failed(
            f"the machine cannot write its files: {error.strerror}",
            cause=FailureCause.NODE,
            attempts=[],
            directory=directory,
            hint="look at the disk of the worker's launch folders, then rerun",
        ) from error


def _database() -> Database[dict[str, Any]] | None:
    """Return the database that outputs go to; None if they stay in this process.

    Nobody else can ask for the same label there, and nothing outlives the process.
    """
    from maggma.stores import MemoryStore, MongoStore

    outputs = CURRENT_JOB.store.docs_store if CURRENT_JOB.store is not None else None
    if not isinstance(outputs, MongoStore) or isinstance(outputs, MemoryStore):
        return None
    return outputs._collection.database  # noqa: SLF001 - maggma has no other way to its database


def _known(database: Database[dict[str, Any]], key: str) -> LabelResult | None:
    """Return a finished result: booked (imported ones as well), or the output of another job."""
    from otf_workflows.store import Store
    from otf_workflows.types import LabelState

    for booked in Store(database).labels(keys=[key], states=[LabelState.DONE]):
        return booked.result
    found = CURRENT_JOB.store.docs_store.query_one({"output.key": key}, {"output": 1})
    if found is None:
        return None
    return LabelResult.model_validate(_without_marks(found["output"]))


def _without_marks(value: Any) -> Any:
    """Return stored JSON without monty's class marks."""
    if isinstance(value, dict):
        return {k: _without_marks(v) for k, v in value.items() if not k.startswith("@")}
    if isinstance(value, list):
        return [_without_marks(item) for item in value]
    return value
