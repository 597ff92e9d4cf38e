"""ViT in Hugging Face's folders; its pooler, which no classifier reads, is left out."""

from __future__ import annotations

from typing import Any

from .family import FRACTION, POSITIVE, Family, Head, Setting


def unify(config: dict[str, Any]) -> dict[str, Any]:
    """A size that is written as an equal height and width is one number."""
    sizes = {key: config.get(key) for key in ("image_size", "patch_size")}
    return config | {key: size[0] for key, size in sizes.items()
                     if isinstance(size, list) and len(size) == 2 and size[0] == size[1]}


FAMILY = Family(
    title="ViT", name="vit", architectures=("ViTModel",), prefix="vit.", prefixed=False,
    sizes={"image_size": Setting("image_size"), "patch_size": Setting("patch_size"),
           "num_channels": Setting("n_channels", default=3), "num_hidden_layers": Setting("n_layer"),
           "num_attention_heads": Setting("n_head"), "hidden_size": Setting("n_embd"), "intermediate_size": Setting("n_inner"),
           "hidden_dropout_prob": Setting("dropout", FRACTION, 0.0), "layer_norm_eps": Setting("eps", POSITIVE, 1e-12)},
    fixed={"hidden_act": "gelu", "qkv_bias": True},
    written={"attention_probs_dropout_prob": 0.0},
    derived=lambda fields: {"n_inner": 4 * fields["n_embd"]},
    names={"class_token": "embeddings.cls_token", "position_embedding": "embeddings.position_embeddings",
           "patch_embedding": "embeddings.patch_embeddings.projection",
           "blocks.{i}.attention_norm": "encoder.layer.{i}.layernorm_before",
           "blocks.{i}.attention.query": "encoder.layer.{i}.attention.attention.query",
           "blocks.{i}.attention.key": "encoder.layer.{i}.attention.attention.key",
           "blocks.{i}.attention.value": "encoder.layer.{i}.attention.attention.value",
           "blocks.{i}.attention.output": "encoder.layer.{i}.attention.output.dense",
           "blocks.{i}.mlp_norm": "encoder.layer.{i}.layernorm_after",
           "blocks.{i}.mlp.up": "encoder.layer.{i}.intermediate.dense", "blocks.{i}.mlp.down": "encoder.layer.{i}.output.dense",
           "norm": "layernorm"},
    ignored=r"^(vit\.)?(pooler\.dense\.(weight|bias)|embeddings\.mask_token)$",
    heads=(Head("classifier", "ViTForImageClassification", {"head": "classifier"}, {"pooling": "first"}),),
    unify=unify,
)
