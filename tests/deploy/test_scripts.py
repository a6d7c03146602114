"""The set-up scripts, run for real with stand-ins for apt-get, pip, mongod and otf."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("deploy/*.sh"), ROOT / ".ci/run"])
TOOLS = [
    "awk",
    "basename",
    "bash",
    "cat",
    "cp",
    "cut",
    "dirname",
    "df",
    "env",
    "flock",
    "head",
    "id",
    "ldconfig",
    "mkdir",
    "printf",
    "realpath",
    "rm",
    "sed",
    "sha256sum",
    "sleep",
    "sort",
    "tail",
    "touch",
    "tr",
]

PYTHON = f"""#!/bin/bash
if [[ $1 == -m && $2 == venv ]]; then
  mkdir -p "$3/bin" && cp "$0.venv" "$3/bin/python" && cp "$0.otf" "$3/bin/otf"
else
  exec "{sys.executable}" "$@"
fi
"""
VENV_PYTHON = """#!/bin/bash
here=$(dirname "$0")
if [[ "$1 $2" == "-m pip" ]]; then
  [[ $3 == --version ]] || echo "pip $*" >> "$here/../calls"
  [[ $3 == --version || -z $PIP_FAILS ]] || { echo "no such package on this planet"; exit 1; }
  [[ "$*" != *torch==* ]] || touch "$here/../torch"
elif [[ $1 == -c && $2 == *torch* ]]; then
  [[ -e $here/../torch ]]
elif [[ $1 == -c && $2 == *purelib* ]]; then
  echo "$here/../lib"
