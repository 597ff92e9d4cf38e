"""Classifier: poolings against plain NumPy, row by row and over the chunks of a long text, and errors for labels and
poolings that make no classifier."""

import numpy as np
import pytest

import minitune as mt
from minitune import devices, models
from minitune.data import Batch, ClassificationSet, LanguageModelSet, LongTextSet
from minitune.models.head import POOLINGS
from minitune.tensor import Tensor
from minitune.train import Trainer, evaluate, predict, predict_proba

ROWS, LABELS = [[3, 1, 4, 1, 5], [9, 2, 6], [5]], [2, 0, 1]

EXPLICIT = {                                    # tokens (T of this row, C) -> the pooled row
    "first": lambda tokens: tokens[0],
    "last": lambda tokens: tokens[-1],
    "mean": lambda tokens: tokens.mean(0),
    "max": lambda tokens: tokens.max(0),
    "concat": lambda tokens: np.concatenate([tokens[-1], tokens.mean(0), tokens.max(0)]),
}


def classifier(pooling="last", labels=("a", "b", "c")):
    return models.Classifier(models.GPT(models.GPTConfig(20, 8, 1, 2, 6)), labels, pooling)


def test_every_pooling_is_compared():
    assert EXPLICIT.keys() == POOLINGS.keys()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_pooling_is_what_numpy_makes_of_each_row_alone(pooling, side):
    batch = Batch.causal([[row] for row in ROWS], LABELS, side=side)
    x = np.random.default_rng(0).standard_normal((*batch.ids.shape, 4)) - 5         # all negative: a padding 0 would win
    pooled = POOLINGS[pooling](Tensor(x), batch.valid).numpy()
    expected = np.stack([EXPLICIT[pooling](tokens[valid]) for tokens, valid in zip(x, batch.valid)])
    assert pooled.dtype == np.float64 and pooled.shape == (3, 12 if pooling == "concat" else 4)
    np.testing.assert_allclose(pooled, expected, rtol=1e-14)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_of_a_pooling_are_right_and_none_reaches_padding(pooling, side):
    valid = Batch.causal([[row] for row in ROWS], LABELS, side=side).valid
    x = np.random.default_rng(0).standard_normal((*valid.shape, 2))
    mt.gradcheck(lambda x: POOLINGS[pooling](x, valid), x)
    leaf = Tensor(x, requires_grad=True)
    POOLINGS[pooling](leaf, valid).sum().backward()
    assert not leaf.grad[~valid].any() and leaf.grad[valid].any()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_logits_loss_and_measures(pooling):
    model, batch = classifier(pooling), Batch.causal([[row] for row in ROWS], LABELS)
    x = model.features(batch).numpy()
    pooled = np.stack([EXPLICIT[pooling](tokens[valid]) for tokens, valid in zip(x, batch.valid)])
    logits = pooled @ model.head.weight.data.T
    np.testing.assert_allclose(model(batch).numpy(), logits, rtol=1e-5, atol=1e-6)
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    (loss, count, weight), = model.loss(batch).values()
    np.testing.assert_allclose(loss.item(), -logp[np.arange(3), LABELS].sum(), rtol=1e-5)
    assert (count, weight, model.counts(batch)) == (3, 1.0, {"classification": 3})
    measured = model.measure(batch)
    assert measured["loss"] == (loss.item(), 3) and measured["error"] == ((logits.argmax(1) != LABELS).sum(), 3)


def test_a_row_without_a_label_counts_nothing():
    model = classifier()
    batch, labelled = (Batch.causal([[row] for row in rows], labels) for rows, labels in
                       [(ROWS, [2, -100, 1]), ([ROWS[0], ROWS[2]], [2, 1])])
    assert model.counts(batch) == {"classification": 2}
    np.testing.assert_allclose(model.loss(batch)["classification"][0].item(), model.loss(labelled)["classification"][0].item(),
                               rtol=1e-6)
    assert model.measure(batch)["error"] == model.measure(labelled)["error"]


def test_a_new_head_fits_the_pooling_and_the_labels():
    assert classifier().head.weight.shape == (3, 6) and classifier("concat").head.weight.shape == (3, 18)
    model = classifier(labels=range(4))
    assert model.labels == ("0", "1", "2", "3") and model.head.weight.shape == (4, 6)
    assert model.head.bias is None              # Hugging Face's head has none: a bias of ours would be lost there
    assert [name for name, _ in model.layer_groups()] == ["embeddings", "blocks.0", "head"]
    assert repr(model).startswith("Classifier(GPT(GPTConfig(") and "pooling='last'" in repr(model)


@pytest.mark.parametrize("pooling", ["mean", "max", "concat"])
def test_a_row_that_is_all_padding_is_pooled_to_numbers(pooling):
    valid = np.array([[True, False], [False, False]])
    pooled = POOLINGS[pooling](Tensor(np.ones((2, 2, 4), np.float32)), valid).numpy()
    assert np.isfinite(pooled).all() and np.abs(pooled).max() == 1
    assert pooling != "mean" or not pooled[1].any()


