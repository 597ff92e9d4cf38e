"""Faults planted in kernels, the check that must find each, and that check: a twin against its reference in two thread orders.

    python tests/kernels/faults.py      checks every kernel, and every fault beyond an array's end, under sanitizers
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "kernels")]

from cases import CASES, NO, Call, Case, calls_of, numbers  # noqa: E402
from compile import sources  # noqa: E402

from minitune import backend, nn  # noqa: E402
from minitune.devices import is_float  # noqa: E402
from minitune.optim import AdamW  # noqa: E402
from minitune.twins.cuda import emulation  # noqa: E402

BEYOND = True           # an array's end: only the address sanitizer is sure to see it


class Fault(NamedTuple):
    """A change of a file's text, common.cuh included."""

    stem: str
    name: str
    old: str
    new: str
    beyond: bool = False

    def __str__(self) -> str:
        return f"{self.stem}: {self.name}"


BARRIER = "__syncthreads();"
FAULTS = [
    Fault("layer_norm", "rstd without eps", "/ C + eps)", "/ C)"),
    Fault("layer_norm", "no barrier before sums are read", f"{BARRIER}\n    if (threadIdx.y < 2", "if (threadIdx.y < 2"),
    Fault("layer_norm", "last channel left out", "for (int c = lane; c < C; c += WARP) sum +=",
          "for (int c = lane; c < C - 1; c += WARP) sum +="),
    Fault("layer_norm", "rows not checked", "    if (row >= N) return;\n    x +=", "    x +=", BEYOND),
    Fault("rms_norm", "rstd without eps", "/ C + eps)", "/ C)"),
    Fault("rms_norm", "last row left out", "row < N; row += P", "row < N - 1; row += P"),
    Fault("rms_norm", "no barrier before sums are read", f"{BARRIER}\n    if (threadIdx.y == 0", "if (threadIdx.y == 0"),
    Fault("rms_norm", "rows not checked", "    if (row >= N) return;\n    x +=", "    x +=", BEYOND),
    Fault("softmax", "a maximum that starts at 0", "top = MINUS_INFINITY, sum", "top = 0, sum"),
    Fault("softmax", "last class left out", "c += blockDim.x) sum +=", "c += blockDim.x) if (c < C - 1) sum +="),
    Fault("softmax", "one class too many", "c < C; c += blockDim.x) y[c]", "c <= C; c += blockDim.x) y[c]", BEYOND),
    Fault("softmax", "no barrier in a block's sum", f"{BARRIER}\n    return warp_sum(", "return warp_sum("),
    Fault("softmax", "no barrier in a block's maximum", f"{BARRIER}\n    return warp_max(", "return warp_max("),
    Fault("softmax", "warps beyond the block are added",
          "threadIdx.x % WARP < blockDim.x / WARP ? scratch[threadIdx.x % WARP] : 0.0f", "scratch[threadIdx.x % WARP]"),
    Fault("elementwise", "a wrong slope", "1 + 3 * GELU_CUBIC", "1 + 2 * GELU_CUBIC"),
    Fault("elementwise", "last number left out", "if (i + k < N) y", "if (i + k + 1 < N) y"),
    Fault("elementwise", "only the first of a pack is added", "to_float(p.at[k]) + to_float(q.at[k])",
          "to_float(p.at[k]) + to_float(q.at[0])"),
    Fault("elementwise", "written beyond the end", "if (i + k < N) y", "y", BEYOND),
    Fault("swiglu", "a wrong slope", "1 + g * rest", "1 + g * s"),
    Fault("swiglu", "read beyond the end", "i + k < N ? x[i + k] : to_real(0)", "x[i + k]", BEYOND),
    Fault("dropout", "one number for four elements", "numbers.at[j] >> 8", "numbers.at[0] >> 8"),
    Fault("dropout", "the next block of numbers", "counter + (i + k) / 4", "counter + 1 + (i + k) / 4"),
    Fault("dropout", "no scale", "* kept * scale", "* kept"),
    Fault("linear", "one bias for a pack", "+ biases[i]", "+ biases[0]"),
    Fault("linear", "no barrier before sums are read", f"{BARRIER}\n    if (threadIdx.y == 0", "if (threadIdx.y == 0"),
    Fault("linear", "rows not checked", "if (row >= N || first >= C)", "if (first >= C)", BEYOND),
    Fault("embedding", "a run's end not seen", "began = false;", ""),
    Fault("embedding", "one piece of a run left out", "piece + 1 + threadIdx.y", "piece + 2 + threadIdx.y"),
    Fault("embedding", "read beyond the last key", "i + 1 < N && id_of(keys[i + 1])", "id_of(keys[i + 1])", BEYOND),
    Fault("linear_cross_entropy", "a sum under an old maximum", "sum *= expf(before - top);", ""),
    Fault("linear_cross_entropy", "slope at the wrong class", "(column + i == target)", "(column + i + 1 == target)"),
    Fault("linear_cross_entropy", "bias read in the padding", "c < classes ? to_float", "c >= 0 ? to_float", BEYOND),
    Fault("rope", "turned one way", "sine[k] *= direction;", ""),
    Fault("rope", "last head left out", "h < min(H, ", "h < min(H - 1, "),
    Fault("rope", "tokens not checked", "    if (token >= N) return;\n", "", BEYOND),
    Fault("conv2d", "a row below the image", "row < H &&", "row <= H &&"),
    Fault("conv2d", "filters beyond the image", "if (i < OH && j < OW)", ""),
    Fault("conv2d", "windows not checked", "    if (window >= windows) return;\n", "", BEYOND),
    Fault("optimizers", "gradient not squared", "rest2 * g * g", "rest2 * g"),
    Fault("optimizers", "last number of a piece left out", "i < count; i += THREADS)\n        update",
          "i < count - 1; i += THREADS)\n        update"),
    Fault("optimizers", "no barrier between halves", f"+ half];\n        {BARRIER}", "+ half];"),
    Fault("optimizers", "beyond the piece's end", "count = (int)min(row.size - start, (long long)CHUNK), packed",
          "count = (int)min(row.size - start, (long long)CHUNK) + 1, packed", BEYOND),
    Fault("attention", "the last key not seen", "key <= seen.last", "key < seen.last"),
    Fault("attention", "a sum under an old maximum", "*total *= shrink;", ""),
    Fault("attention", "no barrier before keys are read", f"{BARRIER}\n        float scores[KEYS / 8][4];",
          "float scores[KEYS / 8][4];"),
    Fault("attention", "keys written while others are read", f"{BARRIER}\n        fill_rows(key_rows", "fill_rows(key_rows"),
    Fault("attention", "queries written while others are read", f"{BARRIER}\n            fill_pairs(query_pairs",
          "fill_pairs(query_pairs"),
    Fault("attention", "key pairs written while others are read", f"{BARRIER}\n        fill_pairs(key_pairs",
          "fill_pairs(key_pairs"),
    Fault("attention", "read beyond the last row", "return row < x.count ? x", "return row < x.count + 64 ? x", BEYOND),
]


