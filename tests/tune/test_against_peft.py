"""LoRA's family against PEFT's layers: result, gradients, first update, scale, the start of A and B, and the merged weight."""

import numpy as np
import pytest

from minitune import nn, tune
from minitune.optim import AdamW
from minitune.tensor import Tensor

torch = pytest.importorskip("torch", reason="PyTorch, on which PEFT runs, is not installed")
peft = pytest.importorskip("peft", reason="PEFT, the oracle, is not installed")

# float64: the same products in another order, some roundings of 1e-16
RTOL, ATOL = 1e-10, 1e-12


class Holder(torch.nn.Module):
    """PEFT adapts layers inside a model."""

    def __init__(self, inputs, outputs, bias):
        super().__init__()
        self.layer = torch.nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)

    def forward(self, x):
        return self.layer(x)


def pair(inputs, outputs, r, alpha, bias=True):
    """The same adapted layer here and there, with random numbers in all of it: (ours, theirs)."""
    draw = np.random.default_rng(0)
    theirs = peft.get_peft_model(Holder(inputs, outputs, bias), peft.LoraConfig(
        r=r, lora_alpha=alpha, target_modules=["layer"], lora_dropout=0.0))
    ours = tune.LoRALinear(nn.Linear(inputs, outputs, bias=bias), r, alpha)
    layer = theirs.base_model.model.layer
    there = {"base.weight": layer.base_layer.weight, "A": layer.lora_A["default"].weight, "B": layer.lora_B["default"].weight}
    there |= {"base.bias": layer.base_layer.bias} if bias else {}
    for name, parameter in ours.named_parameters():
        parameter.data = draw.standard_normal(parameter.shape)
        there[name].data = torch.tensor(parameter.data)
    return ours, theirs, there


@pytest.mark.parametrize("inputs, outputs, r, alpha, bias", [(5, 7, 3, 6, True), (8, 4, 1, 8, False), (6, 6, 6, 1, True)])
def test_result_gradients_and_merged_weight_agree(inputs, outputs, r, alpha, bias):
    ours, theirs, there = pair(inputs, outputs, r, alpha, bias)
    draw = np.random.default_rng(1)
    x, grad = draw.standard_normal((2, 3, inputs)), draw.standard_normal((2, 3, outputs))
    ours.base.requires_grad_(False)
    x_here, x_there = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, expected = ours(x_here), theirs(x_there)
    y.backward(grad)
    expected.backward(torch.tensor(grad))
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), RTOL, ATOL)
    np.testing.assert_allclose(x_here.grad, x_there.grad.numpy(), RTOL, ATOL)
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (there[name].grad is None) == name.startswith("base."), name
        if parameter.grad is not None:
            np.testing.assert_allclose(parameter.grad, there[name].grad.numpy(), RTOL, ATOL, err_msg=name)
    merged = theirs.merge_and_unload().layer
    np.testing.assert_allclose(ours.effective_weight().numpy(), merged.weight.detach().numpy(), RTOL, ATOL)


def test_defaults_and_starts_agree():
    """r = 8 and alpha = 8; A uniform within 1 / sqrt(in), B 0: of 8 x 400 numbers the largest comes close to the bound."""
    config = peft.LoraConfig()
    assert (tune.LoRAConfig().r, tune.LoRAConfig().lora_alpha, tune.LoRAConfig().lora_dropout) == (
        config.r, config.lora_alpha, config.lora_dropout)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(Holder(400, 300, True), peft.LoraConfig(target_modules=["layer"])).base_model.model.layer
    ours = tune.LoRALinear(nn.Linear(400, 300), 8, 8)
    there = theirs.lora_A["default"].weight.detach().numpy()
    assert ours.A.shape == there.shape and ours.B.shape == tuple(theirs.lora_B["default"].weight.shape)
    assert 0.049 < np.abs(there).max() <= 0.0500001 and 0.049 < np.abs(ours.A.data).max() <= 0.05
    np.testing.assert_allclose(ours.A.data.std(), there.std(), rtol=0.03)
    assert not ours.B.data.any() and not theirs.lora_B["default"].weight.any()
    assert ours.scale == theirs.scaling["default"]


# ---- The family: a layer of each kind, after one step of AdamW ----------------------------------------------------------