fi
"""
OTF = """#!/bin/bash
printf '%s\\n' "$PWD" "$@"
"""
MONGOD = """#!/bin/bash
echo "db version v{version}"
"""


class Checkout:
    """A copy of what the scripts need, in a path with a space, and a PATH of stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "my checkout"
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
            if found:
                (self.bin / tool).symlink_to(found)
        shutil.copytree(ROOT / "deploy", self.root / "deploy")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        (self.root / "flows/licl").mkdir(parents=True)
        (self.root / "flows/licl/campaign.yaml").write_text("name: licl\n")
        self.program("python3", PYTHON)
        self.program("python3.venv", VENV_PYTHON)
        self.program("python3.otf", OTF)
        for name in ("pw.x", "slurmctld", "munged", "chromium", "shellcheck"):
            self.program(name, "#!/bin/bash\n")
        self.program("mongod", MONGOD.format(version="6.0.5"))

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.bin / name).unlink()

    def run(self, script: str, *arguments: str, **environment: str):
        return subprocess.run(
            [str(self.root / "deploy" / script), *arguments],
            env={"PATH": str(self.bin), "HOME": str(self.bin), "PIP_FAILS": "", **environment},
            cwd=self.bin,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    @property
    def pip_calls(self) -> list[str]:
        calls = self.root / ".venv/calls"
        return calls.read_text().splitlines() if calls.exists() else []


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_executable_and_strict(script):
    text = script.read_text()
    assert os.access(script, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert "\x1b" not in text
    assert "\\033" not in text


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    checked = subprocess.run(
        ["shellcheck", str(script)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", ["setup.sh", "quickstart.sh", "test.sh"])
def test_help_explains_and_an_unknown_option_is_refused(checkout, script):
    shown = checkout.run(script, "--help")
    assert shown.returncode == 0
    assert "Usage:" in shown.stdout
    refused = checkout.run(script, "--hlep")
    assert refused.returncode == 2
    assert "--hlep" in refused.stderr
    assert not (checkout.root / ".venv").exists()


def test_setup_installs_cpu_torch_first_then_the_package_with_pinned_versions(checkout):
    done = checkout.run("setup.sh")
    assert done.returncode == 0, done.stderr
    torch, package = checkout.pip_calls
    assert "+cpu" in torch
    assert "--no-deps" in torch
    assert "constraints.txt" in package
    assert f"--editable {checkout.root}" in package
    assert "Set-up complete" in done.stderr
    assert done.stdout == ""


def test_setup_does_nothing_the_second_time(checkout):
    checkout.run("setup.sh")
    before = checkout.pip_calls
    again = checkout.run("setup.sh")
    assert again.returncode == 0
    assert checkout.pip_calls == before


def test_setup_after_a_change_of_versions_installs_again_but_not_torch(checkout):
    checkout.run("setup.sh")
    with (checkout.root / "deploy/constraints.txt").open("a") as file:
        file.write("some-package==1.0\n")
    checkout.run("setup.sh")
    assert len(checkout.pip_calls) == 3
    assert "torch" not in checkout.pip_calls[-1]


def test_test_tools_include_what_users_need(checkout):
    checkout.run("setup.sh", "--dev")
    before = checkout.pip_calls
    assert "[dashboard,dev]" in before[-1]
    checkout.run("setup.sh")
    assert checkout.pip_calls == before


def test_test_tools_include_a_browser_that_users_need_not_have(checkout):
    checkout.remove("chromium")
    refused = checkout.run("setup.sh", "--dev", OTF_SYSTEM_PACKAGES="no")
    assert refused.returncode == 5
    assert "Missing on this machine: chromium" in refused.stderr
    assert checkout.run("setup.sh", OTF_SYSTEM_PACKAGES="no").returncode == 0


def test_a_failing_installation_shows_its_end_and_is_tried_again(checkout):
    failed = checkout.run("setup.sh", PIP_FAILS="yes")
    assert failed.returncode == 1
    assert "no such package on this planet" in failed.stderr
    assert "setup.log" in failed.stderr
    assert checkout.run("setup.sh").returncode == 0


def test_own_index_for_torch_is_used(checkout):
    checkout.run("setup.sh", OTF_TORCH_INDEX_URL="https://example.org/cuda")
    assert "--index-url https://example.org/cuda" in checkout.pip_calls[0]
    assert "+cpu" not in checkout.pip_calls[0]


def test_an_old_mongod_on_the_path_is_not_used(checkout):
    checkout.program("mongod", MONGOD.format(version="4.2.24"))
    wheel = checkout.root / ".venv/lib/fiftyone/db/bin/mongod"
    checkout.run("setup.sh")
    assert "[dashboard,local]" in checkout.pip_calls[-1]
    wheel.parent.mkdir(parents=True)
    shutil.copy(checkout.bin / "mongod", wheel)
    assert checkout.run("setup.sh").returncode == 0


def test_a_mongod_that_does_not_start_is_reported(checkout):
    checkout.remove("mongod")
    done = checkout.run("setup.sh", OTF_SYSTEM_PACKAGES="no")
    assert done.returncode == 5
    assert "mongod" in done.stderr or "libcurl4" in done.stderr


def test_without_rights_the_administrator_is_told_what_to_install(checkout):
    checkout.remove("pw.x")
    checkout.program("apt-get", "#!/bin/bash\nexit 0\n")
    done = checkout.run("setup.sh", OTF_SYSTEM_PACKAGES="no")
    assert done.returncode == 5
    asked = "apt-get install --no-install-recommends quantum-espresso libopenblas0-pthread"
    assert asked in done.stderr
    assert not (checkout.root / ".venv").exists()


def test_an_ordinary_user_without_sudo_counts_as_without_rights(checkout):
    checkout.remove("pw.x", "id")
    checkout.program("id", "#!/bin/bash\necho 1000\n")
    checkout.program("apt-get", "#!/bin/bash\nexit 0\n")
    assert checkout.run("setup.sh").returncode == 5


def test_with_rights_only_what_is_missing_is_installed(checkout):
    checkout.remove("pw.x", "id")
    checkout.program("id", "#!/bin/bash\necho 0\n")
    checkout.program("apt-get", f'#!/bin/bash\necho "$@" >> "{checkout.bin}/apt"\n')
    assert checkout.run("setup.sh").returncode == 0
    update, install = (checkout.bin / "apt").read_text().splitlines()
    assert update.endswith("update")
    assert install.endswith("--no-install-recommends quantum-espresso libopenblas0-pthread")


def test_without_apt_get_the_needed_programs_are_named(checkout):
    checkout.remove("pw.x")
    done = checkout.run("setup.sh")
    assert done.returncode == 5
    assert "pw.x" in done.stderr


def test_a_named_python_that_does_not_fit_is_an_error(checkout):
    checkout.program("python2", "#!/bin/bash\nexit 1\n")
    done = checkout.run("setup.sh", OTF_PYTHON="python2")
    assert done.returncode == 5
    assert "python2" in done.stderr


def test_quickstart_runs_the_campaign_of_the_checkout_from_anywhere(checkout):
    done = checkout.run("quickstart.sh")
    assert done.returncode == 0, done.stderr
    folder, *words = done.stdout.splitlines()
    root = checkout.root
    assert folder == str(checkout.bin)
    report = str(root / "runs/licl/report.html")
    assert words == ["run", str(root / "flows/licl/campaign.yaml"), "--report", report]


def test_quickstart_takes_another_campaign_and_hands_options_on(checkout):
    (checkout.bin / "mine.yaml").write_text("name: mine\n")
    done = checkout.run(
        "quickstart.sh", "--campaign", "mine.yaml", "--report", "out/r.html", "--", "--dry-run"
    )
    assert done.stdout.splitlines()[1:] == [
        "run", "mine.yaml", "--report", "out/r.html", "--dry-run",
    ]  # fmt: skip


def test_quickstart_with_a_missing_campaign_sets_nothing_up(checkout):
    done = checkout.run("quickstart.sh", "--campaign", "nowhere.yaml")
    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr
    assert not (checkout.root / ".venv").exists()


def test_quickstart_setup_only_starts_nothing(checkout):
    done = checkout.run("quickstart.sh", "--setup-only")
    assert done.returncode == 0
    assert done.stdout == ""


def test_constraints_pin_public_versions_only():
    text = (ROOT / "deploy/constraints.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 for line in lines)
    assert not any(mark in text for mark in ("@", "+cpu", "file:", "://", " -e"))
    assert any(line.startswith("torch==") for line in lines)


def test_the_other_dft_codes_are_set_up_only_when_asked_for(checkout):
    """deploy/test.sh asks for them with --all."""
    assert checkout.run("setup.sh", OTF_SYSTEM_PACKAGES="no").returncode == 0
    asked = checkout.run("setup.sh", "--dft-codes", OTF_SYSTEM_PACKAGES="no")
    assert asked.returncode == 5
    for package in ("cp2k", "abinit"):
        assert package in asked.stderr
