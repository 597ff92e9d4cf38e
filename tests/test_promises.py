"""The promises of docs/promises.md: faults that users of fine-tuning libraries met, built again, and that do not happen here.

A test's name begins with the number of its promise. Where something is to be equal, the test also shows what would not be.
"""

import inspect
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import minitune as mt
from minitune import models, nn, tune
from minitune.data import Batch, ClassificationSet, Dataset, Example, ExampleSet, LanguageModelSet, Split, Tokenizer
from minitune.experiments import Protocol, Rates, Results, compare, plan
from minitune.ops import IGNORE
from minitune.optim import SGD, AdamW, Group
from minitune.train import Callback, Trainer, evaluate, predict_proba

PAGE = (Path(__file__).parent.parent / "docs" / "promises.md").read_text(encoding="utf-8")
TOKENIZER = Tokenizer.train(["2 + 2 = 4, 3 + 5 = 8; Question: Answer: yes no to be or not to be"] * 9, 300)
BATCH = Batch.causal([[[3, 1, 4, 1, 5, 9]], [[2, 6, 5]]])


def gpt(**sizes):
    mt.seed(0)
    sizes = {"vocab_size": 20, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16} | sizes
    return models.GPT(models.GPTConfig(**sizes))


def classifier(pooling="mean", **sizes):
    return models.Classifier(gpt(**sizes), ["even", "odd"], pooling)


def lora(r=2, lora_alpha=8, **sizes):
    """A classifier with adapters whose B is not 0 any more."""
    model = classifier(**sizes)
    tune.apply(model, tune.LoRAConfig(r, lora_alpha))
    shake(*(p for name, p in model.named_parameters() if name.endswith(".B")))
    return model


def shake(*parameters):
    """Adds random numbers, the same every time."""
    draw = np.random.default_rng(0)
    for p in parameters:
        p.data = (p.data + 0.2 * draw.standard_normal(p.shape)).astype(p.dtype)


def in_float64(model):
    """With weights that matter, and so many digits that only roundings of 1e-16 can differ where sums are the same."""
    for p in model.parameters():
        p.data = p.data.astype(np.float64)
    shake(*model.parameters())
    return model


def texts(count=24, seed=0):
    """Texts whose label says whether their length is odd."""
    draw = np.random.default_rng(seed)
    documents = [draw.integers(8, 20, draw.integers(2, 8)).tolist() for _ in range(count)]
    return ClassificationSet(documents, [len(document) % 2 for document in documents], 8)


def weights(model):
    return {name: array.copy() for name, array in model.state_dict().items()}


def changed(before, model):
    return {name for name, array in model.state_dict().items() if not np.array_equal(array, before[name])}


