// attention: y[t] = sum over s of p[t, s] v[s], p[t] = softmax over first[t] <= s <= last[t] of q[t] . k[s] / sqrt(D).
//
// bfloat16 on tensor cores, added up in float32. q, y (B, T, H, D), k, v (B, S, G, D), first, last (B, T). Query head h sees
// the keys of head h / (H / G). D is 32, 64 or 128, known to the compiler. No (T, S) matrix is held. A block of 4 warps has 64
// queries or keys of one head, 16 a warp:
// forward    for 64 queries walks over the keys they see, 64 at a time, with the softmax online: what was added up so far
//            shrinks when a larger score appears. Also writes log_sum (B, H, T), the logarithm to base 2 of a query's total,
//            from which backward makes p again. Grid B H ceil(T / 64). 2 D numbers a key and block.
// delta      delta (B, H, T) = grad . y for each query, the mean of d loss / d p under p. D / 8 threads a query, 256 a block.
//            2 D numbers a query.
// grad_kv    for 64 keys walks over the queries that see them, of all heads that share them: grad_v = p^T grad,
//            grad_k = slope^T q, slope = p (grad v^T - delta) / sqrt(D). Grid B G ceil(S / 64). 2 D numbers a query and block.
// grad_q     for 64 queries walks over the keys they see: grad_q = slope k. Grid B H ceil(T / 64). 2 D numbers a key and
//            block. It makes the scores once more, so that no two blocks add to one number.
// Deterministic: no atomics, fixed order. Reference: minitune/ops/attention.py.
// Source: Dao 2023, FlashAttention-2: faster attention with better parallelism and work partitioning, section 3.

#include "common.cuh"

#define WARPS 4
#define THREADS (WARPS * WARP)
#define OWN (WARPS * 16)                        // rows of a block: queries, or keys in grad_kv
#define KEYS 64                                 // that forward takes at a time
#define STEP (D > 64 ? 32 : 64)                 // keys or queries that backward takes at a time, whose two products it holds
#define CHUNKS (D / 8)                          // of a row
#define LARGEST_INT 0x7fffffff
#define UNROLLED(i, count) _Pragma("unroll") for (int i = 0; i < (count); i++)

struct __align__(16) Chunk { unsigned word[4]; };       // 8 channels of a row, or 4 channels of two rows

// ---- One head of a tensor --------------------------------------------------------------------------------------------

struct Task { int b, head, start; };            // a block's: the rows start .. start + OWN - 1

__device__ __forceinline__ Task task_of(int block, int rows, int heads) {
    int tiles = (rows + OWN - 1) / OWN;
    return {block / tiles / heads, block / tiles % heads, block % tiles * OWN};
}

// The upper of the two rows that a lane has of its warp's 16, in the block; the lower is row + 8.
__device__ __forceinline__ int row_of_lane() { return threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4; }

struct Head { Chunk* rows; int stride, count; };

__device__ __forceinline__ Head head_of(const bf16* x, int count, int heads, int b, int head) {
    return {(Chunk*)x + ((long long)b * count * heads + head) * CHUNKS, heads * CHUNKS, count};
}

// Beyond the last row stand zeros: a weight of 0 would not hide what else may lie there.
__device__ __forceinline__ Chunk read(Head x, int row, int chunk) {
    Chunk zeros = {{0, 0, 0, 0}};
    return row < x.count ? x.rows[(long long)row * x.stride + chunk] : zeros;
}

// ---- Tiles in shared memory ------------------------------------------------------------------------------------------
// A tile of rows serves products along the channels, a tile of pairs (one register: a channel of two neighbouring rows) those
// along the rows. The 8 lanes that reach shared memory together find their chunks in different banks, since the lower bits of a
// chunk's number are mixed with those of its row. All chunks of a thread are on their way at once: one wait for memory a tile.

__device__ __forceinline__ int place_in_rows(int row, int chunk) {
    return row * CHUNKS + (D > 32 ? chunk / 8 * 8 + (chunk % 8 ^ row % 2 * 4) : chunk);
}

__device__ __forceinline__ int place_in_pairs(int pair, int chunk) {
    return pair * 2 * CHUNKS + chunk / 8 * 8 + (chunk % 8 ^ (pair % 4 * 2 + pair % 2) ^ chunk / 8 % 2);
}

__device__ __forceinline__ void fill_rows(Chunk* tile, Head x, int start, int rows) {
#pragma unroll 4
    for (int i = 0; i < rows * CHUNKS / THREADS; i++) {
        int at = i * THREADS + threadIdx.x, row = at / CHUNKS, chunk = at % CHUNKS;
        tile[place_in_rows(row, chunk)] = read(x, start + row, chunk);
    }
}

// `tile` receives the same rows one by one, unless it is null.
__device__ __forceinline__ void fill_pairs(Chunk* pairs, Chunk* tile, Head x, int start, int rows) {
#pragma unroll 4
    for (int i = 0; i < rows * CHUNKS / 2 / THREADS; i++) {
        int at = i * THREADS + threadIdx.x, pair = at / CHUNKS, chunk = at % CHUNKS;
        Chunk even = read(x, start + 2 * pair, chunk), odd = read(x, start + 2 * pair + 1, chunk), mixed[2];
        UNROLLED(w, 4) {
            mixed[w / 2].word[w % 2 * 2] = (even.word[w] & 0xffff) | odd.word[w] << 16;
            mixed[w / 2].word[w % 2 * 2 + 1] = even.word[w] >> 16 | (odd.word[w] & 0xffff0000);
        }
        UNROLLED(i, 2) pairs[place_in_pairs(pair, 2 * chunk + i)] = mixed[i];
        if (tile) {
            tile[place_in_rows(2 * pair, chunk)] = even;
            tile[place_in_rows(2 * pair + 1, chunk)] = odd;
        }
    }
}

// ---- Products of a warp ----------------------------------------------------------------------------------------------
// To mma each of the four lanes that share a row brings four pairs of 16 channels. But a sum may run in any order that both
// factors share, and columns may stand in any order: so of each 32 channels a lane takes the 8 from 8 (lane % 4) on, at once.

// The two rows' chunks of 32 channels as the left factors of two products.
__device__ __forceinline__ void set_factors(unsigned (*a)[4], Chunk upper, Chunk lower) {
    UNROLLED(step, 2) UNROLLED(i, 4) a[step][i] = (i % 2 ? lower : upper).word[2 * step + i / 2];
}

// a (16 x D), from a tensor or from a tile.
__device__ __forceinline__ void factor_of_head(unsigned (*a)[4], Head x, int row) {
    int quarter = threadIdx.x % 4;
    UNROLLED(j, D / 32) set_factors(a + 2 * j, read(x, row, 4 * j + quarter), read(x, row + 8, 4 * j + quarter));
}

__device__ __forceinline__ void factor_of_tile(unsigned (*a)[4], const Chunk* tile, int row) {
    int quarter = threadIdx.x % 4;
    UNROLLED(j, D / 32)
        set_factors(a + 2 * j, tile[place_in_rows(row, 4 * j + quarter)], tile[place_in_rows(row + 8, 4 * j + quarter)]);
}

// a (16 x columns) = weights, rounded: mma leaves a product where it takes the left factor of the next.
__device__ __forceinline__ void factor_of_weights(unsigned (*a)[4], const float (*weights)[4], int columns) {
    UNROLLED(n, columns / 8) UNROLLED(half, 2)
        a[n / 2][n % 2 * 2 + half] = pack(to_bf16(weights[n][2 * half]), to_bf16(weights[n][2 * half + 1]));
}

// scores (16 x columns) = a (16 x D) times the transposed tile (columns x D).
__device__ __forceinline__ void along_channels(float (*scores)[4], const unsigned (*a)[4], const Chunk* tile, int columns) {
    int lane = threadIdx.x % WARP;
    UNROLLED(n, columns / 8) UNROLLED(i, 4) scores[n][i] = 0;
    UNROLLED(j, D / 32) UNROLLED(n, columns / 8) {
        Chunk b = tile[place_in_rows(8 * n + lane / 4, 4 * j + lane % 4)];
        UNROLLED(step, 2) mma(scores[n], a[2 * j + step], b.word + 2 * step);
    }
}

// sums (16 x D) += a (16 x rows) times the tile of pairs (rows x D).
__device__ __forceinline__ void along_rows(float (*sums)[4], const unsigned (*a)[4], const Chunk* pairs, int rows) {
    int lane = threadIdx.x % WARP;
    UNROLLED(n, rows / 16) UNROLLED(j, D / 32) {
        Chunk upper = pairs[place_in_pairs(8 * n + lane % 4, lane / 4 + 8 * j)];
        Chunk lower = pairs[place_in_pairs(8 * n + lane % 4 + 4, lane / 4 + 8 * j)];
        UNROLLED(w, 4) {
            unsigned b[2] = {upper.word[w], lower.word[w]};
            mma(sums[4 * j + w], a[n], b);
        }
    }
}

