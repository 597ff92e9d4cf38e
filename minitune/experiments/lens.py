"""lens: what training did to a model's weights, matrix by matrix: how far, in how many directions, and which."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..devices import to_device
from ..formats.folder import write_text
from ..models import from_pretrained
from ..nn import Module, Parameter
from ..show import drift, similarity_maps, singular_values
from ..tune import DoRALinear, LoRALayer, PiSSALinear
from ..tune.patterns import backbone_of
from .finetuning import model_folder

KEPT = 64                                       # directions of a change that are kept: the largest rank in the paper's figure 3
Matrix = tuple[np.ndarray, float]               # a matrix (M, N), and by how much, relatively, its numbers were rounded


@dataclass(frozen=True)
class Change:
    """dW = after - before of one weight matrix (M, N), and its singular values s_1 >= s_2 >= ..., as float64.

    `norm` is ||dW||_F, `weight_norm` ||W||_F before, `relative` the one over the other. `rank` counts the s_i above what
    rounding the matrix after it was changed can make: ||E||_F <= u ||W + dW||_F, u = 2^-24 for float32, 2^-53 for adapters
    that are not merged, whose change is summed in float64; and above the SVD's own rounding. `effective_rank` is
    exp(-sum p_i log p_i), p_i = s_i / sum(s), of these: n for n equal ones. `rank_90` is how many hold 90 % of ||dW||_F^2 =
    sum(s_i^2). `left` (M, K) and `right` (N, K) are the vectors of the largest K = min(rank, 64).
    Source of the effective rank: Roy and Vetterli 2007, The effective rank: a measure of effective dimensionality, section 2.
    """

    name: str
    weight: np.ndarray = field(repr=False)      # before, (M, N)
    singular_values: np.ndarray = field(repr=False)
    left: np.ndarray = field(repr=False)
    right: np.ndarray = field(repr=False)
    rank: int

    @property
    def layer(self) -> str:
        """The block that the matrix is in, as "blocks.3"; "" outside the blocks."""
        return place(self.name)[0]

    @property
    def kind(self) -> str:
        """What it is there, as "attention.query"; outside the blocks its name."""
        return place(self.name)[1]

    @property
    def norm(self) -> float:
        return float(np.sqrt((self.singular_values**2).sum()))

    @property
    def weight_norm(self) -> float:
        return float(np.linalg.norm(self.weight.astype(np.float64)))

    @property
    def relative(self) -> float:
        return self.norm / self.weight_norm if self.weight_norm else np.inf if self.norm else 0.0

    @property
    def effective_rank(self) -> float:
        s = self.singular_values[: self.rank]
        p = s / s.sum() if self.rank else s
        return float(np.exp(-(p * np.log(p)).sum())) if self.rank else 0.0

    @property
    def rank_90(self) -> int:
        shares = np.cumsum(self.singular_values**2)
        return int(np.searchsorted(shares, 0.9 * shares[-1] * (1 - 1e-12)) + 1) if self.rank else 0

    def along(self, r: int) -> float:
        """||U^T W V^T||_F: how much of W lies in the r strongest directions of its change (M, r), (N, r)."""
        U, V = self.left[:, :r], self.right[:, :r]
        return float(np.linalg.norm(U.T @ self.weight.astype(np.float64) @ V))

    def amplification(self, r: int | None = None) -> float | None:
        """||dW||_F / ||U^T W V^T||_F for the r strongest directions of dW, all that are kept unless told; None without any.

        Large: what grew was weak in W. Source: Hu et al. 2021, LoRA, section 7.3 and table 7.
        """
        r = len(self.left.T) if r is None else min(r, len(self.left.T))
        return (self.norm / along if (along := self.along(r)) else np.inf) if r else None


class Lens:
    """The changes of a model's weight matrices; `changes[name]` is a `Change`.

    `unmatched` names the matrices that only one of the two models has: a new head, or adapters that are no update of a weight.
    """

    def __init__(self, changes: dict[str, Change], unmatched: list[str] | None = None) -> None:
        self.changes, self.unmatched = changes, unmatched or []

    def similarity(self, other: Lens, most: int = 8, side: str = "right") -> dict[str, np.ndarray]:
        """{name: phi} of every matrix that both lenses have: phi[i - 1, j - 1] is `subspace_similarity` of the first i
        directions of this change and the first j of the other, up to `most` each; NaN beyond a change's rank, where there is
        no direction.

        `side` "right" compares what the changes read, "left" what they write. Raises ValueError where the lenses are of other
        models, TypeError for what is no lens.
        """
        if not isinstance(other, Lens):
            raise TypeError(f"Lens.similarity: expected another lens, as lens(before, other) gives, got {type(other).__name__}")
        if side not in ("left", "right"):
            raise ValueError(f'Lens.similarity: side must be "right" or "left", got {side!r}')
        names = [name for name in self.changes if name in other.changes]
        shapes = {(self.changes[name].weight.shape, other.changes[name].weight.shape) for name in names}
        if not names or any(ours != theirs for ours, theirs in shapes):
            raise ValueError("Lens.similarity: the two lenses are of models with other weights. Compare changes of one model")
        maps = {}
        for name in names:
            found = np.full((most, most), np.nan)
            phi = subspace_similarity(*(getattr(of.changes[name], side)[:, :most] for of in (self, other)))
            found[: phi.shape[0], : phi.shape[1]] = phi
            maps[name] = found
        return maps

    def table(self, r: int = 8) -> str:
        """A line a matrix: how far it moved, in how many directions, and the amplification of the r strongest of them."""
        head = ["matrix", "shape", "|dW|", "|dW|/|W|", "rank", "effective", "90 %", f"amplified (r={r})"]
        lines = [head]
        for change in self.changes.values():
            factor = change.amplification(r)
            lines.append([change.name, "x".join(map(str, change.weight.shape)), f"{change.norm:.3g}", f"{change.relative:.2%}",
                          str(change.rank), f"{change.effective_rank:.1f}", str(change.rank_90),
                          "" if factor is None else f"{factor:.3g}"])
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        rows = ["  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths)))
                for line in lines]
        return "\n".join(rows + [f"not compared: {', '.join(self.unmatched)}"] * bool(self.unmatched))

    __str__ = table

    def plot(self, folder: str | Path, other: Lens | None = None) -> list[Path]:
        """Writes drift.png, singular_values.png and, with another lens, similarity.png; returns the files.

        Raises ValueError where nothing has changed, ImportError where matplotlib is not installed.
        """
        folder = Path(folder)
        files = [folder / "drift.png", folder / "singular_values.png"]
        drift([(change.layer, change.kind, change.relative) for change in self.changes.values()], files[0])
        singular_values([(change.layer, change.kind, change.singular_values[: change.rank])
                         for change in self.changes.values()], files[1])
        if other is not None:
            files.append(folder / "similarity.png")
            maps = self.similarity(other)
            similarity_maps({name: phi for name, phi in maps.items() if not np.isnan(phi).all()}, files[-1])
        return files

    def to_json(self, file: str | Path, r: int = 8) -> None:
        """Writes every matrix's figures and singular values, whole or not at all."""
        rows = [{"name": change.name, "layer": change.layer, "kind": change.kind, "shape": list(change.weight.shape),
                 "norm": change.norm, "weight_norm": change.weight_norm, "relative": change.relative, "rank": change.rank,
                 "effective_rank": change.effective_rank, "rank_90": change.rank_90, "amplification": change.amplification(r),
                 "singular_values": change.singular_values.tolist()} for change in self.changes.values()]
        write_text(file, json.dumps({"r": r, "unmatched": self.unmatched, "matrices": rows}, indent=1) + "\n")


