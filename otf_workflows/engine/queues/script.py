"""Job scripts, rendered with the templates of FireWorks' queue adapters."""

from __future__ import annotations

import math
import shlex
import signal
from typing import TYPE_CHECKING, Any

from otf_workflows.errors import ConfigurationError
from otf_workflows.types import QueueKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from otf_workflows.settings import Queue

WARNING_SIGNAL = signal.SIGUSR1
"""Sent to the worker before its time is up; SIGTERM means: end now."""
WARNING_S = 120
"""How long before the end of its time a job is warned (s); Slurm may be a minute early."""
SHORTEST_WARNED_S = 600
"""Shorter jobs are not warned: with the minute's doubt, it would come as soon as they start."""

_FOLDER = "/otf-folder"
"""Stands for the folder, which the templates would not quote."""


def render(
    queue: Queue,
    *,
    name: str,
    folder: Path,
    command: Sequence[str],
    walltime_s: float | None,
    memory_MiB: int | None,
    environment: Mapping[str, str],
) -> str:
    """Return the script of one batch job.

    The command takes the place of the shell (``exec``), so that it gets the warning signal itself.
    A job is never started a second time by the batch system: what follows a lost node is for the
    launcher to decide.

    Parameters
    ----------
    queue
        The queue.
    name
        Name of the job.
    folder
        Where the command runs.
    command
        Program and arguments.
    walltime_s
        Time of this job (s); the queue's if none.
    memory_MiB
        Memory per node of this job (MiB); the queue's if none.
    environment
        Variables for the command.

    Raises
    ------
    ConfigurationError
        If the batch system wants to know something that the site file does not say.
    """
    from fireworks.user_objects.queue_adapters.common_adapter import CommonAdapter

    time_s = math.ceil(walltime_s or queue.walltime_s)
    keys, own = _DIALECTS[queue.kind](queue, time_s, memory_MiB or queue.memory_MiB)
    lines = [
        *own,
        *queue.directives,
        # The warning must not end the shell, or Python while it still starts.
        f"trap '' {WARNING_SIGNAL.name.removeprefix('SIG')}",
        *queue.environment,
        *(f"export {key}={shlex.quote(value)}" for key, value in environment.items()),
    ]
    adapter = CommonAdapter(
        q_type=str(queue.kind).upper(),
        job_name=name,
        queue=queue.partition,
        account=queue.account,
        pre_rocket="\n".join(lines),
        rocket_launch=f"exec {shlex.join(command)}",
        **keys,
    )
    text = adapter.get_script_str(_FOLDER)
    # No login shell: a job has the environment of whoever submits it, and does not depend on (nor
    # wait for, nor disturb) what somebody's profile does.
    text = text.replace("#!/bin/bash -l", "#!/bin/bash")
    return text.replace(f"cd {_FOLDER}", f"cd {shlex.quote(str(folder))} || exit 2").strip() + "\n"


def _slurm(queue: Queue, time_s: int, memory_MiB: int | None) -> tuple[dict[str, Any], list[str]]:
    warned = time_s >= SHORTEST_WARNED_S
    name = WARNING_SIGNAL.name.removeprefix("SIG")
    keys = {
        "nodes": queue.nodes,
        "ntasks": queue.ranks,
        "cpus_per_task": queue.cores_per_rank,
        "gres": f"gpu:{queue.gpus}" if queue.gpus else None,
        "mem": f"{memory_MiB}M" if memory_MiB else None,
        "qos": queue.qos,
        "walltime": _clock(time_s),
        # B: the batch shell alone, whose place the worker takes, and not the ranks of a DFT code.
        "signal": f"B:{name}@{WARNING_S}" if warned else None,
    }
    return keys, ["#SBATCH --no-requeue"]


def _pbs(queue: Queue, time_s: int, memory_MiB: int | None) -> tuple[dict[str, Any], list[str]]:
    """PBS and Torque; PBS Professional's ``-l select=`` in the directives replaces our request."""
    keys: dict[str, Any] = {"walltime": _clock(time_s)}
    if not any("select=" in line for line in queue.directives):
        per_node = math.ceil(queue.ranks * queue.cores_per_rank / queue.nodes)
        gpus = f":gpus={queue.gpus}" if queue.gpus else ""
        keys |= {"nnodes": queue.nodes, "ppnode": f"{per_node}{gpus}"}
        if memory_MiB:
            keys["pmem"] = f"{math.ceil(memory_MiB * queue.nodes / queue.ranks)}mb"
    own = ["#PBS -r n", *([f"#PBS -l qos={queue.qos}"] if queue.qos else [])]
    return keys, own


def _sge(queue: Queue, time_s: int, memory_MiB: int | None) -> tuple[dict[str, Any], list[str]]:
    """SGE, whose template knows no resources: they follow as lines of their own."""
    slots = queue.ranks * queue.cores_per_rank
    if slots > 1 and not any(" -pe " in line for line in queue.directives):
        raise ConfigurationError(
            "SGE wants the name of a parallel environment for a job of several cores.",
            where="queues: directives",
            hint=f"qconf -spl lists them; then add '#$ -pe NAME {slots}' to directives",
        )
    own = ["#$ -S /bin/bash", "#$ -cwd", "#$ -r n", f"#$ -l h_rt={time_s}"]
    if memory_MiB:
        own.append(f"#$ -l h_vmem={math.ceil(memory_MiB * queue.nodes / slots)}M")
    if queue.gpus and not any("gpu" in line for line in queue.directives):
        own.append(f"#$ -l gpu={queue.gpus}")
    if queue.qos:
        own.append(f"#$ -P {queue.qos}")
    return {}, own


_DIALECTS = {QueueKind.SLURM: _slurm, QueueKind.PBS: _pbs, QueueKind.SGE: _sge}


def _clock(time_s: int) -> str:
    """Return hours:minutes:seconds."""
    return f"{time_s // 3600}:{time_s // 60 % 60:02d}:{time_s % 60:02d}"
