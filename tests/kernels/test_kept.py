"""What the emulation compiled is kept: for this text and this compiler, and as long as it is used."""

import os
import time

import numpy as np
import pytest

from minitune.twins.cuda import emulation
from minitune.twins.cuda.kernel import Source

pytestmark = pytest.mark.usefixtures("gxx")
TEXT = """
extern "C" __global__ void filled(float* y, int N) {
    if (threadIdx.x < N) y[threadIdx.x] = NUMBER;
}
"""


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Runs a kernel that writes a number, and gives the libraries that are then there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run(number=1):
        source = Source("filled", '#include "common.cuh"\n' + TEXT.replace("NUMBER", str(number)), ("float32",))
        source.kernel("filled", "y:f32[N] N:i32")(1, 32, y := np.zeros(8, np.float32))
        assert (y == number).all()
        return set((tmp_path / "minitune/emulated").glob("*.so"))
    return run


def test_a_library_is_compiled_once_for_a_text_and_a_compiler(kept, monkeypatch):
    one = kept()
    assert len(one) == 1 and kept() == one
    both = kept(2)
    assert len(both) == 2 and one < both
    monkeypatch.setattr(emulation, "_version", lambda gxx: "a later release at the same place")
    assert len(kept()) == 3


def test_what_was_not_used_for_thirty_days_is_removed_when_something_is_compiled(kept):
    (old,) = kept(1)
    (used,) = kept(2) - {old}
    for library in old, used:
        os.utime(library, (time.time() - 31 * 24 * 3600,) * 2)
    assert kept(2) == {old, used}               # nothing compiled, nothing removed; and this one is used again
    after = kept(3)
    assert len(after) == 2 and used in after and old not in after