# ---- The check ---------------------------------------------------------------------------------------------------

IDS = np.array([3] * 100 + [1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3] * 3)
PLACES = np.arange(130)
LARGER = [              # than those of the table: several warps, blocks and pieces
    Case("layer_norm", "", (numbers(19, 70), numbers(70), numbers(70, low=-1))),
    Case("rms_norm", "", (numbers(19, 70), numbers(70))),
    Case("softmax", "", (numbers(3, 300),)),
    Case("gelu", "", (numbers(1037),)),
    Case("gelu", "", (numbers(1037),), {"approximate": "none"}),
    Case("add", "", (numbers(17, 61), numbers(17, 61, low=-1))),
    Case("swiglu", "", (numbers(1037), numbers(1037, low=-1))),
    Case("linear", "", (numbers(19, 10), numbers(70, 10), numbers(70), numbers(19, 70, low=-1))),
    Case("embedding", "", (numbers(10, 40), IDS)),
    Case("rope", "", (numbers(3, 5, 11, 12), np.arange(15).reshape(3, 5)), {"frequencies": 0.5 ** np.arange(6)}),
    Case("linear_cross_entropy", "", (numbers(6, 4), numbers(300, 4), np.array([0, 299, 7, NO, 31, 250]), numbers(300))),
    Case("linear_cross_entropy", "", (numbers(3, 2), numbers(9001, 2), np.array([0, 9000, 31]), None)),
    Case("conv2d", "", (numbers(2, 3, 9, 20), numbers(5, 3, 3, 3), numbers(5)), {"padding": 1}),
    Case("attention", "", (numbers(1, 130, 2, 32), numbers(1, 130, 1, 32), numbers(1, 130, 1, 32, low=-1),
                           np.maximum(PLACES - 99, 0)[None], PLACES[None])),
]


def check(stem: str) -> None:
    """Raises AssertionError where a twin's results differ from the reference's, EmulationError where a kernel is in error."""
    if stem == "optimizers":
        check_optimizers()
        return
    assert (calls := list(calls_for(stem)))
    for fast, call, exact in calls:
        needs = list(exact.subsets_of_needs())[-1]                          # all of them
        expected, exact_saved = exact.forward(*exact.arrays, **exact.settings, needs=needs)
        grad = numbers(*np.shape(expected)).astype(call.arrays[0].dtype if np.ndim(expected) else np.float32)
        expected_grads = exact.backward(grad.astype(np.float64), *exact_saved, needs=needs)
        for order in ("shuffled", "warps"):
            with emulation.thread_order(order), np.errstate(all="ignore"):
                y, saved = fast.forward(*call.arrays, **call.settings, needs=needs)
                grads = fast.backward(grad, *saved, needs=needs)
            for ours, theirs in zip((y, *grads), (expected, *expected_grads), strict=True):
                if ours is not None:
                    agree(ours, theirs, call.arrays[0].dtype)


