"""LoRA's family: rsLoRA, LoRA on embeddings and convolutions, DoRA, PiSSA, LoRA+: what each trains, computes, merges to."""

from dataclasses import replace

import numpy as np
import pytest

import minitune as mt
from minitune import models, nn, ops, tune
from minitune.data import Batch, ClassificationSet, ImageBatch
from minitune.optim import SGD, AdamW, Group
from minitune.tensor import Tensor
from minitune.train import Callback, Trainer

ROWS, LABELS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 7]], [1, 0, 1]
METHODS = {"lora": tune.LoRAConfig(r=2, lora_alpha=4), "rslora": tune.LoRAConfig(r=2, lora_alpha=4, use_rslora=True),
           "dora": tune.DoRAConfig(r=2, lora_alpha=4), "pissa": tune.PiSSAConfig(r=2, lora_alpha=4),
           "embeddings": tune.LoRAConfig(r=2, lora_alpha=4, target_modules=["token_embedding", "query"]),
           "nf4": tune.QLoRAConfig(r=2, lora_alpha=4)}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def gpt(dropout=0.0):
    return models.GPT(models.GPTConfig(20, 8, 2, 2, 16, dropout))


def bert():
    return models.BERT(models.BERTConfig(20, 8, 2, 2, 16))


def llama(tied=False):
    return models.Llama(models.LlamaConfig(20, 8, 2, 4, 16, n_kv_head=2, n_inner=24, tied=tied))


MODELS = {"GPT": gpt, "BERT classifier": lambda: models.Classifier(bert(), ["a", "b"]), "Llama": llama,
          "masked BERT": lambda: models.MaskedLanguageModel(bert()), "tied Llama": lambda: llama(tied=True),
          "GPT classifier": lambda: models.Classifier(gpt(), ["a", "b"])}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def batch_of(model):
    if isinstance(model, models.Classifier):
        return Batch.causal([[row] for row in ROWS], LABELS) if model.causal else Batch.bidirectional(ROWS, LABELS)
    if isinstance(model, models.MaskedLanguageModel):
        batch = Batch.bidirectional(ROWS)
        batch.targets = batch.ids
        return batch
    return Batch.causal([[row] for row in ROWS])


def adapted_in(model):
    return {name: part for name, part in model.named_modules() if isinstance(part, tune.LoRALayer)}


def loss_of(model, batch):
    return sum((loss * (weight / count) for loss, count, weight in model.loss(batch).values()), Tensor(0.0))


def train(model, batch, optimizer, steps=3):
    losses = []
    for _ in range(steps):
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def randomise(layer, seed=1):
    """Random float64 numbers in all parameters of a layer, as after training: B no longer 0."""
    draw = np.random.default_rng(seed)
    for parameter in layer.parameters():
        parameter.data = draw.standard_normal(parameter.shape)
    return draw


# ---- What trains ---------------------------------------------------------------------------------------------------

def roberta(layers, heads, channels):
    return models.BERT(models.BERTConfig(50_265, 512, layers, heads, channels, n_segments=1, pooler=False))


def gpt_of(layers, heads, channels):
    return models.GPT(models.GPTConfig(50_257, 2048, layers, heads, channels))


PUBLISHED = [("GPT-3", gpt_of, (96, 96, 12_288), 4, 18_874_368), ("GPT-3", gpt_of, (96, 96, 12_288), 1, 4_718_592),
             ("RoBERTa base", roberta, (12, 12, 768), 8, 294_912), ("RoBERTa large", roberta, (24, 16, 1024), 8, 786_432)]


@pytest.mark.parametrize("name, make, sizes, r, trainable", PUBLISHED)
def test_the_published_counts_are_found_by_shape(name, make, sizes, r, trainable):
    """Hu et al. 2021, tables 2, 4 and 6: query and value, 2 * layers * 2 * C * r numbers. GPT-2's stand in test_lora."""
    layers, _, C = sizes
    with nn.shapes_only():
        model = make(*sizes)
        report = tune.apply(model, tune.LoRAConfig(r=r, target_modules=["query", "value"]))
    assert report.trainable == model.num_parameters(trainable=True) == 2 * layers * 2 * C * r == trainable, name
    assert not any(any(p.data.strides) for p in model.parameters())         # GPT-3 would fill 700 GB: none has memory


