"""Makes gpt2.npz: what a small GPT-2, written here in plain PyTorch, computes. Run `python tests/golden/make_golden.py`.

The file holds weights, a batch with two rows of different length, logits, the summed loss and the gradient of every
weight in float64; and the mean losses of ten AdamW steps in float32. Names and shapes are minitune's. Nothing of minitune
is imported: the values are an opinion of their own.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

VOCABULARY, BLOCK, CHANNELS, HEADS, LAYERS = 29, 9, 16, 2, 2
ROWS = [[3, 28, 0, 17, 17, 5, 11], [9, 1, 22, 4]]           # shorter rows are padded on the right with 0
RATE, DECAY, STEPS = 1e-2, 0.1, 10
FILE = Path(__file__).parent / "gpt2.npz"


def make_weights() -> dict[str, np.ndarray]:
    """Weights large enough that every path matters, and exact in float32, so that both precisions start alike."""
    draw = np.random.default_rng(0)

    def normal(*shape, mean=0.0, std=0.3):
        return (mean + std * draw.standard_normal(shape)).astype(np.float32)

    C = CHANNELS
    weights = {"token_embedding.weight": normal(VOCABULARY, C), "position_embedding.weight": normal(BLOCK, C)}
    for i in range(LAYERS):
        linear = {"attention.query": (C, C), "attention.key": (C, C), "attention.value": (C, C),
                  "attention.output": (C, C), "mlp.up": (4 * C, C), "mlp.down": (C, 4 * C)}
        for name, shape in linear.items():
            weights |= {f"blocks.{i}.{name}.weight": normal(*shape), f"blocks.{i}.{name}.bias": normal(shape[0])}
        for name in "attention_norm", "mlp_norm":
            weights |= {f"blocks.{i}.{name}.weight": normal(C, mean=1), f"blocks.{i}.{name}.bias": normal(C)}
    return weights | {"norm.weight": normal(C, mean=1), "norm.bias": normal(C)}


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """ids and targets (B, T); -100 where there is nothing to predict."""
    width = max(map(len, ROWS))
    ids, targets = torch.zeros(len(ROWS), width, dtype=torch.long), torch.full((len(ROWS), width), -100)
    for b, row in enumerate(ROWS):
        ids[b, : len(row)], targets[b, : len(row) - 1] = torch.tensor(row), torch.tensor(row[1:])
    return ids, targets


def gpt2(weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """ids (B, T) -> logits (B, T, V). Padding stands on the right, where a causal mask hides it."""
    B, T = ids.shape

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (CHANNELS,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    x = F.embedding(ids, weights["token_embedding.weight"]) + weights["position_embedding.weight"][:T]
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    for i in range(LAYERS):
        h = norm(x, f"blocks.{i}.attention_norm")
        q, k, v = (linear(h, f"blocks.{i}.attention.{name}").view(B, T, HEADS, -1).transpose(1, 2)
                   for name in ("query", "key", "value"))
        scores = (q @ k.transpose(-1, -2) / (CHANNELS / HEADS) ** 0.5).masked_fill(hidden, -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, CHANNELS)
        x = x + linear(mixed, f"blocks.{i}.attention.output")
        h = F.gelu(linear(norm(x, f"blocks.{i}.mlp_norm"), f"blocks.{i}.mlp.up"), approximate="tanh")
        x = x + linear(h, f"blocks.{i}.mlp.down")
    return F.linear(norm(x, "norm"), weights["token_embedding.weight"])


def summed_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")


def make() -> dict[str, np.ndarray]:
    """Everything that gpt2.npz holds."""
    start, (ids, targets) = make_weights(), make_batch()
    weights = {name: torch.tensor(array, dtype=torch.float64, requires_grad=True) for name, array in start.items()}
    logits = gpt2(weights, ids)
    loss = summed_loss(logits, targets)
    loss.backward()
    golden = {"logits": logits.detach().numpy(), "loss": loss.detach().numpy(), "losses": np.array(train(start, ids, targets)),
              "ids": ids.numpy(), "targets": targets.numpy()}
    golden |= {f"weight/{name}": array for name, array in start.items()}
    return golden | {f"gradient/{name}": weights[name].grad.numpy() for name in start}


def train(start: dict[str, np.ndarray], ids: torch.Tensor, targets: torch.Tensor) -> list[float]:
    """The mean loss before each of ten AdamW steps in float32; only the weights of linear layers decay."""
    weights = {name: torch.tensor(array, requires_grad=True) for name, array in start.items()}
    decayed = [w for name, w in weights.items() if w.ndim == 2 and "embedding" not in name]
    rest = [w for name, w in weights.items() if w.ndim == 1 or "embedding" in name]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}], lr=RATE)
    losses = []
    for _ in range(STEPS):
        loss = summed_loss(gpt2(weights, ids), targets) / (targets != -100).sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


if __name__ == "__main__":
    np.savez_compressed(FILE, **make())
    print(f"wrote {FILE.name}, {FILE.stat().st_size:,} bytes")
