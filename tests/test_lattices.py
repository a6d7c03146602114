"""Integer lattices: every sublattice once, and one vector of every class."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otf_workflows.lattices import contains, hermite, representatives, sublattices

matrices = st.lists(st.integers(-5, 5), min_size=9, max_size=9).map(
    lambda values: np.array(values).reshape(3, 3)
)
full_rank = matrices.filter(lambda m: abs(np.linalg.det(m)) > 0.5)


@settings(deadline=None)
@given(full_rank)
def test_the_normal_form_spans_the_same_lattice_and_is_triangular(matrix):
    form = hermite(matrix)
    assert contains(form, matrix)
    assert contains(matrix, form)
    assert np.array_equal(form, np.triu(form))
    diagonal = np.diag(form)
    assert (diagonal > 0).all()
    for column in range(3):
        above = form[:column, column]
        assert ((above >= 0) & (above < diagonal[column])).all()


@settings(deadline=None)
@given(full_rank)
def test_bases_of_one_lattice_have_one_normal_form(matrix):
    other = np.array([[1, 2, 0], [0, 1, 0], [3, 0, -1]]) @ matrix
    assert np.array_equal(hermite(other), hermite(matrix))


@settings(deadline=None, max_examples=50)
@given(full_rank)
def test_representatives_are_one_of_each_class(matrix):
    vectors = representatives(matrix)
    assert len(vectors) == abs(round(np.linalg.det(matrix)))
    coordinates = vectors @ np.linalg.inv(matrix)
    apart = coordinates[:, None] - coordinates[None]
    same = np.abs(apart - np.rint(apart)).max(axis=-1) < 1e-6
    assert same.sum() == len(vectors)


@pytest.mark.parametrize(("index", "number"), [(1, 1), (2, 7), (3, 13), (4, 35), (8, 155)])
def test_there_are_as_many_sublattices_as_number_theory_says(index, number):
    """Sequence A001001 of the OEIS."""
    found = list(sublattices(index))
    assert len(found) == number
    assert all(np.array_equal(hermite(lattice), lattice) for lattice in found)


def test_a_lattice_contains_its_multiples_only():
    assert contains(np.eye(3), 2 * np.eye(3))
    assert not contains(2 * np.eye(3), np.eye(3))
