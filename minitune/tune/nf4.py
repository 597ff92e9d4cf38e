"""NF4: frozen weights in four bits, under LoRA (QLoRA). A reference to be read: it shows the numbers, and saves the memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..backend import matmul as product
from ..devices import Array, array_module, device_of, to_device
from ..nn import Linear, Module, Parameter
from ..tensor import Tensor, apply
from .lora import LoRAConfig, LoRALinear
from .pissa import weight_fingerprint

BLOCK, SCALE_BLOCK = 64, 256                    # weights that share a scale, scales that share one in their turn


@cache
def nf4_levels() -> np.ndarray:
    """The 16 numbers of a code of four bits, from -1 to 1: quantiles of the standard normal distribution, over the largest.

    Eight probabilities at equal distance from d to 1/2 give the lower half, nine from 1/2 to 1 - d the upper one; the 0 that
    both have counts once. d is halfway between 1/30 and 1/32, half a step of 15 and of 16 equal parts.
    Source: Dettmers et al. 2023, QLoRA, section 3 and appendix E; d is of its published code.

    >>> nf4_levels()[[0, 1, 7, 8, 15]].round(4)
    array([-1.    , -0.6962,  0.    ,  0.0796,  1.    ], dtype=float32)
    """
    d, quantile = (1 / 30 + 1 / 32) / 2, NormalDist().inv_cdf
    lower, upper = np.linspace(d, 0.5, 8), np.linspace(0.5, 1 - d, 9)
    levels = np.array([quantile(p) for p in [*lower, *upper[1:]]])
    levels[7] = 0                               # the quantile of 1/2, without its rounding
    return (levels / levels[-1]).astype(np.float32)


@cache
def float8_levels() -> np.ndarray:
    """The 255 numbers of a float of 8 bits, sign, 4 of exponent and 3 of fraction, over the largest.

    Source: Micikevicius et al. 2022, FP8 formats for deep learning, section 3, E4M3, with all its codes for numbers.
    """
    exponent, fraction = np.divmod(np.arange(128), 8)
    positive = np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
    return (np.concatenate([-positive[:0:-1], positive]) / positive[-1]).astype(np.float32)


def quantize(a: Array, levels: np.ndarray, block: int) -> tuple[Array, Array]:
    """(codes, scales) of a (N,): a number is near levels[code] times the scale of its block, the block's largest size.

    Shapes: codes (N,) uint8, scales (ceil(N / block),) float32. A block of zeros has scale 0.
    Source: Dettmers et al. 2023, QLoRA, section 2, block-wise k-bit quantization.
    """
    xp, middles = array_module(a), (levels[1:] + levels[:-1]) / 2
    rows = xp.pad(a.astype(np.float32), (0, -len(a) % block)).reshape(-1, block)
    scales = abs(rows).max(1)                                               # (blocks,)
    normal = rows / xp.where(scales == 0, 1, scales)[:, None]               # (blocks, block), from -1 to 1
    return xp.searchsorted(xp.asarray(middles), normal.reshape(-1)[:len(a)]).astype(np.uint8), scales


def dequantize(codes: Array, scales: Array, levels: np.ndarray, block: int) -> Array:
    """The numbers (N,) that the codes stand for, float32."""
    xp = array_module(codes)
    return xp.asarray(levels)[codes] * xp.repeat(scales, block)[:len(codes)]


class NF4Linear(Module):
    """y = x W^T + bias + residual with a frozen W (out, in) of four bits a number, and a scale for each 64 of them in a row.

    The scales less their mean are quantised too, to floats of 8 bits with a float32 scale for each 256: double quantisation,
    4.127 bits a weight. Without `use_double_quant` the scales stay float32, 4.5 bits. W is made anew from the codes where it is
    used, in the backward pass once more, and not kept between. The codes are no Parameters: no report counts them and no
    checkpoint holds them, so a model is quantised from the same base before its adapters are loaded: `made_of` is the
    fingerprint of W as it was, which checkpoints and folders of adapters compare. They take `nbytes`.
    Source: Dettmers et al. 2023, QLoRA, section 3 and equations 5 and 6.
    """

    made_of: str = ""

    def __init__(self, base: Linear, use_double_quant: bool = True) -> None:
        self.shape, self.bias, xp = base.weight.shape, base.bias, array_module(base.weight.data)
        if any(base.weight.data.strides):       # else a shape without memory
            self.made_of = weight_fingerprint(base.weight.data)
        codes, scales = quantize(base.weight.data.reshape(-1), nf4_levels(), BLOCK)
        pairs = xp.pad(codes, (0, len(codes) % 2)).reshape(-1, 2)
        self.codes = [pairs[:, 0] << 4 | pairs[:, 1], scales]               # two codes of a weight a byte
        if use_double_quant:
            mean = scales.mean(keepdims=True)
            self.codes[1:] = [*quantize(scales - mean, float8_levels(), SCALE_BLOCK), mean]

    @property
    def nbytes(self) -> int:
        """The bytes that W takes."""
        return sum(a.nbytes for a in self.codes)

    @property
    def weight(self) -> Tensor:
        """W (out, in), made from the codes, where they are."""
        return Tensor(self.dequantized(device_of(self.codes[0])))

    def dequantized(self, device: str) -> Array:
        """W (out, in) in float32 on "cpu" or "cuda", where the codes are kept from then on."""
        self.codes = [to_device(a, device) for a in self.codes]
        packed, scales, *double = self.codes
        if double:
            scales = dequantize(scales, double[0], float8_levels(), SCALE_BLOCK) + double[1]
        codes = array_module(packed).stack([packed >> 4, packed & 15], 1).reshape(-1)[:prod(self.shape)]
        return dequantize(codes, scales, nf4_levels(), BLOCK).reshape(self.shape)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., in), residual (..., out) or None -> (..., out)"""
        return apply(nf4_linear_forward, nf4_linear_backward, x, self.bias, residual, weight=self.dequantized)


