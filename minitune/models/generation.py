"""Text generation: a causal model reads, chooses a next token, and reads on.

Letters: B rows, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from ..backend import random
from ..cores import sharing
from ..data import Batch, Example, Tokenizer
from ..data.example_set import encode_examples
from ..devices import to_device
from ..nn.cache import KVCache
from ..ops import IGNORE

Prompt = str | Example          # a text, or what chat_prompt makes of a conversation
UNFINISHED = "\ufffd"           # what the first bytes of a character decode to


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 takes the likeliest, 1 draws from the model's own distribution.

    The steps, in this order: the logits of tokens that occurred before become smaller, l / repetition_penalty where l > 0
    and l * repetition_penalty below; all are divided by the temperature; only the `top_k` likeliest stay; of these, only
    the smallest set whose probability reaches `top_p`.
    Sources: repetition penalty: Keskar et al. 2019, CTRL, section 4.1, negative logits as in Hugging Face;
    top-p: Holtzman et al. 2020, The curious case of neural text degeneration, section 3.1.

    >>> Sampling(temperature=0.5).probabilities(np.log([[0.75, 0.25]]), np.array([[False, False]])).round(3)
    array([[0.9, 0.1]])
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < inf:
            raise ValueError(f"generate: temperature must be 0 (the likeliest token) or more, got {self.temperature}")
        if self.top_k is not None and (not isinstance(self.top_k, (int, np.integer)) or self.top_k < 1):
            raise ValueError(f"generate: top_k must be a whole number from 1, got {self.top_k!r}. None keeps every token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"generate: top_p must be in (0, 1], got {self.top_p}. Is it a percentage?")
        if not 0 < self.repetition_penalty < inf:
            raise ValueError(f"generate: repetition_penalty must be more than 0, got {self.repetition_penalty}. 1 is none")

    def probabilities(self, logits: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """The distribution to draw from: float64 (B, V) for logits (B, V) and `seen` (B, V), the tokens that occurred."""
        scores = self._scores(logits, seen)
        if self.temperature == 0:
            return (np.arange(scores.shape[1]) == scores.argmax(-1)[:, None]).astype(float)
        scores /= self.temperature
        if self.top_k is not None and self.top_k < scores.shape[1]:
            least = np.partition(scores, -self.top_k)[:, -self.top_k, None]
            scores[scores < least] = -inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        if self.top_p is not None:
            order = p.argsort(-1)[:, ::-1]
            falling = np.take_along_axis(p, order, -1)
            before = np.roll(falling.cumsum(-1), 1, -1)         # the probability of all likelier tokens
            before[:, 0] = 0
            np.put_along_axis(p, order, np.where(before < self.top_p, falling, 0), -1)
            p /= p.sum(-1, keepdims=True)
        return p

    def choose(self, logits: np.ndarray, seen: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """The next tokens (B,): for each number in [0, 1) of `uniform` (B,), where the summed probabilities pass it."""
        if self.temperature == 0:
            return self._scores(logits, seen).argmax(-1)
        return (self.probabilities(logits, seen).cumsum(-1) > uniform[:, None]).argmax(-1)

    def _scores(self, logits: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """A float64 copy of the logits, those of tokens that occurred before made smaller."""
        scores, penalty = logits.astype(np.float64), self.repetition_penalty
        if penalty == 1:
            return scores
        return np.where(seen, np.where(scores < 0, scores * penalty, scores / penalty), scores)


class Generative:
    """Gives a causal model `generate`, `stream` and `generate_ids`.

    The model has `config.vocab_size`, `config.block_size`, `features(batch, cache=None)` -> (B, T, C), and `head`, from
    (..., C) to logits (..., V). It may be in training mode and stays in it, but dropout is off while it generates.
    """

    config: Any
    tokenizer: Tokenizer | None
    headless = False            # whether this is a copy from which what only gives logits was left out

    def require_head(self) -> None:
        """Raises ValueError where what gives the logits was left out."""
        if self.headless:
            raise ValueError(f"{type(self).__name__}: the output matrix or its bias was left out of this copy, for a "
                             "classifier or another head. Load the language model itself")

    def new_cache(self, length: int) -> Any:
        """What keeps the `length` tokens read so far, for `features(batch, cache)`; `keep(rows)` drops the other rows."""
        return KVCache(length)

    def generate(self, prompt: Prompt | Sequence[Prompt], max_new_tokens: int = 100, *, temperature: float = 1.0,
                 top_k: int | None = None, top_p: float | None = None, repetition_penalty: float = 1.0,
                 stop: str | Sequence[str] = (), cache: bool = True) -> str | list[str]:
        """How the model continues a text, or each of a list of texts: the new text alone.

        With a tokenizer that reads backwards it writes what comes before a text, and `stop` is what the new text begins after.
        A prompt is a text, or what `data.chat_prompt(messages)` makes of a conversation. What is written ends after
        `max_new_tokens`, at the end token, or before the first of the texts `stop`. An empty prompt starts from the tokenizer's
        start token, or else from the end token, which stands between documents. How a token is chosen: see `Sampling`;
        temperature 0 is greedy, and `mt.seed` makes draws repeatable.
        A model sees at most block_size tokens: a row that outgrows them, or a prompt that is longer, goes on from its last
        block_size // 2 tokens. `cache=False` reads these anew for every token: the same text, slowly.
        Raises ValueError for settings out of range and a model without tokenizer, TypeError for prompts that are no texts,
        FloatingPointError where the model gives logits that are not finite.
        """
        one = isinstance(prompt, (str, Example)) or not np.iterable(prompt)
        prompts: list[Any] = [prompt] if one else list(prompt)          # type: ignore[arg-type]
        texts = [""] * len(prompts)
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
        for row, piece in _written(self, prompts, max_new_tokens, sampling, stop, cache):
            texts[row] += piece
        return texts[0] if one else texts

    def stream(self, prompt: Prompt, max_new_tokens: int = 100, *, temperature: float = 1.0, top_k: int | None = None,
               top_p: float | None = None, repetition_penalty: float = 1.0, stop: str | Sequence[str] = (),
               cache: bool = True) -> Iterator[str]:
        """What `generate` returns, in pieces as they come: `for piece in model.stream("Once"): print(piece, end="")`.

        A piece never holds a part of a character or of a text in `stop`. Between two pieces the model is in its own mode, and
        the iterator may be left at any time.
        """
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
        return (piece for _, piece in _written(self, [prompt], max_new_tokens, sampling, stop, cache) if piece)

    def generate_ids(self, prompts: Sequence[Sequence[int]] | np.ndarray, max_new_tokens: int = 100, *,
                     temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
                     repetition_penalty: float = 1.0, end: int | None = None, banned: Sequence[int] = (),
                     cache: bool = True) -> list[list[int]]:
        """`generate` without a tokenizer: rows of ids -> the new ids of each row.

        The id `end` ends a row and is left out; the ids `banned`, as that of a padding token, are never chosen.
        """
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
        rows = _Rows(self, prompts, max_new_tokens, sampling, end, banned, cache)
        new: list[list[int]] = [[] for _ in rows.windows]
        for row, token in rows.grow():
            new[row].append(token)
        return new


def _written(model: Any, prompts: list[Prompt], max_new_tokens: int, sampling: Sampling, stop: str | Sequence[str],
             cache: bool) -> Iterator[tuple[int, str]]:
    """(row, piece of its text) as they come; wrong arguments are told now, not with the first piece."""
    tokenizer: Tokenizer | None = model.tokenizer
    if tokenizer is None:
        raise ValueError("generate: the model has no tokenizer. Set model.tokenizer, or give ids to model.generate_ids")
    for prompt in prompts:
        if not isinstance(prompt, (str, Example)):
            raise TypeError(f"generate: a prompt must be a text or chat_prompt(messages), got {prompt!r:.60}. Ids go to "
                            "model.generate_ids")
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(text, str) and text for text in stop):
        raise ValueError(f"generate: stop must be texts of at least one character, got {stop}. () stops at none")
    examples = [prompt if isinstance(prompt, Example) else Example(prompt, (), ()) for prompt in prompts]
    ids = [row.tolist() or [tokenizer.end] for row, _ in encode_examples(examples, tokenizer)]
    banned = list(range(tokenizer.vocab_size, model.config.vocab_size))     # an embedding may have rows that are no token
    banned += [token for token in (tokenizer.pad, tokenizer.start, tokenizer.mask) if token is not None]
    rows = _Rows(model, ids, max_new_tokens, sampling, tokenizer.end, banned, cache)
    return _pieces(rows, [_Text(tokenizer, stop, row[-1]) for row in ids])


def _pieces(rows: _Rows, texts: list[_Text]) -> Iterator[tuple[int, str]]:
    for row, token in rows.grow():
        yield row, texts[row].add(token)
        rows.live[row] &= not texts[row].stopped
    for row, text in enumerate(texts):
        yield row, text.rest()


class _Text:
    """The new text of a row as it grows, given out as far as it is certain: one that is written from its end, all at last.

    Inside, such a text stands turned round, character by character, so that it too grows to the right.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], before: int) -> None:
        self.turned = turned = slice(None, None, -1 if tokenizer.backward else 1)
        self.decode, self.stop = lambda ids: tokenizer.decode(ids)[turned], [text[turned] for text in stop]
        self.text, self.given, self.stopped = "", 0, False
        self._forget([before])

    def _forget(self, recent: list[int]) -> None:
        """The last token stays: what a tokenizer puts between two tokens shows only where it decodes both."""
        self.recent, self.known = recent, len(self.decode(recent))

    def add(self, token: int) -> str:
        """What is certain with one token more."""
        self.recent.append(token)
        text = self.decode(self.recent)
        piece = self._give(text.rstrip(UNFINISHED), last=False)
        if not text.endswith(UNFINISHED):
            self._forget(self.recent[-1:])
        return piece

    def rest(self) -> str:
        """What was held back, when no token follows any more."""
        return self._give(self.decode(self.recent), last=True)

    def _give(self, recent: str, last: bool) -> str:
        self.text += recent[self.known :]
        self.known = max(self.known, len(recent))
        found = [at for stop in self.stop if (at := self.text.find(stop, self.given)) >= 0]
        self.stopped = bool(found)
        starts = (n for stop in self.stop for n in range(len(stop)) if self.text.endswith(stop[:n]))
        held = 0 if last else len(self.text) if self.turned.step < 0 else max(starts, default=0)
        start, self.given = self.given, min(found, default=len(self.text) - held)
        return self.text[start : self.given][self.turned]


