// layer_norm: y = (x - mean) rstd weight + bias for each row of x (N, C), rstd = 1 / sqrt(variance + eps).
//
// forward    one warp a row, eight rows a block; grid ceil(N / 8). Reads x three times (twice from cache), writes y: 2 C numbers
//            a row move, and the mean is subtracted before squares are added, as in the reference.
// grad_x     the same geometry: (g - mean(g) - normalized mean(g normalized)) rstd with g = grad weight. 3 C numbers a row.
// columns    sums over rows for the gradients of weight and bias: 32 columns x 8 rows of threads a block, grid (ceil(C / 32), P);
//            block (i, j) sums every P-th group of 8 rows into partial (2, P, C), which the caller adds up. 2 C numbers a row.
// Deterministic: no atomics, fixed order. Reference: minitune/ops/layer_norm.py.

#include "common.cuh"

#define ROWS 8

extern "C" __global__ void __launch_bounds__(256) layer_norm_forward(
    const real* x, const float* weight, const float* bias, real* y, float* mean, float* rstd, int N, int C, float eps) {
    int row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= N) return;
    x += (long long)row * C;
    y += (long long)row * C;
    float sum = 0, squares = 0;
    for (int c = lane; c < C; c += WARP) sum += to_float(x[c]);
    float centre = warp_sum(sum) / C;
    for (int c = lane; c < C; c += WARP) {
        float d = to_float(x[c]) - centre;
        squares += d * d;
    }
    float scale = 1 / sqrtf(warp_sum(squares) / C + eps);
    for (int c = lane; c < C; c += WARP) y[c] = to_real((to_float(x[c]) - centre) * scale * weight[c] + bias[c]);
    if (lane == 0) {
        mean[row] = centre;
        rstd[row] = scale;
    }
}

extern "C" __global__ void __launch_bounds__(256) layer_norm_grad_x(
    const real* grad, const real* x, const float* weight, const float* mean, const float* rstd, real* grad_x, int N, int C) {
    int row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= N) return;
    grad += (long long)row * C;
    x += (long long)row * C;
    grad_x += (long long)row * C;
    float centre = mean[row], scale = rstd[row], along_one = 0, along_x = 0;
    for (int c = lane; c < C; c += WARP) {
        float g = to_float(grad[c]) * weight[c];
        along_one += g;
        along_x += g * (to_float(x[c]) - centre) * scale;
    }
    along_one = warp_sum(along_one) / C;
    along_x = warp_sum(along_x) / C;
    for (int c = lane; c < C; c += WARP) {
        float normalized = (to_float(x[c]) - centre) * scale;
        grad_x[c] = to_real((to_float(grad[c]) * weight[c] - along_one - normalized * along_x) * scale);
    }
}

extern "C" __global__ void __launch_bounds__(256) layer_norm_columns(
    const real* grad, const real* x, const float* mean, const float* rstd, float* partial, int N, int C, int P) {
    __shared__ float sums[2][ROWS][WARP];
    int c = blockIdx.x * WARP + threadIdx.x;
    float along_x = 0, along_one = 0;
    if (c < C)
        for (int row = blockIdx.y * ROWS + threadIdx.y; row < N; row += P * ROWS) {
            float g = to_float(grad[(long long)row * C + c]);
            along_x += g * (to_float(x[(long long)row * C + c]) - mean[row]) * rstd[row];
            along_one += g;
        }
    sums[0][threadIdx.y][threadIdx.x] = along_x;
    sums[1][threadIdx.y][threadIdx.x] = along_one;
    __syncthreads();
    if (threadIdx.y < 2 && c < C) {
        float sum = 0;
        for (int i = 0; i < ROWS; i++) sum += sums[threadIdx.y][i][threadIdx.x];
        partial[((long long)threadIdx.y * P + blockIdx.y) * C + c] = sum;
    }
}
