"""The page as a whole, and the data behind it, from documents in a real database."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from otf_workflows.errors import ConfigurationError, NotFoundError
from otf_workflows.report import render, report_data, write_report
from otf_workflows.types import CampaignState, LabelState

pytestmark = pytest.mark.integration
VOID = {"meta", "br", "link", "hr", "img", "rect", "path", "use", "image", "circle"}


class Page(HTMLParser):
    """Collects tags, ids and text, and notes unbalanced tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def finished(store) -> str:
    return render(report_data(store, "finished"))


@pytest.fixture(scope="module")
def page(finished) -> Page:
    return Page(finished)


def test_every_part_of_a_finished_campaign_is_on_the_page(page):
    headings = (
        *("Force error on labels", "DFT calls", "Wall time", "These numbers hold under"),
        *("Before and after", "Learning, cycle by cycle", "Uncertainty along the walkers"),
        *("Production", "Labels", "Models", "What happened", "Settings, versions, citations"),
    )
    assert [h for h in headings if h not in page.text] == []
    names = {attrs["aria-label"] for tag, attrs in page.tags if tag == "svg" and "role" in attrs}
    # Shares of time, parity (3), learning, σ, reliability, walkers (4), RDF, MSD, production (2).
    assert len(names) == 15
    assert "missing" not in {attrs.get("class") for _, attrs in page.tags}


def test_the_page_needs_nothing_from_outside_and_no_script(page, finished):
    assert "script" not in {tag for tag, _ in page.tags}
    links = [v for _, a in page.tags for k, v in a.items() if k in {"src", "href", "xlink:href"}]
    assert [link for link in links if not link.startswith(("#", "data:image/png;"))] == []
    assert "@import" not in finished
    assert re.search(r"url\((?!#)", finished) is None
    assert not any(k.startswith("on") for _, attrs in page.tags for k in attrs)


