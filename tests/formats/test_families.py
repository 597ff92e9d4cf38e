"""Folders of every model, without transformers: the round trip, names and shapes written out by hand, shards."""

import json

import numpy as np
import pytest
from model_builders import BACKBONES, LABELS, build, inputs, pairs
from safetensors.numpy import load_file, save_file

from minitune import models
from minitune.formats.gpt2 import FAMILY as GPT2


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def change(folder, **entries):
    (folder / "config.json").write_text(json.dumps(config_of(folder) | entries))


def assert_same(loaded, model):
    state, expected = loaded.state_dict(), model.state_dict()
    assert type(loaded) is type(model) and list(state) == list(expected)
    assert all(state[name].dtype == np.float32 and state[name].tobytes() == expected[name].tobytes() for name in state)


# ---- The round trip ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("backbone, head", pairs())
def test_a_model_comes_back_bit_for_bit_with_its_sizes_and_settings(tmp_path, backbone, head):
    model = build(backbone, head)
    model.save_pretrained(tmp_path / "a")
    loaded = models.from_pretrained(tmp_path / "a")
    assert_same(loaded, model)
    assert repr(loaded) == repr(model) and loaded.settings() == model.settings()
    assert not any(part.training for _, part in loaded.named_modules())
    np.testing.assert_allclose(loaded(inputs(loaded)).numpy(), model(inputs(model)).numpy(), 1e-5, 1e-5)
    loaded.save_pretrained(tmp_path / "b")
    for name in "config.json", "model.safetensors":
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("backbone", ["gpt", "bert", "llama", "vit"])
def test_other_precisions_are_read_as_float32(tmp_path, backbone, dtype):
    build(backbone).save_pretrained(tmp_path)
    tensors = {name: array.astype(dtype) for name, array in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    written = models.from_pretrained(tmp_path).to_hugging_face()[1]
    assert written.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(written[name], array.astype(np.float32), strict=True)


def test_not_a_number_is_a_number_like_others(tmp_path):
    model = build("llama")
    model.norm.weight.data[3] = np.nan
    model.save_pretrained(tmp_path)
    assert np.isnan(models.from_pretrained(tmp_path).norm.weight.data[3])


# ---- What stands where -----------------------------------------------------------------------------------------------

C, V, T, INNER = 6, 20, 8, 24
NORM = {"weight": (C,), "bias": (C,)}
SQUARE = {"weight": (C, C), "bias": (C,)}
UP, DOWN = {"weight": (INNER, C), "bias": (INNER,)}, {"weight": (C, INNER), "bias": (C,)}
BERT = {"embeddings.word_embeddings": {"weight": (V, C)}, "embeddings.position_embeddings": {"weight": (T, C)},
        "embeddings.token_type_embeddings": {"weight": (2, C)}, "embeddings.LayerNorm": NORM, "pooler.dense": SQUARE}
for i in range(2):
    BERT |= {f"encoder.layer.{i}.attention.self.{name}": SQUARE for name in ("query", "key", "value")}
    BERT |= {f"encoder.layer.{i}.attention.output.dense": SQUARE, f"encoder.layer.{i}.attention.output.LayerNorm": NORM,
             f"encoder.layer.{i}.intermediate.dense": UP, f"encoder.layer.{i}.output.dense": DOWN,
             f"encoder.layer.{i}.output.LayerNorm": NORM}
VIT = {"embeddings.patch_embeddings.projection": {"weight": (C, 3, 4, 4), "bias": (C,)}, "layernorm": NORM}
for i in range(2):
    VIT |= {f"encoder.layer.{i}.attention.attention.{name}": SQUARE for name in ("query", "key", "value")}
    VIT |= {f"encoder.layer.{i}.attention.output.dense": SQUARE, f"encoder.layer.{i}.intermediate.dense": UP,
            f"encoder.layer.{i}.output.dense": DOWN, f"encoder.layer.{i}.layernorm_before": NORM,
            f"encoder.layer.{i}.layernorm_after": NORM}
LLAMA = {"model.embed_tokens": {"weight": (20, 12)}, "model.norm": {"weight": (12,)}}
LLAMA |= {f"model.layers.0.{name}": {"weight": shape} for name, shape in {
    "input_layernorm": (12,), "post_attention_layernorm": (12,), "self_attn.q_proj": (24, 12), "self_attn.k_proj": (12, 12),
    "self_attn.v_proj": (12, 12), "self_attn.o_proj": (12, 24), "mlp.gate_proj": (7, 12), "mlp.up_proj": (7, 12),
    "mlp.down_proj": (12, 7)}.items()}


@pytest.mark.parametrize("backbone, modules, others", [
    ("bert", BERT, {}), ("llama tied", LLAMA, {}),
    ("vit", VIT, {"embeddings.cls_token": (1, 1, C), "embeddings.position_embeddings": (1, 5, C)})])
def test_names_and_shapes_are_those_of_hugging_face(tmp_path, backbone, modules, others):
    build(backbone).save_pretrained(tmp_path)
    expected = {f"{module}.{part}": shape for module, parts in modules.items() for part, shape in parts.items()} | others
    assert {name: array.shape for name, array in load_file(tmp_path / "model.safetensors").items()} == expected


@pytest.mark.parametrize("backbone, theirs, own", [
    ("bert", "encoder.layer.1.output.dense.weight", "blocks.1.mlp.down.weight"),
    ("bert", "encoder.layer.1.attention.self.key.bias", "blocks.1.attention.key.bias"),
    ("bert", "encoder.layer.0.attention.output.LayerNorm.weight", "blocks.0.attention_norm.weight"),
    ("bert", "encoder.layer.0.output.LayerNorm.weight", "blocks.0.mlp_norm.weight"),
    ("bert", "pooler.dense.weight", "pooler.weight"),
    ("llama", "lm_head.weight", "lm_head.weight"),
    ("llama", "model.layers.1.self_attn.o_proj.weight", "blocks.1.attention.output.weight"),
    ("llama", "model.layers.1.mlp.gate_proj.weight", "blocks.1.mlp.gate.weight"),
    ("llama", "model.layers.1.mlp.up_proj.weight", "blocks.1.mlp.up.weight"),
    ("vit", "encoder.layer.1.layernorm_after.bias", "blocks.1.mlp_norm.bias"),
    ("vit", "encoder.layer.0.attention.attention.value.weight", "blocks.0.attention.value.weight"),
    ("cnn", "head.bias", "head.bias"), ("awd_lstm", "backbone.token_embedding.weight", "backbone.token_embedding.weight")])
def test_arrays_stand_under_the_right_names(tmp_path, backbone, theirs, own):
    model = build(backbone, "classifier" if backbone in ("cnn", "awd_lstm") else "none")
    model.save_pretrained(tmp_path)
    np.testing.assert_array_equal(load_file(tmp_path / "model.safetensors")[theirs], model.state_dict()[own])


@pytest.mark.parametrize("backbone, head, architecture, names", [
    ("gpt", "token classifier", "GPT2ForTokenClassification", ["classifier.bias", "classifier.weight"]),
    ("gpt", "classifier", "GPT2ForSequenceClassification", ["score.weight"]),
    ("bert", "classifier", "BertForSequenceClassification", ["classifier.bias", "classifier.weight"]),
    ("bert", "multiple choice", "BertForMultipleChoice", ["classifier.bias", "classifier.weight"]),
    ("bert", "token classifier", "BertForTokenClassification", ["classifier.bias", "classifier.weight"]),
    ("llama", "classifier", "LlamaForSequenceClassification", ["score.weight"]),
    ("llama", "token classifier", "LlamaForTokenClassification", ["score.bias", "score.weight"]),
    ("vit", "classifier", "ViTForImageClassification", ["classifier.bias", "classifier.weight"])])
def test_heads_are_those_of_hugging_face(tmp_path, backbone, head, architecture, names):
    build(backbone, head).save_pretrained(tmp_path)
    config, prefix = config_of(tmp_path), {"gpt": "transformer.", "llama": "model."}.get(backbone, f"{backbone}.")
    assert config["architectures"] == [architecture] and not config["model_type"].startswith("minitune")
    assert sorted(name for name in load_file(tmp_path / "model.safetensors") if not name.startswith(prefix)) == names
    if head != "multiple choice":
        assert config["id2label"] == dict(zip("012", LABELS)) and config["label2id"]["good"] == 2


def test_a_size_that_is_a_height_and_a_width_is_read(tmp_path):
    build("vit", "classifier").save_pretrained(tmp_path)
    change(tmp_path, image_size=[8, 8], patch_size=[4, 4])
    assert_same(models.from_pretrained(tmp_path), build("vit", "classifier"))


def test_keys_that_are_not_known_are_left_alone(tmp_path):
    for backbone in "awd_lstm", "gpt":
        build(backbone).save_pretrained(tmp_path)
        change(tmp_path, depth=[3], torch_dtype="float16", minitune_colour="red")
        assert_same(models.from_pretrained(tmp_path), build(backbone))


def test_a_rope_base_beyond_the_number_of_weights_is_no_size(tmp_path):
    model = models.Llama(models.LlamaConfig(20, 8, 1, 2, 8, rope_base=500000))
    model.save_pretrained(tmp_path)
    assert models.from_pretrained(tmp_path).config == model.config


def test_several_labels_at_once_are_told_by_the_problem_type(tmp_path):
    build("bert", "multi-label classifier").save_pretrained(tmp_path)
    assert config_of(tmp_path)["problem_type"] == "multi_label_classification"
    change(tmp_path, problem_type="single_label_classification")
    assert isinstance(models.from_pretrained(tmp_path), models.Classifier)


@pytest.mark.parametrize("backbone, head, model_type", [
    ("bert", "mean classifier", "minitune_bert_classifier"), ("gpt", "multiple choice", "minitune_gpt2_multiple_choice"),
    ("vit", "token classifier", "minitune_vit_token_classifier"), ("llama", "masked", "minitune_llama_masked_language_model"),
    ("llama", "auxiliary classifier", "minitune_llama_classifier"), ("awd_lstm", "none", "minitune_awd_lstm"),
    ("bert without pooler", "classifier", "minitune_bert_classifier"), ("cnn", "none", "minitune_cnn")])
def test_what_hugging_face_does_not_compute_has_a_model_type_of_its_own(tmp_path, backbone, head, model_type):
    build(backbone, head).save_pretrained(tmp_path)
    assert config_of(tmp_path)["model_type"] == model_type


# ---- Files of other years ----------------------------------------------------------------------------------------------

def rewrite(folder, rename=lambda name: name, **added):
    tensors = {rename(name): array for name, array in load_file(folder / "model.safetensors").items()}
    save_file(tensors | added, folder / "model.safetensors")


@pytest.mark.parametrize("backbone, head, prefix", [("bert", "none", "bert."), ("vit", "none", "vit.")])
def test_a_bare_model_with_a_prefix_is_read(tmp_path, backbone, head, prefix):
    model = build(backbone, head)
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda name: prefix + name)
    assert_same(models.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("backbone, head, prefix", [
    ("gpt", "none", "transformer."), ("llama", "none", "model."), ("bert", "classifier", "bert."),
    ("vit", "classifier", "vit.")])
def test_a_missing_prefix_is_read(tmp_path, backbone, head, prefix):
    model = build(backbone, head)
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda name: name.removeprefix(prefix))
    assert_same(models.from_pretrained(tmp_path), model)