class _Rows:
    """Rows that grow by a token a step while they are live; who sets live[row] to False ends one."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]] | np.ndarray, max_new_tokens: int, sampling: Sampling,
                 end: int | None, banned: Sequence[int], cached: bool) -> None:
        if not isinstance(max_new_tokens, (int, np.integer)) or max_new_tokens < 1:
            raise ValueError(f"generate: max_new_tokens must be a whole number from 1, got {max_new_tokens!r}")
        model.require_head()
        self.model, self.max_new_tokens, self.sampling = model, max_new_tokens, sampling
        self.end, self.banned, self.cached = end, list(banned), cached
        self.windows = _checked(prompts, model.config.vocab_size)           # what the model sees of each row
        self.live = np.ones(len(self.windows), bool)
        self.seen = np.zeros((len(self.windows), model.config.vocab_size), bool)    # (B, V) which tokens a row holds
        for seen, window in zip(self.seen, self.windows):
            seen[window] = True
        self.cache: KVCache | None = None
        self.width = 0                          # how many columns the cache has filled

    def grow(self) -> Iterator[tuple[int, int]]:
        """(row, new token) one by one; the end token ends its row and is left out."""
        rows = np.arange(len(self.windows))
        for _ in range(self.max_new_tokens):
            go_on = self.live[rows]
            if self.cache is not None and not go_on.all():
                self.cache.keep(to_device(np.flatnonzero(go_on), self.model.device))
            rows = rows[go_on]
            if not len(rows):
                return
            logits = self._logits(rows)
            logits[:, self.banned] = -inf
            uniform = random.uniform("sample", len(self.live))[rows] if self.sampling.temperature else np.zeros(len(rows))
            tokens = self.sampling.choose(logits, self.seen[rows], uniform)
            self.seen[rows, tokens] = True
            for row, token in zip(rows.tolist(), tokens.tolist()):
                self.windows[row].append(token)
                self.live[row] = token != self.end
                if self.live[row]:
                    yield row, token

    def _logits(self, rows: np.ndarray) -> np.ndarray:
        """Float64 (B, V) of the next token of these rows."""
        batch = self._batch(rows)
        with self.model.evaluating(), sharing():  # left before the next piece is given out
            logits = self.model.head(self.model.features(batch, self.cache)[:, -1]).numpy().astype(np.float64)
        if not np.isfinite(logits).all():
            raise FloatingPointError("generate: the model's logits are not finite. Did its training diverge?")
        return logits

    def _batch(self, rows: np.ndarray) -> Batch:
        """The last token of each row where the cache holds those before it, else the rows as a whole."""
        size = self.model.config.block_size
        self.width += 1
        windows = [self.windows[row] for row in rows]
        if self.cache is not None and self.width <= size:
            last = np.array([[window[-1]] for window in windows])           # (B, 1)
            length = np.array([[len(window)] for window in windows])
            batch = Batch(last, length - 1, self.width - length, np.full_like(last, self.width - 1), np.full_like(last, IGNORE))
            return batch.to(self.model.device, self.width - 1)
        for window in windows:
            if len(window) > size:              # half of it, or the next token would need the same work again
                del window[: -max(1, size // 2)]
        batch = Batch.causal([[window] for window in windows], side="left")
        self.width = batch.ids.shape[1]
        self.cache = self.model.new_cache(size) if self.cached else None
        return batch.to(self.model.device)


def _checked(prompts: Sequence[Sequence[int]] | np.ndarray, vocab_size: int) -> list[list[int]]:
    """The rows of ids as lists of their own."""
    rows = [np.asarray(prompt) for prompt in prompts]
    for b, row in enumerate(rows):
        if row.ndim == 1 and not row.size:
            raise ValueError(f"generate: row {b} is empty. Begin with the end token, which stands between documents")
        if row.ndim != 1 or row.dtype.kind not in "iu":
            raise TypeError(f"generate: expected rows of integer ids, as in [[5, 6, 7]], got {prompts!r:.60}")
        if not 0 <= row.min() <= row.max() < vocab_size:
            raise ValueError(f"generate: ids must lie in 0 .. {vocab_size - 1}, got {row.min()} .. {row.max()} in row {b}. "
                             "Was the text encoded with another tokenizer?")
    return [row.tolist() for row in rows]
