"""Collects from the store what a report says. Nothing heavy is imported, nothing is written."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import TYPE_CHECKING, Any

from otf_workflows.errors import NotFoundError
from otf_workflows.report import words
from otf_workflows.report.citations import citations
from otf_workflows.report.costs import costs
from otf_workflows.report.evidence import Evidence
from otf_workflows.report.model import (
    Costs,
    Curves,
    CycleSummary,
    FailedLabel,
    HeadlineErrors,
    LabelGroup,
    ModelSummary,
    Occurrence,
    ReportData,
)
from otf_workflows.report.production import md_curves, production_summary
from otf_workflows.schemas import Frame, WalkerSegment, now
from otf_workflows.types import CampaignState, LabelState, Split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.schemas import (
        Calibration,
        CampaignDocument,
        CycleDocument,
        Event,
        LabelDocument,
        ModelDocument,
    )
    from otf_workflows.store import Store


def report_data(store: Store, campaign: str) -> ReportData:
    """Return everything that the report of a campaign says, finished or not.

    Parameters
    ----------
    store
        Where the documents are.
    campaign
        Name of the campaign.

    Raises
    ------
    NotFoundError
        If there is no such campaign.
    """
    document = store.campaign(campaign)
    file = document.campaign
    cycles = store.cycles(campaign)
    labels = store.labels(campaign=campaign, light=True)
    models = _models(store, document)
    productions = [p for p in store.properties(campaign) if p.kind == "production"]
    evidence = Evidence(store, document, cycles, models, labels)
    written, events = now(), store.events(campaign)
    ended = document.finished
    if ended is None and document.state.terminal and events:
        ended = events[0].when
    spent = costs(
        campaign,
        labels=labels,
        cycles=cycles,
        productions=productions,
        started=document.created,
        ended=ended or written,
    )
    headline = evidence.headline()
    production = production_summary(productions, audit=evidence.production_statistics())
    return ReportData(
        campaign=campaign,
        state=document.state,
        outcome=document.outcome,
        reason=document.reason,
        started=document.created,
        finished=ended,
        written=written,
        material=words.material(Frame.model_validate(file["structure"])),
        potential=file["potential"],
        potential_theory=_potential_theory(file),
        theory=words.theory(file["labels"]),
        tolerance_eV_A=file["tolerance_eV_A"],
        final_model=document.incumbent_id,
        pretrained_model=file["potential"],
        errors=headline,
        errors_by_element=evidence.errors_by_element(),
        costs=spent,
        cycles=[_cycle(store, cycle) for cycle in cycles],
        label_counts=store.label_counts(campaign),
        label_groups=_label_groups(store, campaign, labels),
        failed_labels=[
            _failed(store, campaign, label)
            for label in labels
            if label.state in {LabelState.FAILED, LabelState.QUARANTINED}
        ],
        models=[_model(store, model, document, cycles) for model in models],
        coverage=evidence.coverage(),
        production=production,
        decisions=decisions(events, cycles),
        conditions=_conditions(document, headline, spent, has_production=production is not None),
        settings=file,
        versions=_versions(store, document, models),
        citations=citations(file["potential"], file["labels"]),
        curves=Curves(
            before=evidence.parity(file["potential"]),
            after=evidence.parity(document.incumbent_id),
            uncertainty=evidence.uncertainty(),
            walkers={
                c.cycle: [WalkerSegment.model_validate(w) for w in c.walkers]
                for c in cycles
                if c.walkers
            },
            **md_curves(productions),
        ),
    )


def _models(store: Store, document: CampaignDocument) -> list[ModelDocument]:
    """Return the pretrained model, if it is booked, and those of the campaign."""
    try:
        shared = [store.model(document.campaign["potential"])]
    except NotFoundError:
        shared = []
    return [*shared, *store.models(document.name)]


def _potential_theory(file: dict[str, Any]) -> str:
    """Return what the potential was trained on before this campaign, and its licence."""
    from otf_workflows.potentials.registry import POTENTIALS

    entry = POTENTIALS.get(file["potential"])
    if entry is None:
        return "data of a level of theory that is not registered"
    known = f"{entry.level_of_theory}; licence: {entry.licence}"
    if file.get("training", {}).get("from_scratch"):
        return f"{known}. Challengers were trained from random weights on the labels alone"
    return known


def _cycle(store: Store, cycle: CycleDocument) -> CycleSummary:
    checked = sum(walker["n_checked"] for walker in cycle.walkers)
    dataset = None
    if cycle.challenger_id:
        dataset = _n_labels(store, store.model(cycle.challenger_id))
    return CycleSummary(
        cycle=cycle.cycle,
        kind=cycle.kind,
        state=str(cycle.state),
        incumbent_id=cycle.incumbent_id,
        challenger_id=cycle.challenger_id,
        promoted=cycle.verdict.promoted if cycle.verdict else None,
        n_train=dataset,
        n_labels=store.label_counts(cycle.campaign, cycle=cycle.cycle),
        fraction_above=(
            sum(walker["n_above"] for walker in cycle.walkers) / checked if checked else None
        ),
        errors=cycle.errors,
        coverage=cycle.fresh_coverage,
        seconds=(cycle.finished - cycle.created).total_seconds() if cycle.finished else None,
        sentences=[
            *(cycle.selection.sentences if cycle.selection else []),
            *(cycle.verdict.sentences if cycle.verdict else []),
        ],
    )


def _n_labels(store: Store, model: ModelDocument) -> int | None:
    """Return how many labels a model was trained and validated on."""
    if model.dataset_hash is None or model.campaign is None:
        return None
    entries = store.dataset(model.campaign, model.dataset_hash).entries
    return sum(entry["split"] != Split.AUDIT for entry in entries)


def _label_groups(store: Store, campaign: str, labels: Sequence[LabelDocument]) -> list[LabelGroup]:
    groups: dict[str, LabelGroup] = {}
    for label in labels:
        purpose = str(store.purpose_of(label, campaign)[0])
        group = groups.setdefault(
            purpose, LabelGroup(purpose=purpose, counts=dict.fromkeys(LabelState, 0), core_hours=0)
        )
        group.counts[label.state] += 1
        group.core_hours += label.core_hours
    return list(groups.values())


def _failed(store: Store, campaign: str, label: LabelDocument) -> FailedLabel:
    last = label.attempts[-1] if label.attempts else None
    return FailedLabel(
        key=label.key,
        cycle=store.purpose_of(label, campaign)[1],
        state=label.state,
        cause=str(label.cause) if label.cause else "-",
        reason=label.reason or "no reason was noted",
        n_attempts=len(label.tries),
        directory=last.directory if last else "",
        last_lines=last.last_lines[-8:] if last else [],
    )


def _model(
    store: Store,
    model: ModelDocument,
    document: CampaignDocument,
    cycles: Sequence[CycleDocument],
) -> ModelSummary:
    status = "promoted" if model.promoted else "rejected"
    if model.campaign is None:
        status = "pretrained"
    if model.model_id == document.incumbent_id:
        final = document.finished is not None and status != "pretrained"
        status = "final" if final else "in use"
    return ModelSummary(
        model_id=model.model_id,
        cycle=model.cycle,
        parent_id=model.parent_id,
        status=status,
        n_labels=_n_labels(store, model),
        sha256=model.sha256,
        audit=model.errors.get("challenger/audit"),
        calibration=words.calibration(_checked(model, cycles)),
        verdict=model.verdict,
    )


def _checked(model: ModelDocument, cycles: Sequence[CycleDocument]) -> Calibration:
    """Return a model's calibration with the coverage of the newest labels that it led to."""
    seen = [
        cycle.fresh_coverage["coverage"]
        for cycle in cycles
        if cycle.incumbent_id == model.model_id and "coverage" in cycle.fresh_coverage
    ]
    if not seen:
        return model.calibration
    return model.calibration.model_copy(update={"measured": seen[-1]})


