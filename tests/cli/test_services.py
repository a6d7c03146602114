"""`otf up`, `otf down` and `otf doctor`."""

import pytest
import yaml

from otf_workflows import preflight


@pytest.fixture
def idle_site(site, monkeypatch):
    """The site with one control worker only: quick to start."""
    content = yaml.safe_load(site.source.read_text())
    content["workers"] = {"control": {"count": 1}}
    file = site.source.with_name("idle.yaml")
    file.write_text(yaml.safe_dump(content))
    monkeypatch.setenv("OTF_SITE_FILE", str(file))
    return file


def test_services_go_up_once_and_down_once(otf, idle_site):
    try:
        first = otf("up")
        assert first.code == 0, first.err
        assert first.out.startswith("control-")
        again = otf("up", "--json").json()
        assert again["schema"] == "otf.services/1"
        assert again["workers"] == first.out.split()
    finally:
        down = otf("down")
    assert down.code == 0
    assert "stopped" in down.err
    assert "Nothing was running" in otf("down").err


@pytest.fixture
def checks(monkeypatch):
    found = []
    monkeypatch.setattr(preflight, "all_checks", lambda *_, **__: iter(found))
    return found


def test_a_doctor_who_finds_nothing_wrong_exits_with_0(otf, checks):
    checks.append(preflight.Check(name="disk", ok=True, detail="enough"))
    done = otf("doctor")
    assert done.code == 0
    assert "✔ disk: enough" in done.out


def test_a_doctor_names_the_fix_and_exits_with_the_code_of_the_first_problem(otf, checks):
    checks.append(
        preflight.Check(name="database", ok=False, detail="silent", hint="otf up", exit_code=4)
    )
    checks.append(preflight.Check(name="disk", ok=False, detail="full", hint="free some"))
    done = otf("doctor")
    assert done.code == 4
    assert "✘ database: silent\n    fix: otf up" in done.out
    found = otf("doctor", "--json")
    assert found.code == 4
    assert found.json()["ok"] is False
    assert [check["name"] for check in found.json()["checks"]][1:] == ["database", "disk"]


def test_advice_is_shown_and_fails_nothing(otf, checks):
    checks.append(preflight.Check(name="encryption", ok=True, detail="none", hint="use TLS"))
    done = otf("doctor")
    assert done.code == 0
    assert "! encryption: none\n    advice: use TLS" in done.out


def test_the_queue_test_is_asked_for(otf, monkeypatch):
    asked = {}

    def record(*_, **options):
        asked.update(options)
        return iter([])

    monkeypatch.setattr(preflight, "all_checks", record)
    assert otf("doctor").code == 0
    assert asked["queue_test"] is False
    assert otf("doctor", "--queue-test", "--wait", "7").code == 0
    assert asked["queue_test"] is True
    assert asked["wait_s"] == 7.0


def test_a_doctor_reads_the_campaign_first(otf, tmp_path):
    assert otf("doctor", tmp_path / "nothing.yaml").code == 2


def test_the_checks_of_a_machine_with_nothing_set_up(monkeypatch):
    from otf_workflows.settings import Site

    monkeypatch.setattr(preflight, "job_modules", lambda: named("job modules"))
    monkeypatch.setattr(preflight, "potential_loads", named)
    found = {check.name: check for check in preflight.all_checks(Site())}
    assert {"site file", "state folder", "disk", "database program", "database"} <= set(found)
    assert {"FireWorks settings", "jobflow settings", "GPU"} <= set(found)
    assert "not started" in found["database"].detail


def test_the_checks_of_a_running_site_are_all_right(site, monkeypatch):
    monkeypatch.setattr(preflight, "job_modules", lambda: named("job modules"))
    monkeypatch.setattr(preflight, "potential_loads", named)
    found = list(preflight.all_checks(site))
    assert all(check.ok for check in found), found
    names = {check.name for check in found}
    assert {"database", "job store", "clock", "database user", "indexes", "encryption"} <= names


def named(name):
    return preflight.Check(name=name, ok=True, detail="")
