"""The engine: what is recorded, what a walk adds up, what it frees, and what it says when it cannot."""

import ast
import gc
import threading
import weakref
from importlib import import_module
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

import minitune as mt
from minitune import Tensor, ops
from minitune import tensor as engine
from minitune.operators import OPERATORS
from minitune.tensor import apply, no_grad


def leaf(*numbers):
    return Tensor(np.array(numbers), requires_grad=True)


# ---- What a walk adds up -----------------------------------------------------------------------------------------

def test_a_diamond_adds_the_gradients_of_both_ways():
    x = leaf(3.0)
    y = x * 2
    (y * y + y * 5).sum().backward()
    assert x.grad.tolist() == [2 * (2 * 6 + 5)]


def test_a_diamond_whose_branches_differ_in_length():
    x = leaf(0.5)
    y = x.exp()
    z = y
    for _ in range(5):
        z = z * 2
    (y + z + y * z).sum().backward()
    e = np.exp(0.5)
    np.testing.assert_allclose(x.grad, [e * 33 + 2 * 32 * e * e], rtol=1e-14)       # a few roundings


def test_one_tensor_as_both_inputs():
    x = leaf(3.0)
    (x * x * x).sum().backward()
    assert x.grad.tolist() == [27.0]
    square = Tensor(np.eye(2), requires_grad=True)
    (square @ square).sum().backward()
    assert square.grad.tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_a_node_is_visited_once_and_after_all_its_users():
    """The walk calls backward once a node; three users' gradients arrive as one sum."""
    seen = []

    def forward(x, *, needs):
        return x * 1, ()

    def backward(grad, *, needs):
        seen.append(grad.tolist())
        return (grad * 1,)

    x = leaf(1.0)
    y = apply(forward, backward, x)
    (y + y * 10 + (y * 100).exp() * 0).sum().backward()
    assert seen == [[11.0]]


def test_a_chain_of_20_000_operations_is_walked_and_freed_without_recursion():
    x = leaf(1.0)
    y = x
    start = perf_counter()
    for _ in range(20_000):
        y = y + 1.0
    y.sum().backward()
    assert x.grad.tolist() == [1.0]
    del y
    assert perf_counter() - start < 10          # a quarter of a second; quadratic time would be minutes
    y = leaf(1.0)
    for _ in range(20_000):
        y = y + 1.0
    del y                                       # a graph never walked is freed without recursion too


def test_sixty_doublings_take_linear_time():
    x = leaf(1.0)
    y = x
    for _ in range(60):
        y = y + y
    y.sum().backward()                          # 2^60 paths: a walk along paths would not end
    assert x.grad.tolist() == [2.0**60]


def test_only_what_the_result_depends_on_is_walked():
    x, other = leaf(1.0), leaf(2.0)
    _unused = other * x
    (x * 2).sum().backward()
    assert other.grad is None


def test_a_gradient_may_be_given_as_array_or_tensor():
    for grad in np.array([1.0, 10.0]), Tensor(np.array([1.0, 10.0])):
        x = leaf(1.0, 2.0)
        (x * x).backward(grad)
        assert x.grad.tolist() == [2.0, 40.0]


def test_a_tensor_of_one_element_needs_no_gradient():
    for shape in (), (1,), (1, 1):
        x = Tensor(np.full(shape, 3.0), requires_grad=True)
        (x * x).backward()
        assert x.grad.shape == shape and x.grad.item() == 6


def test_backward_on_a_leaf_gives_it_the_gradient():
    x, grad = leaf(1.0, 2.0), np.array([3.0, 4.0])
    x.backward(grad)
    grad[:] = 0
    assert x.grad.tolist() == [3.0, 4.0]


# ---- A leaf owns its gradient ------------------------------------------------------------------------------------

def test_gradients_of_two_backwards_add_up():
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    first = x.grad
    (x * 3).sum().backward()
    assert x.grad.tolist() == [5.0, 7.0] and x.grad is first


