"""BERT, Llama and ViT, with every head that transformers has: its folders compute the same here, ours the same there."""

import json
import warnings

import numpy as np
import pytest
from model_builders import LABELS, build, inputs
from safetensors.numpy import load_file

from minitune import models
from minitune.tensor import Tensor

torch = pytest.importorskip("torch", reason="PyTorch, on which transformers runs, is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")             # what another library's import deprecates is not ours to mend
    transformers = pytest.importorskip("transformers", reason="transformers, the oracle, is not installed")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

ATOL = 1e-4                                     # as in test_against_transformers.py: 1e-5 is what is seen

BERT = [dict(vocab_size=53, max_position_embeddings=13, hidden_size=15, num_hidden_layers=1, num_attention_heads=3,
             intermediate_size=60),
        dict(vocab_size=31, max_position_embeddings=8, hidden_size=12, num_hidden_layers=3, num_attention_heads=1,
             intermediate_size=17, type_vocab_size=3, layer_norm_eps=1e-5, hidden_dropout_prob=0.2)]
LLAMA = [dict(vocab_size=53, hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=32),
         dict(vocab_size=31, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              intermediate_size=23, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_theta=5e5),
         dict(vocab_size=40, hidden_size=12, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=1, head_dim=4,
              intermediate_size=11, rope_scaling={"rope_type": "linear", "factor": 2.0}),
         dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
              rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                            "original_max_position_embeddings": 16})]
VIT = [dict(image_size=8, patch_size=4, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48),
       dict(image_size=9, patch_size=3, num_channels=1, hidden_size=10, num_hidden_layers=1, num_attention_heads=5,
            intermediate_size=11, layer_norm_eps=1e-6)]
FAMILIES = {"Bert": (transformers.BertConfig, BERT), "Llama": (transformers.LlamaConfig, LLAMA),
            "ViT": (transformers.ViTConfig, VIT), "GPT2": (transformers.GPT2Config, [dict(
                vocab_size=31, n_positions=8, n_embd=12, n_layer=2, n_head=3)])}
CLASSES = {"BertModel": "BERT", "BertForMaskedLM": "MaskedLanguageModel", "BertForPreTraining": "MaskedLanguageModel",
           "BertForSequenceClassification": "Classifier", "BertForTokenClassification": "TokenClassifier",
           "BertForMultipleChoice": "MultipleChoice", "LlamaModel": "Llama", "LlamaForCausalLM": "Llama",
           "LlamaForSequenceClassification": "Classifier", "LlamaForTokenClassification": "TokenClassifier", "ViTModel": "ViT",
           "ViTForImageClassification": "Classifier", "GPT2ForTokenClassification": "TokenClassifier"}


def there(name, shape=0):
    """A model of transformers with random numbers in every parameter."""
    family = next(family for family in FAMILIES if name.startswith(family))
    config, shapes = FAMILIES[family]
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    special = {} if family == "ViT" else {"pad_token_id": None}             # a padding token's embedding would not learn
    model = getattr(transformers, name)(config(**shapes[shape], **special, **(names if "Classification" in name else {})))
    model.config.pad_token_id = 0               # and by this one the end of a row is found
    draw = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.tensor(0.2 * draw.standard_normal(parameter.shape), dtype=torch.float32)
    return model.eval()


def outputs(theirs, x):
    """What transformers makes of ids or images: logits, else features."""
    with torch.no_grad():
        if type(theirs).__name__.endswith("MultipleChoice"):
            return theirs(torch.tensor(x)[None]).logits.numpy()             # (1, choices, T): one question
        result = theirs(torch.tensor(x))
    kinds = ("prediction_logits", "logits", "last_hidden_state")
    return next(getattr(result, kind) for kind in kinds if hasattr(result, kind)).numpy()


def computed(ours, x):
    """What minitune makes of the same."""
    bare = isinstance(ours, (models.BERT, models.ViT))
    return (ours.features(ours.batch_of(x)) if bare else ours(x)).numpy()


@pytest.mark.parametrize("name, shape", [(name, 0) for name in CLASSES] + [
    ("BertForPreTraining", 1), *[("LlamaForCausalLM", shape) for shape in (1, 2, 3)], ("LlamaForTokenClassification", 1),
    ("ViTModel", 1), ("ViTForImageClassification", 1)])
