"""`otf dashboard`: what it refuses, what it prints, and that it can be found again."""

import os
import signal
import stat
import subprocess
import sys

import httpx
import pytest

from otf_workflows.dashboard import serve
from otf_workflows.dashboard.settings import DashboardSettings
from otf_workflows.errors import ConfigurationError, InputError, NotFoundError
from otf_workflows.settings import Site


def test_the_address_is_printed_and_answers_and_can_be_printed_again(site, otf, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "otf_workflows.cli.main", "dashboard", "--no-open"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        assert "/login?token=" in address
        note = site.resolved_state_dir / serve.NOTE
        assert stat.S_IMODE(note.stat().st_mode) == 0o600
        with httpx.Client(follow_redirects=True) as client:
            assert client.get(address).status_code == 200
            base = address.partition("/login")[0]
            assert "No campaign yet" in client.get(f"{base}/").text
        again = otf("dashboard", "url")
        assert again.out.strip() == address
        assert "ssh -N -L" in again.err
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    assert "ssh -N -L" in said
    assert "It only looks" in said
    assert otf("dashboard", "url").code == 3


EVERYWHERE = "0.0.0.0"  # noqa: S104


def test_other_machines_are_let_in_only_when_asked_for_in_so_many_words(site, otf):
    refused = otf("dashboard", "--host", EVERYWHERE, "--no-open")
    assert refused.code == 2
    assert "--allow-remote" in refused.err
    serve.check_address(host=EVERYWHERE, allow_remote=True)


@pytest.mark.parametrize(
    ("given", "clean"),
    [("", ""), ("/", ""), ("proxy/8700/", "/proxy/8700"), ("/node/a.b/1", "/node/a.b/1")],
)
def test_prefixes_are_put_in_order(given, clean):
    assert serve.clean_prefix(given) == clean


@pytest.mark.parametrize("given", ["/a?b", "/a//b", "/../x", "/a b", "http://x/"])
def test_a_prefix_that_is_no_path_is_refused(given):
    with pytest.raises(InputError, match="root-path"):
        serve.clean_prefix(given)


def test_a_port_in_use_is_refused_and_the_last_one_is_taken_again():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=str(port)):
            serve.choose_port(port, None)
        assert serve.choose_port(None, serve.Note("t", port=port)) != port
    assert serve.choose_port(None, serve.Note("t", port=port)) == port


def test_a_socket_lives_in_a_private_folder_and_replaces_only_a_dead_one(tmp_path):
    import socket

    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o755)
    open_to_all.chmod(0o755)
    with pytest.raises(ConfigurationError, match="other users"):
        serve.check_socket(open_to_all / "otf.sock")
    mine = tmp_path / "mine"
    path = serve.check_socket(mine / "otf.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(ConfigurationError, match="listens there already"):
            serve.check_socket(path)
    assert serve.check_socket(path) == path
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(ConfigurationError, match="a file of that name"):
        serve.check_socket(path)
    assert path.read_text() == "precious"


def test_the_tunnel_of_a_socket_names_the_socket(tmp_path):
    settings = DashboardSettings(site=Site(), token="t", uds=tmp_path / "otf.sock")
    note = serve.note_of(settings)
    assert f"-L 8700:{tmp_path}/otf.sock" in note.tunnel
    assert note.url == "http://127.0.0.1:8700/login?token=t"


def test_a_note_of_a_dead_dashboard_is_not_believed(tmp_path):
    import socket

    with pytest.raises(NotFoundError):
        serve.last_note(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    serve.Note("t", port=1, pid=gone.pid, machine=socket.gethostname()).write(tmp_path)
    with pytest.raises(NotFoundError, match="No dashboard"):
        serve.last_note(tmp_path)
    (tmp_path / serve.NOTE).write_text("{ not json")
    assert serve.Note.read(tmp_path) is None


def test_the_dashboard_starts_small():
    """It imports neither jobflow nor FireWorks nor any science."""
    script = (
        "import sys, psutil, uvicorn, pymongo\n"
        "import otf_workflows.dashboard.app, otf_workflows.dashboard.serve\n"
        "heavy = {'jobflow', 'fireworks', 'pymatgen', 'torch', 'chgnet', 'matplotlib'}\n"
        "print(*sorted(heavy & set(sys.modules)))\n"
        # Not ru_maxrss, which a process inherits from the one that started it.
        "print(psutil.Process().memory_info().rss / 1024**2)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    ).stdout.splitlines()
    assert said[0] == ""
    assert float(said[1]) < 110
