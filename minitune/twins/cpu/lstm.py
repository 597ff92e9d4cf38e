"""lstm: the part of x in one product for all tokens; then a product and one pass over the gates for each of them."""

from __future__ import annotations

import numpy as np

from ...backend import matmul as product
from . import elementwise
from .compiled import by_rows, compiled, not_float32, rows_of, sigmoid
from .linear import sum_of_rows

ONE = np.float32(1)
tanh = elementwise._tanh


@compiled
def _forward(recurrent, gates, h, c, hidden_states, cell_states, bias, t):
    """Token t of each row: h and c (B, H) are the states before it and become those after it.

    One loop a function: with fewer arrays in it, it is compiled to vectors.
    """
    B, H = h.shape
    for b in range(B):
        z, more = gates[b, t], recurrent[b]
        for j in range(2 * H):                                              # i and f
            z[j] = sigmoid(z[j] + more[j] + bias[j])
        for j in range(2 * H, 3 * H):
            z[j] = tanh(z[j] + more[j] + bias[j])       # g
        for j in range(3 * H, 4 * H):
            z[j] = sigmoid(z[j] + more[j] + bias[j])    # o
        i, f, g, o, c_row, h_row = z[:H], z[H : 2 * H], z[2 * H : 3 * H], z[3 * H :], c[b], h[b]
        for j in range(H):
            c_row[j] = f[j] * c_row[j] + i[j] * g[j]
        for j in range(H):
            h_row[j] = o[j] * tanh(c_row[j])
        hidden_states[b, t], cell_states[b, t] = h_row, c_row


@compiled
def _backward(grad_h, grad_c, grad_z, grad_hidden, grad_cell, gates, cell_states, c_before, t):
    """Token t of each row: grad_h and grad_c (B, H) are what flows back into the states after it; grad_c becomes that of the
    cell before it, and grad_z has that of the hidden state."""
    B, H = grad_h.shape
    for b in range(B):
        z, grad, at_h, at_c, c_row = gates[b, t], grad_z[b, t], grad_h[b], grad_c[b], c_before[b, t]
        i, f, g, o = z[:H], z[H : 2 * H], z[2 * H : 3 * H], z[3 * H :]
        grad_i, grad_f, grad_g, grad_o = grad[:H], grad[H : 2 * H], grad[2 * H : 3 * H], grad[3 * H :]
        tanh_c, above_h, above_c, after = grad_f, grad_hidden[b, t], grad_cell[b, t], cell_states[b, t]
        for j in range(H):
            tanh_c[j] = tanh(after[j])
        for j in range(H):
            at_h[j] += above_h[j]
            grad_o[j] = at_h[j] * tanh_c[j] * o[j] * (ONE - o[j])
        for j in range(H):
            at_c[j] += above_c[j] + at_h[j] * o[j] * (ONE - tanh_c[j] * tanh_c[j])
        for j in range(H):
            grad_i[j] = at_c[j] * g[j] * i[j] * (ONE - i[j])
            grad_g[j] = at_c[j] * i[j] * (ONE - g[j] * g[j])
        for j in range(H):
            grad_f[j] = at_c[j] * c_row[j] * f[j] * (ONE - f[j])
            at_c[j] *= f[j]


def lstm_unsupported(x, weight_ih, weight_hh, bias, hidden, cell, starts):
    return not_float32(x, weight_ih, weight_hh, bias, hidden, cell)


def lstm_forward(x, weight_ih, weight_hh, bias, hidden, cell, starts, *, needs):
    (B, T, _), H = x.shape, weight_hh.shape[1]
    rows, bias, weight_hh = rows_of(x), np.ascontiguousarray(bias), np.ascontiguousarray(weight_hh)
    across = np.ascontiguousarray(weight_hh.T)                              # (H, 4 H), which BLAS reads faster
    gates = product(rows, weight_ih.T).reshape(B, T, 4 * H)
    states, h, c = np.empty((2, B, T, H), np.float32), hidden.copy("C"), cell.copy("C")
    for t in range(T):
        if starts is not None:
            h[starts[:, t]] = c[starts[:, t]] = 0
        by_rows(_forward, (product(h, across), gates, h, c, *states), bias, t)
    return states, (states, gates, rows if needs.weight_ih else None, weight_ih, weight_hh, hidden, cell, starts)


def lstm_backward(grad, states, gates, rows, weight_ih, weight_hh, hidden, cell, starts, *, needs):
    (B, T, H), grad = grad.shape[1:], np.ascontiguousarray(grad)
    grad_z, c_before = np.empty_like(gates), _before(states[1], cell, starts)
    grad_h, grad_c = np.zeros((B, H), np.float32), np.zeros((B, H), np.float32)
    for t in reversed(range(T)):
        by_rows(_backward, (grad_h, grad_c, grad_z, *grad, gates, states[1], c_before), t)
        grad_h = product(grad_z[:, t], weight_hh)
        if starts is not None:
            grad_h[starts[:, t]] = grad_c[starts[:, t]] = 0
    along = grad_z.reshape(-1, 4 * H)                                       # (N, 4 H)
    return (product(grad_z, weight_ih) if needs.x else None,
            product(along.T, rows) if needs.weight_ih else None,
            product(along.T, _before(states[0], hidden, starts).reshape(-1, H)) if needs.weight_hh else None,
            sum_of_rows(along) if needs.bias else None, grad_h if needs.hidden else None, grad_c if needs.cell else None, None)


def _before(states, first, starts):
    """The state (B, T, H) that every token met, from those it left and the first."""
    before = np.concatenate([first[:, None], states[:, :-1]], 1)[:, : states.shape[1]]
    if starts is not None:
        before[starts] = 0
    return before
