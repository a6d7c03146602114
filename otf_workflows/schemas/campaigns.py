"""Campaigns, their cycles and what came of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from otf_workflows.schemas.base import Document, now
from otf_workflows.schemas.labels import Selection
from otf_workflows.schemas.models import Calibration, ErrorStatistics
from otf_workflows.types import CampaignState, CycleState, Decision, Stage


class Verdict(Document):
    """What a cycle concluded. Output of an assess job."""

    promoted: bool = Field(description="Whether the challenger becomes the incumbent.")
    incumbent_id: str = Field(description="Model that drives the next cycle.")
    decision: Decision = Field(description="What follows.")
    sentences: list[str] = Field(description="Reasons, for a person.")


class StageRecord(Document):
    """Cost of one stage of a cycle."""

    stage: Stage
    n_jobs: int = 0
    n_done: int = 0
    n_running: int = 0
    n_failed: int = 0
    seconds: float = Field(0.0, description="Wall time of the jobs, added up (s).")
    started: datetime | None = None
    finished: datetime | None = None


class CycleDocument(Document):
    """All the dashboard needs of one cycle, in ``otf_cycles``."""

    campaign: str
    cycle: int
    kind: str = Field("cycle", description="'cycle' or 'production'.")
    state: CycleState
    incumbent_id: str = Field(description="Model that drives the walkers.")
    calibration: Calibration = Field(
        default_factory=Calibration, description="How its uncertainty was read in this cycle."
    )
    engine_ids: list[int | str] = Field(default_factory=list, description="Workflow ids.")
    outputs: dict[str, str] = Field(
        default_factory=dict,
        description="Name of a job → uuid of its jobflow output, '/' and the part of it if several "
        "share it.",
    )
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    walkers: list[dict[str, Any]] = Field(
        default_factory=list, description="WalkerSegment of each walker without its frames."
    )
    selection: Selection | None = None
    errors: dict[str, ErrorStatistics] = Field(default_factory=dict)
    fresh_coverage: dict[str, float] = Field(default_factory=dict)
    challenger_id: str | None = None
    verdict: Verdict | None = None
    created: datetime = Field(default_factory=now)
    finished: datetime | None = None


class CampaignDocument(Document):
    """One campaign in ``otf_campaigns``."""

    name: str
    state: CampaignState
    reason: str = Field("", description="Why it is in this state, in one sentence.")
    campaign: dict[str, Any] = Field(description="The campaign file, structure resolved.")
    digest: str = Field(description="Hash of all that decides the results, name left out.")
    outcome: CampaignState | None = Field(None, description="How the cycles ended.")
    incumbent_id: str = Field(description="The promoted model.")
    calibration: Calibration = Field(
        default_factory=Calibration, description="How to read its uncertainty in this campaign."
    )
    totals: dict[str, float] = Field(default_factory=dict)
    created: datetime = Field(default_factory=now)
    finished: datetime | None = None
    lease: dict[str, Any] | None = Field(None, description="Who reconciles it just now.")


class PropertyDocument(Document):
    """A property with its conditions and its origin, in ``otf_properties``."""

    campaign: str
    model_id: str
    kind: str = Field(description="'production' for the final MD run.")
    conditions: dict[str, Any] = Field(description="Temperature, steps, time step, cell …")
    values: dict[str, Any] = Field(description="Curves and numbers, with error bars and units.")
    trajectory_uuid: str = Field(description="jobflow output that holds the trajectory.")
    created: datetime = Field(default_factory=now)


class Event(Document):
    """Who did what, when and why, in ``otf_events``; append-only."""

    when: datetime = Field(default_factory=now)
    who: str
    what: str
    campaign: str | None = None
    cycle: int | None = None
    label_key: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)
