"""The documents: what jobs return, and what our MongoDB collections hold.

Units everywhere: eV, Å, eV/Å, K, fs; stress in eV/Å³ with ASE's sign (tension positive). Large
arrays live in the keys named in :data:`BLOB_KEYS`, which jobflow moves to the ``data`` store
(GridFS), so that no document nears MongoDB's 16 MB.
"""

from otf_workflows.schemas.base import BLOB_KEYS, Document, now
from otf_workflows.schemas.campaigns import (
    CampaignDocument,
    CycleDocument,
    Event,
    PropertyDocument,
    StageRecord,
    Verdict,
)
from otf_workflows.schemas.frames import Checkpoint, Frame, Origin, WalkerSegment
from otf_workflows.schemas.labels import (
    Attempt,
    Batch,
    LabelDocument,
    LabelledFrame,
    LabelResult,
    Selection,
    core_hours,
)
from otf_workflows.schemas.models import (
    Calibration,
    DatasetDocument,
    ErrorStatistics,
    Forgetting,
    ModelDocument,
    TrainingResult,
)

__all__ = [
    "BLOB_KEYS",
    "Attempt",
    "Batch",
    "Calibration",
    "CampaignDocument",
    "Checkpoint",
    "CycleDocument",
    "DatasetDocument",
    "Document",
    "ErrorStatistics",
    "Event",
    "Forgetting",
    "Frame",
    "LabelDocument",
    "LabelResult",
    "LabelledFrame",
    "ModelDocument",
    "Origin",
    "PropertyDocument",
    "Selection",
    "StageRecord",
    "TrainingResult",
    "Verdict",
    "WalkerSegment",
    "core_hours",
    "now",
]
