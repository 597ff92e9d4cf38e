"""GPT-2's names and shapes, without transformers: the round trip of every array, and an error for each thing that is off."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minitune import models
from minitune.formats.gpt2 import FAMILY

IDS = np.array([[3, 1, 4, 1, 5, 9]])


def gpt():
    model = models.GPT(models.GPTConfig(vocab_size=20, block_size=8, n_layer=2, n_head=2, n_embd=6, dropout=0.1))
    draw = np.random.default_rng(0)
    for parameter in model.parameters():        # biases and norms too: those that start at 0 or 1 could be swapped unseen
        parameter.data = draw.standard_normal(parameter.shape).astype(np.float32)
    return model.eval()


@pytest.fixture
def folder(tmp_path):
    """A saved GPT, and a function that changes what stands in its two files."""
    gpt().save_pretrained(tmp_path)
    return tmp_path


def change(folder, config=None, tensors=None):
    """Calls the two functions on what the files hold and writes back what they return."""
    if config:
        file = folder / "config.json"
        file.write_text(json.dumps(config(json.loads(file.read_text()))))
    if tensors:
        save_file(tensors(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def without(*names):
    return lambda entries: {name: value for name, value in entries.items() if name not in names}


def with_(**entries):
    return lambda before: before | entries


# ---- The round trip ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("pooling", [None, "last", "mean", "max", "concat"])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, pooling):
    model = gpt() if pooling is None else models.Classifier(gpt(), ["no", "yes", "maybe"], pooling)
    model.save_pretrained(tmp_path / "new" / "folder")
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]
    loaded = models.from_pretrained(tmp_path / "new" / "folder")
    assert type(loaded) is type(model) and not any(part.training for _, part in loaded.named_modules())
    assert repr(loaded) == repr(model)
    state, expected = loaded.state_dict(), model.state_dict()
    assert list(state) == list(expected)
    assert all(state[name].tobytes() == expected[name].tobytes() and state[name].dtype == np.float32 for name in state)
    np.testing.assert_allclose(loaded(IDS).numpy(), model(IDS).numpy(), rtol=1e-5, atol=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    for name in "config.json", "model.safetensors":
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "new" / "folder" / name).read_bytes()


def test_what_stands_where(folder):
    """The names, the transposed weights and the fused c_attn, written out by hand for one block."""
    tensors, state = load_file(folder / "model.safetensors"), gpt().state_dict()
    assert len(tensors) == 2 + 2 * 12 + 2
    query, key, value = (state[f"blocks.1.attention.{name}.weight"] for name in ("query", "key", "value"))
    np.testing.assert_array_equal(tensors["transformer.h.1.attn.c_attn.weight"], np.hstack([query.T, key.T, value.T]))
    np.testing.assert_array_equal(tensors["transformer.h.1.attn.c_attn.bias"],
                                  np.hstack([state[f"blocks.1.attention.{name}.bias"] for name in ("query", "key", "value")]))
    for theirs, own, transposed in [("wte.weight", "token_embedding.weight", False), ("ln_f.bias", "norm.bias", False),
                                    ("wpe.weight", "position_embedding.weight", False),
                                    ("h.1.ln_1.weight", "blocks.1.attention_norm.weight", False),
                                    ("h.1.ln_2.bias", "blocks.1.mlp_norm.bias", False),
                                    ("h.1.attn.c_proj.weight", "blocks.1.attention.output.weight", True),
                                    ("h.1.mlp.c_fc.weight", "blocks.1.mlp.up.weight", True),
                                    ("h.1.mlp.c_proj.weight", "blocks.1.mlp.down.weight", True)]:
        array = state[own].T if transposed else state[own]
        np.testing.assert_array_equal(tensors[f"transformer.{theirs}"], array, err_msg=own)


def test_names_there_and_back_are_the_identity():
    state = gpt().state_dict()
    config, tensors = gpt().to_hugging_face()
    back = FAMILY.read(config, tensors).state
    assert back.keys() == state.keys() and all(np.array_equal(back[name], state[name]) for name in state)
    bare = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    assert FAMILY.read(config, bare).state.keys() == state.keys()


def test_the_config_says_what_the_model_is(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config.items() >= {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 20, "n_positions": 8,
                              "n_layer": 2, "n_head": 2, "n_embd": 6, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.0,
                              "activation_function": "gelu_new", "tie_word_embeddings": True}.items()
    models.Classifier(gpt(), ["no", "yes"], "last").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config.items() >= {"architectures": ["GPT2ForSequenceClassification"], "id2label": {"0": "no", "1": "yes"},
                              "label2id": {"no": 0, "yes": 1}, "minitune_pooling": "last", "model_type": "gpt2"}.items()


@pytest.mark.parametrize("pooling", ["mean", "max", "concat"])
def test_a_classifier_that_pools_otherwise_does_not_say_it_is_hugging_faces(folder, pooling):
    """Theirs reads the last token whatever config.json says: it would compute something else without a word."""
    models.Classifier(gpt(), ["no", "yes"], pooling).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "minitune_gpt2_classifier"
    assert models.from_pretrained(folder).pooling == pooling


def test_an_inner_width_that_is_written_out_is_the_usual_one(folder):
    change(folder, config=with_(n_inner=24, activation_function="gelu_pytorch_tanh"))       # another name of the same function
    assert models.from_pretrained(folder).config == gpt().config


def test_labels_without_names_are_numbered(folder):
    models.Classifier(gpt(), ["no", "yes"]).save_pretrained(folder)
    change(folder, config=without("id2label", "label2id"))
    assert models.from_pretrained(folder).labels == ("LABEL_0", "LABEL_1")


# ---- What is off is refused, all of it at once ------------------------------------------------------------------------

@pytest.mark.parametrize("entries, complaint", [
    ({"activation_function": "relu"}, "activation_function is 'relu', expected 'gelu_new'"),
    ({"layer_norm_epsilon": 0}, "layer_norm_epsilon is 0, expected a number above 0"),
    ({"scale_attn_weights": False}, "scale_attn_weights is False, expected True"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True, expected False"),
    ({"n_inner": -1}, "n_inner is -1, expected a positive integer"), ({"embd_pdrop": 0.0}, "resid_pdrop is 0.1, expected 0.0"),
])
def test_a_config_of_another_model_is_refused(folder, entries, complaint):
    change(folder, config=with_(**entries))
    with pytest.raises(ValueError, match=f"not a GPT-2 model that minitune computes: {complaint}"):
        models.from_pretrained(folder)


def test_all_reasons_are_listed(folder):
    change(folder, config=lambda entries: without("n_layer", "n_head")(entries) | {
        "activation_function": "relu", "scale_attn_weights": False})
    with pytest.raises(ValueError) as error:
        models.from_pretrained(folder)
    for reason in "n_layer is missing", "n_head is missing", "activation_function is 'relu'", "scale_attn_weights is False":
        assert reason in str(error.value)


def test_missing_unknown_and_misshapen_arrays_are_all_listed(folder):
    change(folder, tensors=lambda t: without("transformer.ln_f.weight", "transformer.h.1.attn.c_attn.bias")(t) | {
        "transformer.wpe.weight": np.zeros((9, 6), np.float32), "transformer.h.0.mlp.c_fc.bias": np.zeros(23, np.float32),
        "transformer.h.0.crossattention.q_attn.weight": np.zeros((6, 6), np.float32),
        "transformer.h.2.ln_1.weight": np.zeros(6, np.float32)})
    with pytest.raises(ValueError) as error:
        models.from_pretrained(folder)
    for line in ["position_embedding.weight: expected (8, 6), got (9, 6)", "blocks.0.mlp.up.bias: expected (24,), got (23,)",
                 "norm.weight: missing", "blocks.1.attention.query.bias: missing", "blocks.1.attention.value.bias: missing",
                 "transformer.h.0.crossattention.q_attn.weight: unknown", "blocks.2.attention_norm.weight: unknown"]:
        assert f"\n  {line}" in str(error.value)


def test_a_transposed_weight_is_refused(folder):
    change(folder, tensors=lambda t: t | {"transformer.h.0.mlp.c_fc.weight":
                                          np.ascontiguousarray(t["transformer.h.0.mlp.c_fc.weight"].T)})
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.up\.weight: expected \(24, 6\), got \(6, 24\)"):
        models.from_pretrained(folder)


def test_a_c_attn_that_is_no_three_matrices_is_refused_by_name(folder):
    change(folder, tensors=lambda t: t | {"transformer.h.0.attn.c_attn.weight": np.zeros((6, 17), np.float32)})
    with pytest.raises(ValueError, match=r"h\.0\.attn\.c_attn\.weight.*\(6, 17\)"):
        models.from_pretrained(folder)


def test_a_transposed_c_attn_is_refused(folder):
    change(folder, tensors=lambda t: t | {"transformer.h.0.attn.c_attn.weight":
                                          np.ascontiguousarray(t["transformer.h.0.attn.c_attn.weight"].T)})
    with pytest.raises(ValueError, match=r"blocks\.0\.attention\.query\.weight: expected \(6, 6\), got \(2, 18\)"):
        models.from_pretrained(folder)


def test_a_head_that_differs_from_the_embedding_is_refused_whatever_the_config_says(folder):
    change(folder, tensors=lambda t: t | {"lm_head.weight": t["transformer.wte.weight"] + 1})
    with pytest.raises(ValueError, match="lm_head.weight"):
        models.from_pretrained(folder)


@pytest.mark.parametrize("names", [{"0": "no"}, {"0": "no", "2": "yes"}, {"0": "no", "1": "yes", "2": "perhaps"}, {}])
def test_label_names_that_do_not_fit_the_head_are_refused(folder, names):
    models.Classifier(gpt(), ["no", "yes"]).save_pretrained(folder)
    change(folder, config=with_(id2label=names))
    with pytest.raises(ValueError, match=r"the head has 2 classes, id2label names \["):
        models.from_pretrained(folder)


def test_a_label_that_is_there_twice_gets_its_number(folder):
    models.Classifier(gpt(), ["no", "yes", "maybe"]).save_pretrained(folder)
    change(folder, config=with_(id2label={"0": "crane", "1": "kite", "2": "crane"}))
    model = models.from_pretrained(folder)
    assert model.labels == ("crane", "kite", "crane (2)")
    model.save_pretrained(folder)
    assert models.from_pretrained(folder).labels == model.labels


def test_an_unknown_pooling_is_refused(folder):
    models.Classifier(gpt(), ["no", "yes"]).save_pretrained(folder)
    change(folder, config=with_(minitune_pooling="best"))
    with pytest.raises(ValueError, match="minitune_pooling is 'best', where Hugging Face's class has 'last'"):
        models.from_pretrained(folder)


@pytest.mark.parametrize("name, value", [("vocab_size", 0), ("n_embd", "6"), ("n_head", 4)])
def test_sizes_that_make_no_model_are_refused(folder, name, value):
    change(folder, config=with_(**{name: value}))
    with pytest.raises(ValueError, match=f"{name} is {value!r}, expected a positive|n_head must divide n_embd, got 4 and 6"):
        models.from_pretrained(folder)


def test_a_name_that_gpt2_has_no_place_for_is_not_saved():
    state = gpt().state_dict()
    with pytest.raises(ValueError, match=r"GPT-2's format has no place for blocks\.0\.mlp\.up\.base\.weight"):
        FAMILY.write(gpt().config, state | {"blocks.0.mlp.up.base.weight": state["blocks.0.mlp.up.weight"]})
