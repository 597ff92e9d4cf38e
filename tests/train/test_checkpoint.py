"""Checkpoints: a resumed training is the same one bit for bit, and a file that is not whole or not its own is refused."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kill_and_resume import kill_and_resume

import minitune as mt
from minitune import models, tune
from minitune.data import ClassificationSet, MaskedSet, Tokenizer
from minitune.optim import SGD, AdamW
from minitune.train import Callback, Trainer, remove_checkpoints
from minitune.train.checkpoint import checkpoints

SETTINGS = {"steps": 12, "lr": 1e-2, "batch_size": 5, "accumulate": 2, "evaluate_every": 4, "checkpoint_every": 1,
            "progress": False}


def toy_set(count=30, seed=0):
    draw = np.random.default_rng(seed)
    documents = [draw.integers(8, 20, draw.integers(2, 8)).tolist() for _ in range(count)]
    return ClassificationSet(documents, [len(document) % 2 for document in documents], 8)


class Unfreezing(Callback):
    """Trains the head alone for five steps, then everything."""

    def on_step_begin(self, trainer):
        tune.freeze_to(trainer.model, -1 if trainer.step < 5 else 0)


class At(Callback):
    """Does something before a step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_step_begin(self, trainer):
        if trainer.step == self.step:
            self.what()


def make(out, method="full", optimizer=AdamW, callbacks=(), seed=0, dropout=0.1, dtype=None, **settings):
    mt.seed(seed)
    model = models.Classifier(models.GPT(models.GPTConfig(20, 8, 2, 2, 16, dropout)), ["even", "odd"])
    if method == "lora":
        tune.apply(model, tune.LoRAConfig(r=2))
    model.to(dtype=dtype)
    callbacks = [*callbacks, Unfreezing()] if method == "unfreezing" else callbacks
    made = optimizer(model, momentum=0.9, lr=0.1) if optimizer is SGD else optimizer(model)
    return Trainer(model, toy_set(), toy_set(10, 1), out=out, optimizer=made, callbacks=callbacks, **SETTINGS | settings)


def outcome(trainer):
    rows = [{name: value for name, value in row.items() if name not in ("tokens_per_second", "peak_mb")}
            for row in trainer.history.rows]
    return rows, {name: a.tobytes() for name, a in trainer.model.state_dict().items()}, dict(mt.random.counters), mt.random.seed


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("method, optimizer, ema, dtype", [
    ("full", AdamW, None, None), ("full", SGD, 0.9, "float64"), ("lora", AdamW, 0.9, "bfloat16"),
    ("unfreezing", AdamW, None, None), ("unfreezing", SGD, None, None)])
@pytest.mark.parametrize("at", [1, 4, 6, 11])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(method, optimizer, ema, dtype, at, tmp_path):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")
    whole = make(tmp_path / "whole", method, optimizer, ema=ema, dtype=dtype)
    whole.fit(resume=True)
    expected = outcome(whole)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", method, optimizer, [At(at, interrupt)], ema=ema, dtype=dtype).fit()
    mt.seed(99)
    again = make(tmp_path / "cut", method, optimizer, ema=ema, dtype=dtype)
    again.fit(resume=True)
    assert outcome(again) == expected and again.best.step == whole.best.step
    assert (tmp_path / "cut/best.safetensors").read_bytes() == (tmp_path / "whole/best.safetensors").read_bytes()


def test_a_resumed_training_hides_the_tokens_it_would_have_hidden(tmp_path):
    texts = ["the sea holds tide and shell", "moss and bark and leaf in the wood"] * 8
    tokenizer = Tokenizer.train(texts, 280, masked=True)

    def trained(out, at=None):
        mt.seed(0)
        model = models.MaskedLanguageModel(models.BERT(models.BERTConfig(tokenizer.vocab_size, 16, 1, 2, 8, dropout=0.1)))
        callbacks = [At(at, interrupt)] if at else []
        trainer = Trainer(model, *MaskedSet.from_texts(texts, tokenizer, 16).split(4), out=out, callbacks=callbacks, **SETTINGS)
        trainer.fit(resume=True)
        return outcome(trainer)

    expected = trained(tmp_path / "whole")
    assert expected[2]["mask"] > 0
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", 5)
    assert trained(tmp_path / "cut") == expected


def test_a_checkpoint_between_two_evaluations_keeps_the_losses_since_the_last(tmp_path):
    whole = make(tmp_path / "whole")
    expected = whole.fit()["loss"]
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", callbacks=[At(7, interrupt)]).fit()
    assert make(tmp_path / "cut").fit(resume=True)["loss"] == expected