@pytest.mark.parametrize("operation", [
    lambda a, b: a + b, lambda a, b: ops.concat([a, b]), lambda a, b: (a.reshape(1, 3) + b).sum(),
    lambda a, b: a.sum() + b, lambda a, b: ops.concat([a + 0, b + 0])[1:],
    lambda a, b: a.reshape(3, 1).transpose() + b.reshape(1, 3),
], ids=["add", "concat", "sum", "scalar", "slices", "transpose"])
def test_no_two_leaves_share_their_gradients(operation):
    a, b, grad = leaf(1.0, 2.0, 3.0), leaf(4.0, 5.0, 6.0), None
    y = operation(a, b)
    grad = np.ones(y.shape)
    y.backward(grad)
    assert not np.shares_memory(a.grad, b.grad)
    before = b.grad.copy()
    a.grad *= 100                               # as clipping does
    assert a.grad.flags.writeable and np.array_equal(b.grad, before) and grad.max() == 1


def test_the_same_leaf_twice_does_not_add_into_its_own_summand():
    x = leaf(1.0, 2.0)
    grad = np.array([1.0, 1.0])
    (x + x).backward(grad)
    assert x.grad.tolist() == [2.0, 2.0] and grad.tolist() == [1.0, 1.0]


def test_the_given_gradient_is_never_written_into():
    x, grad = leaf(1.0, 2.0), np.array([1.0, 1.0])
    y = x + 0.0
    y.backward(grad)
    (x * 5).sum().backward()
    assert grad.tolist() == [1.0, 1.0] and x.grad.tolist() == [6.0, 6.0]


def test_a_leaf_without_axes_gets_an_array_too():
    """NumPy answers with a scalar object where no axis is left; an optimizer needs an array that it can write into."""
    x = Tensor(2.0, requires_grad=True)
    (x * x).backward()
    assert isinstance(x.grad, np.ndarray)
    before = x.grad
    (x * 3).backward()
    assert x.grad is before and x.grad == 7


# ---- What is recorded --------------------------------------------------------------------------------------------

def test_frozen_inputs_cost_no_matrix_product(monkeypatch):
    """linear: one product forward; backward one more for each of x and weight, if it is wanted."""
    module, calls = import_module("minitune.ops.linear"), []
    right = module.product
    monkeypatch.setattr(module, "product", lambda a, b: calls.append(1) or right(a, b))
    for x_needs, weight_needs in (True, True), (True, False), (False, True):
        x, weight = Tensor(np.ones((2, 3)), x_needs), Tensor(np.ones((4, 3)), weight_needs)
        y = ops.linear(x, weight)
        calls.clear()
        y.backward(np.ones((2, 4)))
        assert len(calls) == x_needs + weight_needs
        assert [x.grad is not None, weight.grad is not None] == [x_needs, weight_needs]


def test_nothing_below_the_lowest_trainable_input_is_recorded():
    frozen, head = Tensor(np.ones((2, 2))), Tensor(np.ones((2, 2)), requires_grad=True)
    features = (frozen @ frozen).tanh()
    assert features.node is None and not features.requires_grad
    y = features @ head
    assert y.node.needs == (False, True) and y.node.parents == [None, head]


def test_a_frozen_input_is_not_kept_for_a_gradient_that_nobody_wants():
    x, frozen = Tensor(np.ones((3, 3)), requires_grad=True), Tensor(np.full((3, 3), 2.0))
    hidden = x * 1.0
    kept = weakref.ref(hidden.data)
    y = hidden * frozen                         # the gradient of hidden is frozen's numbers; its own serve nobody
    del hidden
    assert kept() is None
    y.sum().backward()
    assert x.grad.max() == 2


def test_python_numbers_beside_arrays_keep_the_dtype():
    for dtype in np.float16, np.float32, np.float64:
        x = Tensor(np.ones(2, dtype), requires_grad=True)
        for y in (x + 1, 1 + x, x - 1.5, 1.5 - x, x * 2, 2 * x, x / 3, 3 / x, x**2, x**0.5, -x):
            assert y.dtype == dtype
        y.sum().backward()
        assert x.grad.dtype == dtype


@pytest.mark.parametrize("other", [np.array([1, 2]), np.array([1, 2], np.uint8), [1, 2], (1.0, 2.0), Tensor([1, 2]),
                                   np.array([True, False]), np.int64(3)], ids=repr)
