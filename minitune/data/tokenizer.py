"""Text to token ids and back: byte-level BPE, trained and run by the `tokenizers` library."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from ..formats.folder import write_text

END = "<|endoftext|>"
PAD = "<|padding|>"
START, MASK = "<|start|>", "<|mask|>"
# How known vocabularies spell (end, padding, start, mask): minitune's and GPT-2's, BERT's, Llama's and RoBERTa's, Llama 3's.
SPELLINGS = ((END, PAD, START, MASK), ("[SEP]", "[PAD]", "[CLS]", "[MASK]"), ("</s>", "<pad>", "<s>", "<mask>"),
             ("<|end_of_text|>", "<|finetune_right_pad_id|>", "<|begin_of_text|>", MASK))


class Tokenizer:
    """Byte-level byte-pair encoding: text -> UTF-8 bytes -> merges of frequent neighbours -> token ids.

    One that `Tokenizer.train` makes encodes every text, and gives it back unchanged, `decode(encode(text)) == text`: there is
    no unknown token, no normalisation and no added space. `Tokenizer.load` reads others too, as BERT's, which may have these.

    With `backward` set to True the ids of a text come from its last token to its first, and `decode` turns them round again:
    every set made so is read from the end, as the second model of a forward and backward pair does (Howard and Ruder 2018,
    section 3.3). What stands around a text stays in its place: `frame` begins with `start` and ends with `end`. Where other
    models have the same tokenizer, set it on a copy: `copy.copy(tokenizer)`.

    Source: Sennrich et al. 2016, Neural Machine Translation of Rare Words with Subword Units, section 3.2; on bytes:
    Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.2.

    >>> tokenizer = Tokenizer.train(["low lower lowest"] * 10, vocab_size=270)
    >>> tokenizer.decode(tokenizer.encode("slow café ☕"))
    'slow café ☕'
    """

    end: int                    # the id of the end-of-document token
    pad: int | None             # that of the padding token, never equal to `end`; None where a loaded file has none
    start: int | None           # that of the token before a document ([CLS] of BERT, <s> of Llama), or None
    mask: int | None            # that of the token that stands for a hidden one, or None
    backward: bool = False      # whether a text's ids come from its last token to its first

    def __init__(self, rules: tokenizers.Tokenizer, end: str = END, pad: str = PAD, start: str = START,
                 mask: str = MASK) -> None:
        found = rules.token_to_id(end)
        if found is None:
            raise ValueError(
                f"Tokenizer: expected an end-of-document token {end!r}, but the vocabulary of "
                f"{rules.get_vocab_size():,} tokens has none. Name the one it uses: Tokenizer.load(file, end=...), or, in a "
                "model's folder, eos_token_id in config.json."
            )
        self.end = found
        self.pad, self.start, self.mask = (rules.token_to_id(name) for name in (pad, start, mask))
        if self.pad == self.end:
            raise ValueError(f"Tokenizer: end and pad must be two tokens, got {end!r} for both. Leave pad out.")
        # Files from elsewhere may ask to cut or pad every text; `encode` promises the whole text and nothing else.
        rules.no_truncation()
        rules.no_padding()
        self._rules = rules

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, progress: bool = False, masked: bool = False) -> Tokenizer:
        """Learn a tokenizer of `vocab_size` tokens (256 bytes, end, padding, merges) from `texts`.

        With `masked` there are a start and a mask token too, for a masked language model.
        The same texts in the same order give the same tokenizer. A pair must occur twice to be merged, so texts with
        too few repetitions give fewer tokens. Raises ValueError when `vocab_size` is below 258 (260 with `masked`), TypeError
        when `texts` is one string.

        >>> Tokenizer.train(["to be or not to be"] * 9, vocab_size=262).vocab_size
        262
        """
        special = (END, PAD, START, MASK)[: 4 if masked else 2]
        if vocab_size < 256 + len(special):
            raise ValueError(
                f"Tokenizer.train: vocab_size must be at least {256 + len(special)} (256 bytes, {', '.join(special)}), "
                f"got {vocab_size}. A small model does well with 2,000 to 8,000."
            )
        _require_texts("Tokenizer.train", texts)
        rules = tokenizers.Tokenizer(models.BPE())
        rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rules.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, show_progress=progress,
                                      special_tokens=[AddedToken(name, special=True) for name in special],
                                      initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
        rules.train_from_iterator(texts, trainer)
        return cls(rules)

    @property
    def vocab_size(self) -> int:
        """The number of tokens, special ones included: ids are 0 .. vocab_size - 1."""
        return self._rules.get_vocab_size()

    @property
    def vocabulary(self) -> dict[str, int]:
        """{spelling of a token: its id}, special ones included; on bytes each byte is spelt as a letter, a space as Ġ."""
        return self._rules.get_vocab()

    @property
    def largest_id(self) -> int:
        """The largest id that `encode` gives: no special token's."""
        return max(set(self.vocabulary.values()).difference(self.special), default=-1)

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`: no special token is added, and the spelling of one in `text` is plain text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, as `encode` gives them; long lists run on several threads.

        Raises TypeError for what is no text, half a surrogate pair included: it has no UTF-8 bytes.
        """
        _require_texts("Tokenizer.encode_batch", texts)
        # Set here because neither a file nor a pickle keeps it: "<|endoftext|>" in a text must not end a document.
        self._rules.encode_special_tokens = True
        try:
            encodings = self._rules.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError as error:
            odd = next((text for text in texts if not isinstance(text, str)), "half a surrogate pair")
            raise TypeError(
                f"Tokenizer.encode: expected texts (str, valid Unicode), got {odd!r:.60}. Read files with their own "
                "encoding, or clean a text by text.encode('utf-8', 'replace').decode()."
            ) from error
        return [encoding.ids[::-1] if self.backward else encoding.ids for encoding in encodings]

    @property
    def special(self) -> list[int]:
        """The ids of all special tokens: start, end, padding, mask, unknown and whatever else a file marks as such."""
        added = self._rules.get_added_tokens_decoder().items()
        return sorted({i for i, token in added if token.special} | {self.end})

    def frame(self, ids: Sequence[int]) -> list[int]:
        """A document as a model reads it: the start token, where there is one, `ids`, and the end token."""
        return [*([] if self.start is None else [self.start]), *ids, self.end]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens left out; bytes that are no UTF-8 (a character cut in two) become U+FFFD.

        Raises ValueError for an id outside the vocabulary.
        """
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise ValueError(
                f"Tokenizer.decode: expected ids in 0 .. {self.vocab_size - 1}, got {min(ids)} .. {max(ids)}. "
                "Do the ids come from another tokenizer?"
            )
        return self._rules.decode(ids[::-1] if self.backward else ids, skip_special_tokens=True)

    def spell(self, ids: Iterable[int]) -> list[str]:
        """The text of each token by itself, special tokens by their names; half a character becomes U+FFFD."""
        return [self._rules.decode([int(i)], skip_special_tokens=False) for i in ids]

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the Hugging Face `tokenizer.json` form, whole or not at all; it has no place for `backward`."""
        write_text(Path(file), self._rules.to_str(pretty=True))

    @classmethod
    def load(cls, file: str | os.PathLike[str], end: str | int | None = None, pad: str | int | None = None,
             start: str | int | None = None) -> Tokenizer:
        """Read a `tokenizer.json`, from `save` or from Hugging Face.

        The special tokens are those of minitune, GPT-2, BERT, RoBERTa or Llama, whichever the file has, unless they are given:
        as names, or as the ids that a config.json has, of which those count that are special tokens in the file. GPT-2 has no
        padding token, and its config.json the end's id at most: `pad` is then None, not `end`, because whoever finds a row's
        last token by its padding would lose the end token too. Raises FileNotFoundError, and ValueError for a file of another
        kind or without the end token.
        """
        text = Path(file).read_text(encoding="utf-8")
        try:
            rules = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(
                f"Tokenizer.load: expected a Hugging Face tokenizer.json, but {file} is none ({error}). "
                "Is it a vocab.json or another model's file?"
            ) from error
        special = {i: token.content for i, token in rules.get_added_tokens_decoder().items()}
        pad, start = (None if isinstance(given, int) and given == end else given for given in (pad, start))
        end, pad, start = (special.get(given) if isinstance(given, int) else given for given in (end, pad, start))
        known = next((names for names in SPELLINGS if end in (None, names[0]) and rules.token_to_id(names[0]) is not None),
                     SPELLINGS[0])
        return cls(rules, end or known[0], pad or known[1], start or known[2], known[3])

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, end={self.end}, pad={self.pad}{', backward=True' * self.backward})"


def _require_texts(caller: str, texts: object) -> None:
    """One string is a sequence of strings too, its characters: certainly not what was meant."""
    if isinstance(texts, str):
        raise TypeError(f"{caller}: expected a list of texts, got one str. Write [text].")
