"""What a page may do: a short list of verbs on campaigns and labels, each with its precondition.

Every verb goes through :mod:`otf_workflows.control`, as the command line does, and every event it
leaves names the dashboard. A page sends back what it showed (the state of a campaign, the state of
each label and what would happen to it); if that is no longer so, nothing is done and the person
looks again.
"""

from __future__ import annotations

import secrets
import shlex
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from otf_workflows.dashboard.errands import Errand, send
from otf_workflows.dashboard.queries.labels import LabelRow, failed_keys, label_rows
from otf_workflows.errors import InputError, NotFoundError, OtfError
from otf_workflows.store import Store, whoami
from otf_workflows.types import CampaignState

if TYPE_CHECKING:
    from otf_workflows.control import RerunItem, RerunPlan
    from otf_workflows.dashboard.backend import Backend
    from otf_workflows.dashboard.queries.label_filter import LabelFilter

MOST_RERUNS = 500
"""At most so many labels are run again by one confirmation."""

_HELD = {CampaignState.PAUSED: "it waits until the campaign is resumed"}


class ChangedError(OtfError):
    """What a person confirmed is not what is there now; nothing was done."""


class DashboardStore(Store):
    """Our collections, with events that say that they come from a dashboard.

    Parameters
    ----------
    store
        Our collections.
    **details
        Added to the details of every event.
    """

    def __init__(self, store: Store, **details: Any) -> None:
        super().__init__(store.database)
        self._details = details

    def event(self, what: str, *, who: str | None = None, **fields: Any) -> None:
        """Append an event."""
        details = {**fields.pop("details", {}), **self._details}
        super().event(what, who=who or f"{whoami()} (dashboard)", details=details, **fields)


# -- campaigns -----------------------------------------------------------------------------------


class CampaignVerb(StrEnum):
    """What may be done to a campaign."""

    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"


_LIVE = {CampaignState.RUNNING, CampaignState.PRODUCING}
VERBS = {
    CampaignVerb.PAUSE: _LIVE,
    CampaignVerb.RESUME: {CampaignState.PAUSED, CampaignState.STALLED, CampaignState.FAILED},
    CampaignVerb.STOP: {*_LIVE, CampaignState.PAUSED},
}
"""States in which each verb makes sense."""


def act_on_campaign(here: Backend, verb: CampaignVerb, name: str, *, seen: str) -> str:
    """Pause, resume or stop a campaign; return what was done, in a sentence.

    Parameters
    ----------
    here
        Database and engine.
    verb
        What to do.
    name
        Campaign.
    seen
        State that the page showed.

    Raises
    ------
    ChangedError
        If the campaign is in another state by now.
    NotFoundError
        If there is no such campaign.
    InputError
        If the verb makes no sense in its state.
    """
    from otf_workflows import control

    does = {
        CampaignVerb.PAUSE: control.pause,
        CampaignVerb.RESUME: control.resume,
        CampaignVerb.STOP: control.stop,
    }
    store = DashboardStore(here.store)
    state = store.campaign(name).state
    if str(state) != seen:
        raise ChangedError(
            f"campaign '{name}' is {state} by now, not {seen or 'what you saw'}: nothing was done"
        )
    return does[verb](name, store, here.engine)


# -- labels --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RerunWish:
    """What a person wants to run again, and with what changed.

    Attributes
    ----------
    chosen
        Labels by their keys, or failed ones by a filter.
    settings
        Numerical settings as typed, ``NAME=VALUE`` on each line.
    walltime
        Time limit as typed, ``4h``.
    worker
        Variant of the site's resources.
    """

    chosen: LabelFilter
    settings: str = ""
    walltime: str = ""
    worker: str = ""

    @property
    def pairs(self) -> list[str]:
        """The settings, one ``NAME=VALUE`` each."""
        return [line.strip() for line in self.settings.splitlines() if line.strip()]

    @property
    def options(self) -> list[str]:
        """The changes as options of the command line."""
        words = [f"--set {shlex.quote(pair)}" for pair in self.pairs]
        words += [f"--walltime {shlex.quote(self.walltime)}"] if self.walltime else []
        return words + ([f"--worker {shlex.quote(self.worker)}"] if self.worker else [])


@dataclass(frozen=True)
class RerunLine:
    """One label of a preview.

    Attributes
    ----------
    item
        What would be done with it.
    row
        How it stands.
    seen
        Key, state, last change and mode as one word, sent back when confirmed.
    note
        Why it may have to wait, if so.
    """

    item: RerunItem
    row: LabelRow
    seen: str
    note: str = ""


@dataclass(frozen=True)
class RerunPreview:
    """Exactly what would run and what would be touched.

    Attributes
    ----------
    wish
        What was asked for.
    plan
        As :func:`otf_workflows.control.plan_rerun` made it.
    lines
        One for each label.
    programs
        DFT code → command, cores and time limit (s) that it would run with here.
    core_hours
        What these labels cost so far, as a guess at what they will cost.
    command
        The same on the command line.
    """

    wish: RerunWish
    plan: RerunPlan
    lines: tuple[RerunLine, ...]
    programs: dict[str, dict[str, Any]]
    core_hours: float
    command: str

    @property
    def in_place(self) -> list[RerunLine]:
        """Labels whose own job is reset."""
        return [line for line in self.lines if line.item.mode == "in place"]

    @property
    def detached(self) -> list[RerunLine]:
        """Labels that get a workflow of their own."""
        return [line for line in self.lines if line.item.mode == "detached"]

    @property
    def refused(self) -> list[RerunLine]:
        """Labels that are left alone."""
        return [line for line in self.lines if line.item.mode == "refused"]