def decisions(events: Sequence[Event], cycles: Sequence[CycleDocument]) -> list[Occurrence]:
    """Return events in the order of time, with the reasons that verdicts gave.

    Parameters
    ----------
    events
        Of one campaign, newest first.
    cycles
        Its cycles; a verdict that no event told of is added.
    """
    log = []
    told = set()
    for event in reversed(events):
        reasons = event.details.get("sentences") or []
        if reasons and event.cycle is not None:
            told.add(event.cycle)
        said = [event.what, *reasons, str(event.details.get("reason") or "")]
        sentences = [words.sentence(_read_aloud(text)) for text in said if text]
        log.append(Occurrence(when=event.when, cycle=event.cycle, sentences=sentences))
    for cycle in cycles:
        if cycle.verdict and cycle.finished and cycle.cycle not in told:
            sentences = [f"Cycle {cycle.cycle} closed.", *cycle.verdict.sentences]
            log.append(Occurrence(when=cycle.finished, cycle=cycle.cycle, sentences=sentences))
    return sorted(log, key=lambda occurrence: occurrence.when)


def _read_aloud(text: str) -> str:
    """Return a sentence with the one state whose value is two words as two words."""
    return text.replace(CampaignState.BUDGET_EXHAUSTED, "budget exhausted")


def _conditions(
    document: CampaignDocument, errors: HeadlineErrors, spent: Costs, *, has_production: bool
) -> list[str]:
    """Return when the numbers of the page hold, in sentences."""
    file = document.campaign
    md = file["exploration"]
    pressure = md["pressure_GPa"]
    temperatures = words.listing([f"{t:g}" for t in sorted(md["temperatures_K"])])
    sentences = [
        f"Walkers ran at {temperatures} K, "
        + (f"{pressure:g} GPa" if pressure is not None else "constant volume")
        + f", with a step of {md['timestep_fs']:g} fs, from the one structure given. Other phases, "
        "compositions, defects, surfaces and temperatures outside that range were not tested.",
        "Errors are against the level of theory named above, not against experiment.",
    ]
    if file["labels"].get("code") == "ase":
        sentences.append(
            "Labels come from a calculator of ASE: what this page calls DFT is that calculator."
        )
    if not file["labels"].get("use_stress", True):
        sentences.append("Stress was not trained on: do not use the potential at varying volume.")
    if errors.final is not None:
        sentences.append(
            "The interval is a bootstrap over frames. Frames of one walker resemble each other, so "
            "it is rather too narrow"
            + (
                f", and {errors.final.n_frames} frames are few."
                if errors.final.n_frames < 20
                else "."
            )
        )
        sentences.append(
            "Audit labels also decided which model was promoted, so its error on them is slightly "
            "flattering; labels from the production run decided nothing."
        )
    production = file.get("production")
    if production and has_production:
        repeats = "×".join(str(n) for n in production["supercell"])
        sentences.append(
            f"Production ran at {production['temperature_K']:g} K in {repeats} cells. Its DFT "
            "checks are of a run in the labelled cell, which is what DFT can afford."
        )
        if prod(production["supercell"]) > prod(md["supercell"]):
            sentences.append(
                "In a small cell an atom moves together with its own images; the larger production "
                "cell has motions that no label shows, and more atoms among which to be wrong. "
                "Errors there can be several times those of the labelled cell, and no DFT check "
                "above is of it: believe the share of production checks above the tolerance, and "
                "label cells of more shapes (exploration.cell_shapes) or larger ones "
                "(exploration.supercell) if it is too large."
            )
    if spent.n_labels_reused:
        sentences.append(
            f"{words.count(spent.n_labels_reused, 'label was', 'labels were')} found in the "
            "database and not computed again; core-hours do not include them."
        )
    return sentences


def _versions(
    store: Store, document: CampaignDocument, models: Sequence[ModelDocument]
) -> dict[str, str]:
    """Return code versions: of the training of the final model, of DFT, of this report."""
    found: dict[str, str] = {}
    for model in models:
        if model.model_id == document.incumbent_id or not found:
            found = dict(model.versions) or found
    done = store.labels(campaign=document.name, states=[LabelState.DONE], limit=1)
    for label in done:
        if label.result and "version" in label.result.settings_as_run:
            code = str(document.campaign["labels"].get("code", "DFT code"))
            found[code] = str(label.result.settings_as_run["version"])
    try:
        found["otf-workflows (this report)"] = version("otf-workflows")
    except PackageNotFoundError:
        found["otf-workflows (this report)"] = "not installed as a package"
    return found
