"""What operations promise beyond their formula: intervals of attention, ignored targets, extremes, ties, errors."""

import math

import numpy as np
import pytest

import minitune as mt
from minitune import Tensor, ops
from minitune.ops.erf import erfc

RNG = np.random.default_rng(0)
ROUNDING = dict(rtol=1e-12, atol=1e-14)         # float64, the same sums in another grouping


def attend(q, k, v, first, last):
    """(output, gradients of q, k, v) for a fixed cotangent."""
    tensors = [Tensor(a, requires_grad=True) for a in (q, k, v)]
    y = ops.attention(*tensors, first, last)
    y.backward(np.cos(np.arange(y.size)).reshape(y.shape).astype(y.dtype))
    return [y.numpy(), *(t.grad for t in tensors)]


def causal(*shape):
    time = np.broadcast_to(np.arange(shape[1]), shape)
    return np.zeros_like(time), time


# ---- Attention ---------------------------------------------------------------------------------------------------

def test_two_documents_packed_in_a_row_are_two_documents_in_two_rows():
    q, k, v = RNG.standard_normal((3, 1, 7, 2, 4))
    first, last = np.array([[0, 0, 0, 3, 3, 3, 3]]), np.arange(7)[None]
    packed = [Tensor(a, requires_grad=True) for a in (q, k, v)]
    y = ops.attention(*packed, first, last)
    grad = RNG.standard_normal(y.shape)
    y.backward(grad)
    for part in slice(0, 3), slice(3, 7):
        alone = [Tensor(a[:, part], requires_grad=True) for a in (q, k, v)]
        z = ops.attention(*alone, *causal(1, part.stop - part.start))
        z.backward(grad[:, part])
        np.testing.assert_allclose(y.numpy()[:, part], z.numpy(), **ROUNDING)
        for whole, t in zip(packed, alone, strict=True):
            np.testing.assert_allclose(whole.grad[:, part], t.grad, **ROUNDING)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_whatever_stands_in_it(side):
    q, k, v = RNG.standard_normal((3, 1, 3, 2, 4))
    expected = attend(q, k, v, *causal(1, 3))
    start = 2 if side == "left" else 0
    for content in 0.0, 1e6:
        padded = [np.full((1, 5, 2, 4), content) for _ in range(3)]
        for a, source in zip(padded, (q, k, v), strict=True):
            a[:, start : start + 3] = source
        first, last = np.ones((1, 5), int), np.zeros((1, 5), int)
        first[:, start : start + 3], last[:, start : start + 3] = start, np.arange(start, start + 3)
        tensors = [Tensor(a, requires_grad=True) for a in padded]
        y = ops.attention(*tensors, first, last)
        grad = np.full(y.shape, 7.0)                        # also where there is padding
        grad[:, start : start + 3] = np.cos(np.arange(24)).reshape(1, 3, 2, 4)
        y.backward(grad)
        inside = slice(start, start + 3)
        for got, e in zip([y.numpy(), *(t.grad for t in tensors)], expected, strict=True):
            np.testing.assert_allclose(got[:, inside], e, **ROUNDING)
            outside = np.delete(got, np.r_[inside], 1)
            assert not outside.any()


def test_a_query_that_sees_nothing_gives_zero_and_takes_no_gradient():
    q, k, v = RNG.standard_normal((3, 1, 2, 1, 3))
    results = attend(q, k, v, np.array([[1, 5]]), np.array([[0, -5]]))
    assert all(not a.any() for a in results)                # and no NaN, and no warning


def test_a_query_that_sees_one_key_copies_its_value():
    q, k, v = RNG.standard_normal((3, 1, 4, 2, 3))
    picked = np.array([[2, 0, 3, 1]])
    np.testing.assert_array_equal(attend(q, k, v, picked, picked)[0], v[:, picked[0]])


def test_the_future_has_no_influence():
    q, k, v = RNG.standard_normal((3, 1, 5, 2, 3))
    before = attend(q, k, v, *causal(1, 5))[0]
    k[:, 3:], v[:, 3:] = 9, -9
    np.testing.assert_array_equal(attend(q, k, v, *causal(1, 5))[0][:, :3], before[:, :3])