@pytest.mark.parametrize("config, extra", [(tune.DoRAConfig, 24 * 2 * 1024), (tune.PiSSAConfig, 0)])
def test_dora_trains_a_number_more_for_each_output_and_pissa_none(config, extra):
    with nn.shapes_only():
        report = tune.apply(roberta(24, 16, 1024), config(r=8, target_modules=["query", "value"]))
    assert report.trainable == 786_432 + extra


def test_embeddings_train_r_of_rows_and_channels_and_convolutions_r_of_filters_and_windows():
    model = gpt()
    assert tune.apply(model, tune.LoRAConfig(r=3, target_modules="token_embedding")).trainable == 3 * (20 + 16)
    cnn = models.CNN(models.CNNConfig(8, 1, (4, 6)))
    report = tune.apply(cnn, tune.LoRAConfig(r=2, target_modules="second"))
    assert report.trainable == sum(2 * (width * 9 + width) for width in (4, 6))


@every_method
@every_model
def test_before_training_it_computes_what_the_base_does(make, method):
    """Bit for bit where B is 0. DoRA divides by the length that it multiplies by, PiSSA adds up what it took apart: each rounds
    some weights by 6e-8. NF4 changes the base itself."""
    model = make()
    before = model(batch_of(model)).numpy()
    tune.apply(model, method)
    after = model(batch_of(model)).numpy()
    if isinstance(method, (tune.DoRAConfig, tune.PiSSAConfig)):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    elif not isinstance(method, tune.QLoRAConfig):
        np.testing.assert_array_equal(after, before)


@every_method
@every_model
def test_training_moves_the_adapters_and_the_head_alone_and_merging_keeps_what_was_learned(make, method):
    model, moving = make(), {"A", "B", "magnitude"}
    batch = batch_of(model)
    tune.apply(model, method)
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    optimizer = AdamW(model, lr=0.02, weight_decay=0.1)
    losses = train(model, batch, optimizer, 6)
    tune.audit(model, optimizer)
    assert losses[-1] < losses[0]
    for name, p in model.named_parameters():
        new = name.rpartition(".")[2] in moving or isinstance(model, (models.Classifier, models.MaskedLanguageModel)) and \
            not name.startswith("backbone.")
        assert new == p.requires_grad == (not np.array_equal(p.data, before[name])), name
    trained, names = model(batch).numpy(), list(adapted_in(model))
    certificate = tune.merge(model, batch)
    assert not adapted_in(model) and list(certificate.layers) == names
    assert certificate.gap < 1e-5 * max(1, certificate.largest)             # some float32 roundings
    np.testing.assert_allclose(model(batch).numpy(), trained, atol=1e-5 * max(1, certificate.largest))
    tune.unmerge(model, certificate)
    np.testing.assert_array_equal(model(batch).numpy(), trained)


@every_method
def test_adapting_an_adapted_model_raises_with_the_repair(method):
    model = gpt()
    tune.apply(model, tune.LoRAConfig(r=2, target_modules="key"))
    with pytest.raises(ValueError, match=rf"^{type(method).__name__}: the model has adapted layers already.*tune\.merge"):
        tune.apply(model, method)


@pytest.mark.parametrize("config", [tune.DoRAConfig, tune.PiSSAConfig, tune.QLoRAConfig])
def test_what_knows_linear_layers_alone_says_so(config):
    model = gpt()
    with pytest.raises(ValueError, match=f"{config.__name__}: 'token_embedding' means no linear layer"):
        tune.apply(model, config(r=2, target_modules=["query", "token_embedding"]))
    assert all(p.requires_grad for p in model.parameters()) and not adapted_in(model)


