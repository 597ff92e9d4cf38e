"""recompute: the same gradients bit for bit, and nothing kept inside a block."""

import tracemalloc

import numpy as np
import pytest

import minitune as mt
from minitune import Tensor, models, nn, ops, tune
from minitune.data import Batch

V, T, C, LAYERS = 40, 16, 32, 3
IDS = np.random.default_rng(0).integers(0, V, (3, T))


def gpt(dtype=np.float32, dropout=0.3, **sizes):
    mt.seed(1)
    model = models.GPT(models.GPTConfig(**{"vocab_size": V, "block_size": T, "n_layer": LAYERS, "n_head": 2, "n_embd": C,
                                           "dropout": dropout, **sizes}))
    for p in model.parameters():
        p.data = p.data.astype(dtype)
    return model


def loss_of(model, ids=IDS):
    (loss, _, _), = model.loss(Batch.of_ids(ids)).values()
    return loss


def gradients(model):
    """{name: bytes} of the gradients, None where there is none."""
    return {name: p.grad if p.grad is None else p.grad.tobytes() for name, p in model.named_parameters()}


def step(model, recompute, backwards=1):
    """What a step leaves: losses, gradients, and where the random numbers stand."""
    mt.seed(2)
    model.zero_grad()
    model.recompute = recompute
    losses = []
    for i in range(backwards):
        losses.append(loss_of(model, (IDS + i) % V))
        losses[-1].backward()
    return [loss.item() for loss in losses], gradients(model), dict(mt.random.counters), mt.random.seed


def saved(result):
    """{id: array} of all that the graph behind a result keeps for the backward pass."""
    arrays, waiting, seen = {}, [result.node], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Tensor) and node not in seen and node is not None:
            seen.add(node)
            waiting += node.parents
            flat = [item for value in node.saved for item in (value if isinstance(value, (list, tuple)) else [value])]
            flat = [item.data if isinstance(item, Tensor) else item for item in flat]
            arrays |= {id(item): item for item in flat if isinstance(item, np.ndarray)}
    return arrays


class Scaled(nn.Module):
    """x -> operation(x weight), with any weight."""

    def __init__(self, weight, operation=ops.tanh):
        self.weight, self.operation = weight, operation

    def forward(self, x):
        return self.operation(x * self.weight)


# ---- The same gradients --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("backwards", [1, 2])
@pytest.mark.parametrize("dtype, kernels", [(np.float64, True), (np.float32, True), (np.float32, False)])
def test_a_gpt_with_dropout_gets_the_same_gradients_bit_for_bit(dtype, kernels, backwards):
    model = gpt(dtype)
    with mt.kernels(kernels):
        expected = step(model, False, backwards)
        assert step(model, True, backwards) == expected
    assert None not in expected[1].values()


def test_adapters_get_theirs_and_frozen_weights_none():
    model = gpt()
    tune.apply(model, tune.LoRAConfig(r=2, lora_dropout=0.2))
    for name, p in model.named_parameters():
        if name.endswith(".B"):                         # at 0 it hides the gradient of A
            p.data += 0.1
    expected = step(model, False)
    assert step(model, True) == expected
    assert {name.rpartition(".")[2] for name, grad in expected[1].items() if grad} == {"A", "B"}


def test_frozen_blocks_below_the_first_that_trains_keep_nothing_and_are_run_once():
    model = gpt(dropout=0.0)
    tune.freeze(model)
    model.blocks[-1].requires_grad_()
    expected = step(model, False)
    assert step(model, True) == expected
    runs, forward = [], model.blocks[0].forward
    model.blocks[0].forward = lambda *inputs: runs.append(1) or forward(*inputs)
    step(model, True)
    assert len(runs) == 1


@pytest.mark.parametrize("make", [
    lambda: (nn.MLP(4),) * 2,                           # one block twice
    lambda: [Scaled(weight) for weight in [nn.normal((4,), 1.0)] * 2],      # a parameter in two blocks
], ids=["block", "parameter"])
def test_a_parameter_used_twice_gets_the_sum(make):
    blocks, x = make(), Tensor(np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), requires_grad=True)

    def grads(run):
        x.grad = None
        for block in blocks:
            block.zero_grad()
        run(blocks[1], run(blocks[0], x)).sum().backward()
        return [x.grad.tobytes(), *(p.grad.tobytes() for block in blocks for p in block.parameters())]

    assert grads(nn.recompute) == grads(lambda block, x: block(x))


