"""What is true of every tuning method, on every model that takes it: what trains, what stays, resuming, generation, merging."""

import copy
import pickle

import numpy as np
import pytest
from small_models import LABELS, ROWS, awd_lstm, bert, gpt, labelled, llama, randomise, step

import minitune as mt
from minitune import models, tune
from minitune.data import Batch, ClassificationSet, ImageBatch
from minitune.optim import AdamW
from minitune.train import Callback, Trainer

MODELS = {"GPT": gpt, "BERT": bert, "Llama": llama}
METHODS = {"bitfit": tune.BitFitConfig(), "top layers": tune.TopLayersConfig(1), "houlsby": tune.AdapterConfig(4),
           "ia3": tune.IA3Config(), "prefix": tune.PrefixConfig(3), "prompt": tune.PromptConfig(3)}
CASES = [(model, method) for model in MODELS for method in METHODS if (model, method) != ("Llama", "bitfit")]
CASES += [("AWD-LSTM", "bitfit"), ("AWD-LSTM", "top layers")]
MODELS = MODELS | {"AWD-LSTM": awd_lstm}
GENERATES = [case for case in CASES if case[0] in ("GPT", "Llama")]


def classifier(model, method, seed=0):
    mt.seed(seed)
    made = models.Classifier(MODELS[model](), ["no", "yes"])
    return made, tune.apply(made, METHODS[method])


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("model, method", CASES)
def test_the_head_and_the_method_train_and_nothing_else_moves(model, method):
    made, report = classifier(model, method)
    assert report.trainable == sum(p.size for p in trained(made)) and report.total == made.num_parameters()
    assert made.head.weight.requires_grad
    frozen = {name: (p, p.data.tobytes()) for name, p in made.named_parameters() if not p.requires_grad}
    optimizer = AdamW(made, lr=1e-2, weight_decay=0.5)
    watch = tune.audit(made, optimizer)
    for _ in range(2):
        step(made, optimizer, labelled(made))
    watch.check()                               # raises where a parameter trains and has no gradient
    for name, (parameter, before) in frozen.items():
        assert parameter.data.tobytes() == before and parameter.grad is None and id(parameter) not in optimizer.slots, name