@pytest.mark.parametrize("labels", [3, "no yes", None])
def test_labels_that_are_no_list_are_told(labels):
    with pytest.raises(TypeError, match=r"Classifier: labels must be a list of names, such as \['no', 'yes'\], or range\(3\)"):
        classifier(labels=labels)


@pytest.mark.parametrize("labels", [[], ["one"], ["yes", "no", "yes"]])
def test_labels_that_make_no_choice_are_told(labels):
    with pytest.raises(ValueError, match="Classifier: expected at least two different labels, got"):
        classifier(labels=labels)


@pytest.mark.parametrize("pooling", ["firstly", "cls"])
def test_an_unknown_pooling_is_told_with_those_that_are_known(pooling):
    with pytest.raises(ValueError, match=f"Classifier: pooling must be one of first, last, mean, max, concat, got {pooling!r}"):
        classifier(pooling)


def test_labels_that_become_one_as_text_are_told():
    with pytest.raises(ValueError, match="two different labels"):
        classifier(labels=[1, "1"])


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_outside_the_classes_is_told(label):
    with pytest.raises(ValueError, match=r"cross_entropy: targets|2"):
        classifier().loss(Batch.causal([[[1, 2]]], [label]))


def test_a_set_with_labels_or_tokens_that_the_model_has_not_is_told_before_training():
    model = models.Classifier(models.GPT(models.GPTConfig(20, 8, 1, 2, 16)), ["no", "yes"])
    model.check(ClassificationSet([[1, 2], [19]], [0, 1], 8))
    with pytest.raises(ValueError, match=r"labels must be 0 \.\. 1 for no, yes, got 2 at row 1 \(1 such rows\)"):
        model.check(ClassificationSet([[1, 2], [3]], [0, 2], 8))
    with pytest.raises(ValueError, match=r"token ids must be 0 \.\. 19, the set holds 20\. Was it made with another tokenizer"):
        model.check(ClassificationSet([[1, 20], [3]], [0, 1], 8))
    with pytest.raises(ValueError, match="the set holds 20"):
        model.backbone.check(LanguageModelSet([[1, 2, 20, 4, 5, 6, 7, 8]], 4))


# ---- Long texts ----------------------------------------------------------------------------------------------------

def long_texts(causal=True, count=6, block_size=4):
    """Texts of 1 to 15 tokens in chunks of 4, labels 0 and 1."""
    draw = np.random.default_rng(1)
    documents = [draw.integers(1, 20, length).tolist() for length in [15, 1, 4, 9, 12, 7, *draw.integers(1, 16, count)][:count]]
    return LongTextSet(documents, np.arange(count) % 2, block_size, causal)


def long_text_classifier(kind="gpt", pooling=None, dtype=None):
    mt.seed(0)
    backbone = {"gpt": lambda: models.GPT(models.GPTConfig(20, 4, 1, 2, 6)),
                "bert": lambda: models.BERT(models.BERTConfig(20, 4, 1, 2, 6)),
                "awd_lstm": lambda: models.AWDLSTM(models.AWDLSTMConfig(20, 4, 6, 8, 2))}[kind]()
    return models.Classifier(backbone, ["no", "yes"], pooling).to(dtype=dtype).eval()


@pytest.mark.parametrize("kind, pooling", [*(("gpt", pooling) for pooling in POOLINGS), ("bert", "cls"), ("bert", "mean"),
                                           ("awd_lstm", "concat")])
def test_the_logits_of_a_text_are_those_of_all_its_chunks_features_pooled(kind, pooling):
    """By hand: each chunk is read alone, its features stand end to end, and NumPy pools them. float64, 1e-12 of rounding."""
    model = long_text_classifier(kind, pooling, "float64")
    dataset = long_texts(model.causal)
    batch = dataset.batch(np.arange(6))
    logits = model(batch).numpy()
    for i, document in enumerate(dataset.documents):
        chunks = [model.features(model.batch_of(document[start : start + 4][None])).numpy()[0]
                  for start in range(0, len(document), 4)]
        tokens = np.concatenate(chunks)                                                 # (tokens of this text, C)
        if pooling == "cls":
            pooled = model.backbone.pool(Tensor(tokens[None])).numpy()[0]
        else:
            pooled = EXPLICIT[pooling](tokens)
        bias = 0 if model.head.bias is None else model.head.bias.data
        np.testing.assert_allclose(logits[i], model.head.weight.data @ pooled + bias, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind, pooling", [*(("gpt", pooling) for pooling in POOLINGS), ("bert", "cls"),
                                           ("awd_lstm", "concat")])
