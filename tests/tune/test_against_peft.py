"""LoRALinear against PEFT's layer: result, gradients, scale, the start of A and B, and the merged weight."""

import numpy as np
import pytest

from minitune import nn, tune
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
