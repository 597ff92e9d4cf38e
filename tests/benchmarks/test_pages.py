"""The page says what was asked and what the committed results show."""

import json

import pages
import pytest
import sample_efficiency

from minitune.experiments import Results


def test_the_page_says_of_every_bar_what_the_committed_results_say():
    text = (pages.ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    table = "\n".join(pages.asked_and_measured(pages.ROOT / "benchmarks" / "results"))
    assert f"<!-- bars: written by benchmarks/pages.py -->\n\n{table}\n\n<!-- end of bars -->" in text


@pytest.mark.parametrize("write", [pages.vision, pages.awd_lstm, pages.masked_language_model])
def test_the_page_of_models_says_what_the_committed_results_say(write):
    text = (pages.ROOT / "docs" / "models_measured.md").read_text(encoding="utf-8")
    lines = "\n".join(write(pages.ROOT / "benchmarks" / "results"))
    assert f"<!-- {write.__name__}: written by benchmarks/pages.py -->\n\n{lines}\n\n<!-- end of" in text


@pytest.mark.parametrize("name", ["pydocs", "ag_news_22k"])
def test_the_page_on_pretraining_and_the_readme_say_what_the_committed_results_say(name):
    file = pages.ROOT / "benchmarks" / "results" / f"sample_efficiency_{name}.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    results = Results(stored["runs"], stored["settings"])
    assert stored["sentence"] == results.sentence() and stored["compared"] == results.compared()
    lines, mark = "\n".join(sample_efficiency.section(name, results)), "written by benchmarks/sample_efficiency.py -->"
    page = sample_efficiency.PAGE.read_text(encoding="utf-8")
    assert f"<!-- {name}: {mark}\n{lines}\n<!-- end of {name} -->" in page
    sentence = results.sentence(sample_efficiency.IN_README[name])
    assert f"<!-- {name} sentence: {mark}\n**{sentence}**\n" in (pages.ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("flags, said", [(["avx2"], True), (["avx2", "avx512f"], False)])
def test_a_bar_is_met_by_all_of_its_rows_or_missed(flags, said, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "BARS", [("step", "train_step", {"mode": "full"}, "ratio", "at most", 0.5),
                                        ("step of M", "train_step", {"size": "M"}, "ratio", "at most", 0.5),
                                        ("speed", "train_step", {"mode": "full"}, "speed", "at least", 2.0)])
    rows = [{"name": "minitune", "size": "M", "mode": "full", "ratio": 0.5, "speed": 2.5},
            {"name": "minitune", "size": "L", "mode": "full", "ratio": 0.504, "speed": 2.0},
            {"name": "torch", "size": "M", "mode": "full", "ratio": 1.0, "speed": 1.0}]
    result = {"processor": "AMD EPYC", "vector_flags": flags, "rows": rows}
    (tmp_path / "train_step.json").write_text(json.dumps(result), encoding="utf-8")
    lines = pages.asked_and_measured(tmp_path)
    assert lines[2:5] == ["| step | at most 0.50 | 0.50 | missed |", "| step of M | at most 0.50 | 0.50 | met |",
                          "| speed | at least 2.00 | 2.00 to 2.50 | met |"]
    assert ("not been measured" in "".join(lines)) == said
