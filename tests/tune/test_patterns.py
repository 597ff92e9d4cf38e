"""Patterns: every way to name a layer, and loud errors for those that name none."""

import pytest

from minitune import models, nn, tune
from minitune.tune.patterns import match

NAMES = [f"blocks.{i}.{layer}" for i in (0, 1, 10) for layer in ("attention.query", "attention.key", "mlp.up")]


@pytest.mark.parametrize("pattern, meant", [
    ("blocks.1.mlp.up", ["blocks.1.mlp.up"]),                                                       # a name
    ("query", [f"blocks.{i}.attention.query" for i in (0, 1, 10)]),                                 # the end of one
    ("mlp.up", [f"blocks.{i}.mlp.up" for i in (0, 1, 10)]),
    ("blocks.*.mlp.up", [f"blocks.{i}.mlp.up" for i in (0, 1, 10)]),                                # one step
    ("10.*.key", ["blocks.10.attention.key"]),
    ("attention.*", [f"blocks.{i}.attention.{part}" for i in (0, 1, 10) for part in ("query", "key")]),
    (r"blocks\.(0|10)\..*key", ["blocks.0.attention.key", "blocks.10.attention.key"]),              # a regular expression
    (r".*\.(query|up)", [n for n in NAMES if not n.endswith("key")]),
    (["key", "blocks.0.mlp.up"], ["blocks.0.attention.key", "blocks.0.mlp.up", "blocks.1.attention.key",
                                  "blocks.10.attention.key"]),                                      # a list, in order of names
])
def test_what_a_pattern_means(pattern, meant):
    assert match(NAMES, pattern, "test") == meant


@pytest.mark.parametrize("pattern", ["uery", "block", "attention", "blocks.2.mlp.up", "blocks", ""])
def test_a_part_of_a_step_matches_nothing(pattern):
    with pytest.raises(ValueError, match="matches nothing"):
        match(NAMES, pattern, "test")


def test_the_error_names_the_caller_the_pattern_and_the_nearest_names():
    with pytest.raises(ValueError, match=r"^freeze: 'atention.qery' matches nothing\. Did you mean .*'attention\.query'"):
        match(NAMES, ["key", "atention.qery"], "freeze")
    with pytest.raises(ValueError, match=r"^freeze: 'zzz' matches nothing among \['blocks\.0\.attention\.query'"):
        match(NAMES, "zzz", "freeze")


def gpt():
    return models.GPT(models.GPTConfig(vocab_size=20, block_size=8, n_layer=2, n_head=2, n_embd=16))


def test_all_linear_means_the_backbones_linear_layers_and_not_the_head():
    model = models.Classifier(gpt(), ["no", "yes"])
    tune.apply(model, tune.LoRAConfig(r=2))
    adapted = {name for name, part in model.named_modules() if isinstance(part, tune.LoRALinear)}
    layers = "attention.query", "attention.key", "attention.value", "attention.output", "mlp.up", "mlp.down"
    assert adapted == {f"backbone.blocks.{i}.{layer}" for i in range(2) for layer in layers}
    assert type(model.head) is nn.Linear


@pytest.mark.parametrize("patterns", ["querry", ["query", "vlaue"], "head", "attention_norm"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_target_that_matches_nothing_changes_nothing(patterns, frozen):
    """One good pattern beside a bad one does not help: PEFT adapts the good one's layers and says nothing."""
    model = models.Classifier(gpt(), ["no", "yes"])
    if frozen:
        tune.freeze(model, "token_embedding")
    before = [(name, p.requires_grad) for name, p in model.named_parameters()]
    with pytest.raises(ValueError, match="LoRAConfig: .* (matches nothing|means no linear layer)"):
        tune.apply(model, tune.LoRAConfig(r=2, target_modules=patterns))
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == before
    assert not any(isinstance(part, tune.LoRALinear) for _, part in model.named_modules())


def test_an_empty_list_of_targets_raises():
    with pytest.raises(ValueError, match="LoRAConfig"):
        tune.apply(gpt(), tune.LoRAConfig(r=2, target_modules=[]))


def test_a_star_stands_for_one_step_also_where_block_numbers_share_digits():
    """Read as a regular expression, "blocks.1.*.query" would mean block 10 as well."""
    assert match(NAMES, "blocks.1.*.query", "test") == ["blocks.1.attention.query"]
    assert match(["blocks.1.mlp", "blocks.10.mlp", "blocks.11.mlp"], "blocks.1.*", "test") == ["blocks.1.mlp"]


def test_a_path_to_a_block_never_means_another_block():
    model = models.GPT(models.GPTConfig(vocab_size=20, block_size=8, n_layer=12, n_head=2, n_embd=16))
    tune.apply(model, tune.LoRAConfig(r=2, target_modules="blocks.1.*"))
    adapted = {name for name, part in model.named_modules() if isinstance(part, tune.LoRALinear)}
    assert len(adapted) == 6 and all(name.startswith("blocks.1.") for name in adapted)


@pytest.mark.parametrize("pattern, count", [("blocks.1", 6), ("blocks.*.mlp", 4), ("attention", 8), (".*(query|value)", 4)])
def test_a_layer_that_holds_others_means_the_linear_layers_in_it(pattern, count):
    model = gpt()
    tune.apply(model, tune.LoRAConfig(r=2, target_modules=pattern))
    assert sum(isinstance(part, tune.LoRALinear) for _, part in model.named_modules()) == count


def test_what_is_neither_a_name_nor_a_regular_expression_is_told():
    with pytest.raises(ValueError, match=r"test: '\(query' is neither a name nor a regular expression"):
        match(NAMES, "(query", "test")


def test_a_backbone_without_linear_layers_is_told():
    class Table(nn.Module):
        def __init__(self):
            self.embedding = nn.Embedding(3, 2)

    with pytest.raises(ValueError, match="LoRAConfig: the backbone has no linear layers"):
        tune.apply(Table(), tune.LoRAConfig(r=1))
