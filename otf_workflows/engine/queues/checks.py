"""Whether the batch queues of a site take our jobs, and what these find where they run."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from otf_workflows.database_checks import is_loopback
from otf_workflows.engine.queues.packing import limits_of
from otf_workflows.engine.queues.system import (
    Fate,
    QueueJobState,
    QueueSystem,
    QueueUnavailable,
)
from otf_workflows.errors import OtfError
from otf_workflows.preflight import Check
from otf_workflows.settings import STATE_DIR_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from otf_workflows.campaign import Campaign
    from otf_workflows.settings import Queue, Site
    from otf_workflows.types import Role

TEST_WALLTIME_S = 600
"""Time a test job asks for (s): it takes one minute, and short jobs start sooner."""
LOOK_S = 1.0
"""Pause between two looks at the queue (s)."""
_COMPLAINT = re.compile(
    r"command not found|unable to locate a module|lmod has detected the following error|"
    r"\berror:.*module|no such file or directory",
    re.IGNORECASE,
)
"""What a shell and module systems say of a line under ``environment`` that did not work."""
ANSWER_S = 20.0
"""How long a shared folder may take to show what a job wrote on its node (s)."""


@dataclass
class _TestJob:
    """A test job on its way."""

    role: Role
    system: QueueSystem
    folder: Path
    job_id: str

    @property
    def name(self) -> str:
        """Name of its check."""
        return f"queue test '{self.role}'"

    @property
    def answer(self) -> Path:
        """File it writes what it found to."""
        return self.folder / "answer.json"


def acceptance(site: Site) -> Iterator[Check]:
    """Yield for each role in a queue whether the batch system would take its jobs.

    Nothing is submitted.

    Parameters
    ----------
    site
        The site.
    """
    if not site.queues:
        return
    if site.remote.host is not None:
        detail = f"looked at on {site.remote.host}, where jobs are submitted"
        yield Check(name="queues", ok=True, detail=detail, hint="run otf doctor there")
        return
    yield _reachable_database(site)
    folder = site.resolved_state_dir / "doctor"
    folder.mkdir(exist_ok=True)
    for role, queue in site.queues.items():
        name = f"queue '{role}'"
        script = folder / f"otf-doctor-{role}.sh"
        try:
            system = QueueSystem(queue)
            made = system.script(
                name=f"otf-doctor-{role}", folder=folder, command=["true"], environment={}
            )
            script.write_text(made, encoding="utf-8")
            said = system.check(script)
        except OtfError as error:
            yield _failed(name, error)
        else:
            yield Check(name=name, ok=True, detail=f"{_request(queue)}: {said}")
            yield from _time_limits(role, queue, system)
        finally:
            script.unlink(missing_ok=True)


def _time_limits(role: Role, queue: Queue, system: QueueSystem) -> Iterator[Check]:
    """Yield what is wrong with the times that jobs of a role ask for; most queues take them all."""
    name = f"walltime of queue '{role}'"
    try:
        longest_s = system.longest_s()
    except OtfError as error:
        yield _failed(name, error)
        return
    again_s = limits_of(queue).walltime_s
    if longest_s is None or max(queue.walltime_s, again_s) <= longest_s:
        return
    if queue.walltime_s > longest_s:
        key, asked_s, who = "walltime_s", float(queue.walltime_s), "a job"
    else:
        key, asked_s, who = "max_walltime_s", again_s, "a job that ran out of time once"
    where = f"partition '{queue.partition}'" if queue.partition else "the default partition"
    yield Check(
        name=name,
        ok=False,
        detail=f"{who} asks for {asked_s / 3600:.3g} h, but {where} gives {longest_s / 3600:.3g} h "
        "at most: it would wait for ever",
        hint=f"set {key}: {longest_s:.0f} under queues.{role} of the site file",
    )


def _reachable_database(site: Site) -> Check:
    """Tell whether compute nodes can find the database, as far as the address tells."""
    from otf_workflows.settings import EngineKind

    name = "database from compute nodes"
    if site.engine is EngineKind.JOBFLOW_REMOTE:
        return Check(name=name, ok=True, detail="not needed with jobflow-remote")
    if site.database.mode == "embedded":
        return Check(
            name=name,
            ok=False,
            detail="the embedded database can be reached from this machine only",
            hint="use a MongoDB server (otf init --site slurm), or engine: jobflow-remote",
        )
    if is_loopback(site.database.host):
        return Check(
            name=name,
            ok=True,
            detail=f"{site.database.host} is another machine on every node",
            hint="otf doctor --queue-test   (tells whether jobs get through)",
        )
    detail = f"{site.database.host}:{site.database.port}, tested by --queue-test"
    return Check(name=name, ok=True, detail=detail)


def test_jobs(site: Site, *, campaign: Campaign | None, wait_s: float) -> Iterator[Check]:
    """Submit a short job of each role in a queue, and yield what they find where they run.

    Parameters
    ----------
    site
        The site.
    campaign
        Campaign whose programs and data files are looked for there.
    wait_s
        How long to wait for all of them (s); what still waits then is cancelled.
    """
    if site.remote.host is not None:
        return
    folder = site.resolved_state_dir / "doctor" / secrets.token_hex(4)
    waiting: list[_TestJob] = []
    try:
        for role, queue in site.queues.items():
            try:
                waiting.append(_submit(site, role, queue, folder / role, campaign))
            except OtfError as error:
                yield _failed(f"queue test '{role}'", error)
        deadline = time.monotonic() + wait_s
        while waiting:
            for job in list(waiting):
                checks = _look(job, late=time.monotonic() > deadline)
                if checks is not None:
                    waiting.remove(job)
                    yield from checks
            if waiting:
                time.sleep(LOOK_S)
    finally:
        for job in waiting:
            with suppress(QueueUnavailable):
                job.system.cancel([job.job_id])
        shutil.rmtree(folder, ignore_errors=True)


def _submit(
    site: Site, role: Role, queue: Queue, folder: Path, campaign: Campaign | None
) -> _TestJob:
    """Submit the test job of a role; it asks for what its real jobs do, but for less time."""
    from otf_workflows.engine.supervisor import site_file

    folder.mkdir(parents=True)
    job = _TestJob(role, QueueSystem(queue), folder, "")
    command = [
        queue.python or sys.executable, "-m", "otf_workflows.engine.queues.probe",
        "--role", str(role), "--site", str(site_file(site)), "--answer", str(job.answer),
    ]  # fmt: skip
    if campaign is not None:
        file = folder / "campaign.json"
        file.write_text(campaign.model_dump_json(), encoding="utf-8")
        command += ["--campaign", str(file)]
    name = f"otf-doctor-{role}"
    script = folder / "job.sh"
    text = job.system.script(
        name=name,
        folder=folder,
        command=command,
        environment={STATE_DIR_VARIABLE: str(site.resolved_state_dir)},
        walltime_s=min(queue.walltime_s, TEST_WALLTIME_S),
    )
    script.write_text(text, encoding="utf-8")
    job.job_id = job.system.submit(script, name=name)
    return job


def _look(job: _TestJob, *, late: bool) -> list[Check] | None:
    """Return what a test job found, or why it found nothing; None while it is on its way."""
    if job.answer.is_file():
        return _read(job)
    try:
        known = next((one for one in job.system.jobs() if one.job_id == job.job_id), None)
        if known is None or known.state is QueueJobState.ENDED:
            return _ended(job)
        if not late:
            return None
        job.system.cancel([job.job_id])
    except QueueUnavailable as error:
        return [_failed(job.name, error)] if late else None
    where = "still runs" if known.state is QueueJobState.RUNNING else f"waits ({known.reason})"
    return [
        Check(
            name=job.name,
            ok=False,
            detail=f"batch job {job.job_id} {where} and was cancelled",
            hint="otf doctor --queue-test --wait SECONDS, when the queue has room",
        )
    ]


def _ended(job: _TestJob) -> list[Check]:
    """Return the answer of a job that has ended, or why there is none."""
    fate = job.system.fates([job.job_id]).get(job.job_id)
    # A shared file system may take a while to show what was written on another machine.
    patience_s = ANSWER_S if fate is None or fate.cause is None else 0.0
    deadline = time.monotonic() + patience_s
    while not job.answer.is_file() and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    return _read(job) if job.answer.is_file() else [_no_answer(job, fate)]


def _read(job: _TestJob) -> list[Check]:
    """Return what a job wrote, each name with its role."""
    found = json.loads(job.answer.read_text(encoding="utf-8"))
    checks = [Check.model_validate(item) for item in found["checks"]]
    head = Check(name=job.name, ok=True, detail=f"batch job {job.job_id} ran on {found['node']}")
    where = f"{job.role} on {found['node']}"
    complaints = [line for line in _printed(job) if _COMPLAINT.search(line)]
    if complaints:  # such lines end no script: the job goes on without what they should bring
        checks.append(
            Check(
                name="environment",
                ok=False,
                detail=complaints[0],
                hint=_environment_hint(job.role, complaints),
            )
        )
    return [head, *(c.model_copy(update={"name": f"{where}: {c.name}"}) for c in checks)]


def _no_answer(job: _TestJob, fate: Fate | None) -> Check:
    """Explain a job that ended without having written anything."""
    words = [f"batch job {job.job_id} left no answer in {job.folder}"]
    words += [fate.sentence] if fate else []
    printed = _printed(job)
    words += printed[-1:]
    if fate is not None and fate.cause is None:
        hint = "state_dir must be a folder that compute nodes share with this machine"
    else:
        hint = _environment_hint(job.role, printed)
    return Check(name=job.name, ok=False, detail="; ".join(words), hint=hint)


def _environment_hint(role: Role, printed: Sequence[str]) -> str:
    """Return what to change in the site file, by what a job printed."""
    if any("module: command not found" in line for line in printed):
        return f"begin environment of queues.{role} with 'source /etc/profile'"
    return f"check environment and python of queues.{role} in the site file"


def _printed(job: _TestJob) -> list[str]:
    """Return what a job wrote to its error file."""
    return [line for file in sorted(job.folder.glob("*.err*")) for line in _lines(file)]


def _lines(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _request(queue: Queue) -> str:
    """Return what a job of a queue asks for, in words."""
    cores = queue.ranks * queue.cores_per_rank
    parts = [f"{queue.nodes} node{'s' * (queue.nodes > 1)}", f"{cores} core{'s' * (cores > 1)}"]
    parts += [f"{queue.gpus} GPU{'s' * (queue.gpus > 1)}"] if queue.gpus else []
    parts += [f"{queue.memory_MiB} MiB"] if queue.memory_MiB else []
    return f"{', '.join(parts)}, {queue.walltime_s / 3600:.3g} h"


def _failed(name: str, error: OtfError) -> Check:
    return Check(name=name, ok=False, detail=error.what, hint=error.hint, exit_code=error.exit_code)
