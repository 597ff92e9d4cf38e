"""linear_cross_entropy: the cross-entropy of logits z = x weight^T + bias, which are never held as a whole."""

from __future__ import annotations

from ..backend import Array, array_module
from ..backend import matmul as product
from ..tensor import Tensor, apply
from .cross_entropy import IGNORE, check_targets

ROWS = 256      # rows of logits held at a time: at V = 8,192 and float32 these are 8 MB


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Array, bias: Tensor | None = None) -> Tensor:
    """The sum over rows of log(sum(e^z)) - z[target], z = x weight^T + bias; targets of IGNORE (-100) count nothing.

    Shapes: x (..., C), weight (V, C), targets (...), bias (V,) or None -> ()
    Raises ValueError where shapes do not fit or a target lies outside 0 .. V - 1.
    """
    if len(weight.shape) != 2 or not x.shape or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear_cross_entropy: x must be (..., C) for weight (V, C) = {weight.shape}, got {x.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear_cross_entropy: bias must be (V,) = {weight.shape[:1]}, got {bias.shape}")
    check_targets("linear_cross_entropy", targets, x.shape[:-1], weight.shape[0])
    return apply(linear_cross_entropy_forward, linear_cross_entropy_backward, x, weight, targets, bias)


def linear_cross_entropy_forward(x, weight, targets, bias, *, needs):
    """The gradients are made here, while a chunk's logits are at hand; backward only scales them."""
    xp = array_module(x)
    kept = (targets.reshape(-1) != IGNORE).nonzero()[0]                     # the supervised rows
    rows, labels = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    grad_x = xp.zeros_like(rows) if needs.x else None
    grad_weight = xp.zeros_like(weight) if needs.weight else None
    grad_bias = xp.zeros_like(bias) if needs.bias else None
    loss = xp.zeros((), x.dtype)
    for start in range(0, len(kept), ROWS):
        chunk = kept[start : start + ROWS]
        part = rows[chunk]                                                  # (ROWS, C)
        z = product(part, weight.T)                                         # (ROWS, V)
        if bias is not None:
            z += bias
        part_loss, p = _loss_and_slope(xp, z, labels[chunk])
        loss += part_loss
        if needs.x:
            grad_x[chunk] = product(p, weight)
        if needs.weight:
            grad_weight += product(p.T, part)
        if needs.bias:
            grad_bias += p.sum(0)
    return loss, (None if grad_x is None else grad_x.reshape(x.shape), grad_weight, grad_bias)


def _loss_and_slope(xp, z, labels):
    """The chunk's loss and, written over its logits, d loss / d z = softmax(z) - one at the target."""
    at_label = xp.arange(len(z)), labels
    z -= z.max(-1, keepdims=True)
    picked = z[at_label]
    p = xp.exp(z, out=z)
    total = p.sum(-1, keepdims=True)
    loss = (xp.log(total[:, 0]) - picked).sum()
    p /= total
    p[at_label] -= 1
    return loss, p


def linear_cross_entropy_backward(grad, grad_x, grad_weight, grad_bias, *, needs):
    return (grad_x * grad if needs.x else None, grad_weight * grad if needs.weight else None, None,
            grad_bias * grad if needs.bias else None)
