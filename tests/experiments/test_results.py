"""What the results say, on runs whose errors are chosen by hand."""

import json
import re

import numpy as np
import pytest

from minitune.experiments import Results

TEXTS = 203     # not a multiple of 8: the bits of a byte that stand for no text must not count


def runs(**errors):
    """Rows for {method: [error at 16, 64, 256 labels]}, three seeds with the same wrong texts."""
    rows = []
    for method, curve in errors.items():
        for labels, error in zip((16, 64, 256), curve):
            if error is None:
                continue
            for seed in range(3):
                wrong = np.random.default_rng(seed).permutation(TEXTS) < round(error * TEXTS)
                rows.append({"method": method.replace("_", "-"), "labels": labels, "seed": seed, "error": float(wrong.mean()),
                             "valid_error": error, "test_texts": TEXTS, "wrong": np.packbits(wrong).tobytes().hex(),
                             "trainable_parameters": 10, "total_parameters": 20, "seconds": 1.0, "peak_memory_mb": 2.0})
    return Results(rows, {"dataset": "toy"})


def test_the_stored_bits_give_the_stored_error():
    results = runs(scratch=[0.6, 0.5, 0.4], full=[0.5, 0.4, 0.3])
    value, low, high = results.error("full", 64)
    assert value == pytest.approx(0.4, abs=0.005) and low < value < high


def test_a_clear_gain_is_put_in_labels():
    sentence = runs(scratch=[0.7, 0.6, 0.2], full=[0.5, 0.4, 0.2], tf_idf=[0.6, 0.5, 0.4]).sentence()
    # half way down from 64 to 256 in log(labels) is 128, in two digits 130
    assert re.match(r"64 labels fine-tuned \(full\) match about 130 labels from scratch \(95 % interval ", sentence)


def test_the_best_tuned_method_is_chosen_on_validation():
    assert runs(scratch=[0.7, 0.6, 0.2], full=[0.5, 0.5, 0.2], lora=[0.5, 0.4, 0.3]).best_tuned(64) == "lora"


def test_no_difference_is_said_aloud():
    assert "not distinguishable" in runs(scratch=[0.7, 0.5, 0.4], full=[0.7, 0.5, 0.4]).sentence()


def test_more_labels_than_were_tried():
    assert "match more than 256 labels from scratch" in runs(scratch=[0.7, 0.6, 0.5], full=[0.5, 0.2, 0.1]).sentence()


def test_a_loss_is_said_as_well():
    sentence = runs(scratch=[0.3, 0.2, 0.1], full=[0.7, 0.6, 0.5]).sentence()
    assert sentence == "64 labels fine-tuned (full) are beaten by 16 labels from scratch."


def test_the_plain_baseline_stands_beside_every_size():
    lines = runs(scratch=[0.7, 0.6, 0.5], full=[0.5, 0.4, 0.3], tf_idf=[0.6, 0.4, 0.1]).compared()
    assert "better than scratch" in lines[0] and "better than tf-idf" in lines[0]
    assert "not distinguishable from tf-idf" in lines[1] and "worse than tf-idf" in lines[2]


def test_sizes_that_only_scratch_has_leave_blanks_and_still_count():
    results = runs(scratch=[0.7, 0.6, 0.2], full=[0.5, 0.3, None])
    assert results.sizes == [16, 64] and results.all_sizes == [16, 64, 256]
    assert "match about" in results.sentence(64)
    assert "256 labels" in results.table()


def test_table_plot_and_json(tmp_path):
    results = runs(scratch=[0.7, 0.6, 0.5], full=[0.5, 0.4, 0.3], tf_idf=[0.6, 0.4, 0.1])
    assert all(word in results.table() for word in ("scratch", "full", "tf-idf", "16 labels", "peak MB"))
    results.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    results.to_json(tmp_path / "results.json")
    assert len(json.loads((tmp_path / "results.json").read_text())["runs"]) == 27


def test_errors_name_what_there_is():
    with pytest.raises(ValueError, match="at least one run"):
        Results([])
    with pytest.raises(ValueError, match="no runs of 'lora' at 16 labels"):
        runs(scratch=[0.5, 0.5, 0.5]).error("lora", 16)


def test_methods_without_scratch_or_without_transfer_are_written_out_as_well(tmp_path):
    alone = runs(scratch=[0.5, 0.5, 0.5])
    assert "No method that starts" in alone.sentence()
    pair = runs(full=[0.5, 0.4, 0.3], lora=[0.5, 0.45, 0.1])
    assert "nothing was trained from scratch" in pair.sentence() and "worse than lora" not in pair.compared()[2]
    assert pair.compared()[2].startswith("256 labels, lora: better than full (-20.")
    for results in (alone, pair):
        results.to_json(tmp_path / "results.json")


def test_the_interval_of_an_error_stays_within_none_and_all():
    """Two seeds, one all right and one all wrong: stretched, their spread would go beyond both."""
    rows = runs(full=[0.5, 0.4, 0.3]).rows[:2]
    for row, bits in zip(rows, (b"\0", b"\xff")):
        row |= {"wrong": (bits * (TEXTS // 8 + 1)).hex(), "error": float(bits == b"\xff")}
    assert Results(rows).error("full", 16) == (0.5, 0.0, 1.0)


def test_texts_of_one_group_are_drawn_together():
    results = runs(scratch=[0.7, 0.6, 0.5], full=[0.5, 0.4, 0.3])
    wrong = np.random.default_rng(0).permutation(TEXTS) < round(0.4 * TEXTS)
    order = np.argsort(wrong, kind="stable")                # groups of texts that are all right or all wrong
    groups = np.empty(TEXTS, int)
    groups[order] = np.arange(TEXTS) // 20
    grouped = Results(results.rows, {"test_groups": [str(g) for g in groups]})
    width = [high - low for _, low, high in (results.error("full", 64), grouped.error("full", 64))]
    assert width[1] > 1.2 * width[0]
