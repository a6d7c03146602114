"""What a killed worker leaves behind in FireWorks' collections, put right.

FireWorks itself would notice after four hours, and its own repair marks the lost job as failed
first, whereupon a dependant that tolerates failures starts at once. Here a job goes straight back
to READY.

A workflow document is FireWorks' commit record: it is written last, under a lock in the same
document. A lock left by a dead worker therefore means that the fireworks may be ahead of it; they
are rolled back to it before the lock is freed, and refreshed from their launches afterwards.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from otf_workflows.engine.identity import WorkerName, kill_programs_of
from otf_workflows.engine.queues.jobs import QueueJobs
from otf_workflows.engine.records import utc

if TYPE_CHECKING:
    from fireworks import LaunchPad

PATIENCE = timedelta(seconds=30)
"""How long something must look abandoned, if nothing else proves that it is."""

_ACTIVE = ["RUNNING", "RESERVED"]
_ENDED = {"COMPLETED", "FIZZLED"}
_NEVER_PART_OF_AN_UPDATE = {"RESERVED", "PAUSED", "DEFUSED", "ARCHIVED"}
"""States that are given to a firework before, and outside of, the update of its workflow."""


def recover(pad: LaunchPad, *, patience: timedelta = PATIENCE) -> list[str]:
    """Repair what dead workers of this machine left; workers elsewhere are not judged.

    Parameters
    ----------
    pad
        The launch pad.
    patience
        How long a lock, a reservation or an unrecorded end must have stood still.

    Returns
    -------
    list of str
        What was done, in sentences; empty if all is well.
    """
    return [
        *free_stale_locks(pad, patience=patience),
        *put_back_lost_jobs(pad),
        *put_back_reservations(pad, patience=patience),
        *record_ends(pad, patience=patience),
        *remove_strays(pad, patience=patience),
    ]


def put_back_lost_jobs(pad: LaunchPad) -> list[str]:
    """Put jobs back whose worker was on this machine and is dead.

    A worker in a batch job is judged by the launcher, who can ask the batch system for the cause.
    """
    fields = {"launch_id": 1, "fw_id": 1, "fworker.name": 1, "time_start": 1}
    in_batch_jobs = QueueJobs(pad.db).workers()
    sentences = []
    for launch in pad.launches.find({"state": "RUNNING"}, fields):
        name = (launch.get("fworker") or {}).get("name") or ""
        worker = None if name in in_batch_jobs else WorkerName.parse(name)
        if worker is None or not worker.is_dead(since=utc(launch.get("time_start"))):
            continue
        kill_programs_of(str(worker))
        if put_back(pad, launch["fw_id"], launch["launch_id"]):
            sentences.append(
                f"Job {launch['fw_id']} was lost with its worker {worker} and is ready again."
            )
    return sentences


def put_back(pad: LaunchPad, fw_id: int, launch_id: int) -> bool:
    """Make a running job ready again and close its launch; return whether it was running.

    The dependants of a running job are waiting, so that resetting it touches nothing else.
    """
    from fireworks.core.launchpad import WFLock

    workflow = pad.workflows.find_one({"nodes": fw_id}, {"locked": 1})
    if workflow is None or "locked" in workflow:
        return False  # a stray, see below; or its turn comes when the lock is free
    load_libraries_of(pad, fw_id)
    with WFLock(pad, fw_id):
        active = {"launch_id": launch_id, "state": {"$in": _ACTIVE}}
        firework = pad.fireworks.find_one({"fw_id": fw_id}, {"state": 1, "launches": 1})
        is_its_own = (
            firework is not None
            and firework["state"] in _ACTIVE
            and launch_id
            in firework["launches"]  # else killed in between: a reservation, see below
            and pad.launches.find_one(active, {"_id": 1}) is not None
        )
        if is_its_own:
            workflow = pad.get_wf_by_fw_id_lzyfw(fw_id)
            pad._update_wf(workflow, workflow.rerun_fw(fw_id))  # noqa: SLF001 - as rerun_fw does
        # Last: a launch that has ended, of a job that was not put back, would be taken for its
        # failure if we were killed here.
        now = datetime.now(UTC).isoformat()
        pad.launches.find_one_and_update(
            active,
            {
                "$set": {"state": "FIZZLED", "time_end": now},
                "$push": {"state_history": {"state": "FIZZLED", "created_on": now}},
            },
            {"_id": 1},
        )
    return is_its_own


def load_libraries_of(pad: LaunchPad, fw_id: int) -> None:
    """Import what it takes to read a job, before its workflow is locked.

    That takes seconds, and minutes on a busy machine or file system: whoever did it under the lock
    would be taken for dead.
    """
    with suppress(Exception):  # what cannot be read shows itself again, where it is dealt with
        pad.get_fw_by_id(fw_id)


def put_back_reservations(pad: LaunchPad, *, patience: timedelta = PATIENCE) -> list[str]:
    """Put jobs back that were being taken by a worker that died before it wrote its name.

    A reservation of a queue system has a launch of its own and is left alone.
    """
    query = {"state": "RESERVED", **_older("updated_on", patience)}
    sentences = []
    for firework in pad.fireworks.find(query, {"fw_id": 1, "launches": 1}):
        launches = {"launch_id": {"$in": firework["launches"]}, "state": {"$in": _ACTIVE}}
        if pad.launches.find_one(launches, {"_id": 1}):
            continue
        change = {"$set": {"state": "READY", "updated_on": datetime.now(UTC).isoformat()}}
        if pad.fireworks.find_one_and_update({"_id": firework["_id"], **query}, change):
            sentences.append(f"Job {firework['fw_id']} was taken by nobody and is ready again.")
    return sentences


def free_stale_locks(pad: LaunchPad, *, patience: timedelta = PATIENCE) -> list[str]:
    """Free workflow locks that nobody alive can hold.

    FireWorks' locks have neither owner nor time. A mark is put beside a lock when it is first
    seen; whoever holds the lock and works rewrites the document, which removes the mark.
    """
    now = datetime.now(UTC).replace(tzinfo=None)
    pad.workflows.update_many(
        {"locked": {"$exists": False}, "lock_seen": {"$exists": True}},
        {"$unset": {"lock_seen": ""}},
    )
    locked = {"locked": {"$exists": True}}
    pad.workflows.update_many(
        {**locked, "lock_seen": {"$exists": False}}, {"$set": {"lock_seen": now}}
    )
    stale = {**locked, "lock_seen": {"$lte": now - patience}}
    sentences = []
    for workflow in pad.workflows.find(stale, {"nodes": 1, "fw_states": 1}):
        ahead = _roll_back(pad, workflow)
        freed = pad.workflows.find_one_and_update(
            {"_id": workflow["_id"], **stale}, {"$unset": {"locked": "", "lock_seen": ""}}
        )
        if freed is None:
            continue
        for fw_id in ahead:
            pad._refresh_wf(fw_id)  # noqa: SLF001 - as 'lpad admin refresh' does
        sentences.append(
            f"The workflow of job {min(workflow['nodes'])} was locked by a worker that is gone; "
            "it is free again."
        )
    return sentences


def _roll_back(pad: LaunchPad, workflow: dict[str, Any]) -> list[int]:
    """Set fireworks back to the states in their workflow document; return which."""
    recorded = {int(fw_id): state for fw_id, state in workflow["fw_states"].items()}
    fireworks = pad.fireworks.find({"fw_id": {"$in": workflow["nodes"]}}, {"fw_id": 1, "state": 1})
    ahead = []
    for firework in fireworks:
        then = recorded.get(firework["fw_id"])
        if then is None or then == firework["state"]:
            continue
        if _NEVER_PART_OF_AN_UPDATE & {then, firework["state"]}:
            continue
        change = {"$set": {"state": then, "updated_on": datetime.now(UTC).isoformat()}}
        query = {"_id": firework["_id"], "state": firework["state"]}
        if pad.fireworks.find_one_and_update(query, change):
            ahead.append(firework["fw_id"])
    return ahead


def record_ends(pad: LaunchPad, *, patience: timedelta = PATIENCE) -> list[str]:
    """Refresh jobs whose launch has ended but who still count as running."""
    before = datetime.now(UTC) - patience
    running = pad.fireworks.find({"state": "RUNNING"}, {"fw_id": 1, "launches": 1})
    sentences = []
    for firework in running:
        launches = list(
            pad.launches.find(
                {"launch_id": {"$in": firework["launches"]}}, {"state": 1, "time_end": 1}
            )
        )
        ends = [utc(launch["time_end"]) for launch in launches if launch["state"] in _ENDED]
        ended = [end for end in ends if end is not None and end < before]
        if launches and len(ended) == len(launches):
            pad._refresh_wf(firework["fw_id"])  # noqa: SLF001 - as detect_lostruns does
            sentences.append(f"Job {firework['fw_id']} had ended and is now recorded so.")
    return sentences


def remove_strays(pad: LaunchPad, *, patience: timedelta = PATIENCE) -> list[str]:
    """Remove fireworks that belong to no workflow: whoever was adding them died half-way.

    Their workflow was never written, so nothing depends on them, and whoever wanted them will
    ask again.
    """
    # FIZZLED is what becomes of one that a worker tries to run.
    unused = {"state": {"$in": ["WAITING", "READY", "RESERVED", "FIZZLED"]}}
    found = pad.fireworks.aggregate(
        [
            {"$match": {**unused, **_older("created_on", patience)}},
            {"$project": {"fw_id": 1}},
            {
                "$lookup": {
                    "from": pad.workflows.name,
                    "localField": "fw_id",
                    "foreignField": "nodes",
                    "pipeline": [{"$project": {"_id": 1}}],
                    "as": "owners",
                }
            },
            {"$match": {"owners": []}},
        ]
    )
    ids = sorted(document["fw_id"] for document in found)
    if not ids:
        return []
    pad.fireworks.delete_many({"fw_id": {"$in": ids}, **unused})
    return [f"Removed {len(ids)} jobs, from {ids[0]} on, that were added only half-way."]


def _older(field: str, patience: timedelta) -> dict[str, Any]:
    """Return the query for a time that FireWorks writes as text here, as a date there."""
    before = datetime.now(UTC) - patience
    naive = before.replace(tzinfo=None)
    return {"$or": [{field: {"$lt": before.isoformat()}}, {field: {"$lt": naive}}]}
