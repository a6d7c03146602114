"""What follows from the loss of a job, and how labels are packed: arithmetic only."""

import pytest

from otf_workflows.engine.queues.backoff import BackOff
from otf_workflows.engine.queues.packing import (
    Load,
    grant_for_label,
    limits_of,
    packing,
    pilots_wanted,
    usual_wait_s,
)
from otf_workflows.engine.queues.retries import MAX_LOSSES, Grant, Limits, decide
from otf_workflows.settings import Queue
from otf_workflows.types import FailureCause, Packing

HAD = Grant(600.0, 1000)
LIMITS = Limits(3600.0, 3000)


@pytest.mark.parametrize("cause", [FailureCause.NODE, FailureCause.UNKNOWN])
def test_what_was_no_fault_of_the_job_is_repeated_but_not_for_ever(cause):
    for n in range(MAX_LOSSES):
        verdict = decide(cause, earlier=[cause] * n, had=HAD, limits=LIMITS)
        assert verdict.again
        assert verdict.needs is None
    assert not decide(cause, earlier=[cause] * MAX_LOSSES, had=HAD, limits=LIMITS).again


def test_a_job_cancelled_by_a_person_waits_for_a_person():
    assert not decide(FailureCause.KILLED, earlier=[], had=HAD, limits=LIMITS).again


def test_more_time_and_memory_up_to_what_the_queue_gives_and_no_further():
    grants, had = [], HAD
    while (verdict := decide(FailureCause.WALLTIME, earlier=[], had=had, limits=LIMITS)).again:
        had = verdict.needs
        grants.append(had.walltime_s)
    assert grants == [1200.0, 2400.0, 3600.0]
    assert "3600 s are the most" in verdict.sentence
    memory, had = [], HAD
    while (verdict := decide(FailureCause.MEMORY, earlier=[], had=had, limits=LIMITS)).again:
        had = verdict.needs
        memory.append(had.memory_MiB)
    assert memory == [2000, 3000]
    assert had.walltime_s == HAD.walltime_s


def test_memory_that_nobody_knows_cannot_be_doubled():
    unknown = decide(
        FailureCause.MEMORY, earlier=[], had=Grant(60.0), limits=limits_of(Queue(walltime_s=60))
    )
    assert not unknown.again
    assert "memory_MiB" in unknown.sentence


def test_a_job_with_checkpoints_needs_no_more_time():
    verdict = decide(
        FailureCause.WALLTIME,
        earlier=[FailureCause.WALLTIME] * 9,
        had=Grant(3600.0),
        limits=LIMITS,
        progressed=True,
    )
    assert verdict.again
    assert verdict.needs is None


def test_the_labeler_s_own_failures_are_not_the_launcher_s_to_repeat():
    assert not decide(FailureCause.SCF, earlier=[], had=HAD, limits=LIMITS).again


@pytest.mark.parametrize(
    ("label_s", "wait_s", "expected"),
    [
        (None, 300, Packing.PILOT),
        (30, 5, Packing.PILOT),
        (1800, 7200, Packing.PILOT),
        (7200, 1800, Packing.ONE),
    ],
)
def test_long_labels_get_a_batch_job_each_and_short_ones_share(label_s, wait_s, expected):
    assert packing(Queue(), label_s=label_s, wait_s=wait_s) is expected
    asked = packing(Queue(packing="one"), label_s=label_s, wait_s=wait_s)
    assert asked is Packing.ONE


def test_there_are_as_many_pilots_as_have_something_to_do():
    queue = Queue(max_jobs=4)

    def wanted(n_ready, n_running=0, job_s=None, wait_s=60.0, queue=queue):
        return pilots_wanted(queue, Load(n_ready, n_running, job_s, wait_s))

    assert wanted(0, 3) == 0
    assert wanted(2) == 2
    assert wanted(100) == 4
    assert wanted(1, 1) == 2
    assert wanted(10, job_s=1.0) == 1  # ten seconds of work are not worth a second wait
    assert wanted(100, job_s=3.0, wait_s=100.0) == 3
    assert wanted(8, queue=Queue(max_jobs=9, side_by_side=4, ranks=4)) == 2


def test_a_label_s_walltime_and_memory_follow_from_what_is_known_of_it():
    queue = Queue(walltime_s=3600, memory_MiB=2000, max_walltime_s=7200, max_memory_MiB=6000)
    limits = limits_of(queue)

    def grant(label_s, ratio):
        return grant_for_label(queue, label_s=label_s, size_ratio=ratio, limits=limits)

    assert grant(None, None) == Grant(3600.0, 2000)
    assert grant(1000.0, 1.0) == Grant(2220.0, 2000)
    assert grant(1000.0, 1.5) == Grant(2220.0, 4500)
    assert grant(1e6, 10.0) == Grant(7200.0, 6000)
    assert grant(10.0, 0.2).walltime_s % 60 == 0


def test_the_wait_is_what_was_measured():
    assert usual_wait_s([1.0, 2.0, 600.0]) == 2.0
    assert usual_wait_s([]) > 0


def test_pauses_grow_and_are_forgotten():
    pause = BackOff(1.0, longest_s=3.0)
    assert not pause.waiting
    assert [pause.failed() for _ in range(3)] == [1.0, 2.0, 3.0]
    assert pause.waiting
    pause.worked()
    assert not pause.waiting
    assert pause.failed() == 1.0
