"""Modules: names of parameters, state dictionaries, freezing, parts, and how first numbers are made."""

import tracemalloc

import numpy as np
import pytest

import minitune as mt
from minitune import nn
from minitune.backend import random


class Tied(nn.Module):
    """An embedding whose table is also the head's weight; with a list of layers between."""

    def __init__(self):
        self.embedding = nn.Embedding(5, 4)
        self.blocks = [nn.Linear(4, 4), nn.LayerNorm(4)]
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.filled((), 2.0)

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x) * self.scale


NAMES = ["scale", "embedding.weight", "blocks.0.weight", "blocks.0.bias", "blocks.1.weight", "blocks.1.bias"]


def test_parameters_come_in_order_and_a_tied_one_comes_once_under_its_first_name():
    model = Tied()
    assert [name for name, _ in model.named_parameters()] == NAMES
    assert len(list(model.parameters())) == len(NAMES) and list(model.state_dict()) == NAMES


def test_modules_come_top_down_with_the_places_of_lists():
    assert [name for name, _ in Tied().named_modules()] == ["", "embedding", "blocks.0", "blocks.1", "head"]
    assert [name for name, _ in Tied().children()] == ["embedding", "blocks.0", "blocks.1", "head"]


def test_a_tied_parameter_gets_the_gradients_of_both_uses():
    model = Tied()
    model(np.array([[1, 1]])).sum().backward()
    gradient = model.embedding.weight.grad
    assert gradient is model.head.weight.grad and gradient[0].any() and not np.allclose(gradient[0], gradient[1])


def test_a_block_names_its_parts_as_its_attributes():
    block = nn.TransformerBlock(8, 2, n_layer=1)
    assert [name for name, _ in block.named_parameters()] == [
        "attention_norm.weight", "attention_norm.bias",
        *(f"attention.{part}.{p}" for part in ("query", "key", "value", "output") for p in ("weight", "bias")),
        "mlp_norm.weight", "mlp_norm.bias", *(f"mlp.{part}.{p}" for part in ("up", "down") for p in ("weight", "bias"))]


def test_num_parameters_counts_numbers_and_knows_what_is_frozen():
    model = Tied()
    assert model.num_parameters() == model.num_parameters(trainable=True) == 1 + 20 + 20 + 8
    model.blocks[0].requires_grad_(False)
    assert model.num_parameters(trainable=True) == 1 + 20 + 8 and model.num_parameters() == 49
    assert model.requires_grad_(False) is model and model.num_parameters(trainable=True) == 0


def test_frozen_parameters_get_no_gradient_and_zero_grad_drops_the_others():
    model = Tied()
    model.embedding.requires_grad_(False)
    model(np.array([0])).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [NAMES[0], *NAMES[2:]]
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_train_and_eval_reach_every_part():
    block = nn.TransformerBlock(4, 1, n_layer=1, dropout=0.5)
    assert block.eval() is block and not any(module.training for _, module in block.named_modules())
    assert block.train() is block and all(module.training for _, module in block.named_modules())
    block.mlp.eval()
    assert block.training and not block.mlp.up.training


def test_set_part_replaces_attributes_and_places_of_lists():
    model, new = Tied(), nn.Linear(4, 4)
    model.set_part("blocks.0", new)
    model.set_part("head", nn.Linear(4, 7))
    assert model.blocks[0] is new and model(np.array([0])).shape == (1, 7)
    block = nn.TransformerBlock(4, 1, n_layer=1)
    block.set_part("attention.query", new)
    assert block.attention.query is new


@pytest.mark.parametrize("name", ["haed", "blocks.7", "blocks.0.wieght", "nothing.weight"])
def test_set_part_of_a_name_that_is_not_there_raises_and_adds_nothing(name):
    model = Tied()
    before = [n for n, _ in model.named_modules()]
    with pytest.raises(ValueError, match=f"set_part: there is no part {name!r}"):
        model.set_part(name, nn.Linear(2, 2))
    assert [n for n, _ in model.named_modules()] == before


# ---- State dictionaries ------------------------------------------------------------------------------------------

def test_a_state_dict_goes_into_another_model_and_gives_the_same_results():
    source, target, ids = Tied(), Tied(), np.array([[0, 3]])
    assert not np.array_equal(source(ids).numpy(), target(ids).numpy())
    target.load_state_dict(source.state_dict())
    np.testing.assert_array_equal(source(ids).numpy(), target(ids).numpy())
    assert target.head.weight is target.embedding.weight
    source.embedding.weight.data += 1                       # what was loaded is a copy
    assert not np.array_equal(source.embedding.weight.data, target.embedding.weight.data)


