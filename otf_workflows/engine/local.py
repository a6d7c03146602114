"""An engine without FireWorks: flows run in this process, one job after the other.

For tests, notebooks and teaching. What it knows of its jobs is gone with the process; outputs and
our own documents are not, so that the loop goes on from them.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from otf_workflows.engine.base import RELABEL, JobRecord, JobState
from otf_workflows.engine.records import TRACEBACK_LINES
from otf_workflows.engine.routing import HELPER, check_stages, role_of
from otf_workflows.errors import InputError, NotFoundError, OtfError, PartialError
from otf_workflows.types import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from jobflow import Flow, Job, JobStore

_one_flow_at_a_time = threading.RLock()
_ENDED = {JobState.DONE, JobState.FAILED}


@dataclass
class _Entry:
    """One job: what is known of it, and what is needed to run it again."""

    job: Job
    parents: list[str]
    workflow: int
    record: JobRecord


@dataclass
class _Workflow:
    """One submitted flow."""

    key: tuple[str, int, str]
    flow: Flow
    held: bool = False
    entries: list[_Entry] = field(default_factory=list)


class LocalEngine:
    """Runs flows at once, in this process, through ``jobflow.run_locally``.

    Parameters
    ----------
    job_store
        Where outputs go.
    root
        Folder in which each job gets one of its own.
    tell
        Called with a sentence after each job.
    """

    def __init__(
        self, *, job_store: JobStore, root: Path, tell: Callable[[str], None] | None = None
    ) -> None:
        self.job_store = job_store
        self.tell = tell
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        job_store.connect()
        self._ids = itertools.count(1)
        self._workflows: dict[int, _Workflow] = {}
        self._paused: set[str] = set()

    def submit(self, flow: Flow, *, campaign: str, cycle: int, kind: str) -> list[int | str]:
        """Run a flow to its end, or keep it if the campaign is paused; return its id.

        Raises
        ------
        InputError
            If the flow has no jobs, or one of an unknown stage.
        """
        if not flow.jobs:
            raise InputError("The flow has no jobs.", where=flow.name)
        check_stages(flow)
        flow.update_metadata({"campaign": campaign, "cycle": cycle, "kind": kind}, dynamic=True)
        number = next(self._ids)
        workflow = _Workflow((campaign, cycle, kind), flow, held=campaign in self._paused)
        self._workflows[number] = workflow
        for job, parents in flow.iterflow():
            self._enter(job, parents, number)
        if workflow.held:
            _set_states(workflow, JobState.WAITING, JobState.PAUSED)
        else:
            self._run(flow, number)
        return [number]

    def find(self, *, campaign: str, cycle: int, kind: str) -> list[int | str]:
        """Return the ids of the workflows submitted under this key, oldest first."""
        key = (campaign, cycle, kind)
        return [number for number, workflow in self._workflows.items() if workflow.key == key]

    def jobs(
        self,
        *,
        campaign: str,
        cycle: int | None = None,
        kind: str | None = None,
        label_keys: Collection[str] | None = None,
    ) -> list[JobRecord]:
        """Return all jobs of a campaign, or of some of its workflows, oldest first."""
        return [
            entry.record.model_copy()
            for entry in self._entries()
            if entry.record.campaign == campaign
            and cycle in {None, entry.record.cycle}
            and kind in {None, entry.record.kind}
            and (label_keys is None or entry.record.label_key in label_keys)
        ]

    def output(self, uuid: str) -> Any | None:
        """Return the output of a finished job, its large parts loaded, or None."""
        from jobflow import OnMissing, OutputReference

        return OutputReference(uuid).resolve(self.job_store, on_missing=OnMissing.NONE)

    def rerun(self, engine_ids: Sequence[int | str]) -> None:
        """Run failed jobs again whose dependants have not started, then what waited for them.

        Raises
        ------
        NotFoundError
            If an id is unknown; nothing is rerun then.
        PartialError
            If some were refused; the others have run.
        """
        entries = {entry.record.engine_id: entry for entry in self._entries()}
        unknown = [one for one in engine_ids if one not in entries]
        if unknown:
            raise NotFoundError(f"There is no job {unknown[0]}.", hint="otf status")
        refused = []
        for one in engine_ids:
            entry = entries[one]
            children = [e for e in entries.values() if entry.job.uuid in e.parents]
            started = any(child.record.state is not JobState.WAITING for child in children)
            if entry.record.state is not JobState.FAILED or started:
                refused.append(one)
                continue
            self._run_again(entry)
        for entry in self._entries():
            if entry.record.state is JobState.WAITING and self._may_run(entry):
                self._run_again(entry)
        if refused:
            raise PartialError(
                f"{len(refused)} of {len(engine_ids)} jobs were not run again: they have not "
                f"failed, or what depends on them has gone on without them ({refused}).",
                hint="compute such a label in a workflow of its own: otf labels rerun",
            )

    def let_go(self, engine_ids: Sequence[int | str]) -> list[int | str]:
        """Let what waits for these jobs go on without them; return those that had not ended.

        A flow runs here to its end within ``submit``, so that this can only be asked of one that
        is held. It needs no more than its new kind: when the flow runs, a job that is late has
        ended before anything else could start.
        """
        gone = [
            entry.record
            for entry in self._entries()
            if entry.record.engine_id in engine_ids and entry.record.state not in _ENDED
        ]
        for record in gone:
            record.kind = RELABEL
        return [record.engine_id for record in gone]

    def pause(self, campaign: str) -> int:
        """Keep flows of this campaign from now on; nothing is ever half-way here."""
        self._paused.add(campaign)
        return 0

    def resume(self, campaign: str) -> int:
        """Run the flows that were kept; return how many jobs were."""
        self._paused.discard(campaign)
        released = 0
        for number, workflow in self._held(campaign):
            workflow.held = False
            released += _set_states(workflow, JobState.PAUSED, JobState.WAITING)
            self._run(workflow.flow, number)
        return released

    def cancel(self, campaign: str) -> int:
        """Give up the flows that were kept; return how many jobs were."""
        self._paused.discard(campaign)
        given_up = 0
        for _, workflow in self._held(campaign):
            workflow.held = False
            given_up += _set_states(workflow, JobState.PAUSED, JobState.FAILED)
        return given_up

    def recover(self) -> list[str]:
        """Return nothing: jobs of this engine do not outlive it."""
        return []

    # Helpers

    def _entries(self) -> Iterator[_Entry]:
        for workflow in list(self._workflows.values()):
            yield from list(workflow.entries)

    def _held(self, campaign: str) -> list[tuple[int, _Workflow]]:
        return [
            (number, workflow)
            for number, workflow in self._workflows.items()
            if workflow.held and workflow.key[0] == campaign
        ]

    def _enter(self, job: Job, parents: Sequence[str], number: int) -> _Entry:
        """Note a job, unless it is known."""
        workflow = self._workflows[number]
        for entry in workflow.entries:
            if (entry.job.uuid, entry.job.index) == (job.uuid, job.index):
                return entry
        campaign, cycle, kind = workflow.key
        helper = job.name == HELPER
        stage = job.metadata.get("stage")
        record = JobRecord(
            engine_id=next(self._ids),
            uuid=job.uuid,
            name=job.name,
            state=JobState.WAITING,
            role=role_of({} if helper else job.metadata),
            stage=Stage(stage) if stage and not helper else None,
            campaign=campaign,
            cycle=cycle,
            kind=kind,
            label_key=None if helper else job.metadata.get("label_key"),
        )
        entry = _Entry(job, list(parents), number, record)
        workflow.entries.append(entry)
        return entry

    def _run(self, flow: Flow | Job, number: int) -> None:
        """Run a flow and note what becomes of each of its jobs."""
        from jobflow import run_locally

        with _one_flow_at_a_time, self._noting(number), warnings.catch_warnings():
            # jobflow calls a function of monty that will go in 2028; users cannot do anything.
            warnings.filterwarnings("ignore", message="cd is deprecated", category=FutureWarning)
            run_locally(
                flow,
                log=False,
                store=self.job_store,
                create_folders=True,
                root_dir=self.root,
                ensure_success=False,
                allow_external_references=True,
            )

    def _run_again(self, entry: _Entry) -> None:
        """Run a copy of one job, with the same uuid, outside of its flow."""
        from jobflow import Job

        copy: Any = Job.from_dict(entry.job.as_dict())
        copy.hosts = []
        self._run(copy, entry.workflow)

    def _may_run(self, entry: _Entry) -> bool:
        """Tell whether a waiting job could run now that others have been rerun."""
        from jobflow import OnMissing

        states = [
            other.record.state
            for other in self._workflows[entry.workflow].entries
            if other.job.uuid in entry.parents
        ]
        if entry.job.config.on_missing_references is OnMissing.ERROR:
            return all(state is JobState.DONE for state in states)
        return all(state in _ENDED for state in states)

    @contextmanager
    def _noting(self, number: int) -> Iterator[None]:
        """Note begin, end and error of every job that jobflow runs inside the block.

        ``run_locally`` logs the error of a job and goes on; it is only to be had where it occurs.
        """
        from jobflow import Job

        original = Job.run

        def run(job: Job, *args: Any, **kwargs: Any) -> Any:
            record = self._enter(job, [], number).record
            record.state = JobState.RUNNING
            record.started = datetime.now(UTC)
            record.failure = None
            record.worker = f"local-{socket.gethostname()}-{os.getpid()}"
            record.host = socket.gethostname()
            record.directory = str(Path.cwd())
            try:
                response = original(job, *args, **kwargs)
            except BaseException as error:
                record.state = JobState.FAILED
                record.failure = _failure(error)
                raise
            else:
                record.state = JobState.DONE
                made: Any  # jobflow has turned each of them into a flow, or None
                for made in (response.replace, response.detour, response.addition):
                    for new, parents in made.iterflow() if made is not None else ():
                        self._enter(new, parents, number)
                return response
            finally:
                record.finished = datetime.now(UTC)
                if self.tell is not None and job.name != HELPER:
                    seconds = (record.finished - record.started).total_seconds()
                    self.tell(_told(record, seconds))

        with patch.object(Job, "run", run):
            yield


def _told(record: JobRecord, seconds: float) -> str:
    """Return how a job ended, in a sentence."""
    ended = f"failed: {record.failure['message']}" if record.failure else str(record.state)
    where = f"{record.campaign}, {record.kind} {record.cycle}"
    return f"{where}: {record.name} {ended}, {seconds:.0f} s"


def _set_states(workflow: _Workflow, old: JobState, new: JobState) -> int:
    changed = [entry.record for entry in workflow.entries if entry.record.state is old]
    for record in changed:
        record.state = new
        if new is JobState.FAILED:
            record.failure = {"message": "given up by a person before it started", "traceback": ""}
    return len(changed)


def _failure(error: BaseException) -> dict[str, Any]:
    if isinstance(error, OtfError):
        return error.to_dict()
    lines = traceback.format_exc().rstrip().splitlines()
    said = "".join(traceback.format_exception_only(error)).strip().splitlines()
    return {
        "message": said[0] if said else type(error).__name__,
        "traceback": "\n".join(lines[-TRACEBACK_LINES:]),
    }
