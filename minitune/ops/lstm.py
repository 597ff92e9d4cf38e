"""lstm: c = f c_before + i g, h = o tanh(c), token after token; the gates i, f, g, o come from x and from h_before."""

from __future__ import annotations

from typing import Any

from ..backend import Array, array_module
from ..backend import matmul as product
from ..tensor import Tensor, apply
from .elementwise import sigmoid_forward


def lstm(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, hidden: Tensor | Array,
         cell: Tensor | Array, starts: Array | None = None) -> Tensor:
    """Reads a sequence token by token and gives the hidden and the cell state after each, stacked.

    i, f, o = sigmoid and g = tanh of the four parts of x weight_ih^T + h_before weight_hh^T + bias;
    c = f c_before + i g; h = o tanh(c). `hidden` and `cell` are the states before the first token. Where `starts` is True,
    the states before that token are 0: a document begins there.
    Shapes, H hidden units, I inputs: x (B, T, I), weight_ih (4 H, I), weight_hh (4 H, H), bias (4 H,), hidden and cell
    (B, H), starts booleans (B, T) or None -> (2, B, T, H): hidden states, cell states
    Raises ValueError where shapes do not fit.
    Source: Hochreiter and Schmidhuber 1997, Long short-term memory, with the forget gate of Gers, Schmidhuber and Cummins
    2000; gates in PyTorch's order.

    >>> one, zero = Tensor([[1.0]] * 4), Tensor([[0.0]])
    >>> lstm(Tensor([[[0.0], [1.0]]]), one, one, Tensor([0.0] * 4), zero, zero).numpy().round(3).tolist()
    [[[[0.0], [0.3700000047683716]]], [[[0.0], [0.5569999814033508]]]]
    """
    if x.ndim != 3 or weight_ih.ndim != 2 or len(weight_ih) % 4 or x.shape[2] != weight_ih.shape[1]:
        raise ValueError(f"lstm: expected x (B, T, I) and weight_ih (4 H, I), got {x.shape} and {weight_ih.shape}. "
                         "Does x lack its batch axis?")
    B, T, H = *x.shape[:2], len(weight_ih) // 4
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "weight_hh": (weight_hh, (4 * H, H)), "bias": (bias, (4 * H,)), "hidden": (hidden, (B, H)), "cell": (cell, (B, H)),
        "starts": (starts, (B, T))}
    for name, (a, shape) in shapes.items():
        if not (a is None and name == "starts") and getattr(a, "shape", None) != shape:
            got = a.shape if hasattr(a, "shape") else f"{a!r:.40}. For zeros write np.zeros({shape}, x.dtype)"
            raise ValueError(f"lstm: {name} must be {shape} for x {x.shape} and weight_ih {weight_ih.shape}, got {got}")
    if starts is not None and starts.dtype.kind != "b":
        raise ValueError(f"lstm: starts must be booleans, got {starts.dtype}. Is it positions == 0?")
    return apply(lstm_forward, lstm_backward, x, weight_ih, weight_hh, bias, hidden, cell, starts)


def lstm_forward(x, weight_ih, weight_hh, bias, hidden, cell, starts, *, needs):
    xp, (B, T, _), H = array_module(x), x.shape, weight_hh.shape[1]
    gates = product(x, weight_ih.T) + bias                                  # (B, T, 4 H), the part of x for all tokens at once
    states = xp.empty((2, B, T, H), x.dtype)
    h, c = hidden, cell                                                     # (B, H) each, before token t
    for t in range(T):
        if starts is not None:
            h, c = (xp.where(starts[:, t, None], 0, a) for a in (h, c))
        i, f, g, o = _quarters(gates[:, t])                                 # views
        gates[:, t] += product(h, weight_hh.T)
        for gate in i, f, o:
            gate[:] = sigmoid_forward(gate, needs=needs)[0]
        g[:] = xp.tanh(g)
        c = f * c + i * g
        h = o * xp.tanh(c)
        states[0, :, t], states[1, :, t] = h, c
    first_cell = cell if any(needs[:5]) else 0      # only the first forget gate needs it, which tells nothing of the cell
    return states, (states, gates, x if needs.weight_ih else None, weight_ih if needs.x else None, weight_hh,
                    hidden if needs.weight_hh else None, first_cell, starts)


def lstm_backward(grad, states, gates, x, weight_ih, weight_hh, hidden, cell, starts, *, needs):
    """From the last token to the first: grad_h and grad_c are the gradients of the states that token t hands on."""
    xp, (B, T, H) = array_module(grad), grad.shape[1:]
    c_before, grad_z = _before(states[1], cell, starts), xp.empty_like(gates)         # z: the arguments of the gates
    grad_h, grad_c = xp.zeros((2, B, H), grad.dtype)
    for t in reversed(range(T)):
        i, f, g, o = _quarters(gates[:, t])
        tanh_c = xp.tanh(states[1, :, t])
        grad_h = grad_h + grad[0, :, t]
        grad_c = grad_c + grad[1, :, t] + grad_h * o * (1 - tanh_c * tanh_c)
        z_i, z_f, z_g, z_o = _quarters(grad_z[:, t])
        z_i[:] = grad_c * g * i * (1 - i)
        z_f[:] = grad_c * c_before[:, t] * f * (1 - f)
        z_g[:] = grad_c * i * (1 - g * g)
        z_o[:] = grad_h * tanh_c * o * (1 - o)
        grad_h, grad_c = product(grad_z[:, t], weight_hh), grad_c * f
        if starts is not None:
            grad_h, grad_c = (xp.where(starts[:, t, None], 0, a) for a in (grad_h, grad_c))
    rows = grad_z.reshape(-1, 4 * H)                                        # (N, 4 H)
    return (product(grad_z, weight_ih) if needs.x else None,
            product(rows.T, x.reshape(-1, x.shape[-1])) if needs.weight_ih else None,
            product(rows.T, _before(states[0], hidden, starts).reshape(-1, H)) if needs.weight_hh else None,
            rows.sum(0) if needs.bias else None, grad_h if needs.hidden else None, grad_c if needs.cell else None, None)


def _before(states, first, starts):
    """The state (B, T, H) that every token met, from those it left and the first."""
    before = array_module(states).empty_like(states)
    before.swapaxes(0, 1)[:1] = first
    before[:, 1:] = states[:, :-1]
    if starts is not None:
        before[starts] = 0
    return before


def _quarters(a):
    """The parts (B, H) of i, f, g and o in (B, 4 H)."""
    H = a.shape[1] // 4
    return tuple(a[:, part * H : (part + 1) * H] for part in range(4))