@pytest.mark.parametrize("config, target, kind", [
    (tune.DoRAConfig, "query", "DoRALinear"), (tune.LoRAConfig, "token_embedding", "LoRAEmbedding"),
    (tune.PiSSAConfig, "down", "PiSSALinear"), (tune.QLoRAConfig, "up", "QLoRALinear")])
def test_a_rank_that_does_not_fit_names_the_layer(config, target, kind):
    with pytest.raises(ValueError, match=rf"{kind}: r must be from 1 to 16 for weight \(\d+, \d+\), got 17"):
        tune.apply(gpt(), config(r=17, target_modules=target))


class At(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, trainer):
        if trainer.step == self.step:
            raise KeyboardInterrupt


@every_method
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(method, tmp_path):
    draw = np.random.default_rng(0)
    documents = [draw.integers(8, 20, draw.integers(2, 8)).tolist() for _ in range(20)]
    data = ClassificationSet(documents, [len(document) % 2 for document in documents], 8)

    def make(out, callbacks=()):
        mt.seed(0)
        model = models.Classifier(gpt(dropout=0.1), ["even", "odd"])
        tune.apply(model, replace(method, lora_dropout=0.1))
        return Trainer(model, data, steps=6, lr=1e-2, batch_size=4, checkpoint_every=1, out=out, optimizer=AdamW(
            tune.lora_plus(model, 4)), callbacks=callbacks, progress=False)

    whole = make(tmp_path / "whole")
    whole.fit()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", [At(3)]).fit()
    again = make(tmp_path / "cut")
    again.fit(resume=True)
    arrays, expected = again.model.state_dict(), whole.model.state_dict()
    assert all(arrays[name].tobytes() == expected[name].tobytes() for name in expected) and list(arrays) == list(expected)


@every_method
def test_layers_work_beside_activations_in_bfloat16(method):
    pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")
    model = gpt()
    expected = model(batch_of(model)).numpy()
    tune.apply(model, method)
    model.to(dtype="bfloat16")
    logits = model(batch_of(model))
    assert str(logits.dtype) == "bfloat16"
    if not isinstance(method, tune.QLoRAConfig):
        np.testing.assert_allclose(logits.numpy(), expected, atol=0.02)     # three digits of numbers up to 0.5
    loss_of(model, batch_of(model)).backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad and p.dtype == np.float32, name


# ---- The scale -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("r, use_rslora, scale", [(4, False, 2.0), (4, True, 4.0), (2, True, 8 / 2**0.5), (1, True, 8.0)])
def test_rslora_divides_by_the_root_of_the_rank(r, use_rslora, scale):
    model = gpt()
    tune.apply(model, tune.LoRAConfig(r=r, lora_alpha=8, use_rslora=use_rslora))
    assert {layer.scale for layer in adapted_in(model).values()} == {scale}
    assert all(layer.use_rslora == use_rslora for layer in adapted_in(model).values())


@pytest.mark.parametrize("p, q", [(1, 1), (4, 0.5), (0.25, 8), (2, 2)])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_adam_without_eps_cannot_tell_scaled_starts_from_scaled_rates(p, q, use_rslora):
    """Schulman 2025, LoRA Without Regret: alpha / (p q), A's start times p, B's times q and rates p for A and q for B leave
    training unchanged, with eps = 0.

    B starts as after a step, not at 0, where A's first gradient, and with it 0 / (sqrt(0) + 0), has no meaning. p and q are
    powers of two, so every product is exact and the weights agree to the last bit.
    """
    def trained(p, q):
        mt.seed(1)
        model = models.Classifier(gpt(), ["no", "yes"])
        tune.apply(model, tune.LoRAConfig(2, 4 / (p * q), ["query", "value", "up"], use_rslora=use_rslora))
        layers, draw = list(adapted_in(model).values()), np.random.default_rng(0)
        for layer in layers:
            layer.A.data = layer.A.data * np.float32(p)
            layer.B.data = (0.1 * draw.standard_normal(layer.B.shape)).astype(np.float32) * np.float32(q)
        start = [layer.effective_weight().numpy() for layer in layers]
        optimizer = AdamW([Group([layer.A for layer in layers], rate=p), Group([layer.B for layer in layers], rate=q)],
                          lr=2.0**-6, eps=0.0)
        losses = train(model, batch_of(model), optimizer, 5)
        return losses, start, [layer.effective_weight().numpy() for layer in layers]

    (plain_losses, start, plain), (losses, _, scaled) = trained(1, 1), trained(p, q)
    assert losses == plain_losses and losses[-1] < losses[0]
    for before, a, b in zip(start, plain, scaled, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - before).max() > 0.01


