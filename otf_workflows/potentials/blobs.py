"""Tensors and plain values as bytes and back, without ever running code from them."""

from __future__ import annotations

import hashlib
import io
import json
import re
from typing import Any

import torch

from otf_workflows.potentials.base import PotentialError


def encode(content: dict[str, Any], *, family: str) -> bytes:
    """Return tensors and plain values as bytes that know their family and their checksum."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    return _magic(family) + hashlib.sha256(payload).digest() + payload


def decode(blob: bytes, *, family: str) -> dict[str, Any]:
    """Return what :func:`encode` was given.

    Raises
    ------
    PotentialError
        If these are other bytes, or not all of them, or not the same.
    """
    magic = _magic(family)
    start = len(magic) + hashlib.sha256().digest_size
    digest, payload = blob[len(magic) : start], blob[start:]
    if not blob.startswith(magic):
        problem = f"are not the weights of a potential of the family {family}"
    elif hashlib.sha256(payload).digest() != digest:
        problem = "are damaged weights: their checksum is wrong"
    else:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    raise PotentialError(
        f"These {len(blob)} bytes {problem}.", hint="fetch or dump the model again"
    )


def name_of(blob: bytes) -> str:
    """Return the registry name of the potential that was dumped as these bytes.

    Raises
    ------
    PotentialError
        If no potential of this package wrote them.
    """
    found = re.match(rb"otf-([a-z0-9]+)-1\n", blob)
    if found:
        return decode(blob, family=found[1].decode())["name"]
    try:
        return json.loads(blob)["name"]  # the toy is plain JSON
    except (ValueError, LookupError, TypeError) as error:
        raise PotentialError(
            f"These {len(blob)} bytes are not a potential of this package.",
            hint="write the file with: otf models export MODEL",
        ) from error


def _magic(family: str) -> bytes:
    return f"otf-{family}-1\n".encode()