def quantized_count(model: Module) -> int:
    """How many frozen weights are kept in four bits, which `num_parameters` does not count."""
    return sum(prod(part.shape) for part in model.modules() if isinstance(part, NF4Linear))


def nf4_linear_forward(x, bias, residual, *, weight, needs):
    y = product(x, weight(device_of(x)).T)                                  # (..., out)
    if bias is not None:
        y += bias
    if residual is not None:
        y += residual
    return y, (weight if needs.x else None,)                                # what makes W, not W


def nf4_linear_backward(grad, weight, *, needs):
    grad_x = product(grad, weight(device_of(grad))) if needs.x else None
    grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if needs.bias else None
    return grad_x, grad_bias, grad if needs.residual else None


class QLoRALinear(LoRALinear):
    """y = base(x) + scale * (x A^T) B^T on a base in four bits, an `NF4Linear` made of the given layer.

    Merged, it becomes a plain Linear of the weight that it computed with, in float32 again.
    Source: Dettmers et al. 2023, QLoRA, equation 5.
    """

    def __init__(self, base: Linear, r: int, lora_alpha: float, lora_dropout: float = 0.0, use_rslora: bool = False,
                 use_double_quant: bool = True) -> None:
        super().__init__(base, r, lora_alpha, lora_dropout, use_rslora)
        self.base = NF4Linear(base, use_double_quant)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., in), residual (..., out) or None -> (..., out)"""
        return self.base(x, residual) + ops.linear(ops.linear(self.dropout(x), self.A), self.B) * self.scale

    def merged(self) -> Module:
        """The plain layer that computes the same: summed in float64, rounded once to float32."""
        layer = Linear.__new__(Linear)          # no random weights are drawn for a layer that is about to be filled
        layer.weight, layer.bias = Parameter((self.base.weight.data + self.delta()).astype(np.float32), True), self.base.bias
        layer.weight.requires_grad = False
        return layer


@dataclass(frozen=True)
class QLoRAConfig(LoRAConfig):
    """LoRA by `QLoRALinear`s: the linear layers that `target_modules` mean are frozen in four bits, as NF4.

    `use_double_quant` quantises the scales too. The other fields are those of LoRAConfig; linear layers alone are adapted.
    """

    use_double_quant: bool = True
    layers: ClassVar[dict[type[Module], Any]] = {Linear: QLoRALinear}

    def layer(self, base: Any) -> QLoRALinear:
        """The layer that stands in the place of `base`."""
        return QLoRALinear(base, self.r, self.lora_alpha, self.lora_dropout, self.use_rslora, self.use_double_quant)