def test_integers_lists_and_masks_beside_float32_keep_float32(other):
    x = Tensor([1.0, 2.0], requires_grad=True)
    for y in (x + other, x * other, x - other, other * x):
        assert isinstance(y, Tensor) and y.dtype == np.float32
    (x / 2 * other).sum().backward()
    assert x.grad.dtype == np.float32


def test_an_array_before_the_operator_gives_a_tensor():
    a, x = np.array([1.0, 2.0]), leaf(3.0, 4.0)
    for y, expected in ((a + x, [4, 6]), (a - x, [-2, -2]), (a * x, [3, 8]), (a / x, [1 / 3, 0.5])):
        assert isinstance(y, Tensor) and y.numpy().tolist() == expected
    assert isinstance(np.ones((2, 2)) @ Tensor(np.ones((2, 2))), Tensor)


def test_mixed_float_dtypes_raise_and_name_both():
    for operation in (lambda a, b: a + b, lambda a, b: a @ b, lambda a, b: ops.concat([a, b])):
        with pytest.raises(TypeError, match="inputs must share one float dtype, got float32 and float64"):
            operation(Tensor(np.ones((2, 2), np.float32)), Tensor(np.ones((2, 2))))
    with pytest.raises(TypeError, match="linear: inputs must share one float dtype"):
        ops.linear(Tensor(np.ones((2, 2), np.float32)), Tensor(np.ones((2, 2), np.float32)), Tensor(np.ones(2)))


def test_inputs_on_two_devices_raise(monkeypatch):
    a, b = np.ones(2), np.zeros(2)
    monkeypatch.setattr(engine, "device_of", lambda array: "cuda" if array is b else "cpu")
    with pytest.raises(TypeError, match="add: inputs must be on one device"):
        Tensor(a) + Tensor(b)


# ---- no_grad -----------------------------------------------------------------------------------------------------

def test_no_grad_records_nothing_and_ends_with_its_block():
    x = leaf(1.0)
    with no_grad():
        y = x * 2
        with no_grad():
            pass
        z = x * 2
    assert not y.requires_grad and y.node is None and not z.requires_grad
    assert (x * 2).requires_grad


def test_no_grad_decorates_a_function_each_time_it_is_called():
    @no_grad()
    def double(x):
        return x * 2

    x = leaf(1.0)
    assert not double(x).requires_grad and not double(x).requires_grad and (x * 2).requires_grad


def test_recording_goes_on_after_an_exception():
    x = leaf(1.0)
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert (x * 2).requires_grad


def test_no_grad_of_one_thread_leaves_others_alone():
    x, found = leaf(1.0), []
    with no_grad():
        thread = threading.Thread(target=lambda: found.append((x * 2).requires_grad))
        thread.start()
        thread.join()
    assert found == [True]


# ---- Memory ------------------------------------------------------------------------------------------------------

@pytest.fixture
def collector_off():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("walked", [True, False])
def test_a_graph_dies_with_its_last_reference_without_the_collector(collector_off, walked):
    x = Tensor(np.ones((3, 3)), requires_grad=True)
    hidden = (x @ x).tanh()
    loss = ops.cross_entropy(ops.linear(hidden, x), np.array([0, 1, 2]))
    alive = [weakref.ref(t) for t in (hidden, loss, hidden.data)]
    if walked:
        loss.backward()
    del hidden, loss
    assert [ref() for ref in alive] == [None] * 3
    assert gc.collect() == 0


def test_a_leaf_dies_with_its_last_reference(collector_off):
    x = leaf(1.0, 2.0)
    data, tensor = weakref.ref(x.data), weakref.ref(x)
    (x * x).sum().backward()
    grad = weakref.ref(x.grad)
    del x
    assert (data(), tensor(), grad()) == (None, None, None)