def test_the_last_query_with_a_cache_of_keys_is_the_last_row_of_the_whole():
    q, k, v = RNG.standard_normal((3, 2, 6, 2, 4))
    whole = attend(q, k, v, *causal(2, 6))[0]
    step = ops.attention(*(Tensor(a) for a in (q[:, -1:], k, v)), np.zeros((2, 1), int), np.full((2, 1), 5))
    np.testing.assert_allclose(step.numpy(), whole[:, -1:], **ROUNDING)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_head_of_keys_that_is_shared_counts_as_a_copy_for_each_of_its_queries(groups, dtype):
    """300 tokens: more than a block. The gradients of the shared ones are sums over the copies."""
    q, k, v = (RNG.standard_normal((2, 300, heads, 3)).astype(dtype) for heads in (4, groups, groups))
    y, grad_q, grad_k, grad_v = attend(q, k, v, *causal(2, 300))
    copied = attend(q, k.repeat(4 // groups, 2), v.repeat(4 // groups, 2), *causal(2, 300))
    copied[2:] = [g.reshape(2, 300, groups, -1, 3).sum(3) for g in copied[2:]]
    for got, expected in zip((y, grad_q, grad_k, grad_v), copied, strict=True):
        tolerance = 1e-12 if dtype == np.float64 else 2e-5          # sums of up to 600 terms in another order
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def test_large_scores_stay_finite():
    q = np.full((1, 2, 1, 2), 100.0, np.float32)
    results = attend(q, q * 10, q, *causal(1, 2))
    assert all(np.isfinite(a).all() for a in results)


def test_attention_errors_name_the_shapes():
    q = Tensor(np.ones((2, 3, 2, 4)))
    first, last = causal(2, 3)
    for k in np.ones((2, 3, 3, 4)), np.ones((2, 3, 4, 4)), np.ones((2, 3, 0, 4)):
        with pytest.raises(ValueError, match=rf"the G = {k.shape[2]} heads of k and v must divide the H = 2 heads of q"):
            ops.attention(q, Tensor(k), Tensor(k), first, last)
    for k in np.ones((2, 3, 2, 5)), np.ones((1, 3, 2, 4)), np.ones((3, 2, 4)):
        with pytest.raises(ValueError, match=r"expected q \(B, T, H, D\) and k, v \(B, S, G, D\).*time swapped"):
            ops.attention(q, Tensor(k), Tensor(k), first, last)
    with pytest.raises(ValueError, match=r"expected q \(B, T, H, D\)"):
        ops.attention(q, q, Tensor(np.ones((2, 4, 2, 4))), first, last)
    with pytest.raises(ValueError, match=r"first must be integers \(B, T\) = \(2, 3\), got int64 \(3,\)"):
        ops.attention(q, q, q, np.zeros(3, np.int64), last)
    with pytest.raises(ValueError, match=r"last must be integers \(B, T\) = \(2, 3\), got float64"):
        ops.attention(q, q, q, first, last * 1.0)
    with pytest.raises(ValueError, match=r"last must be an array of integers \(B, T\) = .*got a list.*np.array\(last\)"):
        ops.attention(q, q, q, first, last.tolist())
    with pytest.raises(ValueError, match=r"intervals must lie in the keys 0 .. 2, got 0 .. 3"):
        ops.attention(q, q, q, first, last + 1)
    with pytest.raises(ValueError, match="intervals must lie in the keys 0 .. 2, got -1 .. 2"):
        ops.attention(q, q, q, first - 1, last)


# ---- Cross-entropy -----------------------------------------------------------------------------------------------

def test_ignored_rows_count_nothing_and_get_no_gradient():
    logits, targets = Tensor(RNG.standard_normal((3, 4)), requires_grad=True), np.array([1, ops.IGNORE, 3])
    loss = ops.cross_entropy(logits, targets)
    loss.backward()
    kept = ops.cross_entropy(Tensor(logits.numpy()[[0, 2]]), targets[[0, 2]])
    np.testing.assert_allclose(loss.item(), kept.item(), **ROUNDING)
    assert not logits.grad[1].any() and logits.grad[0].any()


def test_all_rows_ignored_give_zero_and_zero_gradients():
    x, weight = (Tensor(RNG.standard_normal(shape), requires_grad=True) for shape in ((2, 3), (4, 3)))
    targets = np.full(2, ops.IGNORE)
    loss = ops.linear_cross_entropy(x, weight, targets) + ops.cross_entropy(x, targets)
    loss.backward()
    assert loss.item() == 0 and not x.grad.any() and not weight.grad.any()


def test_cross_entropy_is_a_sum_of_log_probabilities():
    logits, targets = RNG.standard_normal((2, 3, 4)), np.array([[0, 1, 2], [3, 0, 1]])
    p = ops.softmax(Tensor(logits)).numpy()
    expected = -np.log(np.take_along_axis(p, targets[..., None], -1)).sum()
    np.testing.assert_allclose(ops.cross_entropy(Tensor(logits), targets).item(), expected, **ROUNDING)


def test_linear_cross_entropy_is_cross_entropy_of_linear():
    x, weight, bias = (RNG.standard_normal(shape) for shape in ((600, 5), (7, 5), (7,)))
    targets = np.where(np.arange(600) % 5, np.arange(600) % 7, ops.IGNORE)  # 480 rows count: more than one chunk
    results = []
    for loss_of in (lambda x, w, b: ops.linear_cross_entropy(x, w, targets, b),
                    lambda x, w, b: ops.cross_entropy(ops.linear(x, w, b), targets)):
        tensors = [Tensor(a, requires_grad=True) for a in (x, weight, bias)]
        loss = loss_of(*tensors)
        (loss * 0.5).backward()
        results.append([loss.numpy(), *(t.grad for t in tensors)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)            # sums of 480 rows in another order


def test_linear_cross_entropy_never_holds_all_logits(monkeypatch):
    from importlib import import_module
    module, sizes = import_module("minitune.ops.linear_cross_entropy"), []
    right = module.product
    monkeypatch.setattr(module, "product", lambda a, b: sizes.append(right(a, b).shape) or right(a, b))
    ops.linear_cross_entropy(Tensor(np.ones((1000, 2))), Tensor(np.ones((50, 2))), np.zeros(1000, int))
    assert len(sizes) == 4 and max(rows for rows, _ in sizes) == module.ROWS


def test_binary_cross_entropy_is_cross_entropy_of_two_classes_for_each_logit():
    z, targets = RNG.standard_normal((3, 4)), np.array([[0, 1, ops.IGNORE, 1], [1, 1, 0, 0], [ops.IGNORE] * 4])
    logits, pairs = Tensor(z, requires_grad=True), Tensor(np.stack([0 * z, z], -1), requires_grad=True)
    loss, expected = ops.binary_cross_entropy(logits, targets), ops.cross_entropy(pairs, targets)
    (loss * 0.5).backward(), (expected * 0.5).backward()
    np.testing.assert_allclose(loss.item(), expected.item(), **ROUNDING)
    np.testing.assert_allclose(logits.grad, pairs.grad[..., 1], **ROUNDING)
    assert not logits.grad[targets == ops.IGNORE].any()


def test_binary_cross_entropy_stays_finite_however_sure_the_logits_are():
    z = Tensor(np.array([1e4, -1e4, 1e4, -1e4, np.inf, np.inf], np.float32), requires_grad=True)
    loss = ops.binary_cross_entropy(z, np.array([1, 0, 0, 1, 1, ops.IGNORE]))
    loss.backward()
    assert loss.item() == 20000 and z.grad.tolist() == [0, 0, 1, -1, 0, 0]


@pytest.mark.parametrize("targets, message", [
    (np.array([0, 2]), r"targets must lie in 0 .. 1 or be -100 \(ignored\), got 2 at \(1,\)"),
    (np.array([0.0, 1.0]), r"targets must be integers \(2,\), got float64 \(2,\). Convert them: targets.astype\(int\)"),
    (np.array([False, True]), r"targets must be integers \(2,\), got bool \(2,\). Convert them: targets.astype\(int\)"),
    (np.array([[0], [1]]), r"targets must be integers \(2,\), got int64 \(2, 1\)"),
])
def test_labels_that_are_neither_0_nor_1_raise(targets, message):
    with pytest.raises(ValueError, match="^binary_cross_entropy: " + message):
        ops.binary_cross_entropy(Tensor(np.ones(2)), targets)


@pytest.mark.parametrize("targets, message", [
    (np.array([0, 4]), r"targets must lie in 0 .. 3 or be -100 \(ignored\), got 4 at \(1,\)"),
    (np.array([-1, 0]), r"got -1 at \(0,\)"),
    (np.array([0.0, 1.0]), r"targets must be integers \(2,\), got float64 \(2,\)"),
    (np.array([0]), r"targets must be integers \(2,\), got int64 \(1,\)"),
    ([0, 1], r"targets must be an array of integers \(2,\), got a list. Write np.array\(targets\)"),
])
def test_targets_that_do_not_fit_raise(targets, message):
    with pytest.raises(ValueError, match="^cross_entropy: .*" + message):
        ops.cross_entropy(Tensor(np.ones((2, 4))), targets)
    with pytest.raises(ValueError, match="^linear_cross_entropy: .*" + message):
        ops.linear_cross_entropy(Tensor(np.ones((2, 3))), Tensor(np.ones((4, 3))), targets)


def test_linear_cross_entropy_errors_name_the_shapes():
    x, targets = Tensor(np.ones((2, 3))), np.array([0, 1])
    with pytest.raises(ValueError, match=r"x must be \(..., C\) for weight \(V, C\) = \(3, 4\), got \(2, 3\)"):
        ops.linear_cross_entropy(x, Tensor(np.ones((3, 4))), targets)
    with pytest.raises(ValueError, match=r"bias must be \(V,\) = \(4,\), got \(3,\)"):
        ops.linear_cross_entropy(x, Tensor(np.ones((4, 3))), targets, Tensor(np.ones(3)))


# ---- Elementwise, softmax, norms ---------------------------------------------------------------------------------

def test_extremes_stay_finite_without_a_warning():
    x = np.array([-1e4, -100.0, 100.0, 1e4], np.float32)
    np.testing.assert_array_equal(ops.sigmoid(Tensor(x)).numpy(), np.exp(np.minimum(x, 0)))     # e^-100 is 4e-44, no 0
    assert ops.tanh(Tensor(x)).numpy().tolist() == [-1, -1, 1, 1]
    assert ops.gelu(Tensor(x)).numpy().tolist() == [0, 0, 100, 10000]
    assert ops.gelu(Tensor(x), approximate="none").numpy().tolist() == [0, 0, 100, 10000]
    np.testing.assert_allclose(ops.swiglu(Tensor(x), Tensor(np.ones(4, np.float32))).numpy(), [0, 0, 100, 10000], 0, 1e-41)
    assert ops.softmax(Tensor(x)).numpy().tolist() == [0, 0, 0, 1]
    assert ops.cross_entropy(Tensor(x[None]), np.array([0])).item() == 20000


@pytest.mark.parametrize("kernels", [False, True])
def test_sigmoid_keeps_its_tail_alone_in_swiglu_and_in_the_gates_of_lstm(kernels):
    """float32 has e^-80; 0.5 (1 + tanh(x / 2)) has lost it at -18. Off by some roundings, and the twins' e^x by 4e-7."""
    x = np.linspace(-80, 80, 321).astype(np.float32)
    expected = np.array([1 / (1 + math.exp(-a)) for a in x])
    ones, zeros = np.ones_like(x), np.zeros((1, x.size), np.float32)
    bias = np.concatenate([x, 0 * x, 1e3 * ones, x])                    # of the gates i, f, g, o: c = sigmoid(x) tanh(1000)
    with mt.kernels(kernels):
        np.testing.assert_allclose(ops.sigmoid(Tensor(x)).numpy(), expected, 1e-6)
        np.testing.assert_allclose(ops.swiglu(Tensor(x), Tensor(ones)).numpy(), x * expected, 1e-6)
        _, cell = ops.lstm(Tensor(zeros[:, None, :1]), Tensor(np.zeros((4 * x.size, 1), np.float32)),
                           Tensor(np.zeros((4 * x.size, x.size), np.float32)), Tensor(bias), zeros, zeros).numpy()[:, 0, 0]
    np.testing.assert_allclose(cell, expected, 1e-6)
    np.testing.assert_array_equal(ops.sigmoid(Tensor([-np.inf, np.inf, np.nan])).numpy(), np.float32([0, 1, np.nan]))


def test_relu_takes_infinity_and_shows_nan():
    y = ops.relu(Tensor([-np.inf, -1.0, 0.0, np.inf, np.nan])).numpy()
    np.testing.assert_array_equal(y, np.array([0, 0, 0, np.inf, np.nan], np.float32))


def test_relu_has_slope_zero_at_zero():
    x = Tensor([0.0, 1.0], requires_grad=True)
    ops.relu(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0]


EVERYWHERE = np.concatenate([np.linspace(-30, 30, 60_001), np.geomspace(1e-310, 1e300, 999), -np.geomspace(1e-310, 1e300, 999),
                             [0.0, -0.0, np.inf, -np.inf]])


def test_erfc_agrees_with_the_standard_librarys():
    """1.1e-15 measured: some roundings of numbers up to 2. In the tail e^(-z^2) loses z^2 roundings, 676 at 26."""
    got, expected = erfc(EVERYWHERE), np.vectorize(math.erfc)(EVERYWHERE)
    np.testing.assert_allclose(got, expected, 0, 2e-15)
    np.testing.assert_allclose(1 - got, np.vectorize(math.erf)(EVERYWHERE), 0, 2e-15)
    tail = (EVERYWHERE > 0) & (EVERYWHERE < 26)
    np.testing.assert_allclose(got[tail], expected[tail], 1e-13)
    assert np.isnan(erfc(np.array([np.nan]))).all()


def test_erfc_of_float32_is_the_nearest_float32():
    x = np.linspace(-12, 12, 10_001).astype(np.float32)
    got = erfc(x)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.vectorize(math.erfc)(x.astype(np.float64)), 6e-8, 1e-44)     # below 1e-38 digits go


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-15), (np.float32, 2.4e-7)])           # four roundings
def test_the_exact_gelu_is_the_formula_with_erf(dtype, tolerance):
    x = np.concatenate([np.linspace(-9, 9, 1001), [1e-30, -1e-30, 1e10, -1e10]]).astype(dtype)
    expected = [a / 2 * (1 + math.erf(a / math.sqrt(2))) for a in x.astype(np.float64)]
    np.testing.assert_allclose(ops.gelu(Tensor(x), "none").numpy(), expected, tolerance, 9 * tolerance)


