"""cross_entropy: sum over rows of log(sum(e^z)) - z[target], for logits z; binary_cross_entropy: each logit a question."""

from __future__ import annotations

from ..backend import Array, array_module, device_of
from ..tensor import Tensor, apply
from .checks import check_integers
from .elementwise import sigmoid_forward
from .reductions import logsumexp

IGNORE = -100       # the target of a row that is not supervised, as in PyTorch


def check_targets(name: str, targets: Array, shape: tuple[int, ...], classes: int) -> None:
    """Targets are integers of the rows' shape, each IGNORE or a class; the first that is not is named.

    On a GPU, which a look at their numbers would have to wait for, only shape and dtype are checked.
    """
    check_integers(name, "targets", targets, shape)
    if device_of(targets) == "cpu" and (wrong := (targets != IGNORE) & ((targets < 0) | (targets >= classes))).any():
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
    xp, z, targets = array_module(logits), logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)    # (N, V), (N,)
    kept = targets != IGNORE
    rows = slice(None) if device_of(z) == "cuda" or kept.all() else kept.nonzero()[0]       # a GPU had to be waited for
    z, kept = z[rows], kept[rows]
    at_target = xp.arange(len(z)), xp.where(kept, targets[rows], 0)         # an ignored row has one too, of no weight
    log_p = z - logsumexp(z) if len(z) else z                               # (rows, V)
    return -xp.where(kept, log_p[at_target], 0).sum(), (log_p, kept, at_target, rows, logits.shape)


def cross_entropy_backward(grad, log_p, kept, at_target, rows, shape, *, needs):
    xp = array_module(log_p)
    p = xp.exp(log_p)
    p[at_target] -= 1                                                       # d loss / d z = softmax(z) - one at the target
    grad_logits = xp.zeros(shape, p.dtype)
    grad_logits.reshape(-1, shape[-1])[rows] = xp.where(kept[:, None], p * grad, 0)
    return grad_logits, None


def binary_cross_entropy(logits: Tensor, targets: Array) -> Tensor:
    """The sum over all logits z of -log sigmoid(z) where the target is 1, -log(1 - sigmoid(z)) where it is 0.

    Each logit answers a question of its own, as one label of several. Where the target is IGNORE (-100) it counts nothing.
    It is a sum, not a mean: who calls divides by the count that is meant. Shapes: logits (...), targets the same -> ()
    Raises ValueError where targets do not fit.

    >>> binary_cross_entropy(Tensor([0.0, 100.0, 5.0]), np.array([0, 1, -100])).item()      # log 2
    0.6931471824645996
    """
    check_targets("binary_cross_entropy", targets, logits.shape, 2)
    return apply(binary_cross_entropy_forward, binary_cross_entropy_backward, logits, targets)


def binary_cross_entropy_forward(logits, targets, *, needs):
    xp, kept, right = array_module(logits), targets != IGNORE, targets == 1
    wrong = xp.where(right, -logits, logits)                                # how strongly the other answer is given
    losses = xp.maximum(wrong, 0) + xp.log1p(xp.exp(-abs(wrong)))           # log(1 + e^wrong)
    slope = xp.where(kept, sigmoid_forward(logits, needs=needs)[0] - right, 0)
    return xp.where(kept, losses, 0).sum(), (slope,)


def binary_cross_entropy_backward(grad, slope, *, needs):
    return grad * slope, None