def trainable(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


def loss_and_gradients(model, *batches):
    """The summed loss over all batches, and its gradients."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        (loss, _, _), = model.loss(batch).values()
        loss.backward()
        total += loss.item()
    return total, {name: p.grad for name, p in model.named_parameters()}


def assert_same(got, expected):
    """(loss, {name: array}) twice, in float64: sums of the same numbers in another order."""
    np.testing.assert_allclose(got[0], expected[0], 1e-9)
    for name, array in expected[1].items():
        np.testing.assert_allclose(got[1][name], array, 1e-9, 1e-11, err_msg=name)


def train(model, data=None, valid=None, steps=12, lr=1e-2, **settings):
    """Trains, from the last checkpoint in `out` where there is one, and returns the trainer."""
    settings = {"batch_size": 4, "progress": False} | settings
    trainer = Trainer(model, data or texts(), valid, steps=steps, lr=lr, **settings)
    trainer.fit(resume="out" in settings)
    return trainer


class Interrupted(Callback):
    """A machine that goes down before step 6."""

    def on_step_begin(self, trainer):
        if trainer.step == 6:
            raise KeyboardInterrupt


class Unfreezing(Callback):
    """Trains the last layer group alone for four steps, then everything."""

    def on_step_begin(self, trainer):
        tune.freeze_to(trainer.model, -1 if trainer.step < 4 else 0)


# ---- What a step is ------------------------------------------------------------------------------------------------

ANSWERS = [Example.completion(f"{i} + {i} =", " yes no to be"[: 3 + 2 * (i % 6)]) for i in range(10)]


def test_promise_01_accumulation_is_the_large_batch():
    """Rows with 1 to 6 targets, a second window that runs past the end of the data, and a window whose last part is short."""
    data = ExampleSet(ANSWERS, TOKENIZER, 32, pack=False)

    def model():
        return in_float64(gpt(vocab_size=TOKENIZER.vocab_size, block_size=32))

    def fit(batch_size, accumulate):
        made = model()
        trainer = train(made, data, steps=3, lr=0.1, batch_size=batch_size, accumulate=accumulate, evaluate_every=1,
                        clip=float("inf"), optimizer=SGD(made, 0.1))
        return trainer.history["loss"], weights(made)

    def step(*sizes):
        made = model()
        trainer = Trainer(made, data, steps=1, lr=0.1, clip=float("inf"), optimizer=SGD(made, 0.1), progress=False)
        rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        return trainer.train_step([data.batch(part) for part in rows], 0.1), weights(made)

    assert_same(fit(batch_size=2, accumulate=4), fit(batch_size=8, accumulate=1))
    whole = step(9)
    assert_same(step(4, 4, 1), whole)
    means = [evaluate(model(), ExampleSet(part, TOKENIZER, 32))["loss"] for part in (ANSWERS[:4], ANSWERS[4:8], ANSWERS[8:9])]
    assert abs(np.mean(means) - whole[0]) > 1e-3            # a mean of means is another number


@pytest.mark.parametrize("moment", ["from the start", "after unfreezing"])
def test_promise_09_a_parameter_that_no_gradient_reaches_stops_the_training(moment):
    """The head learns, so that the loss alone would not tell."""
    class Severed(models.Classifier):
        def features(self, batch):
            return super().features(batch).detach()

    model = Severed(gpt(), ["even", "odd"])
    if moment == "from the start":
        tune.apply(model, tune.LoRAConfig(r=2))
    with pytest.raises(RuntimeError, match=r"backbone\.\S+ .*receives no gradient"):
        train(model, callbacks=[Unfreezing()] if moment == "after unfreezing" else [])
    tune.apply(model, tune.FreezeConfig())                  # where they are frozen, nothing is wrong
    assert train(model).step == 12


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_promise_15_master_weights_are_float32(dtype, tmp_path):
    def half(array):
        bits = array.astype("<f4").view("<u4")              # bfloat16: the upper half of a float32, rounded
        return array.astype("<f2") if dtype == "F16" else ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")

    gpt().save_pretrained(tmp_path)
    stored, header, data = load_file(tmp_path / "model.safetensors"), {}, b""
    for name, array in stored.items():                      # the same folder, its weights in 16 bits
        end = len(data) + 2 * array.size
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(data), end]}
        data += half(array).tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)

    model = models.Classifier(models.from_pretrained(tmp_path), ["even", "odd"])
    before = weights(model)
    assert all(np.array_equal(half(array), half(before[name])) for name, array in before.items())
    train(model, lr=1e-7, schedule=lambda *_: 1.0, steps=1)
    up = "backbone.blocks.0.mlp.up.weight"
    assert (model.state_dict()[up] != before[up]).mean() > 0.9
    assert (half(model.state_dict()[up]) != half(before[up])).mean() < 0.1          # in 16 bits the step would be lost
    tune.apply(model, tune.LoRAConfig(r=2))
    assert {p.dtype for p in model.parameters()} == {np.dtype("float32")}


def test_promise_17_a_label_that_the_head_has_not_is_told_before_the_first_step(tmp_path):
    data = ClassificationSet([[8, 9], [9, 8], [8, 8]], [0, 1, 2], 8)
    for sets in (data, texts()), (texts(), data):
        with pytest.raises(ValueError, match=r"labels must be 0 \.\. 1 for even, odd, got 2 at row 2 \(1 such rows\)"):
            Trainer(classifier(), *sets, steps=1, lr=1e-3)
    classifier().save_pretrained(tmp_path)
    assert models.from_pretrained(tmp_path).labels == ("even", "odd")


# ---- Which tokens are learned, and what each of them sees ----------------------------------------------------------

def learned(examples, row=0):
    """The text that a row teaches, "|" for an end token."""
    targets = examples.batch([row]).targets[0]
    return "".join("|" if i == TOKENIZER.end else TOKENIZER.decode([i]) for i in targets[targets != IGNORE])


def test_promise_10_the_end_is_learned_whatever_fills_the_padding():
    data = ExampleSet(ANSWERS, TOKENIZER, 32, pack=False)
    assert TOKENIZER.pad != TOKENIZER.end
    assert all(learned(data, row).count("|") == 1 and learned(data, row).endswith("|") for row in range(10))
    model = in_float64(gpt(vocab_size=TOKENIZER.vocab_size, block_size=32))
    documents = [document.tolist() for document in data.tokens]
    alone = loss_and_gradients(model, *(Batch.causal([[document]]) for document in documents))
    for pad in TOKENIZER.pad, TOKENIZER.end, documents[0][2]:       # the last looks like a token of the text
        batch = Batch.causal([[document] for document in documents], pad=pad)
        assert batch.supervised == sum(map(len, documents)) - 10 and (batch.targets == TOKENIZER.end).sum() == 10
        assert_same(loss_and_gradients(model, batch), alone)


def test_promise_10_a_tuned_model_stops():
    data = ExampleSet([Example.completion("yes", " no"), Example.completion("no", " yes")], TOKENIZER, 16)
    model = gpt(vocab_size=TOKENIZER.vocab_size, block_size=64)
    model.tokenizer = TOKENIZER
    assert len(model.generate("yes", 40, temperature=0)) > 10
    train(model, data, steps=60, lr=1e-2)
    assert model.generate(["yes", "no"], 40, temperature=0) == [" no", " yes"]


def test_promise_11_left_padding_is_right_padding():
    """Texts that end in token 0, which the padding is made of too: who looks for the last other token reads too early."""
    documents, labels = [[3, 1, 4, 0, 0], [9, 2], [5, 0, 7]], [0, 1, 1]
    model = in_float64(classifier("last"))
    alone = [Batch.causal([[document]], [label]) for document, label in zip(documents, labels)]
    logits = np.concatenate([model(one).numpy() for one in alone])
    for side in "left", "right":
        batch = Batch.causal([[document] for document in documents], labels, side=side)
        np.testing.assert_allclose(model(batch).numpy(), logits, 1e-9)
        assert_same(loss_and_gradients(model, batch), loss_and_gradients(model, *alone))
    cut = model(Batch.causal([[documents[0][:3]]])).numpy()
    assert np.abs(cut - logits[0]).max() > 1e-3             # what reading too early would give
    generated = model.backbone.generate_ids(documents, 3, temperature=0)
    assert generated == [model.backbone.generate_ids([document], 3, temperature=0)[0] for document in documents]


def test_promise_12_what_is_learned_goes_by_characters():
    """A prompt that ends in a space, and a template whose tokens depend on their neighbours: no token has to be found."""
    spaced = Example.completion("2 + 2 = ", "4")
    template = Example.completion("Question: 3 + 5 =\nAnswer:", " 8")
    inner = Example("to be or not to be", ((6, 8),), ())
    data = ExampleSet([spaced, template, inner], TOKENIZER, 64, pack=False)
    assert [learned(data, row) for row in range(3)] == ["4|", " 8|", "or"]
    assert TOKENIZER.encode("2 + 2 = ") != TOKENIZER.encode("2 + 2 = 4")[:-1]       # here a search for the prompt fails


def test_promise_12_an_example_that_teaches_nothing_is_named():
    fine = Example.plain("to be")
    for lost, settings in [(Example("to be", (), (), "line 7"), {}),
                           (Example("yes" + " to be" * 20, ((0, 3),), (), "line 7"), {"truncate": True})]:
        with pytest.raises(ValueError, match="no supervised token in line 7"):
            ExampleSet([fine, lost], TOKENIZER, 8, **settings)


def test_promise_13_a_pack_is_its_documents_apart():
    model = in_float64(gpt(vocab_size=TOKENIZER.vocab_size, block_size=256))
    packed, apart = (ExampleSet(ANSWERS, TOKENIZER, 256, pack=pack) for pack in (True, False))
    assert (len(packed), len(apart)) == (1, 10)
    batch = packed.batch([0])
    expected = loss_and_gradients(model, apart.batch(np.arange(10)))
    assert_same(loss_and_gradients(model, batch), expected)
    ids = [document.tolist() for document in apart.tokens]
    rows = LanguageModelSet(ids, sum(map(len, ids)))        # pre-training's rows, where every token is a target
    assert_same(loss_and_gradients(model, rows.batch(np.array([0]))),
                loss_and_gradients(model, Batch.causal([[document] for document in ids])))

    before, other = model.features(batch).numpy(), packed.batch([0])
    other.ids[0, 0] += 1                                    # a token of the first document
    same = (model.features(other).numpy() == before).all(-1)[0]
    assert not same[0] and same[len(packed.tokens[packed.rows[0][0]]) :].all()
    leaky = Batch.of_ids(batch.ids)
    leaky.targets = batch.targets
    assert abs(loss_and_gradients(model, leaky)[0] - expected[0]) > 1e-3            # as one document it is another loss


# ---- What trains ---------------------------------------------------------------------------------------------------

def test_promise_05_every_pattern_must_match():
    model = classifier()
    before = list(model.named_modules())
    for change in (lambda: tune.apply(model, tune.LoRAConfig(r=2, target_modules=["query", "gate_proj", "valu"])),
                   lambda: tune.apply(model, tune.FreezeConfig(["blocks.0", "gate_proj"])),
                   lambda: tune.freeze(model, ["blocks.0", "gate_proj"])):
        with pytest.raises(ValueError, match="'gate_proj' matches nothing"):
            change()
    with pytest.raises(ValueError, match="'valu' matches nothing. Did you mean 'value'"):
        tune.apply(model, tune.LoRAConfig(r=2, target_modules=["query", "valu"]))
    assert list(model.named_modules()) == before and len(trainable(model)) == len(model.state_dict())

    report = tune.apply(model, tune.LoRAConfig(r=2, target_modules="blocks.0.attention.query"))
    assert {name: count for name, _, count in report.rows} == {"embeddings": 0, "blocks.0": 64, "blocks.1": 0, "head": 32}
    model = classifier()
    tune.apply(model, tune.LoRAConfig(r=2))                 # "all-linear" is all of them
    assert sum(isinstance(part, tune.LoRALinear) for _, part in model.named_modules()) == sum(
        isinstance(part, nn.Linear) for _, part in classifier().backbone.named_modules())


def test_promise_07_unfreezing_keeps_the_optimizer(tmp_path):
    seen = []

    class Watch(Callback):
        def on_step_begin(self, trainer):
            seen.append((dict(trainer.optimizer.slots), weights(trainer.model)))

    def run(folder, *callbacks):
        return train(classifier(), out=tmp_path / folder, checkpoint_every=1, steps=8, schedule=lambda *_: 1.0,
                     callbacks=[*callbacks, Unfreezing(), Watch()])

    whole = run("whole")
    steps = {name: whole.optimizer.slots[id(p)].step for name, p in whole.model.named_parameters()}
    assert steps == {name: 8 if name == "head.weight" else 4 for name in steps}     # each trained from its own step on
    head = id(whole.model.head.weight)
    assert all(slots[head] is whole.optimizer.slots[head] for slots, _ in seen[1:])     # the head's moments were never lost
    start, late, next_ = (seen[step][1]["backbone.blocks.1.mlp.up.weight"] for step in (0, 4, 5))
    assert np.array_equal(start, late) and 0.009 < np.abs(next_ - late).max() < 0.011   # Adam's first step is the rate
    with pytest.raises(KeyboardInterrupt):
        run("cut", Interrupted())
    assert not changed(weights(whole.model), run("cut").model)


def test_promise_07_what_the_optimizer_does_not_hold_cannot_be_unfrozen_in_silence():
    """An optimizer made of what trained at the beginning: the layers that are unfrozen later would never move."""
    model = classifier()
    tune.freeze_to(model, -1)
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with pytest.raises(ValueError, match=r"the optimizer does not hold backbone\."):
        train(model, optimizer=optimizer, callbacks=[Unfreezing()])


def test_promise_08_groups_that_do_not_fit_the_model_raise():
    model = classifier()
    with pytest.raises(ValueError, match="no layer group 4; the groups are 0 embeddings, 1 blocks.0, 2 blocks.1, 3 head"):
        tune.freeze_to(model, 4)
    assert len(trainable(model)) == len(model.state_dict())
    head, rest = list(model.head.parameters()), list(model.backbone.parameters())
    with pytest.raises(ValueError, match=r"the optimizer does not hold backbone\.position_embedding\.weight\. "):
        Trainer(model, texts(), steps=1, lr=1e-3, optimizer=AdamW([Group(head), Group([rest[0], *rest[2:]], rate=0.1)]))
    with pytest.raises(ValueError, match="a parameter is in two groups"):
        AdamW([Group(head), Group([*rest, *head], rate=0.1)])


def test_promise_08_a_rate_for_no_parameter_raises():
    """A misspelt name: the whole model would train at the rate of the rest."""
    named = dict(classifier().named_parameters())
    slow = [p for name, p in named.items() if "embeding" in name]
    with pytest.raises(ValueError, match="group"):
        AdamW([Group(slow, rate=0.1), Group([p for p in named.values() if not any(p is other for other in slow)])])


def test_promise_23_every_group_moves_at_its_own_rate():
    """One step of gradient descent, so that what moved is rate times gradient, in float64."""
    rates = {"embeddings": 0.0, "blocks.0": 0.25, "blocks.1": 0.5, "head": 1.0}
    model, data = in_float64(classifier()), texts(4)
    groups = {name: [p for part in parts for p in part.parameters()] for name, parts in model.layer_groups()}
    before = weights(model)
    optimizer = SGD([Group(groups[name], rate=rate) for name, rate in rates.items()], lr=9.0)
    train(model, data, steps=1, lr=0.1, schedule=lambda *_: 0.5, optimizer=optimizer, clip=float("inf"))
    other = in_float64(classifier())
    _, gradients = loss_and_gradients(other, data.batch(np.arange(4)))
    own = {id(p): rates[name] for name, group in groups.items() for p in group}
    for name, p in model.named_parameters():                # trainer's lr, schedule, the group's rate, mean over 4 texts
        expected = before[name] - 0.1 * 0.5 * own[id(p)] * gradients[name] / 4
        np.testing.assert_allclose(p.data, expected, 1e-9, 1e-11, err_msg=name)
    assert np.abs(gradients["backbone.token_embedding.weight"]).max() > 1e-3        # which has rate 0


# ---- Adapters ------------------------------------------------------------------------------------------------------

class Tied(nn.Module):
    """A model whose output layer holds the embedding's own matrix."""

    def __init__(self):
        self.embedding, self.output = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, ids):
        return self.output(self.embedding(ids))


