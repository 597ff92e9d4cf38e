"""The how-to pages can be followed from the top: their code runs as it stands, and prints what they say, figures aside.

Blocks of python and bash run in their order; what a text block shows must be among what the block before it printed. Shown
only: console (a session, words that a model wrote), csv and json. Errors that a page quotes are made to happen.
"""

import io
import json
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from own_data import ship

from minitune import cli
from minitune.data import load
from minitune.experiments import Pretraining, finetune, pretrain

PAGES = sorted((Path(__file__).parent.parent / "docs").glob("howto_*.md"))
TINY = Pretraining(vocab_size=600, block_size=128, n_layer=1, n_head=2, n_embd=16, steps=2, batch_size=4, held_out=2)
SHOWN = {"console", "csv", "json"}
load_once = cache(load)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page):
    """(language, content) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def section(page, title):
    """What stands under a heading, "" where the page has none."""
    found = re.search(rf"^## [\d. ]*{title}\n(.*?)(?=^## |\Z)", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def comparable(text):
    """A line in which every number is #, and white space is one space."""
    return " ".join(re.sub(r"\d[\d,.]*", "#", text).split())


def minitune(arguments):
    """(exit code, what was printed, the last line of what was told) of the command."""
    out, told = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(told):
        code = cli.main(arguments)
    return code, out.getvalue(), told.getvalue().strip().rpartition("\n")[2]


def python(code, names):
    """What the code printed."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        exec(compile(code, names["__name__"], "exec"), names)
    return out.getvalue()


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory):
    """A tiny model that has read the texts that the pages are about."""
    folder = tmp_path_factory.mktemp("base")
    pretrain(load_once("pydocs"), folder, TINY, progress=False)
    return folder


@pytest.fixture
def small(tiny_base, tmp_path, tmp_path_factory, monkeypatch):
    """An empty working directory, and models that are made in a moment."""
    for package in "sklearn", "matplotlib":
        pytest.importorskip(package, reason=f'the pages need {package}: pip install "minitune[demo]"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    ship(tiny_base, tmp_path_factory.mktemp("shipped"), monkeypatch)
    for module in "minitune.cli.arguments", "minitune.data":
        monkeypatch.setattr(f"{module}.load", load_once)
    for module in "minitune.cli.finetune", "minitune.experiments.text_classifier":
        monkeypatch.setattr(f"{module}.finetune", one_epoch)
    monkeypatch.setattr("minitune.cli.pretrain.pretrain",
                        lambda dataset, folder, settings, **rest: pretrain(dataset, folder, TINY, **rest))


def one_epoch(dataset, base, settings, *others, **named):
    return finetune(dataset, base, replace(settings, epochs=1), *others, **named)


@every_page
def test_a_page_can_be_followed_from_the_top(page, small):
    names, printed = {"__name__": page.stem}, ""
    for language, content in blocks(page):
        if language == "python":
            printed = python(content, names)
        elif language == "bash":
            printed = ""
            for line in content.splitlines():
                program, *arguments = shlex.split(line)
                code, out, told = minitune(arguments)
                assert (program, code) == ("minitune", 0), f"{line}: {told}"
                printed += out
        elif language == "text":
            found = [comparable(line) for line in printed.splitlines()]
            for line in content.splitlines():
                wanted = comparable(line.removesuffix("..."))
                assert any(shown.startswith(wanted) for shown in found), f"not printed: {line}\n{printed}"
        else:
            assert language in SHOWN, f"a block of {language or 'no language'}: {content}"
    for name in re.findall(r"^\| `([^`]+)` \| ", section(page, "What lies in the folder"), re.MULTILINE):
        assert (Path("runs/reviews") / name).exists(), name
    told = [fail(*fault) for fault in FAULTS.get(page.stem, ())]
    for quotation in re.findall(r"^- `(.+)`$", section(page, "When it errs"), re.MULTILINE):
        assert any(quotation in line for line in told), "\n".join([quotation, "is none of", *told])


def test_there_are_pages():
    assert {page.stem for page in PAGES} >= set(FAULTS)


@every_page
def test_a_page_has_something_to_run(page):
    assert {"python", "bash"} <= {language for language, _ in blocks(page)}


@every_page
def test_every_option_in_a_page_exists(page):
    subparsers = next(action for action in cli.make_parser()._actions if action.dest == "command")
    options = {name: set(command._option_string_actions) for name, command in subparsers.choices.items()}
    text = page.read_text(encoding="utf-8")
    used = [(command, set(re.findall(r"(?<= )--[a-z-]+", line)))
            for command, line in re.findall(r"\bminitune ([a-z-]+)([^`\n]*)", text) if command in options]
    assert used and all(given <= options[command] for command, given in used), used
    assert set(re.findall(r"(?<!`)`(--[a-z-]+)", text)) <= set().union(*options.values())


# ---- The errors that pages quote -------------------------------------------------------------------------------------

QUESTION, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def fail(arguments, file="", content=""):
    """What the command tells that fails after a file was written."""
    if file:
        Path(file).write_text(content, encoding="latin-1")
    code, _, told = minitune(shlex.split(arguments))
    assert code == 2, arguments
    return told


def chats(*last, before=2):
    """As many chats as are to come before the last, which has these messages."""
    return "".join(json.dumps({"messages": chat}) + "\n" for chat in [[QUESTION, ANSWER]] * before + [last])


FAULTS = {
    "howto_csv_to_classifier": [
        *(("data new.csv", "new.csv", content) for content in (
            "text,label\ngood,a\n,b\n", "Review body,Stars\ngood,5\nbad,1\n", "text,label\ngood, very good,a\nbad,b\n",
            "text,label\ncaf\xe9,a\nbad,b\n", "text,label\ngood,positive\nfine,positive\n")),
        ("data reviews.csv", "reviews.csv", "PK\x03\x04"),
        ("finetune more.csv --out runs/reviews",),
        ("evaluate runs/reviews other.csv", "other.csv", "text,label\ngood,yes\nbad,no\n")],
    "howto_chat_and_masks": [
        ("finetune chat.jsonl --method frozen --out runs/frozen",),
        ("predict runs/chat Wednesday?",),
        *(("data chat.jsonl", "chat.jsonl", content) for content in (
            chats(QUESTION, before=6),
            *(chats(QUESTION, ANSWER | wrong) for wrong in ({"role": "bot"}, {"content": ""}, {"weight": 0.5})),
            '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": ""}\n',
            json.dumps([{"messages": [QUESTION, ANSWER]}] * 2, indent=1)))],
    "howto_text_to_model": [
        ("generate runs/mine --temperature -1",), ("predict runs/mine Once",),
        *(("data my.txt", "my.txt", content) for content in ("Once.", " \n"))],
}
