"""KVCache: the keys and values of the tokens read so far, so that generation reads every token once."""

from __future__ import annotations

from ..backend import Array, array_module
from ..tensor import Tensor
from .module import Module


class KVCache:
    """Keys and values of every attention layer, each (B, length, H, D), written in place as tokens come.

    `length` is the number of tokens a row can hold. A layer's two arrays are made when it first writes.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._layers: dict[Module, tuple[int, Array, Array]] = {}           # tokens so far, keys, values

    def append(self, layer: Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k and v (B, T, H, D) of the next T tokens and gives all that `layer` has so far, (B, S, H, D), no copies.

        Raises RuntimeError where gradients are recorded, ValueError where the rows are full.
        """
        if k.requires_grad or v.requires_grad:
            raise RuntimeError("KVCache: it is written in place, which a backward pass cannot follow. Use it inside no_grad()")
        start, keys, values = self.room(layer, k.shape, k.data)
        end = start + k.shape[1]
        keys[:, start:end], values[:, start:end] = k.data, v.data
        self.grow(layer, k.shape[1])
        return Tensor(keys[:, :end]), Tensor(values[:, :end])

    def room(self, layer: Module, shape: tuple[int, ...], like: Array) -> tuple[int, Array, Array]:
        """(place of the next T tokens, keys, values), for `shape` (B, T, H, D) in arrays like `like`. Whoever has written there
        calls `grow`.

        Raises ValueError where the rows are full.
        """
        B, T, H, D = shape
        if layer not in self._layers:
            xp = array_module(like)
            self._layers[layer] = (0, *(xp.empty((B, self.length, H, D), like.dtype) for _ in range(2)))
        start, keys, values = self._layers[layer]
        if start + T > self.length:
            raise ValueError(f"KVCache: its rows hold {self.length} tokens, got {start} and {T} more. Make a new one from "
                             "the last tokens")
        return start, keys, values

    def grow(self, layer: Module, T: int) -> None:
        """Counts T more tokens as written."""
        start, keys, values = self._layers[layer]
        self._layers[layer] = start + T, keys, values

    def keep(self, rows: Array) -> None:
        """Drops every row but these (numbers, or booleans)."""
        self._layers = {layer: (end, keys[rows], values[rows]) for layer, (end, keys, values) in self._layers.items()}