@pytest.mark.parametrize("model, method", CASES)
def test_padding_and_the_other_rows_change_nothing(model, method):
    made, _ = classifier(model, method)
    randomise(trained(made))
    made.eval()
    together = made(labelled(made)).numpy()
    for row, ids in enumerate(ROWS):            # float32: sums of other lengths, some roundings of 6e-8
        np.testing.assert_allclose(made(np.array([ids])).numpy()[0], together[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model, method", GENERATES)
def test_generation_with_a_cache_writes_what_it_writes_without(model, method):
    mt.seed(0)
    made = MODELS[model]()
    randomise(made.parameters(), seed=1)        # so that a continuation is no single token again and again
    tune.apply(made, METHODS[method])
    randomise(trained(made))
    prompts = [[3, 1, 4], [1, 5, 9]]
    cached = made.generate_ids(prompts, 14, temperature=0)                  # more than the 12 that a model sees
    assert cached == made.generate_ids(prompts, 14, temperature=0, cache=False)
    assert [len(row) for row in cached] == [14, 14] and len({*cached[0], *cached[1]}) > 1


@pytest.mark.parametrize("model, method", [case for case in GENERATES if case[1] != "prefix"])
def test_prompts_of_several_lengths_are_continued_as_each_would_be_alone(model, method):
    mt.seed(0)
    made = MODELS[model]()
    randomise(made.parameters(), seed=1)        # so that a continuation is no single token again and again
    tune.apply(made, METHODS[method])
    randomise(trained(made))
    prompts = [[3, 1, 4, 1], [5], [9, 2]]
    assert made.generate_ids(prompts, 5, temperature=0) == [
        made.generate_ids([prompt], 5, temperature=0)[0] for prompt in prompts]


def labelled_set(model, count=30, seed=0):
    draw = np.random.default_rng(seed)
    documents = [draw.integers(8, 20, draw.integers(2, 8)).tolist() for _ in range(count)]
    return ClassificationSet(documents, [len(document) % 2 for document in documents], 8, model.causal)


def trainer_of(model, method, out, seed=0):
    made, _ = classifier(model, method, seed)
    return Trainer(made, labelled_set(made), labelled_set(made, 10, 1), out=out, steps=6, lr=1e-2, batch_size=5,
                   evaluate_every=3, checkpoint_every=1, progress=False)


class _Stop(Exception):
    pass


class StopBefore(Callback):
    """Interrupts a training before a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, trainer):
        if trainer.step == self.step:
            raise _Stop


@pytest.mark.parametrize("model, method", [case for case in CASES if case[0] in ("GPT", "Llama")])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(model, method, tmp_path):
    whole = trainer_of(model, method, tmp_path / "whole")
    whole.fit()
    cut = trainer_of(model, method, tmp_path / "cut")
    cut.callbacks = [StopBefore(4)]
    with pytest.raises(_Stop):
        cut.fit()
    resumed = trainer_of(model, method, tmp_path / "cut")
    resumed.fit(resume=True)
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert resumed.history.rows[0]["step"] == 3 and list(expected) == list(found)
    for name, array in expected.items():
        assert array.tobytes() == found[name].tobytes(), name


@pytest.mark.parametrize("model, method", [("GPT", "houlsby"), ("GPT", "prefix"), ("Llama", "prefix"), ("GPT", "prompt")])
def test_what_no_weights_can_hold_is_not_merged_and_stays(model, method):
    made, _ = classifier(model, method)
    names = list(made.state_dict())
    with pytest.raises(ValueError, match="^merge: a.* Keep it in the model; LoRA and IA3 can be merged"):
        tune.merge(made)
    assert list(made.state_dict()) == names


@pytest.mark.parametrize("method", ["houlsby", "ia3", "prefix", "prompt"])
@pytest.mark.parametrize("model", ["GPT", "BERT", "Llama"])
def test_a_model_with_adapted_layers_is_not_saved_as_a_plain_one(model, method, tmp_path):
    made, _ = classifier(model, method)
    with pytest.raises(ValueError, match="has no place for"):
        made.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("method", ["houlsby", "ia3", "prefix", "prompt"])
def test_a_method_does_not_reach_the_model_that_a_head_was_put_on(method):
    mt.seed(0)
    base = gpt()
    before, parts = base(np.array([ROWS[0]])).numpy(), [type(part) for part in base.modules()]
    head = models.Classifier(base, ["no", "yes"])
    tune.apply(head, METHODS[method])
    shared = {id(p) for p in base.parameters()}
    randomise(p for p in trained(head) if id(p) not in shared)
    assert [type(part) for part in base.modules()] == parts and base.config.block_size == 12
    np.testing.assert_array_equal(base(np.array([ROWS[0]])).numpy(), before)


@pytest.mark.parametrize("method", ["houlsby", "ia3", "prefix", "prompt"])
def test_a_head_on_a_tuned_model_reads_through_the_method(method):
    mt.seed(0)
    tuned = gpt()
    tune.apply(tuned, METHODS[method])
    randomise(trained(tuned))
    head = models.Classifier(tuned, ["no", "yes"])
    batch = Batch.causal([[row] for row in ROWS], LABELS)
    np.testing.assert_array_equal(head.features(batch).numpy(), tuned.features(batch).numpy())


@pytest.mark.parametrize("method", ["houlsby", "ia3", "prefix", "prompt"])
def test_applying_it_twice_raises_and_changes_nothing(method):
    made, _ = classifier("GPT", method)
    before = {name: p.requires_grad for name, p in made.named_parameters()}
    with pytest.raises(ValueError, match="already"):
        tune.apply(made, METHODS[method])
    assert {name: p.requires_grad for name, p in made.named_parameters()} == before


@pytest.mark.parametrize("method", ["houlsby", "ia3", "prefix", "prompt"])
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
                         ids=["copy", "deepcopy", "pickle"])
def test_a_copy_is_the_same_model(again, method):
    mt.seed(0)
    made = gpt()
    tune.apply(made, METHODS[method])
    randomise(trained(made))
    other = again(made)
    assert isinstance(other, models.GPT) and other.config == made.config
    np.testing.assert_array_equal(other(labelled(made)).numpy(), made(labelled(made)).numpy())


@pytest.mark.parametrize("method", ["bitfit", "top layers", "houlsby", "ia3"])
def test_methods_that_know_no_tokens_tune_a_model_of_images(method):
    mt.seed(0)
    made = models.Classifier(models.ViT(models.ViTConfig(8, 4, 2, 2, 16)), ["no", "yes"])
    tune.apply(made, METHODS[method])
    batch = ImageBatch(np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32), np.array([0, 1, 1]))
    optimizer = AdamW(made, lr=1e-2)
    watch = tune.audit(made, optimizer)
    for _ in range(2):
        step(made, optimizer, batch)
    watch.check()


@pytest.mark.parametrize("method", ["houlsby", "ia3", "prefix", "prompt"])
def test_recomputed_blocks_have_the_same_gradients(method):
    made, _ = classifier("GPT", method)
    randomise(trained(made))
    gradients = []
    for made.recompute in (False, True):
        made.zero_grad()
        made.loss(labelled(made))["classification"][0].backward()
        gradients.append([p.grad for p in trained(made)])
    for plain, again in zip(*gradients, strict=True):
        np.testing.assert_allclose(plain, again, rtol=1e-5, atol=1e-7)      # float32: a sum of the same terms, added otherwise


@pytest.mark.parametrize("method", ["houlsby", "ia3", "prefix", "prompt"])
def test_with_bfloat16_activations_the_new_parameters_stay_float32(method):
    pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")
    made, _ = classifier("GPT", method)
    randomise(trained(made))
    exact = made(labelled(made)).numpy()
    made.to(dtype="bfloat16")
    rounded = made(labelled(made))
    assert rounded.dtype.name == "bfloat16"
    # bfloat16 has 8 bits: some roundings of 0.4 % of logits about 1
    np.testing.assert_allclose(rounded.numpy().astype(np.float32), exact, rtol=0.05, atol=0.05)
    made.loss(labelled(made))["classification"][0].backward()
    assert all(p.dtype == np.float32 and p.grad.dtype == np.float32 for p in trained(made))


@pytest.mark.parametrize("method", ["houlsby", "ia3", "prefix", "prompt"])
def test_layers_that_read_no_text_refuse_what_needs_one(method):
    mt.seed(0)
    made = models.Classifier(awd_lstm(), ["no", "yes"])
    with pytest.raises(ValueError, match="Config: "):
        tune.apply(made, METHODS[method])
    assert all(p.requires_grad for p in made.parameters())
