"""What operations promise beyond their formula: intervals of attention, ignored targets, extremes, ties, errors."""

import numpy as np
import pytest

from minitune import Tensor, ops

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


def test_large_scores_stay_finite():
    q = np.full((1, 2, 1, 2), 100.0, np.float32)
    results = attend(q, q * 10, q, *causal(1, 2))
    assert all(np.isfinite(a).all() for a in results)


def test_attention_errors_name_the_shapes():
    q = Tensor(np.ones((2, 3, 2, 4)))
    first, last = causal(2, 3)
    for k in np.ones((2, 2, 3, 4)), np.ones((2, 3, 2, 5)), np.ones((1, 3, 2, 4)), np.ones((3, 2, 4)):
        with pytest.raises(ValueError, match=r"expected q \(B, T, H, D\) and k, v \(B, S, H, D\).*time swapped"):
            ops.attention(q, Tensor(k), Tensor(k), first, last)
    with pytest.raises(ValueError, match=r"expected q \(B, T, H, D\)"):
        ops.attention(q, q, Tensor(np.ones((2, 4, 2, 4))), first, last)
    with pytest.raises(ValueError, match=r"first must be integers \(B, T\) = \(2, 3\), got int64 \(3,\)"):
        ops.attention(q, q, q, np.zeros(3, np.int64), last)
    with pytest.raises(ValueError, match=r"last must be integers \(B, T\) = \(2, 3\), got float64"):
        ops.attention(q, q, q, first, last * 1.0)
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


@pytest.mark.parametrize("targets, message", [
    (np.array([0, 4]), r"targets must lie in 0 .. 3 or be -100 \(ignored\), got 4 at \(1,\)"),
    (np.array([-1, 0]), r"got -1 at \(0,\)"),
    (np.array([0.0, 1.0]), r"targets must be integers \(2,\), got float64 \(2,\)"),
    (np.array([0]), r"targets must be integers \(2,\), got int64 \(1,\)"),
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
    assert ops.sigmoid(Tensor(x)).numpy().tolist() == [0, 0, 1, 1]
    assert ops.tanh(Tensor(x)).numpy().tolist() == [-1, -1, 1, 1]
    assert ops.gelu(Tensor(x)).numpy().tolist() == [0, 0, 100, 10000]
    assert ops.softmax(Tensor(x)).numpy().tolist() == [0, 0, 0, 1]
    assert ops.cross_entropy(Tensor(x[None]), np.array([0])).item() == 20000


def test_relu_takes_infinity_and_shows_nan():
    y = ops.relu(Tensor([-np.inf, -1.0, 0.0, np.inf, np.nan])).numpy()
    np.testing.assert_array_equal(y, np.array([0, 0, 0, np.inf, np.nan], np.float32))


def test_relu_has_slope_zero_at_zero():
    x = Tensor([0.0, 1.0], requires_grad=True)
    ops.relu(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0]


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
    for y in (x**number, ops.dropout(x, number), ops.layer_norm(x, row, row, number),
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
    for operation in ops.gelu, ops.softmax, ops.exp, ops.relu, lambda t: t.sum(0):
        for a, b in ((x.T, x.T.copy()), (x[::2, 1:5], x[::2, 1:5].copy())):
            a, b = operation(Tensor(a)).numpy(), operation(Tensor(b)).numpy()
            np.testing.assert_allclose(a, b, rtol=1e-6)             # a few roundings of float32
