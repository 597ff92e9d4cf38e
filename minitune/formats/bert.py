"""BERT in Hugging Face's folders: old files call a norm's weight and bias gamma and beta."""

from __future__ import annotations

from typing import Any

from .family import FRACTION, POSITIVE, Arrays, Family, Head, Setting


def found(config: dict[str, Any], state: Arrays, settings: dict[str, Any]) -> dict[str, Any]:
    """Whether there is a pooler; a head that reads it must find one."""
    needed = settings.get("pooling") == "cls" or settings.get("next_sentence", False)
    return {"pooler": needed or "pooler.weight" in state}


CLASSIFIER = {"head": "classifier"}
PREDICTIONS = {"transform": "cls.predictions.transform.dense", "norm": "cls.predictions.transform.LayerNorm",
               "bias": "cls.predictions.bias"}
FAMILY = Family(
    title="BERT", name="bert", architectures=("BertModel",), prefix="bert.", prefixed=False,
    sizes={"vocab_size": Setting("vocab_size"), "max_position_embeddings": Setting("block_size"),
           "num_hidden_layers": Setting("n_layer"), "num_attention_heads": Setting("n_head"),
           "hidden_size": Setting("n_embd"), "intermediate_size": Setting("n_inner"),
           "type_vocab_size": Setting("n_segments", default=2), "hidden_dropout_prob": Setting("dropout", FRACTION, 0.1),
           "layer_norm_eps": Setting("eps", POSITIVE, 1e-12)},
    fixed={"hidden_act": "gelu", "is_decoder": False, "add_cross_attention": False, "tie_word_embeddings": True,
           "position_embedding_type": "absolute"},
    written={"attention_probs_dropout_prob": 0.0},
    derived=lambda fields: {"n_inner": 4 * fields["n_embd"]},
    names={"token_embedding": "embeddings.word_embeddings", "position_embedding": "embeddings.position_embeddings",
           "segment_embedding": "embeddings.token_type_embeddings", "embedding_norm": "embeddings.LayerNorm",
           "blocks.{i}.attention.query": "encoder.layer.{i}.attention.self.query",
           "blocks.{i}.attention.key": "encoder.layer.{i}.attention.self.key",
           "blocks.{i}.attention.value": "encoder.layer.{i}.attention.self.value",
           "blocks.{i}.attention.output": "encoder.layer.{i}.attention.output.dense",
           "blocks.{i}.attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
           "blocks.{i}.mlp.up": "encoder.layer.{i}.intermediate.dense", "blocks.{i}.mlp.down": "encoder.layer.{i}.output.dense",
           "blocks.{i}.mlp_norm": "encoder.layer.{i}.output.LayerNorm", "pooler": "pooler.dense"},
    renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    ignored=r"\bembeddings\.(position|token_type)_ids$",        # counters, which old files hold
    tied=lambda config: {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
                         "cls.predictions.decoder.bias": "cls.predictions.bias"},
    heads=(Head("classifier", "BertForSequenceClassification", CLASSIFIER, {"pooling": "cls"}),
           Head("token_classifier", "BertForTokenClassification", CLASSIFIER, lacks=("pooler",)),
           Head("multiple_choice", "BertForMultipleChoice", CLASSIFIER, {"pooling": "cls"}),
           Head("masked_language_model", "BertForMaskedLM", PREDICTIONS, {"next_sentence": False}, lacks=("pooler",)),
           Head("masked_language_model", "BertForPreTraining", PREDICTIONS | {"relation": "cls.seq_relationship"},
                {"next_sentence": True})),
    found=found,
)