def test_every_input_that_needs_a_gradient_gets_it_and_arrays_pass_through():
    layer = nn.Linear(4, 4)
    x, residual = (Tensor(np.full((2, 4), value), requires_grad=True) for value in (1.0, 2.0))
    for p in layer.parameters():
        p.data = p.data.astype(np.float64)
    nn.recompute(layer, x, residual).sum().backward()
    np.testing.assert_array_equal(residual.grad, np.ones((2, 4)))
    np.testing.assert_allclose(x.grad, np.tile(layer.weight.data.sum(0), (2, 1)), rtol=1e-12)
    x.grad = None
    nn.recompute(layer, x, residual.detach()).sum().backward()
    np.testing.assert_array_equal(residual.grad, np.ones((2, 4)))           # nothing was added
    table = nn.Embedding(5, 2)
    nn.recompute(table, np.array([3, 3, 0])).sum().backward()
    np.testing.assert_array_equal(table.weight.grad[:, 0], [1, 0, 0, 2, 0])


def test_blocks_may_stand_inside_blocks():
    class Outer(nn.Module):
        def __init__(self):
            self.parts, self.run = [nn.MLP(4), nn.Dropout(0.5), nn.MLP(4)], nn.recompute

        def forward(self, x):
            for part in self.parts:
                x = self.run(part, x)
            return x

    outer, x = Outer(), Tensor(np.ones((8, 4), np.float32))
    found = []
    for inner, around in ((nn.recompute,) * 2, (lambda block, x: block(x),) * 2):
        mt.seed(3)
        outer.zero_grad()
        outer.run = inner
        around(outer, x).sum().backward()
        found.append((gradients(outer), dict(mt.random.counters)))
    assert found[0] == found[1]


def test_the_first_run_records_nothing_and_the_second_only_what_is_needed():
    class Spy(nn.Module):
        def __init__(self):
            self.weight, self.seen = nn.filled((3,), 2.0), []

        def forward(self, x, y):
            self.seen.append((ops.mul(x, y).requires_grad, ops.mul(x, self.weight).requires_grad))
            return x * y * self.weight

    spy, x, y = Spy(), *(Tensor(np.ones((2, 3), np.float32)) for _ in range(2))
    nn.recompute(spy, x, y).sum().backward()
    assert spy.seen == [(False, False), (False, True)] and x.grad is None


def test_a_block_that_uses_none_of_its_parameters_gives_none_a_gradient():
    block = Scaled(nn.filled((3,), 1.0))
    block.forward = lambda x: ops.exp(x)
    nn.recompute(block, Tensor(np.ones((2, 3), np.float32))).sum().backward()
    assert block.weight.grad is None


def test_a_block_that_gives_its_input_back_passes_the_gradient_on():
    x = Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    (nn.recompute(nn.Dropout(0.0), x) * 2).sum().backward()
    np.testing.assert_array_equal(x.grad, np.full((2, 3), 2))


# ---- The state that the second run meets ---------------------------------------------------------------------------

def test_backward_may_come_late_under_another_seed_other_kernels_and_no_grad():
    block, x = nn.TransformerBlock(32, 2, 1, dropout=0.5), Tensor(np.ones((2, 4, 32), np.float32))
    first, last = np.zeros((2, 4), int), np.tile(np.arange(4), (2, 1))

    def grads(run):
        mt.seed(4)
        block.zero_grad()
        with mt.kernels(False):
            loss = run(x, first, last).sum()
        mt.seed(9)
        mt.random.uniform("dropout", 10)
        stood = mt.random.seed, dict(mt.random.counters)
        with mt.no_grad():
            loss.backward()
            assert not ops.sum(block.mlp.up.weight).requires_grad           # still inside no_grad
        assert (mt.random.seed, dict(mt.random.counters)) == stood
        return gradients(block)

    assert grads(lambda *inputs: nn.recompute(block, *inputs)) == grads(block)


