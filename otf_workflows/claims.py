"""Who computes a label just now: an atomic claim in MongoDB that outlives nobody for long.

Several campaigns may have a job for the same label. The first job to start claims its key and
renews the claim while it computes; the others wait for the result. A claim whose holder is gone
runs out by itself. Times are the server's, so that clocks of nodes may differ.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from otf_workflows.errors import LabelFailed
from otf_workflows.types import FailureCause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pymongo.database import Database

    from otf_workflows.schemas import LabelResult

COLLECTION = "otf_claims"
LEASE_S = 120.0
"""A claim that was not renewed for so long is free."""
RENEW_S = 20.0
POLL_S = 2.0
"""How often a waiting job looks again."""

OF_THE_MACHINE = {FailureCause.NODE, FailureCause.KILLED, FailureCause.WALLTIME}
"""Failures that say nothing about the label: whoever waits for it tries by itself."""


class Claims:
    """The claims on labels in one database.

    Parameters
    ----------
    database
        Where the labels are.
    """

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self._claims = database[COLLECTION]

    def take(self, key: str, *, by: str, seconds: float = LEASE_S) -> bool:
        """Claim a key for a job, or renew its claim; return whether the job has it.

        A label that failed may be claimed by jobs that know of the failure.
        """
        from pymongo.errors import DuplicateKeyError

        until = {"$add": ["$$NOW", int(1000 * seconds)]}
        change = [{"$set": {"by": by, "until": until, "failure": None}}]
        free = [
            {"failure": None, "$expr": {"$lt": ["$until", "$$NOW"]}},
            {"failure": {"$ne": None}, "told": by},
        ]
        try:  # most often nobody has had it
            self._claims.update_one({"_id": key, "by": by}, change, upsert=True)
        except DuplicateKeyError:
            return bool(self._claims.update_one({"_id": key, "$or": free}, change).matched_count)
        return True

    def fail(self, key: str, *, by: str, failure: dict[str, Any]) -> None:
        """Note that the holder failed, for those who wait."""
        self._claims.update_one(
            {"_id": key, "by": by}, {"$set": {"failure": failure}, "$addToSet": {"told": by}}
        )

    def failure_for(self, key: str, *, by: str) -> dict[str, Any] | None:
        """Return the failure of another job, once for each job; None if there is none."""
        told = self._claims.find_one_and_update(
            {"_id": key, "by": {"$ne": by}, "failure": {"$ne": None}, "told": {"$ne": by}},
            {"$addToSet": {"told": by}},
        )
        return told["failure"] if told else None

    def release(self, key: str, *, by: str) -> None:
        """Give a claim back."""
        self._claims.delete_one({"_id": key, "by": by})

    def forget_failure(self, key: str) -> None:
        """Forget that a label failed, before a person's rerun."""
        self._claims.delete_one({"_id": key, "failure": {"$ne": None}})

    @contextmanager
    def renewed(self, key: str, *, by: str) -> Iterator[None]:
        """Keep a claim alive for the time of a block."""
        from pymongo.errors import PyMongoError

        over = threading.Event()

        def renew() -> None:
            while not over.wait(RENEW_S):
                try:
                    self.take(key, by=by)
                except PyMongoError:  # a restarting server: the lease outlasts several of these
                    continue

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def computed_once(
    database: Database[dict[str, Any]],
    key: str,
    *,
    by: str,
    known: Callable[[], LabelResult | None],
    compute: Callable[[], LabelResult],
) -> LabelResult:
    """Return the result of a label: the known one, or computed while nobody else computes it.

    Parameters
    ----------
    database
        Where the labels are.
    key
        Content hash of the label.
    by
        Id of the job; the same for every launch of it.
    known
        Looks for a finished result.
    compute
        Computes it.

    Raises
    ------
    LabelFailed
        If this job fails, or the job that it waited for failed for a reason that lies in the
        label. A job that runs again after that computes by itself.
    """
    claims = Claims(database)
    while not claims.take(key, by=by):
        found = known()
        if found is not None:
            return found
        failure = claims.failure_for(key, by=by)
        if failure is not None:
            raise LabelFailed(
                failure["message"],
                cause=FailureCause(failure["cause"]),
                attempts=failure["attempts"],
                where=failure["directory"],
            )
        time.sleep(POLL_S)
    # Looked for after the claim: nobody can finish it between this look and the computation.
    found = known()
    if found is not None:
        claims.release(key, by=by)
        return found
    try:
        with claims.renewed(key, by=by):
            result = compute()
    except LabelFailed as error:
        if error.cause in OF_THE_MACHINE:
            claims.release(key, by=by)
        else:
            claims.fail(key, by=by, failure=error.to_dict())
        raise
    except BaseException:
        claims.release(key, by=by)
        raise
    # Not released: the result becomes visible only after this job has returned it.
    return result