def test_the_last_two_are_kept(tmp_path):
    make(tmp_path).fit()
    assert [file.stem for file in checkpoints(tmp_path)] == ["step-00000011", "step-00000012"]


def test_a_training_that_has_ended_is_not_trained_further(tmp_path):
    expected = make(tmp_path)
    expected.fit()
    again = make(tmp_path, callbacks=[At(step, lambda: pytest.fail("trained")) for step in range(20)])
    again.fit(resume=True)
    assert outcome(again)[:2] == outcome(expected)[:2]


def test_a_training_that_stopped_early_is_not_trained_further(tmp_path):
    settings = {"steps": 60, "lr": 0.0, "patience": 2, "evaluate_every": 2, "schedule": "constant"}
    make(tmp_path, **settings).fit()
    assert checkpoints(tmp_path)[-1].stem == "step-00000006"
    again = make(tmp_path, callbacks=[At(6, lambda: pytest.fail("trained"))], **settings)
    again.fit(resume=True)
    assert again.step == 6


def test_without_a_checkpoint_resume_begins(tmp_path):
    assert make(tmp_path).fit(resume=True)["step"] == [4, 8, 12]


def test_a_folder_that_holds_a_training_is_not_trained_over(tmp_path):
    make(tmp_path).fit()
    with pytest.raises(ValueError, match=r"holds a training that reached step 00000012.*fit\(resume=True\)"):
        make(tmp_path).fit()


@pytest.mark.parametrize("change, complaint", [
    ({"lr": 0.5}, "lr was 0.01, is 0.5"), ({"steps": 99}, "steps was 12, is 99"), ({"ema": 0.5}, "ema was None, is 0.5"),
    ({"optimizer": SGD}, "optimizer was AdamW, is SGD"), ({"method": "lora"}, r"backbone\.blocks\.0.*not in this model"),
    ({"dropout": 0.3}, r"dropout\.p was 0\.1, is 0\.3"),
    ({"schedule": "cosine"}, "schedule was linear, is cosine"), ({"clip": 2.0}, "clip was 1.0, is 2.0")])
def test_another_training_is_refused_with_what_differs(change, complaint, tmp_path):
    make(tmp_path).fit()
    other = make(tmp_path, **change)
    before = outcome(other)
    with pytest.raises(ValueError, match=complaint):
        other.fit(resume=True)
    assert outcome(other) == before and other.step == 0


AWD = models.AWDLSTMConfig(20, 8, n_embd=6, n_hidden=7, n_layer=2)
LLAMA = models.LlamaConfig(20, 8, 1, 2, 8)


@pytest.mark.parametrize("config, change, complaint", [
    (AWD, {"hidden_dropout": 0.1}, r"backbone\.config\.hidden_dropout was 0\.3, is 0\.1"),
    (AWD, {"weight_dropout": 0.0, "input_dropout": 0.2}, r"weight_dropout was 0\.5, is 0\.0; .*input_dropout was 0\.4"),
    (LLAMA, {"rope_base": 500000.0}, r"backbone\.config\.rope_base was 10000\.0, is 500000\.0"),
    (LLAMA, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, r"rope_scaling was None, is .*linear"),
])
def test_another_configuration_of_the_same_shapes_is_refused(config, change, complaint, tmp_path):
    def trainer(config):
        kind = models.Llama if isinstance(config, models.LlamaConfig) else models.AWDLSTM
        model = models.Classifier(kind(config), ["even", "odd"])
        return Trainer(model, toy_set(), out=tmp_path, **SETTINGS | {"steps": 1})

    trainer(config).fit()
    with pytest.raises(ValueError, match=complaint):
        trainer(replace(config, **change)).fit(resume=True)


@pytest.mark.parametrize("then, now, complaint", [
    (None, "bfloat16", "dtype was float32, is bfloat16"), ("bfloat16", None, "dtype was bfloat16, is float32"),
    (None, "float64", "dtype was float32, is float64"), (None, "float32", None)])
def test_another_dtype_is_refused_and_the_model_keeps_its_own(then, now, complaint, tmp_path):
    pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")
    make(tmp_path, dtype=then).fit()
    other = make(tmp_path, dtype=now)
    dtypes = other.model.dtype, {p.dtype for p in other.model.parameters()}
    if complaint is None:                       # float32 by name is what a model computes in anyway
        other.fit(resume=True)
    else:
        with pytest.raises(ValueError, match=complaint):
            other.fit(resume=True)
    assert (other.model.dtype, {p.dtype for p in other.model.parameters()}) == dtypes


def test_other_data_is_refused(tmp_path):
    make(tmp_path).fit()
    other = make(tmp_path)
    other.train.labels[3] = 1 - other.train.labels[3]
    with pytest.raises(ValueError, match="training data was 30 rows, .* is 30 rows"):
        other.fit(resume=True)


