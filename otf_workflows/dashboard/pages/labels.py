"""``/labels``: DFT calculations, why some failed, and the way to run them again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse, RedirectResponse

from otf_workflows.dashboard import actions, attempt_files
from otf_workflows.dashboard.backend import Backend, backend
from otf_workflows.dashboard.queries import label_detail as details
from otf_workflows.dashboard.queries import labels as lists
from otf_workflows.dashboard.queries.label_filter import LabelFilter
from otf_workflows.dashboard.rendering import page
from otf_workflows.dashboard.structure_files import StructureFormat, structure_file
from otf_workflows.errors import ConfigurationError, InputError, NotFoundError, OtfError
from otf_workflows.types import FailureCause, LabelState

if TYPE_CHECKING:
    from fastapi.responses import Response

router = APIRouter()
Here = Annotated[Backend, Depends(backend)]

TIMES = [("1h", "last hour"), ("24h", "last day"), ("7d", "last week"), ("30d", "last month")]
"""Choices of the filter for time; the address takes any other as well."""


def chosen_labels(request: Request) -> LabelFilter:
    """Return the filter in an address; a FastAPI dependency."""
    fields = request.query_params
    return LabelFilter.from_address({name: fields.getlist(name) for name in fields})


Chosen = Annotated[LabelFilter, Depends(chosen_labels)]


@router.get("/labels", name="labels")
def list_labels(request: Request, here: Here, chosen: Chosen, before: str = "") -> Response:
    """List labels, with the failures grouped by cause."""
    with here.reading():
        overview = here.label_overviews.of(here.store, chosen)
        shown = lists.label_page(here.store, chosen, before=before or None)
        campaigns = sorted(c.name for c in here.store.campaigns())
    return page(
        request,
        "labels.html.jinja",
        section="labels",
        chosen=chosen,
        counts=overview.counts,
        groups=() if before else overview.groups,
        shown=shown,
        campaigns=campaigns,
        states=list(LabelState),
        causes=list(FailureCause),
        times=TIMES,
        first=not before,
    )


@router.get("/labels/rerun", name="rerun_preview")
def preview(
    request: Request,
    here: Here,
    chosen: Chosen,
    *,
    settings: str = "",
    walltime: str = "",
    worker: str = "",
    by: str = "",
) -> Response:
    """Show exactly what a rerun would do. Nothing is changed."""
    if by == "hand" and not chosen.keys:  # not by the filter, which would mean all that failed
        raise InputError("no label was chosen", hint="otf labels rerun --failed --dry-run")
    wish = actions.RerunWish(chosen, settings, walltime.strip(), worker.strip())
    return _preview(request, here, wish)


@router.post("/labels/rerun", name="rerun")
async def rerun(request: Request, here: Here) -> Response:
    """Run labels again as previewed, or show what has changed since."""
    from starlette.concurrency import run_in_threadpool

    # One field for each label: more than the default of a form.
    form = await request.form(max_fields=actions.MOST_RERUNS + 50, max_files=0)
    fields = {name: [str(value) for value in form.getlist(name)] for name in form}
    return await run_in_threadpool(_rerun, request, here, fields)


def _rerun(request: Request, here: Backend, fields: dict[str, list[str]]) -> Response:
    def one(name: str) -> str:
        return next(iter(fields.get(name, [])), "").strip()

    wish = actions.RerunWish(
        LabelFilter.from_address(fields), one("settings"), one("walltime"), one("worker")
    )
    try:
        with here.reading():
            batch = actions.confirm_rerun(here, wish, seen=fields.get("seen", []))
    except (actions.ChangedError, InputError, ConfigurationError) as error:
        return _preview(request, here, wish, problem=error)
    address = request.app.state.addresses("rerun_done", batch=batch)
    return RedirectResponse(address, status_code=303)


@router.get("/labels/reruns/{batch}", name="rerun_done")
def rerun_done(request: Request, here: Here, batch: str) -> Response:
    """Show the labels of one confirmation, and how far they are."""
    with here.reading():
        done = details.rerun_batch(here.store, batch)
    return page(request, "label_rerun_done.html.jinja", section="labels", done=done)


@router.get("/labels/{key}", name="label")
def show(request: Request, here: Here, key: str) -> Response:
    """Show one label: structure, tries, settings, result, and who acted on it."""
    with here.reading():
        found = details.label_detail(here.store, label_key(key))
    return page(
        request,
        "label.html.jinja",
        section="labels",
        detail=found,
        label=found.label,
        formats=[kind for kind in StructureFormat if kind is not StructureFormat.VIEWER],
    )


@router.get("/labels/{key}/structure.{kind}", name="label_structure")
def structure(here: Here, key: str, kind: StructureFormat) -> PlainTextResponse:
    """Return the structure as a file, with energy and forces where the format has room."""
    with here.reading():
        label = here.store.label(label_key(key))
    text = structure_file(label.frame, kind, comment=f"label {label.key}", result=label.result)
    name = f"label-{label.key[:12]}.{kind}"
    how = "inline" if kind is StructureFormat.VIEWER else "attachment"
    return PlainTextResponse(text, headers={"content-disposition": f'{how}; filename="{name}"'})


@router.get("/labels/{key}/files/{number}", name="label_files")
def files(request: Request, here: Here, key: str, number: int, *, name: str = "") -> Response:
    """Show the files of one try, and the end of one of them."""
    with here.reading():
        label = here.store.label(label_key(key))
    tries = {index: attempt for index, attempt in enumerate(label.tries, 1) if attempt.directory}
    if number not in tries:
        raise NotFoundError(f"label {label.key[:10]} has no try {number} with a folder")
    directory, found, problem = tries[number].directory, [], ""
    try:
        found = attempt_files.found_files(directory)
    except NotFoundError as error:
        problem = error.what
    return page(
        request,
        "label_files.html.jinja",
        section="labels",
        label=label,
        number=number,
        attempt=tries[number],
        directory=directory,
        files=found,
        problem=problem,
        name=name,
        text=attempt_files.end_of_file(directory, name) if name else None,
        most=attempt_files.SHOWN_BYTES,
    )


def label_key(text: str) -> str:
    """Return the key in an address.

    Raises
    ------
    InputError
        If it is none.
    """
    (key,) = LabelFilter.from_address({"key": [text]}).keys or ("",)
    if not key:
        raise InputError("this address names no label", hint="otf labels list")
    return key


def _preview(
    request: Request,
    here: Backend,
    wish: actions.RerunWish,
    *,
    problem: OtfError | None = None,
) -> Response:
    """Show the preview of a wish; what was typed wrong is said above the form."""
    found, status = None, 200
    try:
        with here.reading():
            found = actions.preview_rerun(here, wish)
    except (InputError, ConfigurationError) as error:
        problem = problem or error
    if problem is not None:
        status = 409 if isinstance(problem, actions.ChangedError) else 422
    codes = set(found.programs) if found else {name.partition("@")[0] for name in here.site.codes}
    return page(
        request,
        "label_rerun.html.jinja",
        status=status,
        section="labels",
        wish=wish,
        preview=found,
        problem=problem,
        workers=actions.variants(here, codes),
    )
