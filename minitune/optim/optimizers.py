"""SGD and AdamW. An optimizer holds every parameter of a model from the start and moves those that require a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np

from ..backend import Array, array_module, device_of, mode, twins_for
from ..devices import to_device
from ..nn import Module, Parameter


@dataclass
class Group:
    """Parameters that share a rate and a decay. `rate` is relative: the step's rate times this."""

    parameters: list[Parameter]
    rate: float = 1.0
    weight_decay: float = 0.0


@dataclass
class Slot:
    """What an optimizer remembers of one parameter, from its first gradient on; its own count of steps keeps a layer
    that is unfrozen late from jumping."""

    step: int = 0
    moments: tuple[Array, ...] = field(default=())


def groups_of(model: Module, weight_decay: float = 0.0, decay_all: bool = False) -> list[Group]:
    """The parameters that decay (weights of linear layers; all of them with `decay_all`), and the rest, a group each."""
    every = list(model.parameters())
    decayed = [p for p in every if p.decays or decay_all]
    rest = [p for p in every if not (p.decays or decay_all)]
    return [group for group in (Group(decayed, weight_decay=weight_decay), Group(rest)) if group.parameters]


class Optimizer:
    """Moves parameters against their gradients. `parameters` is a Module, groups, or plain parameters.

    A parameter without a gradient, or frozen, is neither moved nor decayed; its memory is kept.
    """

    clipping: Any = None                        # what `clip` leaves to the next step, where that scales the gradients

    def __init__(self, parameters: Module | Iterable[Group] | Iterable[Parameter], lr: float,
                 weight_decay: float = 0.0) -> None:
        if not lr >= 0:
            raise ValueError(f"{type(self).__name__}: lr must be at least 0, got {lr}")
        if isinstance(parameters, Module):
            self.groups = groups_of(parameters, weight_decay)
        else:
            listed = list(parameters)
            wrong = [type(p).__name__ for p in listed if not isinstance(p, (Group, Parameter))]
            if wrong:
                raise TypeError(f"{type(self).__name__}: expected Parameters or Groups, got {', '.join(sorted(set(wrong)))}. "
                                "Pass the Module itself, or model.parameters()")
            plain = [p for p in listed if isinstance(p, Parameter)]
            self.groups = [g for g in listed if isinstance(g, Group)]
            self.groups += [Group(plain, weight_decay=weight_decay)] if plain else []
        if not any(group.parameters for group in self.groups):
            raise ValueError(f"{type(self).__name__}: expected parameters, got none")
        empty = [i for i, group in enumerate(self.groups) if not group.parameters]
        if empty:
            raise ValueError(f"{type(self).__name__}: group {empty[0]} holds no parameters. Was a name misspelt?")
        held = [id(p) for p in self.parameters()]
        if len(set(held)) < len(held):
            raise ValueError(f"{type(self).__name__}: a parameter is in two groups and would move twice a step")
        self.lr = lr
        self.slots: dict[int, Slot] = {}        # by id: the groups keep the parameters alive

    def parameters(self) -> list[Parameter]:
        """Every parameter held, frozen or not."""
        return [p for group in self.groups for p in group.parameters]

    def clip(self, max_norm: float, loss: Any = 0.0) -> Any:
        """Clips the gradients by `clip_grad_norm`, in place; returns their norm before, a float.

        AdamW's twins leave them as they are and scale them in the next `step`, as they read them; on a GPU the norm is then an
        array (), and that step moves nothing where it or `loss` is not finite: nobody has to wait for these numbers.
        """
        return float(clip_grad_norm(self.parameters(), max_norm))

    def step(self) -> None:
        """Moves every trainable parameter that has a gradient."""
        for p, slot, rate, decay in self.due():
            self.update(p, p.grad, slot, rate, decay)

    def due(self) -> Iterator[tuple[Parameter, Slot, float, float]]:
        """(parameter, slot, rate, decay) of all that move in this step, which each slot counts."""
        for group in self.groups:
            for p in group.parameters:
                if p.requires_grad and p.grad is not None:
                    slot = self.slots.setdefault(id(p), Slot())
                    slot.step, moments = slot.step + 1, slot.moments
                    slot.moments = tuple(to_device(m, device_of(p.data)) for m in moments)      # the model may have moved
                    yield p, slot, self.lr * group.rate, group.weight_decay

    def zero_grad(self) -> None:
        """Drops every gradient."""
        self.clipping = None
        for p in self.parameters():
            p.grad = None

    def update(self, p: Parameter, grad: Array, slot: Slot, rate: float, decay: float) -> None:
        raise NotImplementedError(f"{type(self).__name__} defines no update")


