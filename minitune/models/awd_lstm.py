"""AWD-LSTM: a recurrent language model that dropout in every place keeps from learning its texts by heart; ULMFiT's model."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt

from .. import ops
from ..backend import Array, array_module
from ..data import Batch
from ..formats.own import OwnFamily
from ..nn import LSTM, Embedding, LSTMState, Parameter, filled, recompute
from ..tensor import Tensor
from .config import Groups, check_sizes
from .language_model import LanguageModel


@dataclass(frozen=True)
class AWDLSTMConfig:
    """The sizes of an AWD-LSTM and the strength of each of its regularisers.

    By default these are the paper's, but for `n_hidden`: 1152 is fastai's later size, the paper has 1150.
    V tokens, C = n_embd channels of the embedding and of the last layer, `n_hidden` units in the layers before it. Rows may be
    longer than `block_size`: it is how far generation reads back when it starts anew.
    Dropout, as probabilities: `weight_dropout` of recurrent weights, `embedding_dropout` of whole words, and of channels of a
    row, the same at all its tokens, `input_dropout` before the first layer, `hidden_dropout` between layers, `output_dropout`
    after the last. The loss grows by `activation_regularization` times the mean square of the features, and by
    `temporal_activation_regularization` times that of the last layer's change from one token to the next.
    A model reads these at each step: `model.config = dataclasses.replace(model.config, weight_dropout=0.2)` changes one.
    """

    vocab_size: int
    block_size: int = 1024
    n_embd: int = 400
    n_hidden: int = 1152
    n_layer: int = 3
    weight_dropout: float = 0.5
    embedding_dropout: float = 0.1
    input_dropout: float = 0.4
    hidden_dropout: float = 0.3
    output_dropout: float = 0.4
    activation_regularization: float = 2.0
    temporal_activation_regularization: float = 1.0

    def __post_init__(self) -> None:
        check_sizes(self)
        for name in ("activation_regularization", "temporal_activation_regularization"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 <= value < inf):
                raise ValueError(f"AWDLSTMConfig: {name} must be 0 or more, got {value!r}")


class AWDLSTM(LanguageModel):
    """Predicts each next token from those before it, through a state that is carried from token to token.

    Source: Merity, Keskar and Socher 2017, Regularizing and optimizing LSTM language models; used by Howard and Ruder 2018,
    Universal language model fine-tuning for text classification.
    """

    family = OwnFamily("awd_lstm")
    pooling = "concat"
    head_bias = True
    recurrent = True

    def __init__(self, config: AWDLSTMConfig) -> None:
        self.config = config
        C, H, last = config.n_embd, config.n_hidden, config.n_layer - 1
        self.token_embedding = Embedding(config.vocab_size, C, std=1 / sqrt(C))         # at 400 channels about the paper's
        self.layers = [LSTM(H if i else C, H if i < last else C) for i in range(config.n_layer)]
        self.bias: Parameter | None = filled((config.vocab_size,), 0.0)                 # of the logits

    def features(self, batch: Batch, cache: LSTMState | None = None) -> Tensor:
        """What the model makes of every token, before any head: (B, T, C). With a cache, the batch goes on where it ends."""
        return self._drop_channels(self._hidden_states(batch, cache), self.config.output_dropout)

    def _hidden_states(self, batch: Batch, cache: LSTMState | None = None) -> Tensor:
        """(B, T, C) of the last layer, before the dropout on them."""
        config, starts = self.config, batch.positions == 0
        x = self._embedded(batch.ids)                                                   # (B, T, C)
        for i, layer in enumerate(self.layers):
            x = self._drop_channels(x, config.hidden_dropout if i else config.input_dropout)
            if cache is not None:
                states = layer(x, *cache.before(layer), starts, config.weight_dropout)  # (2, B, T, H)
                cache.advance(layer, states)
            elif self.recompute:
                states = recompute(layer, x, None, None, starts, config.weight_dropout)
            else:
                states = layer(x, None, None, starts, config.weight_dropout)
            x = states[0]
        return x

    def _embedded(self, ids: Array) -> Tensor:
        """(B, T, C): of each word, all places are dropped or none (Gal and Ghahramani 2016, section 4.2)."""
        x, p = self.token_embedding(ids), self.config.embedding_dropout
        if not (self.training and p):
            return x
        kept = ops.dropout(Tensor(array_module(x.data).ones(self.config.vocab_size, x.dtype)), p)
        return x * kept.data[ids][..., None]

    def _drop_channels(self, x: Tensor, p: float) -> Tensor:
        """Variational dropout on x (B, T, C): one mask a row, shared by all its tokens (Gal and Ghahramani 2016)."""
        if not (self.training and p):
            return x
        return x * ops.dropout(Tensor(array_module(x.data).ones((len(x), 1, x.shape[2]), x.dtype)), p)

    def output_bias(self) -> Tensor | None:
        """What is added to the logits: (V,), or None."""
        return self.bias

    def without_head(self, pooler: bool = False, output: bool = False) -> AWDLSTM:
        """A copy with the same Parameters; without the bias of its logits where a head does not read it."""
        bare = self.sharing_parameters()
        if not output:
            bare.bias, bare.headless = None, True
        return bare

    def new_cache(self, length: int) -> LSTMState:
        """What generation keeps of the tokens read so far: two states a layer, whatever their number."""
        return LSTMState()

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, int, float]]:
        """{term: (sum of losses, count, weight)}: the cross-entropy of each next token, in nats, and both regularisers.

        These are squares of the features and of the differences of hidden states one after another, summed over the tokens of
        documents and over channels; a regulariser of weight 0 is left out.
        """
        hidden = self._hidden_states(batch)                                             # (B, T, C)
        x, counts, config = self._drop_channels(hidden, self.config.output_dropout), self.counts(batch), self.config
        terms = {"language_model": (self.language_loss(x, batch.targets), counts["language_model"], 1.0)}
        if weight := config.activation_regularization:
            terms["activation"] = _squares(x, batch.valid), counts["activation"], weight
        if weight := config.temporal_activation_regularization:
            change = hidden[:, 1:] - hidden[:, :-1]
            terms["temporal_activation"] = _squares(change, _goes_on(batch)), counts["temporal_activation"], weight
        return terms

    def counts(self, batch: Batch) -> dict[str, int]:
        """{term: count} of `loss`, known before any forward pass."""
        config, counts = self.config, {"language_model": batch.supervised}
        if config.activation_regularization:
            counts["activation"] = batch.tokens * config.n_embd
        if config.temporal_activation_regularization:
            counts["temporal_activation"] = int(_goes_on(batch.on_host).sum()) * config.n_embd
        return counts

    def layer_groups(self) -> Groups:
        """(name, modules) from the input to the output: what is unfrozen step by step."""
        layers: Groups = [(f"layers.{i}", [layer]) for i, layer in enumerate(self.layers)]
        layers[-1][1].extend([] if self.bias is None else [self.bias])
        return [("embeddings", [self.token_embedding]), *layers]


def _goes_on(batch: Batch) -> Array:
    """(B, T - 1): whether a token and the one before it are of one document."""
    return batch.valid[:, 1:] & (batch.positions[:, 1:] > 0)


def _squares(x: Tensor, counts: Array) -> Tensor:
    """The sum of x^2 (B, T, C) where `counts` (B, T) is True."""
    return (x * x * counts[..., None].astype(x.dtype)).sum()
