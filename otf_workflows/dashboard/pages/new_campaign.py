"""``/new``: a campaign from forms, shown as the file that it is before anything is submitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Form, HTTPException, Request
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from otf_workflows.dashboard.backend import Backend, backend
from otf_workflows.dashboard.campaign_form import MAIN, CampaignForm, campaign_data, field_problems
from otf_workflows.dashboard.drafts import MOST_STRUCTURE_BYTES, Draft, new_draft, open_draft
from otf_workflows.dashboard.errands import Problem
from otf_workflows.dashboard.rendering import page
from otf_workflows.errors import InputError
from otf_workflows.store import whoami

if TYPE_CHECKING:
    from fastapi.responses import Response


MOST_FIELDS = 400


def allowed(request: Request) -> None:
    """Refuse where the page may only look: a form that cannot be sent helps nobody.

    Raises
    ------
    HTTPException
        With status 403.
    """
    if not request.app.state.settings.allow_actions:
        raise HTTPException(
            403, "This dashboard only looks. Start it with --allow-actions, or write the campaign "
            "file with 'otf init' and submit it with 'otf submit'.",
        )  # fmt: skip


router = APIRouter(dependencies=[Depends(allowed)])
Here = Annotated[Backend, Depends(backend)]


@router.get("/new", name="new_campaign")
def ask(request: Request, here: Here, *, draft: str = "") -> Response:
    """Show the form: empty, or as a draft was typed."""
    found = open_draft(here.site, draft) if draft else None
    return _form(request, found, typed=found.typed if found else {})


@router.post("/new", name="draft_campaign")
async def write(request: Request, here: Here) -> Response:
    """Write the draft and check it; what is wrong is said beside its field."""
    async with request.form(max_files=1, max_fields=MOST_FIELDS) as form:
        typed = {name: value for name, value in form.items() if isinstance(value, str)}
        upload = form.get("structure")
        given = None
        if isinstance(upload, UploadFile) and upload.filename:
            given = (upload.filename, await upload.read(MOST_STRUCTURE_BYTES + 1))
    return await run_in_threadpool(_write, request, here, typed, given)


@router.get("/new/{draft_id}", name="draft")
def show(request: Request, here: Here, draft_id: str) -> Response:
    """Show a draft as it would be submitted: the file, the checks, the cost."""
    draft = open_draft(here.site, draft_id)
    if not draft.file.is_file():
        return _form(request, draft, typed=draft.typed)
    report = draft.report or draft.check(here.site)
    return _show(request, draft, problem=report.problem)


@router.post("/new/{draft_id}/submit", name="submit_draft")
def submit(
    request: Request,
    here: Here,
    draft_id: str,
    *,
    digest: Annotated[str, Form(max_length=80)] = "",
) -> Response:
    """Submit a draft that is still what was looked at."""
    draft = open_draft(here.site, draft_id)
    try:
        report = draft.submit(here.site, digest=digest)
        problem = report.problem
    except InputError as error:
        problem = Problem(what=error.what, where=error.where, hint=error.hint)
    if problem is not None:
        return _show(request, draft, problem=problem, status=409)
    address = request.app.state.addresses("campaign", name=report.name)
    return RedirectResponse(address, status_code=303)


def _write(
    request: Request, here: Backend, typed: dict[str, str], given: tuple[str, bytes] | None
) -> Response:
    site = here.site
    draft = open_draft(site, typed["draft"]) if typed.get("draft") else new_draft(site)
    typed = {name: text for name, text in typed.items() if name not in {"draft", "structure"}}
    problems: dict[str, str] = {}
    try:
        if given is not None:
            draft.put_structure(*given)
        data = campaign_data(typed, structure=draft.structure.name if draft.structure else "")
    except InputError as error:
        data, problems = {}, {error.where or "": error.what}
    if not problems:
        problems = field_problems(data)
    if problems:
        # Nothing that was refused here is written where it could be read, and so run, later.
        draft.keep(typed)
        return _form(request, draft, typed=typed, problems=problems)
    draft.write(data, typed=typed, head=f"Written by the dashboard for {whoami()}.")
    report = draft.check(site)
    if report.problem is not None:
        return _form(request, draft, typed=typed, problem=report.problem)
    address = request.app.state.addresses("draft", draft_id=draft.draft_id)
    return RedirectResponse(address, status_code=303)


def _form(
    request: Request,
    draft: Draft | None,
    *,
    typed: dict[str, str],
    problems: dict[str, str] | None = None,
    problem: Problem | None = None,
) -> Response:
    form = CampaignForm.of(typed)
    return page(
        request,
        "new_campaign.html.jinja",
        status=422 if problems or problem else 200,
        section="new_campaign",
        form=form,
        draft=draft,
        typed=typed,
        main=MAIN,
        problems=problems or {},
        elsewhere=[what for name, what in (problems or {}).items() if not form.knows(name)],
        problem=problem,
    )


def _show(
    request: Request, draft: Draft, *, problem: Problem | None, status: int = 200
) -> Response:
    report = draft.report
    context: dict[str, Any] = {
        "draft": draft,
        "report": report,
        "problem": problem,
        "yaml": draft.file.read_text(encoding="utf-8") if draft.file.is_file() else "",
        "facts": [line.split(maxsplit=1) for line in report.summary] if report else [],
    }
    return page(request, "draft.html.jinja", status=status, section="new_campaign", **context)
