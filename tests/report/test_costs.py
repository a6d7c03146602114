"""Shares of wall time, and what a campaign's documents cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otf_workflows.report.costs import wall_time

ACTIVITIES = ("exploration", "labelling", "training")


def test_gaps_are_orchestration():
    wall = wall_time([("exploration", 10.0, 30.0), ("training", 50.0, 60.0)], start=0.0, end=100.0)
    assert wall.shares == pytest.approx({"exploration": 0.2, "training": 0.1, "orchestration": 0.7})


def test_jobs_of_one_activity_at_the_same_time_count_once():
    wall = wall_time([("labelling", 0.0, 50.0), ("labelling", 20.0, 60.0)], start=0.0, end=100.0)
    assert wall.shares["labelling"] == pytest.approx(0.6)


def test_activities_at_the_same_time_share_the_moment():
    wall = wall_time([("labelling", 0.0, 40.0), ("training", 20.0, 40.0)], start=0.0, end=40.0)
    assert wall.shares == pytest.approx({"labelling": 0.75, "training": 0.25, "orchestration": 0.0})


def test_work_before_submission_does_not_count():
    wall = wall_time([("labelling", -50.0, -10.0), ("training", -5.0, 5.0)], start=0.0, end=10.0)
    assert wall.shares == pytest.approx({"training": 0.5, "orchestration": 0.5})


def test_without_intervals_there_are_no_shares():
    assert wall_time([], start=0.0, end=10.0).shares == {}
    assert wall_time([("training", 0.0, 1.0)], start=5.0, end=5.0).shares == {}


@given(
    st.lists(
        st.tuples(st.sampled_from(ACTIVITIES), st.floats(-10, 110), st.floats(0, 50)), min_size=1
    )
)
def test_shares_always_add_up_to_one(spans):
    found = [(activity, begin, begin + length) for activity, begin, length in spans]
    shares = wall_time(found, start=0.0, end=100.0).shares
    assert sum(shares.values()) == pytest.approx(1.0)
    assert min(shares.values()) >= 0
