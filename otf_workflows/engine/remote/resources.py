"""What a role's queue section asks the batch system for, in the words of qtoolkit's templates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otf_workflows.engine.queues.packing import grant_for_label, limits_of
from otf_workflows.engine.queues.retries import Grant
from otf_workflows.types import QueueKind

if TYPE_CHECKING:
    from otf_workflows.engine.queues.label_costs import LabelCosts
    from otf_workflows.schemas import LabelDocument
    from otf_workflows.settings import Queue

MARGIN_S = 300.0
"""How much longer a batch job lives than the time limit of the label in it (s)."""


def grant_of(
    queue: Queue, label: LabelDocument, costs: LabelCosts, *, limit_s: float | None
) -> Grant:
    """Return walltime and memory of the batch job of a label.

    Parameters
    ----------
    queue
        The role's section of the site file.
    label
        The label.
    costs
        What the labels finished so far took.
    limit_s
        Time limit that a person gave this label (s); none if nobody did.
    """
    grant = grant_for_label(
        queue,
        label_s=costs.expected_s(label),
        size_ratio=costs.size_ratio(label),
        limits=limits_of(queue),
    )
    return Grant(limit_s + MARGIN_S, grant.memory_MiB) if limit_s else grant


def batch_options(queue: Queue, grant: Grant | None = None) -> dict[str, Any]:
    """Return the options of one batch job.

    Parameters
    ----------
    queue
        The role's section of the site file.
    grant
        What this job may use, if that is not what the section says.
    """
    limit_s = float(queue.walltime_s)
    if grant is not None:
        limit_s = grant.walltime_s
        queue = queue.model_copy(update={"memory_MiB": grant.memory_MiB})
    build = {QueueKind.SLURM: _slurm, QueueKind.PBS: _pbs, QueueKind.SGE: _sge}[queue.kind]
    options = build(queue, hours_minutes_seconds(limit_s))
    lines = [*options.pop("qverbatim", []), *queue.directives]
    options["qverbatim"] = "\n".join(lines) or None
    return {name: value for name, value in options.items() if value is not None}


def hours_minutes_seconds(seconds: float) -> str:
    """Return a time as batch systems read it: HH:MM:SS, with as many hours as it takes."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest:02d}"


def _slurm(queue: Queue, limit: str) -> dict[str, Any]:
    return {
        "partition": queue.partition,
        "account": queue.account,
        "qos": queue.qos,
        "nodes": queue.nodes,
        "ntasks": queue.ranks,
        "cpus_per_task": queue.cores_per_rank,
        "gpus_per_node": queue.gpus or None,
        "mem": f"{queue.memory_MiB}M" if queue.memory_MiB else None,
        "time": limit,
    }


def _pbs(queue: Queue, limit: str) -> dict[str, Any]:
    ranks = -(-queue.ranks // queue.nodes)
    parts = [f"select={queue.nodes}", f"ncpus={ranks * queue.cores_per_rank}", f"mpiprocs={ranks}"]
    if queue.gpus:
        parts.append(f"ngpus={queue.gpus}")
    if queue.memory_MiB:
        parts.append(f"mem={queue.memory_MiB}mb")
    return {
        "queue": queue.partition,
        "account": queue.account,
        "select": ":".join(parts),
        "walltime": limit,
        "qverbatim": [f"#PBS -l qos={queue.qos}"] if queue.qos else [],
    }


def _sge(queue: Queue, limit: str) -> dict[str, Any]:
    # The parallel environment has another name on every cluster: it belongs to the directives.
    return {
        "queue": queue.partition,
        "device": queue.account,
        "select": f"h_vmem={queue.memory_MiB}M" if queue.memory_MiB else None,
        "walltime": limit,
        "qverbatim": [],
    }
