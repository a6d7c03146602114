"""A small campaign whose labels come from a teacher potential, in milliseconds each."""

from __future__ import annotations

import pytest

from otf_workflows.campaign import (
    Budget,
    Campaign,
    Exploration,
    Production,
    Seeding,
    SelectionRules,
    TrainingRules,
)
from otf_workflows.schemas import Frame


@pytest.fixture
def small_campaign():
    from ase.build import bulk

    atoms = bulk("LiCl", "rocksalt", a=5.14, cubic=True)
    return Campaign(
        name="teacher",
        structure=Frame.from_atoms(atoms),
        tolerance_eV_A=0.05,
        labels={
            "code": "ase",
            "calculator": "teacher",
            "kwargs": {"potential": "chgnet-r2scan"},
        },
        seeding=Seeding(n_frames=2),
        exploration=Exploration(temperatures_K=[300, 600], steps_per_cycle=60, check_every=10),
        selection=SelectionRules(labels_per_cycle=5, audit_per_cycle=2, min_labels=2),
        training=TrainingRules(epochs=8),
        budget=Budget(max_cycles=2, max_labels=40),
        production=Production(
            temperature_K=300, supercell=(1, 1, 1), steps=100, audit_steps=50, audit_labels=2
        ),
    )
