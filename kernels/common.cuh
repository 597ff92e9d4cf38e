// What the kernels share. One text for three compilers: nvcc and NVRTC for a GPU, g++ with emulate/cuda_cpu.h without one.
//
// Every kernel file is compiled for each dtype of the activations: with -DBF16 `real` is bfloat16, else float32. Numbers are
// stored as `real` and computed as float: to_float widens exactly, to_real rounds to the nearest, halves to even.
// Letters: B rows of T tokens, N = B T, C channels, H heads, D = C / H, V vocabulary, R rank.

#pragma once

#ifdef __CUDACC__
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) unsigned char dynamic_shared[]; type* name = (type*)dynamic_shared
#else
#include "emulate/cuda_cpu.h"
#endif

#define WARP 32
#define EVERY_LANE 0xffffffffu
#define MINUS_INFINITY __int_as_float(0xff800000)

// ---- Numbers ---------------------------------------------------------------------------------------------------------

struct bf16 { unsigned short bits; };           // the upper half of a float32

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }

__device__ __forceinline__ bf16 to_bf16(float x) {
    bf16 y;
#ifdef __CUDACC__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    y.bits = emulated::bf16_bits(x);
#endif
    return y;
}

// Two numbers in one register, as mma takes them: the first in the lower half.
__device__ __forceinline__ unsigned pack(bf16 first, bf16 second) { return first.bits | (unsigned)second.bits << 16; }

#ifdef BF16
typedef bf16 real;
__device__ __forceinline__ real to_real(float x) { return to_bf16(x); }
#else
typedef float real;
__device__ __forceinline__ real to_real(float x) { return x; }
#endif

// 16 bytes that travel in one instruction: 4 float32 or 8 bfloat16. Its address must be a multiple of 16.
#define PACK (16 / (int)sizeof(real))
struct __align__(16) Pack { real at[PACK]; };

// PACK numbers from x[i] on, 0 where i reaches N: one instruction where the address allows it.
__device__ __forceinline__ Pack load_pack(const real* x, long long i, long long N) {
    if (i + PACK <= N && (unsigned long long)(x + i) % 16 == 0) return *(const Pack*)(x + i);
    Pack p;
    for (int k = 0; k < PACK; k++) p.at[k] = i + k < N ? x[i + k] : to_real(0);
    return p;
}

__device__ __forceinline__ void store_pack(real* y, long long i, long long N, const Pack& p) {
    if (i + PACK <= N && (unsigned long long)(y + i) % 16 == 0) *(Pack*)(y + i) = p;
    else
        for (int k = 0; k < PACK; k++)
            if (i + k < N) y[i + k] = p.at[k];
}

__device__ __forceinline__ long long first_of_thread() { return ((long long)blockIdx.x * blockDim.x + threadIdx.x) * PACK; }

// ---- Sums and maxima over threads ------------------------------------------------------------------------------------
// Always in the same order, so two runs give the same bits. Every thread gets the result.

__device__ __forceinline__ float warp_sum(float x) {
    for (int lane = WARP / 2; lane; lane /= 2) x += __shfl_xor_sync(EVERY_LANE, x, lane);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int lane = WARP / 2; lane; lane /= 2) x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, lane));
    return x;
}

// Over a block of whole warps; `scratch` is shared memory for 32 floats. May be called again at once with the same scratch.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    __syncthreads();                            // an earlier call may still read
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_sum(threadIdx.x % WARP < blockDim.x / WARP ? scratch[threadIdx.x % WARP] : 0.0f);
}

__device__ __forceinline__ float block_max(float x, float* scratch) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_max(threadIdx.x % WARP < blockDim.x / WARP ? scratch[threadIdx.x % WARP] : MINUS_INFINITY);
}

// ---- Tensor cores ----------------------------------------------------------------------------------------------------
// d (16 x 8, float) += a (16 x 16) b (16 x 8), bfloat16, by one warp. With g = lane / 4 and c = 2 (lane % 4) a lane holds
//   a[0..3]: rows g, g + 8, g, g + 8; columns c, c + 1 of the first half, then c + 8, c + 9       (PTX ISA, mma.m16n8k16)
//   b[0..1]: column g; rows c, c + 1, then c + 8, c + 9
//   d[0..3]: row g, columns c, c + 1; then row g + 8, columns c, c + 1

__device__ __forceinline__ void mma(float* d, const unsigned* a, const unsigned* b) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emulated::mma(d, a, b, HERE);
#endif
}

// ---- Random numbers --------------------------------------------------------------------------------------------------
// Philox4x32-10, the same bits as backend.philox: block `counter` of four numbers of a stream.
// Source: Salmon, Moraes, Dror and Shaw 2011, Parallel random numbers: as easy as 1, 2, 3, section 3.3.

struct Four { unsigned at[4]; };

__device__ __forceinline__ Four philox(unsigned long long seed, unsigned long long stream, unsigned long long counter) {
    unsigned x0 = (unsigned)counter, x1 = (unsigned)(counter >> 32), x2 = (unsigned)stream, x3 = (unsigned)(stream >> 32);
    unsigned key0 = (unsigned)seed, key1 = (unsigned)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        unsigned long long product0 = 0xD2511F53ull * x0, product1 = 0xCD9E8D57ull * x2;
        x0 = (unsigned)(product1 >> 32) ^ x1 ^ key0;
        x1 = (unsigned)product1;
        x2 = (unsigned)(product0 >> 32) ^ x3 ^ key1;
        x3 = (unsigned)product0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    Four numbers = {{x0, x1, x2, x3}};
    return numbers;
}
