"""What runs on the leash ends with its worker, with its time, and tells how it ended."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from otf_workflows.labelers import leash

SLEEPER = "import time; time.sleep(900)"
FAMILY = (
    "import subprocess, sys, time, pathlib; "
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(900)']); "
    "pathlib.Path(sys.argv[1]).write_text(str(p.pid)); time.sleep(900)"
)
WORKER = (
    "import subprocess, sys, os; subprocess.Popen([sys.executable, '-I', '-S', "
    "sys.argv[1], str(os.getpid()), '0', sys.executable, '-c', *sys.argv[2:]]).wait()"
)


def on_leash(*command, limit_s=0.0, parent=None):
    return subprocess.Popen(
        [
            *(sys.executable, "-I", "-S", leash.__file__, str(parent or os.getpid())),
            *(str(limit_s), sys.executable, "-c", *command),
        ]
    )


def eventually(condition, timeout_s=300.0):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def alive(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def pid_in(path):
    assert eventually(lambda: path.exists() and path.read_text())
    return int(path.read_text())


@pytest.mark.parametrize("code", [0, 2, 41])
def test_exit_status_is_handed_on(code):
    assert on_leash(f"raise SystemExit({code})").wait() == code


def test_a_death_by_signal_is_told_as_a_shell_would():
    assert on_leash("import os; os.kill(os.getpid(), 9)").wait() == 128 + 9


def test_time_is_limited():
    assert on_leash(SLEEPER, limit_s=0.3).wait() == leash.TIME_UP


def test_a_missing_program_is_told():
    process = subprocess.run(
        [sys.executable, leash.__file__, str(os.getpid()), "0", "/no/such/program"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == leash.NOT_STARTED
    assert "/no/such/program: No such file" in process.stderr


def test_nothing_is_started_for_a_worker_that_is_gone():
    assert on_leash("raise SystemExit(0)", parent=1).wait() == leash.ORPHANED


def test_ending_the_leash_ends_the_whole_family(tmp_path):
    process = on_leash(FAMILY, str(tmp_path / "pid"))
    grandchild = pid_in(tmp_path / "pid")
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert eventually(lambda: not alive(grandchild))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help exists on Linux only")
def test_a_worker_killed_without_warning_takes_the_family_with_it(tmp_path):
    worker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            WORKER,
            leash.__file__,
            FAMILY,
            str(tmp_path / "pid"),
        ]
    )
    grandchild = pid_in(tmp_path / "pid")
    family = [p.pid for p in psutil.Process(worker.pid).children(recursive=True)]
    assert len(family) == 3
    worker.kill()
    worker.wait()
    assert eventually(lambda: not any(alive(pid) for pid in [grandchild, *family]))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help exists on Linux only")
def test_a_killed_leash_takes_the_program_with_it():
    process = on_leash(SLEEPER)
    me = psutil.Process(process.pid)
    assert eventually(me.children)
    child = me.children()[0].pid
    process.kill()
    process.wait()
    assert eventually(lambda: not alive(child))


def test_the_leash_needs_nothing_but_the_standard_library():
    """It is started without site-packages, to cost milliseconds."""
    text = Path(leash.__file__).read_text()
    assert "otf_workflows" not in text.split('"""')[2]
