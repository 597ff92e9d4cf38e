"""from_pretrained: the model in a folder."""

from __future__ import annotations

from pathlib import Path

from ..data import Tokenizer
from ..formats import gpt2
from ..formats.folder import read_model
from ..nn import shapes_only
from .classifier import Classifier
from .gpt import GPT, GPTConfig


def from_pretrained(folder: str | Path) -> GPT | Classifier:
    """The model in a folder that `save_pretrained` or Hugging Face wrote, in evaluation mode: a GPT, or a Classifier on one.

    Raises FileNotFoundError where a file is missing, ValueError where its contents do not fit; all misfits are listed.
    """
    config, tensors = read_model(folder)
    sizes = GPTConfig(**gpt2.config_from_hugging_face(config))
    state = gpt2.from_hugging_face(tensors, sizes.n_layer)
    with shapes_only():                         # no random weights are drawn for a model that is about to be filled
        model: GPT | Classifier = GPT(sizes)
        if "head.weight" in state:
            labels = gpt2.labels_from_hugging_face(config, len(state["head.weight"]))
            model = Classifier(model, labels, config.get("minitune_pooling", "last"))
    model.load_state_dict(state)
    if (Path(folder) / "tokenizer.json").exists():
        model.tokenizer = Tokenizer.load(Path(folder) / "tokenizer.json")
        if model.tokenizer.vocab_size > sizes.vocab_size:
            raise ValueError(f"from_pretrained: {folder}: tokenizer.json has {model.tokenizer.vocab_size:,} tokens, the "
                             f"model's embedding {sizes.vocab_size:,} rows. Is it another model's tokenizer?")
    model.eval()                                # as Hugging Face's: dropout is off until the model is trained
    return model
