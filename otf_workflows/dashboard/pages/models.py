"""``/models`` and data sets: what was learned, from what, and the files to take away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from otf_workflows.dashboard.backend import Backend, backend
from otf_workflows.dashboard.figures.cycle import training
from otf_workflows.dashboard.label_files import extxyz_chunks
from otf_workflows.dashboard.pages.campaign import chosen
from otf_workflows.dashboard.queries.models import dataset_view, model_view, models_view
from otf_workflows.dashboard.rendering import page
from otf_workflows.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

router = APIRouter()
Here = Annotated[Backend, Depends(backend)]

CHUNK_BYTES = 256 * 1024


@router.get("/models", name="models")
def list_models(request: Request, here: Here, campaign: str = "") -> Response:
    """List models and data sets."""
    with here.reading():
        view = models_view(here.store, campaign=campaign or None)
    return page(request, "models.html.jinja", section="models", view=view, campaign=campaign)


@router.get("/models/{model_id}", name="model")
def show(request: Request, here: Here, model_id: str) -> Response:
    """Show one model with its lineage."""
    with here.reading():
        view = model_view(here.store, model_id)
    return page(
        request,
        "model.html.jinja",
        section="models",
        view=view,
        model=view.model,
        curve=training(view.model.history),
    )


@router.get("/models/{model_id}/figures/{figure}.json", name="model_figure")
def figure(here: Here, model_id: str, figure: str) -> JSONResponse:
    """Return one figure of a model for Plotly."""
    with here.reading():
        history = here.store.model(model_id).history
    return chosen([training(history)], figure)


@router.get("/models/{model_id}/weights", name="weights")
def weights(here: Here, model_id: str) -> StreamingResponse:
    """Return the weights of a model as a file, piece by piece."""
    with here.reading() as database:
        model = here.store.model(model_id)
        if model.sha256 is None:
            raise NotFoundError(
                f"'{model_id}' is pretrained: its weights are part of its package",
                hint=f"in Python: otf_workflows.potentials.load_potential('{model.potential}')",
            )
        from gridfs import GridFS

        found = GridFS(database, collection="otf_files").find_one({"filename": model.sha256})
    if found is None:
        raise NotFoundError(f"the weights of '{model_id}' are missing in the database")

    def pieces() -> Iterator[bytes]:
        while piece := found.read(CHUNK_BYTES):
            yield piece

    return StreamingResponse(
        pieces(),
        media_type="application/octet-stream",
        headers={
            "content-disposition": f'attachment; filename="{model.model_id}.otfmodel"',
            "content-length": str(found.length),
            # Weights do not compress; without this our own compression would try.
            "content-encoding": "identity",
        },
    )


@router.get("/datasets/{campaign}/{digest}", name="dataset")
def dataset(request: Request, here: Here, campaign: str, digest: str) -> Response:
    """Show one data set."""
    with here.reading():
        view = dataset_view(here.store, campaign, digest)
    return page(request, "dataset.html.jinja", section="models", view=view, data=view.dataset)


@router.get("/datasets/{campaign}/{digest}/labels.extxyz", name="dataset_labels")
def dataset_labels(here: Here, campaign: str, digest: str) -> StreamingResponse:
    """Return all labels of a data set as extended XYZ, frame by frame."""
    with here.reading():
        document = here.store.dataset(campaign, digest)
    name = f"{campaign}-{document.hash[:12]}.extxyz"
    return StreamingResponse(
        extxyz_chunks(here.store, document),
        media_type="text/plain; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )
