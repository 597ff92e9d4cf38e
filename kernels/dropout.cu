// dropout: y = x kept scale, kept = 1 where u >= p and else 0, scale = 1 / (1 - p), for x and y (N,).
//
// Element i has number i % 4 of philox's block counter + i / 4; its upper 24 bits are u 2^24, compared with threshold =
// ceil(p 2^24) as integers: u >= p exactly. The backward calls it with the gradient, so that no mask is kept.
// One thread a pack of 16 bytes (one or two blocks of philox), 256 threads a block, grid ceil(N / (256 PACK)); 2 numbers move
// an element. Deterministic. Reference: minitune/ops/dropout.py, backend.philox.

#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) dropout_scale(
    const real* x, real* y, long long N, unsigned long long seed, unsigned long long stream, unsigned long long counter,
    unsigned threshold, float scale) {
    long long i = first_of_thread();
    Pack p = load_pack(x, i, N);
    for (int k = 0; k < PACK; k += 4) {
        Four numbers = philox(seed, stream, counter + (i + k) / 4);
        for (int j = 0; j < 4; j++) {
            float kept = numbers.at[j] >> 8 >= threshold ? 1 : 0;
            p.at[k + j] = to_real(to_float(p.at[k + j]) * kept * scale);    // a product: NaN stays NaN as in the reference
        }
    }
    store_pack(y, i, N, p);
}
