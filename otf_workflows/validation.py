"""From pydantic's findings to sentences that name the field, its limits and its unit.

A user sees ``exploration.timestep_fs is -2; it must be above 0 and at most 10 (MD time step
(fs))`` and the line of the file, never a traceback.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import annotated_types as limits
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import ValidationError
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a section of 'key: value' lines",
    "model": "a section of 'key: value' lines",
}
"""What a pydantic error type that begins so asked for."""

_MAX_SHOWN = 60
"""Longest value repeated in a message (characters)."""


@dataclass(frozen=True)
class Finding:
    """One thing wrong with one field.

    Attributes
    ----------
    location
        Keys and list indices from the top of the file to the field.
    what
        What is wrong, in one sentence.
    hint
        What may be written there instead, if that can be told.
    """

    location: tuple[str | int, ...]
    what: str
    hint: str | None = None

    @property
    def field(self) -> str:
        """Dotted name of the field."""
        return dotted(self.location)


def dotted(location: Sequence[str | int]) -> str:
    """Return ``exploration.temperatures_K[1]`` for ``("exploration", "temperatures_K", 1)``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def findings(
    error: ValidationError, model: type[BaseModel], *, prefix: tuple[str | int, ...] = ()
) -> list[Finding]:
    """Return what pydantic found, as sentences.

    Parameters
    ----------
    error
        What ``model.model_validate`` raised.
    model
        The model that was asked to read the data.
    prefix
        Where that data stands in the file.
    """
    return [_finding(item, model, prefix) for item in error.errors(include_url=False)]


def submodel(annotation: Any) -> type[BaseModel] | None:
    """Return the model behind an annotation such as ``Production | None``, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(submodel, typing.get_args(annotation))), None)


def suggestion(word: str, choices: Sequence[str], *, cutoff: float = 0.6) -> str:
    """Return ``; did you mean 'x'?`` for the nearest choice, or nothing."""
    lowered = {choice.lower(): choice for choice in choices}
    near = get_close_matches(word.lower(), lowered, n=1, cutoff=cutoff)
    return f"; did you mean '{lowered[near[0]]}'?" if near else ""


def shown(value: Any) -> str:
    """Return a value as it may be repeated in a message."""
    text = f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


def range_words(field: FieldInfo) -> str:
    """Return the limits of a number in words: ``above 0 and at most 10``; empty if it has none."""
    words = []
    for item in field.metadata:
        if isinstance(item, limits.Gt):
            words.append(f"above {item.gt}")
        elif isinstance(item, limits.Ge):
            words.append(f"at least {item.ge}")
        elif isinstance(item, limits.Lt):
            words.append(f"below {item.lt}")
        elif isinstance(item, limits.Le):
            words.append(f"at most {item.le}")
    return " and ".join(words)


def _finding(item: ErrorDetails, model: type[BaseModel], prefix: tuple[str | int, ...]) -> Finding:
    location = item["loc"]
    here = (*prefix, *location)
    parent, field = _walk(model, location)
    if item["type"] == "extra_forbidden":
        return _unknown_key(here, parent, model, prefix)
    meaning = f" ({_phrase(field)})" if field is not None and field.description else ""
    if item["type"] == "missing":
        return Finding(here, f"'{dotted(here)}' is missing{meaning}")
    if item["type"] == "value_error":
        return Finding(here, item["msg"].removeprefix("Value error, "))
    return Finding(
        here, f"{dotted(here)} is {shown(item['input'])}; {_demand(item, field)}{meaning}"
    )


def _demand(item: ErrorDetails, field: FieldInfo | None) -> str:
    """Return what the value had to be."""
    kind, context = item["type"], item.get("ctx", {})
    numeric = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
    if kind in numeric and field is not None and range_words(field):
        return f"it must be {range_words(field)}"
    if kind in {"literal_error", "enum"}:
        return f"it must be {context['expected']}"
    if kind == "too_short":
        return f"it needs at least {context['min_length']}"
    if kind == "string_pattern_mismatch":
        return "it may hold letters, digits and . _ - only, at most 63, the first a letter or digit"
    for beginning, words in _KINDS.items():
        if kind.startswith(beginning + "_"):
            return f"it must be {words}"
    message = item["msg"]
    return message[0].lower() + message[1:]


def _unknown_key(
    here: tuple[str | int, ...],
    parent: type[BaseModel],
    root: type[BaseModel],
    prefix: tuple[str | int, ...],
) -> Finding:
    """Return the finding for a key nobody knows, with the nearest one or its true home."""
    key, section = str(here[-1]), dotted(here[:-1])
    known = list(parent.model_fields)
    homes = [] if prefix else _sections_with(key, root)
    # A slip of one letter is likelier than the wrong section, which is likelier than a vague match.
    guess = suggestion(key, known, cutoff=0.85)
    if not guess:
        guess = f"; it belongs to {' or '.join(homes)}" if homes else suggestion(key, known)
    place = f"section '{section}'" if section else "the top level"
    return Finding(here, f"unknown key '{key}' in {place}{guess}", f"keys: {', '.join(known)}")


def _sections_with(key: str, root: type[BaseModel]) -> list[str]:
    """Return the sections (or 'the top level') that know a key."""
    homes = ["the top level"] if key in root.model_fields else []
    for name, field in root.model_fields.items():
        nested = submodel(field.annotation)
        if nested is not None and key in nested.model_fields:
            homes.append(f"section '{name}'")
    return homes


def _walk(
    model: type[BaseModel], location: Sequence[str | int]
) -> tuple[type[BaseModel], FieldInfo | None]:
    """Return the innermost model on the way to a field, and the field if it is known."""
    field: FieldInfo | None = None
    for index, part in enumerate(location):
        found = model.model_fields.get(str(part))
        if found is None:
            if isinstance(part, int) or index + 1 < len(location):
                continue
            return model, None
        field = found
        nested = submodel(field.annotation)
        if nested is not None and index + 1 < len(location):
            model = nested
    return model, field


def _phrase(field: FieldInfo) -> str:
    """Return a description as it reads inside brackets."""
    text = (field.description or "").rstrip(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
