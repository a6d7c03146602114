"""Documents to BSON and back."""

from __future__ import annotations

from typing import Any, TypeVar

from otf_workflows.schemas import Document

D = TypeVar("D", bound=Document)


def parse(model: type[D], found: dict[str, Any]) -> D:
    """Return the document that was found in a collection."""
    found.pop("_id", None)
    return model.model_validate(found)


def plain(value: Any) -> Any:
    """Return BSON-ready data: documents become dictionaries, enums their values."""
    if isinstance(value, Document):
        return value.model_dump(mode="python")
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value
