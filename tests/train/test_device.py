"""Training on a device: the same steps as on the CPU, none of which waits; and bfloat16 beside float32."""

import sys
from pathlib import Path

import numpy as np
import pytest

import minitune as mt
from minitune import models, train
from minitune.data import Batch, ImageBatch
from minitune.data.batch import ClassificationSet, LanguageModelSet
from minitune.devices import to_device
from minitune.models.head import POOLINGS
from minitune.ops import IGNORE
from minitune.optim import SGD
from minitune.train import Trainer, evaluate, predict_proba
from minitune.train import trainer as trainer_file
from minitune.twins.cuda import emulation

sys.path.append(str(Path(__file__).parents[1] / "kernels"))
import standin_cupy  # noqa: E402                      CuPy without a GPU: it is strict, and notes what makes the host wait

needs_gxx = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs g++, which is not installed")
V, T, LOOK = 24, 8, 4


@pytest.fixture
def cupy(monkeypatch):
    """The stand-in as `import cupy`."""
    if emulation.compiler() is None:
        pytest.skip("the emulation needs g++, which is not installed")
    monkeypatch.setattr(trainer_file, "LOOK", LOOK)             # kernels are slow here
    with standin_cupy.installed() as module:
        yield module


def gpt(dropout=0.0, seed=0):
    mt.seed(seed)
    return models.GPT(models.GPTConfig(V, T, 1, 2, 16, dropout))


def language(count=32, seed=0):
    """Rows in which every token is its predecessor plus 1 or 2: something to learn."""
    draw = np.random.default_rng(seed)
    return LanguageModelSet([np.cumsum(draw.integers(1, 3, T)) % V for _ in range(count)], T)


def texts(count=12):
    draw = np.random.default_rng(1)
    return ClassificationSet([draw.integers(1, V, draw.integers(2, T)).tolist() for _ in range(count)], np.arange(count) % 3, T)


def trainer(model, data=None, steps=40, **settings):
    return Trainer(model, data or language(), **{"steps": steps, "lr": 3e-3, "batch_size": 4, "progress": False, **settings})


def some_steps(one, count, rate=3e-3):
    """Steps of a trainer's own loop, without its evaluations."""
    losses = []
    one.model.train()
    for _ in range(count):
        losses.append(one.train_step([one.train.batch(rows) for rows in one._next_rows()], rate))
        one.step += 1
    return losses


def weights(model):
    return {name: to_device(p.data, "cpu").copy() for name, p in model.named_parameters()}


# ---- Batches -----------------------------------------------------------------------------------------------------------

def test_a_batch_on_a_device_has_int32_there_and_counts_on_the_host(cupy):
    batch = Batch.causal([[[5, 6, 7], [8, 9]], [[1, 2]]])
    moved = batch.to("cuda")
    assert moved.to("cuda") is moved and moved.to("cpu") is batch and batch.to("cpu") is batch
    assert moved.segments is None and all(getattr(moved, name).dtype == np.int32 for name in ("ids", "first", "targets"))
    standin_cupy.waits.clear()
    assert (moved.tokens, moved.supervised, len(moved)) == (batch.tokens, batch.supervised, 2) == (7, 4, 2)
    follows = moved.next_tokens
    assert not standin_cupy.waits
    np.testing.assert_array_equal(follows.get(), batch.next_tokens)


def test_a_batch_of_images_too(cupy):
    batch = ImageBatch(np.zeros((2, 1, 4, 4), np.float32), np.array([3, IGNORE]))
    moved = batch.to("cuda")
    assert (moved.images.dtype, moved.targets.dtype, moved.supervised, moved.tokens) == (np.float32, np.int32, 1, 2)
    assert moved.to("cpu") is batch


def test_a_batch_made_on_a_device_comes_to_the_host(cupy):
    batch = Batch.causal([[[5, 6, 7]]])
    parts = [cupy.asarray(a.astype(np.int32)) for a in (batch.ids, batch.positions, batch.first, batch.last, batch.targets)]
    back = Batch(*parts).to("cpu")
    np.testing.assert_array_equal(back.ids, batch.ids)
    assert back.host is None


@pytest.mark.parametrize("name, value", [("ids", -1), ("positions", -3), ("targets", -1), ("first", -1), ("last", 3)])
def test_what_no_operation_on_a_gpu_looks_at_is_looked_at_on_the_way(cupy, name, value):
    batch = Batch.causal([[[5, 6, 7]], [[1]]])
    getattr(batch, name)[0, 1] = value
    if name == "first":
        batch.last[0, 1] = 1
    with pytest.raises(ValueError, match=f"Batch.to: .* {value}"):
        batch.to("cuda")


def test_behind_a_cache_a_token_sees_what_stands_there(cupy):
    batch = Batch(*(np.array([[n]]) for n in (5, 7, 0, 7, IGNORE)))
    assert batch.to("cuda", before=7).tokens == 1
    with pytest.raises(ValueError, match="last = 7"):
        batch.to("cuda", before=6)


