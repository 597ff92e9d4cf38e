// conv2d: what stands around its matrix product weight (F, C h w) @ columns (C h w, n OH OW), for n images at once.
//
// Letters: n images of C channels and H x W pixels, F filters of h x w, OH x OW windows, P = OH OW.
// gather     columns[c, u, v, b, i, j] = x[b, c, i stride + u - padding, j stride + v - padding], 0 outside the image. A thread
//            a window, for the channels its block walks over; grid (ceil(n P / 256), min(C, 65535)). Neighbours write
//            neighbours, and read them where stride is 1. 1 number an element of columns and 1 a pixel.
// scatter    the way back without atomics: each pixel adds up, in the order of u and v, the elements it was copied to. A thread
//            a pixel of all images, for the channels its block walks over; grid (ceil(n H W / 256), min(C, 65535)). Added up in
//            float, rounded once. 1 number an element of columns and 1 a pixel.
// turn       (R, S, P) -> (S, R, P), with bias[r] added: the product (F, n, P) becomes images (n, F, P), gradients go back. Grid
//            (ceil(S P / 256), min(R, 65535)). 2 numbers an element.
// filters    sums over M = n P for the gradient of bias: block (j, f) sums every Q-th group of 256 of row f into partial (F, Q),
//            which the caller adds up; grid (Q, F). 1 number an element.
// All have 256 threads a block. Deterministic: no atomics, fixed order. Reference: minitune/ops/conv2d.py.

#include "common.cuh"

#define THREADS 256

extern "C" __global__ void __launch_bounds__(THREADS) conv2d_gather(
    const real* x, real* columns, int n, int C, int H, int W, int h, int w, int OH, int OW, int stride, int padding) {
    int window = blockIdx.x * THREADS + threadIdx.x, windows = n * OH * OW;
    if (window >= windows) return;
    int top = window / OW % OH * stride - padding, left = window % OW * stride - padding;
    x += (long long)(window / (OH * OW)) * C * H * W;
    for (int c = blockIdx.y; c < C; c += gridDim.y) {
        const real* channel = x + (long long)c * H * W;
        real* column = columns + (long long)c * h * w * windows + window;
        for (int row = top; row < top + h; row++)
            for (int at = left; at < left + w; at++, column += windows)
                *column = row >= 0 && row < H && at >= 0 && at < W ? channel[(long long)row * W + at] : to_real(0.0f);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) conv2d_scatter(
    const real* columns, real* x, int n, int C, int H, int W, int h, int w, int OH, int OW, int stride, int padding) {
    int pixel = blockIdx.x * THREADS + threadIdx.x;
    if (pixel >= n * H * W) return;
    int image = pixel / (H * W), row = pixel / W % H + padding, column = pixel % W + padding;
    for (int c = blockIdx.y; c < C; c += gridDim.y) {
        float sum = 0;
        for (int u = row % stride; u < h && u <= row; u += stride)
            for (int v = column % stride; v < w && v <= column; v += stride) {
                int i = (row - u) / stride, j = (column - v) / stride;
                if (i < OH && j < OW) sum += to_float(columns[((((long long)c * h + u) * w + v) * n + image) * OH * OW + i * OW + j]);
            }
        x[((long long)image * C + c) * H * W + pixel % (H * W)] = to_real(sum);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) conv2d_turn(
    const real* x, const float* bias, real* turned, int R, int S, int P) {
    int place = blockIdx.x * THREADS + threadIdx.x;
    if (place >= S * P) return;
    for (int r = blockIdx.y; r < R; r += gridDim.y) {
        float value = to_float(x[(long long)r * S * P + place]);
        turned[((long long)(place / P) * R + r) * P + place % P] = to_real(bias ? value + bias[r] : value);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) conv2d_filters(const real* rows, float* partial, int F, int M, int Q) {
    __shared__ float scratch[WARP];
    float sum = 0;
    rows += (long long)blockIdx.y * M;
    for (int m = blockIdx.x * THREADS + threadIdx.x; m < M; m += Q * THREADS) sum += to_float(rows[m]);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) partial[blockIdx.y * Q + blockIdx.x] = sum;
}
