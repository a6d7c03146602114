"""CHGNet's shipped weights, without ever running code from a file."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from chgnet.model import CHGNet


def shipped_model(version: str) -> CHGNet:
    """Return a checkpoint of the chgnet package: ``0.3.0``, ``0.2.0`` or ``r2scan``."""
    import chgnet

    (path,) = (Path(str(chgnet.__file__)).parent / "pretrained" / version).glob("*.pth.tar")
    saved = torch.load(path, map_location="cpu", weights_only=True)["model"]
    # the published 0.2.0 has biases that its file does not mention (chgnet issue 79)
    extra = {"version": version, "mlp_out_bias": version == "0.2.0"}
    return build_model({**saved["model_args"], **extra}, saved["state_dict"])


def build_model(model_args: dict[str, Any], state_dict: dict[str, torch.Tensor]) -> CHGNet:
    """Return a frozen chgnet model with these weights."""
    from chgnet.model import CHGNet

    # the constructor prints, and draws initial weights from the random stream of the caller
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        model = CHGNet(**model_args)
    model.load_state_dict(state_dict)
    return model.eval().requires_grad_(False)