def test_a_strict_policy_permits_the_page(page, finished):
    import base64
    import hashlib

    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    style = re.search(r"<style>(.*?)</style>", finished, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert not any("style" in attrs for _, attrs in page.tags)
    assert sum(tag == "style" for tag, _ in page.tags) == 1


def test_tags_are_balanced_and_ids_unique(page):
    assert page.faults == []
    assert page.open == []
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = {a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")}
    assert wanted <= set(ids)


def test_the_page_is_small(finished):
    assert len(finished.encode()) < 2_000_000


def test_headline_is_that_of_the_evaluation_on_all_audit_labels(store, page):
    data = report_data(store, "finished")
    production = store.cycles("finished")[-1]
    final, before = data.errors.final, data.errors.pretrained
    assert final == production.errors[f"{data.final_model}/audit"]
    assert before == production.errors["chgnet-0.3.0/audit"]
    assert final.n_frames == 16
    assert final.force_rmse_eV_A < before.force_rmse_eV_A / 3
    assert f"{final.force_rmse_eV_A:.3f}" in page.text
    assert data.errors.n_trained_on == 0


def test_headline_says_so_if_audit_labels_were_trained_on(store):
    data = report_data(store, "finished")
    model = store.model(data.final_model)
    key = data.curves.after.keys[0]
    collection = store.database.otf_datasets
    query = {"campaign": "finished", "hash": model.dataset_hash}
    entries = store.dataset("finished", model.dataset_hash).entries
    spoiled = [e if e["key"] != key else {"key": key, "split": "train"} for e in entries]
    if spoiled == entries:
        spoiled = [*entries, {"key": key, "split": "train"}]
    collection.update_one(query, {"$set": {"entries": spoiled}})
    try:
        data = report_data(store, "finished")
        assert data.errors.n_trained_on == 1
        assert "cannot be trusted" in render(data)
    finally:
        collection.update_one(query, {"$set": {"entries": entries}})


def test_dft_calls_count_every_try_and_md_only_trusted_steps(store, page):
    costs = report_data(store, "finished").costs
    labels = store.labels(campaign="finished")
    assert costs.n_labels == 38
    assert costs.n_dft_calls == 38 + 2 * 2 == sum(len(label.attempts) for label in labels)
    assert costs.n_md_rewound == 60
    assert costs.n_md == costs.n_md_exploration + costs.n_md_production == 3680 + 2000
    assert costs.aimd_ratio == pytest.approx(5680 / 42)
    assert "(3\u202f680 + 2\u202f000) / 42 = 135" in page.text


def test_shares_of_wall_time_add_up(store):
    wall = report_data(store, "finished").costs.wall
    assert sum(wall.shares.values()) == pytest.approx(1.0)
    assert set(wall.shares) == {
        *("exploration", "production", "labelling", "training", "orchestration"),
    }


def test_labels_another_campaign_paid_for_are_told_apart(store):
    label = store.labels(campaign="running", states=[LabelState.DONE], limit=1)[0]
    before = report_data(store, "submitted").costs
    wish = {"campaign": "submitted", "cycle": 0, "purpose": "uncertain"}
    try:
        store.database.otf_labels.update_one({"key": label.key}, {"$push": {"wanted_by": wish}})
        data = report_data(store, "submitted")
        assert (before.n_labels_reused, data.costs.n_labels_reused) == (0, 1)
        assert data.costs.n_dft_calls == 1
        assert data.costs.core_hours == 0
        assert "not computed again" in " ".join(data.conditions)
    finally:
        store.database.otf_labels.update_one({"key": label.key}, {"$pull": {"wanted_by": wish}})


def test_uncertainty_is_calibrated_and_only_of_unseen_frames(store):
    data = report_data(store, "finished")
    points = data.curves.uncertainty
    assert {p.calibrated for p in points if p.cycle == 0} == {False}
    assert {p.calibrated for p in points if p.cycle > 0} == {True}
    production = [p for p in points if p.production]
    assert len(production) == 4
    table = json.loads(store.get_file("evaluation/finished/final"))[data.final_model]
    factor = store.model(data.final_model).calibration.factor
    raw = dict(zip(table["worst_error_eV_A"], table["worst_sigma_eV_A"], strict=True))
    assert all(p.sigma_eV_A == pytest.approx(factor * raw[p.error_eV_A]) for p in production)
    calibrated = [p for p in points if p.calibrated]
    assert data.coverage.n == len(calibrated)
    covered = sum(p.error_eV_A <= p.sigma_eV_A for p in calibrated)
    assert data.coverage.measured == pytest.approx(covered / len(calibrated))


def test_each_model_tells_what_its_uncertainty_covered_of_the_labels_it_led_to(store):
    data = report_data(store, "finished")
    cycle = next(c for c in store.cycles("finished") if c.cycle == 1)
    said = next(m.calibration for m in data.models if m.model_id == cycle.incumbent_id)
    assert said.endswith(
        f"covered {cycle.fresh_coverage['coverage']:.0%} of the next ones".replace("%", "\u202f%")
    )


def test_reliability_and_ranking_stand_beside_plain_force(store, page):
    coverage = report_data(store, "finished").coverage
    assert list(coverage.levels) == ["50", "80", "90", "95"]
    assert list(coverage.levels.values()) == sorted(coverage.levels.values())
    assert coverage.levels["90"] == pytest.approx(coverage.measured, abs=0.05)
    assert {"auroc", "auroc_force", "spearman", "spearman_force"} <= coverage.model_fields_set
    for words in ("AUROC", "Spearman", "plain |F|", "errors below the 95 % multiple"):
        assert words in page.text
    assert "worst of 8 atoms, as in the labelled cell" in page.text


def test_decision_log_tells_every_verdict_in_order(store, page):
    data = report_data(store, "finished")
    moments = [entry.when for entry in data.decisions]
    assert moments == sorted(moments)
    for cycle in store.cycles("finished"):
        if cycle.verdict:
            assert cycle.verdict.sentences[0] in page.text


def test_failed_labels_stand_there_with_cause_and_last_lines(page, store):
    failed = store.labels(campaign="finished", states=[LabelState.FAILED])
    assert len(failed) == 2
    for label in failed:
        assert label.key[:10] in page.text
        assert label.reason in page.text
    assert "estimated scf accuracy" in page.text


def test_a_running_campaign_says_what_is_missing(store):
    data = report_data(store, "running")
    page = Page(render(data))
    assert page.faults == []
    assert "This campaign is not over" in page.text
    assert "The production run has not finished" in page.text
    assert data.errors.final == store.cycles("running")[1].errors["challenger/audit"]
    assert data.errors.pretrained == store.cycles("running")[1].errors["pretrained/audit"]
    assert "of the cycles so far" in page.text


def test_a_campaign_just_submitted_says_what_is_missing(store):
    data = report_data(store, "submitted")
    page = Page(render(data))
    assert page.faults == []
    for sentence in (
        *("No audit label has been compared", "No MD step has been finished yet"),
        *("no learning curve", "No walker has finished", "No label has been asked for"),
    ):
        assert sentence in page.text
    assert data.costs.aimd_ratio is None


def test_a_rejected_newest_model_does_not_become_the_headline(store):
    campaign = store.campaign("running")
    cycle = store.cycles("running")[1]
    rejected = cycle.verdict.model_copy(update={"promoted": False})
    try:
        store.set_cycle("running", 1, verdict=rejected)
        store.set_campaign("running", incumbent_id=cycle.incumbent_id)
        data = report_data(store, "running")
        assert data.errors.final == cycle.errors["incumbent/audit"]
        assert data.curves.after.model_id == cycle.incumbent_id
    finally:
        store.set_cycle("running", 1, verdict=cycle.verdict)
        store.set_campaign("running", incumbent_id=campaign.incumbent_id)


def test_a_failed_campaign_is_over_and_says_why(store):
    try:
        store.set_campaign("running", state=CampaignState.FAILED, reason="the disk is full")
        data = report_data(store, "running")
        page = Page(render(data))
        assert data.finished == store.events("running")[0].when
        assert "The disk is full" in page.text
        assert "campaign is not over" not in page.text
        assert "There was no production run" in page.text
    finally:
        store.set_campaign("running", state=CampaignState.RUNNING, reason="")


def test_walkers_that_were_always_rewound_are_not_called_idle(store):
    walkers = store.cycles("running")[0].walkers
    rewound = [walker | {"n_steps": 0} for walker in walkers]
    both = [store.cycles("running")[i].walkers for i in (0, 1)]
    try:
        for cycle in (0, 1):
            store.set_cycle("running", cycle, walkers=rewound)
        html = render(report_data(store, "running"))
        assert "MD steps so far were rewound" in html
        assert "No MD step has been finished" not in html
    finally:
        for cycle, kept in enumerate(both):
            store.set_cycle("running", cycle, walkers=kept)


def test_text_of_users_and_programs_is_escaped(store):
    data = report_data(store, "running")
    nasty = "<img src=x onerror=alert(1)> & 'more'"
    for item in (data, data.failed_labels[0]):
        item.reason = nasty
    data.failed_labels[0].last_lines = [nasty]
    data.decisions[0].sentences = [nasty]
    data.settings = data.settings | {"name": nasty}
    html = render(data)
    assert "<img" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") == 5


def test_data_can_be_printed_as_json_without_the_arrays_of_figures(store):
    text = report_data(store, "finished").model_dump_json()
    content = json.loads(text)
    assert content["version"] == "otf.report/1"
    assert content["state"] == CampaignState.CONVERGED
    assert "curves" not in content
    assert len(text) < 100_000


def test_the_file_is_written_in_one_step(store, tmp_path):
    target = tmp_path / "report.html"
    target.write_text("old")
    written = write_report(store, "submitted", target)
    assert written == target
    assert target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_that_is_not_there_is_a_clear_error(store, tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_report(store, "submitted", tmp_path / "none" / "report.html")


def test_an_unknown_campaign_is_a_clear_error(store, tmp_path):
    with pytest.raises(NotFoundError, match="did you mean 'finished'"):
        write_report(store, "finishd", tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_importing_the_report_loads_nothing_heavy():
    code = (
        "import sys, otf_workflows.report; "
        "heavy = {'torch', 'chgnet', 'pymatgen', 'matplotlib', 'fireworks', 'jobflow', 'scipy'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