def test_a_model_of_transformers_computes_the_same_here_and_is_written_as_it_was(tmp_path, name, shape):
    theirs = there(name, shape)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = models.from_pretrained(tmp_path / "theirs")
    assert type(ours).__name__ == CLASSES[name]
    if hasattr(ours, "labels"):
        assert ours.labels == tuple(LABELS)
    if name == "BertForMultipleChoice":
        ours.choices = 3                        # what Hugging Face's folder does not say
    x = inputs(ours)
    if name == "LlamaModel":                    # features, where the model as such gives logits
        given = ours.features(ours.batch_of(x)).numpy()
    else:
        given = computed(ours, x)
    np.testing.assert_allclose(given, outputs(theirs, x), 0, ATOL)
    ours.save_pretrained(tmp_path / "ours")
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in ("theirs", "ours"))
    if name == "LlamaModel":                    # comes back with a head, as LlamaForCausalLM, under the prefix
        before = {f"model.{key}": array for key, array in before.items()}
    before = {key: array for key, array in before.items() if name != "ViTModel" or not key.startswith("pooler")}
    assert before.keys() == after.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array, strict=True, err_msg=key)
    old, new = (json.loads((tmp_path / place / "config.json").read_text()) for place in ("theirs", "ours"))
    different = {key for key in old.keys() & new.keys() if old[key] != new[key]}
    assert different <= {"attention_probs_dropout_prob", "attn_pdrop"} | (      # ours has no attention dropout
        {"architectures", "tie_word_embeddings"} if name == "LlamaModel" else set())
    assert old.get("pad_token_id") == new["pad_token_id"] == 0


@pytest.mark.parametrize("backbone, head, name, settings", [
    ("bert", "none", "BertModel", {}), ("bert without pooler", "none", "BertModel", {"add_pooling_layer": False}),
    ("bert", "classifier", "BertForSequenceClassification", {}), ("bert", "token classifier", "BertForTokenClassification", {}),
    ("bert", "multi-label classifier", "BertForSequenceClassification", {}), ("bert", "masked", "BertForMaskedLM", {}),
    ("bert", "multiple choice", "BertForMultipleChoice", {}), ("bert without pooler", "masked", "BertForMaskedLM", {}),
    ("bert", "masked, next sentence", "BertForPreTraining", {}), ("llama", "none", "LlamaForCausalLM", {}),
    ("llama tied", "none", "LlamaForCausalLM", {}), ("llama", "classifier", "LlamaForSequenceClassification", {}),
    ("llama tied", "token classifier", "LlamaForTokenClassification", {}),
    ("llama tied", "auxiliary classifier", "LlamaForSequenceClassification", {}),
    ("vit", "none", "ViTModel", {"add_pooling_layer": False}), ("wide gpt", "none", "GPT2LMHeadModel", {}),
    ("vit", "classifier", "ViTForImageClassification", {}),
    ("grey vit", "multi-label classifier", "ViTForImageClassification", {}), ("gpt", "none", "GPT2LMHeadModel", {}),
    ("gpt", "token classifier", "GPT2ForTokenClassification", {}),
    ("gpt", "multi-label classifier", "GPT2ForSequenceClassification", {})])
def test_a_model_of_ours_computes_the_same_there(tmp_path, backbone, head, name, settings):
    ours = build(backbone, head)
    ours.save_pretrained(tmp_path, max_shard_bytes=None if head == "none" else 2000)
    theirs, report = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True, **settings)
    assert not any(report.values()), report     # no key is missing, unknown or of another shape
    if head.startswith("multi-label"):
        assert theirs.config.problem_type == "multi_label_classification"
    if "Classification" in name:
        assert theirs.config.id2label == dict(enumerate(LABELS))
    theirs.config.pad_token_id = -1             # without a tokenizer there is none to find a row's end by: none is padding
    x = inputs(ours)
    np.testing.assert_allclose(computed(ours, x), outputs(theirs.eval(), x), 0, ATOL)


def test_the_relation_of_two_texts_is_the_same(tmp_path):
    theirs = there("BertForPreTraining")
    theirs.save_pretrained(tmp_path)
    ours = models.from_pretrained(tmp_path)
    x = inputs(ours)
    relation = ours.relation(ours.backbone.pool(ours.features(ours.batch_of(x)))).numpy()
    with torch.no_grad():
        np.testing.assert_allclose(relation, theirs(torch.tensor(x)).seq_relationship_logits.numpy(), 0, ATOL)


