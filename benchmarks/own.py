"""minitune's step, and its floor: the matrix products of that step and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from measure import LORA_ALPHA, RATE, R, Size, tokens

import minitune as mt
from minitune import models, tune
from minitune.backend import twins_in
from minitune.cores import keep_large_blocks
from minitune.data import Batch, LanguageModelSet
from minitune.nn.parameter import shapes_only
from minitune.ops.linear_cross_entropy import ROWS
from minitune.train import Trainer

Product = tuple[int, str, int, int, int]    # a stack of how many, kind, M, N, K: (M, N) results of K multiplications


# ---- The step --------------------------------------------------------------------------------------------------------

def gpt(size: Size, mode: str) -> models.GPT:
    """A GPT of random weights, prepared for "full" training, "lora" on every linear layer, or its "last" block alone."""
    mt.seed(0)
    return prepared(models.GPT(models.GPTConfig(size.V, size.T, size.layers, size.heads, size.C)), mode)


def large_gpt(size: Size, mode: str) -> models.GPT:
    """As `gpt`, with weights from NumPy's generator, which makes them ten times as fast; the same in every process."""
    with shapes_only():
        model = models.GPT(models.GPTConfig(size.V, size.T, size.layers, size.heads, size.C))
    random = np.random.default_rng(0)
    for name, p in model.named_parameters():
        constant = float("norm" in name and name.endswith("weight"))
        p.data = 0.02 * random.standard_normal(p.shape, np.float32) if p.ndim > 1 else np.full(p.shape, constant, np.float32)
    mt.seed(0)
    return prepared(model, mode)


def prepared(model: models.GPT, mode: str) -> models.GPT:
    """The model, ready for what the mode trains."""
    if mode == "lora":
        tune.apply(model, tune.LoRAConfig(r=R, lora_alpha=LORA_ALPHA))
    if mode == "last":
        tune.freeze_to(model, -1)
    return model


def training_step(model: models.GPT, size: Size, kernels: bool = True) -> Callable[[], Any]:
    """The trainer's own step (AdamW, gradients clipped at norm 1); returns the loss. Without kernels: the references.

    The batch lies where the model does, as those of the peers.
    """
    keep_large_blocks()
    ids = tokens(size)
    data = LanguageModelSet(list(ids[:, :-1]), size.T)
    batch: Batch = data.batch(np.arange(size.B))
    batch.targets = ids[:, 1:]
    batch = batch.to(model.device)
    trainer = Trainer(model, data, steps=1, lr=RATE, batch_size=size.B, progress=False)

    def step() -> Any:
        with mt.kernels(kernels):
            loss = trainer.train_step([batch], RATE)
        trainer.step += 1                       # by which it knows when to look at the losses on a GPU
        return loss

    return step


# ---- The floor -------------------------------------------------------------------------------------------------------

def products(size: Size, mode: str) -> Counter[Product]:
    """{product: how often a step needs it}.

    Kinds are BLAS's words: N a matrix as it stands, T its transpose. So x W^T is "NT", grad W "NN" and grad^T x "TN".
    """
    N, C, found = size.B * size.T, size.C, Counter[Product]()

    def linear(outputs: int, inputs: int, grad_x: bool, grad_weight: bool, lora: bool) -> None:
        found[1, "NT", N, outputs, inputs] += 1
        found[1, "NN", N, inputs, outputs] += grad_x
        found[1, "TN", outputs, inputs, N] += grad_weight
        if lora:                                # x A^T, (x A^T) B^T; grad_B, grad_low, grad_A, and grad_low A for grad_x
            found.update([(1, "NT", N, R, inputs), (1, "NT", N, outputs, R), (1, "TN", outputs, R, N),
                          (1, "NN", N, R, outputs), (1, "TN", R, inputs, N)])
            found[1, "NN", N, inputs, R] += grad_x

    for i in range(size.layers):
        trains = mode != "last" or i == size.layers - 1
        below = trains and not (mode == "lora" and i == 0)      # does anything below query, key and value train?
        weights, lora = trains and mode != "lora", mode == "lora"
        for outputs, inputs, grad_x in (*[(C, C, below)] * 3, (C, C, trains), (4 * C, C, trains), (C, 4 * C, trains)):
            linear(outputs, inputs, grad_x, weights, lora)
        stack, D, T = size.B * size.heads, C // size.heads, size.T
        found.update([(stack, "NT", T, T, D), (stack, "NN", T, D, T)])                          # q k^T, p v
        if trains:                              # grad_p, grad_q; grad_v, grad_k
            found.update([(stack, "NT", T, T, D), (stack, "NN", T, D, T)])
            found[stack, "TN", T, D, T] += 2
    twins = twins_in("cpu", "linear_cross_entropy")
    chunk = max(twins.FEWEST, twins.LOGITS // size.V) if twins else ROWS
    for start in range(0, N, chunk):            # the head, in chunks of rows
        rows = min(chunk, N - start)
        found.update([(1, "NT", rows, size.V, C), (1, "NN", rows, C, size.V)])
        found[1, "TN", size.V, C, rows] += mode == "full"
    return +found


def flops(size: Size, mode: str = "full") -> int:
    """Additions and multiplications in a step's matrix products."""
    return sum(often * 2 * stack * M * N * K for (stack, _, M, N, K), often in products(size, mode).items())


def floor_step(size: Size, mode: str) -> Callable[[], None]:
    """All these products, by NumPy into arrays that are there already."""
    random = np.random.default_rng(0)
    prepared = []
    for (stack, kind, M, N, K), often in products(size, mode).items():
        left, right = ((K, M) if kind[0] == "T" else (M, K)), ((N, K) if kind[1] == "T" else (K, N))
        a, b, out = (random.standard_normal((stack, *shape), np.float32) for shape in (left, right, (M, N)))
        a, b = (x.swapaxes(1, 2) if letter == "T" else x for x, letter in zip((a, b), kind))
        prepared.append((often, *((a, b, out) if stack > 1 else (a[0], b[0], out[0]))))

    def step() -> None:
        for often, a, b, out in prepared:
            for _ in range(often):
                np.matmul(a, b, out=out)

    return step
