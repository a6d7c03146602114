"""Pause, resume and stop: the buttons of a campaign, each sent with the state that was seen."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import RedirectResponse

from otf_workflows.dashboard.actions import CampaignVerb, ChangedError, act_on_campaign
from otf_workflows.dashboard.backend import Backend, backend
from otf_workflows.dashboard.rendering import page
from otf_workflows.errors import InputError, OtfError

if TYPE_CHECKING:
    from fastapi.responses import Response

router = APIRouter()
Here = Annotated[Backend, Depends(backend)]


@router.get("/campaigns/{name}/stop", name="campaign_stop")
def ask_to_stop(request: Request, here: Here, name: str) -> Response:
    """Show what stopping a campaign would give up. Nothing is changed."""
    return _before(request, here, name, verb=CampaignVerb.STOP)


@router.post("/campaigns/{name}/{verb}", name="campaign_act")
def act(
    request: Request,
    here: Here,
    name: str,
    verb: CampaignVerb,
    *,
    state: Annotated[str, Form(max_length=40)] = "",
) -> Response:
    """Pause, resume or stop a campaign that is still in the state its page showed."""
    try:
        with here.reading():
            act_on_campaign(here, verb, name, seen=state)
    except (ChangedError, InputError) as error:
        return _before(request, here, name, verb=verb, problem=error)
    address = request.app.state.addresses("campaign", name=name)
    return RedirectResponse(address, status_code=303)


def _before(
    request: Request,
    here: Backend,
    name: str,
    *,
    verb: CampaignVerb,
    problem: OtfError | None = None,
) -> Response:
    with here.reading():
        document = here.store.campaign(name)
        jobs = Counter(str(job.state) for job in here.reader.jobs(campaign=name))
    return page(
        request,
        "campaign_verb.html.jinja",
        status=409 if problem else 200,
        section="campaigns",
        name=name,
        state=document.state,
        reason=document.reason,
        verb=verb,
        jobs=jobs,
        problem=problem,
    )
