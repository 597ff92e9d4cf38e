"""What a twin declares of a kernel is what the kernel's text says, and wrong arguments are told before any kernel sees them."""

import re

import numpy as np
import pytest
from compile import sources

from minitune.twins.cuda import emulation
from minitune.twins.cuda import kernel as module
from minitune.twins.cuda.kernel import Source, folder

ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")
SOURCES = sources()
ROOT = folder().parent


def declared_in(text: str) -> dict[str, list[tuple[str, str, bool]]]:
    """(name, type, whether it is a pointer) of every parameter of each __global__ function."""
    text = re.sub(r"//[^\n]*", "", text)
    functions = re.findall(r'__global__\s+void\s+(?:__launch_bounds__\([^()]*\)\s*)?(\w+)\s*\(([^()]*)\)\s*{', text)
    assert len(functions) == text.count("__global__"), "a __global__ function is written in a way that this test cannot read"
    return {name: [_parameter(part) for part in parameters.split(",")] for name, parameters in functions}


def _parameter(text: str) -> tuple[str, str, bool]:
    *kind, name = re.sub(r"\bconst\b|__restrict__|\*", " ", text).split()
    return name, " ".join(kind), "*" in text


@pytest.mark.parametrize("stem", SOURCES)
def test_a_file_of_kernels_and_its_twin_name_the_same_parameters(stem):
    source = SOURCES[stem]
    declared = declared_in((folder() / f"{stem}.cu").read_text(encoding="utf-8"))
    assert set(declared) == set(source.kernels), "every __global__ function has a Kernel of its name"
    types = emulation.C_TYPES | ({"T": "bf16"} if source.dtypes == ("bfloat16",) else {})       # it may say what real is
    for name, kernel in source.kernels.items():
        assert [(p.name, types[p.kind], p.dims is not None) for p in kernel.parameters] == declared[name], name


@pytest.mark.parametrize("stem", SOURCES)
def test_the_head_of_a_file_says_what_the_kernels_do_and_names_their_reference(stem):
    lines = (folder() / f"{stem}.cu").read_text(encoding="utf-8").splitlines()
    head = " ".join(line.removeprefix("//").strip() for line in lines[: next(i for i, s in enumerate(lines) if s[:2] != "//")])
    places = re.findall(r"Reference: (minitune/[\w/]+\.py)", head)
    assert places and all((ROOT / place).exists() for place in places)
    assert "eterministic" in head                                   # or not: a file says which
    assert "common.cuh" in re.findall(r'#include "(.+)"', "\n".join(lines)) and not re.search(r"#include <", "\n".join(lines))


def test_names_of_kernels_are_unique():
    names = [name for source in SOURCES.values() for name in source.kernels]
    assert len(names) == len(set(names))


def test_the_reading_of_parameters_sees_all_of_them():
    text = """// __global__ void not_this(int x)
        extern "C" __global__ void one(const real* x, unsigned long long* __restrict__ ids, float eps, long long N) {}
        extern "C" __global__ void __launch_bounds__(256) two(
            float *y) {}"""
    assert declared_in(text) == {"one": [("x", "real", True), ("ids", "unsigned long long", True), ("eps", "float", False),
                                         ("N", "long long", False)], "two": [("y", "float", True)]}
    with pytest.raises(AssertionError, match="cannot read"):
        declared_in("__global__ static void odd() {}")


# ---- Wrong arguments ---------------------------------------------------------------------------------------------

SCALE = Source("scale", """#include "common.cuh"
extern "C" __global__ void scale(const real* x, const float* by, const int* ids, real* y, int N, int C, float plus) {
    for (int i = threadIdx.x; i < N * C; i += blockDim.x)
        y[i] = to_real(to_float(x[i]) * by[i % C] + plus + (ids ? ids[i / C] : 0));
}
""").kernel("scale", "x:T[N,C] by:f32[C] ids:i32[N]? y:T[N,C] N:i32 C:i32 plus:f32")


def x_by_ids_y(dtype=np.float32):
    return [np.ones((2, 3), dtype), np.arange(3, dtype=np.float32), np.array([10, 20], np.int32), np.zeros((2, 3), dtype)]


@pytest.mark.usefixtures("gxx")
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_right_arguments_run_and_sizes_are_filled_in(dtype):
    x, by, ids, y = x_by_ids_y(dtype)
    SCALE(1, 32, x, by, ids, y, 0.5)
    np.testing.assert_array_equal(y.astype(np.float32), [[10.5, 11.5, 12.5], [20.5, 21.5, 22.5]])
    SCALE(1, 32, x, by, None, y, np.float64(1))
    np.testing.assert_array_equal(y.astype(np.float32), [[1, 2, 3], [1, 2, 3]])


