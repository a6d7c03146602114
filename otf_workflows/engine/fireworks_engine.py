"""The default engine: jobflow flows as FireWorks workflows in the site's database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otf_workflows.connection import connect, job_store, require_persistent, translated
from otf_workflows.engine.base import RELABEL
from otf_workflows.engine.hold import HoldsCampaigns
from otf_workflows.engine.launchpad import launchpad
from otf_workflows.engine.records import FIREWORK_FIELDS, LAUNCH_FIELDS, job_record
from otf_workflows.engine.routing import LATE, PRIORITY, route
from otf_workflows.errors import InputError, NotFoundError, PartialError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from jobflow import Flow, JobStore

    from otf_workflows.engine.base import JobRecord
    from otf_workflows.settings import Site

_UNTOUCHED = {"WAITING", "PAUSED"}
_ENDED = {"COMPLETED", "FIZZLED", "ARCHIVED"}


class FireWorksEngine(HoldsCampaigns):
    """Runs flows through FireWorks; workers take their jobs by category.

    Parameters
    ----------
    site
        The site; its database holds launch pad, outputs and our own collections.
    patience_s
        How long to wait for a server that does not answer (s).

    Raises
    ------
    DatabaseError
        If the server does not answer or refuses us.
    """

    not_started = ("WAITING", "READY")
    given_up = "DEFUSED"

    def __init__(self, site: Site, *, patience_s: float = 3.0) -> None:
        self.site = site
        self.database = connect(site, patience_s=patience_s)
        self.launchpad = launchpad(site, patience_s=patience_s)
        self._job_store: JobStore | None = None

    @property
    def job_store(self) -> JobStore:
        """The store of outputs, sharing our connection."""
        if self._job_store is None:
            self._job_store = job_store(self.site, self.database)
            require_persistent(self._job_store)
        return self._job_store

    def close(self) -> None:
        """Close the connections."""
        self.database.client.close()
        self.launchpad.connection.close()

    # Submitting and finding

    def submit(self, flow: Flow, *, campaign: str, cycle: int, kind: str) -> list[int | str]:
        """Route and add a flow as one workflow; return its id.

        The id of a workflow is that of its first firework.

        Raises
        ------
        InputError
            If the flow has no jobs, or one of an unknown stage.
        """
        from jobflow.managers.fireworks import flow_to_workflow

        if not flow.jobs:
            raise InputError("The flow has no jobs.", where=flow.name)
        key = {"campaign": campaign, "cycle": cycle, "kind": kind}
        route(flow, campaign=campaign, cycle=cycle, kind=kind)
        # store=None: workers know the store, and no password reaches a specification.
        workflow = flow_to_workflow(
            flow,
            store=None,  # type: ignore[arg-type]
            allow_external_references=True,
            metadata=dict(key),
        )
        with translated(self.site):
            self.lift_cancellation(campaign)
            ids = self.launchpad.add_wf(workflow)
            self.apply_hold(campaign)
        return [min(ids.values())]

    def find(self, *, campaign: str, cycle: int, kind: str) -> list[int | str]:
        """Return the ids of the workflows submitted under this key, oldest first."""
        key = {"campaign": campaign, "cycle": cycle, "kind": kind}
        query = {f"metadata.{name}": value for name, value in key.items()}
        with translated(self.site):
            found = self.launchpad.workflows.find(query, {"nodes": 1})
            return sorted(min(document["nodes"]) for document in found)

    # Reading

    def jobs(
        self,
        *,
        campaign: str,
        cycle: int | None = None,
        kind: str | None = None,
        label_keys: Collection[str] | None = None,
    ) -> list[JobRecord]:
        """Return all jobs of a campaign, or of some of its workflows or labels, oldest first.

        Two indexed queries with projections, however large the workflows are.
        """
        query: dict[str, Any] = {"spec.campaign": campaign, "state": {"$ne": "ARCHIVED"}}
        if cycle is not None:
            query["spec.cycle"] = cycle
        if kind is not None:
            query["spec.kind"] = kind
        if label_keys is not None:
            query["spec.label_key"] = {"$in": list(label_keys)}
        with translated(self.site):
            fireworks = list(self.launchpad.fireworks.find(query, FIREWORK_FIELDS).sort("fw_id", 1))
            launches = self._last_launches(fireworks)
        return [job_record(firework, launches.get(firework["fw_id"])) for firework in fireworks]

    def output(self, uuid: str) -> Any | None:
        """Return the output of a finished job, its large parts loaded, or None."""
        from jobflow import OnMissing, OutputReference

        with translated(self.site):
            return OutputReference(uuid).resolve(self.job_store, on_missing=OnMissing.NONE)

    # Acting

    def rerun(self, engine_ids: Sequence[int | str]) -> None:
        """Run failed jobs again whose dependants have not started.

        FireWorks resets every dependant that has left the waiting state, finished ones included,
        and lets them make their own jobs a second time; such reruns are refused.

        Raises
        ------
        NotFoundError
            If an id is unknown; nothing is rerun then.
        PartialError
            If some were refused; the others are running again.
        """
        ids = [int(engine_id) for engine_id in engine_ids]
        with translated(self.site):
            known = {
                document["fw_id"]
                for document in self.launchpad.fireworks.find({"fw_id": {"$in": ids}}, {"fw_id": 1})
            }
            unknown = [fw_id for fw_id in ids if fw_id not in known]
            if unknown:
                raise NotFoundError(f"There is no job {unknown[0]}.", hint="otf status")
            refused = {fw_id: reason for fw_id in ids if (reason := self._rerun_one(fw_id))}
        if refused:
            reasons = "; ".join(f"job {fw_id} {reason}" for fw_id, reason in refused.items())
            raise PartialError(
                f"{len(refused)} of {len(ids)} jobs were not run again: {reasons}.",
                hint="compute such a label in a workflow of its own: otf labels rerun",
            )

    def let_go(self, engine_ids: Sequence[int | str]) -> list[int | str]:
        """Let what waits for these jobs go on without them; return those that had not ended.

        Waiting, running or held, they stay where they are, but nothing depends on them any more.
        (A defused job would keep its dependants waiting for ever, and one marked as failed would
        leave its document, launches and all, in the specification of each of them.)
        """
        wanted = {int(engine_id) for engine_id in engine_ids}
        pad = self.launchpad
        with translated(self.site):
            workflows = list(pad.workflows.find({"nodes": {"$in": sorted(wanted)}}, {"nodes": 1}))
            gone = [
                fw_id
                for workflow in workflows
                for fw_id in self._let_go_in_workflow(wanted & set(workflow["nodes"]))
            ]
            for campaign in {self._campaign_of(fw_id) for fw_id in gone}:
                self.apply_hold(campaign)
        return sorted(gone)

    def recover(self) -> list[str]:
        """Put back jobs whose worker is gone, free stale locks; return sentences."""
        from otf_workflows.engine.recovery import recover

        with translated(self.site):
            return recover(self.launchpad)

    # Helpers

    def _last_launches(self, fireworks: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """Return the latest launch of each firework, without the large parts of its action."""
        ids = [max(firework["launches"]) for firework in fireworks if firework["launches"]]
        found = self.launchpad.launches.find({"launch_id": {"$in": ids}}, LAUNCH_FIELDS)
        return {launch["fw_id"]: launch for launch in found}

    def _move(self, campaign: str, states: Sequence[str], to: str) -> int:
        """Move fireworks from one of these states to another; return how many were moved.

        FireWorks' own ``defuse_fw`` starts a job again that has begun in the meantime; here the
        state is changed only if it is still one of those named.
        """
        from datetime import UTC, datetime

        pad = self.launchpad
        query = {"spec.campaign": campaign, "state": {"$in": list(states)}}
        ids = [document["fw_id"] for document in pad.fireworks.find(query, {"fw_id": 1})]
        moved = 0
        for fw_id in ids:
            change = {"$set": {"state": to, "updated_on": datetime.now(UTC).isoformat()}}
            query = {"fw_id": fw_id, "state": {"$in": list(states)}}
            if pad.fireworks.find_one_and_update(query, change, {"fw_id": 1}) is not None:
                pad._refresh_wf(fw_id)  # noqa: SLF001 - as pause_fw and resume_fw do
                moved += 1
        return moved

    def _rerun_one(self, fw_id: int) -> str | None:
        """Run one failed job again, or return why not.

        Looking at the dependants and resetting the job happen under FireWorks' own lock, so that
        no dependant can start in between.
        """
        from fireworks.core.launchpad import WFLock

        from otf_workflows.engine.recovery import load_libraries_of

        pad = self.launchpad
        load_libraries_of(pad, fw_id)
        with WFLock(pad, fw_id):
            workflow = pad.get_wf_by_fw_id_lzyfw(fw_id)
            state = workflow.id_fw[fw_id].state
            if state != "FIZZLED":
                return f"has not failed (it is {state})"
            children = {workflow.id_fw[child].state for child in workflow.links[fw_id]}
            if children - _UNTOUCHED:
                return "failed, but what depends on it has gone on without it"
            pad.fireworks.update_one({"fw_id": fw_id}, {"$unset": {"spec._recovery": ""}})
            updated = workflow.rerun_fw(fw_id)
            # A paused dependant is not WAITING, so the line above has reset it as well.
            pad._update_wf(workflow, updated)  # noqa: SLF001 - as rerun_fw does
        self.apply_hold(self._campaign_of(fw_id))
        return None

    def _let_go_in_workflow(self, wanted: set[int]) -> list[int]:
        """Cut the links from jobs of one workflow that have not ended to what waits for them."""
        from fireworks.core.launchpad import WFLock

        from otf_workflows.engine.recovery import load_libraries_of

        pad = self.launchpad
        any_of_them = min(wanted)
        load_libraries_of(pad, any_of_them)
        with WFLock(pad, any_of_them):
            workflow = pad.get_wf_by_fw_id_lzyfw(any_of_them)
            gone = sorted(i for i in wanted if workflow.id_fw[i].state not in _ENDED)
            children = {child for fw_id in gone for child in workflow.links[fw_id]}
            for fw_id in gone:
                workflow.links[fw_id] = []
            updated: set[int] = set()
            for child in children:
                updated |= workflow.refresh(child, updated)
            pad._update_wf(workflow, updated)  # noqa: SLF001 - as rerun_fw does
        # Last: whoever dies before this line finds them by their old kind, and cuts nothing twice.
        pad.fireworks.update_many(
            {"fw_id": {"$in": gone}}, {"$set": {"spec.kind": RELABEL, f"spec.{PRIORITY}": LATE}}
        )
        return gone

    def _campaign_of(self, fw_id: int) -> str:
        document = self.launchpad.fireworks.find_one({"fw_id": fw_id}, {"spec.campaign": 1})
        return document["spec"].get("campaign", "") if document else ""
