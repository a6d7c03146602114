"""Fixtures of the tests of potentials."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Numbers repeat bit by bit on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
