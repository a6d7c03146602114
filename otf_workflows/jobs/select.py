"""The select job: which frames are worth a DFT calculation. It spawns the label jobs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jobflow import Flow, Response

from otf_workflows.jobs import otf_job
from otf_workflows.jobs.label import label
from otf_workflows.schemas import Selection, now
from otf_workflows.types import LabelState, Purpose, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.campaign import Campaign
    from otf_workflows.schemas import Frame, LabelDocument, WalkerSegment
    from otf_workflows.store import Store


_OPEN = {LabelState.PENDING, LabelState.RUNNING}


@otf_job(Stage.SELECT)
def select(
    segments: Sequence[WalkerSegment],
    seeds: Sequence[dict[str, list[Frame]]],
    *,
    campaign: Campaign,
    cycle: int,
) -> Response:
    """Choose frames, ask for their labels, and spawn a job for each that nobody has yet.

    Parameters
    ----------
    segments
        What the walkers of this cycle met.
    seeds
        Rattled and strained frames (cycle 0 only).
    campaign, cycle
        Rules, budget, recipe; and which cycle this is.

    Returns
    -------
    Response
        Output ``{"selection": Selection, "labels": [LabelResult or None]}``.
    """
    from otf_workflows.ledger import request
    from otf_workflows.store import current_store

    store = current_store()
    earlier = store.selection(campaign.name, cycle)
    if earlier is not None:
        return spawn_again(store, earlier)
    chosen, numbers = choose(segments, seeds, campaign=campaign, cycle=cycle, store=store)
    wanted, mine = request(store, chosen, campaign=campaign, cycle=cycle)
    selection = Selection(
        keys=[document.key for document in wanted],
        reused_keys=[d.key for d in wanted if d.state is LabelState.DONE],
        new_keys=[document.key for document in mine],
        threshold_eV_A=campaign.tolerance_eV_A,
        asked=now(),
        **numbers,
    )
    selection.sentences.append(
        f"{len(wanted)} labels wanted: {len(mine)} to compute, {len(selection.reused_keys)} reused."
    )
    light = {"candidates", "pool", "blob"}
    store.set_cycle(
        campaign.name,
        cycle,
        selection=selection,
        walkers=[segment.model_dump(mode="python", exclude=light) for segment in segments],
    )
    return spawn(selection, mine)


def spawn(selection: Selection, labels: Sequence[LabelDocument]) -> Response:
    """Return a response that runs one label job per document and collects their outputs."""
    jobs = [label(d.frame, key=d.key, recipe=d.recipe) for d in labels]
    for made, document in zip(jobs, labels, strict=True):
        made.name = f"label {document.key[:10]}"
        made.metadata["label_key"] = document.key
    output: dict[str, Any] = {"selection": selection, "labels": [made.output for made in jobs]}
    if not jobs:
        return Response(output=output)
    return Response(replace=Flow(jobs, output=output, name="labels"))


def spawn_again(store: Store, selection: Selection) -> Response:
    """Return what a select or audit job answers that runs again.

    The choice stands, and only what is not computed yet is spawned.
    """
    return spawn(selection, [d for d in store.labels(keys=selection.keys) if d.state in _OPEN])


def choose(
    segments: Sequence[WalkerSegment],
    seeds: Sequence[dict[str, list[Frame]]],
    *,
    campaign: Campaign,
    cycle: int,
    store: Store,
) -> tuple[list[Frame], dict[str, Any]]:
    """Return the frames to label (audits first) and the numbers of the decision."""
    from otf_workflows.selection import select_frames

    rules = campaign.selection
    pool, bad_pool = fit_for_dft([f for s in segments for f in s.pool], campaign=campaign)
    met, bad_met = fit_for_dft([f for s in segments for f in s.candidates], campaign=campaign)
    seeded, bad_seeds = fit_for_dft(
        [f for made in seeds for f in made["candidates"]], campaign=campaign
    )
    dropped = bad_pool + bad_met + bad_seeds

    earlier = [
        document
        for document in store.labels(campaign=campaign.name)
        if store.purpose_of(document, campaign.name)[1] < cycle
    ]
    allowance, sentence = _allowance(store, earlier, campaign=campaign)
    rng = np.random.default_rng([campaign.seed, cycle, 1])
    n_audit = min(rules.audit_per_cycle, len(pool), allowance)
    audited = set(rng.choice(len(pool), size=n_audit, replace=False).tolist()) if n_audit else set()
    audits = [pool[i].model_copy(update={"purpose": Purpose.AUDIT}) for i in sorted(audited)]

    # A frame may be in the pool and a candidate; what judges is never trained on. A trusted frame
    # of the pool may still be chosen when too few are uncertain.
    rest = [*met, *(frame for i, frame in enumerate(pool) if i not in audited)]
    taken = {_place(frame) for frame in audits}
    met = list({_place(frame): frame for frame in rest if _place(frame) not in taken}.values())
    n_seeds = min(len(seeded), allowance - n_audit)
    n_free = min(rules.labels_per_cycle - n_seeds, allowance - n_audit - n_seeds)
    outcome = select_frames(
        np.array([f.features for f in met]),
        np.array([f.sigma_eV_A for f in met], dtype=float),
        existing_features=np.array([d.frame.features for d in earlier if d.frame.features]),
        n_select=max(n_free, 0),
        threshold=campaign.tolerance_eV_A,
        min_labels=max(min(rules.min_labels, n_free), 0),
        duplicate_distance=rules.duplicate_distance,
        seed=campaign.seed * 1_000_003 + cycle,
    )
    picked = [met[i] for i in outcome.indices]
    wanted = n_free + n_seeds + n_audit
    numbers = {
        "n_candidates": len(met) + len(seeded) + n_audit,
        **dropped.counts(),
        "n_duplicates": outcome.n_duplicates,
        "n_over_budget": max(rules.labels_per_cycle + rules.audit_per_cycle - wanted, 0),
        "sentences": [*filter(None, [sentence, dropped.sentence()]), *outcome.sentences],
    }
    return [*audits, *seeded[:n_seeds], *picked], numbers


def _place(frame: Frame) -> tuple[int | None, int | None]:
    """Return where a frame was met: walker and step."""
    return frame.origin.walker, frame.origin.step


@dataclass(frozen=True)
class Dropped:
    """How many frames DFT is not spent on, and why."""

    n_unphysical: int = 0
    n_too_large: int = 0

    def __add__(self, other: Dropped) -> Dropped:
        return Dropped(self.n_unphysical + other.n_unphysical, self.n_too_large + other.n_too_large)

    def counts(self) -> dict[str, int]:
        """Return them as fields of a :class:`~otf_workflows.schemas.Selection`."""
        return asdict(self)

    def sentence(self) -> str:
        """Return them in words; nothing if there are none."""
        reasons = {
            "are unphysical": self.n_unphysical,
            "have more electrons than the budget allows": self.n_too_large,
        }
        parts = [f"{n} {why}" for why, n in reasons.items() if n]
        return f"Of the frames met, {' and '.join(parts)}: no DFT for these." if parts else ""


def fit_for_dft(frames: Sequence[Frame], *, campaign: Campaign) -> tuple[list[Frame], Dropped]:
    """Return the frames that DFT can be spent on, and how many are not so.

    Parameters
    ----------
    frames
        Candidates, audits or seeds.
    campaign
        Its ``exploration.min_distance_ratio`` and ``budget.max_electrons`` count.
    """
    from otf_workflows.labelers import parse_recipe
    from otf_workflows.selection import frame_problem

    ratio = campaign.exploration.min_distance_ratio
    limit = campaign.budget.max_electrons
    sound = [f for f in frames if frame_problem(f, min_distance_ratio=ratio) is None]
    good = sound
    if limit is not None:
        count = getattr(parse_recipe(campaign.labels), "n_electrons", sum)
        good = [frame for frame in sound if count(frame.numbers) <= limit]
    return good, Dropped(len(frames) - len(sound), len(sound) - len(good))


def _allowance(
    store: Store, earlier: Sequence[LabelDocument], *, campaign: Campaign
) -> tuple[int, str]:
    """Return how many more labels the budget allows, and a sentence if core-hours decide it."""
    by_count = max(campaign.budget.max_labels - len(earlier), 0)
    n_paid, hours = store.label_costs(campaign.name)
    if not n_paid or not hours:
        return by_count, ""
    by_hours = int((campaign.budget.max_core_hours - hours) / (hours / n_paid))
    if by_hours >= by_count:
        return by_count, ""
    return max(by_hours, 0), f"{max(by_hours, 0)} more labels fit into the core-hour budget."
