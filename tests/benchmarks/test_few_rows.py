"""few_rows: the page says what the runs say, with intervals over draws and test rows."""

import few_rows
import numpy as np

import minitune as mt


def run_line(draw, errors, rows=200):
    random = np.random.default_rng(draw)
    wrong = {name: np.packbits(random.permutation(rows) < share * rows).tobytes().hex() for name, share in errors.items()}
    return {"data": "trec", "draw": draw, "wrong": wrong, "test_rows": rows, "seconds": 2.0, "classes": 6}


def test_the_page_gives_accuracies_and_differences_with_intervals():
    runs = [run_line(draw, {"tuned": 0.2, "scratch": 0.6, "tf-idf": 0.2}) for draw in range(3)]
    whole = {"cores": 2, "rows": 100, "base": {"name": "minitune-base", "parameters": 1000}, "runs": runs, "command": "c"}
    (line,) = [line for line in few_rows.page(whole) if line.startswith("| trec")]
    cells = [cell.strip() for cell in line.split("|")][1:-1]
    assert cells[:5] == ["trec", "6", "80.0 %", "40.0 %", "80.0 %"]
    assert cells[5].startswith("+40.0 (+3") and cells[6].startswith("+0.0 (-")


def test_wrong_rows_come_back_from_their_digits():
    run = run_line(0, {"tuned": 0.25})
    assert few_rows.wrong_of([run, run], "tuned").shape == (2, 200) and few_rows.wrong_of([run], "tuned").mean() == 0.25


def test_scratch_has_the_bases_sizes_and_none_of_its_weights():
    base, new = mt.models.from_pretrained(few_rows.DEFAULT_BASE), few_rows.new_weights(0)
    assert new.config == base.config and new.tokenizer.vocab_size == base.tokenizer.vocab_size
    assert not np.allclose(new.token_embedding.weight.data, base.token_embedding.weight.data)