def test_without_a_gpu_the_reason_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match="needs CuPy, which is not installed"):
        Batch.causal([[[5, 6]]]).to("cuda")


# ---- Steps -------------------------------------------------------------------------------------------------------------

def test_no_step_waits_until_the_losses_are_looked_at_and_all_are_those_of_the_cpu(cupy):
    """Sums in another order: a loss of about 3.2 is off by a few roundings of 1e-7, and steps that follow from it by more."""
    expected = some_steps(trainer(gpt(0.1), accumulate=2), 2 * LOOK)
    one = trainer(gpt(0.1).to("cuda"), accumulate=2)
    losses = some_steps(one, 1)                 # the first is looked at
    standin_cupy.waits.clear()
    losses += some_steps(one, LOOK - 1)
    assert not standin_cupy.waits and len(one.losses) == 1
    losses += some_steps(one, 1)
    assert len(standin_cupy.waits) == 2 * LOOK  # a loss and a norm of each step
    assert one.losses == [float(loss) for loss in losses]
    standin_cupy.waits.clear()
    losses += some_steps(one, LOOK - 1)
    assert not standin_cupy.waits
    np.testing.assert_allclose([float(loss) for loss in losses], expected, 2e-5)
    assert all(type(loss) is float for loss in expected) and losses[0].shape == ()


class Spoiled(models.GPT):
    """Its loss is no number in the trainer's step `at`."""

    def loss(self, batch):
        (name, (loss, count, weight)), = super().loss(batch).items()
        return {name: ((loss * -1.0).log() if self.trainer.step == self.at else loss, count, weight)}


