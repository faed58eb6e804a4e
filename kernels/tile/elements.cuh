// Eight neighbouring elements at a time: one 16-byte access of bf16, two of f32.
#pragma once

#include "../prim/prim.cuh"

struct Eight {
    float v[8];
};

DEVICE Eight load_eight(const bf16* p) {
    const u128 raw = load_128(p);
    Eight r;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        r.v[2 * i] = low(raw.w[i]);
        r.v[2 * i + 1] = high(raw.w[i]);
    }
    return r;
}

DEVICE Eight load_eight(const float* p) {
    const u128 a = load_128(p), b = load_128(p + 4);
    Eight r;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        r.v[i] = float_of(a.w[i]);
        r.v[4 + i] = float_of(b.w[i]);
    }
    return r;
}

DEVICE void store_eight(bf16* p, const Eight& x) {
    u128 raw;
#pragma unroll
    for (int i = 0; i < 4; ++i) raw.w[i] = pack(x.v[2 * i], x.v[2 * i + 1]);
    store_128(p, raw);
}

// The thread's place among all of the launch's, for kernels that give each thread one piece.
DEVICE int64_t thread_place(int threads) { return static_cast<int64_t>(block_x()) * threads + thread_index(); }
