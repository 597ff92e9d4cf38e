"""Any head on any backbone: shapes, losses against plain NumPy, what trains, and clear words for what does not fit."""

from dataclasses import replace

import numpy as np
import pytest

import minitune as mt
from minitune import models, train, tune
from minitune.data import (
    Batch,
    ClassificationSet,
    Dataset,
    ImageBatch,
    ImageSet,
    ImageSplit,
    LanguageModelSet,
    MaskedSet,
    MultipleChoiceSet,
    NextSentenceSet,
    Split,
    TokenClassificationSet,
    Tokenizer,
)
from minitune.experiments import Finetuning, finetune
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
    "Classifier": (lambda backbone: models.Classifier(backbone, ["a", "b", "c"]), [2, 0, 1, IGNORE]),
    "Classifier, mean": (lambda backbone: models.Classifier(backbone, ["a", "b", "c"], "mean"), [2, 0, 1, 1]),
    "MultiLabelClassifier": (lambda backbone: models.MultiLabelClassifier(backbone, ["a", "b", "c"]),
                             [[0, 1, 1], [0, 0, 0], [1, IGNORE, 0], [1, 1, 1]]),
    "MultipleChoice": (lambda backbone: models.MultipleChoice(backbone, 2), [1, 0]),
    "TokenClassifier": (lambda backbone: models.TokenClassifier(backbone, ["a", "b", "c"]),
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
PAIRS.remove(("AWD-LSTM", "MaskedLanguageModel"))


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
    one = models.Classifier(base, ["a", "b"], "mean")
    two = models.MultiLabelClassifier(one, ["a", "b", "c"], "max")
    assert dict(base.named_parameters()) == before
    shared = [name for name, p in two.named_parameters() if name.startswith("backbone.")]
    assert all(dict(one.named_parameters())[name] is dict(two.named_parameters())[name] for name in shared)


@pytest.mark.parametrize("backbone, auxiliary", [*((name, 0.0) for name in BACKBONES),
                                                 ("GPT", 0.5), ("Llama", 0.5), ("AWD-LSTM", 0.5)])
def test_a_head_shares_parameters_with_its_model_and_nothing_else(backbone, auxiliary):
    """One rule for every part: the same Parameter objects, in modules and lists of the head's own."""
    base = BACKBONES[backbone]()
    model = models.Classifier(base, ["a", "b"], auxiliary=auxiliary)
    own = dict(base.named_parameters())
    assert all(p is own[name] for name, p in model.backbone.named_parameters())
    assert not {id(part) for part in base.modules()} & {id(part) for part in model.modules()}
    model.requires_grad_(False)
    assert not any(own[name].requires_grad for name, _ in model.backbone.named_parameters())
    before = list(model.backbone.named_parameters())
    base.eval()
    base.recompute, base.config = True, None
    (base.layers if backbone == "AWD-LSTM" else base.blocks).clear()
    assert all(part.training for part in model.modules()) and not model.recompute and model.backbone.config is not None
    assert list(model.backbone.named_parameters()) == before


def test_tied_modules_stay_tied_in_a_copy_that_shares_parameters():
    class Tied(mt.nn.Module):
        def __init__(self):
            self.one = mt.nn.Linear(2, 2)
            self.others = [self.one, mt.nn.Linear(2, 2)]

    tied = Tied()
    twin = tied.sharing_parameters()
    assert twin.others[0] is twin.one is not tied.one and twin.others is not tied.others
    assert [id(p) for p in twin.parameters()] == [id(p) for p in tied.parameters()]


# ---- What was left out --------------------------------------------------------------------------------------------------

LEFT_OUT = "the output matrix or its bias was left out of this copy, for a classifier or another head. Load the language model"


@pytest.mark.parametrize("name", ["Llama", "AWD-LSTM"])
def test_a_language_model_without_its_output_refuses_what_needs_it(name, tmp_path):
    """It would go on, silently, as another model: with the token embedding for the output matrix, or without a bias."""
    base = BACKBONES[name]()
    bare, batch = models.Classifier(base, ["a", "b"]).backbone, Batch.causal([[row] for row in ROWS])
    x = bare.features(batch)
    for call in (lambda: bare(batch), lambda: bare.head(x), bare.output_weight, lambda: bare.language_loss(x, batch.targets),
                 lambda: bare.loss(batch), lambda: bare.measure(batch), lambda: bare.generate_ids([[1]], 2),
                 lambda: bare.save_pretrained(tmp_path), bare.to_hugging_face):
        with pytest.raises(ValueError, match=LEFT_OUT):
            call()
    assert not list(tmp_path.iterdir())
    base.loss(batch)                            # the model itself is whole
    one = models.Classifier(base, ["a", "b"])
    with pytest.raises(ValueError, match=LEFT_OUT):
        models.Classifier(one, ["a", "b"], auxiliary=0.5)
    whole = models.Classifier(base, ["a", "b"], auxiliary=0.5)
    models.Classifier(whole, ["a", "b"], auxiliary=0.5).loss(Batch.causal([[row] for row in ROWS], [0, 1, 0, 1]))


@pytest.mark.parametrize("make", [
    BACKBONES["GPT"], lambda: models.Llama(models.LlamaConfig(20, 8, 1, 2, 8, tied=True)),
], ids=["GPT", "tied Llama"])
def test_a_tied_language_model_loses_nothing_under_a_classifier(make):
    base = make()
    bare, batch = models.Classifier(base, ["a", "b"]).backbone, Batch.causal([[row] for row in ROWS])
    np.testing.assert_array_equal(bare(batch).numpy(), base(batch).numpy())
    assert models.Classifier(models.Classifier(base, ["a", "b"]), ["a", "b"], auxiliary=0.5).auxiliary == 0.5


@pytest.mark.parametrize("name", ["Llama", "AWD-LSTM"])
@pytest.mark.parametrize("auxiliary", [0.0, 0.5])
def test_a_classifiers_folder_comes_back_with_what_it_had(name, auxiliary, tmp_path):
    model = models.Classifier(BACKBONES[name](), ["a", "b"], auxiliary=auxiliary)
    model.eval().save_pretrained(tmp_path)
    back = models.from_pretrained(tmp_path)
    batch = Batch.causal([[row] for row in ROWS], [0, 1, 0, 1])
    assert back.backbone.config == model.backbone.config and list(back.state_dict()) == list(model.state_dict())
    assert {term: loss.item() for term, (loss, _, _) in back.loss(batch).items()} == {
        term: loss.item() for term, (loss, _, _) in model.loss(batch).items()}
    if not auxiliary:
        with pytest.raises(ValueError, match=LEFT_OUT):
            back.backbone(batch)


def texts(kind):
    split = Split(["a b c", "c d e"] * 8, np.arange(16) % 2 if kind == "classification" else None)
    return Dataset("made up", ("no", "yes") if kind == "classification" else (), {"train": split}, "", kind=kind)


@pytest.mark.parametrize("name, text", [("GPT", True), ("Llama", False), ("AWD-LSTM", False)])
def test_a_classifiers_folder_is_a_base_for_texts_only_where_nothing_was_left_out(name, text, tmp_path):
    tokenizer, base = Tokenizer.train(["a b c d e"] * 4, 258), BACKBONES[name]()
    base = type(base)(replace(base.config, vocab_size=tokenizer.vocab_size))
    base.tokenizer = tokenizer
    models.Classifier(base, ["a", "b"]).save_pretrained(tmp_path)
    tuned = finetune(texts("classification"), tmp_path, Finetuning(epochs=1), progress=False).model
    assert tuned.labels == ("no", "yes") and tuned.pooling == ("mean" if name == "GPT" else base.pooling)
    if text:
        finetune(texts("text"), tmp_path, Finetuning(epochs=1), progress=False)
        return
    with pytest.raises(ValueError, match=LEFT_OUT):
        finetune(texts("text"), tmp_path, Finetuning(epochs=1), progress=False)


# ---- Which way a set is read --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("backbone", TEXT)
@pytest.mark.parametrize("head", ["Classifier", "MultiLabelClassifier", "TokenClassifier", "MultipleChoice"])
def test_a_set_for_the_other_direction_is_refused_with_the_repair(backbone, head):
    """BERT on a causal set learns blind, and without a word."""
    model, _ = built(backbone, head)
    sets = {
        "Classifier": lambda causal: ClassificationSet(ROWS, [0, 1, 2, 0], 8, causal),
        "MultiLabelClassifier": lambda causal: ClassificationSet(ROWS, np.zeros((4, 3), int), 8, causal),
        "TokenClassifier": lambda causal: TokenClassificationSet(ROWS, [[0] * len(row) for row in ROWS], 8, causal),
        "MultipleChoice": lambda causal: MultipleChoiceSet([ROWS[:2], ROWS[2:]], [1, 0], 8, causal)}
    model.check(sets[head](model.causal))
    with pytest.raises(ValueError, match=rf"expected a set with causal={model.causal}, got one with causal={not model.causal}, "
                       r"a \w+Set\. Make it with causal=model.causal"):
        model.check(sets[head](not model.causal))


@pytest.mark.parametrize("backbone", [name for name in TEXT if name != "AWD-LSTM"])
def test_a_masked_language_model_reads_both_sides_whatever_it_lies_on(backbone):
    model, _ = built(backbone, "MaskedLanguageModel")
    model.eval()
    ids = np.array([ROWS[0]])
    assert model.causal is False
    np.testing.assert_array_equal(model(ids).numpy(), model(Batch.bidirectional([ROWS[0]])).numpy())
    changed = ids.copy()
    changed[0, -1] = 8
    assert not np.array_equal(model(ids).numpy()[0, 0], model(changed).numpy()[0, 0])
    targets = np.where(np.arange(5) == 2, 4, IGNORE)
    loss, _, _ = model.loss(Batch.bidirectional([ROWS[0]], targets=[targets]))["masked_language_model"]
    logits = model(ids).numpy()[0, 2].astype(float)
    assert loss.item() == pytest.approx(np.log(np.exp(logits - logits[4]).sum()), rel=1e-5)


def test_sets_of_next_and_of_hidden_tokens_are_not_taken_for_each_other():
    tokenizer = Tokenizer.train(["a b c d e f g"] * 4, 280, masked=True)
    hidden, next_tokens = MaskedSet([[1, 2, 3], [4, 5, 6]], tokenizer, 8), LanguageModelSet([[1, 2, 3, 4]], 2)
    config = models.BERTConfig(tokenizer.vocab_size, 8, 1, 2, 6)
    masked = models.MaskedLanguageModel(models.BERT(config))
    masked.check(hidden)
    with pytest.raises(ValueError, match="MaskedLanguageModel: expected a set with causal=False.* hidden ones MaskedSet"):
        masked.check(next_tokens)
    gpt = models.GPT(models.GPTConfig(tokenizer.vocab_size, 8, 1, 2, 6))
    gpt.check(next_tokens)
    with pytest.raises(ValueError, match="GPT: expected a set with causal=True.* to predict next tokens take LanguageModelSet"):
        gpt.check(hidden)
    models.MaskedLanguageModel(gpt).check(hidden)
    with pytest.raises(ValueError, match=r"GPT: token ids must be 0 \.\. 19, the set holds"):
        models.MaskedLanguageModel(BACKBONES["GPT"]()).check(hidden)
    pairs = models.MaskedLanguageModel(models.BERT(config), next_sentence=True)
    pairs.check(NextSentenceSet([[1, 2, 3], [4, 5, 6]], tokenizer, 8))
    with pytest.raises(ValueError, match="next_sentence=True learns from pairs of texts, .* Take NextSentenceSet"):
        pairs.check(hidden)
    with pytest.raises(ValueError, match="Take NextSentenceSet"):
        pairs.loss(hidden.batch(np.arange(1)))


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


class Nothing:
    """A set without rows."""

    def __len__(self):
        return 0


def test_multiple_choice_compares_the_rows_of_one_question():
    model, batch = built("BERT", "MultipleChoice")
    scores = model.logits(model.features(batch), batch).numpy()
    np.testing.assert_array_equal(model(batch).numpy(), scores.reshape(2, 2))
    questions = MultipleChoiceSet([[ROWS[0], ROWS[1]], [ROWS[2], ROWS[3]]], [1, 0], 8, causal=False)
    np.testing.assert_allclose(train.predict_proba(model, questions), model.probabilities(scores.reshape(2, 2)), rtol=1e-5)
    with pytest.raises(ValueError, match="MultipleChoice: expected 2 rows for each question, got 3 rows"):
        model(np.ones((3, 2), int))
    model.check(questions)
    with pytest.raises(ValueError, match="expected 2 choices for each question, got a set with 3. Build .* choices=3"):
        model.check(MultipleChoiceSet([[[1], [2], [3]]], [1], 8, causal=False))
    assert train.predict_proba(model, Nothing()).shape == (0, 2)
    with pytest.raises(ValueError, match="choices must be a whole number from 2, got 1"):
        models.MultipleChoice(BACKBONES["GPT"](), 1)


def test_token_labels_are_predicted_where_they_stand():
    model, batch = built("BERT", "TokenClassifier")
    assert model(batch).shape == (4, 5, 3) and model.counts(batch) == {"classification": 9}
    dataset = TokenClassificationSet(ROWS, HEADS["TokenClassifier"][1], 8, causal=False)
    assert train.evaluate(model, dataset)["loss"] == pytest.approx(model.measure(batch)["loss"][0] / 9, rel=1e-6)
    model.check(dataset)
    with pytest.raises(ValueError, match=r"TokenClassifier: labels must be 0 \.\. 2"):
        model.check(TokenClassificationSet([[1]], [[3]], 8))
    with pytest.raises(ValueError, match=r"got 7 at row 1 \(2 such rows\)"):
        model.check(TokenClassificationSet([[1, 2, 3], [4, 5], [6]], [[0, 1, 2], [7, 8], [9]], 8))
    with pytest.raises(TypeError, match="predict_proba: expected a model that classifies whole rows, got TokenClassifier"):
        train.predict_proba(model, dataset)


def test_the_auxiliary_loss_is_the_language_models_own():
    """Radford et al. 2018, equation 5: L = L_labels + lambda L_language."""
    for backbone in (BACKBONES[name]() for name in ("GPT", "Llama", "AWD-LSTM")):
        plain = models.Classifier(backbone, ["a", "b"], "last")
        model = models.Classifier(backbone, ["a", "b"], "last", auxiliary=0.5)
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
        models.Classifier(BACKBONES["GPT"](), ["a", "b"], auxiliary=auxiliary)
    with pytest.raises(ValueError, match="got 0.5 on BERT"):
        models.Classifier(BACKBONES["BERT"](), ["a", "b"], auxiliary=0.5)


def test_what_does_not_fit_is_told():
    with pytest.raises(TypeError, match="Classifier: the backbone must be a model with features, such as a GPT, got Linear"):
        models.Classifier(mt.nn.Linear(2, 2), ["a", "b"], "last")
    for without in (BACKBONES["BERT without pooler"](), models.Classifier(BACKBONES["BERT"](), ["a", "b"], "mean")):
        with pytest.raises(ValueError, match="pooling must be one of first, .* concat, got 'cls'. .* pooler=True"):
            models.Classifier(without, ["a", "b"], "cls")
    with pytest.raises(ValueError, match="must see both sides of a hidden token, AWDLSTM reads from left to right alone"):
        models.MaskedLanguageModel(BACKBONES["AWD-LSTM"]())
    with pytest.raises(ValueError, match="MaskedLanguageModel: the backbone must read tokens, got CNN"):
        models.MaskedLanguageModel(BACKBONES["CNN"]())
    with pytest.raises(ValueError, match="next_sentence reads the backbone's pooler, and this one has none"):
        models.MaskedLanguageModel(BACKBONES["BERT without pooler"](), next_sentence=True)


@pytest.mark.parametrize("backbone", ["BERT", "CNN", "ViT"])
def test_a_backbone_alone_has_nothing_to_learn_and_says_so(backbone):
    model = BACKBONES[backbone]()
    dataset = ClassificationSet(ROWS, [0, 1, 0, 1], 8, causal=False) if backbone == "BERT" else ImageSet(
        ImageSplit(np.zeros((4, 8, 8), np.uint8), np.arange(4)))
    with pytest.raises(TypeError, match=f"{backbone}: a backbone has no loss of its own. Put a head on it, as in Classifier"):
        train.Trainer(model, dataset, steps=1, lr=0.1, progress=False).fit()
    with pytest.raises(TypeError, match="Put a head on it"):
        train.evaluate(model, dataset)


@pytest.mark.parametrize("backbone, head", [pair for pair in PAIRS if pair[0] in TEXT
                                            and pair[1] in ("Classifier", "MaskedLanguageModel")])
def test_padding_changes_nothing(backbone, head):
    model, batch = built(backbone, head)
    model.eval()
    whole = model(batch).numpy()
    for b, row in enumerate(ROWS):
        alone = model(np.array([row])).numpy()
        np.testing.assert_allclose(alone[0], whole[b] if whole.ndim == 2 else whole[b, : len(row)], rtol=1e-4, atol=1e-5)