def test_a_bert_of_2018_is_read(tmp_path):
    """Norms with gamma and beta, counters as arrays, the tied output matrix and bias a second time, all under one class."""
    model = build("bert", "masked, next sentence")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")

    def old(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    rewrite(tmp_path, old, **{"bert.embeddings.position_ids": np.arange(8)[None],
                              "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
                              "cls.predictions.decoder.bias": tensors["cls.predictions.bias"]})
    change(tmp_path, architectures=["BertForMaskedLM"])
    assert any(name.endswith("LayerNorm.gamma") for name in load_file(tmp_path / "model.safetensors"))
    assert_same(models.from_pretrained(tmp_path), model)


POOLER = {"pooler.dense.weight": np.ones((6, 6), np.float32), "pooler.dense.bias": np.ones(6, np.float32)}


@pytest.mark.parametrize("head", ["token classifier", "masked"])
def test_a_pooler_that_the_head_does_not_read_is_left_out(tmp_path, head):
    model = build("bert", head)
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, **{f"bert.{name}": array for name, array in POOLER.items()})
    assert_same(models.from_pretrained(tmp_path), model)


def test_arrays_that_hold_nothing_learned_are_left_out(tmp_path):
    llama, vit = build("llama"), build("vit")
    llama.save_pretrained(tmp_path / "llama")
    rewrite(tmp_path / "llama", **{"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)})
    assert_same(models.from_pretrained(tmp_path / "llama"), llama)
    vit.save_pretrained(tmp_path / "vit")
    rewrite(tmp_path / "vit", **POOLER)
    assert_same(models.from_pretrained(tmp_path / "vit"), vit)


def test_a_tied_output_matrix_may_be_there_or_not(tmp_path):
    model = build("llama tied")
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, **{"lm_head.weight": model.token_embedding.weight.data})
    assert_same(models.from_pretrained(tmp_path), model)
    rewrite(tmp_path, **{"lm_head.weight": model.token_embedding.weight.data + 1})
    with pytest.raises(ValueError, match="lm_head.weight: is not model.embed_tokens.weight, to which minitune ties it"):
        models.from_pretrained(tmp_path)


def test_a_bare_llama_has_its_embedding_for_output(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path)
    tensors = {name.removeprefix("model."): array for name, array in load_file(tmp_path / "model.safetensors").items()}
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lm_head.weight: missing"):        # the class is said to have one of its own
        models.from_pretrained(tmp_path)
    change(tmp_path, architectures=["LlamaModel"])
    assert models.from_pretrained(tmp_path).config.tied


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize("spelling, base, scaling", [
    ({"rope_theta": 5e5}, 5e5, None), ({}, 1e4, None), ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 1e4, {"rope_type": "linear", "factor": 2.0}),
    ({"rope_theta": 1000000, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "original_max_position_embeddings": 4}},
     10**6, {"rope_type": "linear", "factor": 2.0}),
    ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}, 5e5, {"rope_type": "llama3", **LLAMA3}),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, None),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 3}}, 5e5, {"rope_type": "linear", "factor": 3}),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 1.0}}, 5e5, None)],
    ids=str)
