// cuda_cpu.h: runs CUDA C++ on one CPU thread, so that kernels are tested, and taken apart, where there is no GPU.
//
// A block's threads are fibers: each has a stack and runs until it waits at a barrier or for its warp; blocks run one after
// another. The order of threads and blocks is chosen by the caller (forwards, backwards, shuffled, or warp by warp): results
// that depend on it are races. Shared memory starts as NaN in every block. Barriers that some threads of a block pass and others
// do not, and shuffles of a warp that a lane has left, are errors. What it cannot show: speed, bank conflicts, and the order in which one
// thread's writes reach another without a barrier.
//
// Fibers start with makecontext and switch with _setjmp and _longjmp, 20 times faster than swapcontext, which asks the kernel.
// Build with -U_FORTIFY_SOURCE (whose longjmp refuses to change stacks) and -fno-strict-aliasing.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

// ---- The language ----------------------------------------------------------------------------------------------------

#define __global__
#define __device__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static __attribute__((section("emulated_shared")))
#define DYNAMIC_SHARED(type, name) type* name = (type*)emulated::state.dynamic.get()

extern "C" __attribute__((weak, visibility("hidden"))) char __start_emulated_shared[], __stop_emulated_shared[];

struct dim3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

namespace emulated {

enum Order { FORWARDS, BACKWARDS, SHUFFLED, WARPS };
constexpr unsigned STACK = 64 << 10, LANES = 32;

struct Thread {
    jmp_buf here;
    ucontext_t start;
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool started, finished;
    const char* waits;                          // where, for the message of a deadlock
    dim3 index;
    unsigned lane, warp;
};

struct Meeting {                                // a barrier of a block or of a warp
    unsigned members = 0, arrived = 0, round = 0;
    const char* place = "";
    bool left = false;                          // some member has ended
};

struct Warp {
    Meeting meeting;
    uint64_t value[2][LANES];                   // by turns, so that one meeting an exchange is enough
    unsigned fragment[2][LANES][6], turn[LANES];
};

struct State {
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<unsigned> order;
    Meeting block;
    Thread* current;
    jmp_buf scheduler;
    dim3 block_index, block_size, grid_size;
    std::unique_ptr<char[]> dynamic;
    void (*body)(const void*);
    const void* arguments;
    unsigned long steps, random;                // steps: whatever a thread did, to notice that none does anything
    std::string error;
};

inline State state;

[[noreturn]] inline void leave() { _longjmp(state.scheduler, 1); }

inline void yield() {
    if (!_setjmp(state.current->here)) leave();
}

inline std::string named(const char* what, const dim3& at) {
    return std::string(what) + " (" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

inline std::string name_of(const Thread& thread) { return named("thread", thread.index); }
inline std::string block_name() { return named("block", state.block_index); }

[[noreturn]] inline void fail(const std::string& what) {
    if (state.error.empty()) state.error = block_name() + ", " + name_of(*state.current) + ": " + what;
    leave();
}

inline void open_if_complete(Meeting& meeting) {
    if (meeting.arrived && meeting.arrived == meeting.members) {
        meeting.arrived = 0;
        meeting.round++;
    }
}

// Members that ended are no threads to wait for, but no GPU promises that: it is an error.
inline void meet(Meeting& meeting, const char* place, const char* name) {
    state.steps++;
    state.current->waits = place;
    if (meeting.left) fail(std::string(name) + " in " + place + ", which others have left");
    if (meeting.arrived && meeting.place != place && strcmp(meeting.place, place))
        fail(std::string(name) + " in " + place + " while others wait in " + meeting.place);
    meeting.place = place;
    meeting.arrived++;
    unsigned round = meeting.round;
    open_if_complete(meeting);
    while (meeting.round == round) yield();
    state.steps++;
}

inline void part(Meeting& meeting) {
    if (meeting.arrived) fail(std::string("ends while others wait in ") + meeting.place);
    meeting.members--;
    meeting.left = true;
}

inline void run_thread() {
    state.body(state.arguments);
    Thread& thread = *state.current;
    thread.finished = true;
    state.steps++;
    part(state.block);
    part(state.warps[thread.warp].meeting);
    leave();
}

// Not inlined: nothing may stay in registers over a jump.
__attribute__((noinline)) inline void go_on(Thread& thread) {
    state.current = &thread;
    if (_setjmp(state.scheduler)) return;
    if (thread.started) _longjmp(thread.here, 1);
    thread.started = true;
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = thread.stack.get();
    thread.start.uc_stack.ss_size = STACK;
    thread.start.uc_link = nullptr;
    makecontext(&thread.start, run_thread, 0);
    setcontext(&thread.start);
}

inline void put_in_order(std::vector<unsigned>& numbers, Order order) {
    for (unsigned i = 0; i < numbers.size(); i++) numbers[i] = order == BACKWARDS ? numbers.size() - 1 - i : i;
    for (unsigned i = numbers.size(); order == SHUFFLED && i > 1; i--) {
        state.random = state.random * 6364136223846793005ul + 1442695040888963407ul;
        std::swap(numbers[i - 1], numbers[(state.random >> 33) % i]);
    }
}

// The first thread that waits, and the first that waits elsewhere.
inline std::string who_waits() {
    std::string names;
    const char* place = "";
    for (unsigned i = 0, named = 0; i < state.block_size.x * state.block_size.y * state.block_size.z && named < 2; i++) {
        const Thread& thread = state.threads[i];
        if (thread.finished || !strcmp(thread.waits, place)) continue;
        names += (named++ ? ", " : "") + name_of(thread) + " waits in " + (place = thread.waits);
    }
    return names;
}

// Shared memory holds NaN when a block starts. The address sanitizer watches what lies between its arrays; here it is told to
// look away.
#ifdef __SANITIZE_ADDRESS__
__attribute__((no_sanitize("address")))
#endif
inline void spoil(char* place, char* end) {
#ifdef __SANITIZE_ADDRESS__
    for (volatile char* byte = place; byte != end; byte++) *byte = (char)0xff;
#else
    std::fill(place, end, (char)0xff);                          // nothing where a file shares nothing
#endif
}

inline void run_block(size_t dynamic_bytes, Order order) {
    const dim3& size = state.block_size;
    unsigned count = size.x * size.y * size.z;
    spoil(__start_emulated_shared, __stop_emulated_shared);
    spoil(state.dynamic.get(), state.dynamic.get() + dynamic_bytes);
    state.block = Meeting();
    state.block.members = count;
    state.warps.assign((count + LANES - 1) / LANES, Warp());
    for (unsigned i = 0; i < count; i++) {
        Thread& thread = state.threads[i];
        thread.started = thread.finished = false;
        thread.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
        thread.lane = i % LANES, thread.warp = i / LANES;
        state.warps[thread.warp].meeting.members++;
        memset(state.warps[thread.warp].turn, 0, sizeof(Warp::turn));
    }
    while (state.block.members && state.error.empty()) {
        unsigned long before = state.steps;
        put_in_order(state.order, order);
        unsigned together = order == WARPS ? LANES : count;     // WARPS: one goes as far as it can before the next moves
        for (unsigned first = 0, last = 0; first < count; first = last) {
            unsigned long moved;
            last = std::min(first + together, count);
            do {
                moved = state.steps;
                for (unsigned i = first; i < last; i++)
                    if (!state.threads[state.order[i]].finished && state.error.empty()) go_on(state.threads[state.order[i]]);
            } while (order == WARPS && moved != state.steps && state.error.empty());
        }
        if (state.steps == before && state.error.empty()) state.error = block_name() + ": deadlock: " + who_waits();
    }
}

// Runs a whole grid. Returns what went wrong, or null. sizes: grid x, y, z, block x, y, z.
template <class Body>
const char* launch(const unsigned* sizes, size_t dynamic_bytes, int order, const Body& body) {
    state.grid_size = {sizes[0], sizes[1], sizes[2]};
    state.block_size = {sizes[3], sizes[4], sizes[5]};
    unsigned threads = sizes[3] * sizes[4] * sizes[5], blocks = sizes[0] * sizes[1] * sizes[2];
    if (state.threads.size() < threads) state.threads = std::vector<Thread>(threads);
    state.order.resize(threads);
    state.dynamic.reset(new char[dynamic_bytes]);              // its end is watched by the address sanitizer
    state.body = [](const void* arguments) { (*(const Body*)arguments)(); };
    state.arguments = &body;
    state.random = 1;
    state.error.clear();
    std::vector<unsigned> grid(blocks);
    put_in_order(grid, (Order)order);
    for (unsigned i : grid) {
        state.block_index = {i % sizes[0], i / sizes[0] % sizes[1], i / (sizes[0] * sizes[1])};
        if (state.error.empty()) run_block(dynamic_bytes, (Order)order);
    }
    return state.error.empty() ? nullptr : state.error.c_str();
}

// ---- Warps -----------------------------------------------------------------------------------------------------------

// Waits until every lane of the warp has come here; returns which of the two places of an exchange is this turn's.
inline unsigned meet_warp(const char* place) {
    Warp& warp = state.warps[state.current->warp];
    if (warp.meeting.members < LANES) fail(std::string("lanes work together in a warp that is not whole, in ") + place);
    meet(warp.meeting, place, "a warp");
    return warp.turn[state.current->lane]++ % 2;
}

template <class T>
T exchange(T value, unsigned source, const char* place) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    Warp& warp = state.warps[state.current->warp];
    memcpy(&warp.value[warp.turn[state.current->lane] % 2][state.current->lane], &value, sizeof(T));
    unsigned turn = meet_warp(place);
    T result;
    memcpy(&result, &warp.value[turn][source % LANES], sizeof(T));
    return result;
}

inline float half_of(unsigned both, int upper) {
    unsigned bits = upper ? both & 0xffff0000u : both << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// d += a b with the fragments of mma.m16n8k16: a lane holds four numbers of d, and gets those of a and b from the others.
inline void mma(float* d, const unsigned* a, const unsigned* b, const char* place) {
    Warp& warp = state.warps[state.current->warp];
    unsigned lane = state.current->lane, turn = warp.turn[lane] % 2;
    memcpy(warp.fragment[turn][lane], a, 16);
    memcpy(warp.fragment[turn][lane] + 4, b, 8);
    meet_warp(place);
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) {
            unsigned left = warp.fragment[turn][row % 8 * 4 + k % 8 / 2][(row >= 8) + 2 * (k >= 8)];
            unsigned right = warp.fragment[turn][column * 4 + k % 8 / 2][4 + (k >= 8)];
            sum += half_of(left, k % 2) * half_of(right, k % 2);
        }
        d[i] += sum;
    }
}

