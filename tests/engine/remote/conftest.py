"""jobflow-remote as the engine: real database, real runner, jobs that see no database."""

import pytest
import yaml

from otf_workflows.campaign import Campaign, SelectionRules
from otf_workflows.engine import open_engine
from otf_workflows.schemas import Frame
from otf_workflows.settings import load_site
from otf_workflows.store import Store
from otf_workflows.testing.labelling import ask_for_labels, walker_that_met
from otf_workflows.testing.remote import drain as drain_runner
from otf_workflows.testing.remote import runner_here

CELL = [[3.6, 0, 0], [0, 3.6, 0], [0, 0, 3.6]]
N_LABELS = 4


@pytest.fixture
def engine(remote_site):
    made = open_engine(remote_site)
    yield made
    made.close()


@pytest.fixture
def runner(engine):
    """A runner whose jobs run in this process, as soon as they are submitted."""
    with runner_here(engine) as made:
        yield made


@pytest.fixture
def drain(runner):
    """Turn until nothing changes any more."""
    return lambda: drain_runner(runner)


@pytest.fixture
def store(database):
    store = Store(database)
    store.ensure_indexes()
    return store


def frame(x):
    return Frame(numbers=[29, 29], cell_A=CELL, positions_A=[[x, 0, 0], [1.8] * 3])


@pytest.fixture
def begin_on(store):
    """Submit to an engine the part of a cycle that asks for four labels and gathers them."""

    def start(engine, name, **labels):
        asked = Campaign(
            name=name,
            structure=frame(0.0),
            potential="toy-lj",
            labels={"code": "ase", "calculator": "emt", **labels},
            selection=SelectionRules(
                labels_per_cycle=N_LABELS - 1, audit_per_cycle=1, duplicate_distance=0.0
            ),
        )
        met = walker_that_met([frame(0.02 * i) for i in range(1, N_LABELS + 1)])
        return ask_for_labels(asked, met, store, engine)

    return start


@pytest.fixture
def begin(begin_on, engine):
    return lambda name, **labels: begin_on(engine, name, **labels)


@pytest.fixture
def batch_engine(slurm, remote_site, tmp_path):
    """An engine whose labels and MD go to two partitions, on nodes that see no database."""
    blind = tmp_path / "blind.yaml"
    nowhere = {"mode": "server", "host": "127.0.0.1", "port": 1}
    blind.write_text(yaml.safe_dump({"database": nowhere, "state_dir": str(tmp_path / "node")}))
    small = {"memory_MiB": 2000, "walltime_s": 600}
    document = yaml.safe_load(remote_site.source.read_text()) | {
        "queues": {
            "dft": {"partition": "dft", **small},
            "md": {"partition": "gpu", **small},
            "train": {"partition": "gpu", "directives": ["#SBATCH --hold"], **small},
        },
        "remote": {"poll_s": 0.5, "site_file": str(blind)},
    }
    remote_site.source.write_text(yaml.safe_dump(document))
    made = open_engine(load_site())
    yield made
    made.close()