class Layer(torch.nn.Module):
    """A plain layer of PyTorch inside a model."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


class Model(nn.Module):
    """The same here."""

    def __init__(self, layer):
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def layers(kind, dtype):
    """(ours, theirs) with the same random weights."""
    plain = {"linear": (nn.Linear(6, 5), torch.nn.Linear(6, 5)), "embedding": (nn.Embedding(9, 5), torch.nn.Embedding(9, 5)),
             "convolution": (nn.Conv2d(2, 4, 3, 2, 1), torch.nn.Conv2d(2, 4, 3, 2, 1))}
    (ours, theirs), draw = plain[kind], np.random.default_rng(0)
    for name, p in ours.named_parameters():
        p.data = draw.standard_normal(p.shape).astype(dtype)
        dict(theirs.named_parameters())[name].data = torch.tensor(p.data)
    return Model(ours), Layer(theirs)


def trained_parts(layer):
    """PEFT's trained parameters of a layer by our names."""
    if hasattr(layer, "lora_embedding_A") and len(layer.lora_embedding_A):
        return {"A": layer.lora_embedding_A["default"], "B": layer.lora_embedding_B["default"]}
    parts = {"A": layer.lora_A["default"].weight, "B": layer.lora_B["default"].weight}
    if "default" in layer.lora_magnitude_vector:
        parts["magnitude"] = layer.lora_magnitude_vector["default"].weight
    return parts


def family(kind, config, dtype=np.float64, **settings):
    """(ours, theirs, PEFT's trained parameters by our names): adapted here and there, from the same A and B."""
    ours, theirs = layers(kind, dtype)
    start = ours.layer
    tune.apply(ours, config(r=2, lora_alpha=6, target_modules="layer", use_rslora=settings.get("use_rslora", False)))
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=2, lora_alpha=6, target_modules=["layer"], **settings))
    there = trained_parts(theirs.base_model.model.layer)
    if config is not tune.PiSSAConfig:          # which makes them of the weight
        draw = np.random.default_rng(1)
        for name in "AB":
            part = getattr(ours.layer, name)
            part.data = draw.standard_normal(part.shape).astype(dtype)
            there[name].data = torch.tensor(part.data)
        if "magnitude" in there:                # PEFT takes the lengths when the layer is made, where B is 0; so do we
            np.testing.assert_allclose(ours.layer.magnitude.data, there["magnitude"].detach().numpy(), rtol=1e-6)
            there["magnitude"].data = torch.tensor(ours.layer.magnitude.data)
    return ours, theirs, there, start


def inputs_of(kind, dtype):
    draw = np.random.default_rng(2)
    if kind == "embedding":
        return np.array([[0, 8, 3], [3, 3, 1]])
    return draw.standard_normal((2, 2, 6, 5) if kind == "convolution" else (2, 3, 6)).astype(dtype)


def both(ours, theirs, x, cotangent=None):
    """The two results; with a cotangent, gradients are left in the parameters."""
    y, expected = ours(x if x.dtype.kind == "i" else Tensor(x)), theirs(torch.tensor(x))
    if cotangent is not None:
        y.backward(cotangent)
        expected.backward(torch.tensor(cotangent))
    return y.numpy(), expected.detach().numpy()


METHODS = [("linear", tune.LoRAConfig, {}), ("linear", tune.LoRAConfig, {"use_rslora": True}),
           ("linear", tune.DoRAConfig, {"use_dora": True}), ("linear", tune.DoRAConfig, {"use_dora": True, "use_rslora": True}),
           ("embedding", tune.LoRAConfig, {}), ("convolution", tune.LoRAConfig, {}),
           ("convolution", tune.LoRAConfig, {"use_rslora": True})]


