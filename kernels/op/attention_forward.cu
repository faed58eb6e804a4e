// Causal grouped-query attention over packed segments, forward: FlashAttention-2 (Dao 2023) on mma.sync.
//
//   out = softmax(scale * Q K^T, keys up to the query, within the segment) V
//   lse = ln of the softmax's denominator, natural, as the backward pass and the CPU device have it
//
// Layout   qk [T, (heads + kv_heads) * D]: rotated q, then k. qkv [T, (heads + 2 * kv_heads) * D]: only its v, the
//          last columns, is read. out [T, heads * D]. lse [heads, T] f32. Query head h reads kv head h / (heads /
//          kv_heads). The bf16 arrays start at multiples of 16 bytes.
// Owners   A block owns 128 query rows of one segment and head, a warp 32 of them; each sees the keys in tiles of 64
//          from the start of its segment to its own end. Tiles wholly after a warp's rows are skipped by it.
// Order    Everything is a function of the row's place in its segment: no row's bits depend on its neighbours, on
//          the order of the work list or on the device. Scores, weights and sums are f32; the weights are rounded
//          to bf16 for the product with V (their sum is of the unrounded ones).
// Memory   Q once, K and V twice: while a tile is used the next one is on its way. 96 KiB at D = 128.
// Launch   grid (heads * pieces of work, 1, 1), heads fastest, so that the heads of a group share K and V in the cache;
//          128 threads; dynamic shared memory ForwardShared<D>: 12 * 64 * D bytes (D 64: 49152, D 128: 98304).
//          work: items of 128 rows (tile/attention.cuh), those with the largest `block` first.

#include "../tile/attention.cuh"

struct AttentionForward {
    bf16* out;
    float* lse;
    const bf16* qk;
    const bf16* qkv;
    const AttentionWork* work;
    int tokens;  // T
    int heads;
    int kv_heads;
    float scale;
};
EXPORT_PARAMS(AttentionForward, out, lse, qk, qkv, work, tokens, heads, kv_heads, scale)

// ---- kernels ----------------------------------------------------------------------------------------------------

constexpr int QUERIES = 128;
constexpr int WARP_QUERIES = 32;
EXPORT_CONSTANTS(attention_forward, QUERIES)

template <int D>
struct ForwardShared {
    RowTile<QUERIES, D> q;
    struct Stage {
        RowTile<ATTENTION_STEP, D> k, v;
    } stages[2];
};
static_assert(sizeof(ForwardShared<128>) <= ATTENTION_SHARED_BYTES, "fits every device from sm_80 on");
static_assert(QUERIES == WARP_QUERIES * ATTENTION_THREADS / 32, "the warps share the queries");

// Rows of the scores of one tile that a warp looks at, as the accumulators of its products.
constexpr int M = WARP_QUERIES / 16;

// What a block does. It is read again for the output rather than kept in registers meanwhile.
struct ForwardTask {
    AttentionWork work;
    int head;

    METHOD explicit ForwardTask(const AttentionForward& p) {
        work = load(p.work + block_x() / p.heads);
        head = block_x() % p.heads;
    }
};

// Finishes a warp's rows, from row `row` of the block's on, and writes them.
template <int D>
DEVICE void write_output(const AttentionForward& p, int row, float (&acc)[M][D / 8][4], RunningSoftmax<M>& softmax,
                         RowTile<QUERIES, D>& tile) {
    const auto [work, head] = ForwardTask(p);
    const int first = work.block * QUERIES;
    softmax.finish(acc);
    bf16* out = p.out + static_cast<size_t>(work.start) * p.heads * D + head * D;
    store_rows(out, p.heads * D, first, work.len, acc, tile, row);
    if (lane() % 4 != 0) return;
    float* lse = p.lse + static_cast<size_t>(head) * p.tokens + work.start;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int query = first + row + accumulator_row(m, half * 2);
            if (query < work.len) {
                store(lse + query, fused(softmax.max[m][half], p.scale, log_f32(softmax.sum[m][half])));
            }
        }
}

template <int D>
DEVICE void attention_forward(const AttentionForward& p) {
    auto& shared = SMEM(ForwardShared<D>);
    const auto [work, head] = ForwardTask(p);
    if (work.len == 0) return;
    const int kv = head / (p.heads / p.kv_heads);
    const int qk_stride = (p.heads + p.kv_heads) * D, qkv_stride = qk_stride + p.kv_heads * D;
    const bf16* qk = p.qk + static_cast<size_t>(work.start) * qk_stride;
    const bf16* qkv = p.qkv + static_cast<size_t>(work.start) * qkv_stride;
    RowCursor<ATTENTION_THREADS, ATTENTION_STEP, D> k(qk + (p.heads + kv) * D, qk_stride, 0, work.len);
    RowCursor<ATTENTION_THREADS, ATTENTION_STEP, D> v(qkv + qk_stride + kv * D, qkv_stride, 0, work.len);
    const auto load = [&](auto& stage) {
        k.load(stage.k, qk_stride);
        v.load(stage.v, qkv_stride);
        cp_async_commit();
    };

    const int first = work.block * QUERIES, end = first + QUERIES < work.len ? first + QUERIES : work.len;
    load_rows<ATTENTION_THREADS>(shared.q, qk + head * D, qk_stride, first, work.len);
    load(shared.stages[0]);
    const int row = warp() * WARP_QUERIES, query = first + row;
    float acc[M][D / 8][4] = {};
    RunningSoftmax<M> softmax;
    softmax.start();
    for (int key = 0; key < end; key += ATTENTION_STEP) {
        // All of this tile has arrived, and nobody reads the other stage any more.
        cp_async_wait<0>();
        block_sync();
        if (key + ATTENTION_STEP < end) load(shared.stages[key / ATTENTION_STEP % 2 ^ 1]);
        if (query >= end || key >= query + WARP_QUERIES) continue;
        auto& stage = shared.stages[key / ATTENTION_STEP % 2];
        float scores[M][ATTENTION_STEP / 8][4];
        multiply_rows(scores, shared.q, row, stage.k);
        if (key + ATTENTION_STEP - 1 > query) hide_later_keys(scores, query, key, MINUS_INFINITY);
        softmax.weigh(scores, acc, p.scale * LOG2_E);
        multiply_weights(acc, scores, stage.v);
    }
    if (query < end) write_output<D>(p, row, acc, softmax, shared.q);
}

// ---- instances --------------------------------------------------------------------------------------------------

KERNEL(ATTENTION_THREADS, 2, attention_forward_d64, AttentionForward) { attention_forward<64>(p); }
KERNEL(ATTENTION_THREADS, 1, attention_forward_d128, AttentionForward) { attention_forward<128>(p); }
