"""A campaign from forms: the schema's own fields and limits, the file it writes, its submission."""

import re

import pytest
import yaml

from otf_workflows.campaign import Campaign, Exploration
from otf_workflows.dashboard.campaign_form import (
    MAIN,
    CampaignForm,
    campaign_data,
    field_problems,
    recipe_fields,
)
from otf_workflows.dashboard.drafts import new_draft, open_draft
from otf_workflows.dashboard.forms import FieldKind, form_fields, sections, typed_values
from otf_workflows.errors import InputError, NotFoundError
from otf_workflows.labelers import available_codes
from otf_workflows.store import Store
from otf_workflows.validation import submodel

POSCAR = """Cu
1.0
3.62 0 0
0 3.62 0
0 0 3.62
Cu
4
Direct
0 0 0
0 0.5 0.5
0.5 0 0.5
0.5 0.5 0
"""
TYPED = {
    "name": "from-the-page",
    "potential": "toy-lj",
    "tolerance_eV_A": "0.2",
    "seed": "0",
    "labels.code": "ase",
    "labels.ase.calculator": "emt",
    "labels.ase.use_stress": "true",
    "exploration.temperatures_K": "300, 600",
    "exploration.supercell": "1 1 1",
    "budget.max_cycles": "2",
}


# -- forms -----------------------------------------------------------------------------------------


def shown():
    form = CampaignForm.of({})
    groups = [field for group in form.groups for field in (*group.main, *group.more)]
    return [*form.top, *groups]


def test_the_form_asks_for_every_key_of_the_file_but_sections_within_sections():
    named = {field.name for field in shown()}
    wanted = {
        key for key in Campaign.model_fields
        if key not in {"structure", "potential", "labels"} and key not in sections(Campaign)
    } | {
        f"{section}.{key}"
        for section, model in sections(Campaign).items() if section != "structure"
        for key, field in model.model_fields.items() if submodel(field.annotation) is None
    }  # fmt: skip
    assert named == wanted
    assert named >= MAIN


def test_help_limits_and_default_are_those_of_the_model():
    fields = {field.key: field for field in form_fields(Exploration, prefix="exploration.")}
    step = fields["timestep_fs"]
    assert step.help == Exploration.model_fields["timestep_fs"].description
    assert (step.kind, step.default, step.least, step.most) == (FieldKind.NUMBER, "2", 0, 10)
    assert step.limits == "above 0 and at most 10"
    assert fields["temperatures_K"].default == "300, 600"
    assert fields["pressure_GPa"].default == ""


@pytest.mark.parametrize("code", available_codes())
def test_every_code_has_a_form_and_its_defaults_are_understood(code):
    fields = recipe_fields(code)
    typed = {field.name: field.default for field in fields if field.default}
    typed = {name: text for name, text in typed.items() if text != "false"}
    assert typed_values(fields, typed) == {}


def test_the_defaults_of_the_form_are_the_defaults_of_the_file():
    typed = {field.name: field.default for field in shown() if field.default not in {"", "false"}}
    typed |= TYPED | {"with_production": "true"}
    data = campaign_data(typed, structure="POSCAR")
    assert field_problems(data) == {}
    plain = {"name": "from-the-page", "tolerance_eV_A": 0.2, "potential": "toy-lj",
             "labels": data["labels"], "budget": {"max_cycles": 2},
             "structure": {"numbers": [3], "cell_A": [[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]],
                           "positions_A": [[0.0, 0, 0]]}}  # fmt: skip
    typed_in = Campaign.model_validate({**data, "structure": plain["structure"]})
    assert typed_in == Campaign.model_validate(plain)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("exploration.timestep_fs", "-2", "must be above 0 and at most 10"),
        ("exploration.timestep_fs", "fast", "must be a number"),
        ("exploration.temperatures_K", "300, hot", "must be a number"),
        ("exploration.temperatures_K", "300, -5", "above 0"),
        ("name", "no spaces allowed", "letters, digits"),
        ("name", "", "may hold letters"),
        ("labels.code", "gaussian", "choose the code"),
        ("potential", "gap", "choose a universal potential"),
        ("labels.ase.calculator", "", "missing"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(name, text, words):
    data = campaign_data({**TYPED, name: text}, structure="POSCAR")
    problems = field_problems(data)
    assert words in problems[name]
    assert set(problems) == {name}


def test_numbers_may_be_typed_in_any_usual_way():
    fields = form_fields(Exploration, prefix="exploration.")
    for text in ("2, 2, 1", "2 2 1", "2×2×1", "[2, 2, 1]", "2;2;1"):
        assert typed_values(fields, {"exploration.supercell": text})["supercell"] == [2, 2, 1]
    for text in ("1e-3", "0.001"):
        typed = {"exploration.friction_per_fs": text, "exploration.early_checks": "true"}
        assert typed_values(fields, typed) == {"friction_per_fs": 0.001}


def test_a_missing_structure_is_said():
    assert "structure" in field_problems(campaign_data(TYPED, structure=""))


# -- drafts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "x.traj", "run.py", "POSCAR.py/../x.json", "", "POSCARX"]
)
def test_only_structure_files_are_taken(site, name):
    draft = new_draft(site)
    with pytest.raises(InputError):
        draft.put_structure(name, POSCAR.encode())
    assert list(draft.folder.iterdir()) == []


