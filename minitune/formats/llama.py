"""Llama in Hugging Face's folders: a head's output matrix of its own or tied, and rope's numbers in two spellings."""

from __future__ import annotations

from typing import Any

from .family import FLAG, POSITIVE, Arrays, Expected, Family, Head, Setting

# rope_type -> the numbers that belong to it
SCALINGS = {"default": (), "linear": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}


def computed(scaling: Any) -> bool:
    """Whether this is None or a scaling that Llama computes, with all its numbers and no others."""
    if not isinstance(scaling, dict):
        return scaling is None
    kind = scaling.get("rope_type")
    numbers = {key: value for key, value in scaling.items() if key != "rope_type"}
    return (isinstance(kind, str) and kind in SCALINGS and set(numbers) == set(SCALINGS[kind])
            and all(map(POSITIVE.holds, numbers.values()))
            and (kind != "llama3" or numbers["low_freq_factor"] < numbers["high_freq_factor"]))


def unify(config: dict[str, Any]) -> dict[str, Any]:
    """rope_theta beside rope_scaling, or both in rope_parameters -> rope_theta and rope_scaling, the latter None by default."""
    both, scaling = config.get("rope_parameters"), config.get("rope_scaling")
    base = both.get("rope_theta") if isinstance(both, dict) else None
    scaling = scaling or both
    if isinstance(scaling, dict):
        kind = scaling.get("type", scaling.get("rope_type", "default"))
        base = scaling.get("rope_theta", base)
        config = {"partial_rotary_factor": scaling.get("partial_rotary_factor", 1.0)} | config
        known = SCALINGS[kind] if isinstance(kind, str) and kind in SCALINGS else ()   # nothing else is computed with
        scaling = None if kind == "default" else {"rope_type": kind} | {key: scaling[key] for key in known if key in scaling}
    return config | {"rope_scaling": scaling, "rope_theta": config.get("rope_theta") if base is None else base}


def spell(config: dict[str, Any]) -> dict[str, Any]:
    """Both spellings: transformers 5 reads rope_parameters, what is older the other two."""
    config = unify(config)
    scaling = config["rope_scaling"] or {"rope_type": "default"}
    return config | {"rope_parameters": {"rope_theta": config["rope_theta"], **scaling}}


def derived(fields: dict[str, Any]) -> dict[str, Any]:
    """What None means in LlamaConfig."""
    C, H = fields["n_embd"], fields["n_head"]
    return {"n_kv_head": H, "head_size": C // H, "n_inner": -(-C // 3) * 8}


def found(config: dict[str, Any], state: Arrays, settings: dict[str, Any]) -> dict[str, Any]:
    """Tied, where there is no output matrix and none is due; under a head there may be none of an untied model either."""
    if settings:
        return {}
    due = config.get("architectures") == ["LlamaForCausalLM"] and config.get("tie_word_embeddings") is not True
    return {"tied": not due and "lm_head.weight" not in state}


SCORE = {"head": "score"}
FAMILY = Family(
    title="Llama", name="llama", architectures=("LlamaForCausalLM", "LlamaModel"), prefix="model.",
    sizes={"vocab_size": Setting("vocab_size"), "max_position_embeddings": Setting("block_size", default=2048),
           "num_hidden_layers": Setting("n_layer"), "num_attention_heads": Setting("n_head"),
           "hidden_size": Setting("n_embd"), "num_key_value_heads": Setting("n_kv_head", default=None),
           "intermediate_size": Setting("n_inner"), "head_dim": Setting("head_size", default=None),
           "rope_theta": Setting("rope_base", POSITIVE, 10000.0),
           "rope_scaling": Setting("rope_scaling", Expected("null or linear or llama3 scaling", computed), None),
           "rms_norm_eps": Setting("eps", POSITIVE, 1e-6), "tie_word_embeddings": Setting("tied", FLAG, False)},
    fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1.0},
    written={"attention_dropout": 0.0},
    names={"token_embedding": "embed_tokens", "norm": "norm", "blocks.{i}.attention_norm": "layers.{i}.input_layernorm",
           "blocks.{i}.attention.query": "layers.{i}.self_attn.q_proj",
           "blocks.{i}.attention.key": "layers.{i}.self_attn.k_proj",
           "blocks.{i}.attention.value": "layers.{i}.self_attn.v_proj",
           "blocks.{i}.attention.output": "layers.{i}.self_attn.o_proj",
           "blocks.{i}.mlp_norm": "layers.{i}.post_attention_layernorm", "blocks.{i}.mlp.gate": "layers.{i}.mlp.gate_proj",
           "blocks.{i}.mlp.up": "layers.{i}.mlp.up_proj", "blocks.{i}.mlp.down": "layers.{i}.mlp.down_proj"},
    outside={"lm_head": "lm_head"},
    tied=lambda config: {"lm_head.weight": "model.embed_tokens.weight"} if config.get("tie_word_embeddings") else {},
    ignored=r"\brotary_emb\.inv_freq$",         # rope's frequencies, which old files hold
    heads=(Head("classifier", "LlamaForSequenceClassification", SCORE, {"pooling": "last"}, ("lm_head",), bias=False),
           Head("token_classifier", "LlamaForTokenClassification", SCORE, lacks=("lm_head",))),
    derived=derived, unify=unify, spell=spell, found=found,
)
