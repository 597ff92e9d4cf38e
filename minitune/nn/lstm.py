"""LSTM, a recurrent layer, and LSTMState, what generation keeps of it."""

from __future__ import annotations

from math import sqrt

from .. import ops
from ..backend import Array, array_module
from ..ops.checks import check_int
from ..tensor import Tensor
from .module import Module
from .parameter import uniform


class LSTM(Module):
    """Long short-term memory: I channels in, H hidden units out, one state carried from token to token.

    weight_ih (4 H, I), weight_hh (4 H, H), bias (4 H,), with the gates i, f, g, o in PyTorch's order; its two biases are one
    here. All start uniform in -1/sqrt(H) .. 1/sqrt(H). Raises ValueError where I or H is no int of at least 1.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        check_int("LSTM", "inputs", inputs)
        check_int("LSTM", "hidden", hidden)
        bound = 1 / sqrt(hidden)
        self.weight_ih = uniform((4 * hidden, inputs), bound, decays=True)
        self.weight_hh = uniform((4 * hidden, hidden), bound, decays=True)
        self.bias = uniform((4 * hidden,), bound)

    def forward(self, x: Tensor, hidden: Tensor | Array | None = None, cell: Tensor | Array | None = None,
                starts: Array | None = None, weight_dropout: float = 0.0) -> Tensor:
        """x (B, T, I), states before it (B, H), 0 unless given -> (2, B, T, H): the hidden and the cell state after each token

        Arrays are taken in x's dtype. Where `starts` (B, T) is True a document begins: the states before that token are 0.
        While training, each number of weight_hh is dropped with probability `weight_dropout`, the same ones at all tokens of
        the call: the DropConnect of Wan et al. 2013, put on recurrent weights by Merity, Keskar and Socher 2017, section 2.
        """
        B, H = len(x), self.weight_hh.shape[1]
        xp = array_module(x.data)
        hidden, cell = (xp.zeros((B, H)) if a is None else a for a in (hidden, cell))
        hidden, cell = (a if isinstance(a, Tensor) else xp.asarray(a, x.dtype) for a in (hidden, cell))
        weight_hh: Tensor = self.weight_hh
        if self.training and weight_dropout:
            weight_hh = ops.dropout(weight_hh, weight_dropout)
        return ops.lstm(x, self.weight_ih, weight_hh, self.bias, hidden, cell, starts)


class LSTMState:
    """The states of every LSTM layer after the tokens read so far: all that it needs to read on, however many they were.

    Gradients do not flow back through it.
    """

    def __init__(self) -> None:
        self._layers: dict[Module, tuple[Array, Array]] = {}

    def before(self, layer: Module) -> tuple[Array | None, Array | None]:
        """(hidden, cell), each (B, H), where `layer` goes on; (None, None) where it has read nothing."""
        return self._layers.get(layer, (None, None))

    def advance(self, layer: Module, states: Tensor) -> None:
        """Takes the last of the states (2, B, T, H) that `layer` gave."""
        hidden, cell = states.data[:, :, -1].copy()
        self._layers[layer] = hidden, cell

    def keep(self, rows: Array) -> None:
        """Drops every row but these (numbers, or booleans)."""
        self._layers = {layer: (hidden[rows], cell[rows]) for layer, (hidden, cell) in self._layers.items()}
