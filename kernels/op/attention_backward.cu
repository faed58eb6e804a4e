// Causal grouped-query attention over packed segments, backward: FlashAttention-2 (Dao 2023) on mma.sync, with the
// rows of every result owned by one block.
//
//   P = 2^(log2(e) * (scale * Q K^T - lse)), computed again from the kept log-sum-exp
//   delta = row sums of dO o O,  dS = P o (dO V^T - delta)
//   dQ = scale * dS K,  dK = scale * dS^T Q,  dV = P^T dO, the latter two summed over the query heads of a group
//
// Layout   As the forward pass; dqk like qk, dqkv like qkv (only its v columns are written), dout like out,
//          delta [heads, T] f32, scratch that the first kernel fills for the other two. bf16 at 16-byte multiples.
// Owners   attention_delta: the lanes of D / 8 threads own one row of one head. attention_keys: a block owns 64 key
//          rows of one segment and kv head, and goes through the heads of its group, and for each through the
//          segment's query tiles of 64 from its own rows on. attention_queries: a block owns 64 query rows of one
//          segment and head, and goes through the key tiles up to its own. So the scores are computed twice, two
//          products of seven, and in return nothing is ever added to by two blocks: no atomics, no waiting.
// Order    Sums go in the order above, a function of the row's place in its segment alone. P and dS are f32, rounded
//          to bf16 for the products; `scale` is applied to the f32 sums at the end.
// Memory   The owned rows once, those passing by twice: while a tile is used the next one is on its way. 97 KiB.
// Scores   attention_keys computes K Q^T, keys as rows: its weights are then, in their registers, the left operand
//          of the products that follow, as they are in the forward pass.
// Launch   128 threads (attention_delta: 256), dynamic shared memory in bytes:
//            attention_delta_d*     grid (ceil(T * heads * (D / 8) / 256), 1, 1), none. First; `work` is not read.
//            attention_keys_d*      grid (kv_heads * work items, 1, 1), KeysShared<D>: 768 * D + 1024
//                                   (D 64: 50176, D 128: 99328); those with most blocks after them first.
//            attention_queries_d*   grid (heads * work items, 1, 1), QueriesShared<D>: 768 * D
//                                   (D 64: 49152, D 128: 98304); those with the largest `block` first.
//          work: items of 64 rows (tile/attention.cuh). The last two are independent of each other.

#include "../tile/attention.cuh"

struct AttentionBackward {
    bf16* dqk;
    bf16* dqkv;
    float* delta;
    const bf16* qk;
    const bf16* qkv;
    const bf16* out;
    const bf16* dout;
    const float* lse;
    const AttentionWork* work;
    int tokens;  // T
    int heads;
    int kv_heads;
    float scale;
};
EXPORT_PARAMS(AttentionBackward, dqk, dqkv, delta, qk, qkv, out, dout, lse, work, tokens, heads, kv_heads, scale)

// ---- kernels ----------------------------------------------------------------------------------------------------

constexpr int STEP = ATTENTION_STEP;
constexpr int THREADS = ATTENTION_THREADS;
constexpr int DELTA_THREADS = 256;
EXPORT_CONSTANTS(attention_backward, STEP, DELTA_THREADS)
static_assert(STEP == 16 * THREADS / 32, "each warp owns sixteen rows");
static_assert(2 * STEP == THREADS, "a thread for each statistic of a tile");

// Of a segment: where its rows of one query head, and of the kv head that goes with it, begin.
template <int D>
struct AttentionOperands {
    const bf16 *q, *k, *v, *dout;
    const float *lse, *delta;
    int qk_stride, qkv_stride, out_stride;

    METHOD AttentionOperands(const AttentionBackward& p, int start, int head) {
        const int kv = head / (p.heads / p.kv_heads);
        qk_stride = (p.heads + p.kv_heads) * D;
        qkv_stride = qk_stride + p.kv_heads * D;
        out_stride = p.heads * D;
        q = p.qk + static_cast<size_t>(start) * qk_stride + head * D;
        k = p.qk + static_cast<size_t>(start) * qk_stride + (p.heads + kv) * D;
        v = p.qkv + static_cast<size_t>(start) * qkv_stride + (p.heads + p.kv_heads + kv) * D;
        dout = p.dout + static_cast<size_t>(start) * out_stride + head * D;
        lse = p.lse + static_cast<size_t>(head) * p.tokens + start;
        delta = p.delta + static_cast<size_t>(head) * p.tokens + start;
    }
};

template <int D>
DEVICE void attention_delta(const AttentionBackward& p) {
    constexpr int LANES = D / 8;
    const int64_t place = static_cast<int64_t>(block_x()) * DELTA_THREADS + thread_index();
    const int64_t row = place / LANES;  // (token, head), heads fastest
    const bool valid = row < static_cast<int64_t>(p.tokens) * p.heads;
    float sum = 0.0f;
    if (valid) {
        const u128 a = load_128(p.out + place * 8), b = load_128(p.dout + place * 8);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            sum = fused(low(a.w[i]), low(b.w[i]), sum);
            sum = fused(high(a.w[i]), high(b.w[i]), sum);
        }
    }
#pragma unroll
    for (int mask = 1; mask < LANES; mask *= 2) sum += shuffle_xor(sum, mask);
    if (valid && place % LANES == 0) store(p.delta + row % p.heads * p.tokens + row / p.heads, sum);
}

template <int D>
struct KeysShared {
    RowTile<STEP, D> k, v;
    struct Stage {
        RowTile<STEP, D> q, dout;
        float statistics[2][STEP];  // lse, delta
    } stages[2];
};
static_assert(sizeof(KeysShared<128>) <= ATTENTION_SHARED_BYTES, "fits every device from sm_80 on");

// The thread's statistic of the query tile at `query`. A row that is not there has weight 2^-infinity.
template <int D>
DEVICE float statistic(const AttentionOperands<D>& o, int query, int len) {
    const int row = query + thread_index() % STEP;
    if (thread_index() < STEP) return row < len ? load(o.lse + row) : -MINUS_INFINITY;
    return row < len ? load(o.delta + row) : 0.0f;
}

// Adds one query tile's part to a warp's dK and dV, the sixteen rows from `row` of the block's on.
template <int D>
DEVICE void key_step(KeysShared<D>& shared, typename KeysShared<D>::Stage& stage, float (&dk)[1][D / 8][4],
                     float (&dv)[1][D / 8][4], int row, bool diagonal, float scale) {
    float weights[1][STEP / 8][4], dscores[1][STEP / 8][4];
    multiply_rows(weights, shared.k, row, stage.q);
#pragma unroll
    for (int n = 0; n < STEP / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float lse = stage.statistics[0][accumulator_column(n, i)];
            weights[0][n][i] = exp2_weight(fused(weights[0][n][i], scale, -lse * LOG2_E));
        }
    if (diagonal) hide_earlier_queries(weights, row, 0);
    multiply_weights(dv, weights, stage.dout);
    multiply_rows(dscores, shared.v, row, stage.dout);
#pragma unroll
    for (int n = 0; n < STEP / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float delta = stage.statistics[1][accumulator_column(n, i)];
            dscores[0][n][i] = weights[0][n][i] * (dscores[0][n][i] - delta);
        }
    multiply_weights(dk, dscores, stage.q);
}

