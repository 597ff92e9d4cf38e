"""Freezing: `requires_grad` decides, and the engine, the optimizer and the report obey."""

import sys
from contextlib import contextmanager

import numpy as np
import pytest

import minitune as mt
from minitune import backend, models, nn, tune
from minitune.data import Batch
from minitune.optim import AdamW

LABELLED = Batch.causal([[[3, 1, 4, 1, 5, 9]], [[2, 6, 5]]], labels=[1, 0])


def gpt(n_layer=3):
    return models.GPT(models.GPTConfig(vocab_size=20, block_size=8, n_layer=n_layer, n_head=2, n_embd=16))


def classifier(n_layer=3):
    return models.Classifier(gpt(n_layer), ["no", "yes"])


def trainable(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


def step(model, optimizer):
    (loss, count, _), = model.loss(LABELLED).values()
    (loss * (1 / count)).backward()
    optimizer.step()
    optimizer.zero_grad()


# ---- The primitive -------------------------------------------------------------------------------------------------

def test_freeze_and_unfreeze_return_the_names_they_changed():
    model = classifier()
    names = [name for name, _ in model.named_parameters()]
    assert tune.freeze(model) == names and not trainable(model)
    assert tune.unfreeze(model, "blocks.1.mlp") == trainable(model) == [
        f"backbone.blocks.1.mlp.{layer}.{part}" for layer in ("up", "down") for part in ("weight", "bias")]
    assert tune.unfreeze(model, ["blocks.*.attention.key.bias", "head"])[-1:] == ["head.weight"]
    assert len(trainable(model)) == 4 + 3 + 1
    assert tune.freeze(model, r".*\.mlp\..*") == [n for n in names if ".mlp." in n]
    assert trainable(model) == [*(f"backbone.blocks.{i}.attention.key.bias" for i in range(3)), "head.weight"]
    assert tune.unfreeze(model) == names == trainable(model)


def test_freezing_block_1_leaves_blocks_10_and_11():
    model = gpt(n_layer=12)
    tune.freeze(model, "blocks.1")
    assert [name for name in dict(model.named_parameters()) if name not in trainable(model)] == [
        name for name in dict(model.named_parameters()) if name.startswith("blocks.1.")]


@pytest.mark.parametrize("change", [tune.freeze, tune.unfreeze])
def test_a_pattern_that_matches_nothing_raises_and_changes_nothing(change):
    model = classifier()
    tune.freeze(model, "blocks.0")
    before = trainable(model)
    with pytest.raises(ValueError, match=f"^{change.__name__}: 'bloks' matches nothing. Did you mean .*'blocks"):
        change(model, ["blocks.1", "bloks"])
    assert trainable(model) == before


@pytest.mark.parametrize("n, groups", [(0, ["embeddings", "blocks.0", "blocks.1", "blocks.2", "head"]),
                                       (2, ["blocks.1", "blocks.2", "head"]), (4, ["head"]), (-1, ["head"]),
                                       (-2, ["blocks.2", "head"]),
                                       (-5, ["embeddings", "blocks.0", "blocks.1", "blocks.2", "head"])])
def test_freeze_to_trains_the_groups_from_n_on(n, groups):
    model = classifier()
    tune.freeze(model)
    assert tune.freeze_to(model, n) == groups
    wanted = {id(p) for name, modules in model.layer_groups() if name in groups for m in modules for p in m.parameters()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == wanted
    assert model.backbone.norm.weight.requires_grad == ("blocks.2" in groups)       # the last norm goes with its block


@pytest.mark.parametrize("n", [5, -6, 100])
def test_freeze_to_refuses_a_group_that_is_not_there_and_lists_those_that_are(n):
    model = classifier()
    with pytest.raises(ValueError, match=rf"no layer group {n}; the groups are 0 embeddings, 1 blocks.0, .* 4 head"):
        tune.freeze_to(model, n)
    assert len(trainable(model)) == len(list(model.parameters()))


def test_a_parameter_shared_by_two_groups_trains_if_one_of_them_does():
    class Tied(nn.Module):
        def __init__(self):
            self.low, self.high = nn.Linear(3, 3), nn.Linear(3, 3)
            self.high.weight = self.low.weight

        def layer_groups(self):
            return [("low", [self.low]), ("high", [self.high])]

    model = Tied()
    tune.freeze_to(model, 1)
    assert trainable(model) == ["low.weight", "high.bias"]


# ---- The methods ---------------------------------------------------------------------------------------------------

def test_freeze_config_leaves_the_head_alone_to_train():
    model = classifier()
    report = tune.apply(model, tune.FreezeConfig())
    assert trainable(model) == ["head.weight"] and report.trainable == 2 * 16


def test_freeze_config_with_patterns_trains_the_rest():
    model = classifier()
    tune.freeze(model)
    tune.apply(model, tune.FreezeConfig(["*_embedding", "blocks.0"]))
    frozen = set(dict(model.named_parameters())) - set(trainable(model))
    assert frozen == {name for name in dict(model.named_parameters()) if "_embedding" in name or "blocks.0." in name}


def test_freeze_config_refuses_a_model_that_is_all_backbone_and_takes_it_with_patterns():
    model = gpt()
    with pytest.raises(ValueError, match="all backbone, nothing would train.*Classifier"):
        tune.apply(model, tune.FreezeConfig())
    assert len(trainable(model)) == len(list(model.parameters()))
    tune.apply(model, tune.FreezeConfig("mlp"))
    assert not any(".mlp." in name for name in trainable(model)) and any("attention" in name for name in trainable(model))


def test_freeze_config_whose_pattern_matches_nothing_changes_nothing():
    model = classifier()
    tune.freeze(model, ["token_embedding", "blocks.1"])
    before = trainable(model)
    with pytest.raises(ValueError, match="'bloks' matches nothing"):
        tune.apply(model, tune.FreezeConfig("bloks"))
    assert trainable(model) == before


def test_full_config_trains_everything():
    model = classifier()
    tune.freeze(model)
    report = tune.apply(model, tune.FullConfig())
    assert report.trainable == report.total == model.num_parameters() and len(trainable(model)) == len(list(model.parameters()))


def test_what_is_no_method_is_refused():
    with pytest.raises(TypeError, match=r"expected a method such as LoRAConfig\(r=8\).*got 'lora'"):
        tune.apply(gpt(), "lora")


# ---- What frozen means ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n", [-1, 2, 3])
def test_frozen_parameters_get_no_gradient_and_do_not_move_under_decay(n):
    model = classifier()
    tune.freeze_to(model, n)
    before = {name: p.data.tobytes() for name, p in model.named_parameters()}
    (loss, _, _), = model.loss(LABELLED).values()
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == trainable(model)
    optimizer = AdamW(model, lr=1e-2, weight_decay=0.5)
    optimizer.step()
    moved = [name for name, p in model.named_parameters() if p.data.tobytes() != before[name]]
    assert moved == trainable(model)


@contextmanager
def counted_products():
    """A list that grows by the shapes of each matrix product that the operations ask for."""
    seen = []

    def counting(a, b):
        seen.append((a.shape, b.shape))
        return backend.matmul(a, b)

    users = [module for name, module in sys.modules.items()
             if name.startswith("minitune.ops.") and getattr(module, "product", None) is backend.matmul]
    assert len(users) >= 4
    with pytest.MonkeyPatch.context() as patch, mt.kernels(False):      # a twin may have its own entry
        for module in users:
            patch.setattr(module, "product", counting)
        yield seen


def products_of_backward(model):
    (loss, _, _), = model.loss(LABELLED).values()
    with counted_products() as seen:
        loss.backward()
    return len(seen)


def test_backward_does_no_product_below_the_lowest_trainable_layer():
    """In full, a block takes 17 products: 2 for each of 6 linear layers, 5 for attention, which makes its weights again; the
    head takes 2. A block that is frozen above a trainable layer takes 11: its weights want no gradient.
    """
    with mt.kernels(False):
        counts = {}
        for n in range(5):
            model = classifier()
            tune.freeze_to(model, n)
            counts[n] = products_of_backward(model)
        assert counts == {4: 1, 3: 2 + 17, 2: 2 + 2 * 17, 1: 2 + 3 * 17, 0: 2 + 3 * 17}
        for method, count in [
            (tune.FreezeConfig(["*_embedding", "blocks.*.attention_norm", "blocks.0", "blocks.1"]), 2 + 17 - 3),
            (tune.FreezeConfig(["*_embedding", "norm", "blocks.0", "blocks.2", r"1\.(att.*|mlp_norm|mlp.up)"]), 2 + 11 + 1),
            (tune.LoRAConfig(r=2, target_modules="blocks.2.mlp.up"), 2 + 1 + 3),    # head, down's input; B, low and A
        ]:
            model = classifier()
            tune.apply(model, method)
            assert products_of_backward(model) == count, method


def test_nothing_is_recorded_below_the_lowest_trainable_layer():
    model = classifier()
    tune.freeze_to(model, -1)
    features = model.features(LABELLED)
    assert features.node is None and not features.requires_grad
    assert model(LABELLED).requires_grad


def test_late_unfreezing_keeps_the_moments_and_step_counts_of_the_others():
    model = classifier()
    optimizer = AdamW(model, lr=1e-3, weight_decay=0.1)
    tune.freeze_to(model, -1)
    for _ in range(3):
        step(model, optimizer)
    head = optimizer.slots[id(model.head.weight)]
    moments = [m.copy() for m in head.moments]
    assert len(optimizer.slots) == 1 and head.step == 3
    tune.freeze_to(model, -2)
    assert optimizer.slots[id(model.head.weight)] is head
    np.testing.assert_array_equal(head.moments[0], moments[0])
    late = model.backbone.blocks[2].mlp.up.weight
    before = late.data.copy()
    step(model, optimizer)
    assert (head.step, optimizer.slots[id(late)].step) == (4, 1)
    # A first step of Adam moves by the rate at most (and 1e-4 of decay); a count shared with the head would give 3 times less
    assert 0.9e-3 < np.abs(late.data - before).max() < 1.1e-3
    tune.freeze_to(model, -1)
    slots = {key: (slot.step, slot.moments[0].copy()) for key, slot in optimizer.slots.items()}
    before = late.data.copy()
    step(model, optimizer)
    np.testing.assert_array_equal(late.data, before)                        # frozen again: it rests, its moments are kept
    assert optimizer.slots[id(late)].step == slots[id(late)][0]
    np.testing.assert_array_equal(optimizer.slots[id(late)].moments[0], slots[id(late)][1])


# ---- The report ----------------------------------------------------------------------------------------------------

def test_the_report_counts_by_group_and_prints_a_table():
    model = models.Classifier(gpt(n_layer=1), ["no", "yes"])
    report = tune.apply(model, tune.LoRAConfig(r=2, target_modules="query"))
    block = 12 * 16**2 + 13 * 16 + 2 * 16       # and the last norm
    assert report.rows == [("embeddings", 28 * 16, 0), ("blocks.0", block + 64, 64), ("head", 32, 32)]
    assert (report.total, report.trainable) == (28 * 16 + block + 64 + 32, 96)
    assert report.total == model.num_parameters()
    assert str(report).splitlines() == [
        "part            parameters       trainable    share",
        "embeddings             448               0    0.00%",
        "blocks.0             3,376              64    1.90%",
        "head                    32              32  100.00%",
        "all                  3,856              96    2.49%"]


def test_the_report_counts_a_tied_parameter_once_in_the_first_part_that_holds_it():
    class Tied(nn.Module):
        def __init__(self):
            self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

    assert tune.report(Tied()).rows == [("embedding", 15, 15), ("head", 0, 0)]
    report = tune.report(gpt())
    assert report.total == gpt().num_parameters() == sum(array.size for array in gpt().state_dict().values())
