"""Closed choices, as enums that read like their value in YAML, MongoDB and pages."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a worker is for; one FireWorks category and one queue adapter each."""

    CONTROL = "control"
    MD = "md"
    DFT = "dft"
    TRAIN = "train"


class Stage(StrEnum):
    """The jobs of a workflow, in the order they run."""

    SEED = "seed"
    EXPLORE = "explore"
    SELECT = "select"
    LABEL = "label"
    GATHER = "gather"
    FINETUNE = "finetune"
    ASSESS = "assess"
    PRODUCE = "produce"
    AUDIT = "audit"
    EVALUATE = "evaluate"
    CONCLUDE = "conclude"


class CampaignState(StrEnum):
    """Where a campaign stands. The last five are terminal until a person acts."""

    RUNNING = "running"
    PAUSED = "paused"
    PRODUCING = "producing"
    CONVERGED = "converged"
    BUDGET_EXHAUSTED = "budget_exhausted"
    STALLED = "stalled"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def terminal(self) -> bool:
        """Whether nothing more happens by itself."""
        return self not in {self.RUNNING, self.PAUSED, self.PRODUCING}


class CycleState(StrEnum):
    """Where a cycle stands."""

    EMITTING = "emitting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class LabelState(StrEnum):
    """Where a label stands."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    QUARANTINED = "quarantined"


class FailureCause(StrEnum):
    """Why a label failed; what pages and reruns group by."""

    SCF = "scf"
    WALLTIME = "walltime"
    MEMORY = "memory"
    GEOMETRY = "geometry"
    INPUT = "input"
    PARSE = "parse"
    NODE = "node"
    KILLED = "killed"
    UNKNOWN = "unknown"


class Purpose(StrEnum):
    """Why a frame is labelled. Audit labels are never trained on."""

    SEED = "seed"
    UNCERTAIN = "uncertain"
    AUDIT = "audit"


class Split(StrEnum):
    """What a label is used for, for ever: the three never mix."""

    TRAIN = "train"
    VALIDATION = "validation"
    AUDIT = "audit"


class StopReason(StrEnum):
    """Why a walker ended its segment."""

    COMPLETED = "completed"
    UNCERTAIN = "uncertain"
    DISTANCE = "distance"
    VOLUME = "volume"
    TEMPERATURE = "temperature"
    FORCE = "force"


class CellMotion(StrEnum):
    """What constant pressure may change."""

    ISOTROPIC = "isotropic"
    """The volume, at constant shape."""
    FLEXIBLE = "flexible"
    """Volume and shape: lengths and angles of the cell."""


class Decision(StrEnum):
    """What follows a finished cycle."""

    CONTINUE = "continue"
    CONVERGED = "converged"
    BUDGET_EXHAUSTED = "budget_exhausted"
    STALLED = "stalled"


class Device(StrEnum):
    """Where a potential runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class EngineKind(StrEnum):
    """What runs the jobs."""

    FIREWORKS = "fireworks"
    JOBFLOW_REMOTE = "jobflow-remote"


class QueueKind(StrEnum):
    """Batch systems that roles can be sent to."""

    SLURM = "slurm"
    PBS = "pbs"
    SGE = "sge"


class Packing(StrEnum):
    """How labels come into batch jobs."""

    AUTO = "auto"
    """Chosen by policy: one by one when labels are long against the wait in the queue."""
    ONE = "one"
    """One label per batch job, with walltime and memory of its own."""
    PILOT = "pilot"
    """Many labels after (or beside) each other in one batch job."""
