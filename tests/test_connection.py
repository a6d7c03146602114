"""How the database is reached, and what is said when it is not."""

import json

import jobflow
import pytest
from jobflow import Flow, JobStore, run_locally
from maggma.stores import JSONStore, MemoryStore

from otf_workflows.connection import (
    connect,
    job_store,
    mongo_client,
    require_persistent,
    require_persistent_jobflow_settings,
    use_job_store,
)
from otf_workflows.errors import ConfigurationError, DatabaseError
from otf_workflows.settings import DatabaseSettings, Site
from otf_workflows.testing.jobs import report_with_blob


def test_an_unreachable_server_is_one_clear_error():
    site = Site(database=DatabaseSettings(mode="server", port=1))
    with pytest.raises(DatabaseError, match="does not answer") as caught:
        connect(site, patience_s=0.2)
    assert caught.value.exit_code == 4
    assert "127.0.0.1:1" in caught.value.where


def test_an_embedded_server_that_was_never_started_says_how_to_start_it():
    with pytest.raises(DatabaseError) as caught:
        connect(Site())
    assert caught.value.hint == "otf up"


def test_a_wrong_password_is_said_to_be_wrong_and_not_shown(site):
    from pydantic import SecretStr

    wrong = site.model_copy(update={"password": SecretStr("guess-me")})
    with pytest.raises(DatabaseError, match="refuses user or password") as caught:
        connect(wrong)
    assert "guess-me" not in str(caught.value)


def test_a_user_without_rights_is_told_so(site):
    other = site.model_copy(
        update={"database": site.database.model_copy(update={"name": "somebody_elses"})}
    )
    with pytest.raises(DatabaseError, match="may not read or write"):
        connect(other)


def test_an_open_server_lets_nobody_in_without_a_password(site):
    anonymous = Site(database=site.database.model_copy(update={"username": None}))
    with pytest.raises(DatabaseError):
        connect(anonymous)


def test_outputs_and_blobs_are_kept_and_the_store_holds_no_password(site, database):
    store = job_store(site, database)
    made = report_with_blob(5)
    run_locally(Flow([made]), store=store, log=False)
    document = store.query_one({"uuid": made.uuid})
    assert "numbers" not in document["output"]["blob"]
    assert store.get_output(made.uuid, load=True)["blob"]["numbers"] == [0, 1, 2, 3, 4]
    assert database["jobflow_data.files"].count_documents({}) == 1
    secret = site.password.get_secret_value()
    shown = [json.dumps(store.as_dict()), repr(store), repr(store.docs_store), repr(database)]
    assert not any(secret in text for text in [*shown, repr(mongo_client(site))])


def test_outputs_are_indexed_by_uuid(site, database):
    job_store(site, database)
    plan = database.jobflow_outputs.find({"uuid": "x"}).sort("index", -1).explain()
    assert "IXSCAN" in json.dumps(plan["queryPlanner"]["winningPlan"])


@pytest.mark.parametrize("part", ["documents", "data"])
def test_a_store_in_memory_is_refused(part, tmp_path):
    lasting = JSONStore(str(tmp_path / "outputs.json"), read_only=False)
    parts = {"documents": lasting, "data": lasting, part: MemoryStore()}
    store = JobStore(parts["documents"], additional_stores={"data": parts["data"]})
    with pytest.raises(ConfigurationError, match=f"keep its {part} in memory"):
        require_persistent(store)


def test_jobflows_own_default_is_refused_and_ours_is_accepted(site, database, monkeypatch):
    monkeypatch.setattr(jobflow.SETTINGS, "JOB_STORE", JobStore(MemoryStore()))
    with pytest.raises(ConfigurationError) as caught:
        require_persistent_jobflow_settings()
    assert caught.value.exit_code == 5
    use_job_store(job_store(site, database))
    require_persistent_jobflow_settings()