template <int WIDTH>
DEVICE void scale_rows(float (&acc)[1][WIDTH][4], float scale) {
#pragma unroll
    for (int n = 0; n < WIDTH; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[0][n][i] *= scale;
}

template <int D>
DEVICE void attention_keys(const AttentionBackward& p) {
    auto& shared = SMEM(KeysShared<D>);
    const AttentionWork work = load(p.work + block_x() / p.kv_heads);
    if (work.len == 0) return;
    const int kv = block_x() % p.kv_heads, group = p.heads / p.kv_heads;
    const int first = work.block * STEP, tiles = (work.len - first + STEP - 1) / STEP;
    const auto operands = [&](int step) { return AttentionOperands<D>(p, work.start, kv * group + step / tiles); };
    const auto query = [&](int step) { return first + step % tiles * STEP; };
    const auto load_tile = [&](int step) {
        auto& stage = shared.stages[step % 2];
        const AttentionOperands<D> o = operands(step);
        load_rows<THREADS>(stage.q, o.q, o.qk_stride, query(step), work.len);
        load_rows<THREADS>(stage.dout, o.dout, o.out_stride, query(step), work.len);
        cp_async_commit();
    };
    // The statistics' rows start anywhere, so they cannot be copied in sixteens: each thread carries one.
    const auto keep = [&](int step, float value) {
        shared.stages[step % 2].statistics[thread_index() / STEP][thread_index() % STEP] = value;
    };

    const AttentionOperands<D> o = operands(0);
    load_rows<THREADS>(shared.k, o.k, o.qk_stride, first, work.len);
    load_rows<THREADS>(shared.v, o.v, o.qkv_stride, first, work.len);
    load_tile(0);
    keep(0, statistic(o, first, work.len));
    const int row = warp() * 16;
    const bool active = first + row < work.len;
    float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
    const int steps = group * tiles;
    for (int step = 0; step < steps; ++step) {
        // All of this tile has arrived, and nobody reads the other stage any more.
        cp_async_wait<0>();
        block_sync();
        float next = 0.0f;
        if (step + 1 < steps) {
            load_tile(step + 1);
            next = statistic(operands(step + 1), query(step + 1), work.len);
        }
        if (active) {
            key_step<D>(shared, shared.stages[step % 2], dk, dv, row, step % tiles == 0, p.scale * LOG2_E);
        }
        if (step + 1 < steps) keep(step + 1, next);
    }
    if (!active) return;
    scale_rows(dk, p.scale);
    bf16* dk_rows = p.dqk + (o.k - p.qk);
    bf16* dv_rows = p.dqkv + (o.v - p.qkv);
    store_rows(dk_rows, o.qk_stride, first, work.len, dk, shared.k, row);
    store_rows(dv_rows, o.qkv_stride, first, work.len, dv, shared.v, row);
}

template <int D>
struct QueriesShared {
    RowTile<STEP, D> q, dout;
    struct Stage {
        RowTile<STEP, D> k, v;
    } stages[2];
};
static_assert(sizeof(QueriesShared<128>) <= ATTENTION_SHARED_BYTES, "fits every device from sm_80 on");

// Adds one key tile's part to a warp's dQ, the sixteen rows from `row` of the block's on. The statistics are those
// of the lane's two rows.
template <int D>
DEVICE void query_step(QueriesShared<D>& shared, typename QueriesShared<D>::Stage& stage, float (&dq)[1][D / 8][4],
                       int row, bool diagonal, float scale, const float (&lse)[2], const float (&delta)[2]) {
    float weights[1][STEP / 8][4], dscores[1][STEP / 8][4];
    multiply_rows(weights, shared.q, row, stage.k);
#pragma unroll
    for (int n = 0; n < STEP / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            weights[0][n][i] = exp2_weight(fused(weights[0][n][i], scale, -lse[i / 2] * LOG2_E));
        }
    if (diagonal) hide_later_keys(weights, row, 0, 0.0f);
    multiply_rows(dscores, shared.dout, row, stage.v);
#pragma unroll
    for (int n = 0; n < STEP / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) dscores[0][n][i] = weights[0][n][i] * (dscores[0][n][i] - delta[i / 2]);
    multiply_weights(dq, dscores, stage.k);
}

template <int D>
DEVICE void attention_queries(const AttentionBackward& p) {
    auto& shared = SMEM(QueriesShared<D>);
    const AttentionWork work = load(p.work + block_x() / p.heads);
    if (work.len == 0) return;
    const AttentionOperands<D> o(p, work.start, block_x() % p.heads);
    const auto load_tile = [&](int tile) {
        auto& stage = shared.stages[tile % 2];
        load_rows<THREADS>(stage.k, o.k, o.qk_stride, tile * STEP, work.len);
        load_rows<THREADS>(stage.v, o.v, o.qkv_stride, tile * STEP, work.len);
        cp_async_commit();
    };

    const int first = work.block * STEP, row = warp() * 16;
    load_rows<THREADS>(shared.q, o.q, o.qk_stride, first, work.len);
    load_rows<THREADS>(shared.dout, o.dout, o.out_stride, first, work.len);
    load_tile(0);
    float lse[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int query = first + row + accumulator_row(0, half * 2);
        lse[half] = query < work.len ? load(o.lse + query) : -MINUS_INFINITY;
        delta[half] = query < work.len ? load(o.delta + query) : 0.0f;
    }
    const bool active = first + row < work.len;
    float dq[1][D / 8][4] = {};
    for (int tile = 0; tile <= work.block; ++tile) {
        // All of this tile has arrived, and nobody reads the other stage any more.
        cp_async_wait<0>();
        block_sync();
        if (tile < work.block) load_tile(tile + 1);
        if (active) {
            const bool diagonal = tile == work.block;
            query_step<D>(shared, shared.stages[tile % 2], dq, row, diagonal, p.scale * LOG2_E, lse, delta);
        }
    }
    if (!active) return;
    scale_rows(dq, p.scale);
    store_rows(p.dqk + (o.q - p.qk), o.qk_stride, first, work.len, dq, shared.q, row);
}

// ---- instances --------------------------------------------------------------------------------------------------

KERNEL(DELTA_THREADS, 1, attention_delta_d64, AttentionBackward) { attention_delta<64>(p); }
KERNEL(DELTA_THREADS, 1, attention_delta_d128, AttentionBackward) { attention_delta<128>(p); }
KERNEL(ATTENTION_THREADS, 2, attention_keys_d64, AttentionBackward) { attention_keys<64>(p); }
KERNEL(ATTENTION_THREADS, 1, attention_keys_d128, AttentionBackward) { attention_keys<128>(p); }
KERNEL(ATTENTION_THREADS, 2, attention_queries_d64, AttentionBackward) { attention_queries<64>(p); }
KERNEL(ATTENTION_THREADS, 1, attention_queries_d128, AttentionBackward) { attention_queries<128>(p); }
