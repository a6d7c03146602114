"""jobflow-remote's view of the site's database, opened without a project file on disk."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from otf_workflows.engine.remote.project import COLLECTIONS, INSTALL, project_document
from otf_workflows.engine.remote.stores import naive
from otf_workflows.errors import ConfigurationError

if TYPE_CHECKING:
    from jobflow import JobStore
    from jobflow_remote import JobController
    from pymongo.database import Database

    from otf_workflows.settings import Site

_KEY = [("job.metadata.campaign", 1), ("job.metadata.cycle", 1), ("job.metadata.kind", 1)]
_FLOW_KEY = [("metadata.campaign", 1), ("metadata.cycle", 1), ("metadata.kind", 1)]


def require_jobflow_remote() -> None:
    """Refuse with the command that installs it, if jobflow-remote is not there.

    Raises
    ------
    ConfigurationError
        If the package is missing.
    """
    from importlib.util import find_spec

    if find_spec("jobflow_remote") is None:
        raise ConfigurationError(
            "The site file asks for the engine jobflow-remote, which is not installed.",
            where="engine in the site file",
            hint=INSTALL,
        )


def open_controller(
    site: Site, database: Database[dict[str, Any]], job_store: JobStore
) -> JobController:
    """Return jobflow-remote's controller on open connections, its collections set up.

    Nothing is ever removed (jobflow-remote's own set-up, ``reset``, drops its collections).

    Parameters
    ----------
    site
        The site.
    database, job_store
        Open connections.

    Raises
    ------
    ConfigurationError
        If jobflow-remote is not installed, or the site file asks for what cannot work.
    """
    require_jobflow_remote()
    from jobflow_remote import JobController
    from jobflow_remote.config.base import Project
    from maggma.stores import MongoStore

    collections = {key: value for key, value in COLLECTIONS.items() if key != "jobs"}
    controller = JobController(
        queue_store=MongoStore.from_collection(naive(database)[COLLECTIONS["jobs"]]),
        jobstore=job_store,
        project=Project.model_validate(project_document(site)),
        **collections,
    )
    _prepare(controller)
    return controller


def _prepare(controller: JobController) -> None:
    """Make counter and indexes unless they are there; two may do it at once."""
    from pymongo.errors import DuplicateKeyError

    auxiliary = controller.auxiliary
    if auxiliary.find_one({"_id": "otf-prepared"}):
        return
    with suppress(DuplicateKeyError):
        auxiliary.insert_one({"_id": "otf-counter", "next_id": 1})
    auxiliary.update_one(
        {"running_runner": {"$exists": True}},
        {"$setOnInsert": {"running_runner": None}},
        upsert=True,
    )
    controller.build_indexes()
    controller.create_indexes([_KEY, "job.metadata.label_key"])
    controller.flows.create_index(_FLOW_KEY)
    controller.update_version_information()
    with suppress(DuplicateKeyError):
        auxiliary.insert_one({"_id": "otf-prepared"})
