"""BitFit: only the biases train; the weights, the norms' scales and the embeddings stay."""

from __future__ import annotations

from dataclasses import dataclass

from ..nn import Module
from .freezing import freeze
from .patterns import Patterns, backbone_of, match


@dataclass(frozen=True)
class BitFitConfig:
    """Trains the biases of the backbone's linear layers and norms, and new heads; all else is frozen.

    `biases` are patterns; by default every parameter called "bias". The paper's half as large choice, the biases of queries and
    of the MLP's inner layer, is `["attention.query.bias", "mlp.up.bias"]`. Raises ValueError where the backbone has none, as a
    Llama, and for a model with adapted layers.
    Source: Ben Zaken, Ravfogel and Goldberg 2021, BitFit: simple parameter-efficient fine-tuning for transformer-based masked
    language-models, section 3.

    >>> from minitune import models, tune
    >>> gpt = models.GPT(models.GPTConfig(vocab_size=10, block_size=4, n_layer=1, n_head=2, n_embd=16))
    >>> tune.apply(gpt, BitFitConfig()).trainable == 11 * 16 + 16           # a block has 11 C, the last norm C
    True
    """

    biases: Patterns = "bias"

    def install(self, model: Module) -> None:
        if any(hasattr(part, "merged") for part in model.modules()):
            raise ValueError("BitFitConfig: the model has adapted layers already. Merge them first: tune.merge(model)")
        backbone = backbone_of(model)
        biases = {name: p for name, p in backbone.named_parameters() if name.split(".")[-1] == "bias"}
        if not biases:
            raise ValueError(f"BitFitConfig: {type(backbone).__name__} has no biases. Take IA3Config, which trains as few "
                             "numbers")
        chosen = match(biases, self.biases, "BitFitConfig")
        freeze(backbone)
        for name in chosen:
            biases[name].requires_grad = True