def test_gelu_has_two_forms():
    with pytest.raises(ValueError, match="gelu: approximate must be 'tanh' or 'none', got 'erf'"):
        ops.gelu(Tensor([1.0]), approximate="erf")


def test_swiglu_wants_gate_and_up_of_one_shape():
    with pytest.raises(ValueError, match=r"swiglu: gate and up must have one shape, got \(2, 3\) and \(3,\)"):
        ops.swiglu(Tensor(np.ones((2, 3))), Tensor(np.ones(3)))


def test_elements_that_share_the_maximum_share_its_gradient():
    x = Tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], requires_grad=True)
    x.max(axis=1).backward(np.array([4.0, 3.0], np.float32))
    assert x.grad.tolist() == [[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]]


def test_softmax_of_masked_scores_gives_them_no_weight():
    x = Tensor([[0.0, -np.inf, 0.0]], requires_grad=True)
    y = ops.softmax(x)
    y.backward(np.array([[1.0, 5.0, 0.0]], np.float32))
    assert y.numpy().tolist() == [[0.5, 0.0, 0.5]] and x.grad.tolist() == [[0.25, 0.0, -0.25]]


def test_a_row_that_layer_norm_cannot_scale_gives_its_bias():
    y = ops.layer_norm(Tensor([[5.0, 5.0]]), Tensor([2.0, 2.0]), Tensor([1.0, -1.0]))
    assert y.numpy().tolist() == [[1.0, -1.0]]


