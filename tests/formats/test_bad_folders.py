"""Folders that are damaged, wrong or hostile: a clear error that lists all that is wrong, or a whole model."""

import json
import pickle
import shutil
import struct
import time
import tracemalloc

import numpy as np
import pytest
from model_builders import build
from safetensors.numpy import load_file, save_file

from minitune import models
from minitune.data import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """{name: folder} of whole models, to be copied and damaged."""
    place, folders = tmp_path_factory.mktemp("whole"), {}
    for backbone, head in [("gpt", "none"), ("gpt", "classifier"), ("bert", "classifier"), ("bert", "masked, next sentence"),
                           ("llama", "none"), ("vit", "classifier"), ("cnn", "classifier"), ("awd_lstm", "none")]:
        folders[f"{backbone} {head}".removesuffix(" none")] = folder = place / f"{backbone}_{head}"
        build(backbone, head).save_pretrained(folder)
    folders["shards"] = place / "shards"
    build("gpt").save_pretrained(folders["shards"], max_shard_bytes=2000)
    folders["tokens"] = place / "tokens"
    model = models.GPT(models.GPTConfig(265, 8, 1, 1, 2))
    model.tokenizer = Tokenizer.train(["low lower lowest"] * 10, vocab_size=265)
    model.save_pretrained(folders["tokens"])
    return folders


# ---- Ways to damage a folder -------------------------------------------------------------------------------------------

