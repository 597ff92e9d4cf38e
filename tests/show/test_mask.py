"""Every token is shown in its state, in colour, in plain text and in HTML, and no text is lost."""

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from minitune.show import mask

TOKENS = ["User", ":", " 2", "\n", "<b>", "&amp;", " 4", "  ", "\t\x1b[31m", '"</span>', "<|endoftext|>", " cut", "\n\n"]
STATES = ["ignored"] * 4 + ["supervised"] * 7 + ["truncated"] * 2
EXAMPLE = SimpleNamespace(tokens=TOKENS + ["<pad>"] * 37, states=STATES + ["padding"] * 37)
PLAIN = r"""ignored    | User:·2↵
supervised | <b>&amp;·4··⇥\x1b[31m"</span><|endoftext|>
truncated  | ·cut↵
           | ↵
padding    | [padding x 37]
7 supervised, 4 ignored, 2 truncated, 37 padding"""


class Boxes(HTMLParser):
    """The (tooltip, text) of every span, and whether each tag was closed in its turn."""

    def __init__(self, html):
        super().__init__()
        self.found, self.open = [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "span":
            self.found.append((dict(attributes).get("title"), ""))

    def handle_data(self, data):
        assert self.open[-1] == "span" or data == " "
        if self.open[-1] == "span":
            self.found[-1] = (self.found[-1][0], self.found[-1][1] + data)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_without_colour_the_states_stand_in_the_margin():
    assert str(mask(EXAMPLE, colour=False)) == PLAIN


def test_no_color_in_the_environment_is_obeyed(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert str(mask(EXAMPLE)) == PLAIN


def test_in_colour_each_state_has_its_own_and_the_legend_shows_them():
    text, legend = str(mask(EXAMPLE)).rsplit("\n\n", 1)
    painted = re.findall(r"(\x1b\[[\d;]+m)(.*?)\x1b\[0m", text)
    named = {words.split()[1]: colour for colour, words in re.findall(r"(\x1b\[[\d;]+m)(.*?)\x1b\[0m", legend)}
    assert list(named) == ["supervised", "ignored", "truncated", "padding"] and len(set(named.values())) == 4
    assert painted == [(named["ignored"], "User:·2↵"), (named["supervised"], PLAIN.splitlines()[1][13:]),
                       (named["truncated"], "·cut↵"), (named["truncated"], "↵"), (named["padding"], "[padding x 37]")]


def test_html_holds_every_token_whole_with_its_state_as_tooltip():
    boxes = Boxes(mask(EXAMPLE)._repr_html_()).found
    tokens, legend = boxes[: len(TOKENS) + 1], boxes[len(TOKENS) + 1 :]
    assert tokens.pop() == ("token 13: padding", "[padding x 37]")
    assert [title for title, _ in tokens] == [f"token {i}: {state}" for i, state in enumerate(STATES)]
    texts = [text.replace("↵\n", "\n").replace("⇥", "\t").replace(r"\x1b", "\x1b") for _, text in tokens]
    assert texts == TOKENS and tokens[3][1] == "↵\n"
    assert [text for _, text in legend] == ["7 supervised", "4 ignored", "2 truncated", "37 padding"]


def test_control_characters_never_reach_the_terminal():
    every = "".join(map(chr, [*range(32), *range(127, 160)]))
    shown = str(mask(SimpleNamespace(tokens=[every], states=["ignored"]), colour=False))
    assert not set(shown) & (set(every) - {"\n"})


def test_padding_may_stand_anywhere_and_other_states_may_be_absent():
    example = SimpleNamespace(tokens=["p", "p", "a", "p"], states=["padding", "padding", "supervised", "padding"])
    assert str(mask(example, colour=False)).splitlines() == [
        "padding    | [padding x 2]", "supervised | a", "padding    | [padding x 1]",
        "1 supervised, 0 ignored, 0 truncated, 3 padding"]
    assert [title for title, _ in Boxes(mask(example)._repr_html_()).found[:3]] == [
        "token 0: padding", "token 2: supervised", "token 3: padding"]


@pytest.mark.parametrize("tokens, states, message", [
    (["a"], [], "one state for each token, got 1 tokens and 0 states"),
    (["a", "b"], ["ignored", "masked"], "got 'masked' at token 1"),
    (["a", 15], ["ignored"] * 2, "tokens must be texts, got 15 at token 1. Were ids given")])
def test_what_does_not_fit_is_told(tokens, states, message):
    with pytest.raises(ValueError, match="mask: .*" + message):
        mask(SimpleNamespace(tokens=tokens, states=states))


def test_an_example_that_has_no_tokens_yet_is_told_where_they_come_from():
    with pytest.raises(TypeError, match=r"got str\. Tokens come from a tokenizer: show\.mask\(ExampleSet"):
        mask("to be")
