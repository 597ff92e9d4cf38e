"""Whole models on the path that a GPU takes: CuPy's stand-in, CUDA twins, kernels on the emulation, in bfloat16.

They learn what they learn on a CPU in float32, and between two looks at the loss nothing makes the host wait.
"""

import numpy as np
import pytest
import standin_cupy
from cases import CASES

import minitune as mt
from minitune import models, optim, tune
from minitune.data import Batch, ImageBatch
from minitune.models import Classifier

pytestmark = pytest.mark.usefixtures("gxx")

V = 97
LOSS = 1e-3             # bfloat16 has three digits; a loss of about 4.6 is a mean over many rounded logits
# Each of a few dozen roundings on the way back moves a gradient by up to 2^-8 of itself, mostly in different directions.
GRADIENT = 0.03         # of the norm of the whole gradient


def gpt(dropout=0.0, recompute=False):
    model = models.GPT(models.GPTConfig(V, 16, 2, 2, 32, dropout))
    model.recompute = recompute
    return model


def adapted():
    model = gpt()
    tune.apply(model, tune.LoRAConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    return model


def rows(labels=None):
    rng = np.random.default_rng(0)
    return Batch.causal([[rng.integers(0, V, n).tolist()] for n in (16, 9, 12)], labels)


def pairs(labels=None):
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, V, n).tolist() for n in (16, 9, 12)]
    hidden = None if labels else [[token if i % 3 == 0 else -100 for i, token in enumerate(text)] for text in texts]
    return Batch.bidirectional(texts, labels, segments=[[i % 2 for i in range(len(text))] for text in texts], targets=hidden)


def images():
    return ImageBatch(np.random.default_rng(0).standard_normal((4, 1, 12, 12)).astype(np.float32), np.array([0, 2, 1, 1]))


LABELS = ["a", "b", "c"]
MODELS = {              # a model and a batch for it
    "GPT": (gpt, rows), "GPT with dropout": (lambda: gpt(0.1), rows), "GPT recomputed": (lambda: gpt(0.1, True), rows),
    "GPT with LoRA": (adapted, rows), "classifier": (lambda: Classifier(gpt(), LABELS, "mean"), lambda: rows([0, 2, 1])),
    "Llama": (lambda: models.Llama(models.LlamaConfig(vocab_size=V, block_size=16, n_layer=2, n_head=4, n_embd=32,
                                                      n_kv_head=2)), rows),
    "BERT": (lambda: models.MaskedLanguageModel(models.BERT(models.BERTConfig(V, 16, 2, 2, 32))), pairs),
    "BERT classifier": (lambda: Classifier(models.BERT(models.BERTConfig(V, 16, 2, 2, 32)), LABELS), lambda: pairs([0, 2, 1])),
    "AWD-LSTM": (lambda: models.AWDLSTM(models.AWDLSTMConfig(vocab_size=V, n_embd=16, n_hidden=24, n_layer=2, block_size=16)),
                 rows),
    "ViT": (lambda: Classifier(models.ViT(models.ViTConfig(image_size=12, patch_size=4, n_channels=1, n_layer=2, n_head=2,
                                                           n_embd=32)), LABELS), images),
}


def loss_and_gradients(model, batch):
    """(loss, {name: gradient}) of a training step's backward pass; dropout draws the same numbers each time."""
    mt.seed(3)
    model.zero_grad()
    loss = sum(total * (weight / count) for total, count, weight in model.loss(batch).values())
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_bfloat16_on_a_device_learns_what_it_learns_on_a_cpu_and_nothing_waits(name):
    model, batch = (part() for part in MODELS[name])
    model.train()
    expected, gradients = loss_and_gradients(model, batch)
    with standin_cupy.installed():
        model.to("cuda", "bfloat16")
        moved = batch.to("cuda")
        standin_cupy.waits.clear()
        loss, found = loss_and_gradients(model, moved)
        assert not standin_cupy.waits
        found = {key: a.get() for key, a in found.items()}
        assert abs(loss.item() - expected.item()) < LOSS
    assert set(found) == set(gradients) and all(a.dtype == np.float32 for a in found.values())
    whole = np.concatenate([a.reshape(-1) for a in gradients.values()])
    error = np.concatenate([(found[key] - a).reshape(-1) for key, a in gradients.items()])
    assert np.linalg.norm(error) < GRADIENT * np.linalg.norm(whole)


def test_in_float32_a_model_writes_the_same_tokens_on_a_device():
    model = gpt().eval()
    prompts = [[5, 6, 7], [8, 9]]
    mt.seed(1)
    expected = model.generate_ids(prompts, 10)
    with standin_cupy.installed():
        mt.seed(1)
        assert model.to("cuda").generate_ids(prompts, 10) == expected
        assert model.device == "cuda"


def test_a_model_comes_back_from_a_device_as_it_was():
    model = gpt()
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    with standin_cupy.installed():
        model.to("cuda", "bfloat16").to("cpu", "float32")
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.data, before[name])
    assert model(np.array([[1, 2]])).dtype == np.float32


@pytest.mark.filterwarnings("ignore::minitune.KernelFallback")              # of a kernel that takes no mixture
@pytest.mark.parametrize("first_alone", [False, True])
def test_each_gradient_has_the_dtype_of_its_input_whatever_computes_it(first_alone):
    """All inputs in bfloat16, or the first one alone beside parameters in float32."""
    import ml_dtypes
    for case in CASES:
        dtypes = [np.float32 if first_alone and i else ml_dtypes.bfloat16 for i in range(len(case.floats))]
        tensors = [mt.Tensor(a.astype(dtype), requires_grad=True) for a, dtype in zip(case.floats, dtypes)]
        with mt.emulated_gpu(), np.errstate(all="ignore"):
            y = case.run(*tensors)
            y.backward(np.ones(y.shape, y.dtype))
        assert y.dtype in (ml_dtypes.bfloat16, np.float32) and (y.ndim == 0 or y.dtype == ml_dtypes.bfloat16), case
        assert [t.grad.dtype for t in tensors if t.grad is not None] == dtypes, case


def test_a_head_goes_where_its_backbone_is():
    with standin_cupy.installed():
        bert = models.BERT(models.BERTConfig(V, 16, 1, 2, 32)).to("cuda", "bfloat16")
        head = models.MaskedLanguageModel(bert)
        assert {p.data.__class__.__module__ for p in head.parameters()} == {"cupy"}
        total, count, _ = head.loss(pairs().to("cuda"))["masked_language_model"]
        assert count and np.isfinite(total.item())


@pytest.mark.parametrize("make", [optim.AdamW, lambda p, lr: optim.SGD(p, lr, momentum=0.9)])
def test_an_optimizer_goes_on_where_its_model_has_moved(make):
    model = gpt()
    optimizer = make(list(model.parameters()), lr=1e-3)
    loss_and_gradients(model, rows())
    optimizer.step()
    with standin_cupy.installed():
        loss_and_gradients(model.to("cuda"), rows().to("cuda"))
        optimizer.step()
        assert {type(m).__module__ for slot in optimizer.slots.values() for m in slot.moments} == {"cupy"}
