"""Any head on any backbone: shapes, losses against plain NumPy, what trains, and clear words for what does not fit."""

import numpy as np
import pytest

import minitune as mt
from minitune import models, train, tune
from minitune.data import Batch, ClassificationSet, ImageBatch, MultipleChoiceSet, TokenClassificationSet
from minitune.ops import IGNORE
from minitune.optim import AdamW

ROWS = [[3, 1, 4, 1, 5], [9, 2, 6], [5], [3, 5]]
BACKBONES = {
    "GPT": lambda: models.GPT(models.GPTConfig(20, 8, 1, 2, 6)),
    "BERT": lambda: models.BERT(models.BERTConfig(20, 8, 1, 2, 6)),
    "BERT without pooler": lambda: models.BERT(models.BERTConfig(20, 8, 1, 2, 6, pooler=False)),
    "Llama": lambda: models.Llama(models.LlamaConfig(20, 8, 1, 2, 8, n_kv_head=1)),
    "AWD-LSTM": lambda: models.AWDLSTM(models.AWDLSTMConfig(20, n_embd=6, n_hidden=7, n_layer=2)),
    "CNN": lambda: models.CNN(models.CNNConfig(8, 1, (3, 4))),
    "ViT": lambda: models.ViT(models.ViTConfig(image_size=8, patch_size=4, n_channels=1, n_layer=1, n_head=2, n_embd=6)),
}
TEXT = [name for name in BACKBONES if name not in ("CNN", "ViT")]
HEADS = {
    "Classifier": (lambda backbone: models.Classifier(backbone, "abc"), [2, 0, 1, IGNORE]),
    "Classifier, mean": (lambda backbone: models.Classifier(backbone, "abc", "mean"), [2, 0, 1, 1]),
    "MultiLabelClassifier": (lambda backbone: models.MultiLabelClassifier(backbone, "abc"),
                             [[0, 1, 1], [0, 0, 0], [1, IGNORE, 0], [1, 1, 1]]),
    "MultipleChoice": (lambda backbone: models.MultipleChoice(backbone, 2), [1, 0]),
    "TokenClassifier": (lambda backbone: models.TokenClassifier(backbone, "abc"),
                        [[1, 2, 0, IGNORE, 1], [0, 0, 0], [2], [IGNORE, 1]]),
    "MaskedLanguageModel": (lambda backbone: models.MaskedLanguageModel(backbone),
                            [[IGNORE, 7, IGNORE, IGNORE, 1], [IGNORE] * 3, [2], [IGNORE] * 2]),
}


def batch_for(model, targets):
    if not hasattr(model.backbone.config, "vocab_size"):
        images = np.random.default_rng(0).standard_normal((4, 1, 8, 8)).astype(np.float32)
        return ImageBatch(images, np.array(targets))
    by_token = isinstance(model, (models.TokenClassifier, models.MaskedLanguageModel))
    batch = Batch.bidirectional(ROWS, targets=targets) if by_token else Batch.bidirectional(ROWS)
    if model.causal:
        causal = Batch.causal([[row] for row in ROWS])
        batch.first, batch.last = causal.first, causal.last
    if not by_token:
        batch.targets = np.array(targets)
    return batch


def built(backbone, head):
    mt.seed(0)
    make, targets = HEADS[head]
    model = make(BACKBONES[backbone]())
    return model, batch_for(model, targets)


PAIRS = [(backbone, head) for backbone in BACKBONES for head in HEADS
         if backbone in TEXT or head not in ("TokenClassifier", "MaskedLanguageModel")]


@pytest.mark.parametrize("backbone, head", PAIRS)
def test_every_head_trains_on_every_backbone_and_reaches_each_of_its_parameters(backbone, head):
    model, batch = built(backbone, head)
    model.eval()                                # without dropout, which would hide a small step
    optimizer, losses = AdamW(model, lr=1e-2), []
    for _ in range(4):
        terms = model.loss(batch)
        assert {name: count for name, (_, count, _) in terms.items()} == model.counts(batch)
        loss = sum(term * (weight / count) for term, count, weight in terms.values() if count) + 0.0
        loss.backward()
        assert all(p.grad is not None for p in model.parameters()), "trainable but unreached"
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert set(model.measure(batch)) <= {"loss", "error"} and model.measure(batch)["loss"][1] == batch.supervised


