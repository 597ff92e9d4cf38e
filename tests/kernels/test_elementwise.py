"""gelu, exact gelu and sums on the emulated GPU: around packs and blocks, both dtypes, any thread order, NaN and infinity."""

import numpy as np
import pytest

from minitune import Tensor, backend, ops
from minitune.ops import elementwise as reference
from minitune.tensor import _needs_of
from minitune.twins.cuda import elementwise as twin
from minitune.twins.cuda import emulation

BFLOAT16 = pytest.importorskip("ml_dtypes").bfloat16
pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs g++")
GELUS = ["gelu", "gelu_erf"]
SIZES = [0, 1, 3, 4, 5, 7, 8, 9, 1023, 1024, 1025, 2047, 2048, 2049]   # packs hold 4 or 8 numbers, blocks 1024 or 2048
# float32 as in tests/ops/test_twins.py; bfloat16 is that and one rounding of the result to 8 bits.
RTOL = {np.float32: 1e-5, BFLOAT16: 2.0**-8 + 1e-5}
ATOL = 2e-6


def numbers(*shape, dtype, scale=3, seed=0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def run(module, name, arrays, grad):
    """The result and every gradient."""
    forward, backward = (getattr(module, f"{name}_{part}") for part in ("forward", "backward"))
    needs = _needs_of(forward)(True for _ in arrays)
    y, saved = forward(*arrays, needs=needs)
    return y, *backward(grad, *saved, needs=needs)


def assert_agrees(name, arrays, grad):
    got = run(twin, name, arrays, grad)
    expected = run(reference, name, [a.astype(np.float64) for a in arrays], grad.astype(np.float64))
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == grad.dtype and g.shape == grad.shape
        np.testing.assert_allclose(g.astype(np.float64), e, RTOL[grad.dtype.type], ATOL)


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("name", GELUS)
def test_gelu_agrees_with_its_reference_around_packs_and_blocks(name, dtype):
    for size in SIZES:
        assert_agrees(name, [numbers(size, dtype=dtype)], numbers(size, dtype=dtype, scale=1, seed=1))


@pytest.mark.parametrize("name", GELUS)
def test_gelu_keeps_the_digits_of_small_results(name):
    """Relative to the result, of which 1 + tanh and 1 + erf would have lost all at x = -5.

    Ten roundings of factors, and five of an exponent of up to 17, whose power is the result.
    """
    x = np.linspace(-5, 5, 1001, dtype=np.float32)
    y, _ = run(twin, name, [x], np.ones_like(x))
    exact, _ = run(reference, name, [x.astype(np.float64)], np.ones(x.shape))
    np.testing.assert_allclose(y, exact, (10 + 5 * 17) * 6e-8)


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("name", GELUS)
def test_gelu_takes_transposed_reversed_and_unaligned_arrays(name, dtype):
    x, grad = numbers(33, 65, dtype=dtype), numbers(65, 33, dtype=dtype, seed=1)
    assert_agrees(name, [x.T], grad)
    assert_agrees(name, [x[::-1, ::2]], grad[:33].T[::-1])
    for offset in (1, 2, 4):                    # contiguous, and not at a multiple of 16 bytes
        assert_agrees(name, [x.reshape(-1)[offset:1025]], grad.reshape(-1)[7 : 1032 - offset])


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("name", [*GELUS, "add"])
def test_no_result_depends_on_the_order_of_threads(name, dtype):
    arrays = [numbers(2500, dtype=dtype, seed=i) for i in range(2 if name == "add" else 1)]
    results = []
    for order in emulation.ORDERS:
        with emulation.thread_order(order):
            results.append(run(twin, name, arrays, arrays[0]))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("name", GELUS)
def test_gelu_of_nan_infinity_and_extremes_is_what_the_reference_gives_in_float32(name, dtype):
    x = np.array([np.nan, np.inf, -np.inf, 0, 3e38, -3e38, 1e10, -1e10, 1e-30, -1e-30, 40, -40], dtype)
    with np.errstate(all="ignore"):
        got = run(twin, name, [x], np.ones_like(x))
        expected = run(reference, name, [x.astype(np.float32)], np.ones(x.shape, np.float32))
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g.astype(np.float32), e, RTOL[dtype], 1e-45)


# ---- Sums ------------------------------------------------------------------------------------------------------------

def test_a_sum_in_bfloat16_is_rounded_once():
    for size in SIZES:
        a, b = (numbers(size, dtype=BFLOAT16, seed=i) for i in (0, 1))
        y, grad_a, grad_b = run(twin, "add", [a, b], a)
        np.testing.assert_array_equal(y, (a.astype(np.float32) + b.astype(np.float32)).astype(BFLOAT16))
        assert y.dtype == BFLOAT16 and grad_a is a and grad_b is a
    x = numbers(33, 65, dtype=BFLOAT16)
    np.testing.assert_array_equal(run(twin, "add", [x.T, x.T], x)[0], (2 * x.astype(np.float32)).T.astype(BFLOAT16))


def test_nan_and_infinity_go_through_a_sum():
    a, b = (np.array(values, BFLOAT16) for values in ([np.nan, np.inf, np.inf, 3e38, 1], [1, 1, -np.inf, 3e38, -1]))
    y, _, _ = run(twin, "add", [a, b], a)
    np.testing.assert_array_equal(y.astype(np.float32), [np.nan, np.inf, np.nan, np.inf, 0])


def test_only_sums_of_two_equal_shapes_in_bfloat16_take_the_kernel_and_the_others_say_nothing():
    half, single = np.ones((2, 3), BFLOAT16), np.ones((2, 3), np.float32)
    assert twin.add_unsupported(half, half) is None
    for a, b in (single, single), (half, single), (half, half[0]), (half, 2), (2.5, half), (half[0, 0], half[0, 0]):
        assert twin.add_unsupported(a, b) == ""
    with backend.emulated_gpu():                # a warning would be an error
        for other, fast in (half, True), (half[0], False), (single, False):
            y = ops.add(Tensor(half, requires_grad=True), Tensor(other))
            assert (y.node.backward is twin.add_backward) == fast
            np.testing.assert_array_equal(y.numpy(), np.full((2, 3), 2))
