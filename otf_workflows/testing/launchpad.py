"""A synthetic launch pad: FireWorks' documents of workflows that nobody ever ran.

They have the fields, types and quirks of the real ones (times as text in one collection, as dates
in another), so that pages and queries can be tried, and timed, on as many as one likes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from otf_workflows.engine.base import ROLE_OF_STAGE
from otf_workflows.engine.routing import CATEGORY, PRIORITIES, PRIORITY
from otf_workflows.schemas import CycleDocument, now
from otf_workflows.types import CycleState, FailureCause, LabelState, Role, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymongo.database import Database

    from otf_workflows.store import Store

HOST = "node07.example"
_STATES = {
    LabelState.DONE: "COMPLETED",
    LabelState.FAILED: "FIZZLED",
    LabelState.RUNNING: "RUNNING",
    LabelState.PENDING: "READY",
    LabelState.QUARANTINED: "COMPLETED",
}
_TRACE = (
    "Traceback (most recent call last):\n"
    '  File "otf_workflows/jobs/label.py", line 60, in label\n'
    "    raise LabelFailed(what, cause=cause, attempts=attempts)\n"
    "otf_workflows.errors.LabelFailed: no convergence in 80 steps (synthetic)\n"
)


@dataclass
class SyntheticLaunchPad:
    """Adds workflows to a database.

    Attributes
    ----------
    database
        The site's database.
    """

    database: Database[dict[str, Any]]
    _fireworks: list[dict[str, Any]] = field(default_factory=list)
    _launches: list[dict[str, Any]] = field(default_factory=list)
    _workflows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        last = self.database.fireworks.find_one({}, {"fw_id": 1}, sort=[("fw_id", -1)])
        self._next = last["fw_id"] + 1 if last else 1

    def cycle(
        self,
        campaign: str,
        cycle: int,
        labels: Sequence[tuple[str, LabelState]],
        *,
        started: datetime,
        over: bool = True,
        walkers: int = 2,
    ) -> int:
        """Add the workflow of one cycle; return its id.

        Parameters
        ----------
        campaign, cycle
            Key of the workflow.
        labels
            Key and state of each label.
        started
            When the first walker began.
        over
            Whether what follows the labels is over as well; otherwise it waits.
        walkers
            Number of walkers.
        """
        key = {"campaign": campaign, "cycle": cycle, "kind": "cycle"}
        after = "COMPLETED" if over else "WAITING"
        clock = started
        explores = [
            self._job(key, Stage.EXPLORE, f"explore {i} at {300 * (i + 1)} K", "COMPLETED", clock)
            for i in range(walkers)
        ]
        clock += timedelta(seconds=24)
        select = self._job(key, Stage.SELECT, "select", "COMPLETED", clock)
        mine = [
            self._job(
                key, Stage.LABEL, f"label {label[:10]}", _STATES[state],
                clock + timedelta(seconds=4 * i), label_key=label,
            )
            for i, (label, state) in enumerate(labels)
        ]  # fmt: skip
        clock += timedelta(seconds=4 * len(labels) + 10)
        # jobflow collects the outputs of a replacement with a job of its own.
        helper = self._job(key, Stage.SELECT, "store_inputs", after, clock)
        rest = [
            self._job(key, stage, str(stage), after, clock + timedelta(seconds=5 * i))
            for i, stage in enumerate((Stage.GATHER, Stage.FINETUNE, Stage.ASSESS))
        ]
        links = {str(i): [select] for i in explores}
        links[str(select)] = mine or [helper]
        links |= {str(i): [helper] for i in mine}
        for parent, child in zip([helper, *rest], [*rest, None], strict=True):
            links[str(parent)] = [child] if child else []
        nodes = [*explores, select, *mine, helper, *rest]
        self._workflow(key, f"{campaign} cycle {cycle}", nodes, links, started)
        return min(nodes)

    def write(self) -> None:
        """Write what was added since the last call."""
        for name, made in (
            ("fireworks", self._fireworks),
            ("launches", self._launches),
            ("workflows", self._workflows),
        ):
            if made:
                self.database[name].insert_many(made)
                made.clear()

    def _job(
        self,
        key: dict[str, Any],
        stage: Stage,
        name: str,
        state: str,
        started: datetime,
        *,
        label_key: str | None = None,
    ) -> int:
        fw_id = self._next
        self._next += 1
        role = ROLE_OF_STAGE.get(stage, Role.CONTROL)
        spec: dict[str, Any] = {
            "_tasks": [
                {
                    "job": {
                        "@module": "jobflow.core.job",
                        "@class": "Job",
                        "function": {
                            "@module": f"otf_workflows.jobs.{stage}",
                            "@callable": str(stage),
                        },
                        "uuid": f"synthetic-{fw_id}",
                        "name": name,
                        "metadata": {**key, "stage": str(stage)},
                    },
                    "store": None,
                    "_fw_name": "{{jobflow.managers.fireworks.JobFiretask}}",
                }
            ],
            "_add_launchpad_and_fw_id": True,
            **key,
            "stage": str(stage),
            CATEGORY: str(Role.CONTROL if name == "store_inputs" else role),
            PRIORITY: PRIORITIES[role],
        }
        if label_key:
            spec["label_key"] = label_key
        ran = state in {"COMPLETED", "FIZZLED", "RUNNING"}
        ended = started + timedelta(seconds=17)
        if ran:
            self._launch(fw_id, role, state, times=(started, ended), label=label_key is not None)
        self._fireworks.append(
            {
                "fw_id": fw_id,
                "name": name,
                "state": state,
                "spec": spec,
                "launches": [fw_id] if ran else [],
                "archived_launches": [],
                "created_on": _text(started),
                "updated_on": _text(ended if ran and state != "RUNNING" else started),
            }
        )
        return fw_id

    def _launch(
        self, fw_id: int, role: Role, state: str, *, times: tuple[datetime, datetime], label: bool
    ) -> None:
        started, ended = times
        over = state != "RUNNING"
        stored: dict[str, Any] = {}
        if state == "FIZZLED":
            details: dict[str, Any] = {
                "message": "no convergence in 80 steps (synthetic)",
                "cause": str(FailureCause.SCF),
                "attempts": [],
                "directory": None,
            }
            stored = {
                "_message": "runtime error during task",
                "_exception": {
                    "_stacktrace": _TRACE,
                    "_details": details if label else None,
                },
            }
        launch_dir = f"/scratch/example/launches/{started:%Y-%m-%d}/{fw_id}-{role}"
        self._launches.append(
            {
                "launch_id": fw_id,
                "fw_id": fw_id,
                "state": state,
                "host": HOST,
                "ip": "192.0.2.7",
                "fworker": {"name": f"{role}-{HOST}-{4000 + fw_id % 7}", "category": str(role)},
                "launch_dir": launch_dir,
                "time_start": _text(started),
                "time_end": _text(ended) if over else None,
                "runtime_secs": 17.0 if over else None,
                "state_history": [
                    {"state": "RUNNING", "created_on": _text(started), "updated_on": _text(now())}
                ],
                "action": {"stored_data": stored} if over else None,
            }
        )

    def _workflow(
        self,
        key: dict[str, Any],
        name: str,
        nodes: list[int],
        links: dict[str, list[int]],
        started: datetime,
    ) -> None:
        states = {str(job["fw_id"]): job["state"] for job in self._fireworks[-len(nodes) :]}
        self._workflows.append(
            {
                "nodes": nodes,
                "links": links,
                "parent_links": {},
                "metadata": key,
                "name": name,
                "state": _of_workflow(set(states.values())),
                "fw_states": states,
                "created_on": started.replace(tzinfo=None),
                "updated_on": (started + timedelta(minutes=3)).replace(tzinfo=None),
            }
        )


def synthetic_launchpad(store: Store, campaign: str) -> None:
    """Add the workflows of the finished cycles of a synthetic campaign.

    Parameters
    ----------
    store
        Where the campaign is.
    campaign
        Its name.
    """
    pad = SyntheticLaunchPad(store.database)
    for cycle in store.cycles(campaign, light=True):
        if cycle.kind == "cycle":
            labels = store.labels(campaign=campaign, cycle=cycle.cycle, light=True)
            states = [(label.key, label.state) for label in labels]
            pad.cycle(campaign, cycle.cycle, states, started=_aware(cycle.created))
    pad.write()


def synthetic_running_cycle(store: Store, campaign: str) -> int:
    """Open one more cycle of a synthetic campaign, in the middle of its labels; return its number.

    Of the labels some are done, one has failed, two are running and two wait.

    Parameters
    ----------
    store
        Where the campaign is, with at least one finished cycle.
    campaign
        Its name.
    """
    before = store.cycles(campaign)[-1]
    cycle = before.cycle + 1
    started = now() - timedelta(seconds=95)
    examples = store.labels(campaign=campaign, cycle=before.cycle, states=[LabelState.DONE])
    wanted = [*([LabelState.DONE] * 3), LabelState.FAILED, *([LabelState.RUNNING] * 2)]
    wanted += [LabelState.PENDING] * 2
    states = []
    for number, state in enumerate(wanted):
        example = examples[number % len(examples)]
        key = f"{cycle:02x}{number:02x}{example.key[4:]}"
        finished = now() - timedelta(seconds=40 - 4 * number)
        wish = {"campaign": campaign, "cycle": cycle, "purpose": str(example.frame.purpose)}
        failed = state is LabelState.FAILED
        label = example.model_copy(
            update={
                "key": key,
                "state": state,
                "wanted_by": [wish],
                "result": (
                    example.result.model_copy(update={"key": key})
                    if example.result and state is LabelState.DONE
                    else None
                ),
                "attempts": example.attempts if state is not LabelState.PENDING else [],
                "cause": FailureCause.SCF if failed else None,
                "reason": "no convergence in 80 steps (synthetic)" if failed else None,
                "created": started,
                "updated": finished,
            }
        )
        store.database.otf_labels.insert_one(label.model_dump(mode="python"))
        states.append((key, state))
    store.open_cycle(
        CycleDocument(
            campaign=campaign,
            cycle=cycle,
            state=CycleState.RUNNING,
            incumbent_id=before.incumbent_id,
            calibration=before.calibration,
            walkers=[],
            selection=before.selection.model_copy(update={"keys": [key for key, _ in states]})
            if before.selection
            else None,
            created=started,
        )
    )
    pad = SyntheticLaunchPad(store.database)
    pad.cycle(campaign, cycle, states, started=started, over=False)
    pad.write()
    return cycle


def _of_workflow(states: set[str]) -> str:
    """Return the state that FireWorks gives to a workflow with jobs in these states."""
    if states == {"COMPLETED"}:
        return "COMPLETED"
    if "FIZZLED" in states and not states & {"RUNNING", "READY", "WAITING"}:
        return "FIZZLED"
    return "RUNNING" if states & {"RUNNING", "COMPLETED"} else "READY"


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