@pytest.mark.parametrize("backbone, head", PAIRS)
def test_layer_groups_hold_every_parameter_and_end_with_the_head(backbone, head):
    model, _ = built(backbone, head)
    groups = model.layer_groups()
    assert groups[-1][0] == "head"
    held = {id(p) for _, parts in groups for part in parts for p in part.parameters()}
    assert held == {id(p) for p in model.parameters()}
    tune.freeze_to(model, -1)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and not any(name.startswith("backbone.blocks") for name in trained)
    assert tune.report(model).total == model.num_parameters()


@pytest.mark.parametrize("backbone, head", PAIRS)
def test_shapes_alone_give_the_counts(backbone, head):
    model, _ = built(backbone, head)
    with mt.nn.shapes_only():
        shape, _ = built(backbone, head)
    assert shape.num_parameters() == model.num_parameters() and not any(p.data.strides[-1] for p in shape.parameters())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_head_on_a_model_with_a_head_takes_its_backbone_and_leaves_both_as_they_were(backbone):
    base = BACKBONES[backbone]()
    before = dict(base.named_parameters())
    one = models.Classifier(base, "ab", "mean")
    two = models.MultiLabelClassifier(one, "abc", "max")
    assert dict(base.named_parameters()) == before
    shared = [name for name, p in two.named_parameters() if name.startswith("backbone.")]
    assert all(dict(one.named_parameters())[name] is dict(two.named_parameters())[name] for name in shared)


def test_multi_label_loss_probabilities_and_errors_are_those_of_each_label_alone():
    model, batch = built("GPT", "MultiLabelClassifier")
    logits = model(batch).numpy().astype(float)
    p, known = 1 / (1 + np.exp(-logits)), batch.targets != IGNORE
    expected = -np.where(batch.targets == 1, np.log(p), np.log1p(-p))[known].sum()
    assert model.counts(batch) == {"classification": 11}
    np.testing.assert_allclose(model.loss(batch)["classification"][0].item(), expected, rtol=1e-6)
    np.testing.assert_allclose(model.probabilities(logits), p, rtol=1e-12)
    assert model.measure(batch)["error"] == ((((p > 0.5) != batch.targets) & known).sum(), 11)
    dataset = ClassificationSet(ROWS, batch.targets, 8)
    model.check(dataset)
    assert train.evaluate(model, dataset)["error"] == model.measure(batch)["error"][0] / 11
    np.testing.assert_array_equal(train.predict(model, dataset), p > 0.5)
    with pytest.raises(ValueError, match=r"labels must be \(N, K\) of 0 and 1 with K = 3, got int64 \(4,\)"):
        model.check(ClassificationSet(ROWS, [0, 1, 0, 1], 8))


def test_multiple_choice_compares_the_rows_of_one_question():
    model, batch = built("BERT", "MultipleChoice")
    scores = model.logits(model.features(batch), batch).numpy()
    np.testing.assert_array_equal(model(batch).numpy(), scores.reshape(2, 2))
    questions = MultipleChoiceSet([[ROWS[0], ROWS[1]], [ROWS[2], ROWS[3]]], [1, 0], 8, causal=False)
    np.testing.assert_allclose(train.predict_proba(model, questions), model.probabilities(scores.reshape(2, 2)), rtol=1e-5)
    with pytest.raises(ValueError, match="MultipleChoice: expected 2 rows for each question, got 3 rows"):
        model(np.ones((3, 2), int))
    with pytest.raises(ValueError, match="choices must be at least 2, got 1"):
        models.MultipleChoice(BACKBONES["GPT"](), 1)


