"""The select job: which frames are worth a DFT calculation. It spawns the label jobs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jobflow import Flow, Response

from otf_workflows.jobs import otf_job
from otf_workflows.jobs.label import label
from otf_workflows.schemas import Selection, now
from otf_workflows.store_labels import KnownFeatures
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
    """Return the frames to label (audits first) and the numbers of the decision.

    Audits are drawn before anything is chosen, from what the walkers met and nothing else: what
    judges the model must not depend on what is thought of the frames.
    """
    from otf_workflows.diversity import HourBudget, PaidLabels
    from otf_workflows.label_budget import allowance
    from otf_workflows.selection import select_frames

    rules = campaign.selection
    pool, bad_pool = fit_for_dft([f for s in segments for f in s.pool], campaign=campaign)
    met, bad_met = fit_for_dft([f for s in segments for f in s.candidates], campaign=campaign)
    seeded, bad_seeds = fit_for_dft(
        [f for made in seeds for f in made["candidates"]], campaign=campaign
    )
    dropped = bad_pool + bad_met + bad_seeds
    levels = fingerprints([*pool, *met, *seeded], campaign=campaign)
    allowed = allowance(store, campaign=campaign, cycle=cycle, fingerprints=levels)
    sentence = allowed.sentence()

    order = np.random.default_rng([campaign.seed, cycle, 1]).permutation(len(pool))
    drawn = [pool[i] for i in order[: rules.audit_per_cycle]]
    audits, allowed = allowed.spend(drawn)
    audits = [frame.model_copy(update={"purpose": Purpose.AUDIT}) for frame in audits]
    sown, allowed = allowed.spend(seeded)

    # A frame may be in the pool and a candidate; what judges is never trained on. A trusted frame
    # of the pool may still be chosen when too few are uncertain.
    taken = {_place(frame) for frame in audits}
    met = list(
        {_place(frame): frame for frame in [*met, *pool] if _place(frame) not in taken}.values()
    )
    known = store.features_of_campaign(
        campaign.name, before_cycle=cycle, potential=campaign.potential
    )
    judges = [frame.features for frame in audits if frame.features]
    paid = _paid_by_others(store, levels, campaign=campaign, known=known)
    n_free = max(min(rules.labels_per_cycle - len(sown), allowed.n_labels), 0)
    outcome = select_frames(
        np.array([f.features for f in met]),
        np.array([f.sigma_eV_A for f in met], dtype=float),
        existing_features=_stacked(known.features, judges),
        n_select=n_free,
        threshold=campaign.tolerance_eV_A,
        min_labels=min(rules.min_labels, n_free),
        duplicate_distance=rules.duplicate_distance,
        seed=campaign.seed * 1_000_003 + cycle,
        paid=PaidLabels(paid.features, rules.reuse_distance),
        budget=HourBudget(
            core_hours=allowed.core_hours,
            price=lambda rows: allowed.price([met[i] for i in rows]),
            n_atoms=np.array([f.n_atoms for f in met]),
        ),
    )
    adopted = {row: paid.keys[label] for row, label in outcome.adopted.items()}
    theirs = {d.key: d.frame for d in store.labels(keys=list(adopted.values()), light=True)}
    picked = [theirs[adopted[i]] if i in adopted else met[i] for i in outcome.indices]
    picked = [frame.model_copy(update={"purpose": Purpose.UNCERTAIN}) for frame in picked]
    n_places = rules.labels_per_cycle + rules.audit_per_cycle
    n_asked = len(audits) + len(sown) + n_free
    numbers = {
        "n_candidates": len(met) + len(seeded) + len(audits),
        **dropped.counts(),
        "n_duplicates": outcome.n_duplicates,
        "n_over_budget": max(n_places - n_asked, 0)
        + min(n_free - len(picked), outcome.n_over_capacity),
        "adopted_keys": sorted(adopted.values()),
        "sentences": [*filter(None, [sentence, dropped.sentence()]), *outcome.sentences],
    }
    return [*audits, *sown, *picked], numbers


def fingerprints(frames: Sequence[Frame], *, campaign: Campaign) -> list[str]:
    """Return the levels of theory at which a campaign computes these frames, sorted."""
    from otf_workflows.labelers import parse_recipe

    recipe = parse_recipe(campaign.labels)
    compositions = {tuple(sorted(frame.numbers)) for frame in frames}
    return sorted({recipe.fingerprint(list(numbers)) for numbers in compositions})


def _paid_by_others(
    store: Store, levels: Sequence[str], *, campaign: Campaign, known: KnownFeatures
) -> KnownFeatures:
    """Return the finished labels at these levels of theory that are not in the data set yet."""
    found = store.features_of_level(levels, potential=campaign.potential)
    mine = set(known.keys)
    rows = [i for i, key in enumerate(found.keys) if key not in mine]
    return KnownFeatures([found.keys[i] for i in rows], found.features[rows])


def _stacked(features: np.ndarray, more: Sequence[Sequence[float]]) -> np.ndarray:
    """Return rows of features below each other; either may be empty."""
    parts = [part for part in (features, np.array(more)) if len(part)]
    return np.concatenate(parts) if parts else features


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
