"""The engine's collections read with pymongo alone: the read half of an engine.

Opening a real engine imports FireWorks or jobflow, and sets a launch pad up; looking needs neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otf_workflows.engine.records import FIREWORK_FIELDS, LAUNCH_FIELDS, job_record
from otf_workflows.engine.remote import records as remote_records
from otf_workflows.engine.remote.project import COLLECTIONS
from otf_workflows.types import EngineKind

if TYPE_CHECKING:
    from pymongo.database import Database

    from otf_workflows.engine.base import Engine, JobRecord
    from otf_workflows.settings import Site


def jobs_reader(site: Site, database: Database[dict[str, Any]]) -> Engine:
    """Return what tells about the jobs of a site; only its ``jobs`` may be called.

    Parameters
    ----------
    site
        The site, which names the engine.
    database
        Its database.
    """
    made: Any = (
        RemoteReader(database)
        if site.engine is EngineKind.JOBFLOW_REMOTE
        else LaunchPadReader(database)
    )
    return made


class RemoteReader:
    """Answers for jobs of jobflow-remote.

    Parameters
    ----------
    database
        The site's database.
    """

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self.database = database

    def jobs(
        self, *, campaign: str, cycle: int | None = None, kind: str | None = None
    ) -> list[JobRecord]:
        """Return all jobs of a campaign, or of some of its workflows, oldest first."""
        key = {"campaign": campaign, "cycle": cycle, "kind": kind}
        query = {f"job.metadata.{name}": value for name, value in key.items() if value is not None}
        found = self.database[COLLECTIONS["jobs"]].find(query, remote_records.FIELDS).sort("_id", 1)
        return [remote_records.job_record(document) for document in found]


class LaunchPadReader:
    """Answers for jobs as the engine does, without importing FireWorks.

    Parameters
    ----------
    database
        The site's database.
    """

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self.database = database

    def jobs(
        self, *, campaign: str, cycle: int | None = None, kind: str | None = None
    ) -> list[JobRecord]:
        """Return all jobs of a campaign, or of some of its workflows, oldest first."""
        query: dict[str, Any] = {"spec.campaign": campaign, "state": {"$ne": "ARCHIVED"}}
        if cycle is not None:
            query["spec.cycle"] = cycle
        if kind is not None:
            query["spec.kind"] = kind
        return self.records(query)

    def records(
        self, query: dict[str, Any], *, newest_first: bool = False, skip: int = 0, limit: int = 0
    ) -> list[JobRecord]:
        """Return the jobs that a query finds, with their latest launches."""
        found = self.database.fireworks.find(query, FIREWORK_FIELDS)
        found = found.sort("fw_id", -1 if newest_first else 1).skip(skip).limit(limit)
        fireworks = list(found)
        ids = [max(firework["launches"]) for firework in fireworks if firework.get("launches")]
        launches = {
            launch["fw_id"]: launch
            for launch in self.database.launches.find({"launch_id": {"$in": ids}}, LAUNCH_FIELDS)
        }
        return [job_record(firework, launches.get(firework["fw_id"])) for firework in fireworks]
