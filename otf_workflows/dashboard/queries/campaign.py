"""One campaign: its cycles with stages and errors, what it cost, and what it may still cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otf_workflows.progress import campaign_progress
from otf_workflows.reconcile import stage_records
from otf_workflows.report import words
from otf_workflows.report.data import decisions
from otf_workflows.schemas import CampaignDocument, Frame, now
from otf_workflows.types import CampaignState, CycleState, LabelState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from otf_workflows.engine.base import Engine
    from otf_workflows.progress import CampaignProgress
    from otf_workflows.report.model import Material, Occurrence
    from otf_workflows.schemas import CycleDocument, ErrorStatistics, StageRecord, Verdict
    from otf_workflows.store import Store

NEWEST_EVENTS = 200
"""Events read for the decision log."""


@dataclass(frozen=True)
class LabelLedger:
    """What labels of one cycle, or of a whole campaign, cost.

    Attributes
    ----------
    counts
        Labels by state.
    n_own
        Labels that this campaign was the first to ask for.
    n_reused
        Finished labels that another campaign had paid for, or that were imported.
    n_calls
        DFT runs: every try counts, failed ones and those of reused labels too.
    core_hours
        Core-hours of the labels that this campaign paid for.
    """

    counts: dict[LabelState, int] = field(default_factory=lambda: dict.fromkeys(LabelState, 0))
    n_own: int = 0
    n_reused: int = 0
    n_calls: int = 0
    core_hours: float = 0.0

    @property
    def n_labels(self) -> int:
        """Labels in any state."""
        return sum(self.counts.values())

    @property
    def n_ended(self) -> int:
        """Labels that cost what they will cost."""
        return self.n_labels - self.counts[LabelState.PENDING] - self.counts[LabelState.RUNNING]

    def __add__(self, other: LabelLedger) -> LabelLedger:
        """Return both together."""
        return LabelLedger(
            counts={state: self.counts[state] + other.counts[state] for state in LabelState},
            n_own=self.n_own + other.n_own,
            n_reused=self.n_reused + other.n_reused,
            n_calls=self.n_calls + other.n_calls,
            core_hours=self.core_hours + other.core_hours,
        )


@dataclass(frozen=True)
class CycleLine:
    """One cycle of a campaign as a row of its page."""

    cycle: int
    kind: str
    state: str
    started: datetime
    finished: datetime | None
    stages: Sequence[StageRecord]
    fraction_above: float | None
    fraction_above_by_K: dict[float, float]
    md_steps: int
    errors: dict[str, ErrorStatistics]
    challenger_id: str | None
    verdict: Verdict | None
    ledger: LabelLedger

    @property
    def name(self) -> str:
        """'cycle 3' or 'production'."""
        return "production" if self.kind == "production" else f"cycle {self.cycle}"

    @property
    def seconds(self) -> float:
        """Wall time, until now if the cycle is not over (s)."""
        return max(((self.finished or now()) - self.started).total_seconds(), 0.0)


@dataclass(frozen=True)
class Forecast:
    """What labels may still cost if all that the budget allows is needed."""

    n_labels: int
    core_hours: float | None
    sentence: str


@dataclass(frozen=True)
class CampaignView:
    """Everything on the page of a campaign."""

    document: CampaignDocument
    progress: CampaignProgress
    material: Material
    theory: str
    cycles: Sequence[CycleLine]
    ledger: LabelLedger
    forecast: Forecast | None
    decisions: Sequence[Occurrence]

    @property
    def tolerance_eV_A(self) -> float:
        """The force error that the user can live with."""
        return float(self.document.campaign["tolerance_eV_A"])

    @property
    def md_ps(self) -> float:
        """Simulated time of all walkers, rewound steps included (ps)."""
        timestep_fs = float(self.document.campaign["exploration"]["timestep_fs"])
        return sum(line.md_steps for line in self.cycles) * timestep_fs / 1000


@dataclass(frozen=True)
class CampaignLine:
    """One campaign in the list of all."""

    name: str
    state: str
    reason: str
    formula: str
    n_atoms: int
    tolerance_eV_A: float
    n_cycles: int
    max_cycles: int
    has_production: bool
    incumbent_id: str
    created: datetime


def campaign_lines(store: Store) -> list[CampaignLine]:
    """Return all campaigns, newest first."""
    cycles: dict[str, int] = {}
    for row in store.database.otf_cycles.aggregate(
        [{"$match": {"kind": "cycle"}}, {"$group": {"_id": "$campaign", "n": {"$sum": 1}}}]
    ):
        cycles[row["_id"]] = row["n"]
    produced = set(store.database.otf_properties.distinct("campaign", {"kind": "production"}))
    lines = []
    for document in store.campaigns():
        material = words.material(Frame.model_validate(document.campaign["structure"]))
        lines.append(
            CampaignLine(
                name=document.name,
                state=str(document.state),
                reason=document.reason,
                formula=material.formula,
                n_atoms=material.n_atoms,
                tolerance_eV_A=float(document.campaign["tolerance_eV_A"]),
                n_cycles=cycles.get(document.name, 0),
                max_cycles=int(document.campaign["budget"]["max_cycles"]),
                has_production=document.name in produced,
                incumbent_id=document.incumbent_id,
                created=document.created,
            )
        )
    return lines


def campaign_view(
    store: Store,
    engine: Engine | None,
    name: str,
    *,
    dft_workers: int = 1,
    progress: CampaignProgress | None = None,
    ledgers: dict[int, LabelLedger] | None = None,
) -> CampaignView:
    """Return what the page of a campaign shows.

    Parameters
    ----------
    store
        Our collections.
    engine
        Asked for the jobs of the current cycle; None: the stages last written down count.
    name
        Campaign.
    dft_workers
        Labels computed at once on this site.
    progress, ledgers
        Where it stands and what its labels cost, if that is known already.

    Raises
    ------
    NotFoundError
        If there is no such campaign.
    """
    if progress is None:
        progress = campaign_progress(store, engine, name, dft_workers=dft_workers)
    document = store.campaign(name)
    cycles = store.cycles(name, light=True)
    if engine is not None and cycles and cycles[-1].state is not CycleState.DONE:
        # Written down every few seconds; the launch pad knows now.
        last = cycles[-1]
        jobs = engine.jobs(campaign=name, cycle=last.cycle, kind=last.kind)
        stages = stage_records(jobs) or last.stages
        cycles[-1] = last.model_copy(update={"stages": stages})
    if ledgers is None:
        ledgers = label_ledgers(store, name)
    lines = [cycle_line(cycle, ledgers.get(cycle.cycle, LabelLedger())) for cycle in cycles]
    total = sum(ledgers.values(), LabelLedger())
    return CampaignView(
        document=document,
        progress=progress,
        material=words.material(Frame.model_validate(document.campaign["structure"])),
        theory=words.theory(document.campaign["labels"]),
        cycles=lines,
        ledger=total,
        forecast=forecast(document, lines, total),
        decisions=decisions(store.events(name, limit=NEWEST_EVENTS), cycles)[::-1],
    )


def cycle_line(cycle: CycleDocument, ledger: LabelLedger) -> CycleLine:
    """Return the row of one cycle."""
    checked: dict[float, int] = {}
    above: dict[float, int] = {}
    for walker in cycle.walkers:
        kelvins = float(walker["temperature_K"])
        checked[kelvins] = checked.get(kelvins, 0) + walker["n_checked"]
        above[kelvins] = above.get(kelvins, 0) + walker["n_above"]
    n_checked = sum(checked.values())
    return CycleLine(
        cycle=cycle.cycle,
        kind=cycle.kind,
        state=str(cycle.state),
        started=cycle.created,
        finished=cycle.finished,
        stages=list(cycle.stages.values()),
        fraction_above=sum(above.values()) / n_checked if n_checked else None,
        fraction_above_by_K={k: above[k] / n for k, n in sorted(checked.items()) if n},
        md_steps=sum(int(walker["n_steps_run"]) for walker in cycle.walkers),
        errors=cycle.errors,
        challenger_id=cycle.challenger_id,
        verdict=cycle.verdict,
        ledger=ledger,
    )


def label_ledgers(
    store: Store, campaign: str, *, cycles: Sequence[int] | None = None
) -> dict[int, LabelLedger]:
    """Return what the labels of each cycle cost; one pass over the labels of the campaign.

    Parameters
    ----------
    store
        Our collections.
    campaign
        Name of the campaign.
    cycles
        Only of these cycles; None for all.
    """
    wish: dict[str, Any] = {"campaign": campaign}
    if cycles is not None:
        wish["cycle"] = {"$in": list(cycles)}
    tries = {"$add": [{"$size": {"$ifNull": [f"${name}", []]}} for name in ("attempts", "earlier")]}
    done = {"$eq": ["$state", str(LabelState.DONE)]}
    first = {"$first": "$wanted_by"}
    wishes = {"$filter": {"input": "$wanted_by", "cond": {"$eq": ["$$this.campaign", campaign]}}}
    own = {"$and": [{"$eq": ["$payer", campaign]}, {"$not": ["$imported"]}]}
    pipeline: list[dict[str, Any]] = [
        {"$match": {"wanted_by": {"$elemMatch": wish}}},
        {
            "$project": {
                "_id": 0,
                "state": 1,
                "core_hours": 1,
                "imported": {"$gt": ["$imported", None]},
                "cycle": {"$first": wishes},
                "payer": {"$getField": {"field": "campaign", "input": first}},
                # An in-process labeler may note no try.
                "calls": {"$max": [tries, {"$cond": [done, 1, 0]}]},
            }
        },
        {
            "$group": {
                "_id": {"cycle": "$cycle.cycle", "state": "$state"},
                "n": {"$sum": 1},
                "own": {"$sum": {"$cond": [own, 1, 0]}},
                "reused": {"$sum": {"$cond": [{"$and": [done, {"$not": [own]}]}, 1, 0]}},
                "calls": {"$sum": "$calls"},
                "hours": {"$sum": {"$cond": [own, "$core_hours", 0.0]}},
            }
        },
    ]
    ledgers: dict[int, LabelLedger] = {}
    for row in store.database.otf_labels.aggregate(pipeline):
        cycle = int(row["_id"]["cycle"])
        counts = dict.fromkeys(LabelState, 0) | {LabelState(row["_id"]["state"]): row["n"]}
        ledgers[cycle] = ledgers.get(cycle, LabelLedger()) + LabelLedger(
            counts=counts,
            n_own=row["own"],
            n_reused=row["reused"],
            n_calls=row["calls"],
            core_hours=row["hours"],
        )
    return dict(sorted(ledgers.items()))


def forecast(
    document: CampaignDocument, cycles: Sequence[CycleLine], spent: LabelLedger
) -> Forecast | None:
    """Return what labels may still cost: an upper bound, every cycle of the budget supposed.

    Parameters
    ----------
    document
        The campaign; one that has ended has no forecast.
    cycles
        Its cycles so far.
    spent
        What its labels cost so far; the mean of those that ended is taken for the others.
    """
    if document.state.terminal:
        return None
    settings = document.campaign
    budget, rules = settings["budget"], settings["selection"]
    production = settings.get("production") or {}
    open_ = spent.counts[LabelState.PENDING] + spent.counts[LabelState.RUNNING]
    per_cycle = int(rules["labels_per_cycle"]) + int(rules["audit_per_cycle"])
    last = cycles[-1] if cycles else None
    in_production = document.state is CampaignState.PRODUCING
    n_left = 0 if in_production else max(int(budget["max_cycles"]) - len(cycles), 0)
    n_coming = open_ + n_left * per_cycle
    if last is not None and last.state != "done" and last.ledger.n_labels == 0:
        n_coming += int(production.get("audit_labels", 0)) if in_production else per_cycle
    if not in_production:
        n_coming = min(n_coming, int(budget["max_labels"]) - spent.n_labels + open_)
        n_coming += int(production.get("audit_labels", 0))
    n_coming = max(n_coming, 0)
    n_paid = spent.n_ended - spent.n_reused
    labels = f"at most {words.count(n_coming, 'more label')}"
    if n_paid <= 0:
        return Forecast(n_coming, None, f"{labels}; what one costs is not known yet")
    each = spent.core_hours / n_paid
    left = max(float(budget["max_core_hours"]) - spent.core_hours, 0.0)
    hours = min(n_coming * each, left)
    sentence = (
        f"{labels} of {words.core_hours(each)} core-hours each (mean of {n_paid}): "
        f"at most {words.core_hours(hours)} core-hours more"
    )
    if n_coming * each > left:
        sentence += ", where the budget of core-hours ends"
    return Forecast(n_coming, hours, sentence)