# ---- Embeddings ----------------------------------------------------------------------------------------------------

def embedding_layer():
    layer = tune.LoRAEmbedding(nn.Embedding(7, 5), r=3, lora_alpha=6)
    return layer, randomise(layer)


def test_an_adapted_embedding_gives_rows_of_the_sum():
    layer, _ = embedding_layer()
    ids = np.array([[0, 6, 3], [3, 3, 1]])
    table = layer.base.weight.data + 2 * (layer.B.data @ layer.A.data).T
    np.testing.assert_allclose(layer.effective_weight().numpy(), table, rtol=1e-12)
    np.testing.assert_allclose(layer(ids).numpy(), table[ids], rtol=1e-12)
    merged = layer.merged()
    assert type(merged) is nn.Embedding
    np.testing.assert_allclose(merged.weight.data, table, rtol=1e-12)


def test_gradients_of_an_adapted_embedding_agree_with_central_differences():
    layer, _ = embedding_layer()
    ids = np.array([[0, 6, 3], [3, 3, 1]])

    def put(A, B, weight):
        layer.A, layer.B, layer.base.weight = A, B, weight

    given = layer.A.data, layer.B.data, layer.base.weight.data
    mt.gradcheck(lambda *parts: (put(*parts), layer(ids))[1], *given)
    mt.gradcheck(lambda *parts: (put(*parts), layer.effective_weight())[1], *given)


def test_an_adapted_embedding_starts_with_a_zero_and_b_normal():
    layer = tune.LoRAEmbedding(nn.Embedding(400, 300), r=8, lora_alpha=8)
    assert (layer.A.shape, layer.B.shape) == ((8, 400), (300, 8))
    assert not layer.A.data.any() and abs(layer.B.data.std() - 1) < 0.05 and abs(layer.B.data.mean()) < 0.05


def test_a_head_tied_to_an_adapted_embedding_multiplies_with_the_sum_and_learns_from_both_ends():
    model = gpt()
    tune.apply(model, tune.LoRAConfig(r=2, lora_alpha=4, target_modules="token_embedding"))
    layer = model.token_embedding
    layer.A.data = np.random.default_rng(0).standard_normal(layer.A.shape).astype(np.float32)
    batch = batch_of(model)
    table = layer.base.weight.data + 2 * (layer.B.data @ layer.A.data).T
    np.testing.assert_allclose(model(batch).numpy(), model.features(batch).numpy() @ table.T, rtol=1e-4, atol=1e-4)
    loss_of(model, batch).backward()
    assert layer.A.grad[:, 19].any()            # the last token is in no text: its gradient comes from the logits alone
    tune.merge(model, batch)
    assert model.output_weight() is model.token_embedding.weight
    np.testing.assert_allclose(model.token_embedding.weight.data, table, rtol=1e-5, atol=1e-6)


def test_a_tied_model_with_an_adapted_embedding_is_merged_and_saved_as_one(tmp_path):
    model = gpt()
    tune.apply(model, tune.LoRAConfig(r=2, target_modules=["token_embedding", "query"]))
    train(model, batch_of(model), AdamW(model, lr=0.05))
    expected = model(batch_of(model)).numpy()
    assert tune.merge(model, batch_of(model)).gap < 1e-5
    model.save_pretrained(tmp_path)
    np.testing.assert_allclose(models.from_pretrained(tmp_path)(batch_of(model)).numpy(), expected, atol=1e-5)


