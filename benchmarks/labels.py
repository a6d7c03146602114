"""How the book of labels grows: submit, list, plan a rerun, export, import.

Run it as ``python benchmarks/labels.py [N ...]``; by default 1000 and 10000 labels. Results come
from a Lennard-Jones calculator, so that all the time is ours. A private mongod is started.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from otf_workflows.campaign import Campaign
from otf_workflows.cli.export import labelled_atoms
from otf_workflows.connection import connect
from otf_workflows.control import plan_rerun, submit
from otf_workflows.engine import FireWorksEngine
from otf_workflows.label_export import write_extxyz
from otf_workflows.label_import import Calculation, basis_of, read_calculations, refusal
from otf_workflows.labelers import parse_recipe
from otf_workflows.ledger import import_label, request, settle
from otf_workflows.schemas import Frame, LabelResult
from otf_workflows.store import Store
from otf_workflows.testing.mongo import ephemeral_mongod, fresh_site
from otf_workflows.types import FailureCause, LabelState

if TYPE_CHECKING:
    from collections.abc import Callable

RECIPE = {"code": "ase", "calculator": "lj"}


def structures(n: int) -> list[Frame]:
    """Return ``n`` rattled copper cells of eight atoms."""
    from ase.build import bulk

    base = bulk("Cu", cubic=True).repeat((2, 1, 1))
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(n):
        atoms = base.copy()
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        frames.append(Frame.from_atoms(atoms, features=rng.normal(size=64).tolist()))
    return frames


def measure(n: int, store: Store, engine: FireWorksEngine, folder: Path) -> dict[str, float]:
    """Return the seconds of each step with ``n`` labels, one in ten of them failed."""
    campaign = Campaign(name="book", structure=structures(1)[0], potential="toy-lj", labels=RECIPE)
    recipe = parse_recipe(RECIPE)
    submit(campaign, store)
    frames, seconds = structures(n), {}

    def timed(name: str, action: Callable[[], object]) -> object:
        begun = time.perf_counter()
        result = action()
        seconds[name] = time.perf_counter() - begun
        return result

    timed("submit", lambda: request(store, frames, campaign=campaign, cycle=0))
    labels = store.labels(campaign="book")
    results = [_result(label, recipe) for label in labels]
    n_failed = n // 10

    def book() -> None:
        for label in labels[:n_failed]:
            store.record_failure(label.key, cause=FailureCause.SCF, reason="no convergence")
        for result in results[n_failed:]:
            settle(store, result)

    timed("book results", book)
    timed("ask again", lambda: request(store, frames, campaign=campaign, cycle=1))
    timed("list all", lambda: store.labels(campaign="book", light=True))
    timed("list failed", lambda: store.labels(states=[LabelState.FAILED], light=True))
    timed("count", lambda: store.label_counts("book"))
    timed("plan rerun", lambda: plan_rerun(store, engine, causes=[FailureCause.SCF]))
    path = folder / f"{n}.extxyz"
    timed("export", lambda: write_extxyz(path, labelled_atoms(store, "book")))
    store.database.otf_labels.delete_many({})

    def bring_in() -> None:
        for item in read_calculations(path, recipe):
            if not isinstance(item, Calculation) or refusal(item, recipe, statement=None):
                raise SystemExit(f"an export was refused: {item}")
            basis = basis_of(item, statement=None)
            import_label(store, item, recipe=recipe, basis=basis)

    timed("import", bring_in)
    found = store.database.otf_labels.count_documents({"state": "done"})
    if found != n - n_failed:
        raise SystemExit(f"{found} labels came back of {n - n_failed}")
    return seconds


def _result(label, recipe) -> LabelResult:
    level = recipe.level_of_theory(label.frame.numbers)
    rng = np.random.default_rng(int(label.key[:8], 16))
    forces = rng.normal(size=(label.frame.n_atoms, 3))
    return LabelResult(
        key=label.key,
        frame=label.frame,
        energy_eV=-1.0,
        forces_eV_A=(forces - forces.mean(axis=0)).tolist(),
        stress_eV_A3=np.diag([0.01, 0.02, 0.03]).tolist(),
        fingerprint=recipe.fingerprint(label.frame.numbers),
        settings_as_run=level,
    )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=[1000, 10_000])
    sizes = parser.parse_args().sizes
    columns = []
    with ephemeral_mongod() as mongod:
        for n in sizes:
            with tempfile.TemporaryDirectory() as name, fresh_site(mongod, Path(name)) as site:
                engine = FireWorksEngine(site)
                columns.append(measure(n, Store(connect(site)), engine, Path(name)))
                engine.close()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'seconds':14}" + "".join(f"{n:>10}" for n in sizes) + f"{'growth':>10}")
    for step in columns[0]:
        cells = "".join(f"{column[step]:10.3f}" for column in columns)
        print(f"{step:14}{cells}{columns[-1][step] / columns[0][step]:9.1f}x")


if __name__ == "__main__":
    main()
