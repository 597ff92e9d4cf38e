"""BitFit and the top layers: which parameters train, counted as their papers count them."""

import numpy as np
import pytest
from small_models import awd_lstm, bert, gpt, labelled, llama, step

from minitune import models, nn, tune
from minitune.optim import AdamW


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("make", [gpt, bert, awd_lstm])
def test_every_bias_of_the_backbone_trains_and_the_head(make):
    model = models.Classifier(make(), ["no", "yes"])
    tune.freeze(model)
    tune.apply(model, tune.BitFitConfig())
    head = {name for name, _ in model.named_parameters() if name.startswith("head.")}
    biases = {name for name, _ in model.named_parameters() if name.startswith("backbone.") and name.endswith(".bias")}
    assert biases and trainable(model) == biases | head


def test_the_count_is_eleven_channels_a_block_and_the_last_norms():
    C, L = 16, 2
    assert tune.apply(gpt(), tune.BitFitConfig()).trainable == L * 11 * C + C       # q k v o, 4 C and C of the MLP, two norms
    assert tune.apply(bert(), tune.BitFitConfig()).trainable == L * 11 * C + 2 * C  # the embedding's norm, the pooler


@pytest.mark.parametrize("layers, channels, heads, count, share", [
    (24, 1024, 16, 272_384, "0.08%"), (12, 768, 12, 102_912, "0.09%")])
def test_the_share_of_berts_parameters_is_the_papers(layers, channels, heads, count, share):
    """Ben Zaken et al. 2021, section 3: 0.09 % of BERT-base's parameters, 0.08 % of BERT-large's."""
    with nn.shapes_only():
        model = models.BERT(models.BERTConfig(30_522, 512, layers, heads, channels))
        report = tune.apply(model, tune.BitFitConfig())
    assert report.trainable == count and f"{report.trainable / report.total:.2%}" == share


def test_the_papers_smaller_choice_is_two_patterns():
    model = gpt()
    report = tune.apply(model, tune.BitFitConfig(["attention.query.bias", "mlp.up.bias"]))
    assert report.trainable == 2 * (16 + 64)
    assert trainable(model) == {f"blocks.{i}.{layer}.bias" for i in range(2) for layer in ("attention.query", "mlp.up")}


def test_a_step_moves_biases_alone():
    model = models.Classifier(gpt(), ["no", "yes"])
    tune.apply(model, tune.BitFitConfig())
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    step(model, AdamW(model, lr=0.1, weight_decay=0.5), labelled(model))
    moved = {name for name, p in model.named_parameters() if not np.array_equal(p.data, before[name])}
    # a softmax does not see what is added to all its inputs: a key's bias has a gradient of roundings, if any
    assert {name for name in trainable(model) if ".key." not in name} <= moved <= trainable(model)


@pytest.mark.parametrize("make, biases, error", [
    (llama, "bias", "BitFitConfig: Llama has no biases"),
    (gpt, "query.weight", "BitFitConfig: 'query.weight' matches nothing"),
    (gpt, "attention.queri.bias", "matches nothing. Did you mean .*'attention.query.bias'")])
def test_what_means_no_bias_raises_and_changes_nothing(make, biases, error):
    model = make()
    with pytest.raises(ValueError, match=error):
        tune.apply(model, tune.BitFitConfig(biases))
    assert all(p.requires_grad for p in model.parameters())


# ---- The top layers ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("make", [gpt, bert, llama, awd_lstm])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_last_groups_of_the_backbone_train_and_the_head(make, k):
    model = models.Classifier(make(), ["no", "yes"])
    tune.freeze(model)
    tune.apply(model, tune.TopLayersConfig(k))
    groups = model.layer_groups()               # the embeddings, two layers, the head
    expected = {id(p) for _, parts in groups[-1 - k:] for part in parts for p in part.parameters()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == expected


def test_the_top_two_of_gpt2_medium_are_counted_as_in_loras_table():
    """Hu et al. 2021, table 3: FT-Top2 25.19M of 354.92M."""
    with nn.shapes_only():
        report = tune.apply(models.GPT(models.GPTConfig(50_257, 1024, 24, 16, 1024)), tune.TopLayersConfig(2))
    assert report.trainable == 2 * (12 * 1024**2 + 13 * 1024) + 2 * 1024
    assert round(report.trainable / 1e6, 2) == 25.19


@pytest.mark.parametrize("k, error", [(0, "k must be an int of at least 1, got 0"), (-1, "k must be"), (1.5, "k must be"),
                                      (4, "there is no layer group -4; the groups are 0 embeddings")])
def test_a_number_of_groups_that_is_not_there_raises_and_changes_nothing(k, error):
    model = gpt()
    with pytest.raises(ValueError, match=error):
        tune.apply(model, tune.TopLayersConfig(k))
    assert all(p.requires_grad for p in model.parameters())
