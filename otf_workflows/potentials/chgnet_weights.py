"""CHGNet's weights as bytes and back, without ever running code from a file."""

from __future__ import annotations

import contextlib
import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from otf_workflows.potentials.base import PotentialError

if TYPE_CHECKING:
    from chgnet.model import CHGNet

_MAGIC = b"otf-chgnet-1\n"
"""Start of every blob; the sha256 of the rest follows."""


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


def encode(content: dict[str, Any]) -> bytes:
    """Return tensors and plain values as bytes that know their own checksum."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    return _MAGIC + hashlib.sha256(payload).digest() + payload


def decode(blob: bytes) -> dict[str, Any]:
    """Return what :func:`encode` was given.

    Raises
    ------
    PotentialError
        If these are other bytes, or not all of them, or not the same.
    """
    start = len(_MAGIC) + hashlib.sha256().digest_size
    digest, payload = blob[len(_MAGIC) : start], blob[start:]
    if not blob.startswith(_MAGIC):
        problem = "are not the weights of a CHGNet potential"
    elif hashlib.sha256(payload).digest() != digest:
        problem = "are damaged weights: their checksum is wrong"
    else:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    raise PotentialError(
        f"These {len(blob)} bytes {problem}.", hint="fetch or dump the model again"
    )