@pytest.mark.parametrize("place, wrong, error, words", [
    (0, np.ones((2, 3)), TypeError, "scale: x must be bfloat16 or float32, got float64"),
    (0, np.ones((2, 3), np.float16), TypeError, "scale: x must be bfloat16 or float32, got float16"),
    (0, [[1.0, 2.0, 3.0]], TypeError, "scale: x must be an array, got list"),
    (0, None, TypeError, "scale: x must be an array, got NoneType"),
    (0, np.ones((2, 1, 3), np.float32), ValueError, "scale: x must be (N = 2, C = 1), got (2, 1, 3)"),
    (0, np.ones((3, 2), np.float32).T, ValueError, "scale: x must be contiguous, its strides are (4, 8)"),
    (1, np.arange(3), TypeError, "scale: by must be float32, got int64"),
    (1, np.ones(2, np.float32), ValueError, "scale: by must be (C = 3), got (2,)"),
    (1, np.ones(6, np.float32)[::2], ValueError, "scale: by must be contiguous, its strides are (8,)"),
    (2, np.array([1, 2]), TypeError, "scale: ids must be int32, got int64"),
    (2, np.array([1, 2, 3], np.int32), ValueError, "scale: ids must be (N = 2), got (3,)"),
    (3, np.ones((2, 3), ml_dtypes.bfloat16), TypeError, "scale: y must be float32, got bfloat16"),
    (3, np.ones((2, 4), np.float32), ValueError, "scale: y must be (N = 2, C = 3), got (2, 4)"),
])
def test_a_wrong_array_is_told_by_name_with_what_was_expected(place, wrong, error, words):
    arguments = x_by_ids_y()
    arguments[place] = wrong
    with pytest.raises(error) as told:
        SCALE(1, 32, *arguments, 0.5)
    assert str(told.value) == words


@pytest.mark.parametrize("arguments", [(), (*x_by_ids_y(), 0.5, 1), (*x_by_ids_y(), 2, 3, 0.5)])
def test_a_wrong_number_of_arguments_is_told_with_their_names(arguments):
    with pytest.raises(TypeError) as told:
        SCALE(1, 32, *arguments)
    assert str(told.value) == f"scale: expected 5 arguments, x, by, ids, y, plus, got {len(arguments)}"


@pytest.mark.parametrize("number", ["0.5", None, [1, 2]])
def test_a_number_that_is_none_is_told_by_name(number):
    with pytest.raises(TypeError, match="scale: plus must be a number, got"):
        SCALE(1, 32, *x_by_ids_y(), number)


@pytest.mark.usefixtures("gxx")
def test_a_whole_number_that_does_not_fit_is_told_by_name():
    kernel = Source("small", '#include "common.cuh"\nextern "C" __global__ void small(int* y, int n) { *y = n; }\n') \
        .kernel("small", "y:i32[N] n:i32")
    kernel(1, 1, y := np.zeros(1, np.int32), 2**31 - 1)
    assert y[0] == 2**31 - 1
    with pytest.raises(ValueError, match=r"small: n must fit into i32, got 2147483648"):
        kernel(1, 1, y, np.int64(2**31))
    with pytest.raises(TypeError, match=r"small: n must be a whole number, got 1\.5"):
        kernel(1, 1, y, 1.5)


@pytest.mark.usefixtures("gxx")
def test_arrays_of_kinds_that_fitted_are_not_checked_again_and_numbers_are(monkeypatch):
    monkeypatch.setattr(SCALE, "_fitting", {})
    SCALE(1, 32, *x_by_ids_y(), 0.5)
    with monkeypatch.context() as inside:
        inside.setattr(SCALE, "_check", None)                                # which cannot be called
        *_, y = again = x_by_ids_y()
        SCALE(1, 32, *again, 1)
        np.testing.assert_array_equal(y, [[11, 12, 13], [21, 22, 23]])
        with pytest.raises(TypeError, match="scale: plus must be a number, got '1'"):
            SCALE(1, 32, *again, "1")
    for place, wrong in enumerate([np.ones((2, 3)), np.ones(6, np.float32)[::2], [10, 20], None]):      # of another kind each
        arguments = x_by_ids_y()
        arguments[place] = wrong
        for _ in range(2):                      # nor is what did not fit remembered as if it had
            with pytest.raises((TypeError, ValueError), match=f"scale: {'x by ids y'.split()[place]} must be "):
                SCALE(1, 32, *arguments, 0.5)
    assert len(SCALE._fitting) == 1


@pytest.mark.usefixtures("gxx")
def test_a_kernel_remembers_some_kinds_of_arguments_and_sizes_are_always_those_given(monkeypatch):
    monkeypatch.setattr(SCALE, "_fitting", {})
    monkeypatch.setattr(module, "REMEMBERED", 3)
    for length in [1, 2, 3, 4, 5, 4, 3, 2, 1]:
        for ids in None, np.arange(length, dtype=np.int32):
            for dtype in np.float32, ml_dtypes.bfloat16:
                x, by, y = np.ones((length, 3), dtype), np.arange(3, dtype=np.float32), np.zeros((length, 3), dtype)
                SCALE(1, 32, x, by, ids, y, 0)
                np.testing.assert_array_equal(y.astype(np.float32), by + (np.zeros(length) if ids is None else ids)[:, None])
                assert 0 < len(SCALE._fitting) <= 3


@pytest.mark.parametrize("signature", ["x", "x:f16[N]", "x:f32[N", "x:f32[N]!", "x f32", "N:i32?"])
def test_a_signature_that_cannot_be_read_says_what_it_looks_like(signature):
    with pytest.raises(ValueError, match="kernel signature: expected name:type"):
        Source("any", "").kernel("any", signature)


def test_a_size_that_is_no_choice_is_told():
    kernel = Source("sized", "", D=(32, 64)).kernel("sized", "x:T[N]")
    with pytest.raises(ValueError, match=r"sized: D must be one of 32, 64, got 96"):
        kernel(1, 32, np.zeros(1, np.float32), D=96)
    with pytest.raises(ValueError, match=r"sized: D must be one of 32, 64, got None"):
        kernel(1, 32, np.zeros(1, np.float32))
