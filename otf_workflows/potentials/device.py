"""Which device a potential runs on.

Imports torch; call it where a potential is about to be loaded.
"""

from __future__ import annotations

import os

from otf_workflows.errors import ConfigurationError
from otf_workflows.types import Device

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def choose_device(asked: Device) -> str:
    """Return the torch device to use, on a GPU with results that repeat bit by bit.

    Sums over neighbours are made by many threads at once on a GPU, in any order unless PyTorch is
    told otherwise (see its notes on reproducibility). A walker that was killed could then not be
    continued as it would have gone on.

    Parameters
    ----------
    asked
        What the site file says.

    Raises
    ------
    ConfigurationError
        If a GPU is asked for, and PyTorch sees none.
    """
    if asked is Device.CPU:
        return "cpu"
    # Read by cuBLAS when it starts; ":4096:8" is one of the two values that make it repeatable.
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    import torch

    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(True)
        return "cuda"
    if asked is Device.CUDA:
        raise ConfigurationError(
            "The site file asks for a GPU (device: cuda), and PyTorch sees none on this machine.",
            hint="otf doctor; a CPU build of PyTorch sees none, nor does a job without a GPU",
        )
    return "cpu"
