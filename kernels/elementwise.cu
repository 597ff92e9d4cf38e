// gelu by tanh: y = x / 2 (1 + tanh u), u = sqrt(2 / pi) (x + 0.044715 x^3); gelu as defined: y = x P(X <= x) of a standard
// normal X; and a + b. x and y (N,).
//
// Every kernel: one thread a pack of 16 bytes, 256 threads a block, grid ceil(N / (256 PACK)). forward moves 2 numbers an
// element; backward, which computes the exponential or erfc again, and add 3.
// Deterministic. Reference: minitune/ops/elementwise.py.

#include "common.cuh"

// ---- gelu by tanh ----------------------------------------------------------------------------------------------------
// (1 + tanh u) / 2 = 1 / (1 + e^(-2u)), where no digits are lost on either side when e^(-2 |u|) is what is computed.

#define GELU_SCALE 0.79788456080286536f         // sqrt(2 / pi)
#define GELU_CUBIC 0.044715f

__device__ __forceinline__ float gelu(float x) {
    float u = GELU_SCALE * x * (1 + GELU_CUBIC * x * x), e = expf(-2 * fabsf(u));
    return x * ((u < 0 ? e : 1) / (1 + e));
}

__device__ __forceinline__ float gelu_slope(float x) {
    float u = GELU_SCALE * x * (1 + GELU_CUBIC * x * x), e = expf(-2 * fabsf(u)), share = 1 / (1 + e);
    float inner = GELU_SCALE * (1 + 3 * GELU_CUBIC * x * x);                // d u / d x
    return (u < 0 ? e : 1) * share + 2 * x * (e * share * share) * inner;
}

extern "C" __global__ void __launch_bounds__(256) gelu_forward(const real* x, real* y, long long N) {
    long long i = first_of_thread();
    Pack p = load_pack(x, i, N);
    for (int k = 0; k < PACK; k++) p.at[k] = to_real(gelu(to_float(p.at[k])));
    store_pack(y, i, N, p);
}

extern "C" __global__ void __launch_bounds__(256) gelu_backward(const real* grad, const real* x, real* grad_x, long long N) {
    long long i = first_of_thread();
    Pack g = load_pack(grad, i, N), p = load_pack(x, i, N);
    for (int k = 0; k < PACK; k++) p.at[k] = to_real(to_float(g.at[k]) * gelu_slope(to_float(p.at[k])));
    store_pack(grad_x, i, N, p);
}

// ---- gelu as it is defined -------------------------------------------------------------------------------------------

#define HALF_ROOT 0.70710678118654752f          // sqrt(1 / 2)
#define DENSITY 0.39894228040143268f            // 1 / sqrt(2 pi)

extern "C" __global__ void __launch_bounds__(256) gelu_erf_forward(const real* x, real* y, long long N) {
    long long i = first_of_thread();
    Pack p = load_pack(x, i, N);
    for (int k = 0; k < PACK; k++) {
        float v = to_float(p.at[k]);
        p.at[k] = to_real(0.5f * v * erfcf(-HALF_ROOT * v));
    }
    store_pack(y, i, N, p);
}

extern "C" __global__ void __launch_bounds__(256) gelu_erf_backward(
    const real* grad, const real* x, real* grad_x, long long N) {
    long long i = first_of_thread();
    Pack g = load_pack(grad, i, N), p = load_pack(x, i, N);
    for (int k = 0; k < PACK; k++) {
        float v = to_float(p.at[k]);
        p.at[k] = to_real(to_float(g.at[k]) * (0.5f * erfcf(-HALF_ROOT * v) + v * (DENSITY * expf(-0.5f * v * v))));
    }
    store_pack(grad_x, i, N, p);
}

// ---- Sums ------------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256) add_forward(const real* a, const real* b, real* y, long long N) {
    long long i = first_of_thread();
    Pack p = load_pack(a, i, N), q = load_pack(b, i, N);
    for (int k = 0; k < PACK; k++) p.at[k] = to_real(to_float(p.at[k]) + to_float(q.at[k]));
    store_pack(y, i, N, p);
}
