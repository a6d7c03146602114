"""FireWorks' launch pad with fewer journeys to the database for each job that runs.

FireWorks writes and reads the same documents several times between taking a job and recording its
end. What is written stays the same here, and so does the order of the writes, on which
:mod:`otf_workflows.engine.recovery` builds: launch, firework, and last the workflow, under a lock
in the same document. Whatever is out of the ordinary is left to FireWorks' own methods.

This module imports FireWorks; :func:`otf_workflows.engine.launchpad.launchpad` imports it late.
"""

from __future__ import annotations

import random
import time
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from fireworks.core.firework import Firework, Launch, Tracker
from fireworks.core.launchpad import LaunchPad, LazyFirework, LockedWorkflowError, WFLock
from fireworks.utilities.fw_serializers import recursive_dict

if TYPE_CHECKING:
    from fireworks import FWorker, Workflow

QUICK_TRIES = 20
"""How often a lock is tried for before FireWorks' own waiting, in steps of 0.1 s, begins."""
QUICK_WAIT_S = 0.02
_TAKEN_FROM = ["READY", "RESERVED"]


class LeanLaunchPad(LaunchPad):  # type: ignore[misc]
    """A launch pad for workers; see the module.

    Attributes
    ----------
    taken
        The firework and launch id of the job that was taken last.
    """

    taken: tuple[Firework, int] | None = None

    # Taking a job

    def get_fw_dict_by_id(self, fw_id: int) -> dict[str, Any]:
        """Return a firework as a document with its launches; asks for no launches it has not."""
        found = self.fireworks.find_one({"fw_id": fw_id})
        if found is None or found["launches"] or found["archived_launches"]:
            return super().get_fw_dict_by_id(fw_id)
        return found

    def checkout_fw(  # noqa: PLR0917 - FireWorks' signature
        self,
        fworker: FWorker,
        launch_dir: str,
        fw_id: int | None = None,
        host: str | None = None,
        ip: str | None = None,
        state: str = "RUNNING",
    ) -> tuple[Firework | None, int | None]:
        """Take the next job; return it with the id of its launch, or None twice.

        Unlike FireWorks, a job that was put back while it was being taken is not started.
        """
        self.taken = None
        if state != "RUNNING":
            return super().checkout_fw(fworker, launch_dir, fw_id, host, ip, state)
        firework = self._get_a_fw_to_run(fworker.query, fw_id=fw_id)
        if firework is None:
            return None, None
        reserved = next((item for item in firework.launches if item.state == "RESERVED"), None)
        launch = Launch(
            state,
            launch_dir,
            fworker,
            host,
            ip,
            trackers=[Tracker.from_dict(item) for item in firework.spec.get("_trackers", [])],
            state_history=reserved.state_history if reserved else None,
            launch_id=reserved.launch_id if reserved else self.get_new_launch_id(),
            fw_id=firework.fw_id,
        )
        document = launch.to_db_dict()
        self.launches.replace_one({"launch_id": launch.launch_id}, document, upsert=True)
        others = [item for item in firework.launches if item is not reserved]
        firework.launches = [*others, launch]
        firework.state = state
        change = {
            "state": state,
            "updated_on": firework.updated_on.isoformat(),
            "launches": [item.launch_id for item in firework.launches],
        }
        mine = {"fw_id": firework.fw_id, "state": "RESERVED"}
        if not self.fireworks.update_one(mine, {"$set": change}).matched_count:
            self._close(launch)
            return None, None
        if not self._note_running(firework.fw_id):
            self._refresh_wf(firework.fw_id)
        # FireWorks keeps these for ever; only those of the present job are ever read.
        self.backup_launch_data = {launch.launch_id: document}
        self.backup_fw_data: dict[int, Any] = {}
        self.taken = firework, launch.launch_id
        return firework, launch.launch_id

    def _close(self, launch: Launch) -> None:
        """Close a launch whose job somebody put back in the meantime."""
        launch.state = "FIZZLED"
        self.launches.replace_one({"launch_id": launch.launch_id}, launch.to_db_dict())

    def _note_running(self, fw_id: int) -> bool:
        """Write into a workflow nobody has locked that a job runs; False if it takes more."""
        own = f"fw_states.{fw_id}"
        simple = {
            "nodes": fw_id,
            "locked": {"$exists": False},
            "state": {"$in": [*_TAKEN_FROM, "RUNNING"]},
            own: {"$in": _TAKEN_FROM},
        }
        change = {own: "RUNNING", "state": "RUNNING", "updated_on": datetime.now(UTC)}
        return bool(self.workflows.update_one(simple, {"$set": change}).matched_count)

    # While it runs

    def ping_launch(
        self,
        launch_id: int,
        ptime: datetime | None = None,
        checkpoint: dict[str, Any] | None = None,
    ) -> None:
        """Note that a launch is alive, without reading it first."""
        change: dict[str, Any] = {
            "state_history.$[last].updated_on": (ptime or datetime.now(UTC)).isoformat()
        }
        if checkpoint:
            change["state_history.$[last].checkpoint"] = recursive_dict(checkpoint)
        simple = {"launch_id": launch_id, "state": "RUNNING", "trackers": []}
        found = self.launches.update_one(
            simple, {"$set": change}, array_filters=[{"last.state": "RUNNING"}]
        )
        if not found.matched_count:
            super().ping_launch(launch_id, ptime, checkpoint)

    # Recording its end

    def _refresh_wf(self, fw_id: int) -> None:
        """Bring a workflow up to date with one of its fireworks, under its lock."""
        try:
            with _Lock(self, fw_id) as lock:
                workflow = self._lazy_workflow(lock.document)
                # Both at once: FireWorks would ask for the state first.
                workflow.id_fw[fw_id].partial_fw  # noqa: B018
                updated = workflow.refresh(fw_id)
                if any(number < 0 for number in updated):  # new ones have no number yet
                    self._update_wf(workflow, updated)
                    return
                self._upsert_fws([workflow.id_fw[number] for number in updated])
                lock.replace(workflow.to_db_dict())
        except LockedWorkflowError:
            self.m_logger.info("Workflow of firework %s is locked.", fw_id)
        except Exception as error:  # as FireWorks does: what cannot be read back has failed
            self._mark_broken(fw_id)
            raise RuntimeError(
                f"Error refreshing workflow. The full stack trace is: {traceback.format_exc()}"
            ) from error

    def _lazy_workflow(self, document: dict[str, Any]) -> Workflow:
        from fireworks import Workflow

        fireworks = [
            LazyFirework(number, self.fireworks, self.launches, self.gridfs_fallback)
            for number in document["nodes"]
        ]
        return Workflow(
            fireworks,
            document["links"],
            document["name"],
            document["metadata"],
            document["created_on"],
            document["updated_on"],
            {int(number): state for number, state in document["fw_states"].items()},
        )

    def _mark_broken(self, fw_id: int) -> None:
        self.fireworks.update_one({"fw_id": fw_id}, {"$set": {"state": "FIZZLED"}})
        broken = {"state": "FIZZLED", f"fw_states.{fw_id}": "FIZZLED"}
        self.workflows.update_one({"nodes": fw_id}, {"$set": broken})


class _Lock(WFLock):  # type: ignore[misc]
    """The lock of a workflow: comes with its document, and goes with the next one written."""

    document: dict[str, Any]
    _gone = False

    def __enter__(self) -> Self:
        free = {"nodes": self.fw_id, "locked": {"$exists": False}}
        for _ in range(QUICK_TRIES):
            found = self.lp.workflows.find_one_and_update(free, {"$set": {"locked": True}})
            if found is not None:
                self.document = found
                return self
            time.sleep(QUICK_WAIT_S * (0.5 + random.random()))
        if self.lp.workflows.find_one({"nodes": self.fw_id}, {"_id": 1}) is None:
            raise ValueError(f"Firework {self.fw_id} belongs to no workflow.")
        super().__enter__()
        self.document = self.lp.workflows.find_one({"nodes": self.fw_id})
        return self

    def replace(self, document: dict[str, Any]) -> None:
        """Write the workflow and free it at once."""
        self.lp.workflows.replace_one({"nodes": self.fw_id}, document)
        self._gone = True

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if not self._gone:
            super().__exit__(kind, *rest)
