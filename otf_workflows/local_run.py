"""A whole campaign in this process, without FireWorks: for notebooks and tests.

The flows, the database and the labels are the same as on a cluster; only the engine differs.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from otf_workflows.types import CampaignState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from otf_workflows.campaign import Campaign
    from otf_workflows.schemas import CampaignDocument
    from otf_workflows.settings import Site


def run_locally(
    campaign: Campaign,
    *,
    site: Site | None = None,
    report: Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> CampaignDocument:
    """Run a campaign to its end, one job after the other, in this process.

    Called again it continues: finished cycles and labels are found in the database.

    Parameters
    ----------
    campaign
        What to do.
    site
        Where the database is; by default what the site file says, or an embedded mongod that
        lives as long as this call.
    report
        Write the HTML report there at the end.
    tell
        Called with a sentence after every job and at the end, ``print`` for instance.

    Returns
    -------
    CampaignDocument
        The finished campaign.

    Raises
    ------
    OtfError
        If a job fails; the message says which, and the database keeps what was done.
    """
    from otf_workflows.connection import connect, job_store
    from otf_workflows.control import submit
    from otf_workflows.engine.local import LocalEngine
    from otf_workflows.engine.mongod import EmbeddedMongod
    from otf_workflows.engine.worker import set_threads
    from otf_workflows.errors import OtfError
    from otf_workflows.reconcile import reconcile
    from otf_workflows.report import write_report
    from otf_workflows.settings import load_site
    from otf_workflows.store import Store, using

    site = site or load_site()
    # One thread: results stay the same to the last bit, whatever else the machine does.
    set_threads(1)
    with ExitStack() as stack:
        if site.database.mode == "embedded":
            stack.enter_context(
                EmbeddedMongod(site.resolved_state_dir, database=site.database.name)
            )
        store = stack.enter_context(using(Store(connect(site))))
        engine = LocalEngine(
            job_store=job_store(site),
            root=site.resolved_state_dir / "local" / campaign.name,
            tell=tell,
        )
        document = submit(campaign, store)
        while not document.state.terminal:
            sentences = reconcile(store, engine, campaign.name)
            document = store.campaign(campaign.name)
            if not sentences and not document.state.terminal:
                break
        if tell is not None:
            state = str(document.state).replace("_", " ")
            tell(f"{campaign.name}: {state}. {document.reason or ''}".rstrip())
        if document.state is CampaignState.FAILED:
            raise OtfError(document.reason, where=f"campaign '{campaign.name}'")
        if report:
            write_report(store, campaign.name, report)
        return document
