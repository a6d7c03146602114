"""Help is fast and light, mistakes have one message and a documented exit code."""

import subprocess
import sys

import pytest

from otf_workflows.cli.main import global_options_first

HEAVY = ["torch", "chgnet", "pymatgen", "ase", "jobflow", "fireworks", "pymongo", "numpy",
         "pydantic", "rich"]  # fmt: skip
COMMANDS = ["init", "doctor", "up", "down", "submit", "run", "status", "labels", "models",
            "lineage", "report", "export", "reconcile", "pause", "resume", "stop", "validate",
            "schema"]  # fmt: skip


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom otf_workflows.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "Exit codes" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(otf, command):
    done = otf(command, "-h")
    assert done.code == 0
    assert "Usage: otf" in done.out
    assert command in otf("--help").out


def test_a_mistyped_command_is_answered_with_the_nearest(otf):
    done = otf("statsu")
    assert done.code == 2
    assert "status" in done.err
    assert done.out == ""


def test_an_unknown_option_is_a_usage_error(otf):
    assert otf("status", "--nope").code == 2


def test_the_version_is_data(otf):
    done = otf("--version")
    assert done.code == 0
    assert done.out.startswith("otf-workflows ")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["status", "--site", "x.yaml"], ["--site", "x.yaml", "status"]),
        (["status", "--site=x.yaml", "-q"], ["--site=x.yaml", "-q", "status"]),
        (["init", "--site", "local"], ["init", "--site", "local"]),
        (["labels", "show", "--", "--debug"], ["labels", "show", "--", "--debug"]),
    ],
)
def test_global_options_may_stand_anywhere(typed, meant):
    assert global_options_first(typed) == meant


def test_a_missing_file_is_what_where_next_on_stderr(otf, tmp_path):
    done = otf("validate", tmp_path / "nothing.yaml")
    assert done.code == 2
    assert done.out == ""
    lines = done.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "where", "next"]


def test_a_missing_site_file_is_a_configuration_error(otf, tmp_path):
    done = otf("status", "--site", tmp_path / "nothing.yaml")
    assert done.code == 5
    assert "does not exist" in done.err


def test_an_unreachable_database_is_exit_code_4(otf, tmp_path):
    site = tmp_path / "site.yaml"
    site.write_text("database: {mode: server, port: 1}\n")
    done = otf("status", "--site", site)
    assert done.code == 4
    assert "does not answer" in done.err


def test_an_embedded_database_that_never_ran_says_how_to_start_it(otf):
    done = otf("status")
    assert done.code == 4
    assert "otf up" in done.err


def test_a_mistake_of_ours_is_no_traceback_unless_asked_for(otf, monkeypatch, tmp_path):
    from otf_workflows import campaign_file

    def broken(*_):
        msg = "boom"
        raise RuntimeError(msg)

    monkeypatch.setattr(campaign_file, "read_campaign", broken)
    done = otf("validate", tmp_path / "x.yaml")
    assert done.code == 1
    assert "boom" in done.err
    assert "Traceback" not in done.err
    with pytest.raises(RuntimeError):
        otf("validate", tmp_path / "x.yaml", "--debug")
