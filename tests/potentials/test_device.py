"""Where potentials run; this machine has no GPU, so one is said to be there."""

import pytest
import torch

from otf_workflows import jobs
from otf_workflows.errors import ConfigurationError
from otf_workflows.potentials.device import CUBLAS_WORKSPACE, choose_device
from otf_workflows.types import Device


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says to have a GPU; what is changed for it is put back."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("asked", [Device.AUTO, Device.CPU])
def test_without_a_gpu_it_is_the_cpu(asked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(asked) == "cpu"


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="sees none"):
        choose_device(Device.CUDA)


def test_a_gpu_is_used_and_told_to_repeat_itself(gpu, monkeypatch):
    assert choose_device(Device.AUTO) == choose_device(Device.CUDA) == "cuda"
    assert torch.are_deterministic_algorithms_enabled()
    assert choose_device(Device.CPU) == "cpu"


def test_jobs_load_their_model_where_the_site_wants_it(gpu, site, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "otf_workflows.potentials.load_potential",
        lambda name, blob, *, device: loaded.append((name, blob, device)),
    )
    jobs.load_model("chgnet-0.3.0", None)
    assert loaded == [("chgnet-0.3.0", None, "cuda")]