def test_the_embedding_of_an_awd_lstm_is_adapted_and_merged():
    model = models.Classifier(models.AWDLSTM(models.AWDLSTMConfig(20, n_embd=6, n_hidden=7, n_layer=2)), ["a", "b"]).eval()
    batch = batch_of(model)
    tune.apply(model, tune.LoRAConfig(r=2, target_modules="token_embedding"))
    losses = train(model, batch, AdamW(model, lr=0.05), 5)
    assert losses[-1] < losses[0] and tune.merge(model, batch).gap < 1e-5


@pytest.mark.parametrize("patterns, kinds", [
    ("all-linear", {"LoRALinear": 12}), ("blocks.*", {"LoRALinear": 12}), ("token_embedding", {"LoRAEmbedding": 1}),
    (["token_embedding", "query"], {"LoRAEmbedding": 1, "LoRALinear": 2}), (".*_embedding", {"LoRAEmbedding": 2})])
def test_embeddings_are_meant_by_name_alone(patterns, kinds):
    model = gpt()
    tune.apply(model, tune.LoRAConfig(r=2, target_modules=patterns))
    found = [type(layer).__name__ for layer in adapted_in(model).values()]
    assert {kind: found.count(kind) for kind in set(found)} == kinds


# ---- Convolutions --------------------------------------------------------------------------------------------------

def convolution(stride=2, padding=1, dropout=0.0, bias=True):
    layer = tune.LoRAConv2d(nn.Conv2d(2, 4, 3, stride, padding, bias=bias), r=3, lora_alpha=6, lora_dropout=dropout)
    return layer, randomise(layer).standard_normal((2, 2, 6, 5))


