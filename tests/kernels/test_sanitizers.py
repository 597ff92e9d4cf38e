"""The kernels under the address and undefined-behaviour sanitizers: nothing is read or written beyond an array, and where a
fault that does so is planted it is reported with its line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compile import sources
from faults import FAULTS

from minitune.twins.cuda import emulation

pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")
HERE = Path(__file__).parent
# Fibers have stacks of their own, so the sanitizer must not move variables to stacks of its own; Python's leaks are not ours.
OPTIONS = {"MINITUNE_SANITIZE": "address,undefined", "ASAN_OPTIONS": "detect_stack_use_after_return=0:detect_leaks=0",
           "UBSAN_OPTIONS": "print_stacktrace=1", "OPENBLAS_NUM_THREADS": "1"}
SHARED = """
import sys
import numpy as np
from minitune.twins.cuda.kernel import Source
kernel = Source("over", '''#include "common.cuh"
__device__ __attribute__((noinline)) void set(float* scratch, int i) { scratch[i] = 1; }
extern "C" __global__ void over(float* y, int i, int j) {
    __shared__ float kept[8];
    DYNAMIC_SHARED(float, dynamic);
    set(kept, i);
    dynamic[j] = 2;
    y[0] = kept[i] + dynamic[j];
}
''').kernel("over", "y:f32[N] i:i32 j:i32")
kernel(1, 1, y := np.zeros(1, np.float32), int(sys.argv[1]), int(sys.argv[2]), shared=32)
assert y[0] == 3
"""


@pytest.fixture(scope="module")
def sanitized():
    """Runs Python with the address sanitizer's library loaded first, as it demands."""
    gxx = emulation.compiler()
    asked = subprocess.run([gxx, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True) if gxx else None
    library = asked.stdout.strip() if asked else ""
    if not Path(library).is_absolute():                             # a bare name where there is none
        pytest.skip("needs g++ and its address sanitizer")

    def run(*arguments):
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=600, check=False,
                              env=os.environ | OPTIONS | {"LD_PRELOAD": library})
    return run


@pytest.fixture(scope="module")
def said(sanitized):
    """(exit status, messages) of each check, run in processes of their own, all cores at work."""
    done = sanitized(str(HERE / "faults.py"))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_without_the_sanitizers_library_python_is_not_ended_but_told():
    """To load a library that needs it would print "ASan runtime does not come first" and exit."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run([sys.executable, "-c", SHARED, "7", "7"], capture_output=True, text=True, check=False,
                          env=environment | OPTIONS)
    assert done.returncode == 1 and "RuntimeError: emulation: MINITUNE_SANITIZE=address needs" in done.stderr
    assert "LD_PRELOAD=$(g++ -print-file-name=libasan.so)" in done.stderr


@pytest.mark.parametrize("stem", sources())
def test_a_kernel_stays_inside_its_arrays_and_the_language(stem, said):
    status, messages = said[stem]
    assert status == 0, messages[-4000:]


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.beyond], ids=str)
def test_a_fault_beyond_an_arrays_end_is_reported_with_its_line(fault, said):
    status, messages = said[str(fault)]
    assert status and re.search("ERROR: AddressSanitizer: heap-(buffer-overflow|use-after-free)", messages), messages
    assert re.search(rf"(common\.cuh|{fault.stem}\.cu):\d+", messages)


@pytest.mark.parametrize("i, j, told", [(7, 7, None), (8, 7, "global-buffer-overflow"), (7, 8, "heap-buffer-overflow")])
def test_shared_memory_is_watched_too(i, j, told, sanitized):
    done = sanitized("-c", SHARED, str(i), str(j))
    if told is None:
        assert done.returncode == 0, done.stderr
    else:
        assert f"ERROR: AddressSanitizer: {told}" in done.stderr and "over.cu:" in done.stderr
