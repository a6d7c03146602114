"""The element-wise part of CHGNet's gated layers on a CPU, compiled once and kept on disk.

Between two matrix products of a gated layer stand gathers, activations, layer norms and sums, on
which torch spends four fifths of a step of molecular dynamics, mostly moving arrays. Here each
row passes all of them in registers. Rows come in pairs: both directions of a bond, both orders of
an angle.

All activations come from one function, t(y) = 1 + tanh(y): silu(2y) = y t, sigmoid(2y) = t / 2,
so pre-activations are halved, and derivatives are polynomials of y and t.

Arguments go by position, as compiled functions take them. Arrays are float32 and C-contiguous,
indices int64. Names of dimensions: n rows, d columns of the gate, h of its hidden layer, k
functions that are differentiated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_REAL = np.float32
_HALF, _ONE, _TWO = _REAL(0.5), _REAL(1), _REAL(2)
_MINUS_TWO_LOG2_E = _REAL(-2 / np.log(2))
_BIAS, _LARGEST = 127, _REAL(126)
# 2**x on [-1/2, 1/2]: ln(2)**k / k!, where the seventh power is below the precision
_C1, _C2, _C3, _C4, _C5, _C6, _C7 = (_REAL(x) for x in np.cumprod(np.log(2) / np.arange(1, 8)))

# sums may be reordered, and products fused with sums; infinities and NaN stay what they are
compiled = njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})


@intrinsic
def _float_of_bits(_context: Any, bits: Any) -> Any:
    """Return the float32 with these bits: the only way to a vectorised power of two."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), code if bits == types.int32 else None


@njit(cache=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})
def one_plus_tanh(y: Any) -> Any:
    """Return 1 + tanh(y), to single precision: 2 / (1 + exp(-2 y))."""
    power = min(max(y * _MINUS_TWO_LOG2_E, -_LARGEST), _LARGEST)
    shifted = np.int32(power + _REAL(_BIAS + 0.5))
    x = power - (_REAL(shifted) - _REAL(_BIAS))  # exact: sums are not reordered here
    series = _C1 + x * (_C2 + x * (_C3 + x * (_C4 + x * (_C5 + x * (_C6 + x * _C7)))))
    scale: Any = _float_of_bits(np.int32(shifted << 23))  # type: ignore[call-arg]
    return _TWO / (_ONE + (_ONE + x * series) * scale)


@compiled
def gather_rows(table: np.ndarray, gather: np.ndarray, extra: np.ndarray, out: np.ndarray) -> None:
    """Sum rows of a table and what a pair of rows shares: ``out`` (2, n, d), core and gate.

    Parameters
    ----------
    table
        Shape (·, 2 d).
    gather
        Rows of the table to sum, shape (n, 2 or 3).
    extra
        Added to it, shape (n, 2 d), or (n / 2, 2 d) if the rows of a pair share it.
    out
        Is written.
    """
    n, width = gather.shape
    d = out.shape[2]
    share = n // len(extra)
    for r in range(n):
        e, a, b = r // share, gather[r, 0], gather[r, 1]
        for half in range(2):
            start = half * d
            for j in range(d):
                out[half, r, j] = table[a, start + j] + table[b, start + j] + extra[e, start + j]
            if width == 3:
                c = gather[r, 2]
                for j in range(d):
                    out[half, r, j] += table[c, start + j]


@compiled
def hidden_layer(y: np.ndarray, hidden: np.ndarray) -> None:
    """Write silu(2 y) into ``hidden``; any shapes that are the same."""
    y, hidden = y.reshape(-1), hidden.reshape(-1)
    for i in range(len(y)):
        hidden[i] = y[i] * one_plus_tanh(y[i])


@compiled
def open_row(  # noqa: PLR0917
    z: np.ndarray,
    r: int,
    scale: np.ndarray,
    shift: np.ndarray,
    epsilon: float,
    y: np.ndarray,
) -> None:
    """Write the halved input of the last activations of row r into ``y`` (2, d), 1/σ behind it.

    ``z`` has no mean over columns, so its mean square is the variance of a layer norm.
    """
    d = z.shape[2]
    for half in range(2):
        spread = _ONE
        if epsilon > 0:
            total = _REAL(0)
            for j in range(d):
                total += z[half, r, j] * z[half, r, j]
            spread = _ONE / np.sqrt(total / _REAL(d) + _REAL(epsilon))
        y[half, d] = spread
        for j in range(d):
            y[half, j] = z[half, r, j] * spread * scale[half, j] + shift[half, j]


@compiled
def send_messages(  # noqa: PLR0917
    z: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    epsilon: float,
    weights: np.ndarray,
    into: np.ndarray,
    total: np.ndarray,
) -> None:
    """Add the weighted messages of a block of rows to what receives them.

    Parameters
    ----------
    z
        Output of the last linear layers of core and gate, shape (2, n, d).
    scale, shift
        Half of the affine part of the layer norms, shape (2, d).
    epsilon
        Of the layer norms; 0 for none.
    weights
        Of each pair of rows, shape (n / 2, d).
    into
        Row of ``total`` that receives, shape (n,).
    total
        Is added to, shape (·, d).
    """
    _, n, d = z.shape
    y = np.empty((2, d + 1), _REAL)
    for r in range(n):
        open_row(z, r, scale, shift, epsilon, y)
        target, pair = into[r], r // 2
        for j in range(d):
            message = y[0, j] * one_plus_tanh(y[0, j]) * one_plus_tanh(y[1, j]) * _HALF
            total[target, j] += message * weights[pair, j]