def preview_rerun(here: Backend, wish: RerunWish) -> RerunPreview:
    """Say exactly what a rerun would do; nothing is changed.

    Parameters
    ----------
    here
        Database, engine and site.
    wish
        What to run again.

    Raises
    ------
    NotFoundError
        If no failed label matches.
    InputError
        If a setting is physics, or anything typed makes no sense; in the words of the command line.
    ConfigurationError
        If the site knows no such worker.
    """
    from otf_workflows.cli.params import parse_duration, parse_settings
    from otf_workflows.control import plan_rerun

    store, chosen = here.store, wish.chosen
    keys = _keys(store, chosen)
    plan = plan_rerun(
        store, here.reader, campaign=chosen.campaign, keys=keys,
        numerics=parse_settings(wish.pairs) or None, worker=wish.worker or None,
        walltime_s=parse_duration(wish.walltime) if wish.walltime else None,
    )  # fmt: skip
    rows = {row.key: row for row in label_rows(store, [item.key for item in plan.items])}
    holds = _holds(store, {item.campaign for item in plan.runnable})
    lines = [
        RerunLine(item, rows[item.key], _seen(item, rows[item.key]), holds.get(item.campaign, ""))
        for item in plan.items
    ]
    return RerunPreview(
        wish=wish,
        plan=plan,
        lines=tuple(lines),
        programs={
            code: here.site.resources(code, plan.worker).model_dump()
            for code in sorted({line.row.code for line in lines if line.item.mode != "refused"})
        },
        core_hours=sum(line.row.core_hours for line in lines if line.item.mode != "refused"),
        command=chosen.rerun_command([item.key for item in plan.items], changes=wish.options),
    )


def confirm_rerun(here: Backend, wish: RerunWish, *, seen: list[str]) -> str:
    """Run labels again as previewed; return the number under which the rerun is recorded.

    Parameters
    ----------
    here
        Database, engine and site.
    wish
        What was previewed.
    seen
        ``RerunLine.seen`` of every label that the preview would run.

    Raises
    ------
    ChangedError
        If any label, or what would happen to it, differs from the preview; nothing was done.
    InputError
        As in :func:`preview_rerun`, or if nothing was confirmed.
    OtfError
        If it could not be carried out.
    """
    from otf_workflows.dashboard.rerun_errand import RerunOrder

    keys = tuple(word.partition(":")[0] for word in seen)
    if not keys or len(keys) > MOST_RERUNS:
        raise InputError("no label was confirmed" if not keys else "too many labels at once")
    # Exactly the labels that were shown, whatever the filter would find now.
    preview = preview_rerun(here, replace(wish, chosen=replace(wish.chosen, keys=keys)))
    current = {line.seen for line in preview.lines if line.item.mode != "refused"}
    if current != set(seen):
        n = len(set(seen) - current)
        raise ChangedError(
            f"{n} of {len(keys)} labels are not as you saw them any more: nothing was done. "
            "Look again, and confirm what is there now."
        )
    batch = secrets.token_hex(6)
    order = RerunOrder(plan=preview.plan, batch=batch, asked=len(keys))
    answer = send(Errand.RERUN, order.model_dump_json(), site=here.site)
    if answer.problem is not None:
        problem = answer.problem
        raise OtfError(problem.what, where=problem.where, hint=problem.hint)
    return batch


def variants(here: Backend, codes: set[str]) -> list[str]:
    """Return the workers that the site file names for these codes, for a form."""
    names = [name.partition("@") for name in here.site.codes]
    return sorted({worker for code, _, worker in names if worker and code in codes})


def _keys(store: Store, chosen: LabelFilter) -> list[str]:
    if chosen.keys:
        return list(chosen.keys)
    keys = failed_keys(store, chosen, limit=MOST_RERUNS + 1)
    if not keys:
        raise NotFoundError("no failed label matches", hint="otf labels list --failed")
    if len(keys) > MOST_RERUNS:
        raise InputError(
            f"more than {MOST_RERUNS} failed labels match; run them again in parts",
            hint="choose a cause, a campaign or a cycle",
        )
    return keys


def _holds(store: Store, names: set[str]) -> dict[str, str]:
    """Return why labels of these campaigns have to wait, if they have to."""
    query = {"name": {"$in": sorted(names)}, "state": {"$in": [str(state) for state in _HELD]}}
    found = store.database.otf_campaigns.find(query, {"_id": 0, "name": 1, "state": 1})
    return {campaign["name"]: _HELD[CampaignState(campaign["state"])] for campaign in found}


def _seen(item: RerunItem, row: LabelRow) -> str:
    changed_ms = round(row.updated.timestamp() * 1000)
    return f"{item.key}:{row.state}:{changed_ms}:{item.mode}"