def test_saved_arrays_are_freed_during_the_walk(collector_off):
    """When the first operation's backward runs, what the second one saved is gone already."""
    saved_by_second, seen = [], []

    def first(x, *, needs):
        return x * 1, ()

    def first_backward(grad, *, needs):
        seen.append(saved_by_second[0]())
        return (grad,)

    def second(x, *, needs):
        kept = x + 1
        saved_by_second.append(weakref.ref(kept))
        return x * 2, (kept,)

    def second_backward(grad, kept, *, needs):
        return (grad * 2,)

    y = apply(second, second_backward, apply(first, first_backward, leaf(1.0)))
    assert saved_by_second[0]() is not None
    y.backward()
    assert seen == [None]


def test_tensors_and_nodes_have_no_dict():
    y = leaf(1.0) * 2
    assert not hasattr(y, "__dict__") and not hasattr(y.node, "__dict__")


# ---- Errors ------------------------------------------------------------------------------------------------------

def test_a_second_backward_says_why_it_cannot():
    x = leaf(1.0)
    loss = (x * x).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="sum was walked before and what it saved is freed.*add the losses"):
        loss.backward()
    shared = x * x
    shared.sum().backward()
    with pytest.raises(RuntimeError, match="mul was walked before"):
        (shared * 2).sum().backward()


def test_backward_without_a_record_says_why():
    with no_grad():
        y = leaf(1.0) * 2
    for tensor in y, Tensor([1.0]), Tensor([1.0]) * 2, leaf(1.0).detach():
        with pytest.raises(RuntimeError, match=r"nothing was recorded here.*requires_grad=True.*no_grad"):
            tensor.backward()


def test_backward_of_many_numbers_asks_for_a_gradient():
    with pytest.raises(ValueError, match=r"shape \(2,\) needs a gradient of its shape.*tensor.sum\(\).backward\(\)"):
        (leaf(1.0, 2.0) * 2).backward()


@pytest.mark.parametrize("grad", [np.ones(3), np.ones((2, 1)), [1.0, 1.0], 1.0], ids=repr)
def test_a_gradient_of_another_shape_raises(grad):
    with pytest.raises(ValueError, match=r"grad must have shape \(2,\), got"):
        (leaf(1.0, 2.0) * 2).backward(grad)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_a_gradient_of_another_dtype_raises(dtype):
    with pytest.raises(TypeError, match="grad must be float64 like the tensor, got"):
        (leaf(1.0, 2.0) * 2).backward(np.ones(2, dtype))


def test_a_refused_gradient_leaves_the_graph_as_it_was():
    x = leaf(1.0, 2.0)
    y = x * 2
    with pytest.raises(ValueError):
        y.backward(np.ones(3))
    y.backward(np.ones(2))
    assert x.grad.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("data", [1, [1, 2], np.array([True])], ids=repr)
def test_integers_and_booleans_have_no_gradient(data):
    with pytest.raises(TypeError, match="only floats have gradients"):
        Tensor(data, requires_grad=True)


def test_a_tensor_of_a_tensor_raises():
    with pytest.raises(TypeError, match=r"got a Tensor. Use tensor.detach\(\)"):
        Tensor(Tensor([1.0]))


def test_a_tensor_of_text_raises():
    with pytest.raises(TypeError, match="Tensor: expected numbers, got dtype"):
        Tensor(["a"])


def test_a_tensor_has_no_truth_value():
    with pytest.raises(TypeError, match="has no truth value"):
        bool(Tensor([1.0]))
    with pytest.raises(TypeError, match="has no truth value"):
        assert Tensor(1.0)


# ---- What a tensor shows -----------------------------------------------------------------------------------------

def test_a_tensor_tells_its_shape_numbers_and_history():
    x = Tensor(np.zeros((2, 3), np.float32), requires_grad=True)
    assert (x.shape, x.ndim, x.size, x.dtype, len(x)) == ((2, 3), 2, 6, np.float32, 2)
    assert x.numpy() is x.data and x.detach().data is x.data and not x.detach().requires_grad
    assert repr(x).endswith("requires_grad=True)") and repr(x + 1).endswith("made by add)")
    assert repr(Tensor([1])) == "Tensor(array([1]))"
    value = Tensor(2.5).item()
    assert value == 2.5 and type(value) is float


def test_an_array_is_not_copied():
    a = np.ones(2)
    assert Tensor(a).data is a