def config(**entries):
    """Changes keys of config.json; a key set to `...` is taken out."""
    def damage(folder):
        file = folder / "config.json"
        changed = json.loads(file.read_text()) | entries
        file.write_text(json.dumps({key: value for key, value in changed.items() if value is not ...}))
    return damage


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def data(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def tensors(**changes):
    """Changes arrays by name, dots as double underlines; an array set to `...` is taken out."""
    def damage(folder):
        changed = load_file(folder / WEIGHTS) | {key.replace("__", "."): array for key, array in changes.items()}
        save_file({key: array for key, array in changed.items() if array is not ...}, folder / WEIGHTS)
    return damage


def index(change):
    def damage(folder):
        places = json.loads((folder / INDEX).read_text())
        change(places["weight_map"])
        (folder / INDEX).write_text(json.dumps(places))
    return damage


def header(entries, content=b"", length=None):
    """A safetensors file with this header, or this text for one."""
    encoded = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return data(WEIGHTS, struct.pack("<Q", len(encoded) if length is None else length) + encoded + content)


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def pickled_for_safetensors(folder):
    (folder / WEIGHTS).write_bytes(pickle.dumps({"wte.weight": np.zeros((20, 6))}))


def only(name):
    return lambda folder: (folder / WEIGHTS).rename(folder / name)


def twice_in_shards(folder):
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    held = load_file(first)
    save_file(load_file(second) | {next(iter(held)): next(iter(held.values()))}, second)


def moved_outside(folder):
    shard = sorted(folder.glob("*.safetensors"))[0]
    shutil.copy(shard, folder.parent / "elsewhere.safetensors")
    held = load_file(shard)
    index(lambda places: places.update(dict.fromkeys(held, "../elsewhere.safetensors")))(folder)


def shard_gone(folder):
    sorted(folder.glob("model-*"))[1].unlink()


ZEROS = np.zeros((3, 3), np.float32)
BAD = {
    # config.json
    "no JSON": ("gpt", text("config.json", "{'n_layer': 1}"), r"config\.json: not valid JSON"),
    "no object": ("gpt", text("config.json", "[1, 2]"), r"config\.json: expected a JSON object, got list"),
    "not UTF-8": ("gpt", data("config.json", b'{"model_type": "\xff\xfe"}'), r"config\.json: not valid JSON"),
    "nested": ("gpt", text("config.json", "[" * 100_000), r"config\.json: not valid JSON"),
    "a key twice": ("gpt", text("config.json", '{"n_layer": 1, "n_layer": 2}'), "'n_layer' is there twice"),
    "no model type": ("gpt", config(model_type=...), "model_type is None, expected one of gpt2, bert, llama, vit, awd_lstm,"),
    "unknown type": ("gpt", config(model_type="mamba"), "model_type is 'mamba', expected one of gpt2, bert"),
    "a list for a type": ("gpt", config(model_type=["gpt2"]), r"model_type is \['gpt2'\], expected one of"),
    "unknown own type": ("cnn classifier", config(model_type="minitune_cnn_poet"), "model_type is 'minitune_cnn_poet'"),
    "code of its own": ("gpt", config(auto_map={"AutoModel": "evil.Evil"}), "auto_map asks for code.*never executed"),
    "missing sizes": ("bert classifier", config(hidden_size=..., vocab_size=...),
                      "BERT model.*: vocab_size is missing; hidden_size is missing"),
    "negative size": ("llama", config(num_hidden_layers=-2), "num_hidden_layers is -2, expected a positive integer"),
    "broken sizes": ("vit classifier", config(image_size=8.5, patch_size="4", num_hidden_layers=True),
                     "image_size is 8.5, expected a pos.*patch_size is '4', expected.*num_hidden_layers is True"),
    "absurd layers": ("gpt", config(n_layer=10**9), "n_layer is 1000000000, but the folder holds 28 arrays"),
    "absurd width": ("llama", config(head_dim=2**31 - 2), "head_size is 2147483646, but all arrays together hold"),
    "endless number": ("bert classifier", config(vocab_size=10**40), "vocab_size is 1000.*expected a positive integer"),
    "absurd own size": ("awd_lstm", config(n_layer=10**9), "n_layer is 1000000000, but the folder holds"),
    "absurd own list": ("cnn classifier", config(widths=[10**12, 4]), "does not describe a CNN: iterator is too large"),
    "absurd channels": ("llama", config(hidden_size=2**31 - 2, head_dim=..., num_attention_heads=1, num_key_value_heads=1),
                        "n_embd is 2147483646, but all arrays together hold"),
    "own size negative": ("awd_lstm", config(n_hidden=-1), "AWDLSTMConfig: n_hidden must be a positive integer, got -1"),
    "own key gone": ("awd_lstm", config(vocab_size=...), "does not describe a AWDLSTMConfig: vocab_size is missing"),
    "own value of another type": ("cnn classifier", config(widths="wide"), "widths must be positive integers, .*got 'wide'"),
    "other activation": ("bert classifier", config(hidden_act="gelu_new"), "hidden_act is 'gelu_new', expected 'gelu'"),
    "no epsilon": ("llama", config(rms_norm_eps=0), "rms_norm_eps is 0, expected a number above 0"),
    "dropout of two": ("bert classifier", config(hidden_dropout_prob=2), "hidden_dropout_prob is 2, expected a number from 0"),
    "dropout that is none": ("vit classifier", config(hidden_dropout_prob=float("nan")), "hidden_dropout_prob is nan"),
    "heads that do not divide": ("bert classifier", config(num_attention_heads=4), "n_head must divide n_embd, got 4 and 6"),
    "key heads that do not": ("llama", config(num_attention_heads=4, num_key_value_heads=3, head_dim=2),
                              "n_kv_head must divide n_head, got 3 and 4"),
    "patches that do not": ("vit classifier", config(patch_size=3), "patch_size must divide image_size, got 3 and 8"),
    "images that are no squares": ("vit classifier", config(image_size=[8, 12]), r"image_size is \[8, 12\], expected a pos"),
    "other rope": ("llama", config(rope_scaling={"rope_type": "yarn", "factor": 4.0}), "rope_scaling is {.*yarn.*expected"),
    "rope without numbers": ("llama", config(rope_scaling={"rope_type": "llama3", "factor": 8.0}), "rope_scaling is {.*llama3"),
    "part of rope": ("llama", config(rope_scaling=..., rope_parameters={"rope_theta": 1e4, "rope_type": "default",
                                     "partial_rotary_factor": 0.5}, partial_rotary_factor=...), "partial_rotary_factor is 0.5"),
    "labels that do not fit": ("bert classifier", config(id2label={"0": "no"}), "the head has 3 classes, id2label names"),
    "labels that are none": ("gpt classifier", config(id2label=["no", "yes"]), "id2label is .*expected an object of names"),
    "labels that are numbers": ("cnn classifier", config(id2label={"0": 1, "1": 2, "2": 3}), "expected an object of names"),
    "one output": ("gpt classifier", lambda folder: (
        tensors(score__weight=np.ones((1, 6), np.float32))(folder), config(id2label=...)(folder)),
                   "the head has one output, as for regression, which minitune has not"),
    "head that minitune has not": ("bert classifier", config(architectures=["BertForNextSentencePrediction"]),
                                   "'BertForNextSentencePrediction' is a class that minitune has not; it has BertModel, B"),
    "quantised": ("llama", config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
                  "the weights are quantised by 'bitsandbytes': save the model dequantised"),
    "two dropouts": ("gpt", config(resid_pdrop=0.2), "resid_pdrop is 0.2, expected 0.1: minitune has one dropout"),
    "unknown pooling": ("cnn classifier", config(minitune_pooling="best"), "pooling must be one of"),
    "pooling of another class": ("gpt classifier", config(minitune_pooling="mean"), "minitune_pooling is 'mean', where"),
    "pooling that is no name": ("cnn classifier", config(minitune_pooling=["mean"]), r"pooling must be one .*, got \['mean'\]"),
    "auxiliary loss": ("gpt classifier", config(minitune_auxiliary=-1.0), "auxiliary must be 0, or more .*, got -1.0 on GPT"),
    "auxiliary that is no number": ("gpt classifier", config(minitune_auxiliary="much"), "does not describe a Classifier: '<'"),
    "regression": ("bert classifier", config(problem_type="regression"),
                   "problem_type is 'regression', expected single- or multi_.*There is no regression head"),
    # which files there are
    "an adapter": ("gpt", lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
                   r"holds an adapter \(adapter_config\.json\), no model\. Load its base, and the adapter onto it: "
                   r"tune\.load_adapter"),
    "config gone": ("gpt", lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
    "weights gone": ("gpt", lambda folder: (folder / WEIGHTS).unlink(), r"model\.safetensors is missing"),
    "pickle": ("gpt", only("pytorch_model.bin"), r"pickled weights .* are not read.*holds pytorch_model\.bin"),
    "checkpoint": ("gpt", only("model.pt"), r"pickled weights .* are not read.*holds model\.pt"),
    # safetensors
    "pickle in disguise": ("gpt", pickled_for_safetensors, "looks like a pickle, which runs code when read"),
    "archive in disguise": ("gpt", data(WEIGHTS, b"PK\x03\x04" + bytes(60)), "looks like a pickle, which runs code when read"),
    "empty": ("gpt", data(WEIGHTS, b""), "not a whole safetensors file"),
    "absurd header": ("gpt", header({}, length=2**62), "not a whole safetensors file"),
    "header that is none": ("gpt", header(b"not JSON"), "not a whole safetensors file"),
    "beyond the end": ("gpt", header({"a": entry([4], 0, 16)}, bytes(8)), "not a whole safetensors file"),
    "far beyond": ("gpt", header({"a": entry([2**40], 0, 2**42)}, bytes(8)), "not a whole safetensors file"),
    "overlap": ("gpt", header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)), "not a whole safetensors file"),
    "hole": ("gpt", header({"a": entry([2], 0, 8), "b": entry([2], 16, 24)}, bytes(24)), "not a whole safetensors file"),
    "wrong count": ("gpt", header({"a": entry([3], 0, 8)}, bytes(8)), "not a whole safetensors file"),
    "backwards": ("gpt", header({"a": entry([2], 8, 0)}, bytes(8)), "not a whole safetensors file"),
    "shape that overflows": ("gpt", header({"a": entry([2**40, 2**40], 0, 8)}, bytes(8)), "not a whole safetensors file"),
    "negative shape": ("gpt", header({"a": entry([-1], 0, 4)}, bytes(4)), "not a whole safetensors file"),
    "rest": ("gpt", header({"a": entry([2], 0, 8)}, bytes(80)), "not a whole safetensors file"),
    "strange numbers": ("gpt", header({"a": entry([8], 0, 8, "F8_E4M3")}, bytes(8)), r"that are not read: a \(F8_E4M3\)"),
    "no arrays": ("gpt", header({}), "but the folder holds 0 arrays"),
    "a billion empty rows": ("bert classifier", header({"classifier.weight": entry([10**9, 0], 0, 0)}), "not a BERT model"),
    # arrays
    "unknown, missing, misshapen": (
        "llama",
        tensors(model__embed_tokens__bias=ZEROS, model__norm__weight=..., model__layers__1__mlp__up_proj__weight=ZEROS),
        r"(?s)blocks\.1\.mlp\.up\.weight: expected \(24, 8\), got \(3, 3\).*norm\.weight: missing.*embedding\.bias: unknown"),
    "own names": ("gpt", tensors(transformer__ln_f__weight=..., norm__weight=np.ones(6, np.float32)),
                  r"(?s)norm\.weight: unknown.*norm\.weight: missing"),
    "integers": ("vit classifier", tensors(vit__layernorm__bias=np.zeros(6, np.int64)),
                 r"vit\.layernorm\.bias: int64 numbers, expected floating point"),
    "own integers": ("cnn classifier", tensors(head__bias=np.zeros(3, np.int32)), "head.bias: int32 numbers, expected"),
    "half a head": ("bert masked, next sentence", tensors(cls__predictions__transform__dense__bias=...),
                    "transform.bias: missing"),
    "a head gone, and its labels": ("bert classifier", lambda folder: (
        tensors(classifier__weight=...)(folder), config(id2label=7)(folder)), "id2label is 7, expected an object of names"),
    "an old name and the new": ("bert classifier", tensors(bert__embeddings__LayerNorm__gamma=np.ones(6, np.float32)),
                                r"LayerNorm\.gamma: there twice, also as bert\.embeddings\.LayerNorm\.weight"),
    "no three matrices": ("gpt", tensors(transformer__h__0__attn__c_attn__weight=np.ones((6, 17), np.float32)),
                          r"h\.0\.attn\.c_attn\.weight: expected \(C, 3 C\) or \(3 C,\), got \(6, 17\)"),
    "no pooler": ("bert classifier", tensors(bert__pooler__dense__weight=..., bert__pooler__dense__bias=...),
                  "backbone.pooler.weight: missing"),
    "with prefix and without": ("gpt", tensors(wpe__weight=np.zeros((8, 6), np.float32)), "wpe.weight: there twice"),
    "another block": ("bert classifier", tensors(bert__encoder__layer__2__output__dense__bias=np.zeros(6, np.float32)),
                      r"blocks\.2\.mlp\.down\.bias: unknown"),
    "a block that is no number": ("gpt", tensors(transformer__h__01__ln_1__bias=np.zeros(6, np.float32)), r"ln_1\.bias: un"),
    # shards
    "shard gone": ("shards", shard_gone, r"names files that are missing: model-00002-of-"),
    "index that is none": ("shards", text(INDEX, "[]"), "expected a JSON object"),
    "index without map": ("shards", text(INDEX, "{}"), "expected a weight_map"),
    "index to elsewhere": ("shards", moved_outside, r"no safetensors file of this folder: '\.\./elsewhere\.safetensors'"),
    "index to the root": ("shards", index(lambda places: places.update(a="/etc/x.safetensors")), "file of this folder: '/etc"),
    "index to a pickle": ("shards", index(lambda places: places.update(a="pytorch_model.bin")), "no safetensors file of this"),
    "not in the index": ("shards", index(lambda places: places.pop("transformer.wpe.weight")),
                         r"transformer\.wpe\.weight: in model-.*, where the index does not name it"),
    "not in the shard": ("shards", index(lambda places: places.update({"a": next(iter(places.values()))})),
                         "a: not in model-00001-of-.*, where the index has it"),
    "twice in shards": ("shards", twice_in_shards, "in model-00002-of-.*, where the index has it in model-00001"),
    "twice in the index": ("shards", text(INDEX, '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'),
                           "'a' is there twice"),
    # tokenizer.json
    "no tokenizer": ("tokens", text("tokenizer.json", "{}"), "expected a Hugging Face tokenizer.json"),
    "tokenizer of no text": ("tokens", data("tokenizer.json", b"\xff\xfe{}"), r"tokenizer\.json: not a whole tokenizer\.json"),
    "tokenizer too large": ("tokens", lambda folder: Tokenizer.train(["tip top tap to be or not"] * 10, 269).save(
        folder / "tokenizer.json"), "tokenizer.json has 269 tokens, the model's embedding 265 rows"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_folder_gives_its_clear_error(tmp_path, saved, kind):
    name, damage, complaint = BAD[kind]
    folder = tmp_path / "model"
    shutil.copytree(saved[name], folder)
    models.from_pretrained(folder)              # whole before
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        models.from_pretrained(folder)


def test_nothing_large_is_made_for_a_small_folder(tmp_path, saved):
    """Sizes and shapes that lie are told before memory is asked for."""
    tracemalloc.start()
    try:
        for kind in ("absurd layers", "absurd width", "absurd channels", "absurd own size", "absurd own list", "far beyond",
                     "a billion empty rows"):
            name, damage, _ = BAD[kind]
            shutil.copytree(saved[name], tmp_path / kind)
            damage(tmp_path / kind)
            with pytest.raises(ValueError):
                models.from_pretrained(tmp_path / kind)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_long_lists_are_cut(tmp_path, saved):
    shutil.copytree(saved["gpt"], tmp_path / "model")
    header({f"a.{i}": entry([1], 4 * i, 4 * i + 4) for i in range(1000)}, bytes(4000))(tmp_path / "model")
    with pytest.raises(ValueError, match=r"(?s)a\.0: unknown\n.*\n  and 1,0\d\d more$") as error:
        models.from_pretrained(tmp_path / "model")
    assert str(error.value).count("\n") == 21
    shutil.copytree(saved["bert classifier"], tmp_path / "labels")
    config(id2label={str(i): f"label {i}" for i in range(1000)})(tmp_path / "labels")
    with pytest.raises(ValueError, match="the head has 3 classes, id2label names ") as error:
        models.from_pretrained(tmp_path / "labels")
    assert len(str(error.value)) < 300


def test_code_in_a_pickle_does_not_run(tmp_path, saved):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    shutil.copytree(saved["gpt"], tmp_path / "model")
    for name in "pytorch_model.bin", "model.pt", WEIGHTS:
        (tmp_path / "model" / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="looks like a pickle"):
        models.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"holds model\.pt, pytorch_model\.bin|holds pytorch_model\.bin, model\.pt"):
        models.from_pretrained(tmp_path / "model")
    assert not (tmp_path / "ran").exists()


# ---- Damage at random places -------------------------------------------------------------------------------------------

WHOLE = ["gpt classifier", "bert masked, next sentence", "llama", "vit classifier", "cnn classifier", "awd_lstm", "shards",
         "tokens"]


def damaged(content, draw):
    """The bytes with a few of them flipped, cut off, taken out or doubled; most damage falls on the first, the header."""
    at = int(draw.integers(len(content) if draw.random() < 0.5 else min(len(content), 900)))
    kind = draw.integers(4)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + content[at + int(draw.integers(1, 9)):]
    if kind == 2:
        return content[:at] + content[at : at + int(draw.integers(1, 40))] + content[at:]
    changed = bytearray(content)
    for place in range(at, min(at + int(draw.integers(1, 4)), len(content))):
        changed[place] ^= int(draw.integers(1, 256))
    return bytes(changed)


@pytest.mark.parametrize("name", WHOLE)
def test_any_damage_gives_a_whole_model_or_an_error_with_words(tmp_path, saved, name):
    folder, draw, outcomes = tmp_path / "model", np.random.default_rng(WHOLE.index(name)), set()
    shutil.copytree(saved[name], folder)
    files = sorted(folder.iterdir())
    whole = {file: file.read_bytes() for file in files}
    for case in range(60):
        file = files[case % len(files)]
        file.write_bytes(damaged(whole[file], draw))
        began = time.perf_counter()
        try:
            model = models.from_pretrained(folder)
            assert all(parameter.data.dtype == np.float32 for parameter in model.parameters())
            outcomes.add("model")
        except (ValueError, OSError) as error:
            assert len(str(error)) > 20
            outcomes.add("error")
        assert time.perf_counter() - began < 5
        file.write_bytes(whole[file])
    assert outcomes == {"model", "error"}       # or the damage was none, or everything


VALUES = [None, True, -1, 0, 3, 2.5, 1e300, float("nan"), float("inf"), 10**30, "", "gpt2", [], [3], {}, {"0": "a"}, "\ud800"]


@pytest.mark.parametrize("name", ["gpt classifier", "llama", "cnn classifier"])
def test_any_value_in_config_json_gives_a_whole_model_or_an_error_with_words(tmp_path, saved, name):
    folder = tmp_path / "model"
    shutil.copytree(saved[name], folder)
    file = folder / "config.json"
    whole = json.loads(file.read_text())
    for key in whole:
        for value in VALUES:
            file.write_text(json.dumps(whole | {key: value}))
            try:
                models.from_pretrained(folder)
            except (ValueError, OSError) as error:
                assert len(str(error)) > 20, (key, value)
