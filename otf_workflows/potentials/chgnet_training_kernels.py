"""The element-wise part of CHGNet's gated layers, differentiated along a direction.

Rows are those of :mod:`otf_workflows.potentials.chgnet_kernels`. Beside each value runs its rate
along a change of all bond vectors; on the way back there are two derivatives for each row, by the
rates and by the values, in this order, shape (2, ·).
"""

from __future__ import annotations

import numpy as np

from otf_workflows.potentials.chgnet_kernels import compiled, one_plus_tanh, open_row

_REAL = np.float32
_HALF, _ONE, _TWO = _REAL(0.5), _REAL(1), _REAL(2)


@compiled
def hidden_rates(y: np.ndarray, rates: np.ndarray, out: np.ndarray) -> None:
    """Write the rates of ``hidden_layer(y)`` into ``out``; any shapes that are the same."""
    y, rates, out = y.reshape(-1), rates.reshape(-1), out.reshape(-1)
    for i in range(len(y)):
        t = one_plus_tanh(y[i])
        out[i] = (t + y[i] * t * (_TWO - t)) * rates[i]


@compiled
def _rates_of_row(  # noqa: PLR0917
    z: np.ndarray, rates: np.ndarray, r: int, y: np.ndarray, epsilon: float, out: np.ndarray
) -> None:
    """Write the rates of the normalised row r into ``out`` (2, d), n · rate / d behind them."""
    d = z.shape[2]
    for half in range(2):
        spread, along = y[half, d], _REAL(0)
        if epsilon > 0:
            for j in range(d):
                along += z[half, r, j] * rates[half, r, j]
            along *= spread / _REAL(d)
        out[half, d] = along
        for j in range(d):
            out[half, j] = spread * (rates[half, r, j] - along * spread * z[half, r, j])


@compiled
def send_rates(  # noqa: PLR0917
    z: np.ndarray,
    z_rates: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    epsilon: float,
    weights: np.ndarray,
    weight_rates: np.ndarray,
    into: np.ndarray,
    total: np.ndarray,
) -> None:
    """Add the rates of weighted messages to what receives them.

    Parameters
    ----------
    z, scale, shift, epsilon, into
        As in ``send_messages``.
    z_rates
        Rates of ``z``, shape (2, n, d).
    weights, weight_rates
        Of each pair of rows, shape (n / 2, d); both empty for weights of 1.
    total
        Is added to, shape (·, d).
    """
    _, n, d = z.shape
    y, rates = np.empty((2, d + 1), _REAL), np.empty((2, d + 1), _REAL)
    weighted = len(weights) > 0
    for r in range(n):
        open_row(z, r, scale, shift, epsilon, y)
        _rates_of_row(z, z_rates, r, y, epsilon, rates)
        target, pair = into[r], r // 2
        for j in range(d):
            t, opening = one_plus_tanh(y[0, j]), one_plus_tanh(y[1, j])
            core = y[0, j] * t
            message = core * opening * _HALF
            rate = (t + core * (_TWO - t)) * opening * _HALF * (scale[0, j] * rates[0, j])
            rate += message * (_TWO - opening) * (scale[1, j] * rates[1, j])
            if weighted:
                rate = rate * weights[pair, j] + message * weight_rates[pair, j]
            total[target, j] += rate


@compiled
def _through_norm(  # noqa: PLR0917
    back: np.ndarray,
    z: np.ndarray,
    z_rates: np.ndarray,
    half: int,
    r: int,
    spread: float,
    rates: np.ndarray,
) -> None:
    """Pull derivatives in ``back``, already divided by the deviation, through a layer norm.

    With n = z / σ and the projector P = (1 - n nᵀ / d) / σ, values pass as n and rates as P · rate;
    the derivative of P by z adds to what P takes back to the values.
    """
    d = z.shape[2]
    along_rate, along_value, cross = _REAL(0), _REAL(0), _REAL(0)
    for j in range(d):
        along_rate += back[half, 0, r, j] * z[half, r, j]
        along_value += back[half, 1, r, j] * z[half, r, j]
    share = spread * spread / _REAL(d)
    along_rate *= share
    for j in range(d):
        back[half, 0, r, j] -= along_rate * z[half, r, j]
        cross += back[half, 0, r, j] * z_rates[half, r, j]
    along = (along_value + cross) * share
    # n · by_rate / d before the projection; the deviation is in by_rate already
    normal = along_rate / spread
    across = rates[half, d] * spread
    for j in range(d):
        back[half, 1, r, j] -= (
            along * z[half, r, j] + across * back[half, 0, r, j] + normal * rates[half, j]
        )


