"""The two decisions at the end of a cycle: is the new model better, and what follows.

Pure functions of numbers, each with its reasons in sentences. Nothing is ever judged on labels
that the model in question was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.types import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otf_workflows.campaign import Budget, Convergence
    from otf_workflows.schemas import ErrorStatistics

JUDGES = (("held_out",), ("audit", "validation"))
"""Label sets that judge, the first that are there. Held out are audit and validation together:
audit labels are untouched, validation labels chose the epoch."""

SHOWN = {"held_out": "held-out"}
"""Names of sets that read better otherwise."""

CONFIDENCE = 0.8
"""A challenger wins if it is better in this share of bootstrap samples; else it is a tie."""

CLEAR_GAIN = 0.05
"""Without frames to resample: relative gain in force error that is not a tie."""

ENERGY_SLACK_EV_ATOM = 0.005
ENERGY_RATIO = 1.5
"""Better forces do not excuse an energy error that grows by more than both of these."""

MIN_AUDIT_FRAMES = 4
"""With fewer audit labels an interval says nothing, and nothing is called converged."""

RESAMPLES = 4000
SEED = 20240502


@dataclass(frozen=True)
class CycleEvidence:
    """What one finished cycle contributes to the decision.

    Attributes
    ----------
    cycle
        Number of the cycle.
    audit
        Errors of the incumbent *after* the cycle on all audit labels; None if there were none.
    fraction_above
        Share of MD checks above the tolerance in this cycle, by the model that drove it; None if
        no walker ran.
    calibrated
        Whether the uncertainty of the model that drove it was calibrated.
    promoted
        Whether the cycle's challenger became the incumbent.
    new_labels
        Whether its data set has labels that the one before had not.
    moved
        Whether any walker made a step.
    """

    cycle: int
    audit: ErrorStatistics | None
    fraction_above: float | None
    calibrated: bool
    promoted: bool
    new_labels: bool = True
    moved: bool = True


def judge_challenger(
    errors: Mapping[str, ErrorStatistics],
    *,
    arrays: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[bool, list[str]]:
    """Return whether the challenger replaces the incumbent, and why.

    The pooled force error on audit and validation labels must be smaller, clearly: a paired
    bootstrap over frames where the arrays are given, a plain margin otherwise. A tie, or nothing
    to judge by, leaves the incumbent in place.

    Parameters
    ----------
    errors
        ``'incumbent/held_out'`` and ``'challenger/held_out'`` (audit and validation labels), or
        the same with ``audit`` and ``validation``; others are not looked at.
    arrays
        Under the same names, ``Evaluation.arrays`` (``keys``, ``force_dft``,
        ``force_predicted``).
    """
    sets = _judges(errors)
    if not sets:
        return False, ["No label that neither model was trained on: the incumbent stays."]
    energy_problem = _energy_problem(errors, sets)
    old, new = (_pooled_rmse(errors, model, sets) for model in ("incumbent", "challenger"))
    n_frames = sum(errors[f"challenger/{name}"].n_frames for name in sets)
    compared = (
        f"force RMSE {new:.3f} eV/Å against {old:.3f} of the incumbent on {n_frames} "
        f"{' and '.join(SHOWN.get(name, name) for name in sets)} labels"
    )
    sentences = []
    if "challenger/audit" not in errors:
        sentences.append("There is no audit label yet; validation labels alone judge.")
    share = None if arrays is None else _share_better(arrays, sets)
    if share is None:
        verdict = _by_margin(old, new)
        certainty = "no frames to resample"
    else:
        verdict = 1 if share >= CONFIDENCE else -1 if share <= 1 - CONFIDENCE else 0
        certainty = f"better in {share:.0%} of resamples of frames"
    said = {
        1: f"The challenger is better: {compared} ({certainty}).",
        0: f"A tie, the incumbent stays: {compared} ({certainty}).",
        -1: f"The challenger is worse and is kept aside: {compared} ({certainty}).",
    }
    sentences.append(said[verdict])
    if verdict == 1 and energy_problem:
        return False, [*sentences, energy_problem]
    return verdict == 1, sentences


def _judges(errors: Mapping[str, ErrorStatistics]) -> list[str]:
    """Return the label sets on which both models were measured."""
    for names in JUDGES:
        found = [
            name
            for name in names
            if f"incumbent/{name}" in errors and f"challenger/{name}" in errors
        ]
        if found:
            return found
    return []


def _by_margin(old: float, new: float) -> int:
    """Return 1 if clearly better, -1 if clearly worse, 0 for a tie."""
    if new < (1 - CLEAR_GAIN) * old:
        return 1
    return -1 if new > (1 + CLEAR_GAIN) * old else 0


def _pooled_rmse(errors: Mapping[str, ErrorStatistics], model: str, sets: Sequence[str]) -> float:
    """Return the force RMSE over several sets (eV/Å)."""
    parts = [errors[f"{model}/{name}"] for name in sets]
    squares = sum(part.n_atoms * part.force_rmse_eV_A**2 for part in parts)
    return float(np.sqrt(squares / sum(part.n_atoms for part in parts)))


def _energy_problem(errors: Mapping[str, ErrorStatistics], sets: Sequence[str]) -> str | None:
    """Return why the challenger's energies rule it out, if they do."""
    for name in sets:
        old = errors[f"incumbent/{name}"].energy_mae_eV_atom
        new = errors[f"challenger/{name}"].energy_mae_eV_atom
        if new > max(ENERGY_RATIO * old, old + ENERGY_SLACK_EV_ATOM):
            return (
                f"But its energy error on {name} labels grew from {1000 * old:.1f} to "
                f"{1000 * new:.1f} meV/atom: the incumbent stays."
            )
    return None


