"""What `otf doctor` says of encryption, rights, room and indexes."""

import shutil
import subprocess
import time

import pytest

from otf_workflows import database_checks, preflight
from otf_workflows.connection import connect
from otf_workflows.engine.host import free_port, listens, look_for_mongod
from otf_workflows.settings import DatabaseSettings, Site
from otf_workflows.store import Store


@pytest.mark.parametrize(
    ("database", "words", "advice"),
    [
        ({"mode": "embedded"}, "on this machine", False),
        ({"mode": "server", "host": "::1"}, "on this machine", False),
        ({"mode": "server", "host": "m.example.org", "tls": True}, "TLS", False),
        ({"mode": "server", "host": "m.example.org"}, "in the clear", True),
    ],
)
def test_data_in_the_clear_are_told(database, words, advice):
    check = database_checks.tls(Site(database=DatabaseSettings(**database)), answers=True)
    assert check.ok
    assert words in check.detail
    assert bool(check.hint) is advice


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for localhost, and the authority's part of it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    key, public, both = folder / "key.pem", folder / "ca.pem", folder / "server.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        [*command, "-keyout", str(key), "-out", str(public)], check=True, capture_output=True
    )
    both.write_text(key.read_text() + public.read_text())
    both.chmod(0o600)
    return both, public


@pytest.fixture(scope="module")
def tls_server(certificate, tmp_path_factory):
    """The port of a mongod that speaks TLS only."""
    binary = look_for_mongod()
    if binary is None:
        pytest.skip("there is no mongod")
    folder = tmp_path_factory.mktemp("mongod")
    port = free_port()
    options = ["--bind_ip", "127.0.0.1", "--port", str(port), "--dbpath", str(folder)]
    options += ["--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"]
    options += ["--tlsMode", "requireTLS", "--tlsCertificateKeyFile", str(certificate[0])]
    with subprocess.Popen([str(binary), *options], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not listens(process.pid, port):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        yield port
        process.terminate()


@pytest.mark.integration
def test_tls_works_and_each_wrong_setting_is_told_from_silence(tls_server, certificate):
    def look(**changes):
        settings = {"mode": "server", "host": "localhost", "port": tls_server, **changes}
        site = Site(database=DatabaseSettings(**settings))
        return database_checks.tls(site, answers=preflight.database(site).ok)

    trusted = look(tls=True, tls_ca_file=certificate[1])
    assert trusted.ok
    assert "certificate verified" in trusted.detail
    unknown = look(tls=True)
    assert not unknown.ok
    assert "tls_ca_file" in unknown.hint
    other_name = look(tls=True, tls_ca_file=certificate[1], host="127.0.0.1")
    assert "not accepted" in other_name.detail
    plain = look()
    assert not plain.ok
    assert plain.hint == "set database.tls: true"
    assert look(port=1).ok


def test_tls_where_the_server_has_none_is_told(mongod):
    where = mongod.address()
    settings = DatabaseSettings(mode="server", host="localhost", port=where.port, tls=True)
    check = database_checks.tls(Site(database=settings), answers=False)
    assert not check.ok
    assert "does not speak" in check.detail


def test_a_user_with_read_and_write_rights_is_enough(site):
    check = database_checks.rights(site)
    assert check.ok, check
    assert check.hint is None
    assert f"may read and write '{site.database.name}'" in check.detail


@pytest.fixture
def as_role(site, mongod):
    """The site, with another role for its user."""

    def change(*roles):
        with mongod.admin_client() as client:
            user = site.database.username
            client.admin.command("updateUser", user, roles=list(roles))
        return site

    return change


def test_a_user_who_may_only_read_is_told_what_is_missing(as_role):
    site = as_role({"role": "read", "db": "otf"})
    site = as_role({"role": "read", "db": site.database.name})
    check = database_checks.rights(site)
    assert not check.ok
    assert "may not createIndex, insert, remove, update" in check.detail
    assert "db.grantRolesToUser" in check.hint
    assert check.exit_code == 4


def test_a_user_who_may_do_more_than_needed_is_told_so(as_role):
    check = database_checks.rights(as_role({"role": "root", "db": "admin"}))
    assert check.ok
    assert "more than it needs: root on admin" in check.detail


def test_room_and_use_of_the_database_are_told(site, database, monkeypatch):
    assert database_checks.room(site).detail == "0 MB used, GridFS holds 0 MB"
    database.otf_events.insert_one({"what": "something"})
    check = database_checks.room(site)
    assert check.ok
    assert "GridFS holds 0 MB" in check.detail
    assert "are free on the server" in check.detail
    monkeypatch.setattr(database_checks, "MIN_DATABASE_BYTES", 10**18)
    check = database_checks.room(site)
    assert not check.ok
    assert "free some disk" in check.hint


def test_missing_indexes_matter_once_there_is_a_campaign(site, database):
    assert database_checks.indexes(site).detail == "made at the first submit"
    database.otf_campaigns.insert_one({"name": "a"})
    check = database_checks.indexes(site)
    assert not check.ok
    assert "otf_labels" in check.detail
    Store(connect(site)).ensure_indexes()
    assert database_checks.indexes(site).detail == "all there"


def test_a_database_that_is_gone_is_a_failure_of_the_check():
    server = DatabaseSettings(mode="server", host="127.0.0.1", port=1)
    check = database_checks.rights(Site(database=server))
    assert not check.ok
    assert check.exit_code == 4