def test_both_spellings_of_rope_are_read(tmp_path, spelling, base, scaling):
    build("llama").save_pretrained(tmp_path)
    config = {key: value for key, value in config_of(tmp_path).items() if not key.startswith("rope")} | spelling
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = models.from_pretrained(tmp_path).config
    assert (read.rope_base, read.rope_scaling) == (base, scaling)


# ---- Adapters, shards ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("backbone", BACKBONES)
def test_arrays_without_a_place_are_not_written(backbone):
    model = build(backbone)
    state = model.state_dict()
    name = next(iter(state)).replace(".weight", "") + ".base.weight"
    with pytest.raises(ValueError, match=rf"has no place for {name}\. Are adapters still in the model\? Merge them first"):
        model.family.write(model.config, state | {name: np.ones(3, np.float32)})


def test_a_model_is_written_in_shards_and_read_again(tmp_path):
    model = build("gpt", "classifier")
    model.save_pretrained(tmp_path, max_shard_bytes=1000)
    index, total = json.loads((tmp_path / "model.safetensors.index.json").read_text()), 0
    shards = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert len(shards) > 3 and shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    for name in shards:
        tensors = load_file(tmp_path / name)
        assert len(tensors) == 1 or sum(array.nbytes for array in tensors.values()) <= 1000
        assert set(tensors) == {key for key, place in index["weight_map"].items() if place == name}
        total += sum(array.nbytes for array in tensors.values())
    assert index["metadata"]["total_size"] == total
    assert_same(models.from_pretrained(tmp_path), model)