@compiled
def update_rows(  # noqa: PLR0917
    z: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    epsilon: float,
    before: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write messages plus what was there before, (n, d), or (n / 2, d) shared by pairs."""
    _, n, d = z.shape
    y = np.empty((2, d + 1), _REAL)
    share = n // len(before)
    for r in range(n):
        open_row(z, r, scale, shift, epsilon, y)
        for j in range(d):
            message = y[0, j] * one_plus_tanh(y[0, j]) * one_plus_tanh(y[1, j]) * _HALF
            out[r, j] = before[r // share, j] + message


@compiled
def _slopes_of_row(  # noqa: PLR0917
    z: np.ndarray,
    r: int,
    scale: np.ndarray,
    shift: np.ndarray,
    epsilon: float,
    y: np.ndarray,
    slope: np.ndarray,
) -> None:
    """Write the message of row r, and its derivative by ``z`` scaled, into ``slope`` (3, d)."""
    open_row(z, r, scale, shift, epsilon, y)
    d = z.shape[2]
    for j in range(d):
        t, opening = one_plus_tanh(y[0, j]), one_plus_tanh(y[1, j])
        core = y[0, j] * t
        message = core * opening * _HALF
        slope[2, j] = message
        slope[0, j] = (t + core * (_TWO - t)) * opening * _HALF * (scale[0, j] * y[0, d])
        slope[1, j] = message * (_TWO - opening) * (scale[1, j] * y[1, d])


@compiled
def _through_norm(  # noqa: PLR0917
    back: np.ndarray, half: int, q: int, r: int, z: np.ndarray, spread: float
) -> None:
    """Take from gradients of a row what a layer norm loses: their part along its output."""
    d = z.shape[2]
    along = _REAL(0)
    for j in range(d):
        along += back[half, q, r, j] * z[half, r, j]
    along *= spread * spread / _REAL(d)
    for j in range(d):
        back[half, q, r, j] -= along * z[half, r, j]


@compiled
def return_messages(  # noqa: PLR0917
    z: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    epsilon: float,
    weights: np.ndarray,
    into: np.ndarray,
    by_total: np.ndarray,
    by_weights: np.ndarray,
    back: np.ndarray,
) -> None:
    """Pull gradients back through :func:`send_messages`, or :func:`update_rows`.

    Parameters
    ----------
    z, scale, shift, epsilon, into
        As there; for updates, ``into`` is the number of the row.
    weights
        As there; empty for updates.
    by_total
        Derivatives by what received the messages, shape (k, ·, d).
    by_weights
        Derivatives by ``weights`` are added here, shape (k, n / 2, d).
    back
        Derivatives by ``z`` are written here, shape (2, k, n, d).
    """
    _, n, d = z.shape
    y = np.empty((2, d + 1), _REAL)
    slope = np.empty((3, d), _REAL)
    weighted = len(weights) > 0
    for r in range(n):
        _slopes_of_row(z, r, scale, shift, epsilon, y, slope)
        pair, source = r // 2, into[r]
        for q in range(len(by_total)):
            for j in range(d):
                total = by_total[q, source, j]
                if weighted:
                    by_weights[q, pair, j] += total * slope[2, j]
                    total *= weights[pair, j]
                back[0, q, r, j] = total * slope[0, j]
                back[1, q, r, j] = total * slope[1, j]
            if epsilon > 0:
                for half in range(2):
                    _through_norm(back, half, q, r, z, y[half, d])


@compiled
def return_hidden(y: np.ndarray, back: np.ndarray) -> None:
    """Multiply gradients (2, k, n, h) by the derivative of :func:`hidden_layer` at ``y``."""
    _, n, h = y.shape
    slope = np.empty(h, _REAL)
    for half in range(2):
        for r in range(n):
            for j in range(h):
                t = one_plus_tanh(y[half, r, j])
                slope[j] = t + y[half, r, j] * t * (_TWO - t)
            for q in range(back.shape[1]):
                for j in range(h):
                    back[half, q, r, j] *= slope[j]


@compiled
def return_rows(
    back: np.ndarray, gather: np.ndarray, by_table: np.ndarray, by_extra: np.ndarray
) -> None:
    """Pull gradients back through :func:`gather_rows`.

    Parameters
    ----------
    back
        Derivatives by its output, shape (2, k, n, d).
    gather
        As there.
    by_table
        Is added to, shape (k, ·, 2 d); nothing happens if it is empty.
    by_extra
        Is written, shape (k, n, 2 d) or (k, n / 2, 2 d).
    """
    _, k, n, d = back.shape
    width = gather.shape[1]
    share = n // by_extra.shape[1]
    for q in range(k):
        for r in range(n):
            for half in range(2):
                start = half * d
                if r % share == 0:
                    for j in range(d):
                        by_extra[q, r // share, start + j] = back[half, q, r, j]
                else:
                    for j in range(d):
                        by_extra[q, r // share, start + j] += back[half, q, r, j]
                if by_table.shape[1] > 0:
                    for c in range(width):
                        target = gather[r, c]
                        for j in range(d):
                            by_table[q, target, start + j] += back[half, q, r, j]
