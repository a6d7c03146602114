"""`otf doctor` asks the queues, and its test jobs tell what they find where they run."""

import json
import subprocess
import sys

import pytest
import yaml

from otf_workflows import preflight
from otf_workflows.engine.queues import checks as queue_checks
from otf_workflows.engine.queues import probe
from otf_workflows.engine.queues import slurm as slurm_module
from otf_workflows.engine.queues.slurm import Slurm
from otf_workflows.engine.queues.system import QueueSystem
from otf_workflows.settings import DatabaseSettings, Queue, RemoteSettings, Site, load_site
from otf_workflows.types import EngineKind, Role

DFT = {"partition": "dft", "memory_MiB": 2000, "walltime_s": 600}
GPU = {"partition": "gpu", "memory_MiB": 2000, "walltime_s": 600}


@pytest.fixture
def cluster_site(site, monkeypatch):
    """Change the site file and read it again."""

    def make(queues, **changes):
        content = yaml.safe_load(site.source.read_text())
        content |= {"queues": queues, "workers": {"control": {"count": 1}}, **changes}
        site.source.write_text(yaml.safe_dump(content))
        return load_site()

    return make


def by_name(checks):
    return {check.name: check for check in checks}


def test_each_role_is_asked_for_and_a_refusal_comes_with_its_fix(slurm, cluster_site):
    site = cluster_site({"dft": DFT, "md": {**GPU, "gpus": 1}, "train": {"partition": "gpus"}})
    found = by_name(queue_checks.acceptance(site))
    assert found["queue 'dft'"].ok
    assert "1 core, 2000 MiB, 0.167 h: Job " in found["queue 'dft'"].detail
    assert "on nodes cpu1" in found["queue 'dft'"].detail
    assert "1 GPU" in found["queue 'md'"].detail
    assert not found["queue 'train'"].ok
    assert "partition" in found["queue 'train'"].detail
    assert "sinfo" in found["queue 'train'"].hint
    assert not QueueSystem(site.queues[Role.DFT]).jobs()


def test_a_job_that_would_wait_for_ever_for_its_time_is_told_before(slurm, cluster_site):
    slurm.run("scontrol", "update", "PartitionName=dft", "MaxTime=0:25:00")
    slurm.run("scontrol", "update", "PartitionName=gpu", "MaxTime=1-00:00:00")
    day = {**GPU, "walltime_s": 86400}
    site = cluster_site({"dft": {**DFT, "walltime_s": 1200}, "md": GPU, "train": day})
    found = by_name(queue_checks.acceptance(site))
    again = found["walltime of queue 'dft'"]
    assert not again.ok
    assert "ran out of time once asks for 0.667 h" in again.detail
    assert "partition 'dft' gives 0.417 h" in again.detail
    assert again.hint == "set max_walltime_s: 1500 under queues.dft of the site file"
    assert "walltime of queue 'md'" not in found
    assert found["walltime of queue 'train'"].hint.startswith("set max_walltime_s: 86400")
    site = cluster_site({"dft": {**DFT, "walltime_s": 3600, "max_walltime_s": 3600}})
    found = by_name(queue_checks.acceptance(site))
    told = [check for check in found.values() if not check.ok and "queue 'dft'" in check.name]
    assert told
    assert all("walltime_s" in check.hint for check in told)


@pytest.mark.parametrize(
    ("partition", "said", "longest_s"),
    [
        ("a", "PartitionName=a Default=NO MaxNodes=1 MaxTime=2-12:00:00 MinNodes=0", 216000.0),
        ("a", "PartitionName=a Default=NO MaxTime=UNLIMITED State=UP", None),
        (
            None,
            "PartitionName=a Default=NO MaxTime=00:10:00\nPartitionName=b Default=YES MaxTime=2:00",
            120.0,
        ),
    ],
)
def test_the_longest_time_of_a_partition_is_read(monkeypatch, partition, said, longest_s):
    done = subprocess.CompletedProcess([], 0, stdout=said, stderr="")
    monkeypatch.setattr(slurm_module, "ask", lambda *_, **__: done)
    assert Slurm().longest_s(partition) == longest_s


def test_a_site_without_queues_is_not_asked():
    assert list(queue_checks.acceptance(Site())) == []