// Writes the upper (half = 0) or lower row of this lane, times `factor`: 0 gives 0 whatever the sums are.
__device__ __forceinline__ void write(Head y, int row, const float (*sums)[4], int half, float factor) {
    if (row >= y.count) return;
    UNROLLED(j, D / 32) {
        bf16 rounded[8];
        UNROLLED(i, 8) rounded[i] = to_bf16(factor == 0 ? 0 : sums[4 * j + i % 4][2 * half + i / 4] * factor);
        Chunk chunk;
        UNROLLED(w, 4) chunk.word[w] = pack(rounded[2 * w], rounded[2 * w + 1]);
        y.rows[(long long)row * y.stride + 4 * j + threadIdx.x % 4] = chunk;
    }
}

// Over the 4 lanes that share a row.
__device__ __forceinline__ float row_sum(float x) {
    for (int lane = 2; lane; lane /= 2) x += __shfl_xor_sync(EVERY_LANE, x, lane);
    return x;
}

__device__ __forceinline__ float row_max(float x) {
    for (int lane = 2; lane; lane /= 2) x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, lane));
    return x;
}

// ---- What is seen ----------------------------------------------------------------------------------------------------

struct Interval { int first, last; };           // holds nothing where first > last

__device__ __forceinline__ bool holds(Interval seen, int key) { return seen.first <= key && key <= seen.last; }

// What query t of row b sees of the S keys; nothing for a query that does not exist.
__device__ __forceinline__ Interval seen_by(const int* first, const int* last, int b, int t, int T, int S) {
    Interval seen = {1, 0};
    if (t < T) seen = {max(first[(long long)b * T + t], 0), min(last[(long long)b * T + t], S - 1)};
    return seen;
}

// The smallest interval that holds those of all threads; threads with nothing to add give {LARGEST_INT, -1}.
__device__ __forceinline__ Interval hull(Interval mine) {
    __shared__ Interval of_warp[WARPS];
    for (int lane = WARP / 2; lane; lane /= 2) {
        mine.first = min(mine.first, __shfl_xor_sync(EVERY_LANE, mine.first, lane));
        mine.last = max(mine.last, __shfl_xor_sync(EVERY_LANE, mine.last, lane));
    }
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = mine;
    __syncthreads();
    UNROLLED(warp, WARPS) mine = {min(mine.first, of_warp[warp].first), max(mine.last, of_warp[warp].last)};
    return mine;
}

// The keys that the queries of a block see, of which this lane has two.
__device__ __forceinline__ Interval hull_of_keys(Interval upper, Interval lower) {
    Interval keys = {LARGEST_INT, -1};
    if (upper.first <= upper.last) keys = upper;
    if (lower.first <= lower.last) keys = {min(keys.first, lower.first), max(keys.last, lower.last)};
    return hull(keys);
}

// The queries of row b that see any of the keys of a block.
__device__ __forceinline__ Interval hull_of_queries(const int* first, const int* last, int b, int T, int S, int start) {
    Interval queries = {LARGEST_INT, -1};
    for (int t = threadIdx.x; t < T; t += THREADS) {
        Interval seen = seen_by(first, last, b, t, T, S);
        if (seen.first <= seen.last && seen.first < start + OWN && seen.last >= start) queries = {min(queries.first, t), t};
    }
    return hull(queries);
}

// ---- Forward ---------------------------------------------------------------------------------------------------------

// A row's scores become weights 2^(scale score - base), base = scale largest; what was added up under a smaller one shrinks.
__device__ __forceinline__ void take_in(float (*scores)[4], float (*sums)[4], int half, Interval seen, int start, float scale,
                                        float* largest, float* total) {
    int column = start + threadIdx.x % 4 * 2;
    if (seen.first > start || seen.last < start + KEYS - 1)
        UNROLLED(n, KEYS / 8) UNROLLED(i, 2) if (!holds(seen, column + 8 * n + i)) scores[n][2 * half + i] = MINUS_INFINITY;
    float before = *largest;
    UNROLLED(n, KEYS / 8) UNROLLED(i, 2) *largest = fmaxf(*largest, scores[n][2 * half + i]);
    *largest = row_max(*largest);
    float base = *largest == MINUS_INFINITY ? 0 : scale * *largest, shrink = exp2f(scale * before - base);
    *total *= shrink;
    UNROLLED(n, KEYS / 8) UNROLLED(i, 2) {
        float& weight = scores[n][2 * half + i];
        weight = exp2f(scale * weight - base);
        *total += weight;
    }
    UNROLLED(n, CHUNKS) UNROLLED(i, 2) sums[n][2 * half + i] *= shrink;
}

// scale: log2(e) / sqrt(D), for powers of 2.
extern "C" __global__ void __launch_bounds__(THREADS) attention_forward(
    const bf16* q, const bf16* k, const bf16* v, const int* first, const int* last, bf16* y, float* log_sum, int T, int S,
    int H, int G, float scale) {
    __shared__ Chunk key_rows[KEYS * CHUNKS], value_pairs[KEYS * CHUNKS];
    Task task = task_of(gridDim.x - 1 - blockIdx.x, T, H);                  // late queries first, who often see most
    int b = task.b, h = task.head, row = task.start + row_of_lane();
    Head keys = head_of(k, S, G, b, h / (H / G)), values = head_of(v, S, G, b, h / (H / G));
    Interval seen[2] = {seen_by(first, last, b, row, T, S), seen_by(first, last, b, row + 8, T, S)};
    Interval any = hull_of_keys(seen[0], seen[1]);
    unsigned queries[D / 16][4];
    factor_of_head(queries, head_of(q, T, H, b, h), row);
    float sums[CHUNKS][4] = {}, largest[2] = {MINUS_INFINITY, MINUS_INFINITY}, total[2] = {};
    for (int start = any.first; start <= any.last; start += KEYS) {
        __syncthreads();
        fill_rows(key_rows, keys, start, KEYS);
        fill_pairs(value_pairs, 0, values, start, KEYS);
        __syncthreads();
        float scores[KEYS / 8][4];
        along_channels(scores, queries, key_rows, KEYS);
        UNROLLED(half, 2) take_in(scores, sums, half, seen[half], start, scale, &largest[half], &total[half]);
        unsigned weights[KEYS / 16][4];
        factor_of_weights(weights, scores, KEYS);
        along_rows(sums, weights, value_pairs, KEYS);
    }
    UNROLLED(half, 2) {
        int t = row + 8 * half;
        float all = row_sum(total[half]);
        write(head_of(y, T, H, b, h), t, sums, half, all == 0 ? 0 : 1 / all);       // nothing seen: exactly 0
        if (t < T && threadIdx.x % 4 == 0)
            log_sum[((long long)b * H + h) * T + t] = all == 0 ? 0 : scale * largest[half] + log2f(all);
    }
}

// ---- Backward --------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256) attention_delta(
    const bf16* y, const bf16* grad, float* delta, int B, int T, int H) {
    long long at = (long long)blockIdx.x * 256 + threadIdx.x, row = at / CHUNKS;    // (b, t, h)
    float sum = 0;
    if (row < (long long)B * T * H) {
        Pack left = ((const Pack*)y)[at], right = ((const Pack*)grad)[at];
        UNROLLED(i, PACK) sum += to_float(left.at[i]) * to_float(right.at[i]);
    }
    for (int lane = CHUNKS / 2; lane; lane /= 2) sum += __shfl_xor_sync(EVERY_LANE, sum, lane);
    if (row < (long long)B * T * H && at % CHUNKS == 0) delta[(row / H / T * H + row % H) * T + row / H % T] = sum;
}

struct __align__(16) Query { Interval seen; float log_sum, delta; };

__device__ __forceinline__ Query query_at(const int* first, const int* last, const float* log_sum, const float* delta, int b,
                                          int h, int t, int T, int S, int H) {
    if (t >= T) return {{1, 0}, 0, 0};
    long long at = ((long long)b * H + h) * T + t;
    return {seen_by(first, last, b, t, T, S), log_sum[at], delta[at]};
}

// A score becomes p, its slope d loss / d p becomes d loss / d score but for 1 / sqrt(D); both 0 where the key is not seen.
__device__ __forceinline__ void differentiate(float* score, float* slope, Query query, int key, float scale) {
    float p = exp2f(scale * *score - query.log_sum);
    *score = holds(query.seen, key) ? p : 0;
    *slope = holds(query.seen, key) ? p * (*slope - query.delta) : 0;
}