def test_another_base_under_the_adapters_is_refused(tmp_path):
    make(tmp_path, "lora").fit()
    with pytest.raises(ValueError, match="weights that are not trained are others: is it another base model"):
        make(tmp_path, "lora", seed=1).fit(resume=True)


@pytest.mark.parametrize("damage", ["truncated", "empty", *range(24)])
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(damage, tmp_path):
    make(tmp_path).fit()
    older, newest = checkpoints(tmp_path)
    content, kept = bytearray(newest.read_bytes()), older.read_bytes()
    if isinstance(damage, int):                                             # one bit, anywhere from header to last moment
        content[len(content) * damage // 24] ^= 1 << damage % 8
    newest.write_bytes({"truncated": content[: len(content) // 2], "empty": b""}.get(damage, content))
    trainer = make(tmp_path)
    before = outcome(trainer)
    with pytest.raises(ValueError, match=r"step-00000012\.safetensors: (damaged|not a whole)"):
        trainer.fit(resume=True)
    assert outcome(trainer) == before and older.read_bytes() == kept
    newest.unlink()                                                         # the repair: the one before it is whole
    assert make(tmp_path).fit(resume=True)["step"] == [4, 8, 12]


# ---- Signals, a full disk, kill -9 ---------------------------------------------------------------------------------

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end_and_its_checkpoint_be_written(number, tmp_path, monkeypatch, capsys):
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, callbacks=[At(5, lambda: signal.raise_signal(number))], checkpoint_every=100).fit()
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [file.stem for file in checkpoints(tmp_path)] == ["step-00000006"]
    assert "its checkpoint is written" in capsys.readouterr().err
    whole = make(tmp_path / "whole", checkpoint_every=100)
    whole.fit()
    expected = outcome(whole)
    again = make(tmp_path, checkpoint_every=100)
    again.fit(resume=True)
    assert outcome(again) == expected


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    trainer = make(tmp_path, callbacks=[At(5, twice)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.step == 5 and checkpoints(tmp_path)[-1].stem == "step-00000005"


def test_what_a_kill_in_the_middle_of_a_write_leaves_is_cleared(tmp_path):
    make(tmp_path).fit()
    left = [tmp_path / name for name in (".best.safetensors.99", ".history.csv.7", "checkpoints/.step-00000012.safetensors.99")]
    for file in left:
        file.write_bytes(b"half")
    make(tmp_path).fit(resume=True)
    assert not any(file.exists() for file in left)
    left[2].write_bytes(b"half")
    remove_checkpoints(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_the_end_is_told_before_a_signal_is_delivered(tmp_path):
    told = []

    class End(Callback):
        def on_train_end(self, trainer):
            told.append(trainer.step)

    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append("signal"))
    try:
        make(tmp_path, callbacks=[At(5, lambda: signal.raise_signal(signal.SIGTERM)), End()]).fit()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [6, "signal"]


SCRIPT = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_checkpoint as t
if {limit}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
t.make(Path({out!r})).fit(resume=True)
"""


def test_a_full_disk_is_one_error_and_leaves_the_checkpoints(tmp_path):
    """A limit on the size of files stands for a full disk: the write fails in the middle of a checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, callbacks=[At(5, interrupt)]).fit()
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    limit = max(map(len, before.values())) // 2
    code = SCRIPT.format(tests=str(Path(__file__).parent), out=str(tmp_path), limit=limit)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "OSError" in done.stderr and "Is the disk full?" in done.stderr
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert make(tmp_path).fit(resume=True)["step"] == [4, 8, 12]


def test_sigterm_ends_a_script_after_its_checkpoint(tmp_path):
    code = SCRIPT.format(tests=str(Path(__file__).parent), out=str(tmp_path), limit=0).replace(
        "t.make(Path(", "import signal\nt.make(callbacks=[t.At(5, lambda: signal.raise_signal(signal.SIGTERM))], out=Path(")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGTERM and checkpoints(tmp_path)[-1].stem == "step-00000006"


def test_kill_9_at_random_moments_resumes_bit_equal():
    """The short form of kill_and_resume.py, which does the same 30 times."""
    assert kill_and_resume(kills=2) == []


def test_a_training_that_takes_too_much_memory_goes_on_with_recomputation(tmp_path):
    whole = make(tmp_path / "whole")
    whole.fit()
    expected = outcome(whole)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", callbacks=[At(6, interrupt)]).fit()
    again = make(tmp_path / "cut")
    again.model.backbone.recompute = True
    again.fit(resume=True)
    assert outcome(again) == expected
