// softmax: y = e^x / sum(e^x) for each row of x (N, C).
//
// forward    a block a row, one to eight warps as C asks for, grid N. Reads x three times (twice from cache): the largest, the
//            sum, the result. 2 C numbers a row move. e^x is computed twice, so that a result is rounded once.
// backward   the same geometry: y (grad - sum(grad y)). Reads grad and y twice (once from cache), writes grad_x: 3 C numbers.
// NaN makes its row NaN by the sum, for fmaxf leaves it out.
// Deterministic: no atomics, fixed order. Reference: minitune/ops/softmax.py.

#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) softmax_forward(const real* x, real* y, int N, int C) {
    __shared__ float scratch[WARP];
    x += (long long)blockIdx.x * C;
    y += (long long)blockIdx.x * C;
    float top = MINUS_INFINITY, sum = 0;
    for (int c = threadIdx.x; c < C; c += blockDim.x) top = fmaxf(top, to_float(x[c]));
    top = block_max(top, scratch);
    for (int c = threadIdx.x; c < C; c += blockDim.x) sum += expf(to_float(x[c]) - top);
    float share = 1 / block_sum(sum, scratch);
    for (int c = threadIdx.x; c < C; c += blockDim.x) y[c] = to_real(expf(to_float(x[c]) - top) * share);
}

extern "C" __global__ void __launch_bounds__(256) softmax_backward(
    const real* grad, const real* y, real* grad_x, int N, int C) {
    __shared__ float scratch[WARP];
    grad += (long long)blockIdx.x * C;
    y += (long long)blockIdx.x * C;
    grad_x += (long long)blockIdx.x * C;
    float mean = 0;
    for (int c = threadIdx.x; c < C; c += blockDim.x) mean += to_float(grad[c]) * to_float(y[c]);
    mean = block_sum(mean, scratch);
    for (int c = threadIdx.x; c < C; c += blockDim.x) grad_x[c] = to_real(to_float(y[c]) * (to_float(grad[c]) - mean));
}
