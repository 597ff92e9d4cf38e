"""Files on disk: whole or absent, and clear words for what is damaged."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from minitune import models
from minitune.data import Tokenizer
from minitune.formats import folder as disk


def gpt(**sizes):
    return models.GPT(models.GPTConfig(**{"vocab_size": 20, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 6} | sizes))


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# ---- Interrupted ---------------------------------------------------------------------------------------------------

class PowerCut(BaseException):
    """No Exception, as KeyboardInterrupt is none."""


def test_a_write_that_stops_midway_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    file = tmp_path / "weights"
    file.write_text("old")

    def write(unfinished):
        unfinished.write_text("half of the ne")
        raise PowerCut

    with pytest.raises(PowerCut):
        disk.write_whole(file, write)
    assert contents(tmp_path) == {"weights": b"old"}
    with pytest.raises(PowerCut):
        disk.write_whole(tmp_path / "new" / "weights", write)
    assert contents(tmp_path / "new") == {}


def test_a_save_that_stops_while_weights_are_written_leaves_the_old_folder_whole(tmp_path, monkeypatch):
    gpt().save_pretrained(tmp_path)
    before = contents(tmp_path)

    def half(tensors, file, metadata):
        file.write_bytes(b"half")
        raise PowerCut

    monkeypatch.setattr(disk, "save_file", half)
    with pytest.raises(PowerCut):
        gpt(n_layer=2).save_pretrained(tmp_path)
    assert contents(tmp_path) == before
    assert models.from_pretrained(tmp_path).config == gpt().config


@pytest.mark.parametrize("stops_at", ["config.json", "tokenizer.json"])
def test_a_save_that_stops_at_a_later_file_leaves_the_old_folder_whole(tmp_path, monkeypatch, stops_at):
    model = gpt(vocab_size=262)
    model.tokenizer = Tokenizer.train(["to be or not to be"] * 9, 262)
    model.save_pretrained(tmp_path)
    before, write_text = contents(tmp_path), Path.write_text

    def cut(file, text, **settings):
        write_text(file, text[:10], **settings)
        if stops_at in file.name:
            raise PowerCut

    monkeypatch.setattr(Path, "write_text", cut)
    other = gpt(n_layer=2, vocab_size=262)
    other.tokenizer = model.tokenizer
    with pytest.raises(PowerCut):
        other.save_pretrained(tmp_path)
    assert contents(tmp_path) == before


def test_writing_replaces_what_was_there_and_leaves_no_temporary_file(tmp_path):
    for n_layer in 2, 1:
        gpt(n_layer=n_layer).save_pretrained(tmp_path)
    assert sorted(contents(tmp_path)) == ["config.json", "model.safetensors"]
    assert models.from_pretrained(tmp_path).config.n_layer == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file modes")
def test_a_folder_that_cannot_be_made_says_which(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        gpt().save_pretrained(tmp_path / "file" / "model")


# ---- Damaged -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    gpt().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing\. A model folder holds .*\(pytorch_model\.bin\) are not"):
        models.from_pretrained(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere. Nothing is downloaded: expected the path of a"):
        models.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="there is no folder bert-base-uncased. Nothing is downloaded"):
        models.from_pretrained("bert-base-uncased")


@pytest.mark.parametrize("kept", [0, 4, 50, -1])
def test_truncated_weights_are_told_from_whole_ones(tmp_path, kept):
    gpt().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file .*Was a download cut off\?"):
        models.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"n_layer": 1,}'])
def test_bad_json_is_told_with_its_place(tmp_path, text):
    gpt().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON \(.*line 1 column"):
        models.from_pretrained(tmp_path)


def test_json_that_is_no_object_is_refused(tmp_path):
    gpt().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json"):
        models.from_pretrained(tmp_path)


def test_a_folder_of_pickled_weights_is_never_opened(tmp_path):
    """Pickles run code when read."""
    gpt().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pickled weights"):
        models.from_pretrained(tmp_path)


# ---- Written as asked ----------------------------------------------------------------------------------------------

def test_arrays_come_back_whatever_their_order_in_memory(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.arange(10)[::2], "c": np.array(3.0), "d": np.zeros((0, 3))}
    disk.write_tensors(tmp_path / "x.safetensors", arrays)
    read = disk.read_tensors(tmp_path / "x.safetensors")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, strict=True)
    assert load_file(tmp_path / "x.safetensors").keys() == read.keys()


def test_half_precision_is_read_exactly(tmp_path):
    """Written by hand: bfloat16, which NumPy has not, is the upper half of a float32."""
    header = json.dumps({"brain": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]},
                         "half": {"dtype": "F16", "shape": [3], "data_offsets": [8, 14]}}).encode()
    numbers = bytes.fromhex("803f 20c0 80ff c07f" "003c 00c1 0100")
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + numbers)
    read = disk.read_tensors(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(read["brain"], np.array([[1, -2.5], [-np.inf, np.nan]], np.float32), strict=True)
    np.testing.assert_array_equal(read["half"].astype(np.float32), np.array([1, -2.5, 2.0**-24], np.float32), strict=True)


def test_text_is_utf8_on_every_system(tmp_path):
    disk.write_text(tmp_path / "deep" / "labels.json", json.dumps(["naïve", "☕"], ensure_ascii=False))
    assert json.loads((tmp_path / "deep" / "labels.json").read_bytes().decode("utf-8")) == ["naïve", "☕"]


def test_labels_of_any_script_travel(tmp_path):
    models.Classifier(gpt(), ["naïve", "☕"]).save_pretrained(tmp_path)
    assert models.from_pretrained(tmp_path).labels == ("naïve", "☕")


# ---- Half precision ------------------------------------------------------------------------------------------------

def test_weights_are_rounded_to_float16_on_disk_and_read_in_float32(tmp_path):
    model = gpt(n_embd=12)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "half", dtype="float16")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {array.dtype for array in stored.values()} == {np.dtype(np.float16)}
    for name, array in load_file(tmp_path / "whole" / "model.safetensors").items():
        assert array.dtype == np.float32 and np.array_equal(stored[name], array.astype(np.float16))
    loaded = models.from_pretrained(tmp_path / "half")
    for name, array in loaded.state_dict().items():
        assert array.dtype == np.float32 and np.array_equal(array, model.state_dict()[name].astype(np.float16))
    assert all(p.dtype == np.float32 for p in model.parameters())        # the model itself is as it was


def test_what_is_no_floating_point_number_is_left_as_it_is(tmp_path):
    tensors = {"steps": np.array([70_000]), "weight": np.ones(3)}
    disk.write_model(tmp_path, {}, tensors, {}, dtype="float16")
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["steps"].dtype == np.int64 and stored["steps"] == 70_000 and stored["weight"].dtype == np.float16


def test_shards_are_counted_in_half_precision(tmp_path):
    """300 numbers are 1,200 bytes, or 600."""
    tensors = {name: np.ones(150, np.float32) for name in "ab"}
    disk.write_model(tmp_path, {}, tensors, {}, max_shard_bytes=600, dtype="float16")
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("weight, fits", [(65504.0, True), (-65504.0, True), (7e4, False), (-7e4, False), (np.inf, True)])
def test_weights_that_float16_cannot_hold_are_named_and_nothing_is_written(weight, fits, tmp_path):
    model = gpt()
    model.norm.bias.data[2] = weight
    if fits:
        model.save_pretrained(tmp_path / "new", dtype="float16")
        assert models.from_pretrained(tmp_path / "new").norm.bias.data[2] == weight
        return
    with pytest.raises(ValueError, match="float16 holds numbers up to 65,504, and larger ones are in .*ln_f.bias. Save them"):
        model.save_pretrained(tmp_path / "new", dtype="float16")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "half", 16])
def test_another_dtype_is_refused_before_anything_is_written(dtype, tmp_path):
    with pytest.raises(ValueError, match='save_pretrained: dtype must be "float32", "float16" or None, got'):
        gpt().save_pretrained(tmp_path / "new", dtype=dtype)
    assert not (tmp_path / "new").exists()