def test_a_draft_is_private_and_found_again_by_its_number_only(site):
    draft = new_draft(site)
    draft.put_structure("my.cif", b"x")
    draft.put_structure("../CONTCAR", POSCAR.encode())
    assert [file.name for file in draft.folder.iterdir()] == ["POSCAR"]
    assert draft.folder.stat().st_mode & 0o777 == 0o700
    assert open_draft(site, draft.draft_id).structure == draft.structure
    for wrong in ("..", "../drafts/" + draft.draft_id, "0" * 16):
        with pytest.raises(NotFoundError):
            open_draft(site, wrong)


# -- pages -----------------------------------------------------------------------------------------


@pytest.fixture
def page(visit, acting):
    return visit(acting)


def send(page, typed=TYPED, structure=POSCAR):
    files = {"structure": ("POSCAR", structure)} if structure else None
    return page.post("/new", data=typed, files=files)


def test_a_typed_campaign_is_shown_as_a_file_and_submitted(page, site, database):
    store = Store(database)
    sent = send(page)
    assert sent.status_code == 303, re.findall(r'class="problem[^>]*>([^<]+)', sent.text)
    address = sent.headers["location"]
    shown = page.get(address)
    assert "Cu4" in shown.text
    assert "otf submit" in shown.text
    draft = open_draft(site, address.rsplit("/", 1)[1])
    written = yaml.safe_load(draft.file.read_text())
    assert written["labels"] == {"code": "ase", "calculator": "emt"}
    assert written["exploration"]["temperatures_K"] == [300, 600]
    assert written["production"] is None
    assert store.campaigns() == []
    wrong = page.post(f"{address}/submit", data={"digest": "other"})
    assert wrong.status_code == 409
    assert store.campaigns() == []
    done = page.post(f"{address}/submit", data={"digest": draft.report.digest})
    assert done.headers["location"] == "/campaigns/from-the-page"
    campaign = store.campaign("from-the-page")
    assert campaign.digest == Campaign.from_file(draft.file).digest == draft.report.digest
    assert len(store.cycles("from-the-page")) == 1
    events = {event.what: event.who for event in store.events("from-the-page")}
    assert events["campaign submitted"].endswith("(dashboard)")
    # Going back, changing something: the form stands as it was typed, the structure is kept.
    again = page.get("/new", params={"draft": draft.draft_id})
    assert 'value="from-the-page"' in again.text
    other = send(page, {**TYPED, "draft": draft.draft_id, "seed": "1"}, structure=None)
    assert other.status_code == 303
    assert "exists and has other settings" in page.get(other.headers["location"]).text


def test_mistakes_come_back_at_their_fields_with_all_that_was_typed(page):
    sent = send(page, {**TYPED, "exploration.timestep_fs": "-2", "name": '"><script>x</script>'})
    assert sent.status_code == 422
    assert 'id="problem-exploration.timestep_fs"' in sent.text
    assert "must be above 0 and at most 10" in sent.text
    assert 'value="-2"' in sent.text
    assert "<script>x" not in sent.text
    assert "Kept from before" in sent.text


def test_no_browser_can_name_code_to_run(page, site, tmp_path):
    mark = tmp_path / "ran"
    attack = {
        **TYPED,
        "labels.ase.calculator": "subprocess.Popen",
        "labels.ase.kwargs": f"{{args: [touch, '{mark}']}}",
    }
    sent = send(page, attack)
    assert sent.status_code == 422
    assert "takes a campaign file of your own" in sent.text
    draft_id = re.search(r'name="draft" value="(\w+)"', sent.text)[1]
    assert not open_draft(site, draft_id).file.exists()
    assert page.get(f"/new/{draft_id}").status_code == 200
    assert page.post(f"/new/{draft_id}/submit", data={"digest": "x"}).status_code == 409
    assert not mark.exists()


def test_a_structure_that_cannot_be_used_is_said(page):
    sent = send(page, structure=POSCAR.replace("Direct", "Nonsense").replace("0.5", "x"))
    assert sent.status_code == 422
    assert "cannot be read" in sent.text


def test_a_page_that_only_looks_has_no_form(visit, acting):
    page = visit()
    assert page.get("/new").status_code == 403
    assert send(page).status_code == 403
    assert 'href="/new"' not in page.get("/labels").text
    assert 'href="/new"' in visit(acting).get("/labels").text