def test_layer_norm_keeps_its_precision_far_from_zero():
    x = RNG.standard_normal((2, 64)).astype(np.float32)
    one, zero = np.ones(64, np.float32), np.zeros(64, np.float32)
    near, far = (ops.layer_norm(Tensor(a), Tensor(one), Tensor(zero)).numpy() for a in (x, x + 256))
    np.testing.assert_allclose(near, far, atol=2e-4)        # x + 256 is rounded to steps of 3e-5


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_shapes_that_do_not_broadcast_raise(name):
    with pytest.raises(ValueError, match=rf"{name}: shapes \(2, 3\) and \(2,\) do not broadcast: 3 against 2"):
        getattr(ops, name)(Tensor(np.ones((2, 3))), Tensor(np.ones(2)))


@pytest.mark.parametrize("exponent", [Tensor([2.0]), np.ones(2), "2"], ids=["Tensor", "array", "text"])
def test_pow_takes_a_number_as_exponent(exponent):
    with pytest.raises(TypeError, match=r"pow: exponent must be a Python number, got .*exp\(exponent \* log\(x\)\)"):
        Tensor([1.0]) ** exponent


def test_numpy_numbers_as_settings_do_not_widen_float32():
    """np.float64 would: lora_alpha / np.sqrt(r), or a rate taken from np.linspace."""
    x, number = Tensor(np.ones((2, 2), np.float32), requires_grad=True), np.float64(0.5)
    row = Tensor(np.ones(2, np.float32), requires_grad=True)
    for y in (x**number, ops.dropout(x, number), ops.layer_norm(x, row, row, number), ops.rms_norm(x, row, number),
              ops.rope(x.reshape(1, 2, 1, 2), np.array([[0, 1]]), np.array([number])),
              ops.lora_linear(x, x, row, x, x, scale=number)):
        y.sum().backward()
        assert {y.dtype, x.grad.dtype, row.data.dtype} == {np.dtype(np.float32)}


