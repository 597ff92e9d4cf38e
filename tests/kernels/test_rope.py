"""rope on the emulated GPU: heads of any size, large positions, both dtypes, any thread order, NaN and infinity."""

from types import SimpleNamespace

import numpy as np
import pytest
import standin_cupy

from minitune import Tensor, backend, ops
from minitune.ops.rope import rope_backward, rope_forward
from minitune.twins.cuda import emulation
from minitune.twins.cuda import rope as twin

BFLOAT16 = pytest.importorskip("ml_dtypes").bfloat16
pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs g++")
NEEDS = SimpleNamespace(x=True, positions=False)
# (B, T, H, D): halves of heads shorter and longer than packs of 4 and 8, whole and not; heads around groups of 8; no tokens
SHAPES = [(1, 1, 1, 2), (2, 3, 2, 6), (2, 5, 7, 8), (1, 9, 8, 16), (2, 3, 9, 18), (1, 2, 17, 64), (2, 70, 1, 32),
          (1, 1, 2, 510), (0, 3, 2, 4), (2, 0, 2, 4)]
# float32 as in tests/ops/test_twins.py; bfloat16 is that and one rounding of the result to 8 bits.
RTOL = {np.float32: 1e-5, BFLOAT16: 2.0**-8 + 1e-5}
ATOL = 2e-6


