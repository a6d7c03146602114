"""A dump holds all that a campaign is: read into another database, it is whole."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import bson
import pytest

from otf_workflows.store import Store

UNITS = sorted((Path(__file__).parents[2] / "deploy/systemd").iterdir())


def dumped(database):
    """What mongodump writes: the documents of each collection as BSON, and its indexes."""
    return {
        name: (
            [bson.encode(document) for document in database[name].find()],
            database[name].index_information(),
        )
        for name in database.list_collection_names()
    }


def restore(dump, database):
    """Do what mongorestore does with them."""
    for name, (documents, indexes) in dump.items():
        for index, options in indexes.items():
            keys = options["key"]
            settings = {k: v for k, v in options.items() if k not in {"key", "v", "ns"}}
            if index != "_id_":
                database[name].create_index(keys, name=index, **settings)
        if documents:
            database[name].insert_many(bson.decode(document) for document in documents)


@pytest.fixture
def finished(database):
    from otf_workflows.testing.campaigns import synthetic_campaign

    store = Store(database)
    store.ensure_indexes()
    return synthetic_campaign(store).name


@pytest.fixture
def restored(database, finished, tmp_path, mongod):
    """A site that names the restored database, as the how-to says."""
    from otf_workflows.connection import connect
    from otf_workflows.testing.mongo import fresh_site

    dump = dumped(database)
    with fresh_site(mongod, tmp_path) as other:
        with_rights = connect(other)
        restore(dump, with_rights)
        with_rights.client.close()
        yield other


def test_a_restored_database_tells_the_same_and_lacks_no_index(
    restored, finished, site, capsys, tmp_path
):
    from otf_workflows.cli.main import main
    from otf_workflows.connection import connect

    def said(*words, of):
        capsys.readouterr()
        try:
            main([*words, "--site", str(of.source)])
        except SystemExit as end:
            assert not end.code, capsys.readouterr().err  # noqa: PT017
        return capsys.readouterr().out

    assert said("labels", "list", "--json", of=restored) == said(
        "labels", "list", "--json", of=site
    )
    said("report", finished, "-o", str(tmp_path / "check.html"), of=restored)
    assert "force" in (tmp_path / "check.html").read_text(encoding="utf-8")
    database = connect(restored)
    assert Store(database).missing_indexes() == []
    before, after = (connect(one) for one in (site, restored))
    assert {name: after[name].count_documents({}) for name in after.list_collection_names()} == {
        name: before[name].count_documents({}) for name in before.list_collection_names()
    }
    for one in (database, before, after):
        one.client.close()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_has_nothing_to_say_of_our_units(unit, tmp_path):
    for file in UNITS:  # whose programs are not installed where this runs
        lines = [
            line.replace("%h/otf-workflows/.venv/bin/otf", "/bin/true").replace(
                "%h/otf-workflows/.venv/bin/python", "/bin/true"
            )
            for line in file.read_text(encoding="utf-8").splitlines()
        ]
        (tmp_path / file.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(tmp_path / unit.name)],
        env={"XDG_RUNTIME_DIR": str(runtime), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