def test_a_cluster_whose_programs_are_missing_is_one_failure_per_role(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    queues = {"dft": DFT, "md": GPU}
    server = DatabaseSettings(mode="server", host="mongo.example.org")
    found = by_name(queue_checks.acceptance(Site(queues=queues, database=server)))
    assert "sbatch is not on the PATH" in found["queue 'dft'"].detail
    assert not found["queue 'md'"].ok


@pytest.mark.parametrize(
    ("database", "engine", "ok", "advice"),
    [
        ({"mode": "embedded"}, "fireworks", False, "MongoDB server"),
        ({"mode": "embedded"}, "jobflow-remote", True, None),
        ({"mode": "server", "host": "localhost"}, "fireworks", True, "--queue-test"),
        ({"mode": "server", "host": "mongo.example.org"}, "fireworks", True, None),
    ],
)
def test_a_database_that_compute_nodes_cannot_reach_is_told(database, engine, ok, advice):
    site = Site(queues={"dft": DFT}, database=database, engine=EngineKind(engine))
    check = queue_checks._reachable_database(site)
    assert check.ok is ok
    assert (check.hint is None) if advice is None else (advice in check.hint)


def test_queues_of_another_host_are_looked_at_there(tmp_path):
    remote = RemoteSettings(host="login", work_dir=tmp_path, site_file=tmp_path / "s.yaml")
    site = Site(queues={"dft": DFT}, remote=remote)
    (check,) = queue_checks.acceptance(site)
    assert "login" in check.detail
    assert list(queue_checks.test_jobs(site, campaign=None, wait_s=1)) == []


def test_test_jobs_report_from_their_nodes(slurm, cluster_site):
    codes = {"espresso": {"command": "no-such-pw.x"}, "ase": {"command": f"{sys.executable} -u"}}
    broken = {**GPU, "environment": ["module load python", "echo fine"]}
    site = cluster_site({"dft": DFT, "control": broken}, codes=codes)
    found = by_name(queue_checks.test_jobs(site, campaign=None, wait_s=60))
    assert "ran on cpu1" in found["queue test 'dft'"].detail
    assert "ran on gpu1" in found["queue test 'control'"].detail
    for where in ("dft on cpu1", "control on gpu1"):
        assert sys.executable in found[f"{where}: interpreter"].detail
        for name in ("job modules", "database", "clock"):
            assert found[f"{where}: {name}"].ok
    environment = found["control on gpu1: environment"]
    assert not environment.ok
    assert "module: command not found" in environment.detail
    assert "source /etc/profile" in environment.hint
    assert "dft on cpu1: environment" not in found
    missing = found["dft on cpu1: program of 'espresso'"]
    assert not missing.ok
    assert "module load" in missing.hint
    assert found["dft on cpu1: program of 'ase'"].ok
    assert not list((site.resolved_state_dir / "doctor").iterdir())


def test_a_test_job_that_cannot_even_start_is_explained(slurm, cluster_site):
    queues = {"dft": {**DFT, "python": "/no/such/python", "environment": ["module load qe"]}}
    site = cluster_site(queues)
    (check,) = queue_checks.test_jobs(site, campaign=None, wait_s=60)
    assert not check.ok
    assert "Slurm says FAILED on cpu1" in check.detail
    assert "/no/such/python" in check.detail
    assert "source /etc/profile" in check.hint


def test_a_test_job_that_does_not_start_in_time_is_cancelled(slurm, cluster_site):
    site = cluster_site({"dft": DFT})
    slurm.node_down("cpu1")
    (check,) = queue_checks.test_jobs(site, campaign=None, wait_s=2)
    assert not check.ok
    assert "waits (" in check.detail
    assert "--wait" in check.hint
    assert not [job for job in QueueSystem(Queue()).jobs() if job.state != "ended"]


# -- what the probe looks at -----------------------------------------------------------------------


def test_a_node_that_does_not_reach_the_database_is_told_both_ways_out():
    server = DatabaseSettings(mode="server", host="127.0.0.1", port=1)
    (check,) = probe._database(Site(database=server))
    assert not check.ok
    assert "jobflow-remote" in check.hint


def test_scratch_folders_are_looked_at_with_their_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    codes = {"a": {"scratch_dir": "$SCRATCH"}, "b": {"scratch_dir": "/no/such/folder"}}
    there, missing = probe.scratch(Site(codes=codes))
    assert there.ok
    assert not missing.ok


def test_the_probe_writes_one_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(
        probe,
        "look_around",
        lambda *_, **__: iter([preflight.Check(name="a", ok=True, detail="b")]),
    )
    (tmp_path / "site.yaml").write_text("{}\n")
    answer = tmp_path / "answer.json"
    arguments = ["--role", "dft", "--site", tmp_path / "site.yaml", "--answer", answer]
    assert probe.main([str(word) for word in arguments]) == 0
    assert json.loads(answer.read_text())["checks"][0]["detail"] == "b"


def test_a_site_file_that_reads_otherwise_on_the_node_is_an_answer_too(tmp_path):
    text = "database: {mode: server, username: me, password_file: not-shared}\n"
    (tmp_path / "site.yaml").write_text(text)
    answer = tmp_path / "answer.json"
    arguments = ["--role", "dft", "--site", tmp_path / "site.yaml", "--answer", answer]
    assert probe.main([str(word) for word in arguments]) == 0
    (check,) = json.loads(answer.read_text())["checks"]
    assert not check["ok"]
    assert "password file cannot be read" in check["detail"]