def numbers(*shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def frequencies_of(D, base=10_000.0):
    return base ** (-np.arange(0, D, 2) / D)


def by_kernel(x, positions, grad, frequencies):
    """The result and the gradient of x."""
    y, saved = twin.rope_forward(x, positions, frequencies=frequencies, needs=NEEDS)
    grad_x, none = twin.rope_backward(grad, *saved, needs=NEEDS)
    assert none is None
    return y, grad_x


def by_reference(x, positions, grad, frequencies):
    y, saved = rope_forward(x, positions, frequencies=frequencies, needs=NEEDS)
    return y, rope_backward(grad, *saved, needs=NEEDS)[0]


def assert_agrees(x, positions, grad, frequencies):
    got, dtype = by_kernel(x, positions, grad, frequencies), x.dtype
    x, grad, frequencies = (a.astype(np.float64) for a in (x, grad, frequencies))
    exact = by_reference(x, positions.astype(np.int64), grad, frequencies)
    for g, e in zip(got, exact, strict=True):
        assert (g.dtype, g.shape) == (dtype, x.shape)
        np.testing.assert_allclose(g.astype(np.float64), e, RTOL[dtype.type], ATOL)


@pytest.mark.parametrize("dtype", RTOL)
def test_it_agrees_with_its_reference_for_heads_of_any_number_and_size(dtype):
    for B, T, H, D in SHAPES:
        positions = np.arange(T) % 37 + 5 * np.arange(B)[:, None]
        assert_agrees(numbers(B, T, H, D, dtype=dtype), positions, numbers(B, T, H, D, dtype=dtype, seed=1), frequencies_of(D))


def test_angles_keep_their_digits_at_large_positions_in_every_quarter():
    """Off by 2e-7 at most in cosine and sine, some roundings of numbers up to 1, and by what float64 loses of an angle.

    The latter is a rounding of the frequency in turns here, and one of the product in the reference.
    """
    positions = np.concatenate([np.arange(0, 200), np.arange(99_900, 100_100), [2**24 + 1, 2**31 - 1, -1, -100_000]])[None]
    frequencies = np.array([1.0, 0.7, 1e-2, 1e-5, np.pi / 2, np.pi, 2 * np.pi, 123.456, -0.3, 0.0])
    x = np.zeros((1, positions.size, 1, 20), np.float32)
    x[..., :10] = 1                             # whose results are cosine and sine, and of the gradient cosine and minus sine
    y, grad_x = by_kernel(x, positions, x, frequencies)
    angles = positions[..., None, None] * frequencies
    for result, sign in (y, 1), (grad_x, -1):
        off = np.abs(result - np.concatenate([np.cos(angles), sign * np.sin(angles)], -1))
        assert (off <= 2e-7 + 4 * 2.0**-53 * np.abs(np.concatenate([angles, angles], -1))).all()


@pytest.mark.parametrize("dtype", RTOL)
def test_strides_addresses_and_every_kind_of_integer_and_float_are_taken(dtype):
    x, grad = (numbers(3, 5, 2, 16, dtype=dtype, seed=seed) for seed in (0, 1))
    positions, frequencies = np.arange(5) + 100 * np.arange(3)[:, None], frequencies_of(16).astype(np.float32)
    for kind in (np.int64, np.int32, np.uint16, np.int16):
        assert_agrees(x, positions.astype(kind), grad, frequencies)
    for kind in (np.float16, np.float64, ">f4"):
        assert_agrees(x, positions, grad, frequencies.astype(kind))
    assert_agrees(x[::-1, :, :, ::-1], np.broadcast_to(np.arange(5), (3, 5)), grad[:, ::-1],
                  np.repeat(frequencies, 2)[::2])
    assert_agrees(x.transpose(1, 0, 2, 3), positions.T, grad.transpose(1, 0, 2, 3), frequencies)
    for offset in (1, 4):                       # contiguous, and not at a multiple of 16 bytes
        x, grad = (numbers(offset + 480, dtype=dtype, seed=seed)[offset:].reshape(3, 5, 2, 16) for seed in (0, 1))
        assert_agrees(x, positions, grad, frequencies)


@pytest.mark.parametrize("dtype", RTOL)
def test_no_result_depends_on_the_order_of_threads(dtype):
    x, results = numbers(2, 40, 9, 24, dtype=dtype), []
    for order in emulation.ORDERS:
        with emulation.thread_order(order):
            results.append(by_kernel(x, np.arange(80).reshape(2, 40), x, frequencies_of(24)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_spoil_what_they_spoil_in_the_reference(value, dtype):
    x = numbers(1, 4, 2, 10, dtype=dtype)
    x[0, 0, 0, 1] = x[0, 1, 1, 7] = value       # position 0, where the sine is exactly 0, and another
    positions, frequencies, single = np.arange(4)[None], frequencies_of(10), x.astype(np.float32)
    with np.errstate(invalid="ignore"):
        got = by_kernel(x, positions, x, frequencies)
        expected = by_reference(single, positions, single, frequencies)
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_array_equal(g.astype(np.float32)[~np.isfinite(e)], e[~np.isfinite(e)])
        assert np.isfinite(g.astype(np.float32)[np.isfinite(e)]).all()


def test_the_table_of_frequencies_is_kept_for_each_gpu(monkeypatch):
    x, positions, frequencies = numbers(1, 3, 2, 4, dtype=np.float32), np.arange(3, dtype=np.int32)[None], frequencies_of(4)
    tables = []
    with standin_cupy.installed() as cupy:
        for number in 101, 102, 101:
            monkeypatch.setattr(cupy.ndarray, "device", SimpleNamespace(id=number))
            y, (_, turns) = twin.rope_forward(cupy.asarray(x), cupy.asarray(positions), frequencies=frequencies, needs=NEEDS)
            np.testing.assert_array_equal(y.get(), by_kernel(x, positions, x, frequencies)[0])
            tables.append(turns)
    assert tables[0] is tables[2] is not tables[1]


def test_frequencies_that_are_no_numbers_take_the_reference_and_the_reason_is_told():
    x, positions = Tensor(numbers(1, 2, 1, 4, dtype=np.float32)), np.array([[1, 2]])
    with backend.emulated_gpu(), pytest.warns(backend.KernelFallback, match="rope: some frequencies are NaN or infinite"):
        y = ops.rope(x, positions, np.array([1.0, np.nan]))
    assert np.isnan(y.numpy()[..., [1, 3]]).all() and np.isfinite(y.numpy()[..., [0, 2]]).all()