@pytest.mark.parametrize("p", [-0.1, 1, 50, float("nan")])
def test_dropout_of_a_percentage_raises(p):
    with pytest.raises(ValueError, match=r"dropout: p must be in \[0, 1\), got .*percentage"):
        ops.dropout(Tensor([1.0]), p)


def test_softmax_of_a_scalar_raises():
    with pytest.raises(ValueError, match="softmax: expected at least one axis"):
        ops.softmax(Tensor(1.0))


@pytest.mark.parametrize("which", ["weight", "bias"])
def test_layer_norm_names_the_parameter_that_does_not_fit(which):
    parts = {"weight": Tensor(np.ones(3)), "bias": Tensor(np.ones(3)), which: Tensor(np.ones(12))}
    with pytest.raises(ValueError, match=rf"layer_norm: {which} must be \(C,\) = \(3,\), got \(12,\)"):
        ops.layer_norm(Tensor(np.ones((2, 3))), **parts)


def test_rms_norm_is_layer_norm_of_rows_whose_mean_is_0():
    x, weight = RNG.standard_normal((3, 8)), RNG.standard_normal(8)
    x -= x.mean(-1, keepdims=True)
    expected = ops.layer_norm(Tensor(x), Tensor(weight), Tensor(np.zeros(8)), eps=1e-3).numpy()
    np.testing.assert_allclose(ops.rms_norm(Tensor(x), Tensor(weight), eps=1e-3).numpy(), expected, **ROUNDING)


