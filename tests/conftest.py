"""What every test starts from: seed 0, no fallback told yet, and `cases` and `kill_and_resume` importable."""

import sys
from pathlib import Path

import pytest

import minitune as mt
from minitune import backend

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "train")]
pytest.register_assert_rewrite("cases")


@pytest.fixture(autouse=True)
def fresh_state():
    """Random numbers start from seed 0 and each fallback warning is new, whatever ran before."""
    mt.seed(0)
    backend._told.clear()
