"""Which site file wins, and what is refused."""

import os
from pathlib import Path

import pytest

from otf_workflows.errors import ConfigurationError
from otf_workflows.settings import Site, load_site, private_folder
from otf_workflows.types import Role


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Files at all four places, each with its own database name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    files = {
        "named": tmp_path / "named.yaml",
        "variable": tmp_path / "variable.yaml",
        "here": tmp_path / "site.yaml",
        "config": tmp_path / "config" / "otf-workflows" / "site.yaml",
    }
    for name, file in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"database: {{name: {name}}}\n")
    monkeypatch.setenv("OTF_SITE_FILE", str(files["variable"]))
    return files


def test_the_first_place_in_the_order_wins_and_is_remembered(places, monkeypatch):
    assert load_site(places["named"]).database.name == "named"
    assert load_site().database.name == "variable"
    monkeypatch.delenv("OTF_SITE_FILE")
    assert load_site().database.name == "here"
    assert load_site().source == places["here"]
    places["here"].unlink()
    assert load_site().database.name == "config"
    places["config"].unlink()
    assert load_site() == Site()
    assert load_site().source is None
    assert load_site().database.mode == "embedded"


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_a_named_file_that_is_missing_is_an_error(how, tmp_path, monkeypatch):
    missing = tmp_path / "nowhere.yaml"
    if how == "variable":
        monkeypatch.setenv("OTF_SITE_FILE", str(missing))
    with pytest.raises(ConfigurationError, match="does not exist") as caught:
        load_site(missing if how == "argument" else None)
    assert caught.value.exit_code == 5
    assert caught.value.where == str(missing)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("databse: {}", "unknown key 'databse', did you mean 'database'"),
        ("database: {prot: 3}", "unknown key 'database.prot', did you mean 'port'"),
        ("workers: {md: {cuont: 3}}", "unknown key 'workers.md.cuont', did you mean 'count'"),
        ("workers: {dtf: {}}", "unknown role 'dtf', did you mean 'dft'"),
        ("codes: {qe: {comand: pw.x}}", "did you mean 'command'"),
        ("queues: {dft: {partiton: cpu}}", "unknown key 'queues.dft.partiton', did you mean"),
        ("queues: {gpu: {}}", "unknown role 'gpu'"),
        ("queues: {dft: {partition: a b}}", "queues.dft: partition, account and qos are single"),
        ("queues: {dft: {kind: pbs, directives: ['#SBATCH -x n1']}}", "begin with '#PBS', not"),
        ('queues: {dft: {environment: ["a\\nb"]}}', "lists of single lines"),
        ("queues: {dft: {side_by_side: 3, ranks: 2}}", "side_by_side is 3, but there are only 2"),
        ("database: {port: 99999}", "database.port: "),
        ("- a\n- b", "not a table"),
        ("a: [", "cannot be read"),
        ("password: secret", "does not belong"),
    ],
)
def test_a_mistake_is_named_with_the_right_spelling(text, message, tmp_path):
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_site(file)
    assert message in caught.value.what
    assert caught.value.where == str(file)


def test_a_whole_site_survives_its_file(tmp_path):
    import yaml

    site = Site(
        codes={"espresso": {"command": "pw.x"}},
        workers={"md": {"count": 3}},
        queues={"dft": {"partition": "cpu", "ranks": 8, "directives": ["#SBATCH --exclusive"]}},
    )
    file = tmp_path / "site.yaml"
    file.write_text(yaml.safe_dump(site.model_dump(mode="json")))
    read = load_site(file)
    assert read.model_dump() == site.model_dump()
    assert read.workers[Role.MD].count == 3
    assert read.queues[Role.DFT].ranks == 8
    assert list(read.queues) == [Role.DFT]


def test_the_password_is_read_from_a_private_file_and_never_shown(tmp_path):
    (tmp_path / "pw").write_text("s3cret\n")
    file = tmp_path / "site.yaml"
    file.write_text("database: {mode: server, username: me, password_file: pw}\n")
    (tmp_path / "pw").chmod(0o644)
    with pytest.raises(ConfigurationError, match="other users") as caught:
        load_site(file)
    assert caught.value.hint == f"chmod 600 {tmp_path / 'pw'}"
    (tmp_path / "pw").chmod(0o600)
    site = load_site(file)
    assert site.password.get_secret_value() == "s3cret"
    assert site.database.password_file == tmp_path / "pw"
    for shown in (repr(site), str(site), site.model_dump_json()):
        assert "s3cret" not in shown


def test_paths_are_relative_to_the_site_file(tmp_path, monkeypatch):
    monkeypatch.delenv("OTF_STATE_DIR")
    file = tmp_path / "site.yaml"
    file.write_text("state_dir: mine\n")
    assert load_site(file).resolved_state_dir == tmp_path / "mine"


def test_a_user_without_password_file_is_refused(tmp_path):
    file = tmp_path / "site.yaml"
    file.write_text("database: {mode: server, username: me}\n")
    with pytest.raises(ConfigurationError, match="no password_file"):
        load_site(file)


def test_the_state_folder_is_private_and_the_variable_comes_first(tmp_path, monkeypatch):
    monkeypatch.delenv("OTF_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert Site().resolved_state_dir == tmp_path / "xdg" / "otf-workflows"
    assert Site(state_dir=tmp_path / "own").resolved_state_dir == tmp_path / "own"
    monkeypatch.setenv("OTF_STATE_DIR", str(tmp_path / "first"))
    folder = Site(state_dir=tmp_path / "own").resolved_state_dir
    assert folder == tmp_path / "first"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_state_folder_open_to_others_is_refused(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o750)
    with pytest.raises(ConfigurationError, match="other users") as caught:
        private_folder(folder)
    assert caught.value.hint == f"chmod 700 {folder}"


def test_a_state_folder_of_somebody_else_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(ConfigurationError, match="another user"):
        private_folder(folder)


def test_a_state_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be made"):
        private_folder(Path(tmp_path / "file" / "state"))
