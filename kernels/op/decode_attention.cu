// Attention of one query a sequence over its kept keys and values, and what puts them there.
//
//   decode_append   row to[t] of the cache = k of qk, v of qkv of token row t
//   decode_scale    the queries of qk at position n are multiplied by table[n] (Qwen v1's log n attention)
//   decode_attend   out = softmax(scale * q K^T) V over the run of rows that the query sees
//
// Layout   qk [T, (heads + kv_heads) * D]: rotated q, then k. qkv [T, (heads + 2 * kv_heads) * D], v last. k, v of the
//          cache [rows, kv_heads * D]. out [T, heads * D].
// Owners   append, scale: a thread owns eight neighbours. attend: a block owns a query head of one row; its four warps take
//          tiles of 32 keys in turn, a lane a key for the scores and D / 32 columns for the sum.
// Order    A warp's tiles in order, then the warps in order: a function of the run's length alone. Scores, weights and
//          sums are f32.
// Launch   append: 256 threads, grid (ceil(T * kv_heads * D / 8 / 256), 1, 1). scale: 256 threads, grid
//          (ceil(T * heads * D / 8 / 256), 1, 1). attend: 128 threads, grid (heads, T, 1), DecodeShared<D>: 20 * D + 32 bytes.

#include "../tile/elements.cuh"

struct DecodeParams {
    bf16* out;
    bf16* qk;  // scale writes its queries
    const bf16* qkv;
    bf16* k;
    bf16* v;
    const uint32_t* places;  // append: [T]; scale: positions [T]; attend: first row and length of each run [T, 2]
    const float* table;
    int tokens;  // T
    int heads;
    int kv_heads;
    int head_dim;  // D
    float scale;
    int reserved;
};
EXPORT_PARAMS(DecodeParams, out, qk, qkv, k, v, places, table, tokens, heads, kv_heads, head_dim, scale, reserved)

// ---- kernels ----------------------------------------------------------------------------------------------------

constexpr int THREADS = 256;
EXPORT_CONSTANTS(decode_attention, THREADS)
constexpr int WARPS = 4;

template <int D>
struct DecodeShared {
    float q[D];
    float acc[WARPS][D];
    float max[WARPS], sum[WARPS];
};

// A warp's softmax over its tiles so far: the lane's columns of the weighted sum, and the statistics.
template <int D>
struct Partial {
    static constexpr int OWN = D / 32;
    float acc[OWN];
    float max, sum;
};

// Score of the query in `q` with one key row.
template <int D>
DEVICE float score(const float* q, const bf16* key) {
    float sum = 0.0f;
#pragma unroll 4
    for (int i = 0; i < D; i += 8) {
        const Eight k = load_eight(key + i);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum = fused(q[i + j], k.v[j], sum);
    }
    return sum;
}

template <int D>
DEVICE void attend_tile(Partial<D>& part, const float* q, const bf16* k, const bf16* v, int stride, int left, float scale) {
    constexpr int OWN = Partial<D>::OWN;
    const bool there = lane() < left;
    const float s = there ? score<D>(q, k + static_cast<size_t>(lane()) * stride) * scale : -__builtin_inff();
    const float tile_max = warp_max(s), max = tile_max > part.max ? tile_max : part.max;
    const float factor = exp_f32(part.max - max), weight = there ? exp_f32(s - max) : 0.0f;
    part.max = max;
    part.sum = part.sum * factor + weight;
#pragma unroll
    for (int i = 0; i < OWN; ++i) part.acc[i] *= factor;
    for (int row = 0; row < 32; ++row) {
        const float w = shuffle(weight, row);
        if (row >= left) continue;
        const bf16* at = v + static_cast<size_t>(row) * stride + lane() * OWN;
#pragma unroll
        for (int i = 0; i < OWN; ++i) part.acc[i] = fused(w, to_float(load(at + i)), part.acc[i]);
    }
}

template <int D>
DEVICE void decode_attend(const DecodeParams& p) {
    auto& shared = SMEM(DecodeShared<D>);
    constexpr int OWN = Partial<D>::OWN;
    const int head = block_x(), row = block_y(), kv = head / (p.heads / p.kv_heads);
    const int first = static_cast<int>(load(p.places + 2 * row)), len = static_cast<int>(load(p.places + 2 * row + 1));
    const bf16* query = p.qk + static_cast<size_t>(row) * (p.heads + p.kv_heads) * D + head * D;
    for (int i = thread_index(); i < D; i += 32 * WARPS) shared.q[i] = to_float(load(query + i));
    block_sync();
    const int stride = p.kv_heads * D;
    Partial<D> part = {{}, -__builtin_inff(), 0.0f};
    for (int key = warp() * 32; key < len; key += 32 * WARPS) {
        const size_t at = static_cast<size_t>(first + key) * stride + kv * D;
        attend_tile<D>(part, shared.q, p.k + at, p.v + at, stride, len - key, p.scale);
    }
    part.sum = warp_sum(part.sum);
    if (lane() == 0) {
        shared.max[warp()] = part.max;
        shared.sum[warp()] = part.sum;
    }
#pragma unroll
    for (int i = 0; i < OWN; ++i) shared.acc[warp()][lane() * OWN + i] = part.acc[i];
    block_sync();
    if (thread_index() >= D) return;
    // A warp without keys has no maximum and nothing to add; the first warp has one.
    float max = shared.max[0];
    for (int w = 1; w < WARPS; ++w) max = shared.max[w] > max ? shared.max[w] : max;
    float value = 0.0f, sum = 0.0f;
    for (int w = 0; w < WARPS; ++w) {
        const float factor = exp_f32(shared.max[w] - max);
        value = fused(factor, shared.acc[w][thread_index()], value);
        sum = fused(factor, shared.sum[w], sum);
    }
    store(p.out + (static_cast<size_t>(row) * p.heads + head) * D + thread_index(), to_bf16(value / sum));
}

// ---- instances --------------------------------------------------------------------------------------------------

KERNEL(THREADS, 4, decode_append, DecodeParams) {
    const int width = p.kv_heads * p.head_dim, pieces = width / 8;
    const int64_t place = thread_place(THREADS), token = place / pieces;
    if (token >= p.tokens) return;
    const size_t column = static_cast<size_t>(place % pieces) * 8;
    const size_t before = static_cast<size_t>(p.heads) * p.head_dim, qk = before + width, qkv = qk + width;
    const size_t to = static_cast<size_t>(load(p.places + token)) * width + column;
    store_128(p.k + to, load_128(p.qk + token * qk + before + column));
    store_128(p.v + to, load_128(p.qkv + token * qkv + qk + column));
}

KERNEL(THREADS, 4, decode_scale, DecodeParams) {
    const int width = p.heads * p.head_dim, pieces = width / 8;
    const int64_t place = thread_place(THREADS), token = place / pieces;
    if (token >= p.tokens) return;
    bf16* at = p.qk + token * (width + p.kv_heads * p.head_dim) + place % pieces * 8;
    const float factor = load(p.table + load(p.places + token));
    Eight x = load_eight(at);
#pragma unroll
    for (int i = 0; i < 8; ++i) x.v[i] *= factor;
    store_eight(at, x);
}

KERNEL(32 * WARPS, 4, decode_attend_d64, DecodeParams) { decode_attend<64>(p); }
KERNEL(32 * WARPS, 4, decode_attend_d128, DecodeParams) { decode_attend<128>(p); }
