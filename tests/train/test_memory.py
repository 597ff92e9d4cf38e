"""peak_mb: what the process has held at most, and a history without it where the system keeps no record."""

import subprocess
import sys
from pathlib import Path

import pytest

import minitune as mt
from minitune.train.memory import peak_mb


def test_the_peak_grows_with_what_is_held_and_stays_when_it_is_freed():
    if peak_mb() is None:
        pytest.skip("this system keeps no record")
    code = """
import numpy as np
from minitune.train.memory import peak_mb
before = peak_mb()
held = int(before) + 64                         # as many MB as the process ever held, and 64 more
assert 10 < before < 100_000
ballast = np.ones(held << 17)
assert peak_mb() > held
del ballast
assert peak_mb() > held
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_elsewhere_than_on_linux_getrusage_is_asked_in_its_own_unit(monkeypatch):
    resource = pytest.importorskip("resource", reason="Windows has no getrusage")
    usage = type("usage", (), {"ru_maxrss": 5 * 2**20})
    monkeypatch.setattr(Path, "read_bytes", lambda *a, **k: (_ for _ in ()).throw(FileNotFoundError()))
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    found = {}
    for platform in ("darwin", "freebsd14"):
        monkeypatch.setattr(sys, "platform", platform)
        found[platform] = peak_mb()
    assert found == {"darwin": 5, "freebsd14": 5 * 1024}                    # bytes there, kB elsewhere


def test_where_nothing_is_recorded_the_history_has_no_such_column(monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", lambda *a, **k: (_ for _ in ()).throw(FileNotFoundError()))
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows: its import fails
    assert peak_mb() is None
    model = mt.models.GPT(mt.models.GPTConfig(8, 4, 1, 1, 4))
    history = mt.train.Trainer(model, mt.data.LanguageModelSet([[1, 2, 3, 4, 5]], 4), steps=1, lr=1e-3, progress=False).fit()
    assert len(history) == 1 and "peak_mb" not in history.rows[0]
