"""cross_entropy: sum over rows of log(sum(e^z)) - z[target], for logits z."""

from __future__ import annotations

from ..backend import Array, array_module
from ..tensor import Tensor, apply
from .reductions import logsumexp

IGNORE = -100       # the target of a row that is not supervised, as in PyTorch


def check_targets(name: str, targets: Array, shape: tuple[int, ...], classes: int) -> None:
    """Targets are integers of the rows' shape, each IGNORE or a class; the first that is not is named."""
    if targets.shape != shape or targets.dtype.kind not in "iu":
        raise ValueError(f"{name}: targets must be integers {shape}, got {targets.dtype} {targets.shape}")
    wrong = (targets != IGNORE) & ((targets < 0) | (targets >= classes))
    if wrong.any():
        place = tuple(int(axis[0]) for axis in wrong.nonzero())
        raise ValueError(f"{name}: targets must lie in 0 .. {classes - 1} or be {IGNORE} (ignored), "
                         f"got {targets[place]} at {place}")


def cross_entropy(logits: Tensor, targets: Array) -> Tensor:
    """The sum over rows of -log softmax(logits)[target]; rows whose target is IGNORE (-100) count nothing.

    It is a sum, not a mean: who calls divides by the count that is meant. Shapes: logits (..., V), targets (...) -> ()
    Raises ValueError where targets do not fit.

    >>> cross_entropy(Tensor([[0.0, 0.0], [5.0, 1.0]]), np.array([1, -100])).item()     # log 2
    0.6931471824645996
    """
    check_targets("cross_entropy", targets, logits.shape[:-1], logits.shape[-1])
    return apply(cross_entropy_forward, cross_entropy_backward, logits, targets)


def cross_entropy_forward(logits, targets, *, needs):
    z, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)  # (N, V), (N,)
    kept = targets != IGNORE
    z, at_target = z[kept], (array_module(z).arange(int(kept.sum())), targets[kept])
    log_p = z - logsumexp(z) if len(z) else z                               # (supervised rows, V)
    return -log_p[at_target].sum(), (log_p, kept, at_target, logits.shape)


def cross_entropy_backward(grad, log_p, kept, at_target, shape, *, needs):
    xp = array_module(log_p)
    p = xp.exp(log_p)
    p[at_target] -= 1                                                       # d loss / d z = softmax(z) - one at the target
    grad_logits = xp.zeros((len(kept), shape[-1]), p.dtype)
    grad_logits[kept] = p * grad
    return grad_logits.reshape(shape), None