def test_promise_02_merging_breaks_no_tie(tmp_path):
    tied = Tied()
    tune.apply(tied, tune.LoRAConfig(r=2, target_modules="output"))
    before = weights(tied)
    with pytest.raises(ValueError, match="the weight of output is tied to embedding"):
        tune.merge(tied)
    assert isinstance(tied.output, tune.LoRALinear) and not changed(before, tied)

    model = lora().backbone
    embedding = model.token_embedding.weight.data.tobytes()
    tune.merge(model, BATCH)
    model.save_pretrained(tmp_path)
    again = models.from_pretrained(tmp_path)
    assert again.token_embedding.weight.data.tobytes() == embedding
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    np.testing.assert_allclose(again(BATCH).numpy(), model(BATCH).numpy(), 1e-5, 1e-6)
    prompts = [[3, 1, 4], [2, 6]]
    assert again.generate_ids(prompts, 6, temperature=0) == model.generate_ids(prompts, 6, temperature=0)


def test_promise_03_merging_rounds_once_and_comes_apart_again():
    model = lora()
    before, logits = weights(model), model(BATCH).numpy()
    certificate = tune.merge(model, BATCH)
    assert certificate.gap == np.abs(model(BATCH).numpy() - logits).max() < 1e-5 * certificate.largest
    assert str(certificate).startswith("merged 12 adapted layers; logits moved by at most ")
    for name in certificate.layers:                         # what a merge in half precision would do
        weight = dict(model.named_modules())[name].weight
        weight.data = weight.data.astype(np.float16).astype(np.float32)
    assert np.abs(model(BATCH).numpy() - logits).max() > 30 * certificate.gap
    tune.unmerge(model, certificate)
    assert list(model.state_dict()) == list(before) and not changed(before, model)
    assert np.array_equal(model(BATCH).numpy(), logits)


