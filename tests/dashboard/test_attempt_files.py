"""Files of a try: what a person needs to see why it failed, and nothing else of the disk."""

import os

import pytest

from otf_workflows.dashboard.attempt_files import (
    SHOWN_BYTES,
    end_of_file,
    found_files,
    is_readable,
)
from otf_workflows.errors import NotFoundError
from otf_workflows.testing.campaigns import synthetic_campaign
from otf_workflows.types import LabelState


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "label"
    made.mkdir()
    (tmp_path / "secret.txt").write_text("do not show")
    (made / "pw.out").write_text("a" * SHOWN_BYTES + "\nthe end\n")
    (made / "pw.in").write_text("&control")
    (made / ".hidden.txt").write_text("x")
    (made / "id_rsa").write_text("key")
    (made / "wave.out").write_bytes(b"\0\1\2")
    (made / "link.out").symlink_to(tmp_path / "secret.txt")
    (made / "sub.out").mkdir()
    os.mkfifo(made / "pipe.out")
    return made


def test_plain_files_are_listed_and_links_are_not(folder):
    names = {file.name: file.readable for file in found_files(str(folder))}
    assert names == {"pw.out": True, "pw.in": True, "id_rsa": False, "wave.out": True}


def test_the_end_of_a_text_file_is_shown(folder):
    text = end_of_file(str(folder), "pw.out")
    assert text.endswith("the end\n")
    assert len(text) == SHOWN_BYTES


@pytest.mark.parametrize(
    "name",
    ["id_rsa", "link.out", "sub.out", "pipe.out", "../secret.txt", "/etc/hosts.txt", "no.out",
     "wave.out", ".hidden.txt", "", "."],
)  # fmt: skip
def test_nothing_else_is_shown(folder, name):
    with pytest.raises(NotFoundError):
        end_of_file(str(folder), name)


def test_a_folder_that_this_machine_does_not_see_is_said(tmp_path):
    with pytest.raises(NotFoundError, match="No such file"):
        found_files(str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("name", ["OUTCAR", "pw.out", "slurm-12.err", "cp2k.inp", "FW.json"])
def test_what_dft_codes_write_is_text(name):
    assert is_readable(name)


def test_the_page_shows_the_folder_of_a_try(store, client, folder):
    synthetic_campaign(store, n_cycles=2, production=False)
    label = store.labels(states=[LabelState.FAILED], light=True)[0]
    attempts = [{**attempt.model_dump(), "directory": str(folder)} for attempt in label.attempts]
    store.database.otf_labels.update_one({"key": label.key}, {"$set": {"attempts": attempts}})
    address = f"/labels/{label.key[:16]}/files"
    assert f"{address}/2" in client.get(f"/labels/{label.key}").text
    listed = client.get(f"{address}/2")
    assert "pw.out" in listed.text
    assert "link.out" not in listed.text
    assert "the end" in client.get(f"{address}/2", params={"name": "pw.out"}).text
    for wrong in ("id_rsa", "../secret.txt"):
        refused = client.get(f"{address}/2", params={"name": wrong})
        assert refused.status_code == 404
        assert "do not show" not in refused.text
    assert client.get(f"{address}/7").status_code == 404
    gone = [{**attempt, "directory": "/nowhere/at/all"} for attempt in attempts]
    store.database.otf_labels.update_one({"key": label.key}, {"$set": {"attempts": gone}})
    assert "cannot look into the folder" in client.get(f"{address}/1").text
