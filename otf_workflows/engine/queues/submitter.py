"""Fills the queue of one role: pilots that take what they find, or one batch job for one job."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from otf_workflows.engine.queues.backoff import BackOff
from otf_workflows.engine.queues.jobs import BatchJob, BatchState, new_token
from otf_workflows.engine.queues.packing import (
    Load,
    grant_for_label,
    limits_of,
    packing,
    pilots_wanted,
    usual_wait_s,
)
from otf_workflows.engine.queues.retries import Grant
from otf_workflows.engine.queues.system import QueueRefused, QueueUnavailable
from otf_workflows.engine.routing import CATEGORY, PRIORITY
from otf_workflows.schemas import now
from otf_workflows.settings import STATE_DIR_VARIABLE
from otf_workflows.store import Store
from otf_workflows.types import FailureCause, Packing, Role

if TYPE_CHECKING:
    from otf_workflows.engine.fireworks_engine import FireWorksEngine
    from otf_workflows.engine.queues.incidents import Incidents
    from otf_workflows.engine.queues.jobs import QueueJobs
    from otf_workflows.engine.queues.label_costs import LabelCosts
    from otf_workflows.engine.queues.system import QueueSystem
    from otf_workflows.schemas import LabelDocument

logger = logging.getLogger("otf_workflows.engine.queues.submitter")

FIRST_PAUSE_S = 10.0
STILLBORN_PAUSE_S = 30.0
"""Pause after a batch job in which no worker began (s); it doubles with each further one."""
LONGEST_PAUSE_S = 600.0


class Submitter:
    """Submits the batch jobs of one role.

    Parameters
    ----------
    home
        For whom.
    role
        The role.
    system
        Its batch system.
    engine
        FireWorks; its site has the section of the role.
    jobs
        Our book.
    incidents
        Knows which jobs need more than the usual.
    costs
        Knows how long labels take.
    """

    def __init__(
        self,
        home: str,
        role: Role,
        system: QueueSystem,
        *,
        engine: FireWorksEngine,
        jobs: QueueJobs,
        incidents: Incidents,
        costs: LabelCosts,
    ) -> None:
        self._home = home
        self._role = role
        self._system = system
        self._engine = engine
        self._pad = engine.launchpad
        self._jobs = jobs
        self._incidents = incidents
        self._costs = costs
        self._queue = engine.site.queues[role]
        self._pause = BackOff(FIRST_PAUSE_S)

    def fill(self) -> list[str]:
        """Submit what is missing; return what was done, in sentences."""
        held = self._engine.held()
        open_ = self._jobs.open(self._home, self._role)
        sentences = self._withdraw_held(open_, held)
        room = self._queue.max_jobs - len(open_)
        if room <= 0 or self._pause.waiting:
            return sentences
        mine: dict[str, Any] = {f"spec.{CATEGORY}": str(self._role)}
        ready = {**mine, "state": "READY", "spec.campaign": {"$nin": held}}
        n_ready = self._pad.fireworks.count_documents(ready)
        if n_ready == 0 or self._is_stillborn():
            return sentences
        try:
            special = self._incidents.special()
            chosen = self._next(ready | {"fw_id": {"$in": special}}, room) if special else []
            sentences += self._reserve(chosen)
            room -= len(chosen)
            usual = ready | {"fw_id": {"$nin": special}}
            if room > 0:
                sentences += self._fill_usual(usual, open_, room)
        except QueueUnavailable as error:
            pause_s = self._pause.failed()
            said = " ".join(part for part in (error.what, error.hint) if part)
            sentences.append(f"{said} The next try is in {pause_s:.0f} s.")
        else:
            self._pause.worked()
        return sentences

    def _fill_usual(self, ready: dict[str, Any], open_: list[BatchJob], room: int) -> list[str]:
        """Submit for jobs that need nothing special."""
        first = self._next(ready, 1)
        if not first:
            return []
        label = self._label(first[0])
        label_s = self._costs.expected_s(label) if label else None
        wait_s = usual_wait_s(self._jobs.waits_s(self._home, self._role))
        if self._packing(label, label_s, wait_s) is Packing.ONE:
            return self._reserve(self._next(ready, room))
        pilots = [batch for batch in open_ if batch.fw_id is None]
        n_single = sum(batch.fw_id is not None for batch in open_)
        running = {"state": "RUNNING", f"spec.{CATEGORY}": str(self._role)}
        load = Load(
            n_ready=self._pad.fireworks.count_documents(ready),
            n_running=max(self._pad.fireworks.count_documents(running) - n_single, 0),
            job_s=label_s,
            wait_s=wait_s,
        )
        missing = min(pilots_wanted(self._queue, load) - len(pilots), room)
        return [self._submit(self._batch(self._usual_grant())) for _ in range(missing)]

    def _packing(
        self, label: LabelDocument | None, label_s: float | None, wait_s: float
    ) -> Packing:
        if label is None and self._queue.packing is Packing.AUTO:
            return Packing.PILOT  # MD and training go on from job to job
        return packing(self._queue, label_s=label_s, wait_s=wait_s)

    # Reservations

    def _reserve(self, ready: list[dict[str, Any]]) -> list[str]:
        """Submit a batch job for each of these jobs."""
        from fireworks.core.fworker import FWorker

        needs = self._incidents.needs([job["fw_id"] for job in ready])
        sentences = []
        for job in ready:
            grant = needs.get(job["fw_id"]) or self._grant(job)
            batch = self._batch(grant, fw_id=job["fw_id"])
            self._jobs.add(batch)
            # reserve_fw would also take what another worker is taking at this moment.
            taken = self._pad.fireworks.find_one_and_update(
                {"fw_id": job["fw_id"], "state": "READY"},
                {"$set": {"state": "RESERVED", "updated_on": datetime.now(UTC).isoformat()}},
                {"_id": 1},
            )
            if taken is None:
                self._jobs.end(batch.token, cause=None, sentence="its job was taken by another")
                continue
            worker = FWorker(name=batch.name, category=str(self._role))
            _, launch_id = self._pad.reserve_fw(worker, batch.folder, fw_id=job["fw_id"])
            self._jobs.change(batch.token, launch_id=launch_id)
            sentences.append(self._submit(batch, written=True))
        return sentences

    def _grant(self, job: dict[str, Any]) -> Grant:
        label = self._label(job)
        if label is None:
            return self._usual_grant()
        return grant_for_label(
            self._queue,
            label_s=self._costs.expected_s(label),
            size_ratio=self._costs.size_ratio(label),
            limits=limits_of(self._queue),
        )

    def _withdraw_held(self, open_: list[BatchJob], held: list[str]) -> list[str]:
        """Cancel waiting batch jobs whose only job belongs to a campaign that a person holds."""
        waiting = [b for b in open_ if b.fw_id is not None and b.state is BatchState.QUEUED]
        if not held or not waiting:
            return []
        ids = [batch.fw_id for batch in waiting]
        query = {"fw_id": {"$in": ids}, "spec.campaign": {"$in": held}}
        theirs = {item["fw_id"] for item in self._pad.fireworks.find(query, {"fw_id": 1})}
        mine = [b for b in waiting if b.fw_id in theirs and b.withdrawn is None]
        for batch in mine:
            self._jobs.change(batch.token, withdrawn="its campaign is held by a person")
        if mine:
            self._system.cancel([batch.job_id for batch in mine if batch.job_id])
        return [f"Batch job {b.job_id} is cancelled: its campaign is held." for b in mine]

    # Submitting

    def _submit(self, batch: BatchJob, *, written: bool = False) -> str:
        """Submit a batch job; its document is there before the batch system is asked."""
        from otf_workflows.engine.supervisor import site_file

        folder = self._engine.site.resolved_state_dir / "batch" / batch.name
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            self._queue.python or _this_python(), "-m", "otf_workflows.engine.worker",
            "--role", str(self._role),
            "--site", str(site_file(self._engine.site)),
            "--token", batch.token,
            "--walltime", f"{batch.walltime_s:.0f}",
            "--max-idle", f"{self._queue.max_idle_s:g}",
        ]  # fmt: skip
        if batch.fw_id is not None:
            command += ["--firework", str(batch.fw_id)]
        elif self._queue.side_by_side > 1:
            command += ["--side-by-side", str(self._queue.side_by_side)]
        text = self._system.script(
            name=batch.name,
            folder=folder,
            command=command,
            walltime_s=batch.walltime_s,
            memory_MiB=batch.memory_MiB,
            environment={STATE_DIR_VARIABLE: str(self._engine.site.resolved_state_dir)},
        )
        script = folder / "job.sh"
        script.write_text(text, encoding="utf-8")
        if not written:
            self._jobs.add(batch)
        try:
            job_id = self._system.submit(script, name=batch.name)
        except QueueRefused as error:
            self._jobs.end(batch.token, cause=None, sentence=error.what)
            for launch in self._incidents.reserved(batch):
                self._incidents.release(launch)
            raise
        self._jobs.submitted(batch.token, job_id)
        what = "a pilot" if batch.fw_id is None else f"job {batch.fw_id} alone"
        memory = f", {batch.memory_MiB} MiB" if batch.memory_MiB else ""
        return (
            f"Batch job {job_id} submitted for {self._role}: {what}, "
            f"{batch.walltime_s:.0f} s{memory}."
        )

    def _batch(self, grant: Grant, *, fw_id: int | None = None) -> BatchJob:
        token = new_token()
        folder = self._engine.site.resolved_state_dir / "batch" / f"otf-{self._role}-{token}"
        return BatchJob(
            token=token,
            home=self._home,
            role=self._role,
            fw_id=fw_id,
            folder=str(folder),
            walltime_s=grant.walltime_s,
            memory_MiB=grant.memory_MiB,
            cores=max(
                1, self._queue.ranks * self._queue.cores_per_rank // self._queue.side_by_side
            ),
        )

    def _usual_grant(self) -> Grant:
        return Grant(float(self._queue.walltime_s), self._queue.memory_MiB)

    def _next(self, ready: dict[str, Any], limit: int) -> list[dict[str, Any]]:
        """Return the jobs that workers would take first."""
        fields = {"_id": 0, "fw_id": 1, "spec.label_key": 1}
        found = self._pad.fireworks.find(ready, fields)
        return list(found.sort([(f"spec.{PRIORITY}", -1), ("fw_id", 1)]).limit(limit))

    def _label(self, job: dict[str, Any]) -> LabelDocument | None:
        key = job["spec"].get("label_key")
        if self._role is not Role.DFT or not key:
            return None
        found = Store(self._engine.database).labels(keys=[key], light=True)
        return found[0] if found else None

    def _is_stillborn(self) -> bool:
        """Tell whether to wait because the last batch jobs came to nothing."""
        lost = self._jobs.stillborn(self._home, self._role)
        at_fault = [batch for batch in lost if batch.cause is not FailureCause.KILLED]
        if not at_fault or at_fault[0].ended is None:
            return False
        pause_s = min(STILLBORN_PAUSE_S * 2 ** (len(at_fault) - 1), LONGEST_PAUSE_S)
        return now() - at_fault[0].ended < timedelta(seconds=pause_s)


def _this_python() -> str:
    import sys

    return sys.executable
