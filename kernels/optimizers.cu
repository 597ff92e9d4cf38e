// AdamW and the norm of all gradients, for any number of parameters in one launch each.
//
//   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,  p = decay p - step m / (sqrt(v) + eps),  g = factor grad
//
// A row of `table` says where a parameter lies and how it moves; `chunks` (K, 2) names the row and the place in it of each
// piece of CHUNK numbers. A block works on one piece, so a large parameter is shared out and many small ones go together.
//
// sum_of_squares   grid K, 256 threads: partial[k] = the sum of grad^2 over piece k. Reads 1 number a parameter.
// finish_norm      one block: adds the K sums as double; result = {norm, factor, finite}: factor = max_norm / norm where the norm
//                  is larger, else 1; finite = 1 where norm and loss are finite, else 0.
// adamw            grid K, 256 threads: reads 4 and writes 3 numbers a parameter, in place. Given `norm`, the result of
//                  finish_norm, it scales gradients on the way, and leaves everything as it is where that says "not finite": the
//                  CPU, which reads the norm some steps later, then finds the weights as they were.
// Deterministic: no atomics, fixed order. Reference: minitune/optim/optimizers.py.

#include "common.cuh"

#define CHUNK 16384     // numbers of a piece, as in the twin: 64 a thread, and small models still fill a GPU
#define THREADS 256

struct Row {
    float *p, *grad, *m, *v;
    long long size;
    float decay, eps, step, unused;
};

__device__ __forceinline__ bool aligned(const void* place) { return ((unsigned long long)place & 15) == 0; }

__device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

extern "C" __global__ void __launch_bounds__(THREADS) sum_of_squares(const long long* table, const int* chunks, float* partial) {
    __shared__ float scratch[WARP];
    const Row row = ((const Row*)table)[chunks[2 * blockIdx.x]];
    long long start = (long long)chunks[2 * blockIdx.x + 1] * CHUNK;
    const float* grad = row.grad + start;
    int count = (int)min(row.size - start, (long long)CHUNK), packed = aligned(grad) ? count / 4 : 0;
    float sum = 0;
    for (int i = threadIdx.x; i < packed; i += THREADS) {
        float4 g = ((const float4*)grad)[i];
        sum += (g.x * g.x + g.y * g.y) + (g.z * g.z + g.w * g.w);
    }
    for (int i = 4 * packed + threadIdx.x; i < count; i += THREADS) sum += grad[i] * grad[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) finish_norm(
    const float* partial, const float* loss, float* result, int K, float max_norm) {
    __shared__ double sums[THREADS];
    double sum = 0;
    for (int k = threadIdx.x; k < K; k += THREADS) sum += partial[k];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int half = THREADS / 2; half; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        double norm = sqrt(sums[0]);
        result[0] = (float)norm;
        result[1] = norm > max_norm ? (float)(max_norm / norm) : 1.0f;
        result[2] = is_finite((float)norm) && is_finite(loss[0]);
    }
}

__device__ __forceinline__ void update(float& p, float g, float& m, float& v, const Row& row, float beta1, float rest1,
                                       float beta2, float rest2) {
    m = beta1 * m + rest1 * g;
    v = beta2 * v + rest2 * g * g;
    p = p * row.decay - row.step * m / (sqrtf(v) + row.eps);
}

extern "C" __global__ void __launch_bounds__(THREADS) adamw(
    const long long* table, const int* chunks, const float* norm, float beta1, float rest1, float beta2, float rest2) {
    if (norm && norm[2] == 0) return;
    float factor = norm ? norm[1] : 1.0f;
    const Row row = ((const Row*)table)[chunks[2 * blockIdx.x]];
    long long start = (long long)chunks[2 * blockIdx.x + 1] * CHUNK;
    float *p = row.p + start, *m = row.m + start, *v = row.v + start;
    const float* grad = row.grad + start;
    int count = (int)min(row.size - start, (long long)CHUNK);
    int packed = aligned(p) && aligned(grad) && aligned(m) && aligned(v) ? count / 4 : 0;
    for (int i = threadIdx.x; i < packed; i += THREADS) {
        float4 p4 = ((float4*)p)[i], g4 = ((const float4*)grad)[i], m4 = ((float4*)m)[i], v4 = ((float4*)v)[i];
        update(p4.x, factor * g4.x, m4.x, v4.x, row, beta1, rest1, beta2, rest2);
        update(p4.y, factor * g4.y, m4.y, v4.y, row, beta1, rest1, beta2, rest2);
        update(p4.z, factor * g4.z, m4.z, v4.z, row, beta1, rest1, beta2, rest2);
        update(p4.w, factor * g4.w, m4.w, v4.w, row, beta1, rest1, beta2, rest2);
        ((float4*)p)[i] = p4;
        ((float4*)m)[i] = m4;
        ((float4*)v)[i] = v4;
    }
    for (int i = 4 * packed + threadIdx.x; i < count; i += THREADS)
        update(p[i], factor * grad[i], m[i], v[i], row, beta1, rest1, beta2, rest2);
}