def test_promise_04_the_head_is_saved_with_the_adapter(tmp_path):
    model, valid = classifier(), texts(12, 1)
    tune.apply(model, tune.LoRAConfig(r=2))
    train(model, valid=valid, out=tmp_path)
    expected = predict_proba(model, valid)
    best = load_file(tmp_path / "best.safetensors")
    assert "head.weight" in best and {name.rpartition(".")[2] for name in best} == {"A", "B", "weight"}

    again = models.Classifier(gpt(), model.labels, "mean")
    shake(again.head.weight)                                # a new head is random
    tune.apply(again, tune.LoRAConfig(r=2))
    again.load_state_dict({name: array for name, array in best.items() if name != "head.weight"}, strict=False)
    assert np.abs(predict_proba(again, valid) - expected).max() > 1e-3              # the adapter alone is another model
    again.load_state_dict(best, strict=False)
    assert np.array_equal(predict_proba(again, valid), expected)

    tune.merge(model, BATCH)
    model.save_pretrained(tmp_path / "merged")
    merged = models.from_pretrained(tmp_path / "merged")
    assert merged.labels == model.labels
    np.testing.assert_allclose(predict_proba(merged, valid), expected, 1e-5)


def test_promise_02_an_untied_output_is_written_as_one(tmp_path):
    mt.seed(0)
    model = models.Llama(models.LlamaConfig(20, 8, 2, 2, 16, tied=True))
    words, before = model.token_embedding.weight.data.copy(), model(BATCH).numpy()
    tune.untie(model)
    assert np.array_equal(model(BATCH).numpy(), before)
    tune.apply(model, tune.LoRAConfig(r=2, target_modules="lm_head"))
    shake(model.lm_head.A, model.lm_head.B)
    expected = model(BATCH).numpy()
    tune.save_merged(model, tmp_path, BATCH)
    again = models.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    assert np.array_equal(again.token_embedding.weight.data, words)
    np.testing.assert_allclose(again(BATCH).numpy(), expected, 1e-5, 1e-5)
    assert np.abs(expected - before).max() > 1e-2


