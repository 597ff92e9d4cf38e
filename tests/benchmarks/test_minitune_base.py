"""The script that makes the model of the package: what it reads, what it leaves out, and the card that it writes."""

import json
import sys
from dataclasses import replace
from math import exp, log

import minitune_base
import numpy as np
import pytest

from minitune import models
from minitune.data import Tokenizer

WORDS = "the sea was grey and the captain of the ship looked at it as an old man looks at his house".split()


def prose(seed, paragraphs=12):
    draw = np.random.default_rng(seed)
    return "\n\n".join("\n".join(" ".join(draw.choice(WORDS, 9)) for _ in range(6)) for _ in range(paragraphs))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A shelf of short books, two authors' among them, and an encyclopedia."""
    unseen = [title for titles in minitune_base.HELD_OUT.values() for title in titles]
    shelves = {"train": [*unseen, *"abcdef"], "valid": ["v", "w"]}
    (tmp_path / "gutenberg").mkdir()
    for name, titles in shelves.items():
        lines = [json.dumps({"id": i, "title": title, "author": "x", "text": f"{title.upper()}QX\n\n{prose(i)}"})
                 for i, title in enumerate(titles)]
        (tmp_path / "gutenberg" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "wikitext2").mkdir()
    for name in ("train", "valid", "test"):
        (tmp_path / "wikitext2" / f"{name}.txt").write_text(" \n = A = \n \n the <unk> @-@ sea . \n" * 30)
    monkeypatch.setenv("MINITUNE_DATA", str(tmp_path))
    return unseen


def test_the_books_of_the_held_out_authors_are_not_read(data):
    books = minitune_base.books()
    assert len(books.train) == 6 and not [text for text in books.train.texts for title in data if title.upper() in text]
    assert all(len(text.splitlines()) == 25 for text in books.train.texts)      # title and 12 paragraphs, blank lines between


def test_the_folder_that_ships_is_float16_with_a_record_and_a_card_that_say_what_was_measured(data, tmp_path, monkeypatch,
                                                                                              capsys):
    pytest.importorskip("matplotlib", reason="the loss curve needs matplotlib")
    run, folder, image = tmp_path / "run", tmp_path / "minitune-base", tmp_path / "curve.png"
    tiny = replace(minitune_base.SETTINGS, vocab_size=300, block_size=16, n_layer=1, n_head=2, n_embd=16, batch_size=4)
    monkeypatch.setattr(minitune_base, "SETTINGS", tiny)
    monkeypatch.setattr(sys, "argv", ["minitune_base.py", "--steps", "3", "--out", str(run), "--ship", str(folder),
                                      "--image", str(image)])
    minitune_base.main()
    assert f"{sum(file.stat().st_size for file in folder.iterdir()):,} bytes" in capsys.readouterr().out
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors",
                                                              "pretraining.json", "tokenizer.json"]
    small, large = models.from_pretrained(folder), models.from_pretrained(run)
    gap = max(np.abs(small.state_dict()[name] - array).max() for name, array in large.state_dict().items())
    assert 0 < gap < 1e-3 and image.stat().st_size > 0
    record, text = json.loads((folder / "pretraining.json").read_text()), (folder / "README.md").read_text()
    assert record["steps"] == 3 and record["training_seconds"] > 0 and len(record["history"]) == 3
    assert [row["title"] for row in record["measured"]] == [*data, "v", "w", "test"]
    for row in record["measured"]:
        assert f"| {row['kind']} | {row['title']} | {row['tokens']:,} | {row['words']:,} |" in text
    assert "\n- Joseph Conrad: Within the Tides, 'Twixt Land & Sea\n" in text and "| command | `MINITUNE_DATA=... " in text
    assert "6 books" in text and "{" not in text
    words = 30 * (3 + 5 + 4)                    # of each piece: three and five, and its four lines' ends
    assert record["measured"][-1]["words"] == words


def test_perplexity_of_words_is_that_of_the_whole_text_in_other_units():
    """A model that knows nothing finds each of V tokens as likely: V a token, V^(tokens / words) a word."""
    gpt = models.GPT(models.GPTConfig(300, 16, 1, 2, 16))
    gpt.tokenizer = Tokenizer.train([" ".join(WORDS)] * 9, 300)
    for p in gpt.parameters():
        p.data[...] = 0
    text = " ".join(WORDS * 20)
    found = minitune_base.perplexities(gpt, text, more_words=5)
    assert found["words"] == len(WORDS) * 20 + 5 and found["tokens"] == len(gpt.tokenizer.encode(text))
    assert found["perplexity"] == pytest.approx(300, rel=1e-5)           # float32's sums
    assert found["perplexity_of_words"] == pytest.approx(exp(log(300) * found["tokens"] / found["words"]), rel=1e-4)