def _share_better(arrays: Mapping[str, Mapping[str, Any]], sets: Sequence[str]) -> float | None:
    """Return the share of paired bootstrap samples of frames in which the challenger is better.

    None for fewer than two frames in common.
    """
    old: dict[str, float] = {}
    new: dict[str, float] = {}
    for name in sets:
        for model, found in (("incumbent", old), ("challenger", new)):
            found.update(_squares(arrays.get(f"{model}/{name}", {})))
    common = sorted(old.keys() & new.keys())
    if len(common) < 2:
        return None
    # Pooled RMSEs over the same frames have the same denominator: sums of squares decide.
    gains = np.array([old[key] - new[key] for key in common])
    drawn = np.random.default_rng(SEED).integers(len(gains), size=(RESAMPLES, len(gains)))
    totals = gains[drawn].sum(axis=1)
    return float((totals > 0).mean() + 0.5 * (totals == 0).mean())


def _squares(arrays: Mapping[str, Any]) -> dict[str, float]:
    """Return key → sum of squared force errors of each frame (eV²/Å²)."""
    return {
        key: float(((np.asarray(found) - np.asarray(wanted)) ** 2).sum())
        for key, found, wanted in zip(
            arrays.get("keys", []),
            arrays.get("force_predicted", []),
            arrays.get("force_dft", []),
            strict=True,
        )
    }


def decide(
    history: Sequence[CycleEvidence],
    *,
    convergence: Convergence,
    budget: Budget,
    tolerance_eV_A: float,
    n_labels: int,
    core_hours: float,
    min_labels_next: int = 1,
) -> tuple[Decision, list[str]]:
    """Return what follows the last cycle, and why.

    Converged: for ``convergence.cycles`` cycles in a row, the upper end of the 95 % interval of
    the incumbent's audit force RMSE and the share of MD checks above the tolerance are both
    acceptable. The share belongs to the model that drove the cycle, the error to the one that
    came out of it. Convergence wins over an empty budget, and a budget over a stall: so many
    cycles in a row as ``convergence.stall_cycles`` without a promotion, or without a new label.

    Parameters
    ----------
    history
        Finished cycles, oldest first.
    convergence, budget
        Rules of the campaign.
    tolerance_eV_A
        The force error the user can live with (eV/Å).
    n_labels, core_hours
        Used so far, audits and failures included.
    min_labels_next
        Labels that the next cycle needs at least.
    """
    if not history:
        return Decision.CONTINUE, ["No cycle has finished yet."]
    checks = [
        _acceptable(record, convergence=convergence, tolerance_eV_A=tolerance_eV_A)
        for record in history
    ]
    sentences = checks[-1][1]
    row = _row([passed for passed, _ in checks])
    if row >= convergence.cycles:
        how_long = f"for {row} cycles in a row" if row > 1 else "in this cycle"
        return Decision.CONVERGED, [
            *sentences,
            f"The error on audit labels and the share of uncertain MD were acceptable {how_long}.",
        ]
    if row:
        sentences = [
            *sentences,
            f"Both were acceptable for {row} of {convergence.cycles} cycles in a row.",
        ]
    spent = _spent(
        budget,
        n_cycles=len(history),
        n_labels=n_labels,
        core_hours=core_hours,
        min_labels_next=min_labels_next,
    )
    if spent:
        return Decision.BUDGET_EXHAUSTED, [*sentences, *spent]
    barren = _row([not record.new_labels for record in history])
    if barren:
        sentences = [*sentences, _barren(history[-1], barren)]
        if barren >= convergence.stall_cycles and not row:
            return Decision.STALLED, sentences
    unpromoted = _row([not record.promoted for record in history])
    if unpromoted >= convergence.stall_cycles and not row:
        reason = (
            f"No challenger was better in {unpromoted} cycles in a row: new labels of this kind do "
            "not help. A looser tolerance, another potential, or a closer look at the labels may."
        )
        return Decision.STALLED, [*sentences, reason]
    return Decision.CONTINUE, [*sentences, "The next cycle follows."]