@pytest.mark.parametrize("stride, padding, bias", [(1, 0, True), (2, 1, False), (1, 2, True)])
def test_an_adapted_convolution_is_one_of_the_summed_filters(stride, padding, bias):
    layer, x = convolution(stride, padding, bias=bias)
    assert (layer.A.shape, layer.B.shape) == ((3, 2, 3, 3), (4, 3, 1, 1))
    filters = layer.base.weight.data + 2 * np.einsum("fr,rchw->fchw", layer.B.data[:, :, 0, 0], layer.A.data)
    expected = ops.conv2d(Tensor(x), Tensor(filters), layer.base.bias, stride, padding).numpy()
    np.testing.assert_allclose(layer.effective_weight().numpy(), filters, rtol=1e-12)
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), expected, rtol=1e-10, atol=1e-12)
    merged = layer.merged()
    assert type(merged) is nn.Conv2d and (merged.stride, merged.padding, merged.bias) == (stride, padding, layer.base.bias)
    np.testing.assert_allclose(merged(Tensor(x)).numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_of_an_adapted_convolution_agree_with_central_differences(dropout):
    layer, x = convolution(dropout=dropout)

    def run(x, A, B, weight, bias):
        mt.seed(3)
        layer.A, layer.B, layer.base.weight, layer.base.bias = A, B, weight, bias
        return layer(x)

    given = layer.A.data, layer.B.data, layer.base.weight.data, layer.base.bias.data
    mt.gradcheck(run, x, *given)
    mt.gradcheck(lambda *parts: (run(Tensor(x), *parts), layer.effective_weight())[1], *given)


def test_a_convolution_starts_as_its_base():
    layer = tune.LoRAConv2d(nn.Conv2d(8, 20, 5), r=4, lora_alpha=8)
    bound = 1 / (8 * 25) ** 0.5
    assert not layer.B.data.any() and 0.98 * bound < np.abs(layer.A.data).max() <= bound


def test_the_convolutions_of_a_cnn_and_a_vit_are_adapted_by_name_trained_and_merged():
    images = ImageBatch.of_images(np.random.default_rng(0).random((6, 1, 8, 8), np.float32))
    images.targets = np.array([0, 1, 0, 1, 1, 0])
    for backbone, patterns, count in ((models.CNN(models.CNNConfig(8, 1, (4, 6))), ["first", "second"], 4),
                                      (models.ViT(models.ViTConfig(8, 4, 1, 2, 8, n_channels=1)), "patch_embedding", 1)):
        model = models.Classifier(backbone, ["a", "b"])
        before = model(images).numpy()
        tune.apply(model, tune.LoRAConfig(r=1, target_modules=patterns))
        np.testing.assert_array_equal(model(images).numpy(), before)
        assert [type(layer) for layer in adapted_in(model).values()] == count * [tune.LoRAConv2d]
        losses = train(model, images, AdamW(model, lr=0.02), 6)
        assert losses[-1] < losses[0] and tune.merge(model, images).gap < 1e-5


# ---- DoRA ----------------------------------------------------------------------------------------------------------

def dora_layer(dropout=0.0, bias=True):
    layer = tune.DoRALinear(nn.Linear(5, 4, bias=bias), r=3, lora_alpha=6, lora_dropout=dropout)
    draw = randomise(layer)
    return layer, draw.standard_normal((2, 3, 5)), draw.standard_normal((2, 3, 4))


@pytest.mark.parametrize("bias", [True, False])
def test_dora_turns_rows_by_lora_and_sets_their_lengths(bias):
    layer, x, residual = dora_layer(bias=bias)
    V = layer.base.weight.data + 2 * layer.B.data @ layer.A.data
    W = layer.magnitude.data[:, None] * V / np.linalg.norm(V, axis=1, keepdims=True)
    expected = x @ W.T + (layer.base.bias.data if bias else 0)
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(layer(Tensor(x), Tensor(residual)).numpy(), expected + residual, rtol=1e-12)
    np.testing.assert_allclose(layer.effective_weight().numpy(), W, rtol=1e-12)
    np.testing.assert_allclose(layer.merged().weight.data, W, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(W, axis=1), np.abs(layer.magnitude.data), rtol=1e-12)


def test_doras_gradients_are_those_with_the_length_as_a_constant(monkeypatch):
    """Central differences move |V| with A and B, the paper's gradient does not: for these the length is held."""
    for dropout in (0.0, 0.5):
        layer, x, residual = dora_layer(dropout)

        def run(x, residual, bias, magnitude, layer=layer):
            mt.seed(3)
            layer.base.bias, layer.magnitude = bias, magnitude
            return layer(x, residual)

        mt.gradcheck(run, x, residual, layer.base.bias.data, layer.magnitude.data)
        A, B = layer.A.data, layer.B.data
        length = np.linalg.norm(layer.base.weight.data + 2 * B @ A, axis=1)
        parts = Tensor(A, requires_grad=True), Tensor(B, requires_grad=True)

        def of_updates(A, B, layer=layer, x=x):
            mt.seed(3)
            layer.A, layer.B = A, B
            return layer(Tensor(x))

        y = of_updates(*parts)
        cotangent = np.random.default_rng(2).standard_normal(y.shape)
        y.backward(cotangent)
        with monkeypatch.context() as held:
            held.setattr(tune.DoRALinear, "gain", lambda layer, length=length: layer.magnitude * (1 / length))
            mt.gradcheck(of_updates, A, B)
            again = Tensor(A, requires_grad=True), Tensor(B, requires_grad=True)
            of_updates(*again).backward(cotangent)
        for part, held_part in zip(parts, again, strict=True):
            np.testing.assert_allclose(part.grad, held_part.grad, rtol=1e-12)


def test_doras_update_reads_the_dropped_input_and_the_base_the_whole_one():
    layer, x, residual = dora_layer(dropout=0.5)
    mt.seed(3)
    y = layer(Tensor(x), Tensor(residual)).numpy()
    mt.seed(3)
    dropped = nn.Dropout(0.5)(Tensor(x)).numpy()
    W, b = layer.base.weight.data, layer.base.bias.data
    change = layer.effective_weight().numpy() - W
    assert (dropped == 0).any()
    np.testing.assert_allclose(y, x @ W.T + b + residual + dropped @ change.T, rtol=1e-10)
    layer.eval()
    plain, _, _ = dora_layer()
    np.testing.assert_array_equal(layer(Tensor(x)).numpy(), plain(Tensor(x)).numpy())


def test_dora_starts_with_the_lengths_of_its_base_and_leaves_a_row_of_zeros_alone():
    base = nn.Linear(6, 4)
    base.weight.data[2] = 0
    layer = tune.DoRALinear(base, r=2, lora_alpha=4)
    np.testing.assert_allclose(layer.magnitude.data, np.linalg.norm(base.weight.data, axis=1), rtol=1e-6)
    assert not layer.magnitude.decays and layer.magnitude.dtype == np.float32
    layer.B.data += 1
    y = layer(Tensor(np.ones((1, 6), np.float32)))
    y.sum().backward()
    assert y.numpy()[0, 2] == 0 and np.isfinite(layer.A.grad).all() and np.isfinite(layer.magnitude.grad).all()
    assert not layer.merged().weight.data[2].any()


# ---- PiSSA ---------------------------------------------------------------------------------------------------------

def test_pissa_trains_the_largest_singular_values_and_freezes_the_rest():
    base = nn.Linear(9, 6)
    base.weight.data = np.random.default_rng(0).standard_normal((6, 9))
    layer = tune.PiSSALinear(base, r=2, lora_alpha=4)
    assert layer.scale == 2
    W, update = base.weight.data, 2 * layer.B.data @ layer.A.data
    np.testing.assert_allclose(layer.base.weight.data + update, W, rtol=1e-12, atol=1e-12)
    values = np.linalg.svd(W, compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(update, compute_uv=False)[:3], [*values[:2], 0], atol=1e-10)
    np.testing.assert_allclose(np.linalg.svd(layer.base.weight.data, compute_uv=False)[:4], values[2:], rtol=1e-10)
    assert np.isclose(np.linalg.norm(layer.A.data), np.linalg.norm(layer.B.data))       # each has half of S
    assert not layer.base.weight.requires_grad and layer.A.requires_grad and layer.base.bias is base.bias


def test_pissa_needs_a_scale():
    model = gpt()
    with pytest.raises(ValueError, match="PiSSALinear: lora_alpha must be above 0, for A and B start as W / scale, got 0"):
        tune.apply(model, tune.PiSSAConfig(r=2, lora_alpha=0))
    assert not adapted_in(model) and all(p.requires_grad for p in model.parameters())


def test_pissa_leaves_a_model_that_shares_its_weights_as_it_was():
    base = gpt()
    batch = batch_of(base)
    before, logits = {name: p.data.tobytes() for name, p in base.named_parameters()}, base(batch).numpy()
    model = models.Classifier(base, ["a", "b"])
    tune.apply(model, tune.PiSSAConfig(r=2))
    train(model, batch_of(model), AdamW(model, lr=0.05, weight_decay=0.1))
    assert {name: p.data.tobytes() for name, p in base.named_parameters()} == before
    np.testing.assert_array_equal(base(batch).numpy(), logits)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_trained_pissa_becomes_a_lora_of_twice_the_rank_on_the_original_base(use_rslora):
    base = gpt()
    model = models.Classifier(base, ["a", "b"])
    tune.apply(model, tune.PiSSAConfig(r=3, lora_alpha=6, target_modules=["query", "down"], use_rslora=use_rslora))
    train(model, batch_of(model), AdamW(model, lr=0.05))
    expected = model(batch_of(model)).numpy()
    tune.pissa_to_lora(model, base)
    layers = adapted_in(model)
    assert len(layers) == 4
    for name, layer in layers.items():
        assert type(layer) is tune.LoRALinear and layer.A.shape[0] == layer.B.shape[1] == 6
        assert layer.base.weight is dict(base.named_parameters())[f"{name.removeprefix('backbone.')}.weight"]
        assert not layer.base.weight.requires_grad
    # the sum of two float32 products and the base, where W_rest was rounded once before: some roundings of logits about 0.1
    np.testing.assert_allclose(model(batch_of(model)).numpy(), expected, atol=1e-6)
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"A", "B", "weight"}
    tune.merge(model, batch_of(model))
    np.testing.assert_allclose(model(batch_of(model)).numpy(), expected, atol=1e-6)


