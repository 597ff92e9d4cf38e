"""conv2d on the emulated GPU: windows of all kinds, both dtypes, batches cut into chunks, the order of threads."""

import numpy as np
import pytest

import minitune as mt
from minitune import backend, ops
from minitune.devices import float_dtype
from minitune.twins.cuda import conv2d as twin
from minitune.twins.cuda import emulation

pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs g++")
BFLOAT16 = float_dtype("bfloat16")
WINDOWS = {             # x, weight, stride, padding
    "3 x 3": ((3, 2, 7, 9), (5, 2, 3, 3), 1, 1), "more pixels than a block": ((2, 1, 19, 17), (2, 1, 5, 5), 1, 2),
    "patches": ((2, 3, 8, 12), (7, 3, 4, 4), 4, 0), "overlapping": ((2, 2, 9, 8), (3, 2, 4, 3), 2, 1),
    "gaps": ((2, 2, 11, 7), (3, 2, 2, 1), 3, 0), "gaps and padding": ((1, 1, 4, 5), (2, 1, 2, 2), 4, 3),
    "1 x 1": ((2, 5, 3, 4), (4, 5, 1, 1), 1, 0), "whole image": ((3, 2, 4, 5), (2, 2, 4, 5), 1, 0),
    "a filter beyond the image": ((1, 2, 1, 2), (1, 2, 3, 5), 1, 2), "no images": ((0, 2, 4, 4), (3, 2, 3, 3), 1, 1),
}
# float32 as in tests/ops/test_twins.py, of the largest number. In bfloat16 the product is rounded and then the sum with the
# bias, and each window's part of the gradient of x and then their sum: 2^-8 each, of numbers as large as the largest where they
# cancel. Gradients of float32 parameters are float32 sums of exact products.
RTOL, ATOL = {np.dtype(np.float32): 1e-5, BFLOAT16: 2.0**-8}, {np.dtype(np.float32): 2e-6, BFLOAT16: 2.0**-8}


def numbers(seed, *shape, dtype=np.float32):
    """Normal numbers that bfloat16 holds exactly, so that rounding a weight to it changes nothing."""
    return np.random.default_rng(seed).standard_normal(shape).astype(BFLOAT16).astype(dtype)


def inputs(label, dtype, bias=True):
    """([x, weight, bias], settings): parameters stay float32."""
    x, weight, stride, padding = WINDOWS[label]
    return ([numbers(1, *x, dtype=dtype), numbers(2, *weight), numbers(3, weight[0]) if bias else None],
            {"stride": stride, "padding": padding})


def run(arrays, settings, wanted=(True, True, True)):
    """The result and the gradients; an input whose gradient is not `wanted` is frozen."""
    tensors = [None if a is None else mt.Tensor(a, requires_grad=want) for a, want in zip(arrays, wanted, strict=True)]
    y = ops.conv2d(*tensors, **settings)
    y.backward(numbers(4, *y.shape, dtype=y.dtype))
    return y, [None if t is None else t.grad for t in tensors]


def check(arrays, settings, wanted=(True, True, True)):
    with backend.emulated_gpu():
        y, got = run(arrays, settings, wanted)
    assert y.node.backward is twin.conv2d_backward
    assert (y.dtype == BFLOAT16) == any(a is not None and a.dtype == BFLOAT16 for a in arrays)
    exact, expected = run([None if a is None else a.astype(np.float64) for a in arrays], settings, wanted)
    for i, (g, e, like) in enumerate(zip([y.data, *got], [exact.data, *expected], [y.data, *arrays], strict=True)):
        assert (g is None) == (e is None)
        if g is not None:
            assert (g.dtype, g.shape) == (like.dtype, e.shape)
            rounded_to = y.dtype if i == 1 else g.dtype             # what the gradient of x is summed from
            np.testing.assert_allclose(g.astype(np.float64), e, RTOL[rounded_to],
                                       ATOL[rounded_to] * max(1, abs(e).max(initial=0)))


@pytest.mark.parametrize("label", WINDOWS)
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_it_agrees_with_the_reference(dtype, label):
    for bias in (True, False):
        check(*inputs(label, dtype, bias))


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_what_is_frozen_has_no_gradient(wanted):
    check(*inputs("overlapping", BFLOAT16), wanted)


@pytest.mark.parametrize("half", [[0], [1], [2], [0, 1, 2]], ids=str)
def test_each_gradient_has_the_dtype_of_its_input(half):
    arrays, settings = inputs("3 x 3", np.float32)
    check([a.astype(BFLOAT16) if i in half else a for i, a in enumerate(arrays)], settings)


def test_transposed_and_strided_inputs():
    (x, weight, bias), settings = inputs("overlapping", BFLOAT16)
    check([np.asfortranarray(x), weight[::-1, :, ::-1], np.repeat(bias, 2)[::2]], settings)


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
@pytest.mark.parametrize("label", ["3 x 3", "gaps and padding", "whole image"])
def test_a_batch_is_cut_into_chunks_that_fit_in_memory(label, dtype, monkeypatch):
    (x, weight, bias), settings = inputs(label, dtype)
    x = np.concatenate([x, x[::-1], x + x[:1]])
    whole, grads = run_emulated([x, weight, bias], settings)
    made, gathered = [], twin._gathered
    monkeypatch.setattr(twin, "_gathered", lambda *a: made.append(gathered(*a)) or made[-1])
    one = np.prod(weight.shape[1:]) * np.prod(whole.shape[2:]) * x.itemsize
    for images in (1, 2):
        made.clear()
        monkeypatch.setattr(twin, "CHUNK_BYTES", images * max(one, x[0].nbytes, whole.data[0].nbytes))
        y, in_parts = run_emulated([x, weight, bias], settings)
        assert len(made) == 2 * -(-len(x) // images) and max(columns.nbytes for columns in made) == images * one
        for got, expected in zip([y.data, *in_parts], [whole.data, *grads], strict=True):      # BLAS adds in another order
            rtol = RTOL[got.dtype]
            np.testing.assert_allclose(got.astype(np.float64), expected.astype(np.float64), rtol, 1e-5)


def run_emulated(arrays, settings):
    with backend.emulated_gpu():
        return run(arrays, settings)


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_no_result_depends_on_the_order_of_threads(dtype):
    results = []
    for order in emulation.ORDERS:
        with emulation.thread_order(order):
            y, grads = run_emulated(*inputs("more pixels than a block", dtype))
            results.append([y.data, *grads])
    for other in results[1:]:
        for got, first in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(got, first)


def test_few_blocks_walk_over_many_channels_images_and_windows(monkeypatch):
    monkeypatch.setattr(twin, "MOST_BLOCKS", 2)
    monkeypatch.setattr(twin, "PARTS", 1)
    check(*inputs("more pixels than a block", np.float32))
    check(*inputs("1 x 1", np.float32))
    check(*inputs("patches", BFLOAT16))


def test_a_pixel_that_is_nan_or_infinite_shows_in_its_windows_alone():
    (x, weight, bias), settings = inputs("3 x 3", np.float32)
    x[0, 1, 0, 0], x[1, 0, 6, 8] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        y = run_emulated([x, weight, bias], settings)[0].data
    assert not np.isfinite(y[0, :, :2, :2]).any() and not np.isfinite(y[1, :, 5:, 7:]).any()
    assert np.count_nonzero(~np.isfinite(y)) == 2 * 5 * 4
