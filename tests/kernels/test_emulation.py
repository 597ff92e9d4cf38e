"""The emulation is what kernels are judged by, so it is judged first: its numbers, its barriers, its errors."""

import numpy as np
import pytest

from minitune import backend
from minitune.twins.cuda import emulation
from minitune.twins.cuda.kernel import Source, empty

ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")
pytestmark = pytest.mark.usefixtures("gxx")

SOURCE = Source("tried", """#include "common.cuh"

extern "C" __global__ void random_numbers(unsigned* y, long long seed, long long stream, long long counter, int N) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= N) return;
    Four four = philox(seed, stream, counter + i);
    for (int k = 0; k < 4; k++) y[4 * i + k] = four.at[k];
}

extern "C" __global__ void rounded(const float* x, unsigned* y, float* back, long long N) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= N) return;
    bf16 half = to_bf16(x[i]);
    y[i] = pack(half, to_bf16(0));
    back[i] = to_float(half);
}

extern "C" __global__ void product(const real* a, const real* b, float* d) {
    int g = threadIdx.x / 4, c = 2 * (threadIdx.x % 4);
    unsigned left[4], right[2];
    float sums[4] = {1, 2, 3, 4};
#ifdef BF16
    for (int i = 0; i < 4; i++) {
        const real* at = a + (g + i % 2 * 8) * 16 + c + i / 2 * 8;
        left[i] = pack(at[0], at[1]);
    }
    for (int i = 0; i < 2; i++) right[i] = pack(b[(c + i * 8) * 8 + g], b[(c + i * 8 + 1) * 8 + g]);
#endif
    mma(sums, left, right);
    for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + c + i % 2] = sums[i];
}

extern "C" __global__ void reduced(const float* x, float* sums, float* most, int N) {
    __shared__ float scratch[WARP];
    float own = x[threadIdx.x], in_warp = warp_sum(own), highest = warp_max(own);
    for (int again = 0; again < 2; again++) {                       // at once with the same scratch
        sums[threadIdx.x * 2] = in_warp;
        sums[threadIdx.x * 2 + 1] = block_sum(own, scratch);
        most[threadIdx.x * 2] = highest;
        most[threadIdx.x * 2 + 1] = block_max(own, scratch);
    }
}

extern "C" __global__ void moved(const float* x, float* y) {
    int lane = threadIdx.x % WARP;
    y[threadIdx.x * 3] = __shfl_sync(EVERY_LANE, x[threadIdx.x], 5);
    y[threadIdx.x * 3 + 1] = __shfl_xor_sync(EVERY_LANE, x[threadIdx.x], 3);
    y[threadIdx.x * 3 + 2] = __shfl_down_sync(EVERY_LANE, x[threadIdx.x], 2) + 0 * lane;
}

extern "C" __global__ void shared_at_start(float* y) {
    __shared__ float fixed[32];
    DYNAMIC_SHARED(float, dynamic);
    y[(blockIdx.x * 32 + threadIdx.x) * 2] = fixed[threadIdx.x];
    y[(blockIdx.x * 32 + threadIdx.x) * 2 + 1] = dynamic[threadIdx.x];
    fixed[threadIdx.x] = dynamic[threadIdx.x] = 1;
}

extern "C" __global__ void passed_on(const float* x, float* y, int wait) {
    __shared__ float kept[64];
    kept[threadIdx.x] = x[threadIdx.x];
    if (wait) __syncthreads();
    y[threadIdx.x] = kept[63 - threadIdx.x];
}

extern "C" __global__ void last_wins(float* y) { y[0] = blockIdx.x; }

extern "C" __global__ void divergent(float* y) {
    if (threadIdx.x < 32) __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = 1;
}

extern "C" __global__ void left_early(float* y, int N) {
    if (threadIdx.x >= N) return;
    __syncthreads();
    y[threadIdx.x] = 1;
}

extern "C" __global__ void lane_missing(float* y, int N) {
    if (threadIdx.x >= N) return;
    y[threadIdx.x] = warp_sum(1);
}

extern "C" __global__ void stuck(float* y) {
    if (threadIdx.x == 3) __syncthreads();
    y[threadIdx.x] = __shfl_sync(EVERY_LANE, 1.0f, 0);
    __syncthreads();
}

extern "C" __global__ void places(int* y) {
    int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    y[block * 24 + thread] = block * 24 + thread;
}
""")
RANDOM = SOURCE.kernel("random_numbers", "y:u32[M] seed:i64 stream:i64 counter:i64 N:i32")
ROUNDED = SOURCE.kernel("rounded", "x:f32[N] y:u32[N] back:f32[N] N:i64")
PRODUCT = SOURCE.kernel("product", "a:T[M,K] b:T[K,N] d:f32[M,N]")
REDUCED = SOURCE.kernel("reduced", "x:f32[N] sums:f32[N,K] most:f32[N,K] N:i32")
MOVED = SOURCE.kernel("moved", "x:f32[N] y:f32[N,K]")
SHARED = SOURCE.kernel("shared_at_start", "y:f32[B,N,K]")
PASSED_ON = SOURCE.kernel("passed_on", "x:f32[N] y:f32[N] wait:i32")
LAST_WINS = SOURCE.kernel("last_wins", "y:f32[N]")
DIVERGENT = SOURCE.kernel("divergent", "y:f32[M]")
LEFT_EARLY = SOURCE.kernel("left_early", "y:f32[M] N:i32")
LANE_MISSING = SOURCE.kernel("lane_missing", "y:f32[M] N:i32")
STUCK = SOURCE.kernel("stuck", "y:f32[M]")
PLACES = SOURCE.kernel("places", "y:i32[M]")