def test_pissa_is_not_put_on_another_base():
    model, base = gpt(), gpt()
    with pytest.raises(ValueError, match="pissa_to_lora: the model has no PiSSA layers"):
        tune.pissa_to_lora(model, base)
    tune.apply(model, tune.PiSSAConfig(r=2, target_modules="query"))
    with pytest.raises(ValueError, match=r"expected the layer as it was before PiSSA, of shape \(16, 16\), got another weight"):
        tune.pissa_to_lora(model, base)
    with pytest.raises(ValueError, match=r"the original has no plain linear layer at blocks\.0\.attention\.query"):
        tune.pissa_to_lora(model, model)
    assert all(type(layer) is tune.PiSSALinear for layer in adapted_in(model).values())


# ---- LoRA+ ---------------------------------------------------------------------------------------------------------

def test_lora_plus_lets_b_learn_faster_than_all_else():
    model = models.Classifier(gpt(), ["a", "b"])
    tune.apply(model, tune.DoRAConfig(r=2, target_modules="query"))
    groups = tune.lora_plus(model, ratio=8, weight_decay=0.3)
    settings = {id(p): (group.rate, group.weight_decay) for group in groups for p in group.parameters}
    assert len(settings) == sum(len(group.parameters) for group in groups) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        assert settings[id(p)] == (8 if name.endswith(".B") else 1, 0.3 if p.decays else 0), name


