"""Forms made from pydantic models: every field with the model's own help, limits and default.

What a person types goes back through the same model, so that a form can neither offer nor accept
anything that a file could not say.
"""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import annotated_types as limits

from otf_workflows.errors import InputError
from otf_workflows.validation import range_words, submodel

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo


class FieldKind(StrEnum):
    """How a value is typed."""

    NUMBER = "number"
    WHOLE = "whole"
    TEXT = "text"
    CHOICE = "choice"
    SWITCH = "switch"
    NUMBERS = "numbers"
    MAPPING = "mapping"


@dataclass(frozen=True)
class FormField:
    """One field of a form.

    Attributes
    ----------
    name
        Dotted name, as in the file.
    key
        Last part of it.
    kind
        How it is typed.
    help
        The model's description.
    limits
        The model's limits in words; empty if it has none.
    default
        Default as it would be typed; empty for none.
    required
        Whether it has no default.
    choices
        Permitted words, for :attr:`FieldKind.CHOICE`.
    least, most
        Limits of a number, for the browser.
    """

    name: str
    key: str
    kind: FieldKind
    help: str
    limits: str
    default: str
    required: bool
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None


def form_fields(
    model: type[BaseModel], *, prefix: str = "", without: Container[str] = ()
) -> list[FormField]:
    """Return the fields of a model; sections within it are left out.

    Parameters
    ----------
    model
        The model.
    prefix
        Dotted name of the section, ending in a dot.
    without
        Keys to leave out.
    """
    return [
        _field(prefix, key, field)
        for key, field in model.model_fields.items()
        if key not in without and submodel(field.annotation) is None
    ]


def sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the sections of a model that can be typed: name → model."""
    nested = {key: submodel(field.annotation) for key, field in model.model_fields.items()}
    return {key: found for key, found in nested.items() if found is not None}


def typed_values(
    fields: Sequence[FormField], typed: Mapping[str, str], *, always: Container[str] = ()
) -> dict[str, Any]:
    """Return the values that were typed, by key; those that are the default are left out.

    Parameters
    ----------
    fields
        Of one section.
    typed
        Text by the name of the field; a switch that is off is not there.
    always
        Names to keep even where the default was typed.

    Raises
    ------
    InputError
        If a mapping is not YAML. Other wrong values are kept as text, for the model to refuse.
    """
    values = {}
    for field in fields:
        text = typed.get(field.name, "").strip()
        if field.kind is FieldKind.SWITCH:
            text = "true" if text else "false"
        if not text or (text == field.default and field.name not in always):
            continue
        values[field.key] = _value(field, text)
    return values


def as_typed(kind: FieldKind, value: Any) -> str:
    """Return a value as a person would type it."""
    if value is None:
        return ""
    if kind is FieldKind.SWITCH:
        return "true" if value else "false"
    if kind is FieldKind.NUMBERS:
        return ", ".join(_number_text(item) for item in value)
    if kind is FieldKind.MAPPING:
        import yaml

        return yaml.safe_dump(value, default_flow_style=True).strip() if value else ""
    return _number_text(value)


def _field(prefix: str, key: str, field: FieldInfo) -> FormField:
    kind, choices = _kind(field.annotation)
    # a default that follows from other fields is left to the model: its help tells what it is
    open_ended = field.is_required() or field.default_factory_takes_validated_data
    default = None if open_ended else field.get_default(call_default_factory=True)
    least, most = _bounds(field)
    return FormField(
        name=prefix + key,
        key=key,
        kind=kind,
        help=field.description or "",
        limits=range_words(field),
        default=as_typed(kind, default),
        required=field.is_required(),
        choices=choices,
        least=least,
        most=most,
    )


def _kind(annotation: Any) -> tuple[FieldKind, tuple[str, ...]]:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in {typing.Union, types.UnionType}:
        return _kind(next(item for item in inner if item is not type(None)))
    if origin is typing.Literal:
        return FieldKind.CHOICE, tuple(str(item) for item in inner)
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return FieldKind.CHOICE, tuple(str(member) for member in annotation)
    if origin in {list, tuple}:
        return FieldKind.NUMBERS, ()
    if origin is dict:
        return FieldKind.MAPPING, ()
    plain = {bool: FieldKind.SWITCH, int: FieldKind.WHOLE, float: FieldKind.NUMBER}
    return plain.get(annotation, FieldKind.TEXT), ()


def _bounds(field: FieldInfo) -> tuple[float | None, float | None]:
    least = most = None
    for item in field.metadata:
        if isinstance(item, limits.Ge | limits.Gt):
            least = typing.cast("Any", item.ge if isinstance(item, limits.Ge) else item.gt)
        elif isinstance(item, limits.Le | limits.Lt):
            most = typing.cast("Any", item.le if isinstance(item, limits.Le) else item.lt)
    return least, most


def _value(field: FormField, text: str) -> Any:
    if field.kind is FieldKind.SWITCH:
        return text == "true"
    if field.kind is FieldKind.NUMBERS:
        words = text.strip("[]()").replace("×", " ").replace(",", " ").replace(";", " ").split()
        return [_number(word) for word in words]
    if field.kind is FieldKind.MAPPING:
        return _mapping(field.name, text)
    return _number(text) if field.kind in {FieldKind.NUMBER, FieldKind.WHOLE} else text


def _mapping(name: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(
            f"{name} is not YAML: {text[:60]!r}", where=name, hint="write {key: value, key: value}"
        ) from error


def _number(text: str) -> Any:
    """Return a number, or the text if it is none."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _number_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