def test_an_error_in_the_second_run_leaves_random_numbers_and_recording_as_they_were():
    runs = []

    def fails_the_second_time(x):
        runs.append(1)
        if len(runs) == 2:
            raise MemoryError
        return ops.dropout(x, 0.5)

    y = nn.recompute(Scaled(nn.filled((3,), 1.0), fails_the_second_time), Tensor(np.ones((4, 3), np.float32))).sum()
    stood = dict(mt.random.counters)
    with mt.no_grad():
        with pytest.raises(MemoryError):
            y.backward()
        assert not ops.exp(nn.filled((3,), 1.0)).requires_grad
    assert dict(mt.random.counters) == stood
    with pytest.raises(RuntimeError, match="recompute was walked before"):
        y.node.parents[0].run_backward(np.ones((4, 3), np.float32))


@pytest.mark.parametrize("weight, operation, expected", [
    (-1.0, ops.log, "log, forward"), (0.0, ops.sqrt, "sqrt, backward"),     # the root of 0 is 0, its slope infinite
])
def test_detect_anomaly_names_the_operation_inside_the_block(weight, operation, expected):
    block = Scaled(nn.filled((3,), weight), operation)
    with mt.detect_anomaly(), pytest.raises(FloatingPointError, match=expected):
        nn.recompute(block, Tensor(np.ones((2, 3), np.float32))).sum().backward()


# ---- A plain call --------------------------------------------------------------------------------------------------

def test_where_nothing_is_recorded_or_nothing_trains_it_is_a_plain_call():
    block, x = nn.MLP(4), Tensor(np.ones((2, 4), np.float32), requires_grad=True)
    with mt.no_grad():
        assert nn.recompute(block, x).node is None
    assert nn.recompute(block, x.detach()).node.name == "recompute"
    block.requires_grad_(False)
    assert nn.recompute(block, x).node.name == "recompute"
    assert nn.recompute(block, x.detach()).node is None


def test_a_gpt_generates_the_same_and_its_folder_does_not_hold_the_switch(tmp_path):
    model = gpt().eval()
    expected = model.generate_ids(IDS[:, :5], 10, temperature=0)
    model.recompute = True
    assert model.generate_ids(IDS[:, :5], 10, temperature=0) == expected    # reads the cache, not the last token alone
    model.save_pretrained(tmp_path)
    assert "recompute" not in (tmp_path / "config.json").read_text() and not models.from_pretrained(tmp_path).recompute


# ---- Memory --------------------------------------------------------------------------------------------------------

def test_of_a_block_only_its_inputs_are_kept():
    model = gpt()
    model.recompute = True
    batch = Batch.of_ids(IDS)
    x = Tensor(np.ones((3, T, C), np.float32), requires_grad=True)
    kept = saved(nn.recompute(model.blocks[0], x, batch.first, batch.last))
    assert set(kept) == {id(x.data), id(batch.first), id(batch.last)}


def test_what_a_model_keeps_grows_by_one_input_a_layer_and_the_peak_falls():
    def measure(layers, recompute):
        model = gpt(n_layer=layers)
        model.recompute = recompute
        loss_of(model).backward()                       # gradients are there before the step that is measured
        tracemalloc.start()
        try:
            loss = loss_of(model)
            kept = sum(array.nbytes for array in saved(loss).values())
            loss.backward()
            return kept, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    one_input = IDS.size * C * 4
    (few, _), (many, low), (_, high) = measure(2, True), measure(8, True), measure(8, False)
    assert many - few == 6 * one_input
    assert low < high / 2


# ---- Wrong use -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("block, expected", [
    (lambda x: x, "must be a Module, whose parameters it can find, got function"),
    (Scaled(nn.filled((3,), 1.0), lambda x: (x, x)), "must give one Tensor, Scaled gave a tuple"),
])
def test_a_block_that_cannot_be_recomputed_is_an_error(block, expected):
    with pytest.raises(TypeError, match=expected):
        nn.recompute(block, Tensor(np.ones((2, 3), np.float32)))
