"""The label job: one frame, one DFT calculation, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobflow import CURRENT_JOB

from otf_workflows.jobs import otf_job
from otf_workflows.schemas import Frame, LabelResult
from otf_workflows.types import Stage


@otf_job(Stage.LABEL, expose_store=True)
def label(
    frame: Frame,
    *,
    key: str,
    recipe: dict[str, Any],
    numerics: dict[str, Any] | None = None,
) -> LabelResult:
    """Compute energy, forces and stress of a frame at the level of theory of the recipe.

    A rerun finds the finished result of an earlier run by its key and returns it, so that no
    label is ever computed twice, whoever asks.

    Parameters
    ----------
    frame
        Structure.
    key
        Content hash of structure and recipe.
    recipe
        The campaign's ``labels`` section.
    numerics
        Numerical settings for the first try, from a person's rerun.

    Raises
    ------
    LabelFailed
        After all permitted retries.
    """
    from otf_workflows.labelers import get_labeler, parse_recipe
    from otf_workflows.labelers.base import Resources
    from otf_workflows.settings import load_site

    known = _known(key)
    if known is not None:
        return known
    labeler = get_labeler(recipe["code"])
    return labeler.label(
        frame,
        parse_recipe(recipe),
        key=key,
        directory=Path.cwd(),
        resources=load_site().codes.get(recipe["code"], Resources()),
        numerics=numerics,
    )


def _known(key: str) -> LabelResult | None:
    store = CURRENT_JOB.store
    if store is None:
        return None
    found = store.docs_store.query_one({"output.key": key}, {"output": 1})
    if found is None:
        return None
    fields = {k: v for k, v in found["output"].items() if not k.startswith("@")}
    return LabelResult.model_validate(_without_marks(fields))


def _without_marks(value: Any) -> Any:
    """Return stored JSON without monty's class marks."""
    if isinstance(value, dict):
        return {k: _without_marks(v) for k, v in value.items() if not k.startswith("@")}
    if isinstance(value, list):
        return [_without_marks(item) for item in value]
    return value