@pytest.mark.parametrize("backbone, head, model_type", [
    ("bert", "mean classifier", "minitune_bert_classifier"), ("llama", "multiple choice", "minitune_llama_multiple_choice"),
    ("cnn", "none", "minitune_cnn")])
def test_what_transformers_does_not_compute_it_refuses(tmp_path, backbone, head, model_type):
    build(backbone, head).save_pretrained(tmp_path)
    with pytest.raises((ValueError, KeyError), match=model_type):
        transformers.AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name, settings, complaint", [
    ("BertModel", {"hidden_act": "relu"}, "not a BERT model that minitune computes: hidden_act is 'relu', expected 'gelu'"),
    ("BertLMHeadModel", {"is_decoder": True}, "is_decoder is True, expected False"),
    ("LlamaModel", {"attention_bias": True}, "attention_bias is True, expected False"),
    ("LlamaModel", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling is {'rope_type': 'dynamic'}, exp"),
    ("ViTModel", {"qkv_bias": False}, "qkv_bias is False, expected True")])
def test_a_model_that_computes_something_else_is_refused_by_name(tmp_path, name, settings, complaint):
    family = next(family for family in FAMILIES if name.startswith(family))
    config, shapes = FAMILIES[family]
    getattr(transformers, name)(config(**shapes[0], **settings)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=complaint):
        models.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["BertForQuestionAnswering", "BertForNextSentencePrediction", "GPT2DoubleHeadsModel"])
def test_a_model_with_a_head_that_minitune_has_not_is_refused_by_name(tmp_path, name):
    there(name).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"'{name}' is a class that minitune has not; it has (BertModel|GPT2LMHeadModel), "):
        models.from_pretrained(tmp_path)


def test_regression_is_refused_by_name(tmp_path):
    config = transformers.BertConfig(**BERT[0], num_labels=1)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the head has one output, as for regression, which minitune has not"):
        models.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "LlamaForCausalLM", "ViTForImageClassification"])
def test_half_precision_weights_become_float32_exactly(tmp_path, name):
    there(name).to(torch.bfloat16).save_pretrained(tmp_path)
    tensors = models.from_pretrained(tmp_path).to_hugging_face()[1]
    stored = pytest.importorskip("safetensors.torch", reason="needs PyTorch").load_file(tmp_path / "model.safetensors")
    assert tensors.keys() == stored.keys()
    for key, tensor in stored.items():
        assert tensor.dtype == torch.bfloat16
        np.testing.assert_array_equal(tensors[key], tensor.float().numpy(), strict=True, err_msg=key)


@pytest.mark.parametrize("name, shape", [("BertForPreTraining", 1), ("BertForSequenceClassification", 0),
                                         *[("LlamaForCausalLM", shape) for shape in range(4)],
                                         ("LlamaForTokenClassification", 1), ("ViTForImageClassification", 0),
                                         ("ViTForImageClassification", 1)])
def test_gradients_are_the_same(tmp_path, name, shape):
    """Both sides write their gradients as if they were weights, so that names and shapes are those of the folder."""
    theirs = there(name, shape)
    theirs.save_pretrained(tmp_path / "model")
    ours = models.from_pretrained(tmp_path / "model")
    x = inputs(ours)
    result = theirs(torch.tensor(x))
    logits = result.prediction_logits if name == "BertForPreTraining" else result.logits
    weights = np.random.default_rng(2).standard_normal(logits.shape).astype(np.float32)     # any cotangent
    (logits * torch.tensor(weights)).sum().backward()
    (ours(x) * Tensor(weights)).sum().backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    for parameter in ours.parameters():
        parameter.data = np.zeros_like(parameter.data) if parameter.grad is None else parameter.grad
    theirs.save_pretrained(tmp_path / "gradients")
    expected, given = load_file(tmp_path / "gradients" / "model.safetensors"), ours.to_hugging_face()[1]
    assert given.keys() == expected.keys()
    for key, gradient in expected.items():      # 1e-4 of the largest; a key's bias has none but rounding: softmax cancels it
        np.testing.assert_allclose(given[key], gradient, 0, 1e-4 * abs(gradient).max() + 1e-5, err_msg=key)
