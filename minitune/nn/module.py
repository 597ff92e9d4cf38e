"""Module: layers made of layers, and the names of everything in them that can be trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np

from ..backend import Array, array_module, device_of
from ..devices import float_dtype, to_device
from ..tensor import no_grad
from .parameter import Parameter


class Module:
    """A layer or a model: its attributes that are Parameters, Modules or lists of Modules are its parts.

    Parts are found by looking, in the order in which they were set; nothing is registered. A subclass defines
    `forward`.
    """

    training: bool = True
    dtype: np.dtype | None = None               # of the activations where `to` set it; None: that of the parameters

    def __call__(self, *inputs: Any, **settings: Any) -> Any:
        return self.forward(*inputs, **settings)        # type: ignore[attr-defined]

    def children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of the direct parts; a list `blocks` gives "blocks.0", "blocks.1" ...

        Raises TypeError where parts stand in a tuple, a dictionary or a nested list: they would be neither trained nor
        saved.
        """
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list) and all(isinstance(part, Module) for part in value):
                yield from ((f"{name}.{i}", part) for i, part in enumerate(value))
            elif isinstance(value, (list, tuple, dict)) and _holds_parts(value):
                raise TypeError(f"{type(self).__name__}.{name}: parts are found as attributes and in lists of Modules, not in "
                                f"a {type(value).__name__} like this one")

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(name, module) of this module, named "", and of everything inside it, top down."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """This module and everything inside it, in some order: three times as fast as with names, as each token asks."""
        waiting = [self]
        while waiting:
            module = waiting.pop()
            yield module
            for value in vars(module).values():
                if isinstance(value, Module):
                    waiting.append(value)
                elif type(value) is list and value and isinstance(value[0], Module):
                    waiting += value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(name, parameter) in order; a parameter used twice (a tied embedding) comes once, under its first name."""
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{prefix}.{name}" if prefix else name), value

    def parameters(self) -> Iterator[Parameter]:
        """The parameters, each once."""
        return (parameter for _, parameter in self.named_parameters())

    def num_parameters(self, trainable: bool = False) -> int:
        """How many numbers the parameters hold; with `trainable`, only those that are trained."""
        return sum(p.size for p in self.parameters() if p.requires_grad or not trainable)

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Makes every parameter trainable, or none. Returns the module."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def to(self, device: str | None = None, dtype: Any = None) -> Any:
        """Moves every parameter to "cpu" or "cuda" and makes "float32", "bfloat16" or "float64" the dtype of activations.

        Beside bfloat16 the parameters stay float32, and so do their gradients: what an optimizer adds up over thousands of
        steps is never rounded to three digits. Embedding and Conv2d, where activations begin, cast them; `dtype` is None until
        it is set: activations are then what the parameters are. A parameter that moves drops its gradient. Returns the module.
        Raises RuntimeError where there is no GPU, ValueError for another device or dtype.
        """
        dtype = None if dtype is None else float_dtype(dtype)
        for p in self.parameters():
            data = p.data if dtype is None else p.data.astype(np.float64 if dtype == np.float64 else np.float32, copy=False)
            data = data if device is None else to_device(data, device)
            p.data, p.grad = data, p.grad if data is p.data else None
        for module in () if dtype is None else self.modules():
            module.dtype = dtype
        return self

    @property
    def device(self) -> str:
        """Where the parameters are, "cpu" or "cuda"."""
        return next((device_of(p.data) for p in self.parameters()), "cpu")

    def zero_grad(self) -> None:
        """Drops every gradient."""
        for parameter in self.parameters():
            parameter.grad = None

    def train(self, mode: bool = True) -> Module:
        """Switches dropout on (or off) in this module and all inside it. Returns the module."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Switches dropout off. Returns the module."""
        return self.train(False)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside this block dropout is off and nothing is recorded; afterwards every part is in its own mode again."""
        modes = [(part, part.training) for part in self.modules()]
        for part, _ in modes:
            part.training = False
        try:
            with no_grad():
                yield
        finally:
            for part, training in modes:
                part.training = training

    def set_part(self, name: str, part: Module) -> None:
        """Puts another module in the place of the one called `name`, as in "blocks.0.attention.query"."""
        if not name or name not in dict(self.named_modules()):
            raise ValueError(f"set_part: there is no part {name!r} in {type(self).__name__}. "
                             "named_modules() gives the names")
        path = name.split(".")
        owner: Any = self
        for step in path[:-1]:
            owner = owner[int(step)] if isinstance(owner, list) else getattr(owner, step)
        if isinstance(owner, list):
            owner[int(path[-1])] = part
        else:
            setattr(owner, path[-1], part)

    def sharing_parameters(self) -> Any:
        """A copy of this module and of all inside it, but of the Parameters, which it has itself.

        What a Parameter holds, and whether it is trained, is the same in both; which modules stand where, their modes and
        their settings are each one's own.
        """
        return deepcopy(self, {id(parameter): parameter for parameter in self.parameters()})

    def state_dict(self) -> dict[str, Array]:
        """{name: array} of all parameters; the arrays are the parameters' own, not copies."""
        return {name: parameter.data for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: dict[str, Array], strict: bool = True) -> None:
        """Copies arrays into the parameters of the same names.

        Raises ValueError, before anything is changed, where a shape differs or, if `strict`, a name is missing or
        unknown; all of them are listed.
        """
        if wrong := self.misfits(state, strict):
            raise ValueError("load_state_dict: the arrays do not fit this model:\n  " + "\n  ".join(wrong))
        own = dict(self.named_parameters())
        for name, array in state.items():
            if name in own:
                array = to_device(array, device_of(own[name].data))
                own[name].data = array_module(array).array(array, dtype=own[name].dtype, order="C")

    def misfits(self, state: dict[str, Array], strict: bool = True) -> list[str]:
        """What `load_state_dict` would refuse, a line for each array."""
        own = dict(self.named_parameters())
        wrong = [f"{name}: expected {own[name].shape}, got {tuple(state[name].shape)}"
                 for name in own if name in state and own[name].shape != tuple(state[name].shape)]
        if strict:
            wrong += [f"{name}: missing" for name in own if name not in state]
            wrong += [f"{name}: unknown" for name in state if name not in own]
        return wrong


def _holds_parts(value: Any) -> bool:
    if isinstance(value, (list, tuple, dict)):
        return any(_holds_parts(item) for item in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, (Module, Parameter))
