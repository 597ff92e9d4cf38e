"""GPT-2 in Hugging Face's names and shapes, there and back.

Three things differ from minitune: the prefix "transformer.", linear weights stored as (in, out), and query, key and
value fused in one c_attn (C, 3 C).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

POOLED = "minitune_gpt2_classifier"             # the model type of a classifier that pools as Hugging Face's does not

# minitune's name -> Hugging Face's; {i} is the block. Weights under TRANSPOSED are stored there as (in, out).
NAMES = {
    "token_embedding": "wte", "position_embedding": "wpe", "norm": "ln_f",
    "blocks.{i}.attention_norm": "h.{i}.ln_1", "blocks.{i}.mlp_norm": "h.{i}.ln_2",
    "blocks.{i}.attention.output": "h.{i}.attn.c_proj", "blocks.{i}.mlp.up": "h.{i}.mlp.c_fc",
    "blocks.{i}.mlp.down": "h.{i}.mlp.c_proj",
}
TRANSPOSED = ("attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight", "attn.c_attn.weight")
QKV = ("query", "key", "value")

# config.json's key -> GPTConfig's
SIZES = {"vocab_size": "vocab_size", "n_positions": "block_size", "n_layer": "n_layer", "n_head": "n_head",
         "n_embd": "n_embd"}
# what this model computes; a folder that says otherwise is refused instead of computing something else
FIXED = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
         "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "n_inner": None}


def config_to_hugging_face(config: Any) -> dict[str, Any]:
    """The config.json of a GPTConfig."""
    dropout = {key: config.dropout for key in ("resid_pdrop", "embd_pdrop")}
    sizes = {theirs: getattr(config, own) for theirs, own in SIZES.items()}
    return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **FIXED, **sizes, **dropout, "attn_pdrop": 0.0}


def classifier_to_hugging_face(labels: tuple[str, ...], pooling: str) -> dict[str, Any]:
    """What a classifier's config.json has beside its backbone's.

    Hugging Face's GPT-2 classifier reads the last token. One that pools otherwise gets a model type of its own, so that
    Hugging Face's tools refuse it instead of computing something else.
    """
    own = {} if pooling == "last" else {"model_type": POOLED, "architectures": ["MinituneClassifier"]}
    return {"architectures": ["GPT2ForSequenceClassification"], "minitune_pooling": pooling,
            "id2label": {str(i): name for i, name in enumerate(labels)},
            "label2id": {name: i for i, name in enumerate(labels)}, **own}


def labels_from_hugging_face(config: dict[str, Any], count: int) -> list[str]:
    """The names of a classifier's labels; LABEL_0, LABEL_1 ... where config.json gives none, as Hugging Face does."""
    names = config.get("id2label", {str(i): f"LABEL_{i}" for i in range(count)})
    if set(names) != {str(i) for i in range(count)}:
        raise ValueError(f"from_pretrained: the head has {count} classes, id2label names {sorted(names)}")
    return [names[str(i)] for i in range(count)]


def config_from_hugging_face(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of GPTConfig from a config.json.

    Raises ValueError, with all reasons, where a size is missing or the model computes what minitune's GPT does not.
    """
    wrong = [f"{key} is missing" for key in ("model_type", *SIZES) if key not in config]
    if config.get("model_type", "gpt2") not in ("gpt2", POOLED):
        wrong += [f"model_type is {config['model_type']!r}, expected 'gpt2'"]
    wrong += [f"{key} is {config[key]!r}, expected {value!r}" for key, value in FIXED.items()
              if config.get(key, value) != value and not (key == "n_inner" and config[key] == 4 * config.get("n_embd", 0))]
    if wrong:
        raise ValueError("from_pretrained: not a GPT-2 model that minitune computes: " + "; ".join(wrong))
    return {own: config[theirs] for theirs, own in SIZES.items()} | {"dropout": config.get("resid_pdrop", 0.0)}


def to_hugging_face(state: Arrays, n_layer: int) -> Arrays:
    """minitune's {name: array} in GPT-2's names; raises ValueError for a name that GPT-2 does not have."""
    state, renamed = dict(state), {}
    for own, theirs in _names(n_layer).items():
        for part in ("weight", "bias"):
            if f"{own}.{part}" in state:
                array = state.pop(f"{own}.{part}")
                renamed[f"transformer.{theirs}.{part}"] = array.T if f"{theirs}.{part}".endswith(TRANSPOSED) else array
    for i in range(n_layer):
        for part in ("weight", "bias"):
            names = [f"blocks.{i}.attention.{name}.{part}" for name in QKV]
            if all(name in state for name in names):
                fused = np.concatenate([state.pop(name) for name in names])             # (3 C, C) or (3 C,)
                renamed[f"transformer.h.{i}.attn.c_attn.{part}"] = fused.T
    if state:
        raise ValueError("save_pretrained: GPT-2's format has no place for " + ", ".join(sorted(state)[:6]) +
                         (" ..." if len(state) > 6 else "") + ". Are adapters still in the model? "
                         "Merge them first: tune.merge(model)")
    return renamed


def from_hugging_face(tensors: Arrays, n_layer: int) -> Arrays:
    """GPT-2's arrays in minitune's names, for a GPT or, where they hold a `score` head, for a Classifier on one.

    Masks that old files store as weights are left out. What has no place here keeps its name, so that loading lists it.
    """
    prefix = "backbone." if "score.weight" in tensors else ""
    own_names = {theirs: own for own, theirs in _names(n_layer).items()}
    state: Arrays = {}
    for full, array in tensors.items():
        name = full.removeprefix("transformer.")
        module, _, part = name.rpartition(".")
        if re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name):
            continue                                        # causal masks
        if name == "lm_head.weight":
            _check_tied(array, tensors)
        elif fused := re.fullmatch(r"h\.(\d+)\.attn\.c_attn", module):
            if array.shape[-1] % 3:
                raise ValueError(f"from_pretrained: {full} must be (C, 3 C) or (3 C,), got {array.shape}")
            for which, third in zip(QKV, np.split(array.T, 3), strict=True):
                state[f"{prefix}blocks.{fused[1]}.attention.{which}.{part}"] = third
        elif module == "score":
            state[f"head.{part}"] = array
        else:
            state[f"{prefix}{own_names.get(module, module)}.{part}"] = array.T if name.endswith(TRANSPOSED) else array
    return state


def _check_tied(head: np.ndarray, tensors: Arrays) -> None:
    """A head written beside the embedding must equal it: minitune's GPT has one matrix for both."""
    embedding = tensors.get("transformer.wte.weight", tensors.get("wte.weight"))
    if embedding is None or not np.array_equal(head, embedding):
        raise ValueError("from_pretrained: lm_head.weight is not the token embedding; minitune's GPT ties the two. "
                         "Was the model trained with tie_word_embeddings=false?")


def _names(n_layer: int) -> dict[str, str]:
    """NAMES with every block written out."""
    return {own.format(i=i): theirs.format(i=i) for own, theirs in NAMES.items()
            for i in (range(n_layer) if "{i}" in own else (0,))}