def subspace_similarity(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """phi (i, j) = ||A_i^T B_j||_F^2 / min(i, j) for the first i columns of A and the first j of B: from 0 to 1.

    A (N, K) and B (N, L) have orthonormal columns -> (K, L). 1: the smaller subspace lies in the larger; 0: they are
    orthogonal; two random ones have max(i, j) / N on average.
    Source: Hu et al. 2021, LoRA, section 7.2, equation 4.

    >>> subspace_similarity(np.eye(4)[:, :2], np.eye(4)[:, 1:3]).tolist()
    [[0.0, 0.0], [1.0, 0.5]]
    """
    squares = (A.T @ B) ** 2                                                # (K, L)
    smaller = np.minimum(*np.ix_(np.arange(1, A.shape[1] + 1), np.arange(1, B.shape[1] + 1)))
    return squares.cumsum(0).cumsum(1) / smaller


def lens(before: str | Path | Module, after: str | Path | Module) -> Lens:
    """Compares the weight matrices of a model before and after it was trained.

    Both are folders of models or runs, names of models that come with the package, or models; one with adapters in it counts
    with its effective weights. A weight that two layers share is one matrix, filters (F, C, k, k) are one of (F, C k k);
    biases and norms are not looked at. A head is compared where both models have it.
    Raises ValueError for models that are not of one shape, with what differs.

    >>> from minitune import models, tune
    >>> gpt = models.GPT(models.GPTConfig(vocab_size=10, block_size=4, n_layer=1, n_head=2, n_embd=16))
    >>> print(lens(gpt, gpt).changes["blocks.0.mlp.up"])
    Change(name='blocks.0.mlp.up', rank=0)
    """
    first, second = (from_pretrained(model_folder(m)) if isinstance(m, (str, Path)) else m for m in (before, after))
    if not all(isinstance(model, Module) for model in (first, second)):
        raise TypeError(f"lens: expected folders or models, got {type(before).__name__} and {type(after).__name__}")
    old, new = dict(_matrices(first)), dict(_matrices(second))
    _check(first, second, old, new)
    changes = {name: _change(name, old[name][0], *new[name]) for name in old if name in new}
    return Lens(changes, sorted(old.keys() ^ new.keys()))


def _check(first: Module, second: Module, old: dict[str, Matrix], new: dict[str, Matrix]) -> None:
    groups = [[name for name, _ in backbone_of(model).layer_groups()] if hasattr(backbone_of(model), "layer_groups") else []
              for model in (first, second)]
    wrong = [f"{name} {old[name][0].shape} and {new[name][0].shape}" for name in old
             if name in new and old[name][0].shape != new[name][0].shape]
    if groups[0] != groups[1]:
        wrong.append(f"layer groups up to {groups[0][-1:]} and {groups[1][-1:]}")
    if wrong or not old.keys() & new.keys():
        raise ValueError(f"lens: the models are not of one shape: {'; '.join(wrong[:4]) or 'no matrix has the same name'}. "
                         "Compare a model with what was trained from it")


def _change(name: str, before: np.ndarray, after: np.ndarray, rounded: float) -> Change:
    update = after.astype(np.float64) - before
    left, values, right = np.linalg.svd(update, full_matrices=False)
    own = max(update.shape) * np.finfo(np.float64).eps * values.max(initial=0)              # what the SVD itself rounds
    rank = int((values > rounded * np.linalg.norm(after.astype(np.float64)) + own).sum())
    kept = min(rank, KEPT)
    return Change(name, before, values, left[:, :kept].copy(), right[:kept].T.copy(), rank)


def _matrices(model: Any) -> Iterator[tuple[str, Matrix]]:
    """(name, matrix) of every weight matrix, as it takes effect; one that two layers share comes once."""
    seen, inside = set[int](), set[int]()
    for path, part in model.named_modules():
        path = re.sub(r"^backbone\.?", "", path)
        if id(part) in inside:
            continue
        if _replaces(part):
            inside |= {id(child) for child in part.modules()}
            seen.add(id(vars(part.base).get("weight")))
            yield path, _effective(part)
            continue
        for name, value in vars(part).items():
            if isinstance(value, Parameter) and value.ndim > 1 and id(value) not in seen:
                seen.add(id(value))
                weight = to_device(value.data, "cpu")
                whole = f"{path}.{name}".removeprefix(".").removesuffix(".weight").replace(".base", "")
                yield whole, (weight.reshape(len(weight), -1), np.finfo(weight.dtype).eps / 2)


def _replaces(part: Module) -> bool:
    """Whether a layer stands in the place of another and multiplies with a weight that it makes of the other's."""
    return all(hasattr(part, name) for name in ("base", "effective_weight", "merged")) and not hasattr(part, "prompt")


def _effective(layer: Any) -> Matrix:
    """The weight that an adapted layer computes with: of a plain low-rank update in float64, of others rounded as merged."""
    if isinstance(layer, LoRALayer) and not isinstance(layer, DoRALinear):
        weight = to_device(layer.base.weight.data.astype(np.float64) + layer.delta(), "cpu")
    else:
        weight = to_device(layer.merged().weight.data, "cpu")
    made_of = layer.base.weight if isinstance(layer, PiSSALinear) else weight       # what is left of W was rounded
    return weight.reshape(len(weight), -1), np.finfo(made_of.dtype).eps / 2


def place(name: str) -> tuple[str, str]:
    """(block, what it is there) of a matrix's name.

    >>> place("blocks.3.attention.query"), place("token_embedding")
    (('blocks.3', 'attention.query'), ('', 'token_embedding'))
    """
    found = re.fullmatch(r"(.*?\.\d+)\.(.+)", name)
    return (found[1], found[2]) if found else ("", name)
