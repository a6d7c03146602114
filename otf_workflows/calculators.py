"""A model of ours as an ASE calculator, for other people's programs.

atomate2's force-field makers take a calculator by its import path and keyword arguments of plain
data. This is such a function: the makers' flows (equation of state, elasticity, phonons, …) then
run with a fine-tuned model, on every worker that can import this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from otf_workflows.errors import NotFoundError

if TYPE_CHECKING:
    from otf_workflows.potentials import Potential
    from otf_workflows.potentials.calculator import PotentialCalculator

FORCE_FIELD = {"@module": "otf_workflows.calculators", "@callable": "model_calculator"}
"""What atomate2's makers take as ``force_field_name``."""


def model_calculator(model: str, *, device: str = "cpu") -> PotentialCalculator:
    """Return an ASE calculator (energy, forces, stress) of a model.

    Parameters
    ----------
    model
        A file that ``otf models export`` wrote, a pretrained potential (``chgnet-0.3.0``), or the
        id of a model in the database of this site.
    device
        Torch device.

    Raises
    ------
    NotFoundError
        If it is none of them.
    PotentialError
        If the file is damaged or something else.
    """
    return open_model(model, device=device).calculator()  # type: ignore[return-value]


def open_model(model: str, *, device: str = "cpu") -> Potential:
    """Return a potential from a file, by its registry name, or from the database of this site.

    Raises
    ------
    NotFoundError
        If it is none of them.
    PotentialError
        If the file is damaged or something else.
    """
    from otf_workflows.potentials import POTENTIALS, load_potential

    if model in POTENTIALS:
        return load_potential(model, device=device)
    path = Path(model).expanduser()
    if path.is_file():
        from otf_workflows.potentials.blobs import name_of

        blob = path.read_bytes()
        return load_potential(name_of(blob), blob, device=device)
    if path.suffix or len(path.parts) > 1:
        raise NotFoundError(
            f"The model file '{model}' does not exist.",
            where=str(Path.cwd()),
            hint="give an absolute path: jobs run in folders of their own",
        )
    return _from_database(model, device=device)


def _from_database(model_id: str, *, device: str) -> Potential:
    from otf_workflows.connection import connect
    from otf_workflows.potentials import load_potential
    from otf_workflows.settings import load_site
    from otf_workflows.store import Store

    store = Store(connect(load_site()))
    found = store.model(model_id)
    return load_potential(found.potential, store.weights(found), device=device)
