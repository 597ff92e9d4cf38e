"""dropout on the emulated GPU drops exactly what the reference drops, at any place, in both dtypes and any thread order."""

from types import SimpleNamespace

import numpy as np
import pytest

import minitune as mt
from minitune import backend, ops
from minitune.backend import philox, unit_interval
from minitune.devices import in_float32
from minitune.ops.dropout import dropout_backward, dropout_forward
from minitune.twins.cuda import dropout as twin
from minitune.twins.cuda import emulation

BFLOAT16 = pytest.importorskip("ml_dtypes").bfloat16
DTYPES = [np.float32, BFLOAT16]
pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs g++")
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 1023, 1024, 1025, 2047, 2048, 2049]     # packs hold 4 or 8 numbers, blocks 1024 or 2048
NEEDS = SimpleNamespace(x=True)
# (seed, stream, counter): counters that pass 2^32, and 2^64, inside a call
PLACES = [(0, 1, 0), (7, 1, 5), (2**64 - 1, 1, 2**32 - 3), (123456789012345, 2**40 + 5, 2**40 + 7), (3, 1, 2**64 - 2)]


def numbers(*shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def by_kernel(x, grad, **settings):
    """The result and the gradient."""
    y, saved = twin.dropout_forward(x, **settings, needs=NEEDS)
    return y, *twin.dropout_backward(grad, *saved, needs=NEEDS)


def by_reference(x, grad, **settings):
    """In float32, rounded to the dtype of x."""
    half = x.dtype == BFLOAT16
    forward, backward = in_float32(dropout_forward, dropout_backward) if half else (dropout_forward, dropout_backward)
    y, saved = forward(x, **settings, needs=NEEDS)
    return y, *backward(grad, *saved, needs=NEEDS)


def assert_same_bits(got, expected):
    for g, e in zip(got, expected, strict=True):
        assert (g.dtype, g.shape) == (e.dtype, e.shape) and g.tobytes() == e.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_every_bit_is_that_of_the_reference(place, dtype):
    with np.errstate(over="ignore"):            # the reference's counters wrap around at 2^64
        for size in SIZES:
            x, grad = numbers(size, dtype=dtype), numbers(size, dtype=dtype, seed=1)
            assert_same_bits(by_kernel(x, grad, p=0.1, place=place), by_reference(x, grad, p=0.1, place=place))


@pytest.mark.parametrize("p", [0.5, 1e-300, 2.0**-24, 2.0**-23 - 2.0**-50, 1 - 2.0**-24, 1 - 2.0**-53])
def test_every_p_keeps_what_the_reference_keeps(p):
    x = numbers(2049, dtype=np.float32)
    assert_same_bits(by_kernel(x, x, p=p, place=PLACES[1]), by_reference(x, x, p=p, place=PLACES[1]))


def test_a_number_exactly_at_p_is_kept_and_one_a_hair_below_is_dropped():
    u = unit_interval(philox(0, 1, 0, 1))[0]
    one = np.ones(1, np.float32)
    assert by_kernel(one, one, p=u, place=(0, 1, 0))[0][0] > 0
    assert by_kernel(one, one, p=np.nextafter(u, 1), place=(0, 1, 0))[0][0] == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_are_counted_in_rows_whatever_the_strides_and_the_address(dtype):
    x, grad = numbers(33, 65, dtype=dtype), numbers(33, 65, dtype=dtype, seed=1)
    settings = {"p": 0.3, "place": PLACES[1]}
    for change in (np.transpose, lambda a: a[::-1, ::2], lambda a: a.reshape(-1)[1:1026], lambda a: a.reshape(3, 11, 65)):
        assert_same_bits(by_kernel(change(x), change(grad), **settings), by_reference(change(x), change(grad), **settings))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_where_the_reference_leaves_them(dtype):
    x = np.tile(np.array([np.nan, np.inf, -np.inf, -0.0, 3e38], dtype), 20)
    settings = {"p": 0.5, "place": PLACES[0]}
    with np.errstate(all="ignore"):
        for g, e in zip(by_kernel(x, x, **settings), by_reference(x, x, **settings), strict=True):
            np.testing.assert_array_equal(g.astype(np.float32), e.astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_result_depends_on_the_order_of_threads(dtype):
    x, results = numbers(2500, dtype=dtype), []
    for order in emulation.ORDERS:
        with emulation.thread_order(order):
            results.append(by_kernel(x, x, p=0.1, place=PLACES[2]))
    for other in results[1:]:
        assert_same_bits(other, results[0])


def test_the_kernel_and_the_reference_walk_through_the_stream_alike():
    results = []
    for emulated in (True, False):
        mt.seed(3)
        x = mt.Tensor(numbers(33, 31, dtype=np.float32), requires_grad=True)
        with backend.emulated_gpu() if emulated else mt.kernels(False):
            y = ops.dropout(ops.dropout(x, 0.1), 0.2)           # the second goes on where the first stopped
            y.backward(x.data)
        results.append((y.data, x.grad))
    assert_same_bits(*results)
