"""swiglu on the emulated GPU: around packs and blocks, both dtypes, any thread order, NaN and infinity."""

from types import SimpleNamespace

import numpy as np
import pytest

from minitune import Tensor, backend, ops
from minitune.ops.swiglu import swiglu_backward, swiglu_forward
from minitune.twins.cuda import emulation
from minitune.twins.cuda import swiglu as twin

BFLOAT16 = pytest.importorskip("ml_dtypes").bfloat16
pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs g++")
SIZES = [0, 1, 3, 4, 5, 7, 8, 9, 1023, 1024, 1025, 2047, 2048, 2049]   # packs hold 4 or 8 numbers, blocks 1024 or 2048
BOTH = SimpleNamespace(gate=True, up=True)
# float32 as in tests/ops/test_twins.py; bfloat16 is that and one rounding of the result to 8 bits.
RTOL = {np.float32: 1e-5, BFLOAT16: 2.0**-8 + 1e-5}
ATOL = 2e-6


def numbers(*shape, dtype, seed=0):
    return (3 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def by_kernel(gate, up, grad):
    """The result and both gradients."""
    y, saved = twin.swiglu_forward(gate, up, needs=BOTH)
    return y, *twin.swiglu_backward(grad, *saved, needs=BOTH)


def by_reference(gate, up, grad, dtype):
    y, saved = swiglu_forward(gate.astype(dtype), up.astype(dtype), needs=BOTH)
    return y, *swiglu_backward(grad.astype(dtype), *saved, needs=BOTH)


def assert_agrees(gate, up, grad):
    for g, e in zip(by_kernel(gate, up, grad), by_reference(gate, up, grad, np.float64), strict=True):
        assert g.dtype == grad.dtype and g.shape == grad.shape
        np.testing.assert_allclose(g.astype(np.float64), e, RTOL[grad.dtype.type], ATOL)


@pytest.mark.parametrize("dtype", RTOL)
def test_it_agrees_with_its_reference_around_packs_and_blocks(dtype):
    for size in SIZES:
        assert_agrees(*(numbers(size, dtype=dtype, seed=seed) for seed in range(3)))


@pytest.mark.parametrize("dtype", RTOL)
def test_it_takes_transposed_reversed_and_unaligned_arrays(dtype):
    gate, up, grad = (numbers(33, 65, dtype=dtype, seed=seed) for seed in range(3))
    assert_agrees(gate.T, up.T, grad.T)
    assert_agrees(gate[::-1], up[:, ::-1], grad)
    gate, up, grad = (a.reshape(-1) for a in (gate, up, grad))
    assert_agrees(gate[1:1025], up[2:1026], grad[:1024])        # contiguous, and not at a multiple of 16 bytes


@pytest.mark.parametrize("dtype", RTOL)
def test_no_result_depends_on_the_order_of_threads(dtype):
    arrays, results = [numbers(2500, dtype=dtype, seed=seed) for seed in range(3)], []
    for order in emulation.ORDERS:
        with emulation.thread_order(order):
            results.append(by_kernel(*arrays))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", RTOL)
def test_nan_infinity_and_extremes_give_what_the_reference_gives_in_float32(dtype):
    values = np.array([np.nan, np.inf, -np.inf, 0, 3e38, -3e38, 100, -100, 1, 1e-30], dtype)
    gate, up, grad = (a.reshape(-1) for a in np.meshgrid(values, values, values[:8], indexing="ij"))
    with np.errstate(all="ignore"):
        got, expected = by_kernel(gate, up, grad), by_reference(gate, up, grad, np.float32)
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g.astype(np.float32), e, RTOL[dtype], 1e-37)


def test_gate_and_up_of_two_dtypes_take_the_reference_and_the_reason_is_told():
    gate, up = Tensor(numbers(4, dtype=BFLOAT16)), Tensor(numbers(4, dtype=np.float32))
    told = pytest.warns(backend.KernelFallback, match="swiglu: gate and up must have one dtype, got bfloat16 and float32")
    with backend.emulated_gpu(), told:
        assert ops.swiglu(gate, up).dtype == BFLOAT16
