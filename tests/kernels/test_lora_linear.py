"""lora_linear on the emulated GPU: sizes, dtypes and ranks, what is frozen, and that it equals the merged weight."""

import numpy as np
import pytest

import minitune as mt
from minitune import backend, ops
from minitune.devices import float_dtype
from minitune.twins.cuda import emulation
from minitune.twins.cuda import lora_linear as twin

pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs g++")
BFLOAT16 = float_dtype("bfloat16")
SHAPES = [((1, 1), 1, 1), ((7,), 3, 2), ((2, 5, 33), 40, 4), ((90, 8), 16, 8), ((0, 3), 5, 2)]      # x, out, rank
SCALE = 1.5             # times it, a number of 8 bits needs rounding
# float32 as in tests/ops/test_twins.py, of the largest number. In bfloat16 scale x A^T, the product and two sums are
# rounded: by up to 2^-8 each, and seldom all to one side. The gradients of A and B are sums of such numbers.
RTOL, ATOL = {np.dtype(np.float32): 1e-5, BFLOAT16: 2.0**-8}, {np.dtype(np.float32): 2e-6, BFLOAT16: 2.0**-7}


def numbers(seed, *shape, dtype=np.float32):
    """Normal numbers that bfloat16 holds exactly, so that rounding a weight to it changes nothing."""
    return np.random.default_rng(seed).standard_normal(shape).astype(BFLOAT16).astype(dtype)


def inputs(shape, out, rank, dtype, rest="bias and residual"):
    """x, weight, bias, A, B, residual: parameters stay float32."""
    return [numbers(1, *shape, dtype=dtype), numbers(2, out, shape[-1]), numbers(3, out) if "bias" in rest else None,
            numbers(4, rank, shape[-1]), numbers(5, out, rank),
            numbers(6, *shape[:-1], out, dtype=dtype) if "residual" in rest else None]


def run(arrays, wanted=(True,) * 6):
    """The result and the gradients; an input whose gradient is not `wanted` is frozen."""
    tensors = [None if a is None else mt.Tensor(a, requires_grad=want) for a, want in zip(arrays, wanted, strict=True)]
    y = ops.lora_linear(*tensors, scale=SCALE)
    y.backward(numbers(7, *y.shape, dtype=y.dtype))
    return y, [None if t is None else t.grad for t in tensors]


def check(arrays, wanted=(True,) * 6):
    with backend.emulated_gpu():
        y, got = run(arrays, wanted)
    assert y.node.backward is twin.lora_linear_backward
    exact, expected = run([None if a is None else a.astype(np.float64) for a in arrays], wanted)
    half = BFLOAT16 if any(a is not None and a.dtype == BFLOAT16 for a in arrays) else np.dtype(np.float32)
    for g, e, like in zip([y.data, *got], [exact.data, *expected], [y.data, *arrays], strict=True):
        assert (g is None) == (e is None)
        if g is not None:
            assert (g.dtype, g.shape) == (like.dtype, like.shape)
            np.testing.assert_allclose(g.astype(np.float64), e, RTOL[half], ATOL[half] * max(1, abs(e).max(initial=0)))
    assert y.dtype == half


@pytest.mark.parametrize("rest", ["bias and residual", "bias", "residual", "alone"])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_it_agrees_with_the_reference(dtype, rest):
    for shape, out, rank in SHAPES:
        check(inputs(shape, out, rank, dtype, rest))


@pytest.mark.parametrize("wanted", ["x", "A", "B", "AB", "xAB", "weight"])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_what_is_frozen_has_no_gradient(dtype, wanted):
    check(inputs((9, 8), 16, 4, dtype), ["x" in wanted, wanted == "weight", False, "A" in wanted, "B" in wanted, False])


def test_a_frozen_layer_keeps_nothing_of_its_weight_and_of_x_only_what_A_needs():
    arrays = [mt.Tensor(a, requires_grad=i in (3, 4)) for i, a in enumerate(inputs((9, 8), 16, 2, BFLOAT16))]
    with backend.emulated_gpu():
        saved = [a.shape for a in ops.lora_linear(*arrays, scale=SCALE).node.saved if isinstance(a, np.ndarray)]
    assert saved == [(9, 8), (16, 2), (9, 2)]   # x, B, x A^T


@pytest.mark.parametrize("half", range(6))
def test_each_gradient_has_the_dtype_of_its_input(half):
    check([a.astype(BFLOAT16) if i == half else a for i, a in enumerate(inputs((5, 8), 16, 4, np.float32))])


def test_transposed_and_strided_inputs():
    x, weight, bias, A, B, residual = inputs((6, 4), 5, 2, BFLOAT16)
    check([np.asfortranarray(x), np.asfortranarray(weight), np.repeat(bias, 2)[::2], np.asfortranarray(A), np.asfortranarray(B),
           residual[::-1]])


def test_it_is_linear_with_the_update_added_to_the_weight():
    x, weight, bias, A, B, residual = inputs((9, 8), 16, 4, np.float32)
    with backend.emulated_gpu():
        y = ops.lora_linear(*map(mt.Tensor, (x, weight, bias, A, B, residual)), scale=SCALE)
        merged = ops.linear(*map(mt.Tensor, (x, weight + SCALE * B @ A, bias, residual)))
    np.testing.assert_allclose(y.data, merged.data, 1e-5, 2e-5)      # the sums are taken in another order


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_no_result_depends_on_the_order_of_threads(dtype):
    arrays, results = inputs((70, 3), 41, 2, dtype), []
    for order in emulation.ORDERS:
        with emulation.thread_order(order), backend.emulated_gpu():
            y, grads = run(arrays)
            results.append([y.data, *grads])
    for other in results[1:]:
        for got, first in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(got, first)