def test_every_operator_is_declared_for_readers_and_type_checkers_and_no_other():
    """The names under `if TYPE_CHECKING` in the class Tensor are those of operators.OPERATORS, in the same order."""
    tree = ast.parse(Path(engine.__file__).read_text(encoding="utf-8"))
    (cls,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Tensor")
    (block,) = (node for node in cls.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    names = {node.name for node in block.body if isinstance(node, ast.FunctionDef)}
    names |= {target.id for node in block.body if isinstance(node, ast.Assign) for target in node.targets}
    assert names == set(OPERATORS)
    assert all(getattr(Tensor, name) is function for name, function in OPERATORS.items())


@pytest.mark.parametrize("use, expected", [
    (lambda a, b: a + b, [[6, 8]]), (lambda a, b: 1 + a, [[2, 3]]), (lambda a, b: a - b, [[-4, -4]]),
    (lambda a, b: 1 - a, [[0, -1]]), (lambda a, b: a * b, [[5, 12]]), (lambda a, b: 2 * a, [[2, 4]]),
    (lambda a, b: b / a, [[5, 3]]), (lambda a, b: 2 / a, [[2, 1]]), (lambda a, b: -a, [[-1, -2]]),
    (lambda a, b: a**2, [[1, 4]]), (lambda a, b: a @ b.transpose(), [[17]]), (lambda a, b: a[:, 1], [2]),
    (lambda a, b: np.array([[1.0], [2.0]]) @ a, [[1, 2], [2, 4]]), (lambda a, b: a.reshape(2), [1, 2]),
    (lambda a, b: a.sum(), 3), (lambda a, b: a.mean(1), [1.5]), (lambda a, b: b.max(axis=1, keepdims=True), [[6]]),
    (lambda a, b: (b - a).sqrt(), [[2, 2]]), (lambda a, b: (a * 0).exp(), [[1, 1]]),
    (lambda a, b: (a * 0).tanh(), [[0, 0]]), (lambda a, b: (a / a).log(), [[0, 0]]),
])
def test_operators_and_methods_do_what_they_say(use, expected):
    assert use(Tensor(np.array([[1.0, 2.0]])), Tensor(np.array([[5.0, 6.0]]))).numpy().tolist() == expected


def test_an_operation_with_any_number_of_inputs_gets_plain_needs():
    a, b = leaf(1.0), leaf(2.0)
    assert ops.concat([a, b.detach(), b]).node.needs == (True, False, True)


def test_needs_are_named_like_the_inputs():
    y = ops.linear(Tensor(np.ones((1, 2))), Tensor(np.ones((1, 2)), requires_grad=True))
    assert y.node.needs._asdict() == {"x": False, "weight": True, "bias": False, "residual": False}
    assert y.node.name == "linear" and mt.tensor is engine


def test_comparing_tensors_raises_instead_of_comparing_identities():
    with pytest.raises(TypeError, match="== is not defined"):
        Tensor([1.0]) == Tensor([1.0])  # noqa: B015
    assert len({Tensor([1.0]), Tensor([1.0])}) == 2         # but a tensor can stand in a set or a dictionary


@pytest.mark.parametrize("make", [
    lambda: Tensor([1, 2]) + 0.5, lambda: Tensor([1, 2]).exp(), lambda: Tensor([1, 2]) / 2, lambda: 2 / Tensor([1, 2]),
    lambda: Tensor([1, 2]).mean(), lambda: Tensor([[1, 2]]) @ Tensor([[1.0], [2.0]]), lambda: Tensor([1.0]) * np.sqrt(2),
    lambda: ops.linear(Tensor([[1, 2]]), Tensor([[1.0, 2.0]])), lambda: Tensor([1.0]) + np.array([1, 2]),
])
def test_integers_make_float32_where_numpy_would_make_float64(make):
    assert make().dtype == np.float32


def test_integers_beside_a_trained_float32_leave_its_gradient_float32():
    weight = Tensor([[1.0, 2.0]], requires_grad=True)
    ops.linear(Tensor([[1, 2]]), weight).sum().backward()
    assert weight.grad.dtype == np.float32
