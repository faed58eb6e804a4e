// Rotary embedding (Su et al. 2021, NeoX halves) of queries and keys, with Qwen3's norm of each head before it.
//
//   forward   qk = rotate(norm(q, k of qkv), position)
//   backward  q, k columns of dqkv = d norm^T rotate(dqk, -position); the v columns stay as they are
//
// Owners   D / 4 lanes own one head of one token; each takes two neighbours of the first half and the two that are
//          turned with them.
// Order    The norm's sums: four elements a lane, f32, then the lanes' tree.
// Launch   256 threads, grid (ceil(tokens * (heads + kv_heads) * (D / 4) / 256), 1, 1), no shared memory.

#include "../tile/elements.cuh"

struct RopeParams {
    const bf16* qkv;
    bf16* qk;  // written by forward, read by backward
    bf16* dqkv;
    const float* table;  // [positions, D / 2, 2]: cosine, sine
    const uint32_t* positions;
    const float* q_weight;  // of the norm, or null
    const float* k_weight;
    int tokens;
    int heads;
    int kv_heads;
    float eps;
};
EXPORT_PARAMS(RopeParams, qkv, qk, dqkv, table, positions, q_weight, k_weight, tokens, heads, kv_heads, eps)

// ---- kernels ----------------------------------------------------------------------------------------------------

constexpr int THREADS = 256;
constexpr int LANE_VALUES = 4;
EXPORT_CONSTANTS(rope, THREADS, LANE_VALUES)

// Elements 2 l, 2 l + 1 and the same of the second half.
struct Four {
    float v[4];
};

// A lane's head and its place in it. Lanes beyond the last head take part in the sums of their neighbours, with zeros.
template <int D>
struct Head {
    static constexpr int LANES = D / LANE_VALUES;
    int64_t raw, turned;  // first element of the lane in qkv and in qk
    const float* weight;
    float cosine[2], sine[2];
    bool valid;

    METHOD explicit Head(const RopeParams& p) {
        const int width = p.heads + p.kv_heads;
        const int64_t place = thread_place(THREADS) / LANES, token = place / width;
        const int head = static_cast<int>(place % width), pair = thread_index() % LANES * 2;
        valid = token < p.tokens;
        raw = (token * (width + p.kv_heads) + head) * D + pair;
        turned = place * D + pair;
        weight = (head < p.heads ? p.q_weight : p.k_weight) + (p.q_weight ? pair : 0);
        const u128 angles = valid ? load_128(p.table + static_cast<size_t>(load(p.positions + token)) * D + pair * 2)
                                  : u128{{0, 0, 0, 0}};
        for (int i = 0; i < 2; ++i) {
            cosine[i] = float_of(angles.w[2 * i]);
            sine[i] = float_of(angles.w[2 * i + 1]);
        }
    }

    METHOD Four read(const bf16* x, int64_t at) const {
        if (!valid) return Four{{0.0f, 0.0f, 0.0f, 0.0f}};
        const uint32_t a = load(reinterpret_cast<const uint32_t*>(x + at));
        const uint32_t b = load(reinterpret_cast<const uint32_t*>(x + at + D / 2));
        return Four{{low(a), high(a), low(b), high(b)}};
    }

    METHOD void write(bf16* x, int64_t at, const Four& f) const {
        if (!valid) return;
        store(reinterpret_cast<uint32_t*>(x + at), pack(f.v[0], f.v[1]));
        store(reinterpret_cast<uint32_t*>(x + at + D / 2), pack(f.v[2], f.v[3]));
    }

    METHOD Four weights() const {
        return Four{{load(weight), load(weight + 1), load(weight + D / 2), load(weight + D / 2 + 1)}};
    }

    METHOD static float sum(float value) {
#pragma unroll
        for (int mask = 1; mask < LANES; mask *= 2) value += shuffle_xor(value, mask);
        return value;
    }

    METHOD static float inverse_rms(const Four& x, float eps) {
        float square = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; ++i) square = fused(x.v[i], x.v[i], square);
        return 1.0f / square_root(sum(square) / static_cast<float>(D) + eps);
    }

    // Turned by the angle times `turn`.
    METHOD Four rotate(const Four& x, float turn) const {
        Four y;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float s = sine[i] * turn;
            y.v[i] = x.v[i] * cosine[i] - x.v[2 + i] * s;
            y.v[2 + i] = x.v[2 + i] * cosine[i] + x.v[i] * s;
        }
        return y;
    }
};

template <int D>
DEVICE void rope_forward(const RopeParams& p) {
    const Head<D> head(p);
    Four x = head.read(p.qkv, head.raw);
    if (p.q_weight) {
        const float rstd = head.inverse_rms(x, p.eps);
        const Four w = head.weights();
#pragma unroll
        for (int i = 0; i < 4; ++i) x.v[i] = x.v[i] * rstd * w.v[i];
    }
    head.write(p.qk, head.turned, head.rotate(x, 1.0f));
}

template <int D>
DEVICE void rope_backward(const RopeParams& p) {
    const Head<D> head(p);
    Four dx = head.rotate(head.read(p.qk, head.turned), -1.0f);
    if (p.q_weight) {
        const Four x = head.read(p.qkv, head.raw), w = head.weights();
        const float rstd = head.inverse_rms(x, p.eps);
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; ++i) dot = fused(x.v[i], dx.v[i] * w.v[i], dot);
        const float c = head.sum(dot) / static_cast<float>(D) * rstd * rstd;
#pragma unroll
        for (int i = 0; i < 4; ++i) dx.v[i] = rstd * fused(x.v[i], -c, dx.v[i] * w.v[i]);
    }
    head.write(p.dqkv, head.raw, dx);
}

// ---- instances --------------------------------------------------------------------------------------------------

KERNEL(THREADS, 4, rope_forward_d64, RopeParams) { rope_forward<64>(p); }
KERNEL(THREADS, 4, rope_forward_d128, RopeParams) { rope_forward<128>(p); }
KERNEL(THREADS, 4, rope_backward_d64, RopeParams) { rope_backward<64>(p); }
KERNEL(THREADS, 4, rope_backward_d128, RopeParams) { rope_backward<128>(p); }