@pytest.mark.parametrize("kind, config, settings", METHODS)
def test_result_first_update_and_merged_layer_of_each_method_agree(kind, config, settings):
    ours, theirs, there, _ = family(kind, config, **settings)
    assert ours.layer.scale == theirs.base_model.model.layer.scaling["default"]
    assert {name for name, p in ours.layer.named_parameters() if p.requires_grad} == set(there)
    x = inputs_of(kind, np.float64)
    cotangent = np.random.default_rng(3).standard_normal(ours(x if kind == "embedding" else Tensor(x)).shape)
    np.testing.assert_allclose(*both(ours, theirs, x, cotangent), RTOL, ATOL)
    here = {name: getattr(ours.layer, name) for name in there}
    for name, part in here.items():
        np.testing.assert_allclose(part.grad, there[name].grad.numpy(), RTOL, ATOL, err_msg=name)
    settings = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    AdamW(here.values(), **settings).step()
    torch.optim.AdamW(there.values(), **settings).step()
    for name, part in here.items():
        # Adam divides each gradient by its own size: the roundings of the smallest gradients stand out
        np.testing.assert_allclose(part.data, there[name].detach().numpy(), rtol=1e-8, atol=1e-10, err_msg=name)
    y, expected = both(ours, theirs, x)
    np.testing.assert_allclose(y, expected, rtol=1e-8, atol=1e-9)
    tune.merge(ours)
    merged = theirs.merge_and_unload().layer
    np.testing.assert_allclose(ours.layer.weight.data, merged.weight.detach().numpy(), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(*both(ours, merged, x), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_pissa_starts_learns_and_becomes_a_lora_as_there(use_rslora):
    """PEFT takes the singular values in float32, which err by 1e-6 of the largest. A pair of singular vectors may have the
    other sign, which A and B share, so a step leads to the same product."""
    ours, theirs, there, start = family("linear", tune.PiSSAConfig, np.float32, init_lora_weights="pissa",
                                        use_rslora=use_rslora)
    layer, tolerance = theirs.base_model.model.layer, {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(ours.layer.base.weight.data, layer.base_layer.weight.detach().numpy(), **tolerance)
    signs = np.sign((ours.layer.A.data * there["A"].detach().numpy()).sum(1))
    np.testing.assert_allclose(signs[:, None] * ours.layer.A.data, there["A"].detach().numpy(), **tolerance)
    np.testing.assert_allclose(signs * ours.layer.B.data, there["B"].detach().numpy(), **tolerance)
    x = inputs_of("linear", np.float32)
    cotangent = np.random.default_rng(3).standard_normal((2, 3, 5)).astype(np.float32)
    np.testing.assert_allclose(*both(ours, theirs, x, cotangent), **tolerance)
    here = {name: getattr(ours.layer, name) for name in there}
    before = ours.layer.effective_weight().numpy()
    AdamW(here.values(), lr=0.1, weight_decay=0.0).step()
    torch.optim.AdamW(there.values(), lr=0.1, weight_decay=0.0).step()
    product = layer.base_layer.weight + layer.scaling["default"] * there["B"] @ there["A"]
    now = ours.layer.effective_weight().numpy()
    np.testing.assert_allclose(now, product.detach().numpy(), **tolerance)
    assert np.abs(now - before).max() > 0.1
    converted = ours.layer.to_lora(start)
    np.testing.assert_allclose(converted.effective_weight().numpy(), now, **tolerance)
    assert converted.base is start and converted.A.shape == (4, 6)


def test_lora_plus_moves_a_and_b_as_there():
    """Of A and B alone: PEFT gives biases and DoRA's lengths B's rate as well, minitune does not."""
    from peft.optimizers import create_loraplus_optimizer

    ours, theirs, there, _ = family("linear", tune.LoRAConfig)
    optimizer = AdamW(tune.lora_plus(ours, ratio=16, weight_decay=0.1), lr=0.01)
    oracle = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=16, loraplus_weight_decay=0.1)
    x, draw = inputs_of("linear", np.float64), np.random.default_rng(3)
    before = ours.layer.B.data.copy()
    for _ in range(3):
        both(ours, theirs, x, draw.standard_normal((2, 3, 5)))
        for each in optimizer, oracle:
            each.step()
            each.zero_grad()
    for name, part in there.items():
        # Adam divides each gradient by its own size: the roundings of the smallest gradients stand out
        np.testing.assert_allclose(getattr(ours.layer, name).data, part.detach().numpy(), rtol=1e-8, atol=1e-10, err_msg=name)
    assert np.abs(ours.layer.B.data - before).max() > 0.2


def test_embeddings_and_convolutions_start_as_there():
    for kind in ("embedding", "convolution"):
        ours, theirs = layers(kind, np.float32)
        tune.apply(ours, tune.LoRAConfig(r=2, target_modules="layer"))
        theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=2, target_modules=["layer"]))
        for name, part in trained_parts(theirs.base_model.model.layer).items():
            mine = getattr(ours.layer, name)
            assert mine.shape == tuple(part.shape) and mine.data.any() == bool(part.any()), (kind, name)
