"""Example: a text, and which of its characters a model is to learn to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Example:
    """`text`, the character spans [start, stop) in it that are `supervised`, and the places where an end token stands.

    The model learns to write what is supervised, and the end token after it; the rest it only reads. `name` says where the
    example comes from, for errors. `Example.plain`, `completion` and `chat` make the usual kinds; any spans may be given.
    Raises ValueError where a span leaves the text, is empty, or begins before the one in front of it has ended.

    >>> Example.completion("2 + 2 =", " 4")
    Example(text='2 + 2 = 4', supervised=((7, 9),), ends=(9,), name='')
    """

    text: str
    supervised: tuple[tuple[int, int], ...]
    ends: tuple[int, ...]
    name: str = ""

    def __post_init__(self) -> None:
        place = 0
        for start, stop in self.supervised:
            if not place <= start < stop <= len(self.text):
                raise ValueError(f"{self.name or 'Example'}: supervised spans must be in order, not empty and inside the "
                                 f"text's {len(self.text)} characters, got {list(self.supervised)}")
            place = stop
        if not all(0 <= end <= len(self.text) for end in self.ends) or list(self.ends) != sorted(set(self.ends)):
            raise ValueError(f"{self.name or 'Example'}: ends must be places in the text's {len(self.text)} characters, in "
                             f"order, got {list(self.ends)}")

    @classmethod
    def plain(cls, text: str, name: str = "") -> Example:
        """A text to be learned as a whole, and where it ends. Raises ValueError where it is empty."""
        if not text:
            raise ValueError(f"{name or 'Example.plain'}: the text is empty. Leave empty texts out")
        return cls(text, ((0, len(text)),), (len(text),), name)

    @classmethod
    def completion(cls, prompt: str, completion: str, name: str = "") -> Example:
        """A prompt, which is only read, and its completion, which is learned. Raises ValueError where this is empty."""
        if not completion:
            raise ValueError(f"{name or 'Example.completion'}: the completion is empty, so there is nothing to learn. "
                             "Leave the row out")
        whole = prompt + completion
        return cls(whole, ((len(prompt), len(whole)),), (len(whole),), name)

    @classmethod
    def chat(cls, messages: Sequence[Mapping[str, Any]], name: str = "") -> Example:
        """A conversation {"role": "system" | "user" | "assistant", "content": str}: the assistant's messages are learned.

        Each message stands on lines of its own after its role ("User:", "Assistant:"); an end token follows each of the
        assistant's. A message with "weight": 0 is only read, its end token included.
        Raises ValueError where a message is malformed or none of the assistant's is to be learned.
        """
        text, spans, ends = _written(_checked(messages, name))
        if not spans:
            raise ValueError(f"{name or 'Example.chat'}: no message of the assistant is to be learned. Give one with role "
                             '"assistant" and without "weight": 0')
        return cls(text[:-1], tuple(spans), tuple(ends), name)


def chat_prompt(messages: Sequence[Mapping[str, Any]]) -> Example:
    """What stands before the assistant's next message, as `Example.chat` writes it: the prompt that `generate` answers.

    An end token follows each of the assistant's earlier messages, which a prompt of plain text could not hold.
    """
    text, spans, ends = _written(_checked(messages, "chat_prompt"))
    return Example(f"{text}{ROLES['assistant']}:", tuple(spans), tuple(ends), "chat_prompt")


def _written(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[int, int]], list[int]]:
    """(text, spans of the assistant's messages to be learned, ends of all of the assistant's)"""
    text, spans, ends = "", [], []
    for message in messages:
        text += f"{ROLES[message['role']]}:"
        start, text = len(text), text + f" {message['content']}"
        if message["role"] == "assistant":
            ends.append(len(text))
            if message.get("weight", 1):
                spans.append((start, len(text)))
        text += "\n"
    return text, spans, ends


def _checked(messages: Any, name: str) -> Sequence[Mapping[str, Any]]:
    """The messages, or an error that says which of them is malformed."""
    where = name or "Example.chat"
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(f'{where}: expected a list of messages {{"role": ..., "content": ...}}, got {messages!r:.60}')
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, Mapping) else message
            raise ValueError(f"{where}: message {i}: role must be one of {', '.join(ROLES)}, got {role!r:.60}")
        content, weight = message.get("content"), message.get("weight", 1)
        if not isinstance(content, str) or not content.strip():
            raise ValueError(f"{where}: message {i} ({message['role']}): content must be a text that is not empty, "
                             f"got {content!r:.60}")
        if weight not in (0, 1):
            raise ValueError(f"{where}: message {i}: weight must be 0 or 1, got {weight!r}")
    return messages
