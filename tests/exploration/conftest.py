"""Fixtures of the tests of exploration."""

from contextlib import contextmanager

import pytest

from otf_workflows.exploration.dynamics import Dynamics


@pytest.fixture
def killed_at(monkeypatch):
    """Let MD die before its n-th step, inside a ``with`` block that must end so."""

    @contextmanager
    def block(n):
        advance, calls = Dynamics.advance, []

        def failing(self):
            calls.append(1)
            if len(calls) == n:
                raise RuntimeError
            advance(self)

        with monkeypatch.context() as patch:
            patch.setattr(Dynamics, "advance", failing)
            with pytest.raises(RuntimeError):
                yield

    return block
