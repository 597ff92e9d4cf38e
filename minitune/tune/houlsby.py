"""Adapters after Houlsby: two small perceptrons in every block, each beside a path of its own, trained in a frozen model."""

from __future__ import annotations

from dataclasses import dataclass

from .. import ops
from ..devices import device_of
from ..nn import LayerNorm, Linear, Module, RMSNorm
from ..ops.checks import check_int
from ..tensor import Tensor
from .freezing import freeze
from .patterns import Patterns, backbone_of, match_linear


class AdapterLinear(Module):
    """y = h + up_project(gelu(down_project(h))) + residual, h = base(x). Two layers C -> m -> C, 2 C m + C + m numbers.

    The paper's skip connection inside: with weights of deviation `std` near 0 it computes nearly what `base` does.
    Source: Houlsby et al. 2019, Parameter-efficient transfer learning for NLP, section 2.1 and figure 2.
    """

    def __init__(self, base: Linear, bottleneck: int, std: float = 0.01) -> None:
        check_int("AdapterConfig", "bottleneck", bottleneck)
        channels, weight = base.weight.shape[0], base.weight
        self.base = base
        self.down_project, self.up_project = (
            Linear(*sizes, std=std).to(device_of(weight.data), weight.dtype)
            for sizes in ((channels, bottleneck), (bottleneck, channels)))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., in), residual (..., C) or None -> (..., C)"""
        h = self.base(x)                                                    # (..., C)
        y = self.up_project(ops.gelu(self.down_project(h)), h)
        return y if residual is None else y + residual

    def merged(self) -> Module:
        """Raises ValueError: no linear layer computes this."""
        raise ValueError("merge: an adapter has a gelu between its two layers, so no linear layer computes what it does. Keep "
                         "it in the model; LoRA and IA3 can be merged")


@dataclass(frozen=True)
class AdapterConfig:
    """Freezes the backbone and puts an adapter after attention's and after the MLP's last layer, before the residual is added.

    A block gains 2 (2 C m + C + m) numbers for m = `bottleneck`. As in the paper the norms train too, unless
    `train_norms=False`, and new heads. `target_modules` are patterns for the layers that write to the residual path. Where a
    model drops out what a block adds, it drops the adapter's result.
    Raises ValueError for a model without such layers, and for one with adapted layers.
    Source: Houlsby et al. 2019, section 2.1; weights start normal with deviation `std`, section 3.6, where the paper also cuts
    them off at two deviations.

    >>> from minitune import models, tune
    >>> gpt = models.GPT(models.GPTConfig(vocab_size=10, block_size=4, n_layer=3, n_head=2, n_embd=16))
    >>> tune.apply(gpt, AdapterConfig(bottleneck=4, train_norms=False)).trainable == 3 * 2 * (2 * 16 * 4 + 16 + 4)
    True
    """

    bottleneck: int = 64
    target_modules: Patterns = ("attention.output", "mlp.down")
    train_norms: bool = True
    std: float = 0.01

    def install(self, model: Module) -> None:
        if any(hasattr(part, "merged") for part in model.modules()):
            raise ValueError("AdapterConfig: the model has adapted layers already. Load the base anew, or merge LoRA and IA3 "
                             "first: tune.merge(model)")
        targets = match_linear(model, self.target_modules, "AdapterConfig")
        adapted = {name: AdapterLinear(base, self.bottleneck, self.std) for name, base in targets.items()}
        freeze(backbone_of(model))
        for name, layer in adapted.items():     # made before the first is put in: an error changes nothing
            model.set_part(name, layer.train(targets[name].training))
        for part in backbone_of(model).modules():
            if self.train_norms and isinstance(part, (LayerNorm, RMSNorm)):
                part.requires_grad_()