def test_rms_norm_of_a_row_of_zeros_is_0():
    x = Tensor([[0.0, 0.0]], requires_grad=True)
    y = ops.rms_norm(x, Tensor([3.0, 4.0]))
    y.sum().backward()
    assert not y.numpy().any() and np.isfinite(x.grad).all()


def test_rms_norm_names_the_weight_that_does_not_fit():
    with pytest.raises(ValueError, match=r"rms_norm: weight must be \(C,\) = \(3,\), got \(12,\)"):
        ops.rms_norm(Tensor(np.ones((2, 3))), Tensor(np.ones(12)))


# ---- Rotation ----------------------------------------------------------------------------------------------------

FREQUENCIES = 1e4 ** (-np.arange(4) / 4)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-11), (np.float32, 1e-5)])
def test_products_of_turned_queries_and_keys_depend_on_the_distance_alone(dtype, tolerance):
    """Positions of up to 100,000, whose angles float32 would round to 0.004."""
    q, k = (RNG.standard_normal((1, 1, 1, 8)).astype(dtype) for _ in range(2))
    products = [[(ops.rope(Tensor(q), np.array([[start + 5]]), FREQUENCIES).numpy()
                  * ops.rope(Tensor(k), np.array([[start]]), FREQUENCIES).numpy()).sum()] for start in (0, 7, 1000, 100_000)]
    np.testing.assert_allclose(products, np.broadcast_to(products[0], (4, 1)), 0, tolerance)


def test_position_0_turns_nothing_and_no_position_changes_a_length():
    x = RNG.standard_normal((2, 3, 2, 8)).astype(np.float32)
    np.testing.assert_array_equal(ops.rope(Tensor(x), np.zeros((2, 3), int), FREQUENCIES).numpy(), x)
    y = ops.rope(Tensor(x), np.array([[0, 1, 2], [9, 99, 999]]), FREQUENCIES).numpy()
    np.testing.assert_allclose((y * y).sum(-1), (x * x).sum(-1), 1e-6)          # eight squares in float32


