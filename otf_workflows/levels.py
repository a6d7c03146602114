"""The potential and the labels must speak of the same density functional.

Another code, basis or pseudopotential at the same functional moves the zeros of energy and little
else: the alignment before training takes that off, and fine-tuning the rest. Another functional is
another energy surface (bond lengths, stiffness, barriers). Fine-tuning can cross over to it, but
then nothing that the potential knew away from the labels is of the new surface. That may be
wanted; it must not happen unnoticed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otf_workflows.errors import InputError
from otf_workflows.labelers import parse_recipe
from otf_workflows.potentials.registry import POTENTIALS, potential_entry

if TYPE_CHECKING:
    from otf_workflows.campaign import Campaign


def check_level(campaign: Campaign, *, where: str | None = None) -> None:
    """Refuse a campaign whose labels and potential are of two functionals, unless it says so.

    Recipes without a functional (teachers, classical potentials) fit every potential. A training
    from scratch takes nothing over from the potential, so there is nothing to fit.

    Parameters
    ----------
    campaign
        The campaign.
    where
        Place in its file, for the message.

    Raises
    ------
    InputError
        Naming both functionals, what would fit, and the key that accepts the difference.
    """
    wanted = parse_recipe(campaign.labels).density_functional()
    entry = potential_entry(campaign.potential)
    if wanted is None or entry.functional is None or wanted.lower() == entry.functional.lower():
        return
    if campaign.accept_level_mismatch or campaign.training.from_scratch:
        return
    elements = set(campaign.structure.numbers)
    suited = [
        name
        for name, other in POTENTIALS.items()
        if (other.functional or "").lower() == wanted.lower() and elements <= other.elements
    ]
    choice = f"potential: {' or '.join(suited)}; or " if suited else ""
    raise InputError(
        f"The labels are {wanted}, but {campaign.potential} was trained on {entry.functional} "
        f"({entry.level_of_theory}): two functionals are two energy surfaces, and fine-tuning "
        "would mix them wherever labels are sparse.",
        where=where or f"potential: {campaign.potential}",
        hint=f"{choice}labels of {entry.functional}; or, to cross over on purpose and with more "
        "labels, accept_level_mismatch: true",
    )
