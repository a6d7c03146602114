"""The on-the-fly cycle, top to bottom.

    explore[w] × W ─► select ─►(label[i] × n)─► gather ─► finetune ─► assess

One explore job may advance several walkers (``exploration.walkers_per_job``).

:class:`CycleMaker` writes one cycle as one jobflow Flow; :class:`ProductionMaker` writes what
comes after the last one. Which of them comes next is decided by :mod:`otf_workflows.reconcile`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobflow import Flow, Maker, OutputReference

from otf_workflows.errors import InputError
from otf_workflows.exploration.starts import shapes_of, starting_frames
from otf_workflows.jobs.assess import assess
from otf_workflows.jobs.explore import explore, explore_together, part_name, seed
from otf_workflows.jobs.finetune import finetune
from otf_workflows.jobs.gather import gather
from otf_workflows.jobs.label import label as label_job
from otf_workflows.jobs.produce import audit, conclude, evaluate, produce
from otf_workflows.jobs.select import select
from otf_workflows.schemas import Origin

if TYPE_CHECKING:
    from jobflow import Job

    from otf_workflows.campaign import Campaign
    from otf_workflows.schemas import Calibration, Frame, LabelDocument, ModelDocument


@dataclass
class CycleMaker(Maker):
    """Makes one cycle of a campaign.

    Attributes
    ----------
    campaign
        What the user asked for.
    name
        Name of the flow.
    """

    campaign: Campaign
    name: str = "cycle"

    def make(
        self,
        cycle: int,
        incumbent: ModelDocument,
        calibration: Calibration,
        previous: dict[str, str],
    ) -> Flow:
        """Return the flow of one cycle.

        Parameters
        ----------
        cycle
            Number of the cycle; 0 also seeds.
        incumbent, calibration
            The model that drives the walkers, and how to read its uncertainty.
        previous
            Outputs of the cycle before (job name → uuid), from which walkers continue.
        """
        campaign = self.campaign
        origin = Origin(campaign=campaign.name, cycle=cycle, model_id=incumbent.model_id)
        weights = weights_of(incumbent)
        starts = starting_frames(campaign)

        walkers = [
            {
                "start": starts[walker % len(starts)],
                "walker": walker,
                "temperature_K": kelvins,
                "seed": 1000 * campaign.seed + walker,
                "checkpoint": output_of(previous, f"explore/{walker}", "blob", "checkpoint"),
            }
            for walker, kelvins in enumerate(temperatures(campaign))
        ]
        explorers = [
            self._explorer(flock, origin=origin, weights=weights, calibration=calibration)
            for flock in _flocks(walkers, size=campaign.exploration.walkers_per_job)
        ]
        seeds = [self._seed(starts, origin)] if cycle == 0 and campaign.seeding.n_frames else []
        selected = select(
            [segment for job in explorers for segment in segments_of(job)],
            [frames.output for frames in seeds],
            campaign=campaign,
            cycle=cycle,
        )
        batch = gather(selected.output, campaign=campaign, cycle=cycle)
        challenger = finetune(
            batch.output,
            campaign=campaign,
            cycle=cycle,
            weights=weights,
            calibration=calibration,
        )
        verdict = assess(
            challenger.output,
            missing=batch.output.missing_keys,
            campaign=campaign,
            cycle=cycle,
            incumbent_id=incumbent.model_id,
            calibration=calibration,
            weights_uuid=challenger.uuid,
        )
        return Flow(
            [*explorers, *seeds, selected, batch, challenger, verdict],
            output=verdict.output,
            name=f"{campaign.name} cycle {cycle}",
        )

    def _explorer(
        self,
        flock: list[dict[str, Any]],
        *,
        origin: Origin,
        weights: OutputReference | None,
        calibration: Calibration,
    ) -> Job:
        """Return the job of one walker, or of several that share it."""
        campaign = self.campaign
        shared = {
            "potential": campaign.potential,
            "weights": weights,
            "calibration": calibration,
            # Each walker is given its own start; the structures of all others stay behind.
            "rules": campaign.exploration.model_copy(update={"starts": []}),
            "tolerance_eV_A": campaign.tolerance_eV_A,
            "n_pool": pool_size(campaign),
            "origin": origin,
        }
        kelvins = " and ".join(f"{t:g}" for t in sorted({one["temperature_K"] for one in flock}))
        indices = [one["walker"] for one in flock]
        if campaign.exploration.walkers_per_job == 1:
            own = {name: value for name, value in flock[0].items() if name != "start"}
            job = explore(flock[0]["start"], **own, **shared)
            job.name = f"explore {indices[0]} at {kelvins} K"
        else:
            job = explore_together(flock, **shared)
            job.name = f"explore {indices[0]}-{indices[-1]} at {kelvins} K"
            job.metadata["walkers"] = indices
        return job

    def _seed(self, starts: list[Frame], origin: Origin) -> Job:
        campaign = self.campaign
        return seed(
            starts,
            potential=campaign.potential,
            rules=campaign.seeding,
            seed=campaign.seed,
            origin=origin,
        )


@dataclass
class ProductionMaker(Maker):
    """Makes the final workflow: production MD, its audit by DFT, the property.

    Attributes
    ----------
    campaign
        What the user asked for.
    name
        Name of the flow.
    """

    campaign: Campaign
    name: str = "production"

    def make(
        self,
        cycle: int,
        incumbent: ModelDocument,
        calibration: Calibration,
        models: list[ModelDocument],
    ) -> Flow:
        """Return the flow.

        Parameters
        ----------
        cycle
            Its number: one after the last cycle.
        incumbent, calibration
            The model that runs it, and how to read its uncertainty.
        models
            All models to compare on the audit labels, the pretrained one included.
        """
        campaign, rules = self.campaign, self.campaign.production
        if rules is None:
            raise InputError(f"campaign '{campaign.name}' asks for no production run")
        run = produce(
            campaign.structure,
            campaign=campaign,
            rules=rules,
            weights=weights_of(incumbent),
            calibration=calibration,
            origin=Origin(campaign=campaign.name, cycle=cycle, model_id=incumbent.model_id),
            audit_starts=shapes_of(campaign),
        )
        asked = audit(run.output, campaign=campaign, cycle=cycle)
        batch = gather(asked.output, campaign=campaign, cycle=cycle)
        compared = evaluate(
            batch.output,
            potential=campaign.potential,
            models=[{"model_id": m.model_id, "weights": weights_of(m)} for m in models],
            production_cycle=cycle,
        )
        written = conclude(
            run.output,
            compared.output,
            campaign=campaign,
            rules=rules,
            cycle=cycle,
            trajectory_uuid=run.uuid,
        )
        return Flow(
            [run, asked, batch, compared, written],
            output=written.output,
            name=f"{campaign.name} production",
        )


def relabel(label: LabelDocument, *, campaign: str, **changes: Any) -> Flow:
    """Return a workflow of its own for one label; its result joins the next data set.

    Parameters
    ----------
    label
        The label.
    campaign
        Who asked for it.
    **changes
        ``numerics``, ``worker``, ``walltime_s`` of :func:`otf_workflows.jobs.label.label`.
    """
    job = label_job(label.frame, key=label.key, recipe=label.recipe, **changes)
    job.name = f"label {label.key[:10]}"
    job.metadata["label_key"] = label.key
    return Flow([job], name=f"{campaign} label {label.key[:10]} by itself")


def temperatures(campaign: Campaign) -> list[float]:
    """Return the temperature (K) of each walker."""
    rules = campaign.exploration
    return [t for t in rules.temperatures_K for _ in range(rules.walkers_per_temperature)]


def _flocks(walkers: list[dict[str, Any]], *, size: int) -> list[list[dict[str, Any]]]:
    """Return the walkers in groups of so many, the last one perhaps smaller."""
    return [walkers[first : first + size] for first in range(0, len(walkers), size)]


def segments_of(job: Job) -> list[OutputReference]:
    """Return a reference to the segment of each walker of an explore job."""
    if "walkers" not in job.metadata:
        return [job.output]
    return [job.output[part_name(walker)] for walker in job.metadata["walkers"]]


def pool_size(campaign: Campaign) -> int:
    """Return how many random frames each walker offers, enough for audits and small batches."""
    rules = campaign.selection
    return -(-2 * (rules.audit_per_cycle + rules.labels_per_cycle) // campaign.n_walkers)


def weights_of(model: ModelDocument) -> OutputReference | None:
    """Return a reference to the weights of a model; None for a pretrained one."""
    return OutputReference(model.output_uuid).blob if model.output_uuid else None


def output_of(outputs: dict[str, str], name: str, *path: str) -> OutputReference | None:
    """Return a reference into the output of an earlier job; None if there is no such job."""
    if name not in outputs:
        return None
    uuid, *part = outputs[name].split("/")
    reference: Any = OutputReference(uuid)
    for key in (*part, *path):
        reference = getattr(reference, key)
    return reference


def outputs(flow: Flow) -> dict[str, str]:
    """Return where the output of every job of a flow is, by a name that reconcile can look up.

    That is its uuid, or with several walkers in a job ``uuid/part`` for each.
    """
    found: dict[str, str] = {}
    n_walkers = 0
    for job in flow.jobs:
        stage = job.metadata["stage"]
        if stage == "explore":
            parts = [f"/{part_name(walker)}" for walker in job.metadata.get("walkers", [])]
            for part in parts or [""]:
                found[f"explore/{n_walkers}"] = f"{job.uuid}{part}"
                n_walkers += 1
        else:
            found[stage] = job.uuid
    return found
