"""The command line, called in this process as a shell would call it."""

import json
from dataclasses import dataclass

import pytest

from otf_workflows.cli import main as cli


@dataclass
class Done:
    code: int
    out: str
    err: str

    def json(self):
        return json.loads(self.out)


@pytest.fixture
def otf(capsys):
    def run(*words) -> Done:
        capsys.readouterr()
        code = 0
        try:
            cli.main([str(word) for word in words])
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@pytest.fixture
def store(database):
    from otf_workflows.store import Store

    return Store(database)


@pytest.fixture
def finished(store):
    """The name of a finished campaign with four cycles and a production run."""
    from otf_workflows.testing.campaigns import synthetic_campaign

    return synthetic_campaign(store).name