@compiled
def return_both(  # noqa: PLR0917
    z: np.ndarray,
    z_rates: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    epsilon: float,
    weights: np.ndarray,
    weight_rates: np.ndarray,
    into: np.ndarray,
    by_total: np.ndarray,
    by_weights: np.ndarray,
    by_scale: np.ndarray,
    by_shift: np.ndarray,
    back: np.ndarray,
) -> None:
    """Pull derivatives back through :func:`send_rates` and ``send_messages`` together.

    Parameters
    ----------
    z, z_rates, scale, shift, epsilon, weights, weight_rates, into
        As there.
    by_total
        Derivatives by rates and values of what received the messages, shape (2, ·, d).
    by_weights
        Those by the weights are added here, shape (2, n / 2, d).
    by_scale, by_shift
        Those by the affine part of the layer norms are added here, shape (2, d).
    back
        Those by ``z`` are written here, shape (2, 2, n, d), halves first.
    """
    _, n, d = z.shape
    y, rates = np.empty((2, d + 1), _REAL), np.empty((2, d + 1), _REAL)
    by_rate, by_value = np.empty((2, d), _REAL), np.empty((2, d), _REAL)
    weighted = len(weights) > 0
    for r in range(n):
        open_row(z, r, scale, shift, epsilon, y)
        _rates_of_row(z, z_rates, r, y, epsilon, rates)
        source, pair = into[r], r // 2
        for j in range(d):
            t, opening = one_plus_tanh(y[0, j]), one_plus_tanh(y[1, j])
            core = y[0, j] * t
            message = core * opening * _HALF
            by_core = (t + core * (_TWO - t)) * opening * _HALF
            by_gate = message * (_TWO - opening)
            # second derivatives of the message
            core_core = t * (_TWO - t) * (_ONE + y[0, j] * (_ONE - t)) * opening
            core_gate = by_core * (_TWO - opening)
            gate_gate = by_gate * _TWO * (_ONE - opening)
            rate_0, rate_1 = scale[0, j] * rates[0, j], scale[1, j] * rates[1, j]
            at_rate, at_value = by_total[0, source, j], by_total[1, source, j]
            if weighted:
                by_weights[0, pair, j] += at_rate * message
                by_weights[1, pair, j] += at_value * message + at_rate * (
                    by_core * rate_0 + by_gate * rate_1
                )
                at_value = at_value * weights[pair, j] + at_rate * weight_rates[pair, j]
                at_rate *= weights[pair, j]
            by_rate[0, j] = at_rate * by_core
            by_rate[1, j] = at_rate * by_gate
            by_value[0, j] = at_value * by_core + at_rate * (
                core_core * rate_0 + core_gate * rate_1
            )
            by_value[1, j] = at_value * by_gate + at_rate * (
                core_gate * rate_0 + gate_gate * rate_1
            )
        for half in range(2):
            spread = y[half, d]
            for j in range(d):
                factor = scale[half, j] * spread
                back[half, 0, r, j] = by_rate[half, j] * factor
                back[half, 1, r, j] = by_value[half, j] * factor
            if epsilon > 0:
                for j in range(d):
                    by_shift[half, j] += by_value[half, j]
                    by_scale[half, j] += (
                        by_value[half, j] * (z[half, r, j] * spread)
                        + by_rate[half, j] * rates[half, j]
                    )
                _through_norm(back, z, z_rates, half, r, spread, rates)


@compiled
def return_hidden_both(
    y: np.ndarray, y_rates: np.ndarray, back: np.ndarray, hidden: np.ndarray
) -> None:
    """Pull derivatives (2, 2, n, h) back through :func:`hidden_rates` and ``hidden_layer``.

    Rates and values of the hidden layer are written into ``hidden``, of the same shape.
    """
    _, n, h = y.shape
    for half in range(2):
        for r in range(n):
            for j in range(h):
                x, rate = y[half, r, j], y_rates[half, r, j]
                t = one_plus_tanh(x)
                bend = t * (_TWO - t)
                slope = t + x * bend
                by_rate = back[half, 0, r, j]
                hidden[half, 0, r, j] = slope * rate
                hidden[half, 1, r, j] = x * t
                back[half, 0, r, j] = by_rate * slope
                back[half, 1, r, j] = back[half, 1, r, j] * slope + by_rate * rate * (
                    _TWO * bend * (_ONE + x * (_ONE - t))
                )
