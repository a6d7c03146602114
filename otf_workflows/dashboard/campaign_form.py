"""The form of a new campaign: its groups of fields, and the campaign that was typed into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from otf_workflows.campaign import Campaign
from otf_workflows.dashboard.forms import FormField, form_fields, sections, typed_values
from otf_workflows.labelers import available_codes, get_labeler
from otf_workflows.labelers.ase_calculator import READY
from otf_workflows.potentials.registry import POTENTIALS, PotentialEntry
from otf_workflows.schemas import Frame
from otf_workflows.validation import findings

if TYPE_CHECKING:
    from collections.abc import Mapping

MAIN = frozenset(
    {
        "name",
        "tolerance_eV_A",
        "exploration.temperatures_K",
        "exploration.steps_per_cycle",
        "exploration.timestep_fs",
        "exploration.supercell",
        "selection.labels_per_cycle",
        "selection.audit_per_cycle",
        "budget.max_cycles",
        "budget.max_labels",
        "budget.max_core_hours",
        "production.temperature_K",
        "production.supercell",
        "production.steps",
    }
)
"""What most people set, and what a file should therefore say even where it is the default."""

_TITLES = {
    "exploration": "Molecular dynamics",
    "budget": "Budget",
    "selection": "Which frames are labelled",
    "production": "Production run",
    "seeding": "Seed frames",
    "quorum": "Quorum",
    "training": "Fine-tuning",
    "convergence": "When it is good enough",
}
_HAND_MADE = {"structure", "potential", "labels", "production"}


@dataclass(frozen=True)
class Group:
    """Fields that belong together.

    Attributes
    ----------
    key
        Section of the campaign file.
    title
        Heading.
    about
        The section's own description.
    main, more
        Fields that most people set, and the others.
    """

    key: str
    title: str
    about: str
    main: tuple[FormField, ...]
    more: tuple[FormField, ...]


@dataclass(frozen=True)
class CampaignForm:
    """All that the form shows.

    Attributes
    ----------
    top
        Fields outside any section.
    groups
        Sections of the campaign file.
    codes
        DFT code → fields of its recipe.
    potentials
        Universal potentials by name.
    typed
        What was typed so far, by the name of the field.
    """

    top: tuple[FormField, ...]
    groups: tuple[Group, ...]
    codes: dict[str, tuple[FormField, ...]]
    potentials: dict[str, PotentialEntry]
    typed: Mapping[str, str]

    @classmethod
    def of(cls, typed: Mapping[str, str]) -> Self:
        """Return the form with what was typed into it."""
        return cls(
            top=_top(),
            groups=_groups(),
            codes={code: recipe_fields(code) for code in available_codes()},
            potentials=POTENTIALS,
            typed=typed,
        )

    @property
    def code(self) -> str:
        """The DFT code chosen."""
        chosen = self.typed.get("labels.code", "")
        return chosen if chosen in self.codes else "espresso"

    @property
    def potential(self) -> str:
        """The universal potential chosen."""
        return self.typed.get("potential") or str(Campaign.model_fields["potential"].default)

    @property
    def with_production(self) -> bool:
        """Whether a production run is asked for."""
        return not self.typed or "with_production" in self.typed

    def value(self, field: FormField) -> str:
        """Return what stands in a field: as typed, else its default."""
        if not self.typed:
            return field.default
        return self.typed.get(field.name, "")

    def knows(self, name: str) -> bool:
        """Tell whether a field of this name is shown, so that a problem can stand beside it."""
        shown = {"structure", "potential", *(field.name for field in self.top)}
        shown |= {f.name for group in self.groups for f in (*group.main, *group.more)}
        shown |= {field.name for field in self.codes[self.code]}
        return name in shown


def recipe_fields(code: str) -> tuple[FormField, ...]:
    """Return the fields of a code's recipe; the same field of two codes has two names."""
    model = get_labeler(code).recipe_model
    fields = form_fields(model, prefix=f"labels.{code}.", without={"code"})
    return tuple(sorted(fields, key=lambda field: not field.required))


def campaign_data(typed: Mapping[str, str], *, structure: str) -> dict[str, Any]:
    """Return the campaign as it would stand in a file; wrong values are kept for the model.

    Parameters
    ----------
    typed
        Text by the name of the field.
    structure
        Name of the structure file beside it.

    Raises
    ------
    InputError
        If a value that must be YAML is not.
    """
    values = typed_values(_top(), typed, always=MAIN)
    code = typed.get("labels.code", "")
    recipe = typed_values(recipe_fields(code), typed) if code in available_codes() else {}
    data: dict[str, Any] = {
        "name": values.pop("name", ""),
        "structure": structure,
        "potential": typed.get("potential", ""),
        **values,
        "labels": {"code": code, **recipe},
    }
    for key, model in sections(Campaign).items():
        if key == "structure":
            continue
        if key == "production" and "with_production" not in typed:
            data[key] = None
            continue
        found = typed_values(form_fields(model, prefix=f"{key}."), typed, always=MAIN)
        if found:
            data[key] = found
    return data


def field_problems(data: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong, by the name of the field; nothing heavy is imported for it.

    Parameters
    ----------
    data
        From :func:`campaign_data`; its structure is looked at later, when it is read.
    """
    found: dict[str, str] = {}
    if not data.get("structure"):
        found["structure"] = "a structure file is missing: CIF, POSCAR or extended XYZ"
    if data.get("potential") not in POTENTIALS:
        found["potential"] = "choose a universal potential"
    code = data["labels"]["code"]
    if code in available_codes():
        model = get_labeler(code).recipe_model
        try:
            model.model_validate(data["labels"])
        except ValidationError as error:
            for item in findings(error, model, prefix=("labels", code)):
                found.setdefault(_name(item.location), item.what.replace(f"labels.{code}.", ""))
        if code == "ase" and data["labels"].get("calculator", "emt") not in READY:
            # An import path is a piece of code to be run, and no browser may name one.
            found["labels.ase.calculator"] = (
                f"only {', '.join(READY)} can be chosen here; an import path runs code, so it "
                "takes a campaign file of your own"
            )
    else:
        found["labels.code"] = "choose the code that computes the labels"
    cell = [[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]]
    stand_in = Frame(numbers=[3], cell_A=cell, positions_A=[[0.0, 0.0, 0.0]])
    try:
        Campaign.model_validate({**data, "structure": stand_in})
    except ValidationError as error:
        for item in findings(error, Campaign):
            found.setdefault(_name(item.location), item.what)
    return found


def _name(location: tuple[str | int, ...]) -> str:
    """Return the field of a place; numbers of a list share one field."""
    return ".".join(str(part) for part in location if not isinstance(part, int))


def _top() -> tuple[FormField, ...]:
    return tuple(form_fields(Campaign, without=_HAND_MADE))


def _groups() -> tuple[Group, ...]:
    nested = sections(Campaign)
    order = [*(key for key in _TITLES if key in nested), *(k for k in nested if k not in _TITLES)]
    made = []
    for key in order:
        if key == "structure":
            continue
        fields = form_fields(nested[key], prefix=f"{key}.")
        made.append(
            Group(
                key=key,
                title=_TITLES.get(key, key.replace("_", " ").capitalize()),
                about=(nested[key].__doc__ or "").strip().splitlines()[0],
                main=tuple(field for field in fields if field.name in MAIN),
                more=tuple(field for field in fields if field.name not in MAIN),
            )
        )
    return tuple(made)