@pytest.mark.parametrize("kind", [None, SGD])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_loss_that_is_no_number_is_told_by_its_step_and_later_steps_moved_nothing(cupy, kind, ema):
    def made(at):
        mt.seed(0)
        model = Spoiled(models.GPTConfig(V, T, 1, 2, 16, 0.1)).to("cuda")
        model.at, model.trainer = at, trainer(model, optimizer=kind and kind(model, 0.1), ema=ema)
        return model.trainer

    one, plain = made(1), made(None)
    some_steps(plain, 1)
    mt.seed(0)
    told = r"the loss is nan .* at step 1, rate 0\.003\. It began in log, forward: .* before this step are intact"
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match=told):
        some_steps(one, LOOK + 1)
    assert one.step == 1
    for (name, a), b in zip(weights(one.model).items(), weights(plain.model).values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    one.model.at = None
    assert np.isfinite([float(loss) for loss in some_steps(one, LOOK)]).all()          # and it can go on


def test_fit_on_a_device_gives_the_history_and_the_best_weights_of_the_cpu(cupy, tmp_path):
    """Losses as above, over 9 steps; the learned weights are put back on the device, files hold host arrays."""
    results = []
    for device in "cpu", "cuda":
        model = gpt().to(device)
        history = trainer(model, steps=9, valid=language(8, 1), evaluate_every=3, out=tmp_path / device, ema=0.9).fit()
        results.append(history.rows)
        assert model.device == device and evaluate(model, language(8, 1))["loss"] == pytest.approx(
            min(history["valid_loss"]), rel=1e-6)
    for a, b in zip(*results, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-4) and a["valid_loss"] == pytest.approx(b["valid_loss"], rel=2e-4)


def test_a_resumed_training_on_a_device_is_the_uninterrupted_one(cupy, tmp_path):
    class Stop(train.Callback):
        def on_step_begin(self, trainer):
            if trainer.step == 5:
                raise KeyboardInterrupt

    whole = gpt(0.1).to("cuda")
    trainer(whole, steps=7, out=tmp_path / "a", checkpoint_every=3).fit()
    with pytest.raises(KeyboardInterrupt):
        trainer(gpt(0.1).to("cuda"), steps=7, out=tmp_path / "b", checkpoint_every=3, callbacks=[Stop()]).fit()
    again = gpt(0.1, seed=7).to("cuda")
    trainer(again, steps=7, out=tmp_path / "b", checkpoint_every=3).fit(resume=True)
    for (name, a), b in zip(weights(whole).items(), weights(again).values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert again.device == "cuda"


# ---- Evaluation, prediction, generation --------------------------------------------------------------------------------

@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_classifier_predicts_on_a_device_what_it_does_on_the_cpu(cupy, pooling):
    """To rounding: 1e-5 of a probability. The sums of evaluation are read once, at its end."""
    model, data = models.Classifier(gpt(), ["a", "b", "c"], pooling), texts()
    expected, probabilities = evaluate(model, data, 5), predict_proba(model, data)
    model.to("cuda")
    standin_cupy.waits.clear()
    found = evaluate(model, data, 5)
    assert found["error"] == expected["error"] and found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert not [wait for wait in standin_cupy.waits if "evaluate.py" not in wait]
    np.testing.assert_allclose(predict_proba(model, data), probabilities, 0, 1e-5)
    other = models.Classifier(model.backbone, list("xyz"), pooling)                # a new head goes where its backbone is
    assert other.head.weight.data.__class__ is cupy.ndarray and evaluate(other, data)["loss"] > 0


@pytest.mark.parametrize("kind", ["multi label", "tokens", "choice", "auxiliary"])
def test_the_other_heads_measure_and_learn_on_a_device(cupy, kind):
    rows = [[[1, 2, 3]], [[4, 5]], [[6]], [[7, 8, 9]]]
    make, targets = {
        "multi label": (lambda: models.MultiLabelClassifier(gpt(), ["a", "b"]), [[0, 1], [1, IGNORE], [1, 1], [0, 0]]),
        "tokens": (lambda: models.TokenClassifier(gpt(), ["a", "b", "c"]),
                   [[0, 1, 2], [1, 1, IGNORE], [2, IGNORE, IGNORE], [0, 0, 0]]),
        "choice": (lambda: models.MultipleChoice(gpt(), 2), [0, 1]),
        "auxiliary": (lambda: models.Classifier(gpt(), ["a", "b", "c"], auxiliary=0.5), [0, 2, 1, 1]),
    }[kind]
    batch = Batch.causal(rows, np.zeros(4, int))
    batch.targets = np.array(targets)
    results = []
    for device in "cpu", "cuda":
        mt.seed(0)
        model = make().to(device)
        on = batch.to(device)
        mean = sum(loss * (weight / count) for loss, count, weight in model.loss(on).values())
        mean.backward()
        measured = {name: (float(amount), count) for name, (amount, count) in model.measure(on).items()}
        results.append((measured, mean.item(), {name: to_device(p.grad, "cpu") for name, p in model.named_parameters()
                                                if p.grad is not None}))
    (a, loss_a, grads_a), (b, loss_b, grads_b) = results
    assert a["error"] == b["error"] and a["loss"] == (pytest.approx(b["loss"][0], rel=1e-5), b["loss"][1])
    assert loss_a == pytest.approx(loss_b, rel=1e-5)
    for name in grads_a:                        # gradients of size 0.1: sums in another order
        np.testing.assert_allclose(grads_a[name], grads_b[name], 1e-4, 2e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["gpt", "llama", "lstm"])
@pytest.mark.parametrize("cache", [True, False])
def test_rows_of_unequal_length_are_written_on_with_and_without_a_cache(cupy, kind, cache):
    """Some rows end by their end token and leave the cache, others outgrow it. Tokens are drawn with the same numbers."""
    mt.seed(0)
    model = {"gpt": gpt, "llama": lambda: models.Llama(models.LlamaConfig(V, T, 1, 2, 16)),
             "lstm": lambda: models.AWDLSTM(models.AWDLSTMConfig(V, T, 16, 24, 2))}[kind]().eval()
    prompts = [[1, 2, 3], [4], [5, 6]]

    def written():
        mt.seed(1)
        return model.generate_ids(prompts, 12, end=5, cache=cache)

    expected = written()
    assert min(map(len, expected)) < 5 and max(len(a + b) for a, b in zip(prompts, expected, strict=True)) > T
    model.to("cuda")
    assert written() == expected


# ---- bfloat16, and the emulated GPU ------------------------------------------------------------------------------------

def test_training_in_bfloat16_follows_float32():
    """Activations have 8 bits of precision: a loss, a mean over many of them, is off by well below 2^-8 of itself."""
    results = []
    for dtype in "float32", "bfloat16":
        model = gpt().to(dtype=dtype)
        results.append(some_steps(trainer(model), 40))
        assert {p.dtype for p in model.parameters()} == {np.dtype(np.float32)}
    plain, half = np.array(results)
    assert plain[-1] < 0.6 * plain[0] and (plain != half).any()
    np.testing.assert_allclose(half, plain, 1 / 256)


@needs_gxx
def test_two_steps_on_the_emulated_gpu_are_those_of_the_cpu():
    expected, model = some_steps(trainer(gpt(0.1)), 2), gpt(0.1)
    with mt.emulated_gpu():
        losses = some_steps(trainer(model), 2)
    np.testing.assert_allclose(losses, expected, 1e-6)          # a few roundings of 6e-8


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_classifier_in_bfloat16_predicts_nearly_what_it_does_in_float32(pooling):
    """Probabilities of about 1/3 from logits with 8 bits."""
    model, data = models.Classifier(gpt(), ["a", "b", "c"], pooling), texts()
    expected = predict_proba(model, data)
    np.testing.assert_allclose(predict_proba(model.to(dtype="bfloat16"), data), expected, 0, 2**-8)
    head = models.Classifier(model.backbone, ["a", "b", "c"], pooling)
    assert head.dtype.name == head.head.dtype.name == "bfloat16" and head.head.weight.dtype == np.float32
