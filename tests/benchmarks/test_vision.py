"""benchmarks/vision.py runs from end to end on the images that come with scikit-learn, and touches test only when asked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "vision.py"


@pytest.mark.parametrize("model", ["cnn", "vit"])
def test_the_vision_benchmark_runs(model, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn, which holds the images, is not installed")
    trial = model == "vit"
    file = tmp_path / "new" / "vision.json"
    options = ["--model", model, "--minutes", "0.03", "--images", "200", "--json", file]
    options += ["--rate", "0.001", "--no-test"] if trial else []
    done = subprocess.run([sys.executable, SCRIPT, "digits", *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text(encoding="utf-8"))
    row, = found["rows"]
    assert (row["data"], row["model"], found["images"], found["seed"]) == ("digits", model, 200, 0)
    assert len(found["valid_error_by_rate"]) == (0 if trial else 3) and found["curve"][-1]["step"] == found["steps"]
    assert {"versions", "threads", "fingerprint", "command"} <= set(found)
    assert ("accuracy" in row) is not trial
    if not trial:
        assert float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])
