// linear: what stands around its matrix products. y (N, C) += bias + residual, and the gradient of bias.
//
// add        a thread PACK numbers in a row, 32 x 8 threads a block (columns, rows); grid (ceil(N / 8), ceil(C / (32 PACK))).
//            16 bytes at once where the address allows it. Bias and residual are added in float and the sum is rounded; y comes
//            as cuBLAS rounded it, so in bfloat16 a result was rounded twice. Reads y and residual, writes y: 2 or 3 numbers an
//            element.
// columns    sums over rows for the gradient of bias: 32 columns x 8 rows of threads a block, grid (ceil(C / 32), P); block
//            (i, j) sums every P-th group of 8 rows into partial (P, C), which the caller adds up. 1 number an element.
// Deterministic: no atomics, fixed order. Reference: minitune/ops/linear.py.

#include "common.cuh"

#define ROWS 8

extern "C" __global__ void __launch_bounds__(256) linear_add(real* y, const float* bias, const real* residual, int N, int C) {
    int row = blockIdx.x * ROWS + threadIdx.y, first = (blockIdx.y * WARP + threadIdx.x) * PACK;
    if (row >= N || first >= C) return;
    y += (long long)row * C + first;
    if (residual) residual += (long long)row * C + first;
    int count = min(PACK, C - first);
    bool packed = count == PACK && ((unsigned long long)y | (unsigned long long)residual) % sizeof(Pack) == 0;
    Pack sum, other;
    __align__(16) float biases[PACK];
    if (bias && packed && (unsigned long long)bias % sizeof(float4) == 0)
        for (int i = 0; i < PACK / 4; i++) ((float4*)biases)[i] = ((const float4*)(bias + first))[i];
    else
        for (int i = 0; i < PACK; i++) biases[i] = bias && i < count ? bias[first + i] : 0;
    if (packed) {
        sum = *(Pack*)y;
        if (residual) other = *(const Pack*)residual;
    } else {
        for (int i = 0; i < PACK; i++)
            if (i < count) {
                sum.at[i] = y[i];
                if (residual) other.at[i] = residual[i];
            }
    }
    for (int i = 0; i < PACK; i++)
        if (i < count) {
            float x = to_float(sum.at[i]) + biases[i];
            if (residual) x += to_float(other.at[i]);
            sum.at[i] = to_real(x);
        }
    if (packed)
        *(Pack*)y = sum;
    else
        for (int i = 0; i < PACK; i++)
            if (i < count) y[i] = sum.at[i];
}

extern "C" __global__ void __launch_bounds__(256) linear_columns(const real* grad, float* partial, int N, int C, int P) {
    __shared__ float sums[ROWS][WARP];
    int c = blockIdx.x * WARP + threadIdx.x;
    float sum = 0;
    if (c < C)
        for (int row = blockIdx.y * ROWS + threadIdx.y; row < N; row += P * ROWS) sum += to_float(grad[(long long)row * C + c]);
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < C) {
        sum = 0;
        for (int i = 0; i < ROWS; i++) sum += sums[i][threadIdx.x];
        partial[(long long)blockIdx.y * C + c] = sum;
    }
}
