"""A whole campaign without FireWorks: real CHGNet, real mongod, labels from a teacher."""

from __future__ import annotations

import pytest

from otf_workflows import Store, run_locally
from otf_workflows.types import LabelState, Split

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]


def test_a_campaign_runs_to_its_report_and_another_name_computes_no_label(
    small_campaign, site, database, tmp_path
):
    report = tmp_path / "report.html"
    done = run_locally(small_campaign, site=site, report=report)
    store = Store(database)

    assert done.state.terminal
    cycles = store.cycles("teacher")
    assert [c.kind for c in cycles] == ["cycle", "cycle", "production"]
    counts = store.label_counts("teacher")
    assert counts[LabelState.DONE] == sum(counts.values()) > 8
    errors = cycles[-1].errors
    final = done.incumbent_id
    assert final != "chgnet-0.3.0", "no challenger was ever promoted"
    assert errors[f"{final}/audit"].force_rmse_eV_A < errors["chgnet-0.3.0/audit"].force_rmse_eV_A
    model = store.model(final)
    dataset = store.dataset("teacher", model.dataset_hash)
    lineage = store.lineage(final)
    assert {e["key"] for e in dataset.entries} == {item["key"] for item in lineage["labels"]}
    trained = {e["key"] for e in dataset.entries if e["split"] == Split.TRAIN}
    audited = {
        label.key
        for label in store.labels(campaign="teacher")
        if store.purpose_of(label, "teacher")[0] == "audit"
    }
    assert not trained & audited

    assert "LiCl" in report.read_text(encoding="utf-8")

    told = []
    again = run_locally(
        small_campaign.model_copy(update={"name": "again"}), site=site, tell=told.append
    )
    assert told[0].startswith("again, cycle 0: ")
    assert told[-1].startswith(f"again: {str(again.state).replace('_', ' ')}. ")
    assert len(told) > 10
    assert not any("failed" in sentence for sentence in told)
    assert again.state is done.state
    assert again.totals["labels_computed"] == 0
    assert store.database.otf_labels.count_documents({}) == sum(counts.values())