def test_loaded_arrays_take_the_parameters_dtype():
    layer = nn.Linear(2, 2)
    layer.load_state_dict({"weight": np.eye(2), "bias": np.ones(2)})
    assert layer.weight.dtype == np.float32 and layer.weight.numpy().tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("strict", [True, False])
def test_arrays_that_do_not_fit_are_all_listed_and_nothing_is_changed(strict):
    model = Tied()
    before = {name: a.copy() for name, a in model.state_dict().items()}
    state = {name: a + 1 for name, a in before.items()}
    state["blocks.0.weight"], state["blocks.1.bias"] = np.ones((4, 3)), np.ones(5)
    del state["scale"]
    state["extra"] = np.ones(1)
    with pytest.raises(ValueError, match="load_state_dict: the arrays do not fit this model") as error:
        model.load_state_dict(state, strict=strict)
    for line in "blocks.0.weight: expected (4, 4), got (4, 3)", "blocks.1.bias: expected (4,), got (5,)":
        assert line in str(error.value)
    assert ("scale: missing" in str(error.value)) == ("extra: unknown" in str(error.value)) == strict
    for name, a in model.state_dict().items():
        np.testing.assert_array_equal(a, before[name])


def test_without_strict_what_fits_is_loaded():
    layer = nn.Linear(2, 1)
    layer.load_state_dict({"bias": np.array([7.0]), "other": np.ones(3)}, strict=False)
    assert layer.bias.numpy().tolist() == [7.0]


# ---- First numbers -----------------------------------------------------------------------------------------------

def test_first_numbers_depend_on_the_seed_alone():
    def weights():
        mt.seed(3)
        return nn.TransformerBlock(8, 2, n_layer=2).state_dict()

    first, again = weights(), weights()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    mt.seed(4)
    assert not np.array_equal(nn.Linear(4, 4).weight.data, weights()["attention.query.weight"][:4, :4])


def test_first_numbers_have_the_asked_spread():
    normal, uniform = nn.normal((200, 100), 0.02), nn.uniform((200, 100), 0.5)
    error = 5 / np.sqrt(20_000)                                             # five standard errors
    assert abs(normal.numpy().std() / 0.02 - 1) < error
    assert np.abs(uniform.numpy()).max() <= 0.5 and abs(uniform.numpy().std() * np.sqrt(12) - 1) < error
    assert nn.filled((2,), 3.0).numpy().tolist() == [3.0, 3.0]
    assert {p.dtype for p in (normal, uniform, nn.filled((1,), 1.0))} == {np.dtype(np.float32)}


def test_parameters_are_trainable_and_only_linear_weights_decay():
    block, embedding = nn.TransformerBlock(4, 1, n_layer=1), nn.Embedding(3, 4)
    assert all(p.requires_grad for p in block.parameters())
    decaying = {name for name, p in block.named_parameters() if p.decays}
    assert decaying == {n for n, _ in block.named_parameters() if n.endswith("weight") and "norm" not in n}
    assert not embedding.weight.decays


def test_shapes_only_counts_a_huge_model_without_memory_or_random_numbers():
    tracemalloc.start()
    with nn.shapes_only():
        block = nn.TransformerBlock(12288, 96, n_layer=96)                  # one block of GPT-3: 7 GB in float32
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert block.num_parameters() == 12 * 12288**2 + 13 * 12288
    assert most < 1e6 and not random.counters["init"]


def test_shapes_only_ends_with_its_block_also_after_an_exception():
    with pytest.raises(KeyError), nn.shapes_only():
        raise KeyError
    assert nn.Linear(2, 2).weight.data.flags.writeable


def test_a_model_of_shapes_takes_a_state_dict():
    source = nn.Linear(3, 2)
    with nn.shapes_only():
        model = nn.Linear(3, 2)
    model.load_state_dict(source.state_dict())
    assert model.weight.data.flags.writeable and np.array_equal(model.weight.data, source.weight.data)


@pytest.mark.parametrize("parts", [lambda layer: (layer,), lambda layer: {"a": layer}, lambda layer: [[layer]],
                                   lambda layer: [layer.weight]])
def test_parts_where_they_would_not_be_found_are_refused(parts):
    class Lost(nn.Module):
        def __init__(self):
            self.parts = parts(nn.Linear(2, 2))

    with pytest.raises(TypeError, match=r"Lost\.parts: parts are found as attributes and in lists of Modules"):
        list(Lost().parameters())
