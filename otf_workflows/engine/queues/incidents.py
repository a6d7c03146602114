"""A job that was lost with its batch job: written down with its cause, and run again or not.

Everything is written before the job is put back, and every step can be repeated: a launcher that
is killed in between is followed by one that does the same again.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otf_workflows.engine.queues.retries import Grant, Limits, Verdict, decide
from otf_workflows.engine.records import utc
from otf_workflows.engine.recovery import load_libraries_of, put_back
from otf_workflows.schemas import Attempt
from otf_workflows.store import Store
from otf_workflows.types import FailureCause, Stage

if TYPE_CHECKING:
    from fireworks import LaunchPad
    from pymongo.database import Database

    from otf_workflows.engine.queues.jobs import BatchJob

NEEDS = "otf_queue_needs"
"""What a job lost so far and must be given next time: {_id: uuid, fw_id, losses, grant}."""
SCRATCH = "scratch"
"""Folder of checkpoints in the state folder, one for each job uuid."""
TAIL_LINES = 30
_TAIL_BYTES = 8192

_LAUNCH_FIELDS = {
    "_id": 0, "launch_id": 1, "fw_id": 1, "launch_dir": 1, "time_start": 1, "host": 1
}  # fmt: skip
_FIELDS = {
    "fw_id": 1,
    "name": 1,
    "spec.campaign": 1,
    "spec.cycle": 1,
    "spec.stage": 1,
    "spec.label_key": 1,
    "spec._tasks.job.uuid": 1,
}


class Incidents:
    """Writes down what happened to jobs in batch jobs, and decides what follows.

    Parameters
    ----------
    pad
        The launch pad.
    database
        The site's database.
    state_dir
        Where checkpoints are.
    """

    def __init__(
        self, pad: LaunchPad, database: Database[dict[str, Any]], *, state_dir: Path
    ) -> None:
        self._pad = pad
        self._database = database
        self._scratch = state_dir / SCRATCH

    def running(self, worker: str) -> list[dict[str, Any]]:
        """Return the launches that a worker has begun and not ended."""
        query = {"state": "RUNNING", "fworker.name": worker}
        return list(self._pad.launches.find(query, _LAUNCH_FIELDS))

    def reserved(self, batch: BatchJob) -> list[dict[str, Any]]:
        """Return the launch that is reserved for a batch job and was not begun."""
        query = {"state": "RESERVED", "fworker.name": batch.name}
        return list(self._pad.launches.find(query, _LAUNCH_FIELDS))

    def release(self, launch: dict[str, Any]) -> bool:
        """Put a job back without blame; False if a lock is in the way."""
        if self._locked(launch["fw_id"]):
            return False
        put_back(self._pad, launch["fw_id"], launch["launch_id"])
        return True

    def needs(self, fw_ids: list[int]) -> dict[int, Grant]:
        """Return which of these jobs need a batch job of their own, and what it must have."""
        query = {"fw_id": {"$in": fw_ids}, "grant": {"$ne": None}}
        found = self._database[NEEDS].find(query, {"fw_id": 1, "grant": 1})
        return {item["fw_id"]: Grant(**item["grant"]) for item in found}

    def special(self) -> list[int]:
        """Return all jobs that need a batch job of their own; no pilot may take them."""
        return self._database[NEEDS].distinct("fw_id", {"grant": {"$ne": None}})

    def checkpointed(self, fw_id: int) -> datetime | None:
        """Return when a job last saved where it stands; None if it never does."""
        job = self._pad.fireworks.find_one({"fw_id": fw_id}, {"spec._tasks.job.uuid": 1})
        folder = self._scratch / _uuid(job) if job else None
        if folder is None or not folder.is_dir():
            return None
        times = [file.stat().st_mtime for file in folder.iterdir() if file.is_file()]
        return datetime.fromtimestamp(max(times, default=folder.stat().st_mtime), UTC)

    def hand_over(self, launch: dict[str, Any], *, batch: BatchJob) -> str | None:
        """Put a job back that goes on from its checkpoint in the next batch job.

        Returns
        -------
        str or None
            A sentence; None if it was not running any more.
        """
        if not put_back(self._pad, launch["fw_id"], launch["launch_id"]):
            return None
        job = self._job(launch["fw_id"])
        sentence = (
            f"Job {launch['fw_id']} '{job['name']}' was put back before batch job {batch.job_id} "
            "ended and goes on from its checkpoint in the next one"
        )
        self._event(sentence, job, batch, {"walltime_s": batch.walltime_s})
        return f"{sentence}."

    def lose(
        self,
        launch: dict[str, Any],
        *,
        batch: BatchJob,
        cause: FailureCause,
        sentence: str,
        limits: Limits,
    ) -> str | None:
        """Write down why a running job was lost, and run it again or let it fail.

        Parameters
        ----------
        launch
            From :meth:`running`.
        batch
            The batch job that it was lost with.
        cause, sentence
            Why that ended.
        limits
            The most that the queue gives.

        Returns
        -------
        str or None
            What was done; None if a lock is in the way, and it must be done again later.
        """
        fw_id = launch["fw_id"]
        if self._locked(fw_id):
            return None
        job = self._job(fw_id)
        verdict = self._verdict(job, launch, batch=batch, cause=cause, limits=limits)
        if verdict.again:
            return self._repeat(job, launch, verdict, batch=batch, cause=cause, sentence=sentence)
        done = self._write(job, launch, verdict, batch=batch, cause=cause, sentence=sentence)
        attempt = self._attempt(launch, batch, cause, sentence)
        self._fail(launch, attempt, f"{sentence}; {verdict.sentence}")
        return done

    def repeat(
        self,
        launch: dict[str, Any],
        *,
        batch: BatchJob,
        cause: FailureCause,
        sentence: str,
        limits: Limits,
    ) -> str | None:
        """Run a job again that has failed by itself for want of something that it can be given.

        Parameters are those of :meth:`lose`.

        Returns
        -------
        str or None
            What was done; None if the failure stands.
        """
        job = self._job(launch["fw_id"])
        verdict = self._verdict(job, launch, batch=batch, cause=cause, limits=limits)
        if not verdict.again or self._locked(launch["fw_id"]):
            return None
        return self._repeat(job, launch, verdict, batch=batch, cause=cause, sentence=sentence)

    def _verdict(
        self,
        job: dict[str, Any],
        launch: dict[str, Any],
        *,
        batch: BatchJob,
        cause: FailureCause,
        limits: Limits,
    ) -> Verdict:
        began, saved = utc(launch.get("time_start")), self.checkpointed(job["fw_id"])
        return decide(
            cause,
            earlier=self._earlier(_uuid(job), launch["launch_id"]),
            had=Grant(batch.walltime_s, batch.memory_MiB),
            limits=limits,
            progressed=saved is not None and began is not None and saved > began,
        )

    def _repeat(
        self,
        job: dict[str, Any],
        launch: dict[str, Any],
        verdict: Verdict,
        *,
        batch: BatchJob,
        cause: FailureCause,
        sentence: str,
    ) -> str:
        done = self._write(job, launch, verdict, batch=batch, cause=cause, sentence=sentence)
        if key := job["spec"].get("label_key"):
            attempt = self._attempt(launch, batch, cause, sentence)
            Store(self._database).add_lost_try(key, attempt)
        put_back(self._pad, job["fw_id"], launch["launch_id"])
        return done

    def _write(
        self,
        job: dict[str, Any],
        launch: dict[str, Any],
        verdict: Verdict,
        *,
        batch: BatchJob,
        cause: FailureCause,
        sentence: str,
    ) -> str:
        """Write a loss down, once, and return it in words."""
        self._write_loss(job, launch, cause, verdict.needs, again=verdict.again)
        done = (
            f"Job {job['fw_id']} '{job['name']}' was lost ({cause}): {sentence}; {verdict.sentence}"
        )
        details = {"cause": str(cause), "sentence": sentence, "again": verdict.again}
        self._event(done, job, batch, details, once=launch["launch_id"])
        return f"{done}."

    # Helpers

    def _job(self, fw_id: int) -> dict[str, Any]:
        return self._pad.fireworks.find_one({"fw_id": fw_id}, _FIELDS) or {
            "fw_id": fw_id,
            "name": "?",
            "spec": {},
        }

    def _locked(self, fw_id: int) -> bool:
        workflow = self._pad.workflows.find_one({"nodes": fw_id}, {"locked": 1})
        return workflow is not None and "locked" in workflow

    def _earlier(self, uuid: str, launch_id: int) -> list[FailureCause]:
        found = self._database[NEEDS].find_one({"_id": uuid}) or {}
        losses = [item for item in found.get("losses", []) if item["launch_id"] != launch_id]
        return [FailureCause(item["cause"]) for item in losses]

    def _write_loss(
        self,
        job: dict[str, Any],
        launch: dict[str, Any],
        cause: FailureCause,
        needs: Grant | None,
        *,
        again: bool,
    ) -> None:
        """Note a loss once; whoever lets a failed job run again begins to count anew."""
        uuid, collection = _uuid(job), self._database[NEEDS]
        collection.update_one({"_id": uuid}, {"$set": {"fw_id": job["fw_id"]}}, upsert=True)
        loss = {"launch_id": launch["launch_id"], "cause": str(cause), "when": datetime.now(UTC)}
        if needs is not None:
            collection.update_one({"_id": uuid}, {"$set": {"grant": asdict(needs)}})
        if again:
            collection.update_one(
                {"_id": uuid, "losses.launch_id": {"$ne": launch["launch_id"]}},
                {"$push": {"losses": loss}},
            )
        else:
            collection.update_one({"_id": uuid}, {"$set": {"losses": []}})

    def _attempt(
        self, launch: dict[str, Any], batch: BatchJob, cause: FailureCause, sentence: str
    ) -> Attempt:
        began = utc(launch.get("time_start"))
        return Attempt(
            number=1,
            host=batch.node or launch.get("host") or "",
            queue_id=batch.job_id,
            directory=launch.get("launch_dir") or "",
            started=began,
            seconds=(datetime.now(UTC) - began).total_seconds() if began else None,
            cores=batch.cores,
            cause=cause,
            message=sentence,
            last_lines=_tail(Path(batch.folder)),
        )

    def _fail(self, launch: dict[str, Any], attempt: Attempt, message: str) -> None:
        """Let a job fail, with the same record that a failing label leaves."""
        from fireworks import FWAction

        details = {
            "message": message,
            "cause": str(attempt.cause),
            "attempts": [attempt.model_dump(mode="json")],
            "directory": attempt.directory,
        }
        exception = {"_stacktrace": message, "_details": details}
        load_libraries_of(self._pad, launch["fw_id"])
        self._pad.complete_launch(
            launch["launch_id"], FWAction(stored_data={"_exception": exception}), "FIZZLED"
        )

    def _event(
        self,
        what: str,
        job: dict[str, Any],
        batch: BatchJob,
        details: dict[str, Any],
        *,
        once: int | None = None,
    ) -> None:
        """Append an event; ``once`` names a launch of which there shall be one."""
        spec = job["spec"]
        if once is not None:
            details = {**details, "launch_id": once}
            if self._database.otf_events.find_one({"details.launch_id": once}, {"_id": 1}):
                return
        Store(self._database).event(
            what,
            campaign=spec.get("campaign"),
            cycle=spec.get("cycle"),
            label_key=spec.get("label_key"),
            details={
                **details,
                "batch_job": batch.job_id,
                "node": batch.node,
                "stage": str(Stage(spec["stage"])) if spec.get("stage") else None,
            },
        )


def _uuid(job: dict[str, Any]) -> str:
    """Return jobflow's id of a job; it stays the same, whatever becomes of the launch pad."""
    tasks = job["spec"].get("_tasks") or [{}]
    return str(tasks[0].get("job", {}).get("uuid") or f"fw-{job['fw_id']}")


def _tail(folder: Path) -> list[str]:
    """Return the end of what a batch job has printed."""
    files = [file for file in folder.glob("*") if file.suffix in {".out", ".error", ".err"}]
    lines: list[str] = []
    for file in sorted(files):
        try:
            with file.open("rb") as stream:
                stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
                lines += stream.read().decode(errors="replace").splitlines()
        except OSError:
            continue
    return [line.rstrip()[:400] for line in lines if line.strip()][-TAIL_LINES:]