def test_lora_plus_leaves_both_factors_of_an_embedding_at_the_rate_of_the_rest():
    model = gpt()
    tune.apply(model, tune.LoRAConfig(r=2, target_modules=["token_embedding", "query"]))
    rates = {id(p): group.rate for group in tune.lora_plus(model, ratio=8) for p in group.parameters}
    assert {rates[id(p)] for p in (model.token_embedding.A, model.token_embedding.B)} == {1.0}
    assert rates[id(model.blocks[0].attention.query.B)] == 8.0


def test_lora_plus_moves_b_by_the_ratio_from_the_same_gradient():
    def moved(ratio):
        mt.seed(0)
        model = gpt()
        tune.apply(model, tune.LoRAConfig(r=2, target_modules=["query", "token_embedding"]))
        before = {name: p.data.copy() for name, p in model.named_parameters()}
        train(model, batch_of(model), SGD(tune.lora_plus(model, ratio, 0.0), lr=2.0**-4), 1)
        return {name: p.data - before[name] for name, p in model.named_parameters() if p.requires_grad}

    slow, fast = moved(1), moved(16)
    for name in slow:                           # from B = 0 the difference is the step itself: powers of two, the same bits
        ratio = 16 if name.endswith("query.B") else 1
        np.testing.assert_array_equal(fast[name], ratio * slow[name], err_msg=name)
    assert slow["blocks.0.attention.query.B"].any() and slow["token_embedding.A"].any()


@pytest.mark.parametrize("ratio", [0.5, 0, -2, float("nan")])
def test_lora_plus_says_what_is_wrong(ratio):
    model = gpt()
    with pytest.raises(ValueError, match="lora_plus: the model has no LoRA layers"):
        tune.lora_plus(model)
    tune.apply(model, tune.LoRAConfig(r=2))
    with pytest.raises(ValueError, match="lora_plus: ratio must be at least 1"):
        tune.lora_plus(model, ratio)