def _acceptable(
    record: CycleEvidence, *, convergence: Convergence, tolerance_eV_A: float
) -> tuple[bool, list[str]]:
    """Return whether one cycle meets both criteria, and a sentence on each."""
    errors = record.audit
    if errors is None or errors.n_frames < MIN_AUDIT_FRAMES:
        n = 0 if errors is None else errors.n_frames
        accurate = False
        first = f"{n} audit labels are too few to trust an error ({MIN_AUDIT_FRAMES} are needed)."
    else:
        accurate = errors.force_rmse_high_eV_A <= tolerance_eV_A
        first = (
            f"Audit force RMSE {errors.force_rmse_eV_A:.3f} eV/Å, with 95 % confidence below "
            f"{errors.force_rmse_high_eV_A:.3f} ({errors.n_frames} labels): "
            f"{'within' if accurate else 'not within'} the tolerance of {tolerance_eV_A:g} eV/Å."
        )
    limit = convergence.max_fraction_above
    share = record.fraction_above
    trusted = share is not None and share <= limit and record.calibrated
    if share is not None and not record.calibrated:
        second = (
            f"{share:.1%} of MD checks were above the tolerance, but by an uncertainty that was "
            "not calibrated yet: this does not count."
        )
    elif share is None:
        second = "No MD was checked in this cycle."
    else:
        driver = "the model before this cycle's training" if record.promoted else "the incumbent"
        second = (
            f"{share:.1%} of MD checks were above the tolerance ({limit:.1%} is acceptable), "
            f"driven by {driver}."
        )
    return accurate and trusted, [first, second]


def _barren(record: CycleEvidence, n_cycles: int) -> str:
    """Return that so many cycles in a row brought no label, and what to do."""
    when = f"{n_cycles} cycles in a row" if n_cycles > 1 else "This cycle"
    if not record.moved:
        return (
            f"{when} brought no new label: every walker was stopped where it started; its page and "
            "the report say by what. Check the structure and exploration.min_distance_ratio."
        )
    return (
        f"{when} brought no new label: what walkers met was there already, unphysical, or beyond "
        "the budget, as the selection says. Other starts, higher temperatures or longer segments "
        "(exploration.steps_per_cycle) bring other frames."
    )


def _row(flags: Sequence[bool]) -> int:
    """Return how many at the end are true without a break."""
    count = 0
    for flag in reversed(flags):
        if not flag:
            break
        count += 1
    return count


def _spent(
    budget: Budget, *, n_cycles: int, n_labels: int, core_hours: float, min_labels_next: int
) -> list[str]:
    """Return which limits are reached, in sentences."""
    reached = []
    if n_cycles >= budget.max_cycles:
        reached.append(f"All {budget.max_cycles} cycles of the budget are done.")
    if n_labels + min_labels_next > budget.max_labels:
        reached.append(
            f"{n_labels} of {budget.max_labels} labels of the budget are used; the next cycle "
            f"needs at least {min_labels_next}."
        )
    if core_hours >= budget.max_core_hours:
        reached.append(
            f"{core_hours:.1f} of {budget.max_core_hours:g} core-hours of the budget are used."
        )
    return reached