def test_promise_03_a_merged_folder_is_read_back(tmp_path):
    model = lora().backbone
    expected = model(BATCH).numpy()
    saved = tune.save_merged(model, tmp_path, BATCH)
    again = models.from_pretrained(tmp_path)
    assert saved.gap == np.abs(again(BATCH).numpy() - expected).max() < 1e-5 * saved.largest
    assert tune.save_merged(again, tmp_path, BATCH, dtype="float16").gap > 10 * saved.gap       # which is said, not hidden


def test_promise_04_an_adapters_folder_holds_the_head(tmp_path):
    model, valid = lora(), texts(12, 1)
    shake(model.head.weight)
    tune.save_adapter(model, tmp_path)
    expected = predict_proba(model, valid)
    again = classifier()
    tune.load_adapter(again, tmp_path)
    assert np.array_equal(predict_proba(again, valid), expected)
    with pytest.raises(ValueError, match=r"labels \['even', 'odd'\], the model has \['odd', 'even'\]"):
        tune.load_adapter(models.Classifier(gpt(), ["odd", "even"], "mean"), tmp_path)
    tune.save_adapter(lora().backbone, tmp_path / "backbone")
    with pytest.raises(ValueError, match=r"holds no head\.weight, and the model's own may be random"):
        tune.load_adapter(classifier(), tmp_path / "backbone")


