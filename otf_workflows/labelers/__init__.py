"""The codes that can compute labels, and the way from a campaign file to one of them.

Nothing of a code is imported until it is asked for, so that the command line and every worker can
read recipes without it.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from otf_workflows.errors import InputError

if TYPE_CHECKING:
    from otf_workflows.labelers.base import Labeler, Recipe

LABELERS: dict[str, str] = {
    "abinit": "otf_workflows.labelers.abinit:AbinitLabeler",
    "ase": "otf_workflows.labelers.ase_calculator:AseLabeler",
    "cp2k": "otf_workflows.labelers.cp2k:Cp2kLabeler",
    "espresso": "otf_workflows.labelers.espresso:EspressoLabeler",
    "gpaw": "otf_workflows.labelers.gpaw_labeler:GpawLabeler",
    "vasp": "otf_workflows.labelers.vasp:VaspLabeler",
}
"""Code → 'module:Class'. A new code is one file and one line here."""


def available_codes() -> list[str]:
    """Return the names of all codes, in alphabetical order."""
    return sorted(LABELERS)


def get_labeler(code: str) -> Labeler:
    """Return the labeler of a code.

    Raises
    ------
    InputError
        If there is no such code, with the nearest name.
    """
    if code not in LABELERS:
        raise InputError(
            f"there is no labeler for the code {code!r}",
            where="labels.code",
            hint=_nearest(code, available_codes()),
        )
    module, _, name = LABELERS[code].partition(":")
    return getattr(import_module(module), name)()


def check_numerics(code: str, numerics: dict[str, Any]) -> dict[str, Any]:
    """Return numerical settings for a rerun, checked against those that a code may change.

    Raises
    ------
    InputError
        If one of them is physics, unknown or impossible.
    """
    return get_labeler(code).check_numerics(numerics)


def parse_recipe(data: dict[str, Any]) -> Recipe:
    """Return the checked recipe of a campaign's ``labels`` section.

    Parameters
    ----------
    data
        Plain data, with the name of the code under ``code``.

    Raises
    ------
    InputError
        For an unknown code, an unknown key or an impossible value; all of them are named.
    """
    code = data.get("code")
    if not isinstance(code, str):
        raise InputError(
            "the recipe does not say which code computes the labels",
            where="labels.code",
            hint=f"one of: {', '.join(available_codes())}",
        )
    model = get_labeler(code).recipe_model
    try:
        return model.model_validate(data)
    except ValidationError as error:
        fields = list(model.model_fields)
        hints = [
            _nearest(str(e["loc"][0]), fields)
            for e in error.errors()
            if e["type"] == "extra_forbidden"
        ]
        raise InputError(
            f"the recipe for {code} is wrong: " + "; ".join(map(_sentence, error.errors())),
            where=", ".join(".".join(["labels", *map(str, e["loc"])]) for e in error.errors()),
            hint="; ".join(dict.fromkeys(hints)) or None,
        ) from error


def _sentence(error: Any) -> str:
    field = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{field!r} is not a setting of it"
    message = error["msg"].removeprefix("Value error, ")
    return f"{field}: {message}" if field else message


def _nearest(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(names)}"
