"""minitune generate: a text, written on from a prompt, as it comes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import backend
from ..data import Example, chat_prompt
from ..experiments.finetuning import model_folder
from ..models import from_pretrained
from ..models.language_model import LanguageModel
from .arguments import add_device, natural, positive
from .run_folder import read_record


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser("generate", help="write on from a prompt", description=(
        "Writes on from a prompt. A model that was fine-tuned on chats takes the prompt as a user's message, one that was "
        "fine-tuned on prompts and answers takes it as one of these."))
    parser.add_argument("model", type=Path, metavar="RUN", help="a run's folder, a model's, or minitune-base, which "
                        "comes with the package")
    parser.add_argument("prompt", nargs="?", default="", metavar="PROMPT", help="default: nothing, a text from its beginning")
    parser.add_argument("--max-new-tokens", type=positive, default=100, metavar="N", help="default: 100")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="X", help="0: always the likeliest (default: 0.8)")
    parser.add_argument("--top-k", type=positive, metavar="N", help="choose among the N likeliest tokens only")
    parser.add_argument("--top-p", type=float, metavar="P", help="choose among the likeliest that make up P (default: 0.95)",
                        default=0.95)
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: repeat less (default: 1)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given again")
    parser.add_argument("--system", metavar="TEXT", help="for a chat: the system's message before the prompt")
    parser.add_argument("--count", type=positive, default=1, metavar="N", help="so many texts (default: 1)")
    parser.add_argument("--seed", type=natural, default=0, metavar="N")
    add_device(parser)
    parser.set_defaults(run=run)


def run(options: Any) -> None:
    """Loads, writes, prints as it comes."""
    folder = model_folder(options.model)
    model = from_pretrained(folder).to(options.device, options.dtype)
    if not isinstance(model, LanguageModel):
        raise ValueError(f"{options.model} holds a {type(model).__name__}, which writes no text. Use minitune predict")
    record = read_record(folder) or read_record(folder.parent)     # of a run it is RUN/model
    made_of = (record or {}).get("data") or {}
    prompt: str | Example = options.prompt
    chat = made_of.get("kind") == "chat"
    if options.system and not chat:
        raise ValueError(f"--system is for models fine-tuned on chats, which {options.model} is not")
    if chat:
        before = [{"role": "system", "content": options.system}] if options.system else []
        prompt = chat_prompt([*before, {"role": "user", "content": options.prompt}])
    elif not options.prompt.endswith(end := made_of.get("prompts_end_with", "")):
        prompt = options.prompt + end
    backend.seed(options.seed)
    for _ in range(options.count):
        print("" if chat else options.prompt, end="", flush=True)
        for piece in model.stream(prompt, options.max_new_tokens, temperature=options.temperature, top_k=options.top_k,
                                  top_p=options.top_p, repetition_penalty=options.repetition_penalty, stop=options.stop):
            print(piece, end="", flush=True)
        print()