inline unsigned short bf16_bits(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;            // NaN, as cvt.rn.bf16 gives it
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

}  // namespace emulated

#define TEXT_OF(number) #number
#define LINE_TEXT(number) TEXT_OF(number)
#define HERE (__FILE__ ":" LINE_TEXT(__LINE__))
#define threadIdx (emulated::state.current->index)
#define blockIdx (emulated::state.block_index)
#define blockDim (emulated::state.block_size)
#define gridDim (emulated::state.grid_size)
#define __syncthreads() emulated::meet(emulated::state.block, HERE, "__syncthreads")
#define __syncwarp() emulated::meet_warp(HERE)
#define __shfl_sync(mask, value, source) emulated::exchange(value, source, HERE)
#define __shfl_xor_sync(mask, value, other) emulated::exchange(value, emulated::state.current->lane ^ (other), HERE)
#define __shfl_down_sync(mask, value, by) emulated::exchange(value, \
    emulated::state.current->lane + (by) < 32 ? emulated::state.current->lane + (by) : emulated::state.current->lane, HERE)

// ---- Functions -------------------------------------------------------------------------------------------------------

using std::max;
using std::min;

inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
inline float __int_as_float(int bits) { return __uint_as_float((unsigned)bits); }
inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
template <class T> T __ldg(const T* place) { return *place; }