def agree(ours: np.ndarray, theirs: np.ndarray, dtype: np.dtype) -> None:
    """float32 as in tests/ops/test_twins.py. bfloat16: the result, and in some operations terms of its sums, are rounded to 8
    bits, each by 2^-8 of its size at most; 2^-6 of the largest number is room for some."""
    largest = np.abs(theirs).max(initial=1)
    rtol, atol = (1e-5, 2e-6) if dtype == np.float32 else (2.0**-6, 2.0**-6 * largest)
    np.testing.assert_allclose(ours.astype(np.float64), theirs, rtol, atol)


def calls_for(stem: str) -> Iterator[tuple[backend.Twin, Call, Call]]:
    """(twin, call, the same in float64): in float32, and the larger ones in bfloat16 too, of numbers that it holds exactly."""
    import ml_dtypes
    for i, case in enumerate(LARGER + CASES):
        with backend.kernels(False):
            pairs = list(zip(calls_of(case, np.float32), calls_of(case), strict=True))
        for call, exact in pairs:
            fast = backend.twin("cuda", stem, call.name) if call.stem == stem else None
            half = [_rounded(a, ml_dtypes.bfloat16) for a in call.arrays]
            for given in [call] + [call._replace(arrays=half)] * (i < len(LARGER)):
                if fast is not None and fast.unsupported(*given.arrays, **given.settings) is None:
                    arrays = exact.arrays if given is call else [_rounded(a, np.float64) for a in half]
                    yield fast, given, exact._replace(arrays=arrays)


def _rounded(a, dtype):
    return a.astype(dtype) if isinstance(a, np.ndarray) and is_float(a.dtype) else a


def check_optimizers() -> None:
    """Two clipped steps of AdamW, on a hundred small tensors and one of two pieces: all numbers, and the norms."""
    expected = trained(emulate=False)
    for order in ("shuffled", "warps"):
        with emulation.thread_order(order):
            for ours, theirs in zip(trained(emulate=True), expected, strict=True):
                np.testing.assert_allclose(ours, theirs, 1e-5, 2e-6)


def trained(emulate: bool) -> list[np.ndarray]:
    """The parameters after two steps, their moments, and the norms of the gradients."""
    parameters, norms = [nn.Parameter(numbers(size).astype(np.float32)) for size in [5] * 100 + [16384 + 7]], []
    optimizer = AdamW(parameters, lr=0.1, eps=1e-3, weight_decay=0.1)
    with backend.emulated_gpu() if emulate else backend.kernels(False):
        for _ in range(2):
            for p in parameters:
                p.grad = numbers(p.data.size, low=-1).astype(np.float32)
            norms.append(np.asarray(optimizer.clip(2.0)))
            optimizer.step()
    return [*(p.data for p in parameters), *(m for p in parameters for m in optimizer.slots[id(p)].moments), *norms]


@contextmanager
def planted(fault: Fault) -> Iterator[None]:
    """Inside a `with` block the kernels have the fault."""
    source = sources()[fault.stem]
    source.given = changed(fault)
    source.forget()
    try:
        yield
    finally:
        source.given = None
        source.forget()


def changed(fault: Fault) -> str:
    """The file's text with the fault in it. Raises ValueError where it does not hold the old text exactly once."""
    text = sources()[fault.stem].text()
    if (count := text.count(fault.old)) != 1:
        raise ValueError(f"{fault}: its old text stands {count} times in kernels/{fault.stem}.cu: mend the table")
    return text.replace(fault.old, fault.new)


# ---- Under sanitizers --------------------------------------------------------------------------------------------

def main() -> None:
    """Runs each check in a process of its own, as many at once as there are cores; prints what each said, as JSON."""
    jobs = {stem: None for stem in sources()} | {str(fault): fault for fault in FAULTS if fault.beyond}
    waiting, running, said = list(jobs.items()), {}, {}
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            (name, fault), log = waiting.pop(0), TemporaryFile()
            if not (child := os.fork()):
                os.dup2(log.fileno(), 2)
                run(name, fault)
            running[child] = name, log
        child, status = os.wait()
        name, log = running.pop(child)
        log.seek(0)
        said[name] = status, log.read().decode()
    print(json.dumps(said))


def run(stem: str, fault: Fault | None) -> None:
    """Ends the process: 0 where all agrees."""
    try:
        if fault is None:
            check(stem)
        else:
            with planted(fault):
                check(fault.stem)
    except BaseException as wrong:
        print(repr(wrong), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
