"""``otf lineage``: from a model back to its labels, frames and parents; one query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from otf_workflows.cli import output, params
from otf_workflows.cli.session import session

if TYPE_CHECKING:
    from collections.abc import Iterator

_LABELS_SHOWN = 12
"""Labels listed on a terminal; ``--all`` and pipes show every one."""


def lineage(
    ctx: typer.Context,
    model: params.ModelId,
    *,
    everything: params.Everything = False,
    as_json: params.AsJson = False,
) -> None:
    """Show where a model comes from: properties, data set, labels, frames, parents."""
    found = session(ctx).store.lineage(model)
    if as_json:
        import json

        output.emit_json("otf.lineage/1", {"lineage": json.loads(json.dumps(found, default=str))})
        return
    limit = None if everything or not output.on_terminal() else _LABELS_SHOWN
    for line in tree(found, limit=limit):
        output.data(line)


def tree(found: dict[str, Any], *, limit: int | None = None) -> list[str]:
    """Return a lineage as the lines of a tree.

    Parameters
    ----------
    found
        What ``Store.lineage`` returned.
    limit
        Show at most so many labels.
    """
    children: list[tuple[str, list[str]]] = []
    properties = [
        f"{item['kind']} {_conditions(item.get('conditions', {}))}".rstrip()
        for item in found.get("properties", [])
    ]
    if properties:
        children.append((f"properties ({len(properties)})", properties))
    for dataset in found.get("dataset", []):
        splits = _count(entry["split"] for entry in dataset["entries"])
        split_of = {entry["key"]: entry["split"] for entry in dataset["entries"]}
        labels = [_label(label, split_of) for label in found.get("labels", [])]
        hidden = len(labels) - limit if limit is not None else 0
        if hidden > 0:
            labels = [*labels[:limit], f"… {hidden} more (--all)"]
        children.append((f"data set {dataset['hash'][:12]}: {splits}", labels))
    ancestors = sorted(found.get("ancestors", []), key=lambda item: item.get("generation", 0))
    if ancestors:
        children.append((f"parents ({len(ancestors)})", [_model(item) for item in ancestors]))
    return [_model(found), *_branches(children)]


def _branches(children: list[tuple[str, list[str]]]) -> Iterator[str]:
    for index, (title, leaves) in enumerate(children):
        last = index == len(children) - 1
        yield f"{'└─' if last else '├─'} {title}"
        for number, leaf in enumerate(leaves):
            end = number == len(leaves) - 1
            yield f"{'   ' if last else '│  '}{'└─' if end else '├─'} {leaf}"


def _model(item: dict[str, Any]) -> str:
    if item.get("campaign") is None:
        return f"{item['model_id']}  (pretrained)"
    audit = (item.get("errors") or {}).get("challenger/audit")
    error = f", audit force RMSE {audit['force_rmse_eV_A']:.3g} eV/Å" if audit else ""
    fate = "promoted" if item.get("promoted") else "not promoted"
    return f"{item['model_id']}  (cycle {item['cycle']}, {fate}{error})"


def _label(item: dict[str, Any], split_of: dict[str, str]) -> str:
    frame = item.get("frame", {})
    origin = frame.get("origin", {})
    if origin.get("walker") is not None:
        source = (
            f"walker {origin['walker']} step {origin['step']} at {origin['temperature_K']:g} K, "
            f"driven by {origin['model_id']}"
        )
    else:
        source = origin.get("note") or "seed frame"
    return (
        f"label {item['key'][:12]}  {split_of.get(item['key'], '?')}  {frame.get('purpose')}  "
        f"{item['state']}  {source}"
    )


def _conditions(conditions: dict[str, Any]) -> str:
    plain = {k: v for k, v in conditions.items() if isinstance(v, int | float | str)}
    return ", ".join(f"{key} = {value}" for key, value in plain.items())


def _count(words: Iterator[str]) -> str:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{n} {word}" for word, n in sorted(counts.items()))
