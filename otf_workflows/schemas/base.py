"""What all documents have in common."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

BLOB_KEYS = ["blob", "candidates", "pool", "frames", "evaluation"]
"""Keys of job outputs that jobflow stores outside the document."""


def now() -> datetime:
    """Return the present moment, in UTC and aware of it."""
    return datetime.now(UTC)


class Document(BaseModel):
    """Base of all documents: unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", use_enum_values=False)
