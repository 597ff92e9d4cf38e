"""Every operation, forward and backward, against PyTorch's, on the whole table of cases."""

import numpy as np
import pytest
from cases import CASES, DROPOUT_SEED

import minitune as mt
from minitune import backend

torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
F = torch.nn.functional

# float64: both libraries evaluate the same formulas, in another order: some hundred roundings of 1e-16 of the largest
# number in a sum. float32: the same with roundings of 6e-8, and the loss of digits of a difference such as x - mean.
RTOL = {np.float64: 1e-10, np.float32: 2e-5}
ATOL = {np.float64: 1e-12, np.float32: 1e-5}


def linear(x, weight, bias=None, residual=None):
    y = F.linear(x, weight, bias)
    return y if residual is None else y + residual


def lora_linear(x, weight, bias, A, B, residual=None, *, scale):
    return linear(x, weight, bias, residual) + float(scale) * F.linear(F.linear(x, A), B)


def cross_entropy(logits, targets):
    """No cross-entropy of zero rows in PyTorch's sum form: a sum that is 0 and keeps the graph."""
    flat = logits.reshape(-1, logits.shape[-1])
    return F.cross_entropy(flat, targets.reshape(-1), reduction="sum", ignore_index=-100) if len(flat) else flat.sum()


def attention(q, k, v, first, last):
    """The formula with a mask (B, T, S); where a query sees nothing all its probabilities are set to 0."""
    k, v = (a.repeat_interleave(q.shape[2] // k.shape[2], 2) for a in (k, v))
    s = torch.arange(k.shape[1])
    seen = ((s >= first[..., None]) & (s <= last[..., None]))[:, None]                 # (B, 1, T, S)
    scores = torch.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
    p = scores.masked_fill(~seen, -1e30).softmax(-1) * seen
    return torch.einsum("bhts,bshd->bthd", p, v)


def lstm(x, weight_ih, weight_hh, bias, hidden, cell, starts):
    """torch.nn.LSTM token by token: as a whole it gives no cell states but the last."""
    layer = torch.nn.LSTM(x.shape[2], hidden.shape[1], batch_first=True, dtype=x.dtype)
    weights = {"weight_ih_l0": weight_ih, "weight_hh_l0": weight_hh, "bias_ih_l0": bias, "bias_hh_l0": torch.zeros_like(bias)}
    state, states = (hidden[None], cell[None]), []
    for t in range(x.shape[1]):
        if starts is not None:
            state = tuple(a * ~starts[None, :, t, None] for a in state)
        _, state = torch.func.functional_call(layer, weights, (x[:, t : t + 1], state))
        states.append(torch.cat(state))
    return torch.stack(states, 2)


def binary_cross_entropy(logits, targets):
    right, kept = (mask.to(logits.dtype) for mask in (targets == 1, targets != -100))
    return F.binary_cross_entropy_with_logits(logits, right, kept, reduction="sum")


def rope(x, positions, frequencies):
    """Each pair of channels is a complex number, and its rotation a product."""
    angles = positions[..., None, None] * torch.from_numpy(frequencies)
    turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex64 if x.dtype == torch.float32 else torch.complex128)
    y = torch.complex(*x.chunk(2, -1)) * turn
    return torch.cat([y.real, y.imag], -1)


def getitem(x, index):
    """By the numbers of the elements that NumPy picks: PyTorch takes no negative steps."""
    index = index.numpy() if isinstance(index, mt.Tensor) else index
    picked = np.arange(x.numel()).reshape(x.shape)[index]
    return x.reshape(-1)[torch.from_numpy(np.array(picked))]


def transpose(x, *axes):
    return x.permute(axes[0] if axes and isinstance(axes[0], tuple) else axes or tuple(reversed(range(x.ndim))))


def dropout(x, p):
    numbers = backend.philox(DROPOUT_SEED, backend.STREAMS["dropout"], 0, x.numel())
    kept = torch.from_numpy(np.asarray((numbers >> 8) * 2.0**-24 >= p).reshape(x.shape))
    return x * kept / (1 - float(p))


def reduction(function):
    def reduce(x, axis=None, keepdims=False):
        axes = tuple(range(x.ndim)) if axis is None else axis
        return x * 1 if axes == () else function(x, axes, keepdims)
    return reduce


ORACLE = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
    "neg": lambda x: -x, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "relu": torch.relu, "gelu": lambda x, approximate="tanh": F.gelu(x, approximate=approximate),
    "pow": lambda x, exponent: x ** float(exponent),
    "sum": reduction(torch.sum), "mean": reduction(torch.mean), "max": reduction(torch.amax),
    "reshape": lambda x, *shape: x.reshape(*shape), "transpose": transpose,
    "getitem": getitem, "concat": lambda *parts, axis=0: torch.cat(parts, axis),
    "split": lambda x, lengths, axis: torch.cat(torch.split(x, lengths, axis)[::-1], axis),
    "matmul": torch.matmul, "softmax": lambda x: x.softmax(-1), "linear": linear, "lora_linear": lora_linear,
    "layer_norm": lambda x, weight, bias, eps=1e-5: F.layer_norm(x, weight.shape, weight, bias, float(eps)),
    "rms_norm": lambda x, weight, eps=1e-6: F.rms_norm(x, weight.shape, weight, float(eps)), "rope": rope,
    "swiglu": lambda gate, up: F.silu(gate) * up, "binary_cross_entropy": binary_cross_entropy,
    "embedding": lambda weight, ids: F.embedding(ids, weight), "dropout": dropout, "cross_entropy": cross_entropy,
    "linear_cross_entropy": lambda x, weight, targets, bias: cross_entropy(F.linear(x, weight, bias), targets),
    "conv2d": F.conv2d, "max_pool2d": F.max_pool2d, "avg_pool2d": F.avg_pool2d,
    "attention": attention, "lstm": lstm,
}


def to_torch(a):
    """Arrays become tensors; ids of any integer type become int64, the one that PyTorch indexes with."""
    if not isinstance(a, np.ndarray):
        return a
    return torch.from_numpy(a.astype(np.int64) if a.dtype.kind in "iu" else a)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_result_and_all_gradients_agree_with_torch(case, dtype):
    floats = [a.astype(dtype) for a in case.floats]
    ours = [mt.Tensor(a, requires_grad=True) for a in floats]
    theirs = [torch.tensor(a, requires_grad=True) for a in floats]
    y = case.run(*ours)
    expected = ORACLE[case.operation](*(to_torch(a) for a in case.filled(theirs)), **case.settings)
    grad = np.asarray(np.random.default_rng(3).standard_normal(y.shape)).astype(dtype)
    y.backward(grad)
    expected.backward(torch.from_numpy(grad))

    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), RTOL[dtype], ATOL[dtype])
    for x, t in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(x.grad, t.grad.numpy(), RTOL[dtype], ATOL[dtype])


def test_causal_attention_agrees_with_torchs_fused_one():
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 6, 4, 8))
    time = np.broadcast_to(np.arange(6), (2, 6))
    ours = mt.ops.attention(mt.Tensor(q), mt.Tensor(k), mt.Tensor(v), np.zeros((2, 6), int), time)
    theirs = F.scaled_dot_product_attention(*(torch.from_numpy(a).transpose(1, 2) for a in (q, k, v)), is_causal=True)
    np.testing.assert_allclose(ours.numpy(), theirs.transpose(1, 2).numpy(), RTOL[np.float64], ATOL[np.float64])
