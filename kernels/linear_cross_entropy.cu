// linear_cross_entropy: loss = log(sum(e^z)) - z[target] for each row of logits z (R, P), and d loss / d z in their place.
//
// rows       a block a row, one to 32 warps as P asks for, grid R. Columns of z are padded to P, a multiple of PACK, to be read
//            16 bytes at a time; the first `classes` count. One read finds the largest logit and the sum of e^z together, the
//            sum rescaled where a larger one comes; a second writes softmax(z) - one at the target, 0 in the padding. 3 P
//            numbers a row move, of which the second read finds P in the second-level cache: the rows in work at a time are
//            far smaller. The last rows go first, since the product that made z left them there. An ignored row is not read:
//            its loss is 0, zeros are written. A target that is no class gives NaN. Without `write` z stays as it is.
// total      one block adds up the rows' losses: N numbers.
// scale      y = x grad, for a grad that only the GPU knows; a thread takes one pack, grid ceil(N / (256 PACK)). 2 N numbers.
// Deterministic: no atomics, fixed order. Reference: minitune/ops/linear_cross_entropy.py.

#include "common.cuh"

#define IGNORE (-100)                           // as in ops/cross_entropy.py
#define LOWEST __int_as_float(0xff7fffff)       // the lowest finite number: e^(-inf - LOWEST) is 0, no NaN
#define NOT_A_NUMBER __int_as_float(0x7fc00000)

// The logits of one pack, with the bias; -inf in the padding.
__device__ __forceinline__ void read_logits(float* logits, const real* z, const float* bias, int column, int classes) {
    Pack pack = *(const Pack*)(z + column);
    for (int i = 0; i < PACK; i++) {
        int c = column + i;
        logits[i] = c < classes ? to_float(pack.at[i]) + (bias ? bias[c] : 0.0f) : MINUS_INFINITY;
    }
}

extern "C" __global__ void __launch_bounds__(1024) linear_cross_entropy_rows(
    real* z, const float* bias, const int* targets, float* loss, int R, int P, int classes, int write) {
    __shared__ float scratch[WARP];
    int row = R - 1 - blockIdx.x, target = targets[row], first = threadIdx.x * PACK, step = blockDim.x * PACK;
    z += (long long)row * P;
    if (target == IGNORE) {
        Pack zeros;
        for (int i = 0; i < PACK; i++) zeros.at[i] = to_real(0);
        for (int column = first; write && column < P; column += step) *(Pack*)(z + column) = zeros;
        if (threadIdx.x == 0) loss[row] = 0;
        return;
    }
    bool known = target >= 0 && target < classes;
    float at_target = known && threadIdx.x == 0 ? to_float(z[target]) + (bias ? bias[target] : 0.0f) : NOT_A_NUMBER;
    float logits[PACK], top = LOWEST, sum = 0;
    for (int column = first; column < P; column += step) {
        read_logits(logits, z, bias, column, classes);
        float before = top;
        for (int i = 0; i < PACK; i++) top = fmaxf(top, logits[i]);
        sum *= expf(before - top);
        for (int i = 0; i < PACK; i++) sum += expf(logits[i] - top);
    }
    float largest = block_max(top, scratch);
    sum = block_sum(sum * expf(top - largest), scratch);
    if (threadIdx.x == 0) loss[row] = logf(sum) - (at_target - largest);
    float share = known ? 1 / sum : NOT_A_NUMBER;
    for (int column = first; write && column < P; column += step) {
        read_logits(logits, z, bias, column, classes);
        Pack slope;
        for (int i = 0; i < PACK; i++) {
            float p = expf(logits[i] - largest) * share;
            slope.at[i] = to_real(p - (column + i == target));
        }
        *(Pack*)(z + column) = slope;
    }
}

extern "C" __global__ void __launch_bounds__(1024) linear_cross_entropy_total(const float* losses, float* total, int N) {
    __shared__ float scratch[WARP];
    float sum = 0;
    for (int i = threadIdx.x; i < N; i += blockDim.x) sum += losses[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) *total = sum;
}

extern "C" __global__ void __launch_bounds__(256) linear_cross_entropy_scale(
    const real* x, const float* grad, real* y, long long N) {
    long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    float factor = *grad;
    if (first + PACK <= N) {
        Pack pack = *(const Pack*)(x + first);
        for (int i = 0; i < PACK; i++) pack.at[i] = to_real(to_float(pack.at[i]) * factor);
        *(Pack*)(y + first) = pack;
    } else {
        for (long long i = first; i < N; i++) y[i] = to_real(to_float(x[i]) * factor);
    }
}