def test_promise_14_an_adapter_knows_its_vocabulary(tmp_path):
    def model(tokenizer=TOKENIZER):
        made = gpt(vocab_size=TOKENIZER.vocab_size)
        made.tokenizer = TOKENIZER
        if tokenizer is not TOKENIZER:
            tune.remap_vocabulary(made, tokenizer)
        return made

    other = Tokenizer.train(["2 * 3 = 6; Frage: ob oder nicht; to be or not to be"] * 9, 300)
    tuned = model(other)
    new = other.vocabulary[next(token for token in other.vocabulary if token not in TOKENIZER.vocabulary)]
    np.testing.assert_allclose(tuned.token_embedding.weight.data[new], model().token_embedding.weight.data.mean(0), 1e-5, 1e-7)
    tune.apply(tuned, tune.LoRAConfig(r=2))
    tune.unfreeze(tuned, "token_embedding")
    shake(*(p for p in tuned.parameters() if p.requires_grad))
    tune.save_adapter(tuned, tmp_path)
    with pytest.raises(ValueError, match="trained with another vocabulary"):
        tune.load_adapter(model(), tmp_path)
    again = model(other)
    tune.load_adapter(again, tmp_path)
    assert np.array_equal(again(BATCH).numpy(), tuned(BATCH).numpy())
    assert np.array_equal(again.token_embedding.weight.data[new], tuned.token_embedding.weight.data[new])


def test_promise_24_adapters_travel_and_a_transposed_factor_is_refused(tmp_path):
    """A square factor, so that nothing but its numbers tells which way it lies; tests/formats compare with PEFT itself."""
    model = lora(r=16, lora_alpha=4)
    model.pooling = "last"                      # which Hugging Face's class for a GPT does
    tune.save_adapter(model, tmp_path)
    names = load_file(file := tmp_path / "adapter_model.safetensors")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    factor = "base_model.model.transformer.h.0.attn.c_proj.lora_A.weight"
    assert names[factor].shape == (16, 16) and "base_model.model.score.weight" in names
    again = classifier("last")
    tune.load_adapter(again, tmp_path)
    np.testing.assert_allclose(again(BATCH).numpy(), model(BATCH).numpy(), 1e-6, 1e-6)
    save_file(names | {factor: np.ascontiguousarray(names[factor].T)}, file)
    with pytest.raises(ValueError, match="the fingerprint differs.* a factor transposed"):
        tune.load_adapter(classifier("last"), tmp_path)
    wide = factor.replace("attn.c_proj", "mlp.c_proj")                      # (16, 64): told without any fingerprint
    (tmp_path / "minitune_adapter.json").unlink()
    save_file(names | {wide: np.ascontiguousarray(names[wide].T)}, file)
    with pytest.raises(ValueError, match=r"expected \(16, 64\), got \(64, 16\)\. It is transposed"):
        tune.load_adapter(classifier("last"), tmp_path)