def test_which_texts_stand_in_a_batch_changes_nothing(kind, pooling):
    """Alone a short text has no missing chunk, beside the longest it has three. float64, 1e-12 of rounding."""
    model = long_text_classifier(kind, pooling, "float64")
    dataset = long_texts(model.causal)
    together, alone = model(dataset.batch(np.arange(6))), [model(dataset.batch(np.array([i]))) for i in range(6)]
    np.testing.assert_allclose(together.numpy(), np.concatenate([one.numpy() for one in alone]), rtol=1e-12, atol=1e-12)
    loss = model.loss(dataset.batch(np.arange(6)))["classification"]
    parts = [model.loss(dataset.batch(np.array([i])))["classification"] for i in range(6)]
    np.testing.assert_allclose(loss[0].item(), sum(part.item() for part, _, _ in parts), rtol=1e-12)
    assert (loss[1], model.counts(dataset.batch(np.arange(6)))) == (6, {"classification": 6})


def test_a_set_of_short_texts_gives_the_bits_that_a_classification_set_gives():
    model = long_text_classifier(pooling="concat")
    long, plain = (kind(ROWS[1:], [0, 1], 4).batch(np.arange(2)) for kind in (LongTextSet, ClassificationSet))
    assert model(long).numpy().tobytes() == model(plain).numpy().tobytes()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_reach_every_chunk_that_a_pooling_reads(pooling):
    model, dataset = long_text_classifier(pooling=pooling, dtype="float64"), long_texts()
    batch = dataset.batch(np.array([0, 3]))                                             # 4 chunks, and 3 of 4
    x = np.random.default_rng(0).standard_normal((8, 4, 6))
    mt.gradcheck(lambda x: model.logits(x, batch), x)
    leaf = Tensor(x, requires_grad=True)
    (model.logits(leaf, batch) * Tensor(np.array([[1.0, 0.5], [-1.0, 2.0]]))).sum().backward()
    assert not leaf.grad[~batch.valid].any()
    reached = leaf.grad.any((1, 2)).tolist()
    one = {"first": [0, 4], "last": [3, 6]}
    if pooling in one:
        assert reached == [row in one[pooling] for row in range(8)]
    elif pooling != "max":                      # which takes what is largest, wherever that stands
        assert reached == [True] * 7 + [False]


def test_the_weights_of_a_backbone_learn_from_every_chunk():
    """The embedding of a token that stands in the third chunk alone gets a gradient."""
    model = long_text_classifier(pooling="mean")
    model.loss(LongTextSet([[1, 2, 3, 4, 5, 6, 7, 8, 19]], [1], 4).batch(np.array([0])))["classification"][0].backward()
    assert model.backbone.token_embedding.weight.grad[19].any()


@pytest.mark.parametrize("kind", ["gpt", "bert", "awd_lstm"])
def test_long_texts_are_trained_on_evaluated_and_predicted(kind):
    """Evaluation sorts by length: its batches differ from those of a text alone, its answers by rounding, 1e-5, alone."""
    model, dataset = long_text_classifier(kind), long_texts(kind != "bert", 30)
    before = evaluate(model, dataset, 4)["loss"]
    Trainer(model, dataset, dataset, steps=60, lr=2e-2, batch_size=10, accumulate=3, progress=False).fit()
    measured, probabilities = evaluate(model, dataset, 4), predict_proba(model, dataset, 7)
    assert measured["loss"] < 0.8 * before and probabilities.shape == (30, 2)
    alone = np.concatenate([model.probabilities(model(dataset.batch(np.array([i]))).numpy()) for i in range(30)])
    np.testing.assert_allclose(probabilities, alone, atol=1e-5)
    assert (predict(model, dataset) == alone.argmax(1)).all()
    np.testing.assert_allclose(measured["error"], (alone.argmax(1) != dataset.labels).mean(), rtol=1e-12)
    np.testing.assert_allclose(measured["loss"], -np.log(alone[np.arange(30), dataset.labels]).mean(), rtol=1e-4)


def test_evaluation_reads_texts_of_like_length_together(monkeypatch):
    dataset, counts = long_texts(count=30), []
    batch = dataset.batch
    monkeypatch.setattr(dataset, "batch", lambda rows: counts.append(batch(rows).chunks) or batch(rows))
    evaluate(long_text_classifier(), dataset, 6)
    assert counts == sorted(counts) and counts[0] < 4 == counts[-1]


def test_chunks_go_with_a_batch_to_a_device_and_back(monkeypatch):
    """Arrays stay on the CPU here, where `moved` is told that they lie on another device."""
    batch = long_texts().batch(np.array([0, 1]))
    monkeypatch.setattr(devices, "to_device", lambda array, device: array)
    monkeypatch.setattr(devices, "device_of", lambda array: "cpu" if array.dtype == int else "cuda")
    moved = batch.to("cuda")
    assert moved is not batch and moved.ids.dtype == np.int32 and moved.on_host is batch
    assert moved.chunks == moved.on_host.chunks == 4 and moved.to("cpu") is batch and batch.on_host is batch
    assert Batch.of_ids(np.ones((1, 2), int)).chunks == 1
