"""A whole campaign with another family: real SevenNet, real mongod, labels from a teacher."""

from __future__ import annotations

import pytest

from otf_workflows import Store, run_locally
from otf_workflows.campaign import Exploration, Production, Seeding, SelectionRules, TrainingRules
from otf_workflows.potentials import load_potential, missing_packages, potential_entry
from otf_workflows.schemas import Frame
from otf_workflows.types import LabelState

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(
        bool(missing_packages("sevennet-0")),
        reason=f"sevenn is not installed: {potential_entry('sevennet-0').installation}",
    ),
]


def test_a_sevennet_campaign_explores_labels_trains_and_promotes(
    small_campaign, site, database, tmp_path
):
    from ase.build import bulk

    campaign = small_campaign.model_copy(
        update={
            "potential": "sevennet-0",
            "structure": Frame.from_atoms(bulk("LiCl", "rocksalt", a=5.14)),
            "seeding": Seeding(n_frames=5, rattle_A=0.1),
            "exploration": Exploration(
                temperatures_K=[500, 600],
                walkers_per_job=2,
                steps_per_cycle=20,
                timestep_fs=4,
                check_every=5,
            ),
            "selection": SelectionRules(labels_per_cycle=3, audit_per_cycle=2, min_labels=2),
            "training": TrainingRules(epochs=10, batch_atoms=4),
            "production": Production(
                temperature_K=300,
                supercell=(1, 1, 1),
                steps=20,
                sample_every=5,
                audit_steps=10,
                audit_labels=1,
            ),
        }
    )
    report = tmp_path / "report.html"
    done = run_locally(campaign, site=site, report=report)
    store = Store(database)

    assert done.state.terminal
    assert store.label_counts("teacher")[LabelState.DONE] >= 10
    assert [c.kind for c in store.cycles("teacher")] == ["cycle", "cycle", "production"]
    final = done.incumbent_id
    assert final != "sevennet-0", "no challenger was ever promoted"
    errors = store.cycles("teacher")[-1].errors
    assert errors[f"{final}/audit"].force_rmse_eV_A < errors["sevennet-0/audit"].force_rmse_eV_A

    model = store.model(final)
    assert model.versions["sevenn"]
    assert "chgnet" not in model.versions
    loaded = load_potential("sevennet-0", store.weights(model))
    assert loaded.heads is not None
    assert loaded.predict(campaign.structure.to_atoms(), uncertainty=True).novelty is not None

    page = report.read_text(encoding="utf-8")
    assert "uncorrected energies" in page
    assert "MIT" in page