def test_promise_16_metrics_and_early_stopping_work_with_adapters():
    model, valid = classifier(), texts(12, 1)
    forward, measured = inspect.signature(model.forward), evaluate(model, valid)
    tune.apply(model, tune.LoRAConfig(r=2))
    assert type(model) is models.Classifier and inspect.signature(model.forward) == forward
    assert evaluate(model, valid) == measured and set(measured) == {"loss", "error"}
    trainer = train(model, valid=valid, lr=0.0, evaluate_every=2, patience=2)       # nothing improves after step 2
    assert trainer.step == 6 and trainer.history["valid_error"] == [measured["error"]] * 3


# ---- What a run leaves behind --------------------------------------------------------------------------------------

def test_promise_06_resume_is_a_continuation(tmp_path):
    def run(folder, *callbacks):
        model = classifier(dropout=0.2)
        tune.apply(model, tune.LoRAConfig(r=2, lora_dropout=0.2))
        return train(model, valid=texts(8, 1), out=tmp_path / folder, batch_size=5, accumulate=2, evaluate_every=4,
                     checkpoint_every=2, callbacks=callbacks)

    def outcome(trainer):
        rows = [{name: value for name, value in row.items() if name not in ("tokens_per_second", "peak_mb")}
                for row in trainer.history.rows]
        return rows, {name: array.tobytes() for name, array in trainer.model.state_dict().items()}, trainable(trainer.model)

    expected = outcome(run("whole"))
    with pytest.raises(KeyboardInterrupt):
        run("cut", Interrupted())
    mt.seed(7)
    assert outcome(run("cut")) == expected


def test_promise_06_a_frozen_base_stays_frozen(tmp_path):
    """Who resumes forgets to freeze: the checkpoint does not."""
    model = classifier()
    base = weights(model)
    tune.apply(model, tune.FreezeConfig())
    with pytest.raises(KeyboardInterrupt):
        train(model, out=tmp_path, checkpoint_every=1, callbacks=[Interrupted()])
    again = train(classifier(), out=tmp_path, checkpoint_every=1)
    assert again.step == 12 and trainable(again.model) == ["head.weight"] == list(changed(base, again.model))


@pytest.mark.parametrize("other", ["base", "lora_alpha", "pooling"])
def test_promise_06_another_model_is_not_continued(other, tmp_path):
    """Their weights have the same names and shapes, and what they compute is something else."""
    def run(*callbacks, base=0.0, lora_alpha=8, pooling="mean"):
        model = classifier(pooling)
        model.backbone.norm.bias.data += base
        tune.apply(model, tune.LoRAConfig(r=2, lora_alpha=lora_alpha))
        return train(model, out=tmp_path, checkpoint_every=1, callbacks=callbacks)

    with pytest.raises(KeyboardInterrupt):
        run(Interrupted())
    with pytest.raises(ValueError, match="is of another training"):
        run(**{"base": {"base": 0.1}, "lora_alpha": {"lora_alpha": 64}, "pooling": {"pooling": "last"}}[other])
    assert run().step == 12


@pytest.mark.parametrize("method", ["full", "lora", "unfreezing"])
def test_promise_22_the_best_weights_are_left_in_the_model(method, tmp_path):
    """Texts of random tokens: what is learned from some is wrong about the others, and the first evaluation is the best.

    With adapters, which can do less harm, it is a later one, but not the last.
    """
    model, tokens = gpt(), np.random.default_rng(0).integers(0, 20, (2, 4, 8))
    if method == "lora":
        tune.apply(model, tune.LoRAConfig(r=4))
    learned, valid = (LanguageModelSet(rows, 8) for rows in tokens)
    trainer = train(model, learned, valid, steps=24, lr=3e-2, evaluate_every=4, out=tmp_path,
                    callbacks=[Unfreezing()] if method == "unfreezing" else [])
    losses = trainer.history["valid_loss"]
    assert min(losses) < losses[-1] and (trainer.best.step == 4 or method == "lora")
    assert evaluate(model, valid)["loss"] == min(losses)
    state, written = model.state_dict(), load_file(tmp_path / "best.safetensors")
    assert written and all(np.array_equal(state[name], array) for name, array in written.items())


def test_promise_18_a_result_is_an_interval_over_seeds():
    def results(*errors):
        rows = []
        for method in "scratch", "full":
            for seed, error in enumerate(errors):
                wrong = np.random.default_rng(seed).permutation(200) < 200 * error
                rows.append({"method": method, "labels": 16, "seed": seed, "error": error, "valid_error": error,
                             "test_texts": 200, "wrong": np.packbits(wrong).tobytes().hex(), "trainable_parameters": 1,
                             "total_parameters": 1, "seconds": 1.0, "peak_memory_mb": 1.0})
        return Results(rows, {})

    assert len(Protocol().seeds) >= 3
    scattered, alike = results(0.2, 0.3, 0.4), results(0.3, 0.3, 0.3)
    (mean, low, high), (_, other_low, other_high) = scattered.error("full", 16), alike.error("full", 16)
    assert mean == pytest.approx(0.3) and low < 0.25 < 0.35 < high and high - low > 1.5 * (other_high - other_low)
    assert len(re.findall(r"30\.0 \[\d+\.\d, \d+\.\d\]", scattered.table())) == 2
    assert "not distinguishable" in scattered.sentence()