@pytest.mark.parametrize("x, positions, frequencies, message", [
    ((2, 3, 8), (2, 3), (4,), r"x must be \(B, T, H, D\) with an even D, got \(2, 3, 8\)"),
    ((2, 3, 1, 7), (2, 3), (4,), r"x must be \(B, T, H, D\) with an even D, got \(2, 3, 1, 7\)"),
    ((2, 3, 1, 8), (3,), (4,), r"positions must be integers \(B, T\) = \(2, 3\), got int64 \(3,\)"),
    ((2, 3, 1, 8), (2, 3), (8,), r"frequencies must be floats \(D / 2,\) = \(4,\), got float64 \(8,\)"),
])
def test_rope_errors_name_the_shapes(x, positions, frequencies, message):
    with pytest.raises(ValueError, match="rope: " + message):
        ops.rope(Tensor(np.ones(x)), np.ones(positions, int), np.ones(frequencies))
    with pytest.raises(ValueError, match="rope: positions must be integers .* got float64"):
        ops.rope(Tensor(np.ones((2, 3, 1, 8))), np.ones((2, 3)), np.ones(4))
    with pytest.raises(ValueError, match=r"rope: positions must be an array of integers .* got a list.*np.array\(positions\)"):
        ops.rope(Tensor(np.ones((2, 3, 1, 8))), [[0, 1, 2]] * 2, np.ones(4))


# ---- Reductions and shapes ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["sum", "mean", "max"])
@pytest.mark.parametrize("axis", [2, -3, (0, 0), (0, -2), (0, 5)])
def test_an_axis_that_is_not_there_or_there_twice_raises(name, axis):
    with pytest.raises(ValueError, match=rf"{name}: axis must name different axes of shape \(2, 3\), got"):
        getattr(ops, name)(Tensor(np.ones((2, 3))), axis)


def test_the_mean_of_nothing_raises():
    with pytest.raises(ValueError, match=r"mean: nothing to average along axis 0 of shape \(0, 3\)"):
        ops.mean(Tensor(np.ones((0, 3))), 0)


@pytest.mark.parametrize("shape", [(4,), (2, -1, -1), (-1, 4), (0, -1), (2, 3, 0)])
def test_numbers_that_do_not_fit_a_shape_raise(shape):
    with pytest.raises(ValueError, match=r"reshape: 6 numbers of shape \(2, 3\) do not fit in"):
        ops.reshape(Tensor(np.ones((2, 3))), *shape)


@pytest.mark.parametrize("axes", [(0,), (0, 0), (0, 2), (0, 1, 2), (-3, 0)])
def test_transpose_wants_each_axis_once(axes):
    with pytest.raises(ValueError, match=r"transpose: axes must name each of the 2 axes of \(2, 3\) once"):
        ops.transpose(Tensor(np.ones((2, 3))), axes)


def test_concat_errors():
    a = Tensor(np.ones((2, 3)))
    with pytest.raises(ValueError, match="concat: expected at least one tensor"):
        ops.concat([])
    with pytest.raises(ValueError, match=r"concat: axis must be one of the 2 axes of \(2, 3\), got 2"):
        ops.concat([a], 2)
    for other in np.ones((2, 4)), np.ones(3), np.ones((2, 3, 1)):
        with pytest.raises(ValueError, match=r"concat: shapes must agree except along axis 0, got \(2, 3\) and"):
            ops.concat([a, Tensor(other)])


def test_split_gives_back_what_concat_joined_and_wants_all_of_the_axis():
    x = Tensor(np.arange(12.0).reshape(2, 6))
    parts = ops.split(x, [1, 3, 2], axis=-1)
    assert [p.shape for p in parts] == [(2, 1), (2, 3), (2, 2)]
    np.testing.assert_array_equal(ops.concat(parts, 1).numpy(), x.numpy())
    with pytest.raises(ValueError, match=r"split: lengths \[1, 3\] must add up to 6, axis -1 of \(2, 6\)"):
        ops.split(x, [1, 3], axis=-1)


# ---- Products and tables -----------------------------------------------------------------------------------------

def test_matmul_errors_name_the_shapes():
    a = Tensor(np.ones((2, 3)))
    for other in Tensor(np.ones(3)), 2.0:
        with pytest.raises(ValueError, match=r"matmul: expected \(..., M, K\) and \(..., K, N\).*Reshape a vector"):
            a @ other
    with pytest.raises(ValueError, match=r"matmul: inner lengths differ: \(2, 3\) @ \(2, 3\). Is one of"):
        a @ a


