// rms_norm: y = x rstd weight for each row of x (N, C), rstd = 1 / sqrt(mean of x^2 + eps).
//
// forward    one warp a row, eight rows a block; grid ceil(N / 8). Reads x twice (the second time from cache), writes y: 2 C
//            numbers a row move.
// grad_x     the same geometry: (g - normalized mean(g normalized)) rstd with g = grad weight. 3 C numbers a row.
// columns    sums over rows for the gradient of weight: 32 columns x 8 rows of threads a block, grid (ceil(C / 32), P); block
//            (i, j) sums every P-th group of 8 rows into partial (P, C), which the caller adds up. 2 C numbers a row.
// Deterministic: no atomics, fixed order. Reference: minitune/ops/rms_norm.py.

#include "common.cuh"

#define ROWS 8

extern "C" __global__ void __launch_bounds__(256) rms_norm_forward(
    const real* x, const float* weight, real* y, float* rstd, int N, int C, float eps) {
    int row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= N) return;
    x += (long long)row * C;
    y += (long long)row * C;
    float squares = 0;
    for (int c = lane; c < C; c += WARP) squares += to_float(x[c]) * to_float(x[c]);
    float scale = 1 / sqrtf(warp_sum(squares) / C + eps);
    for (int c = lane; c < C; c += WARP) y[c] = to_real(to_float(x[c]) * scale * weight[c]);
    if (lane == 0) rstd[row] = scale;
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_grad_x(
    const real* grad, const real* x, const float* weight, const float* rstd, real* grad_x, int N, int C) {
    int row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= N) return;
    grad += (long long)row * C;
    x += (long long)row * C;
    grad_x += (long long)row * C;
    float scale = rstd[row], along_x = 0;
    for (int c = lane; c < C; c += WARP) along_x += to_float(grad[c]) * weight[c] * (to_float(x[c]) * scale);
    along_x = warp_sum(along_x) / C;
    for (int c = lane; c < C; c += WARP)
        grad_x[c] = to_real((to_float(grad[c]) * weight[c] - to_float(x[c]) * scale * along_x) * scale);
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_columns(
    const real* grad, const real* x, const float* rstd, float* partial, int N, int C, int P) {
    __shared__ float sums[ROWS][WARP];
    int c = blockIdx.x * WARP + threadIdx.x;
    float along_x = 0;
    if (c < C)
        for (int row = blockIdx.y * ROWS + threadIdx.y; row < N; row += P * ROWS)
            along_x += to_float(grad[(long long)row * C + c]) * (to_float(x[(long long)row * C + c]) * rstd[row]);
    sums[threadIdx.y][threadIdx.x] = along_x;
    __syncthreads();
    if (threadIdx.y == 0 && c < C) {
        float sum = 0;
        for (int i = 0; i < ROWS; i++) sum += sums[i][threadIdx.x];
        partial[(long long)blockIdx.y * C + c] = sum;
    }
}