# ---- What it costs -------------------------------------------------------------------------------------------------

def planned(method, labels=None):
    return plan(models.GPTConfig(1024, 128, 2, 4, 64), method, batch_size=8, block_size=128, labels=labels, rates=False)


def test_promise_19_where_memory_goes_is_said_before_the_run():
    """LoRA saves gradients and moments, and next to nothing of the activations: with a small model that is most of it."""
    full, lora = planned("full"), planned("lora")
    assert full.gradients > 5 * lora.gradients and full.moments > 5 * lora.moments
    assert lora.activations > 0.9 * full.activations > 5 * full.moments
    assert 0.7 * full.peak < lora.peak < full.peak
    assert planned("head", labels=2).activations < 0.01 * planned("lora", labels=2).activations
    rates = Rates({4: 1e9}, defaultdict(lambda: 1e-9), {})                  # a multiplication or a number a nanosecond
    seconds = {method: sum(plan(models.GPTConfig(1024, 128, 2, 4, 64), method, 8, 128, labels=2, rates=rates).parts.values())
               for method in ("full", "lora", "head")}
    assert 0.6 < seconds["lora"] / seconds["full"] < 1 and seconds["head"] < 0.45 * seconds["full"]


@pytest.mark.parametrize("method, labels", [("full", None), ("lora", None), ("head", 2)])
def test_promise_20_how_much_memory_a_step_takes_is_known_before_the_run(method, labels):
    pytest.importorskip("numba", reason='a plan is of the compiled twins: pip install "minitune[test]"')
    found = planned(method, labels)
    assert found.measure(steps=1).peak == pytest.approx(found.peak, rel=0.15)
    assert found.peak > 1.2 * (found.weights + found.moments + found.gradients)     # the usual rule of thumb forgets the rest


def test_promise_21_what_a_method_forgets_is_measured_beside_what_it_learns(tmp_path):
    """By the loss of the tuned model on a general text: a head alone can forget nothing, and full fine-tuning does."""
    texts = [word for word in ("wave tide", "leaf bark", "shell boat", "moss tree") for _ in range(4)]
    split = Split(texts, np.arange(16) // 4 % 2)
    dataset = Dataset("toy", ("sea", "wood"), dict.fromkeys(("train", "valid", "test"), split), "made up")
    base = gpt(vocab_size=TOKENIZER.vocab_size)
    base.tokenizer = TOKENIZER
    base.save_pretrained(tmp_path / "base")
    protocol = Protocol(sizes=(4,), seeds=(0, 1), least_steps=4, epochs=1, batch_size=4,
                        rates={"full": (1e-2,), "head": (1e-2,)})
    found = compare(dataset, tmp_path / "base", ("full", "head"), tmp_path / "out", protocol,
                    general=["to be or not to be"] * 6, progress=False)
    assert found.forgetting("head", 4) == (0.0, 0.0, 0.0) and found.forgetting("full", 4)[0] != 0
    assert "forg" in found.table()


# ---- The page ------------------------------------------------------------------------------------------------------

def test_the_page_and_this_file_name_the_same_promises():
    kept = dict(re.findall(r"^\| (\d+) \|(.*)$", PAGE, re.MULTILINE))
    open_ones = re.findall(r"^- \*\*(\d+)\. ", PAGE, re.MULTILINE)
    named = {test: number for number, row in kept.items() for test in re.findall(r"`(test_\w+)`", row)}
    assert set(named) == {name for name in globals() if name.startswith("test_promise_")}
    assert all(test.startswith(f"test_promise_{int(number):02}_") for test, number in named.items())
    assert set(named.values()) == set(kept) and sorted(map(int, [*kept, *open_ones])) == list(range(1, 25))


def test_every_thread_on_the_page_has_its_link():
    linked = dict(re.findall(r"^\[([\w.-]+#\d+)\]: https://github\.com/[\w.-]+/([\w.-]+/\w+/\d+)$", PAGE, re.MULTILINE))
    assert set(re.findall(r"\[([\w.-]+#\d+)\](?!:)", PAGE)) == set(linked)
    assert all(re.fullmatch(re.escape(name).replace(r"\#", "/(issues|pull)/"), end) for name, end in linked.items())
