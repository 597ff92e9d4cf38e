"""Every kernel compiles for a GPU in all its forms, without spills and within the registers of kernels/budgets.json.

No GPU is needed: nvcc where it is installed, and NVRTC, which CuPy uses, from the toolkit or from its wheel.
"""

import json

import pytest
from compile import (
    ARCHITECTURES,
    BUDGETS,
    Compilations,
    Used,
    Variant,
    allowed,
    budgets,
    compilers,
    faults,
    log_of,
    sources,
    used,
    variants,
)

from minitune.twins.cuda.kernel import Source, folder

needs_a_compiler = pytest.mark.skipif(not compilers(), reason="neither nvcc nor NVRTC is here: pip install nvidia-cuda-nvrtc")


@pytest.fixture(scope="module")
def compilations(request):
    """What the selected tests compile, begun at once."""
    chosen = [item.callspec.params for item in request.session.items
              if item.path == request.path and "compilations" in getattr(item, "fixturenames", ())]
    return Compilations([(one["compiler"], one["variant"]) for one in chosen])


@needs_a_compiler
@pytest.mark.parametrize("compiler", compilers())
@pytest.mark.parametrize("variant", variants(), ids=str)
def test_a_file_of_kernels_compiles_without_spills_and_warnings_and_within_its_budget(compiler, variant, compilations):
    log = compilations.log(compiler, variant)
    took, limits = used(log), budgets()
    assert set(took) == set(sources()[variant.stem].kernels)
    wrong = "\n".join(fault for name, one in took.items()
                      for fault in faults(compiler, variant.of(name), one, limits.get(variant.of(name))))
    assert not wrong, wrong
    assert "warning" not in log, log


def test_every_file_of_kernels_has_a_twin_that_declares_it():
    assert {file.stem for file in folder().glob("*.cu")} == set(sources())


def test_budgets_are_of_kernels_that_exist():
    known = {variant.of(name) for variant in variants() for name in sources()[variant.stem].kernels}
    assert set(budgets()) <= known, "run: python kernels/compile.py --write"


# ---- The test itself can fail ------------------------------------------------------------------------------------

GREEDY = """#include "common.cuh"
extern "C" __global__ void __launch_bounds__(1024) greedy(float* x) {
    float kept[80];
    #pragma unroll
    for (int i = 0; i < 80; i++) kept[i] = x[i * 1024 + threadIdx.x];
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < 80; i++) x[i * 1024 + threadIdx.x] = kept[79 - i] * kept[(i * 7) % 80];
}
"""


@needs_a_compiler
@pytest.mark.parametrize("compiler", compilers())
def test_spills_are_seen_and_never_allowed(compiler):
    (name, took), = used(log_of(compiler, Source("greedy", GREEDY).text(), "sm_90")).items()
    assert name == "greedy" and took.spilled > 0
    assert "bytes of spills" in next(faults(compiler, name, took, allowed([took])))


@needs_a_compiler
@pytest.mark.parametrize("compiler", compilers())
def test_what_does_not_compile_names_the_file_and_its_line(compiler):
    with pytest.raises(RuntimeError, match=r"greedy\.cu\(4\): error"):
        log_of(compiler, Source("greedy", GREEDY.replace("#pragma unroll", "unheard_of = 1;", 1)).text(), "sm_90")


@pytest.mark.skipif("nvrtc" not in compilers(), reason="NVRTC is not here: pip install nvidia-cuda-nvrtc")
def test_nvrtc_refuses_what_only_nvcc_knows():
    text = Source("infinite", '#include "common.cuh"\nextern "C" __global__ void infinite(float* x) { *x = INFINITY; }').text()
    with pytest.raises(RuntimeError, match=r'infinite\.cu\(2\): error: identifier "INFINITY" is undefined'):
        log_of("nvrtc", text, "sm_90")


@needs_a_compiler
def test_what_is_over_its_budget_is_named_with_the_repair():
    (compiler, *_), took = compilers(), Used(registers=33, shared=64, stack=0, spilled=0)
    assert list(faults(compiler, "k", took, {"registers": 33, "shared": 64})) == []
    over, = faults(compiler, "k", took, {"registers": 33, "shared": 63})
    assert over.startswith("k: 64 bytes of shared memory, 63 are allowed") and "compile.py --write" in over
    unknown, = faults(compiler, "k", took, None)
    assert unknown == "k: has no budget in kernels/budgets.json. Run: python kernels/compile.py --write"


def test_registers_are_compared_with_compilers_of_the_same_cuda(monkeypatch):
    took, budget = Used(registers=33, shared=0, stack=0, spilled=0), {"registers": 32, "shared": 0}
    cuda = json.loads(BUDGETS.read_text(encoding="utf-8"))["cuda"]
    monkeypatch.setattr("compile.version", lambda compiler: f"NVRTC {cuda}.9")
    assert "33 registers, 32 are allowed" in "".join(faults("nvrtc", "k", took, budget))
    monkeypatch.setattr("compile.version", lambda compiler: f"NVRTC {cuda - 1}.9")
    assert list(faults("nvrtc", "k", took, budget)) == []


def test_a_budget_is_the_most_that_was_measured_and_room_that_costs_nothing():
    assert allowed([Used(30, 128, 0, 0), Used(25, 64, 0, 0)]) == {"registers": 40, "shared": 128}
    assert allowed([Used(254, 0, 0, 0)])["registers"] == 255


# ---- What is compiled --------------------------------------------------------------------------------------------

def test_every_dtype_and_every_choice_of_sizes_is_a_variant():
    source = Source("sized", "", D=(32, 64))
    source.kernel("sized", "x:T[N]")
    assert source.variants() == [("D=32",), ("D=64",), ("BF16", "D=32"), ("BF16", "D=64")]
    half = Source("half", "", dtypes=("bfloat16",))
    half.kernel("half", "x:T[N]")
    assert half.variants() == [("BF16",)]
    plain = Source("plain", "")
    plain.kernel("plain", "x:f32[N]")
    assert plain.variants() == [()]                                 # no activations: there is one form
    assert {v.architecture for v in variants()} == set(ARCHITECTURES)
    assert str(Variant("sized", ("BF16", "D=32"), "sm_90")) == "sized bfloat16 D=32 sm_90"
