"""GPT-2 in Hugging Face's folders: linear weights are stored as (in, out), and query, key and value are one c_attn (C, 3 C)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .family import FLAG, FRACTION, POSITIVE, Arrays, Family, Head, Setting, translate

QKV = ("query", "key", "value")
QUERY = re.compile(r"blocks\.\d+\.attention\.query\.(weight|bias)")


def join(state: Arrays) -> Arrays:
    """Every block's query, key and value in one: weights (3 C, C), biases (3 C,)."""
    joined = dict(state)
    for name in filter(QUERY.fullmatch, state):
        parts = [name.replace("query", which) for which in QKV]
        if all(part in state for part in parts):
            joined[name.replace("query", "qkv")] = np.concatenate([joined.pop(part) for part in parts])
    return joined


def split(state: Arrays, misfits: list[str]) -> Arrays:
    """The inverse of `join`; what cannot be three matrices is added to the misfits."""
    apart: Arrays = {}
    for name, array in state.items():
        if ".attention.qkv." not in name:
            apart[name] = array
        elif array.ndim and len(array) % 3 == 0:
            apart |= {name.replace("qkv", which): third for which, third in zip(QKV, np.split(array, 3), strict=True)}
        else:
            misfits.append(f"{translate(name, FAMILY.names)}: expected (C, 3 C) or (3 C,), got {array.T.shape}")
    return apart


def unify(config: dict[str, Any]) -> dict[str, Any]:
    """The usual inner width, where it is written out, is None; the tanh form of gelu has one name."""
    if isinstance(config.get("n_embd"), int) and config.get("n_inner") == 4 * config["n_embd"]:
        config = config | {"n_inner": None}
    same = config.get("activation_function") == "gelu_pytorch_tanh"
    return config | {"activation_function": "gelu_new"} if same else config


def found(config: dict[str, Any], state: Arrays, settings: dict[str, Any]) -> dict[str, Any]:
    """Tied, where there is no output matrix and none is due; under a head there may be none of an untied model either."""
    due = config.get("architectures") == ["GPT2LMHeadModel"] and config.get("tie_word_embeddings") is False
    return {} if settings else {"tied": not due and "lm_head.weight" not in state}


FAMILY = Family(
    title="GPT-2", name="gpt2", architectures=("GPT2LMHeadModel", "GPT2Model"), prefix="transformer.",
    sizes={"vocab_size": Setting("vocab_size"), "n_positions": Setting("block_size"), "n_layer": Setting("n_layer"),
           "n_head": Setting("n_head"), "n_embd": Setting("n_embd"), "embd_pdrop": Setting("dropout", FRACTION, 0.1),
           "resid_pdrop": Setting("dropout", FRACTION, 0.1), "n_inner": Setting("n_inner", default=None),
           "layer_norm_epsilon": Setting("eps", POSITIVE, 1e-5), "tie_word_embeddings": Setting("tied", FLAG, True)},
    fixed={"activation_function": "gelu_new", "scale_attn_weights": True,
           "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    written={"attn_pdrop": 0.0},
    names={"token_embedding": "wte", "position_embedding": "wpe", "norm": "ln_f",
           "blocks.{i}.attention_norm": "h.{i}.ln_1", "blocks.{i}.mlp_norm": "h.{i}.ln_2",
           "blocks.{i}.attention.qkv": "h.{i}.attn.c_attn", "blocks.{i}.attention.output": "h.{i}.attn.c_proj",
           "blocks.{i}.mlp.up": "h.{i}.mlp.c_fc", "blocks.{i}.mlp.down": "h.{i}.mlp.c_proj"},
    transposed=("attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight", "attn.c_attn.weight"),
    ignored=r"\bh\.\d+\.attn\.(masked_)?bias$",                 # causal masks, which old files hold
    outside={"lm_head": "lm_head"},
    tied=lambda config: {} if config.get("tie_word_embeddings") is False else {"lm_head.weight": "transformer.wte.weight"},
    heads=(Head("classifier", "GPT2ForSequenceClassification", {"head": "score"}, {"pooling": "last"}, ("lm_head",),
                bias=False),
           Head("token_classifier", "GPT2ForTokenClassification", {"head": "classifier"}, lacks=("lm_head",))),
    unify=unify, join=join, split=split, found=found,
)