// slope_scale: 1 / sqrt(D). Shared memory: 2 OWN + 4 STEP rows and STEP queries.
extern "C" __global__ void __launch_bounds__(THREADS) attention_grad_kv(
    const bf16* q, const bf16* k, const bf16* v, const bf16* grad, const int* first, const int* last, const float* log_sum,
    const float* delta, bf16* grad_k, bf16* grad_v, int T, int S, int H, int G, float scale, float slope_scale) {
    DYNAMIC_SHARED(Chunk, key_rows);
    Chunk *value_rows = key_rows + OWN * CHUNKS, *query_rows = value_rows + OWN * CHUNKS;
    Chunk *query_pairs = query_rows + STEP * CHUNKS, *grad_rows = query_pairs + STEP * CHUNKS;
    Chunk *grad_pairs = grad_rows + STEP * CHUNKS;
    Query* queries = (Query*)(grad_pairs + STEP * CHUNKS);
    Task task = task_of(blockIdx.x, S, G);
    int b = task.b, g = task.head, start = task.start, row = row_of_lane(), column = threadIdx.x % 4 * 2;
    fill_rows(key_rows, head_of(k, S, G, b, g), start, OWN);
    fill_rows(value_rows, head_of(v, S, G, b, g), start, OWN);
    Interval any = hull_of_queries(first, last, b, T, S, start);
    float sums_k[CHUNKS][4] = {}, sums_v[CHUNKS][4] = {};
    for (int h = g * (H / G); h < (g + 1) * (H / G); h++)
        for (int t = any.first; t <= any.last; t += STEP) {
            __syncthreads();
            fill_pairs(query_pairs, query_rows, head_of(q, T, H, b, h), t, STEP);
            fill_pairs(grad_pairs, grad_rows, head_of(grad, T, H, b, h), t, STEP);
            if (threadIdx.x < STEP)
                queries[threadIdx.x] = query_at(first, last, log_sum, delta, b, h, t + threadIdx.x, T, S, H);
            __syncthreads();
            unsigned ours[D / 16][4];
            float scores[STEP / 8][4], slopes[STEP / 8][4];                         // 16 keys x STEP queries
            factor_of_tile(ours, key_rows, row);
            along_channels(scores, ours, query_rows, STEP);
            factor_of_tile(ours, value_rows, row);
            along_channels(slopes, ours, grad_rows, STEP);
            UNROLLED(n, STEP / 8) UNROLLED(i, 4)
                differentiate(&scores[n][i], &slopes[n][i], queries[8 * n + column + i % 2], start + row + i / 2 * 8, scale);
            unsigned weights[STEP / 16][4];
            factor_of_weights(weights, scores, STEP);
            along_rows(sums_v, weights, grad_pairs, STEP);
            factor_of_weights(weights, slopes, STEP);
            along_rows(sums_k, weights, query_pairs, STEP);
        }
    UNROLLED(half, 2) {
        write(head_of(grad_k, S, G, b, g), start + row + 8 * half, sums_k, half, slope_scale);
        write(head_of(grad_v, S, G, b, g), start + row + 8 * half, sums_v, half, 1);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_grad_q(
    const bf16* q, const bf16* k, const bf16* v, const bf16* grad, const int* first, const int* last, const float* log_sum,
    const float* delta, bf16* grad_q, int T, int S, int H, int G, float scale, float slope_scale) {
    __shared__ Chunk key_rows[STEP * CHUNKS], key_pairs[STEP * CHUNKS], value_rows[STEP * CHUNKS];
    Task task = task_of(gridDim.x - 1 - blockIdx.x, T, H);
    int b = task.b, h = task.head, row = task.start + row_of_lane(), column = threadIdx.x % 4 * 2;
    Head keys = head_of(k, S, G, b, h / (H / G)), values = head_of(v, S, G, b, h / (H / G));
    Query both[2];
    UNROLLED(half, 2) both[half] = query_at(first, last, log_sum, delta, b, h, row + 8 * half, T, S, H);
    Interval any = hull_of_keys(both[0].seen, both[1].seen);
    unsigned queries[D / 16][4], grads[D / 16][4];
    factor_of_head(queries, head_of(q, T, H, b, h), row);
    factor_of_head(grads, head_of(grad, T, H, b, h), row);
    float sums[CHUNKS][4] = {};
    for (int start = any.first; start <= any.last; start += STEP) {
        __syncthreads();
        fill_pairs(key_pairs, key_rows, keys, start, STEP);
        fill_rows(value_rows, values, start, STEP);
        __syncthreads();
        float scores[STEP / 8][4], slopes[STEP / 8][4];                             // 16 queries x STEP keys
        along_channels(scores, queries, key_rows, STEP);
        along_channels(slopes, grads, value_rows, STEP);
        UNROLLED(n, STEP / 8) UNROLLED(i, 4)
            differentiate(&scores[n][i], &slopes[n][i], both[i / 2], start + 8 * n + column + i % 2, scale);
        unsigned weights[STEP / 16][4];
        factor_of_weights(weights, slopes, STEP);
        along_rows(sums, weights, key_pairs, STEP);
    }
    UNROLLED(half, 2) write(head_of(grad_q, T, H, b, h), row + 8 * half, sums, half, slope_scale);
}
