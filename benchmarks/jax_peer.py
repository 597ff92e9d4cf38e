"""The same GPT and its full step as one compiled JAX function; parameters and moments are trees of arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np
from measure import RATE, Size, tokens


def jax_step(size: Size) -> Callable[[], float]:
    """Forward, backward, clipping at norm 1, AdamW."""
    ids, tree = jnp.asarray(tokens(size)), jax.tree.map
    p = parameters(size)
    state, numbers = (p, tree(jnp.zeros_like, p), tree(jnp.zeros_like, p)), count(1)

    @partial(jax.jit, donate_argnums=0)
    def update(state, number):
        p, m, v = state
        value, grads = jax.value_and_grad(loss)(p, ids[:, :-1], ids[:, 1:], size.heads)
        norm = jnp.sqrt(sum((g * g).sum() for g in jax.tree.leaves(grads)))
        grads = tree(lambda g: g * jnp.minimum(1, 1 / norm), grads)
        m = tree(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = tree(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
        a, b = 1 - 0.9**number, 1 - 0.999**number
        return (tree(lambda p, m, v: p - RATE * (m / a / (jnp.sqrt(v / b) + 1e-8) + 0.01 * p), p, m, v), m, v), value

    def step() -> float:
        nonlocal state
        state, value = update(state, float(next(numbers)))
        return float(value)

    return step


def parameters(size: Size) -> dict:
    """Weights (in, out) with deviation 0.02, biases 0, norms 1."""
    random, C = np.random.default_rng(0), size.C
    norm = (np.ones(C, np.float32), np.zeros(C, np.float32))

    def linear(inputs: int, outputs: int) -> tuple:
        return 0.02 * random.standard_normal((inputs, outputs), np.float32), np.zeros(outputs, np.float32)

    blocks = [{"norm1": norm, "qkv": linear(C, 3 * C), "output": linear(C, C), "norm2": norm, "up": linear(C, 4 * C),
               "down": linear(4 * C, C)} for _ in range(size.layers)]
    whole = {"tokens": linear(size.V, C)[0], "positions": linear(size.T, C)[0], "blocks": blocks, "norm": norm}
    return jax.tree.map(jnp.array, whole)


def loss(p: dict, ids: jax.Array, targets: jax.Array, heads: int) -> jax.Array:
    """The mean cross-entropy of the targets."""
    def linear(x, weight, bias):
        return x @ weight + bias

    def norm(x, weight, bias):
        return jax.nn.standardize(x, epsilon=1e-5) * weight + bias

    x = p["tokens"][ids] + p["positions"]
    for block in p["blocks"]:
        qkv = linear(norm(x, *block["norm1"]), *block["qkv"]).reshape(*ids.shape, 3, heads, -1)
        mixed = jax.nn.dot_product_attention(*(qkv[:, :, i] for i in range(3)), is_causal=True)
        x = x + linear(mixed.reshape(x.shape), *block["output"])
        x = x + linear(jax.nn.gelu(linear(norm(x, *block["norm2"]), *block["up"])), *block["down"])
    logits = norm(x, *p["norm"]) @ p["tokens"].T
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1).mean()
