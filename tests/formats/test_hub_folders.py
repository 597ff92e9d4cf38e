"""Folders as they stand on the Hub, but small: every key of their config.json, and the names and types of their arrays."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minitune import models

SUMMARY = {"summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
           "summary_type": "cls_index", "summary_use_proj": True}
GENERATION = {"text-generation": {"do_sample": True, "max_length": 50}}
BIRDS = ["crane", "kite", "crane", "maillot", "maillot"]       # ImageNet has a bird and a machine, and two swimsuits
CONFIGS = {
    "bert-base-uncased": {
        "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "classifier_dropout": None,
        "gradient_checkpointing": False, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 6,
        "initializer_range": 0.02, "intermediate_size": 24, "layer_norm_eps": 1e-12, "max_position_embeddings": 8,
        "model_type": "bert", "num_attention_heads": 2, "num_hidden_layers": 2, "pad_token_id": 0,
        "position_embedding_type": "absolute", "transformers_version": "4.6.0.dev0", "type_vocab_size": 2, "use_cache": True,
        "vocab_size": 20},
    "gpt2": {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 19,
        "embd_pdrop": 0.1, "eos_token_id": 19, "initializer_range": 0.02, "layer_norm_epsilon": 1e-5, "model_type": "gpt2",
        "n_ctx": 8, "n_embd": 6, "n_head": 2, "n_layer": 2, "n_positions": 8, "resid_pdrop": 0.1, **SUMMARY,
        "task_specific_params": GENERATION, "vocab_size": 20},
    "distilgpt2": {
        "_num_labels": 1, "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 19, "embd_pdrop": 0.1, "eos_token_id": 19, "id2label": {"0": "LABEL_0"}, "initializer_range": 0.02,
        "label2id": {"LABEL_0": 0}, "layer_norm_epsilon": 1e-5, "model_type": "gpt2", "n_ctx": 8, "n_embd": 6, "n_head": 2,
        "n_layer": 1, "n_positions": 8, "resid_pdrop": 0.1, **SUMMARY, "task_specific_params": GENERATION, "vocab_size": 20},
    "Llama-2-7b": {
        "_name_or_path": "Llama-2-7b", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 8, "initializer_range": 0.02, "intermediate_size": 22,
        "max_position_embeddings": 16, "model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 2,
        "num_key_value_heads": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": None,
        "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.31.0.dev0", "use_cache": True,
        "vocab_size": 20},
    "Llama-3.2-1B": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 18,
        "eos_token_id": [17, 16], "head_dim": 4, "hidden_act": "silu", "hidden_size": 16, "initializer_range": 0.02,
        "intermediate_size": 64, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": 4, "num_hidden_layers": 1, "num_key_value_heads": 1, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0",
        "use_cache": True, "vocab_size": 20},
    "TinyLlama-1.1B": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 8, "initializer_range": 0.02, "intermediate_size": 22,
        "max_position_embeddings": 8, "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 1,
        "num_key_value_heads": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.35.0", "use_cache": True,
        "vocab_size": 20},
    "vit-base-patch16-224": {
        "_name_or_path": "vit-base-patch16-224-in21k", "architectures": ["ViTForImageClassification"],
        "attention_probs_dropout_prob": 0.0, "encoder_stride": 16, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
        "hidden_size": 6, "id2label": dict(zip("01234", BIRDS)), "image_size": 8, "initializer_range": 0.02,
        "intermediate_size": 24, "label2id": {"crane": 2, "kite": 1, "maillot": 4}, "layer_norm_eps": 1e-12,
        "model_type": "vit", "num_attention_heads": 2, "num_channels": 3, "num_hidden_layers": 2, "patch_size": 4,
        "qkv_bias": True, "transformers_version": "4.13.0.dev0"},
}
LLAMA3 = CONFIGS["Llama-3.2-1B"]["rope_scaling"]
MODELS = {
    "bert-base-uncased": lambda: models.MaskedLanguageModel(models.BERT(models.BERTConfig(20, 8, 2, 2, 6, dropout=0.1)), True),
    "gpt2": lambda: models.GPT(models.GPTConfig(20, 8, 2, 2, 6, dropout=0.1)),
    "distilgpt2": lambda: models.GPT(models.GPTConfig(20, 8, 1, 2, 6, dropout=0.1)),
    "Llama-2-7b": lambda: models.Llama(models.LlamaConfig(20, 16, 2, 2, 8, n_inner=22, eps=1e-5)),
    "Llama-3.2-1B": lambda: models.Llama(models.LlamaConfig(20, 131072, 1, 4, 16, 1, 64, rope_base=5e5, rope_scaling=LLAMA3,
                                                            eps=1e-5, tied=True)),
    "TinyLlama-1.1B": lambda: models.Llama(models.LlamaConfig(20, 8, 1, 4, 8, 2, 22, eps=1e-5)),
    "vit-base-patch16-224": lambda: models.Classifier(
        models.ViT(models.ViTConfig(8, 4, 2, 2, 6)), ["crane", "kite", "crane (2)", "maillot", "maillot (4)"]),
}


def as_on_the_hub(name, tensors):
    """The arrays under the names that they have there, and with those that hold nothing of their own."""
    if name == "bert-base-uncased":
        tensors = {key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
                   for key, array in tensors.items()}
        words, bias = tensors["bert.embeddings.word_embeddings.weight"], tensors["cls.predictions.bias"]
        return tensors | {"cls.predictions.decoder.weight": words, "cls.predictions.decoder.bias": bias,
                          "bert.embeddings.position_ids": np.arange(8)[None]}
    if "gpt2" in name:
        masks = {f"transformer.h.{i}.attn.bias": np.tri(8, dtype=np.float32)[None, None]
                 for i in range(CONFIGS[name]["n_layer"])}
        bare = "" if name == "gpt2" else "transformer."
        return {bare + key.removeprefix("transformer."): array for key, array in (tensors | masks).items()}
    if name == "Llama-2-7b":
        return tensors | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32) for i in range(2)}
    return tensors


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_of_the_hub_is_read_and_written_with_its_values(tmp_path, name):
    model, config = MODELS[name](), CONFIGS[name]
    draw = np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.data = draw.standard_normal(parameter.shape).astype(np.float16).astype(np.float32)
    dtype = np.float16 if config.get("torch_dtype") == "float16" else np.float32
    tensors = as_on_the_hub(name, model.to_hugging_face()[1])
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({key: np.ascontiguousarray(array.astype(dtype) if array.dtype.kind == "f" else array)
               for key, array in tensors.items()}, tmp_path / "model.safetensors")
    loaded = models.from_pretrained(tmp_path)
    assert type(loaded) is type(model) and loaded.settings() == model.settings()
    assert getattr(loaded, "backbone", loaded).config == getattr(model, "backbone", model).config
    state, expected = loaded.state_dict(), model.state_dict()
    assert list(state) == list(expected)
    assert all(state[key].dtype == np.float32 and state[key].tobytes() == expected[key].tobytes() for key in state)
    loaded.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    changed = {key for key in config.keys() & written.keys() if config[key] != written[key]}
    assert changed <= {"attn_pdrop", "attention_probs_dropout_prob", "id2label", "label2id"} | (
        {"architectures"} if name == "bert-base-uncased" else set())        # which holds more than its class has
    assert {"bos_token_id", "eos_token_id", "pad_token_id"} <= written.keys()
    assert load_file(tmp_path / "model.safetensors").keys() == model.to_hugging_face()[1].keys()