@pytest.mark.parametrize("name", ["linear", "lora_linear"])
def test_linear_errors_name_the_shapes(name):
    def run(x=(2, 3), weight=(4, 3), bias=(4,), residual=(2, 4)):
        x, weight, bias, residual = (Tensor(np.ones(shape)) for shape in (x, weight, bias, residual))
        if name == "linear":
            return ops.linear(x, weight, bias, residual)
        return ops.lora_linear(x, weight, bias, Tensor(np.ones((1, 3))), Tensor(np.ones((4, 1))), residual, scale=1)

    assert run().shape == (2, 4)
    with pytest.raises(ValueError, match=rf"^{name}: x must be .* for weight \(out, in\) = \(3, 4\), got \(2, 3\)"):
        run(weight=(3, 4))
    with pytest.raises(ValueError, match=rf"^{name}: x must be .*got \(\)"):
        run(x=())
    with pytest.raises(ValueError, match=rf"^{name}: bias must be \(out,\) = \(4,\), got \(3,\)"):
        run(bias=(3,))
    with pytest.raises(ValueError, match=rf"^{name}: residual must be \(..., out\) = \(2, 4\), got \(4,\)"):
        run(residual=(4,))


@pytest.mark.parametrize("a, b", [((2, 4), (4, 2)), ((2, 3), (3, 2)), ((2, 3), (4, 1)), ((3,), (4, 2))])
def test_lora_linear_wants_a_and_b_to_fit(a, b):
    with pytest.raises(ValueError, match=r"A must be \(R, in\) and B \(out, R\) for weight .* = \(4, 3\), got"):
        ops.lora_linear(Tensor(np.ones((2, 3))), Tensor(np.ones((4, 3))), None, Tensor(np.ones(a)), Tensor(np.ones(b)),
                        scale=1.0)


def test_lora_linear_is_a_linear_layer_with_the_merged_weight():
    x, weight, bias, A, B = (RNG.standard_normal(shape) for shape in ((5, 4), (3, 4), (3,), (2, 4), (3, 2)))
    y = ops.lora_linear(*(Tensor(a) for a in (x, weight, bias, A, B)), scale=0.5)
    np.testing.assert_allclose(y.numpy(), ops.linear(Tensor(x), Tensor(weight + 0.5 * B @ A), Tensor(bias)).numpy(),
                               **ROUNDING)


def test_embedding_adds_the_gradients_of_repeated_ids():
    weight = Tensor(np.zeros((3, 2)), requires_grad=True)
    ops.embedding(weight, np.array([[2, 0], [2, 2]])).backward(np.arange(8.0).reshape(2, 2, 2))
    assert weight.grad.tolist() == [[2.0, 3.0], [0.0, 0.0], [10.0, 13.0]]


def test_embedding_takes_lists_and_tensors_of_ids():
    weight = Tensor([[1.0], [2.0]])
    for ids in [1, 0], Tensor([1, 0]), np.array([1, 0], np.uint8):
        assert ops.embedding(weight, ids).numpy().tolist() == [[2.0], [1.0]]


@pytest.mark.parametrize("ids, wrong", [([0, 3], 3), ([-1, 0], -1)])
def test_an_id_outside_the_table_raises(ids, wrong):
    with pytest.raises(IndexError, match=f"ids must lie in 0 .. 2, got {wrong}. Was the text encoded with another"):
        ops.embedding(Tensor(np.ones((3, 2))), ids)


def test_ids_that_are_no_integers_raise():
    with pytest.raises(TypeError, match="embedding: ids must be integers, got float64"):
        ops.embedding(Tensor(np.ones((3, 2))), np.array([0.0]))


def test_results_do_not_depend_on_the_layout_in_memory():
    x = RNG.standard_normal((4, 6)).astype(np.float32)
    for operation in (ops.gelu, lambda t: ops.gelu(t, "none"), lambda t: ops.swiglu(t, t), ops.softmax, ops.exp, ops.relu,
                      lambda t: t.sum(0)):
        for a, b in ((x.T, x.T.copy()), (x[::2, 1:5], x[::2, 1:5].copy())):
            a, b = operation(Tensor(a)).numpy(), operation(Tensor(b)).numpy()
            np.testing.assert_allclose(a, b, rtol=1e-6)             # a few roundings of float32
