"""Campaigns held by a person: what FireWorks and jobflow-remote have in common there.

A hold is written down before any job is moved, and workers look at it before they take a job and
after each: so jobs made meanwhile by running ones are held as well.
"""

from __future__ import annotations

from abc import abstractmethod
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from otf_workflows.connection import translated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymongo.database import Database

    from otf_workflows.settings import Site

HOLDS = "otf_holds"
"""Campaigns held by a person: {_id: campaign, state: 'paused' or 'cancelled'}."""
PAUSED = "PAUSED"
"""Both engines call it so."""


class HoldState(StrEnum):
    """Why nobody may start the jobs of a campaign."""

    PAUSED = "paused"
    CANCELLED = "cancelled"


class HoldsCampaigns:
    """Pausing, resuming and cancelling the jobs of a campaign; part of an engine.

    Attributes
    ----------
    not_started
        The engine's states of jobs that have not started.
    given_up
        Its state of a job that a person gave up.
    """

    site: Site
    database: Database[dict[str, Any]]
    not_started: Sequence[str]
    given_up: str

    @abstractmethod
    def _move(self, campaign: str, states: Sequence[str], to: str) -> int:
        """Move jobs that are in one of these states to another; return how many were moved."""

    def _released(self, campaign: str) -> None:
        """Do what is left when the jobs of a campaign are no longer held."""

    def pause(self, campaign: str) -> int:
        """Hold jobs that have not started, also those yet to be made; return how many."""
        return self._hold(campaign, HoldState.PAUSED)

    def resume(self, campaign: str) -> int:
        """Release held jobs; return how many."""
        with translated(self.site):
            self.database[HOLDS].delete_one({"_id": campaign})
            moved = self._move(campaign, [PAUSED], "WAITING")
            self._released(campaign)
        return moved

    def cancel(self, campaign: str) -> int:
        """Give up jobs that have not started, also those that running ones will make.

        They count as failed. Submitting for the campaign again lifts this for the new workflow.
        """
        return self._hold(campaign, HoldState.CANCELLED)

    def held(self) -> list[str]:
        """Return the campaigns whose jobs nobody may start."""
        with translated(self.site):
            return [document["_id"] for document in self.database[HOLDS].find({}, {"_id": 1})]

    def apply_hold(self, campaign: str) -> int:
        """Hold or give up new jobs of a campaign on which a person has put a hold.

        Workers call it after each job, since a running job may have made others.
        """
        hold = self.database[HOLDS].find_one({"_id": campaign})
        if hold is None:
            return 0
        if HoldState(hold["state"]) is HoldState.PAUSED:
            return self._move(campaign, self.not_started, PAUSED)
        return self._move(campaign, [*self.not_started, PAUSED], self.given_up)

    def lift_cancellation(self, campaign: str) -> None:
        """Let new work of a campaign run that was cancelled before."""
        cancelled = {"_id": campaign, "state": str(HoldState.CANCELLED)}
        self.database[HOLDS].delete_one(cancelled)

    def _hold(self, campaign: str, state: HoldState) -> int:
        with translated(self.site):
            self.database[HOLDS].update_one(
                {"_id": campaign}, {"$set": {"state": str(state)}}, upsert=True
            )
            return self.apply_hold(campaign)
