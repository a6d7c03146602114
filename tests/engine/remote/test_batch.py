"""Jobs through a real Slurm, on nodes that see no database."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from jobflow import Flow

from otf_workflows.testing.jobs import collect, nap, report, spawn, staged
from otf_workflows.testing.waiting import wait_for
from otf_workflows.types import Stage

pytestmark = pytest.mark.timeout(1800)

KEY = {"campaign": "c", "cycle": 0, "kind": "cycle"}


@pytest.mark.slow
def test_a_real_slurm_computes_labels_on_nodes_without_database_and_a_cancelled_job_runs_again(
    batch_engine, begin_on, tmp_path
):
    from otf_workflows.engine.remote.runner import SiteRunner

    engine, started = batch_engine, tmp_path / "started"
    batch = begin_on(engine, "one")
    engine.submit(Flow([staged(nap(5.0, str(started)), Stage.EXPLORE)]), **KEY)
    runner = SiteRunner(engine)
    cancelled = []

    def over():
        runner.turn()
        (walker,) = runner.job_controller.jobs.find({"job.metadata.campaign": "c"})
        if started.exists() and not cancelled:
            cancelled.append(walker["remote"]["process_id"])
            subprocess.run(["scancel", *cancelled], check=True)
        jobs = engine.jobs(campaign="one") + engine.jobs(campaign="c")
        return all(str(job.state) in {"done", "failed", "paused"} for job in jobs)

    wait_for(over, "the end of all jobs", seconds=900)
    runner.close()
    assert engine.output(batch).missing_keys == []
    labels = [job for job in engine.jobs(campaign="one") if job.label_key]
    assert {str(job.state) for job in labels} == {"done"}
    (walker,) = runner.job_controller.jobs.find({"job.metadata.campaign": "c"})
    assert (walker["state"], walker["otf_returns"]) == ("COMPLETED", 1)
    assert walker["remote"]["process_id"] not in cancelled
    assert len(started.read_text().splitlines()) == 2
    script = (Path(labels[0].directory) / "submit.sh").read_text()
    assert "#SBATCH --partition=dft" in script


@pytest.mark.slow
def test_jobs_that_wait_in_the_queue_leave_it_on_a_pause_and_a_stop(batch_engine):
    from otf_workflows.engine.remote.runner import SiteRunner

    engine = batch_engine
    engine.submit(Flow([staged(report(), Stage.FINETUNE)]), **KEY)
    runner = SiteRunner(engine)

    def queued():
        listed = subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True)
        return len(listed.stdout.splitlines())

    def state():
        runner.turn()
        return str(engine.jobs(campaign="c")[0].state)

    assert (state(), queued()) == ("ready", 1)
    engine.pause("c")
    wait_for(lambda: (state(), queued()) == ("paused", 0))
    engine.resume("c")
    wait_for(lambda: (state(), queued()) == ("ready", 1))
    engine.cancel("c")
    wait_for(lambda: (state(), queued()) == ("failed", 0))
    assert "given up" in engine.jobs(campaign="c")[0].failure["message"]
    runner.close()


@pytest.mark.slow
def test_rounds_from_cron_bring_everything_to_its_end(batch_engine):
    from otf_workflows.engine.rounds import one_round

    engine = batch_engine
    walker = staged(report(), Stage.EXPLORE)
    chosen = staged(spawn(["a"]), Stage.SELECT)
    ended = staged(collect([walker.output, chosen.output]), Stage.GATHER)
    engine.submit(Flow([walker, chosen, ended]), **KEY)

    def over():
        one_round(engine.site)
        return engine.output(ended.uuid) == 2

    wait_for(over, "the end of the flow", seconds=900)
    assert {job.worker for job in engine.jobs(campaign="c")} == {"control", "md", "dft"}
