"""The mlearn silicon labels, and CHGNet, for all tests of training."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from otf_workflows.schemas import Frame, LabelledFrame
from otf_workflows.types import Split

DATA = Path(__file__).parents[1] / "data" / "mlearn_si"


def stress_of(record):
    """Return eV/Å³, tension positive, from kBar in VASP's sign; the order depends on the group."""
    if record["group"] == "Surface":
        return None
    xx, yy, zz, xy, fifth, sixth = np.array(record["outputs"]["virial_stress"]) * -0.1 / 160.21766
    yz, xz = (fifth, sixth) if record["group"] == "Elastic" else (sixth, fifth)
    return [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]


def read_mlearn(name, split):
    """Return the labels of one file."""
    from ase.data import atomic_numbers

    with gzip.open(DATA / f"{name}.json.gz", "rt") as file:
        records = json.load(file)
    labels = []
    for index, record in enumerate(records):
        sites = record["structure"]["sites"]
        labels.append(
            LabelledFrame(
                key=f"{name}-{index}-{record['group']}",
                split=split,
                cycle=0,
                frame=Frame(
                    numbers=[atomic_numbers[site["species"][0]["element"]] for site in sites],
                    cell_A=record["structure"]["lattice"]["matrix"],
                    positions_A=[site["xyz"] for site in sites],
                ),
                energy_eV=record["outputs"]["energy"],
                forces_eV_A=record["outputs"]["forces"],
                stress_eV_A3=stress_of(record),
            )
        )
    return labels


@pytest.fixture(scope="session")
def si_train():
    return read_mlearn("training", Split.TRAIN)


@pytest.fixture(scope="session")
def si_test():
    return read_mlearn("test", Split.AUDIT)


@pytest.fixture(scope="session")
def chgnet():
    import torch

    from otf_workflows.potentials import load_potential

    torch.set_num_threads(1)
    return load_potential("chgnet-0.3.0")