def zeros(*shape):
    return np.zeros(shape, np.float32)


def line_of(text: str, after: str = "") -> int:
    """The line of the kernels' text in which these words first stand, at or after others."""
    return SOURCE.given[: SOURCE.given.index(text, SOURCE.given.index(after))].count("\n") + 1


# ---- Numbers -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed, stream, counter", [(0, 0, 0), (2**63 - 1, 5, 2**32 - 3), (123456789012, 2**40, 7)])
def test_philox_gives_the_bits_of_backend(seed, stream, counter):
    y = np.empty(4 * 100, np.uint32)
    RANDOM(4, 32, y, seed, stream, counter, 100)
    np.testing.assert_array_equal(y, backend.philox(seed, stream, counter, 400))


def test_to_bf16_rounds_every_number_as_ml_dtypes_does():
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)         # exact, below, at and above a half
    x = (upper[:, None] | lower).reshape(-1).view(np.float32)
    bits, back = np.empty(x.size, np.uint32), empty(x.size, np.float32, x)
    ROUNDED(-(-x.size // 256), 256, x, bits, back)
    with np.errstate(invalid="ignore"):
        expected = x.astype(ml_dtypes.bfloat16)
    isnan = np.isnan(x)
    np.testing.assert_array_equal(bits[~isnan], expected.view(np.uint16)[~isnan])
    assert np.isnan(back[isnan]).all() and set(bits[isnan]) == {0x7FFF}         # what a GPU's own instruction gives
    np.testing.assert_array_equal(back[~isnan], expected[~isnan].astype(np.float32))


@pytest.mark.parametrize("order", emulation.ORDERS)
def test_mma_multiplies_matrices_whose_fragments_lie_as_documented(order):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((16, 16), (16, 8)))     # sums are exact
    d = empty((16, 8), np.float32, a)
    with emulation.thread_order(order):
        PRODUCT(1, 32, a.astype(ml_dtypes.bfloat16), b.astype(ml_dtypes.bfloat16), d)
    start = np.tile([[1, 2]], (16, 4)) + 2 * (np.arange(16) >= 8)[:, None]      # what the sums began with
    np.testing.assert_array_equal(d, a @ b + start)


@pytest.mark.parametrize("order", emulation.ORDERS)
@pytest.mark.parametrize("threads", [32, 64, 96, 256, 992, 1024])
def test_sums_and_maxima_reach_every_thread_of_a_block_of_any_size(threads, order):
    x = np.random.default_rng(threads).integers(-1000, 1000, threads).astype(np.float32) - 2000   # negative, and sums are exact
    sums, most = empty((threads, 2), np.float32, x), empty((threads, 2), np.float32, x)
    with emulation.thread_order(order):
        REDUCED(1, threads, x, sums, most)
    warps = x.reshape(-1, 32)
    np.testing.assert_array_equal(sums[:, 0], np.repeat(warps.sum(1), 32))
    np.testing.assert_array_equal(most[:, 0], np.repeat(warps.max(1), 32))
    assert (sums[:, 1] == x.sum()).all() and (most[:, 1] == x.max()).all()


@pytest.mark.parametrize("order", emulation.ORDERS)
def test_shuffles_take_the_number_of_the_lane_they_name(order):
    x = np.arange(64, dtype=np.float32)
    y = empty((64, 3), np.float32, x)
    with emulation.thread_order(order):
        MOVED(1, 64, x, y)
    lane, warp = np.arange(64) % 32, np.arange(64) // 32 * 32
    np.testing.assert_array_equal(y[:, 0], warp + 5)
    np.testing.assert_array_equal(y[:, 1], warp + (lane ^ 3))
    np.testing.assert_array_equal(y[:, 2], warp + np.where(lane + 2 < 32, lane + 2, lane))


@pytest.mark.parametrize("grid, block", [((2, 3, 4), (4, 3, 2)), ((24,), (24,)), ((1, 24), (1, 1, 24))])
def test_grids_and_blocks_have_three_axes(grid, block):
    y = np.full(24 * 24, -1, np.int32)
    PLACES(grid, block, y)
    np.testing.assert_array_equal(y, np.arange(24 * 24))


def test_an_empty_grid_runs_nothing():
    LAST_WINS((3, 0), 32, y := zeros(1))
    assert y[0] == 0


# ---- What is not set is NaN --------------------------------------------------------------------------------------

@pytest.mark.parametrize("order", emulation.ORDERS)
def test_shared_memory_is_nan_when_each_block_starts(order):
    with emulation.thread_order(order):
        SHARED(3, 32, y := zeros(3, 32, 2), shared=32 * 4)
    assert np.isnan(y).all()


def test_a_new_array_is_nan_in_every_dtype():
    for dtype in (np.float32, ml_dtypes.bfloat16):
        assert np.isnan(empty((2, 3), dtype, zeros(1)).astype(np.float32)).all()
    assert (empty((), np.int32, zeros(1)) == -1).all() and empty((0, 3), np.float32, zeros(1)).shape == (0, 3)


# ---- Orders and races ----------------------------------------------------------------------------------------------

def run_passed_on(order, wait):
    x, y = np.arange(64, dtype=np.float32), zeros(64)
    with emulation.thread_order(order):
        PASSED_ON(1, 64, x, y, wait)
    return y


def test_a_missing_barrier_shows_in_every_order_and_differently():
    for order in emulation.ORDERS:
        np.testing.assert_array_equal(run_passed_on(order, 1), np.arange(64)[::-1])
    without = [run_passed_on(order, 0) for order in emulation.ORDERS]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not np.array_equal(without[one], without[other], equal_nan=True)


def test_blocks_run_in_the_order_that_is_asked_for():
    last = {}
    for order in emulation.ORDERS:
        with emulation.thread_order(order):
            LAST_WINS(5, 1, y := zeros(1))
        last[order] = y[0]
    assert last["forwards"] == 4 and last["backwards"] == 0
    with pytest.raises(KeyError), emulation.thread_order("sideways"):
        pass


# ---- Errors ------------------------------------------------------------------------------------------------------

def message_of(kernel, threads, *arguments):
    with pytest.raises(emulation.EmulationError) as told:
        kernel(1, threads, *arguments)
    return str(told.value)


def test_barriers_that_part_a_block_are_errors_with_line_and_thread():
    one, other = line_of("__syncthreads", "void divergent"), line_of("        __syncthreads", "void divergent")
    assert message_of(DIVERGENT, 64, zeros(64)) == (
        f"divergent: block (0, 0, 0), thread (32, 0, 0): __syncthreads in tried.cu:{other} while others wait in tried.cu:{one}")


@pytest.mark.parametrize("order, thread, told", [
    ("forwards", "(20, 0, 0)", "ends while others wait in tried.cu:{}"),
    ("backwards", "(19, 0, 0)", "__syncthreads in tried.cu:{}, which others have left"),
])
def test_a_barrier_that_some_threads_have_left_is_an_error(order, thread, told):
    with emulation.thread_order(order):
        message = message_of(LEFT_EARLY, 32, zeros(32), 20)
    line = line_of("__syncthreads", "void left_early")
    assert message == f"left_early: block (0, 0, 0), thread {thread}: {told.format(line)}"


@pytest.mark.parametrize("threads, N", [(40, 40), (32, 20)])
def test_lanes_that_work_together_in_a_warp_that_is_not_whole_are_an_error(threads, N):
    for order in emulation.ORDERS:
        with emulation.thread_order(order):
            message = message_of(LANE_MISSING, threads, zeros(64), N)
        assert "common.cuh:" in message and ("warp that is not whole" in message or "ends while others wait" in message)


def test_a_deadlock_is_an_error_that_names_who_waits_where():
    assert message_of(STUCK, 32, zeros(32)) == (
        f"stuck: block (0, 0, 0): deadlock: thread (0, 0, 0) waits in tried.cu:{line_of('__shfl_sync', 'void stuck')}, "
        f"thread (3, 0, 0) waits in tried.cu:{line_of('__syncthreads', 'void stuck')}")


def test_after_an_error_the_emulation_works_again():
    message_of(STUCK, 32, zeros(32))
    np.testing.assert_array_equal(run_passed_on("forwards", 1), np.arange(64)[::-1])


# ---- The compiler ------------------------------------------------------------------------------------------------

def test_a_text_that_does_not_compile_is_told_with_file_and_line():
    source = Source("broken", '#include "common.cuh"\n\nextern "C" __global__ void broken(float* x) { x[0] = unknown; }\n')
    kernel = source.kernel("broken", "x:f32[N]")
    with pytest.raises(RuntimeError, match=r"(?s)broken\.cu does not compile.*broken\.cu:3:.*unknown"):
        kernel(1, 1, zeros(1))


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    kernel = Source("fresh", '#include "common.cuh"\n').kernel("fresh", "x:f32[N]")
    with pytest.raises(RuntimeError, match=r"needs a C\+\+ compiler, and no-such-compiler was not found\. Install g\+\+"):
        kernel(1, 1, zeros(1))


def test_a_changed_text_is_compiled_anew():
    text = '#include "common.cuh"\nextern "C" __global__ void constant(float* x) { x[0] = 1; }\n'
    source = Source("constant", text)
    kernel = source.kernel("constant", "x:f32[N]")
    kernel(1, 1, x := zeros(1))
    source.given = text.replace("= 1", "= 2")
    kernel(1, 1, y := zeros(1))
    source.forget()
    kernel(1, 1, z := zeros(1))
    assert (x[0], y[0], z[0]) == (1, 1, 2)