class SGD(Optimizer):
    """p = p - rate * (velocity + decay * p), velocity = momentum * velocity + grad."""

    def __init__(self, parameters: Module | Iterable[Group] | Iterable[Parameter], lr: float, momentum: float = 0.0,
                 weight_decay: float = 0.0) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.momentum = momentum

    def update(self, p: Parameter, grad: Array, slot: Slot, rate: float, decay: float) -> None:
        if decay:
            p.data *= 1 - rate * decay
        if self.momentum:
            if not slot.moments:
                slot.moments = (array_module(grad).zeros_like(p.data),)
            (velocity,) = slot.moments
            velocity *= self.momentum
            velocity += grad
            grad = velocity
        p.data -= rate * grad


class AdamW(Optimizer):
    """p = p - rate * (m' / (sqrt(v') + eps) + decay * p): Adam with decay beside the gradient instead of inside it.

    m = beta1 m + (1 - beta1) grad and v = beta2 v + (1 - beta2) grad^2; m' and v' divide them by 1 - beta^step, since
    both start at 0. Built from a Module, only weights of linear layers decay.
    Source: Loshchilov and Hutter 2019, Decoupled weight decay regularization, algorithm 2.
    """

    def __init__(self, parameters: Module | Iterable[Group] | Iterable[Parameter], lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.betas, self.eps = betas, eps

    def clip(self, max_norm: float, loss: Any = 0.0) -> Any:
        return (self._together("clip_all") or Optimizer.clip)(self, max_norm, loss)

    def step(self) -> None:
        """As of every optimizer; with twins in one go, in one launch on a GPU. RuntimeError before a clip is lost."""
        together = self._together("adamw_all")
        if self.clipping is not None and not together:
            raise RuntimeError("AdamW: what clip left to a step with twins, one without them cannot do. Drop it: zero_grad()")
        (together or Optimizer.step)(self)

    def _together(self, name: str) -> Callable | None:
        """The twin of all parameters at once; None where there is none, or where a subclass updates in another way."""
        arrays = (a for p in self.parameters() for a in (p.data, p.grad) if a is not None)
        return _twin(name, *arrays) if type(self).update is AdamW.update else None

    def state(self, p: Parameter, slot: Slot, rate: float, decay: float) -> tuple:
        """(m, v, decay, eps, step), which make the step p = decay p - step m / (sqrt(v) + eps)."""
        if not slot.moments:
            slot.moments = tuple(array_module(p.data).zeros_like(p.data) for _ in range(2))
        unbias1, unbias2 = (1 - beta**slot.step for beta in self.betas)         # with these in step and eps, m and v are plain
        return *slot.moments, 1 - rate * decay, self.eps * sqrt(unbias2), rate * sqrt(unbias2) / unbias1

    def update(self, p: Parameter, grad: Array, slot: Slot, rate: float, decay: float) -> None:
        xp, (beta1, beta2) = array_module(grad), self.betas
        m, v, shrink, eps, size = self.state(p, slot, rate, decay)
        twin = _twin("adamw", p.data, grad, m, v)
        if twin:
            twin(p.data, grad, m, v, beta1, beta2, shrink, eps, size)
            return
        m *= beta1
        m += (1 - beta1) * grad
        v *= beta2
        v += (1 - beta2) * grad * grad
        if decay:
            p.data *= shrink
        step = xp.asarray(xp.sqrt(v))
        step += eps
        xp.divide(m, step, out=step)
        step *= size
        p.data -= step


def clip_grad_norm(parameters: Iterable[Parameter], max_norm: float) -> Any:
    """Scales all gradients down together where their joint Euclidean norm exceeds `max_norm`. Returns the norm before.

    On a GPU it waits for nothing: the norm is an array () there, which float(norm) reads.
    Source: Pascanu, Mikolov and Bengio 2013, On the difficulty of training recurrent neural networks, algorithm 1.
    """
    grads = [p.grad for p in parameters if p.requires_grad and p.grad is not None]
    if together := _twin("clip", *grads):
        return together(grads, max_norm)
    norm = sqrt(sum(_sum_of_squares(g) for g in grads))
    if norm > max_norm:
        for grad in grads:
            twin = _twin("scale", grad)
            if twin:
                twin(grad, max_norm / norm)
            else:
                grad *= max_norm / norm
    return norm


def _sum_of_squares(grad: Array) -> float:
    grad = array_module(grad).ascontiguousarray(grad)
    twin = _twin("sum_of_squares", grad)
    return twin(grad) if twin else float(array_module(grad).vdot(grad, grad))


def _twin(name: str, *arrays: Array) -> Callable | None:
    """The compiled twin of this name, if there is one and it takes these arrays."""
    run = getattr(twins_for(arrays[0], "optimizers"), name, None) if mode.kernels and arrays else None
    return run if run and all(a.dtype == np.float32 and a.flags.c_contiguous for a in arrays) else None
