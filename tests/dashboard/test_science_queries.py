"""What pages of campaigns, cycles, models and production say is what the documents say."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from ase.io import read

from otf_workflows.dashboard import evaluations
from otf_workflows.dashboard.evaluations import MAX_CLOUD
from otf_workflows.dashboard.figures import campaign as campaign_figures
from otf_workflows.dashboard.figures import cycle as cycle_figures
from otf_workflows.dashboard.figures import production as production_figures
from otf_workflows.dashboard.figures.base import MAX_POINTS, thin
from otf_workflows.dashboard.label_files import extxyz_chunks
from otf_workflows.dashboard.queries.campaign import campaign_lines, campaign_view
from otf_workflows.dashboard.queries.cycle import cycle_view, evaluation
from otf_workflows.dashboard.queries.models import dataset_view, model_view, models_view
from otf_workflows.dashboard.queries.production import production_view, productions
from otf_workflows.dashboard.queries.trajectories import (
    MAX_FRAMES,
    production_trajectory,
    read_trajectory,
    thinned,
    walker_trajectory,
)
from otf_workflows.dashboard.stills import still
from otf_workflows.errors import InputError, NotFoundError, OtfError
from otf_workflows.exploration.trajectory import thin_trajectory
from otf_workflows.report import report_data
from otf_workflows.schemas import Frame
from otf_workflows.types import LabelState, Purpose, Split


@pytest.fixture(scope="module")
def store(mongod, tmp_path_factory):
    """Synthetic campaigns, written once: these tests only read them."""
    from otf_workflows.connection import connect
    from otf_workflows.store import Store
    from otf_workflows.testing.campaigns import synthetic_campaign
    from otf_workflows.testing.mongo import fresh_site

    with fresh_site(mongod, tmp_path_factory.mktemp("site")) as site:
        database = connect(site)
        written = Store(database)
        synthetic_campaign(written, name="finished")
        synthetic_campaign(written, name="running", seed=8, n_cycles=2, production=False)
        synthetic_campaign(written, name="submitted", n_cycles=0, production=False)
        yield written
        database.client.close()


@pytest.fixture(scope="module")
def report(store):
    return report_data(store, "finished")


def numbers_of(figures):
    """Every coordinate of every figure, as JSON brings it to a browser."""
    for figure in figures:
        plotly = json.loads(json.dumps(figure.to_plotly(), allow_nan=False))
        yield figure, plotly


# -- campaign ------------------------------------------------------------------------------------


def test_a_campaign_costs_on_its_page_what_it_costs_in_the_report(store, report):
    view = campaign_view(store, None, "finished")
    assert view.ledger.n_calls == report.costs.n_dft_calls
    assert view.ledger.core_hours == pytest.approx(report.costs.core_hours)
    assert view.ledger.counts == report.label_counts
    assert [line.fraction_above for line in view.cycles] == [
        cycle.fraction_above for cycle in report.cycles
    ]
    assert view.forecast is None, "nothing more is to come"


def test_labels_are_counted_for_the_cycle_that_asked(store):
    view = campaign_view(store, None, "finished")
    for line in view.cycles:
        assert line.ledger.counts == store.label_counts("finished", cycle=line.cycle)


def test_a_label_that_another_campaign_paid_for_is_reused_and_costs_nothing(store):
    label = store.labels(campaign="finished", states=[LabelState.DONE], limit=1)[0]
    before = campaign_view(store, None, "submitted").ledger
    store.want_label(
        label.key,
        label.frame,
        recipe=label.recipe,
        fingerprint=label.recipe_fingerprint,
        campaign="submitted",
        cycle=0,
    )
    after = campaign_view(store, None, "submitted").ledger
    assert (after.n_reused, after.core_hours) == (before.n_reused + 1, before.core_hours)
    assert after.n_calls == before.n_calls + len(label.tries)


def test_a_forecast_is_bounded_by_the_budgets_of_labels_and_of_core_hours(store):
    view = campaign_view(store, None, "running")
    settings = store.campaign("running").campaign
    room = settings["budget"]["max_labels"] - view.ledger.n_labels
    assert view.forecast.n_labels <= room + settings["production"]["audit_labels"]
    each = view.ledger.core_hours / (view.ledger.n_ended - view.ledger.n_reused)
    assert view.forecast.core_hours == pytest.approx(view.forecast.n_labels * each)
    campaign = dict(settings, budget=dict(settings["budget"], max_core_hours=0.2))
    store.set_campaign("running", campaign=campaign)
    try:
        poor = campaign_view(store, None, "running")
        assert poor.forecast.core_hours == pytest.approx(0.2 - view.ledger.core_hours)
        assert "budget of core-hours ends" in poor.forecast.sentence
    finally:
        store.set_campaign("running", campaign=settings)


def test_a_campaign_without_a_finished_label_does_not_guess_what_one_costs(store):
    forecast = campaign_view(store, None, "submitted").forecast
    assert forecast.core_hours is None
    assert "not known yet" in forecast.sentence


def test_decisions_are_sentences_with_the_newest_first(store):
    decisions = campaign_view(store, None, "finished").decisions
    assert decisions == sorted(decisions, key=lambda item: item.when, reverse=True)
    assert any("converged" in sentence for item in decisions for sentence in item.sentences)


def test_all_campaigns_are_listed_with_their_material(store):
    lines = {line.name: line for line in campaign_lines(store)}
    assert lines["finished"].formula == "LiCl"
    assert (lines["finished"].n_cycles, lines["submitted"].n_cycles) == (4, 0)
    assert lines["finished"].has_production
    assert not lines["running"].has_production


def figures_of(view):
    """Return the figures of a cycle by name."""
    from otf_workflows.dashboard.figures.cycle import figures

    return {figure.name: figure for figure in figures(view)}


# -- cycle ---------------------------------------------------------------------------------------


def test_picked_frames_carry_the_walker_and_step_they_were_met_at(store):
    view = cycle_view(store, "finished", 1)
    assert {pick.key for pick in view.picks} == set(view.document.selection.keys)
    label = store.label(view.picks[0].key)
    assert view.picks[0].step == label.frame.origin.step
    assert {pick.purpose for pick in view.picks} <= set(Purpose)
    assert view.neighbours == (0, 2)
    assert cycle_view(store, "finished", 0).neighbours == (None, 1)


def test_uncertainty_is_shown_as_it_was_read_in_that_cycle(store):
    document = store.cycle("finished", 2)
    doubled = document.calibration.model_copy(update={"factor": 2.0})
    store.set_cycle("finished", 2, calibration=doubled)
    try:
        view = cycle_view(store, "finished", 2)
    finally:
        store.set_cycle("finished", 2, calibration=document.calibration)
    table = json.loads(store.get_file(f"evaluation/{document.challenger_id}"))["incumbent/fresh"]
    assert list(view.keys) == table["keys"]
    raw = np.array(table["worst_sigma_eV_A"])
    np.testing.assert_allclose([point.sigma_eV_A for point in view.points], 2.0 * raw)
    np.testing.assert_allclose([p.error_eV_A for p in view.points], table["worst_error_eV_A"])
    assert all(point.calibrated for point in view.points)


def test_reliability_and_ranking_of_a_cycle_stand_beside_plain_force(store):
    view = cycle_view(store, "finished", 2)
    figure = figures_of(view)["reliability"]
    recorded = view.document.fresh_coverage
    assert figure.traces[1]["x"] == [50.0, 80.0, 90.0, 95.0]
    assert figure.traces[1]["y"][2] == pytest.approx(100 * recorded["reliability_90"], rel=1e-3)
    rows = [row[0] for row in figures_of(view)["calibration"].table.rows]
    assert sum("AUROC" in row for row in rows) == 1
    assert sum("plain |F|" in row for row in rows) == 2


def test_production_has_a_reliability_diagram_from_its_own_audit(store):
    document = store.cycles("finished")[-1]
    assert (document.kind, document.fresh_coverage) == ("production", {})
    figure = figures_of(cycle_view(store, "finished", document.cycle))["reliability"]
    assert len(figure.traces) == 2


def test_error_by_element_is_that_of_the_report(store, report):
    judged = evaluation(store, "evaluation/finished/final").judged
    for symbol, (before, after) in report.errors_by_element.items():
        for model, expected in ((report.pretrained_model, before), (report.final_model, after)):
            rmse, n_atoms = judged[model].rmse_by_element_eV_A[symbol]
            assert rmse == pytest.approx(expected)
            assert n_atoms == 4 * judged[model].n_frames


def test_many_force_components_become_cells_that_keep_their_number():
    rng = np.random.default_rng(0)
    dft = rng.normal(0.0, 1.0, 30_000)
    cloud = evaluations._cloud(dft, dft + rng.normal(0.0, 0.02, len(dft)))
    assert len(cloud.dft) == len(cloud.predicted) == len(cloud.counts) <= MAX_CLOUD
    assert sum(cloud.counts) == cloud.n == 30_000
    few = evaluations._cloud(dft[:100], dft[:100])
    assert few.dft == dft[:100].tolist()


def test_an_evaluation_file_is_read_once(store, monkeypatch):
    model = store.models("finished")[-1].model_id
    first = evaluation(store, f"evaluation/{model}")
    monkeypatch.setattr(type(store), "get_file", lambda *_: pytest.fail("read again"))
    assert evaluation(store, f"evaluation/{model}") is first
    assert evaluation(store, "evaluation/of-nothing").judged == {}


def test_a_large_file_is_read_by_another_process_to_the_same_end(store, monkeypatch):
    content = store.get_file(f"evaluation/{store.models('finished')[-1].model_id}")
    keys = evaluations.keys_in(content)
    tables = json.loads(content)
    assert set(keys) == {key for table in tables.values() for key in table["keys"]}
    numbers = {label.key: label.frame.numbers for label in store.labels(keys=keys)}
    here = evaluations.boiled_down(content, numbers)
    monkeypatch.setattr(evaluations, "LARGE_BYTES", 1000)
    assert evaluations.boiled_down(content, numbers) == here
    with pytest.raises(OtfError, match="JSONDecodeError"):
        evaluations.boiled_down(content[:-9], numbers)


def test_what_is_not_there_is_named(store):
    with pytest.raises(NotFoundError, match="no cycle 9"):
        cycle_view(store, "finished", 9)
    with pytest.raises(NotFoundError, match="did you mean 'finished'"):
        campaign_view(store, None, "finishd")
    with pytest.raises(NotFoundError, match="no production run"):
        production_view(store, "running")


# -- models --------------------------------------------------------------------------------------


def test_models_have_the_status_that_the_gate_gave_them(store):
    view = models_view(store, campaign="finished")
    status = {model.cycle: view.status(model) for model in view.models}
    assert status == {None: "pretrained", 0: "promoted", 1: "promoted", 2: "rejected", 3: "in use"}
    assert {data.campaign for data in view.datasets} == {"finished"}
    assert len(models_view(store).models) > len(view.models)


def test_a_model_leads_back_to_its_labels(store):
    model = store.models("finished")[-1]
    view = model_view(store, model.model_id)
    entries = store.dataset("finished", model.dataset_hash).entries
    assert {line.key for line in view.labels} == {entry["key"] for entry in entries}
    assert view.dataset.splits == {
        split: sum(entry["split"] == split for entry in entries) for split in Split
    }
    assert [item.model_id for item in view.ancestors] == ["chgnet-0.3.0"]
    assert [item.kind for item in view.properties] == ["production"]
    assert model.model_id in model_view(store, "chgnet-0.3.0").children


def test_a_data_set_as_a_file_is_what_otf_export_writes(store, tmp_path):
    from otf_workflows.cli.export import labelled_atoms
    from otf_workflows.label_export import write_extxyz

    dataset = store.latest_dataset("finished")
    mine = read(io.StringIO("".join(extxyz_chunks(store, dataset))), ":", format="extxyz")
    keys = [entry["key"] for entry in dataset.entries]
    assert [atoms.info["label_key"] for atoms in mine] == sorted(keys)
    frames = {atoms.info["label_key"]: atoms for atoms in labelled_atoms(store, "finished")}
    write_extxyz(tmp_path / "cli.extxyz", [frames[key] for key in sorted(keys)])
    theirs = read(tmp_path / "cli.extxyz", ":")
    for a, b in zip(mine, theirs, strict=True):
        assert a == b
        np.testing.assert_array_equal(a.arrays["REF_forces"], b.arrays["REF_forces"])
        np.testing.assert_array_equal(a.info.pop("REF_stress"), b.info.pop("REF_stress"))
        assert a.info == b.info
    view = dataset_view(store, "finished", dataset.hash)
    assert sum(view.n_by_purpose.values()) == view.dataset.n_labels == len(mine)


# -- production ----------------------------------------------------------------------------------


def test_production_says_what_the_report_says(store, report):
    view = production_view(store, "finished")
    assert view.summary == report.production
    assert [item.element for item in view.diffusivities] == ["Cl", "Li"]
    assert all(item.value is None for item in view.diffusivities), "a crystal that only vibrates"
    assert [line.campaign for line in productions(store)] == ["finished"]


def test_frames_of_a_run_lie_inside_their_cells_and_keep_their_steps(store):
    run = production_trajectory(store, "finished")
    assert run.positions_A.shape == (60, 64, 3)
    fractions = np.einsum("fai,fij->faj", run.positions_A, np.linalg.inv(run.cells_A))
    assert fractions.min() > -1e-6
    assert fractions.max() < 1 + 1e-6
    assert (run.steps[0], run.steps[-1]) == (0, 590)
    assert run.time_ps[-1] == pytest.approx(590 * 2.0 / 1000)
    sent = run.to_json()
    assert len(sent["frames"][5]["positions"]) == 3 * len(sent["symbols"])
    back = read(io.StringIO(run.to_extxyz()), ":", format="extxyz")
    assert len(back) == 60
    assert back[7].info["step"] == 70
    np.testing.assert_allclose(back[7].positions, run.positions_A[7], atol=1e-6)


def test_a_walker_s_frames_begin_where_the_walker_did(store):
    segment = store.cycle("finished", 2).walkers[1]
    run = walker_trajectory(store, "finished", 2, 1)
    assert run.steps[0] == segment["first_step"]
    with pytest.raises(NotFoundError, match="no walker 9"):
        walker_trajectory(store, "finished", 2, 9)


def test_long_runs_are_thinned_from_the_first_frame_to_the_last():
    rng = np.random.default_rng(0)
    arrays = {
        "numbers": np.array([3, 17]),
        "steps": np.arange(0, 50_000, 10),
        "cells_A": np.repeat(np.diag([4.0, 5.0, 6.0])[None], 5000, axis=0),
        "positions_A": rng.uniform(-20, 20, (5000, 2, 3)),
    }
    run = thinned(**arrays, timestep_fs=1.0)
    assert len(run.steps) == MAX_FRAMES
    assert (run.steps[0], run.steps[-1], run.n_recorded) == (0, 49_990, 5000)
    big = {**arrays, "numbers": np.full(6000, 3), "positions_A": np.zeros((5000, 6000, 3))}
    with pytest.raises(InputError, match="too many to draw"):
        thinned(**big, timestep_fs=1.0)


def test_an_output_written_by_jobflow_itself_is_read(store):
    from otf_workflows.connection import job_store
    from otf_workflows.exploration import encode_trajectory
    from otf_workflows.schemas import BLOB_KEYS
    from otf_workflows.settings import Site

    frame = Frame.model_validate(store.campaign("finished").campaign["structure"])
    atoms = [frame.to_atoms() for _ in range(3)]
    for n, one in enumerate(atoms):
        one.positions += 0.1 * n
        one.info["step"] = 10 * n
    jobs = job_store(Site(), store.database)
    output = {"blob": {"trajectory": encode_trajectory(atoms)}, "n_steps": 30}
    jobs.update({"uuid": "real", "index": 1, "output": output}, save={"data": BLOB_KEYS})
    run = read_trajectory(store, "real", key="trajectory", timestep_fs=2.0)
    assert run.steps == [0, 10, 20]
    np.testing.assert_allclose(run.positions_A[1][0], atoms[1].positions[0], atol=1e-5)
    with pytest.raises(NotFoundError, match="no frame"):
        read_trajectory(store, "real", key="audit_trajectory", timestep_fs=2.0)
    with pytest.raises(NotFoundError, match="not in the job store"):
        read_trajectory(store, "unreal", key="trajectory", timestep_fs=2.0)


def test_a_long_run_is_shown_from_the_preview_that_its_last_job_stored(store):
    from otf_workflows.testing.trajectories import synthetic_trajectory

    frame = Frame.model_validate(store.campaign("finished").campaign["structure"])
    text = synthetic_trajectory(np.random.default_rng(0), frame, n_frames=900)
    store.add_preview("long", thin_trajectory(text, n_most=50))
    run = read_trajectory(store, "long", key="trajectory", timestep_fs=2.0)
    assert (len(run.steps), run.steps[0], run.steps[-1]) == (50, 0, 8990)


# -- figures -------------------------------------------------------------------------------------


def all_figures(store, name):
    view = campaign_view(store, None, name)
    yield from campaign_figures.figures(view)
    for line in view.cycles:
        yield from cycle_figures.figures(cycle_view(store, name, line.cycle))
    if name == "finished":
        yield from production_figures.figures(production_view(store, name))


@pytest.mark.parametrize("name", ["finished", "running", "submitted"])
def test_every_figure_is_small_and_names_its_units_or_says_why_it_is_empty(store, name):
    seen = 0
    for figure, plotly in numbers_of(all_figures(store, name)):
        seen += 1
        assert figure.n_points <= MAX_POINTS, figure.name
        assert plotly["layout"]["uirevision"] == figure.name
        if not figure.traces:
            assert figure.empty
            continue
        axes = [plotly["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
        categories = {"cycle", "element", "epoch", "", "g(r)", "loss"}
        assert all("(" in text or text in categories or "core-hours" in text or "K / T" in text
                   for text in axes), axes  # fmt: skip
        for trace in plotly["data"]:
            assert len(trace["x"]) == len(trace["y"])
    assert seen >= 4


def test_every_drawn_figure_has_its_numbers_as_a_table(store):
    for figure in all_figures(store, "finished"):
        if figure.traces:
            assert figure.table is not None, figure.name
            assert figure.table.rows, figure.name
            widths = {len(row) for row in figure.table.rows}
            assert widths == {len(figure.table.columns)}, figure.name


def test_no_figure_sets_a_colour_that_dark_pages_would_swallow(store):
    for figure, plotly in numbers_of(all_figures(store, "finished")):
        text = json.dumps(plotly)
        assert not re.search(r'"(#000000|#ffffff|black|white)"', text), figure.name
        assert not {"paper_bgcolor", "plot_bgcolor", "template"} & set(plotly["layout"])


def test_a_rejected_model_is_drawn_hollow(store):
    figure = campaign_figures.errors(campaign_view(store, None, "finished"))
    new = next(trace for trace in figure.traces if trace["name"].startswith("new model"))
    assert [symbol.endswith("-open") for symbol in new["marker"]["symbol"]] == [
        False, False, True, False,
    ]  # fmt: skip
    low = store.cycle("finished", 0).errors["challenger/audit"]
    assert new["error_y"]["array"][0] == pytest.approx(
        low.force_rmse_high_eV_A - low.force_rmse_eV_A, rel=1e-3
    )


def test_a_stopped_walker_ends_with_a_cross_and_its_picks_are_marked(store):
    figure = cycle_figures.uncertainty(cycle_view(store, "finished", 0))
    stopped = [t for t in figure.traces if t["mode"] == "lines+markers"]
    assert len(stopped) == 1
    assert stopped[0]["marker"]["size"][-1] > 0
    assert {t["name"] for t in figure.traces if t["mode"] == "markers"} >= {
        "picked: audit (random)"
    }


def test_hundreds_of_walkers_and_picks_stay_one_small_figure(store):
    view = cycle_view(store, "finished", 1)
    segment = view.walkers[0]
    steps = list(range(1000))
    many = [
        segment.model_copy(
            update={"walker": n, "steps": steps, "sigmas_eV_A": [0.01 + n * 1e-4] * 1000}
        )
        for n in range(300)
    ]
    crowded = replace(view, walkers=many, picks=list(view.picks) * 100)
    figure = cycle_figures.uncertainty(crowded)
    assert figure.n_points <= MAX_POINTS
    lines = [trace for trace in figure.traces if trace["mode"] == "lines"]
    assert min(min(trace["y"]) for trace in lines) == pytest.approx(0.01 + 240 * 1e-4)
    assert "The 60 worst of 300 walkers." in figure.note
    assert len(figure.table.rows) == 300


def test_a_campaign_of_many_cycles_keeps_a_readable_timeline(store):
    view = campaign_view(store, None, "finished")
    many = replace(view, cycles=[replace(view.cycles[1], cycle=n) for n in range(100)])
    figure = campaign_figures.timeline(many)
    assert {y for trace in figure.traces for y in trace["y"]} == {
        f"cycle {n}" for n in range(76, 100)
    }
    assert "newest 24" in figure.note


def test_thinning_keeps_the_ends_of_every_stretch():
    x = np.arange(100_000)
    y = np.zeros(len(x))
    y[61_234], y[7] = 5.0, -3.0
    xs, ys = thin(x, y, n_most=500)
    assert len(xs) <= 500
    assert max(ys) == 5.0
    assert min(ys) == -3.0
    assert thin([1, 2], [3, 4], n_most=500) == ([1.0, 2.0], [3.0, 4.0])


# -- still pictures ------------------------------------------------------------------------------


def test_a_still_picture_shows_every_atom_and_escapes_its_words(store):
    frame = Frame.model_validate(store.campaign("finished").campaign["structure"])
    svg = still(frame, name="a", words='<script>"x"')
    assert svg.count("<circle") == 8
    assert svg.count('class="edge"') == 12
    assert "<script>" not in svg
    assert {"a-Li", "a-Cl"} == set(re.findall(r'id="([^"]+)"', svg))
    large = Frame.from_atoms(frame.to_atoms().repeat((4, 4, 4)))
    assert still(large, name="b", words="large") is None
