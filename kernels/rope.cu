// rope: channels j and j + D / 2 of every head turn by the angle position frequency[j]: y1 = x1 cos - x2 sin, y2 = x2 cos +
// x1 sin, for x and y (N, H, D), positions (N,), turns (P,) with P = D / 2.
//
// One thread PACK pairs of one token in up to 8 heads, whose cosines and sines it makes once; 256 threads a block, grid
// (ceil(N ceil(P / PACK) / 256), ceil(H / 8)). 2 numbers move an element. direction -1 turns back, which is the backward.
// Angles are 64-bit fractions of a turn: turns[j] = frequency[j] / (2 pi) 2^64, whose product with a position wraps around as
// an angle does. Nothing is lost at large positions, and no remainder is taken of a large float.
// Deterministic. Reference: minitune/ops/rope.py.

#include "common.cuh"

#define HEADS 8
#define RADIANS 3.4061215800304755e-19f         // 2 pi / 2^64

// Cosine and sine. Quarters of a turn are taken off exactly; of the rest, at most pi / 4, Taylor's series is good to 2e-9.
__device__ __forceinline__ void turn_of(unsigned long long angle, float* cosine, float* sine) {
    unsigned quarters = (unsigned)((angle + (1ull << 61)) >> 62);
    float r = (float)(long long)(angle - ((unsigned long long)quarters << 62)) * RADIANS, q = r * r;
    float c = 1 - q / 2 * (1 - q * (1 / 12.0f) * (1 - q * (1 / 30.0f) * (1 - q * (1 / 56.0f) * (1 - q * (1 / 90.0f)))));
    float s = r * (1 - q * (1 / 6.0f) * (1 - q * (1 / 20.0f) * (1 - q * (1 / 42.0f) * (1 - q * (1 / 72.0f)))));
    float along = quarters & 1 ? s : c, across = quarters & 1 ? c : s;
    *cosine = (quarters + 1) & 2 ? -along : along;
    *sine = quarters & 2 ? -across : across;
}

extern "C" __global__ void __launch_bounds__(256) rope_turn(
    const real* x, const int* positions, const long long* turns, real* y, int N, int H, int D, int P, float direction) {
    int packs = (P + PACK - 1) / PACK;
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x, token = i / packs;
    if (token >= N) return;
    int first = (int)(i % packs) * PACK;
    unsigned long long position = (unsigned long long)(long long)positions[token];
    float cosine[PACK], sine[PACK];
    for (int k = 0; k < PACK; k++) {
        unsigned long long turn = first + k < P ? turns[first + k] : 0;
        turn_of(position * turn, &cosine[k], &sine[k]);
        sine[k] *= direction;
    }
    for (int h = blockIdx.y * HEADS; h < min(H, (int)(blockIdx.y + 1) * HEADS); h++) {
        const real* from = x + (token * H + h) * D;
        real* to = y + (token * H + h) * D;
        Pack x1 = load_pack(from, first, P), x2 = load_pack(from + P, first, P), y1, y2;
        for (int k = 0; k < PACK; k++) {
            float a = to_float(x1.at[k]), b = to_float(x2.at[k]);
            y1.at[k] = to_real(a * cosine[k] - b * sine[k]);
            y2.at[k] = to_real(b * cosine[k] + a * sine[k]);
        }
        store_pack(to, first, P, y1);
        store_pack(to + P, first, P, y2);
    }
}