def test_token_labels_are_predicted_where_they_stand():
    model, batch = built("BERT", "TokenClassifier")
    assert model(batch).shape == (4, 5, 3) and model.counts(batch) == {"classification": 9}
    dataset = TokenClassificationSet(ROWS, HEADS["TokenClassifier"][1], 8, causal=False)
    assert train.evaluate(model, dataset)["loss"] == pytest.approx(model.measure(batch)["loss"][0] / 9, rel=1e-6)
    model.check(dataset)
    with pytest.raises(ValueError, match=r"TokenClassifier: labels must be 0 \.\. 2"):
        model.check(TokenClassificationSet([[1]], [[3]], 8))
    with pytest.raises(TypeError, match="predict_proba: expected a model that classifies whole rows, got TokenClassifier"):
        train.predict_proba(model, dataset)


def test_the_auxiliary_loss_is_the_language_models_own():
    """Radford et al. 2018, equation 5: L = L_labels + lambda L_language."""
    for backbone in (BACKBONES[name]() for name in ("GPT", "Llama", "AWD-LSTM")):
        plain, model = models.Classifier(backbone, "ab", "last"), models.Classifier(backbone, "ab", "last", auxiliary=0.5)
        model.head = plain.head
        batch = Batch.causal([[row] for row in ROWS], [1, 0, 0, 1])
        for each in (plain, model, backbone):
            each.eval()
        loss, count, weight = model.loss(batch)["language_model"]
        assert (count, weight) == (7, 0.5) and model.counts(batch) == {"classification": 4, "language_model": 7}
        own = backbone.loss(Batch.causal([[row] for row in ROWS]))["language_model"]
        assert own[1] == 7 and loss.item() == pytest.approx(own[0].item(), rel=1e-6)
        assert model.loss(batch)["classification"][0].item() == plain.loss(batch)["classification"][0].item()
        assert model.measure(batch) == plain.measure(batch)
        model.loss(batch)["language_model"][0].backward()


@pytest.mark.parametrize("auxiliary", [-1, np.inf, np.nan])
def test_an_auxiliary_weight_must_be_a_number_from_0_on_a_model_of_language(auxiliary):
    with pytest.raises(ValueError, match="Classifier: auxiliary must be 0, or more on a backbone that predicts next tokens"):
        models.Classifier(BACKBONES["GPT"](), "ab", auxiliary=auxiliary)
    with pytest.raises(ValueError, match="got 0.5 on BERT"):
        models.Classifier(BACKBONES["BERT"](), "ab", auxiliary=0.5)


def test_what_does_not_fit_is_told():
    with pytest.raises(TypeError, match="Classifier: the backbone must be a model with features, such as a GPT, got Linear"):
        models.Classifier(mt.nn.Linear(2, 2), "ab", "last")
    with pytest.raises(ValueError, match="pooling must be one of first, last, mean, max, concat, got 'cls'"):
        models.Classifier(BACKBONES["BERT without pooler"](), "ab", "cls")
    with pytest.raises(ValueError, match="MaskedLanguageModel: the backbone must read tokens, got CNN"):
        models.MaskedLanguageModel(BACKBONES["CNN"]())
    with pytest.raises(ValueError, match="next_sentence reads the backbone's pooler, and this one has none"):
        models.MaskedLanguageModel(BACKBONES["BERT without pooler"](), next_sentence=True)


@pytest.mark.parametrize("head", ["Classifier", "MaskedLanguageModel"])
@pytest.mark.parametrize("backbone", TEXT)
def test_padding_changes_nothing(backbone, head):
    model, batch = built(backbone, head)
    model.eval()
    whole = model(batch).numpy()
    for b, row in enumerate(ROWS):
        alone = model(np.array([row])).numpy()
        np.testing.assert_allclose(alone[0], whole[b] if whole.ndim == 2 else whole[b, : len(row)], rtol=1e-4, atol=1e-5)