def test_the_weights_of_another_save_are_removed(tmp_path):
    small, large = build("gpt"), build("bert")
    large.save_pretrained(tmp_path, max_shard_bytes=500)
    (tmp_path / "notes.safetensors").write_text("mine")
    small.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors", "notes.safetensors"]
    assert_same(models.from_pretrained(tmp_path), small)
    large.save_pretrained(tmp_path, max_shard_bytes=500)
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(models.from_pretrained(tmp_path), large)
    large.save_pretrained(tmp_path, max_shard_bytes=10**9)
    assert not (tmp_path / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("most", [0, -5, 2.5, "5GB"])
def test_a_shard_size_that_is_none_is_refused_before_anything_is_written(tmp_path, most):
    with pytest.raises(ValueError, match="max_shard_bytes must be a positive integer or None"):
        build("gpt").save_pretrained(tmp_path / "new", max_shard_bytes=most)
    assert not (tmp_path / "new").exists()


def test_queries_keys_and_values_are_one_matrix_in_gpt2_and_three_again():
    state = build("gpt").state_dict()
    joined = GPT2.join(state)
    assert joined["blocks.1.attention.qkv.weight"].shape == (18, 6)
    apart = GPT2.split(joined, [])
    assert apart.keys() == state.keys() and all(np.array_equal(apart[name], state[name]) for name in state)
