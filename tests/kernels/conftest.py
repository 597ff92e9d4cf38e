"""What the tests of kernels share: kernels/compile.py, which knows every file of kernels, and all cores for compiling."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minitune.twins.cuda import emulation
from minitune.twins.cuda.kernel import folder

sys.path[:0] = [str(folder()), str(Path(__file__).parent)]


@pytest.fixture(scope="session")
def pool():
    """Compiles on all cores, ahead of the tests that need it."""
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        yield executor


@pytest.fixture
def gxx():
    """The compiler of the emulation, without which a test is skipped."""
    if emulation.compiler() is None:
        pytest.skip("the emulation needs g++, which is not installed")
    return emulation.compiler()
