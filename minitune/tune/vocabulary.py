"""Another vocabulary for a trained language model: tokens that both have keep their rows, new ones start from the mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..backend import Array, array_module
from ..data import Tokenizer
from ..nn import Embedding, Linear, Parameter
from .patterns import backbone_of


@dataclass(frozen=True)
class Remapping:
    """What `remap_vocabulary` did: `kept` tokens of `size` have the row they had, the others the mean of `before` rows."""

    kept: int
    size: int
    before: int

    def __str__(self) -> str:
        return (f"{self.kept:,} of {self.size:,} tokens ({self.kept / self.size:.1%}) keep their rows, "
                f"{self.size - self.kept:,} start from the mean of {self.before:,}")


def remap_vocabulary(model: Any, tokenizer: Tokenizer) -> Remapping:
    """Gives a trained model the vocabulary of `tokenizer`, in place, and says how many tokens it knew.

    new row of w = old row of w where a token w is spelt the same in both, else the mean of all tokens' old rows:
    in the token embedding (V, C), in an output matrix of its own (V, C), and in the bias of the logits (V,), as AWD-LSTM's and
    the masked language model's. `config.vocab_size` and `model.tokenizer` follow. The model is a backbone or a head on one.

    The parameters are new ones, trained or frozen as those before: an optimizer is made afterwards, and a model that shared
    them (a head shares its backbone's) keeps the old.
    Raises TypeError for what is no Tokenizer and for a model that reads no tokens; ValueError for a model without a tokenizer
    or with adapters on its output matrix, where the two tokenizers read in opposite directions, and where they share no token
    but special ones. Nothing is changed then.
    Source: Howard and Ruder 2018, Universal language model fine-tuning for text classification, and its published code.
    """
    backbone: Any = backbone_of(model)
    _check(model, tokenizer)
    old, new = _tokenizer(model).vocabulary, tokenizer.vocabulary
    before = len(backbone.token_embedding.weight.data)
    rows = {token: row for token, row in old.items() if row < before}       # a special token added later may have none
    shared = [token for token in new if token in rows]
    if not {new[token] for token in shared}.difference(tokenizer.special):
        raise ValueError("remap_vocabulary: the two vocabularies share no token but special ones. Is the new one spelt by "
                         "other rules, as BERT's beside GPT-2's?")
    size = max(new.values()) + 1
    targets, sources = (np.array([ids[token] for token in shared], int) for ids in (new, rows))
    for owner, name in _parts(model):
        parameter = getattr(owner, name)
        made = Parameter(_remapped(parameter.data, sorted(rows.values()), targets, sources, size), parameter.decays)
        made.requires_grad = parameter.requires_grad
        setattr(owner, name, made)
    backbone.config, backbone.special_ids = replace(backbone.config, vocab_size=size), {}
    for owner in (backbone, model):
        owner.tokenizer = tokenizer
    return Remapping(len(shared), len(new), len(rows))


def _remapped(old: Array, known: list[int], targets: np.ndarray, sources: np.ndarray, size: int) -> Array:
    """(size, ...): the old rows `sources` at `targets`, elsewhere the mean of the old rows `known`."""
    xp = array_module(old)
    mean = old[xp.asarray(known)].mean(0, dtype=np.float64).astype(old.dtype)
    new = xp.ascontiguousarray(xp.broadcast_to(mean, (size, *old.shape[1:])))
    new[xp.asarray(targets)] = old[xp.asarray(sources)]
    return new


def _parts(model: Any) -> Iterator[tuple[Any, str]]:
    """(owner, name) of each Parameter with a row for each token."""
    backbone = backbone_of(model)
    yield backbone.token_embedding, "weight"
    if head := getattr(backbone, "lm_head", None):
        yield from ((head, name) for name in ("weight", "bias") if getattr(head, name) is not None)
    for owner in [backbone] if backbone is model else [backbone, model]:        # AWD-LSTM's bias, the masked language model's
        if isinstance(getattr(owner, "bias", None), Parameter):
            yield owner, "bias"


def _tokenizer(model: Any) -> Any:
    """The tokenizer that the model's rows belong to."""
    return getattr(model, "tokenizer", None) or getattr(backbone_of(model), "tokenizer", None)


def _check(model: Any, tokenizer: Any) -> None:
    """Raises what `remap_vocabulary` says of its arguments."""
    backbone, old = backbone_of(model), _tokenizer(model)
    if not isinstance(tokenizer, Tokenizer):
        raise TypeError(f"remap_vocabulary: expected a Tokenizer, got {type(tokenizer).__name__}. Tokenizer.load reads a "
                        "tokenizer.json, Tokenizer.train makes one of texts")
    if not hasattr(backbone, "token_embedding"):
        raise TypeError(f"remap_vocabulary: expected a model of tokens, got {type(model).__name__}")
    if old is None:
        raise ValueError("remap_vocabulary: the model has no tokenizer, so nothing tells which token a row stands for. Set "
                         "model.tokenizer to the one it was trained with")
    if old.backward != tokenizer.backward:
        raise ValueError(f"remap_vocabulary: the model's tokenizer has backward={old.backward}, the new one "
                         f"backward={tokenizer.backward}. The model was trained in one direction: set tokenizer.backward")
    if {type(backbone.token_embedding), type(getattr(backbone, "lm_head", None))} - {Embedding, Linear, type(None)}:
        raise ValueError("remap_vocabulary: the embedding or the output matrix has adapters. Merge them first: "
                         "tune.merge(model)")
