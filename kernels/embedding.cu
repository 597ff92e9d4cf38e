// embedding: y = weight[ids], a row of the table (V, C) for every one of N ids.
//
// forward    a warp a row, eight rows a block, grid ceil(N / 8); 16 bytes at a time where rows allow it. An id without a row in
//            the table gives NaN. 2 C numbers a row.
// The gradient: rows of grad whose ids are equal are added up. The caller sorts keys (id << 32) + row, so that equal ids are
// together, each run in the order of its rows; whatever the ids are, all blocks have the same work.
// pieces     128 channels x 32 keys a block, grid (P, ceil(C / 128)), P = ceil(N / 32). A run inside a piece is written to its
//            row of grad_weight, which was 0. The sum of a run that began in an earlier piece goes to partial (2, P, C) at 0,
//            of one that begins here and goes on in the next at 1. N C numbers read, at most as many written.
// joins      32 channels x 8 threads a block, grid (P, ceil(C / 32)); the block of a run's first piece adds the run's partial
//            sums, each thread every eighth. At most N C / 32 numbers; most blocks have nothing to do. A token that takes all
//            of N = 32,768 places is 1,024 partial sums: 128 steps of a thread.
// Deterministic: no atomics, fixed order. Reference: minitune/ops/embedding.py.

#include "common.cuh"

#define ROWS 8
#define PIECE 32                                // keys of a block
#define NOT_A_NUMBER __int_as_float(0x7fc00000)

__device__ __forceinline__ int id_of(long long key) { return (int)(key >> 32); }
__device__ __forceinline__ unsigned row_of(long long key) { return (unsigned)key; }

extern "C" __global__ void __launch_bounds__(256) embedding_forward(
    const real* weight, const int* ids, real* y, int N, int V, int C) {
    int row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= N) return;
    int id = ids[row];
    bool known = id >= 0 && id < V;
    weight += (long long)(known ? id : 0) * C;
    y += (long long)row * C;
    if (known && (C * sizeof(real) | (unsigned long long)weight | (unsigned long long)y) % sizeof(Pack) == 0)
        for (int c = lane * PACK; c < C; c += WARP * PACK) *(Pack*)(y + c) = *(const Pack*)(weight + c);
    else
        for (int c = lane; c < C; c += WARP) y[c] = known ? weight[c] : to_real(NOT_A_NUMBER);
}

extern "C" __global__ void __launch_bounds__(128) embedding_pieces(
    const real* __restrict__ grad, const long long* __restrict__ keys, real* grad_weight, float* partial, int N, int V, int C,
    int P) {
    int c = blockIdx.y * blockDim.x + threadIdx.x, piece = blockIdx.x, start = piece * PIECE, stop = min(start + PIECE, N);
    if (c >= C) return;
    bool began = start > 0 && id_of(keys[start - 1]) == id_of(keys[start]);
    float sum = 0;
    for (int i = start; i < stop; i++) {
        long long key = keys[i];
        int id = id_of(key);
        bool goes_on = i + 1 < N && id_of(keys[i + 1]) == id;
        sum += to_float(grad[(long long)row_of(key) * C + c]);
        if (goes_on && i + 1 < stop) continue;
        if (began || goes_on) partial[((long long)(began ? 0 : P) + piece) * C + c] = sum;
        else if (id >= 0 && id < V) grad_weight[(long long)id * C + c] = to_real(sum);
        began = false;
        sum = 0;
    }
}

extern "C" __global__ void __launch_bounds__(256) embedding_joins(
    const float* partial, const long long* keys, real* grad_weight, int N, int V, int C, int P) {
    __shared__ float sums[ROWS][WARP];
    int c = blockIdx.y * WARP + threadIdx.x, piece = blockIdx.x, next = (piece + 1) * PIECE;
    if (next >= N) return;
    int id = id_of(keys[next]);
    bool began = piece > 0 && id_of(keys[next - PIECE - 1]) == id;
    if (began || id_of(keys[next - 1]) != id || id < 0 || id >= V) return;         // no run begins here and goes on
    float sum = 0;
    if (c < C)
        for (int i = piece + 1 + threadIdx.y; i < P && id_of(keys[(long long)i * PIECE]) == id; i += ROWS)
            sum += partial[(long long)i * C + c];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < C) {
        float total = partial[((long long)P + piece) * C + c];
        for (int i = 0; i < ROWS; i++) total += sums[i][threadIdx.x];
        grad_weight[(long long)id * C + c] = to_real(total);
    }
}
