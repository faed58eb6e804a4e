// A running softmax over tiles of scores (Milakov & Gimelshein 2018), rows spread over the four lanes of a quad.
//
// Powers of two instead of e: the factor log2(e) goes into the scale that each score is multiplied with anyway.
// The exponential is a polynomial and not the hardware's approximation, so the emulator and every GPU agree.
#pragma once

#include "mask.cuh"

constexpr float LOG2_E = 1.44269504f;
constexpr float MINUS_INFINITY = -__builtin_inff();

// 2^x for x <= 0 and little more, to 1.7e-7 of itself; 0 below 2^-125, as for -infinity; NaN stays NaN.
//
// x = n + r with |r| <= 1/2; 2^r by the polynomial of degree 5 whose largest relative error is least among those
// that are 1 at 0 (9.2e-8), so a weight of one is exact.
DEVICE float exp2_weight(float x) {
    constexpr float ROUND = 12582912.0f;  // adding it rounds to an integer, which is then in the lowest bits
    const float shifted = x + ROUND;
    const float r = x - (shifted - ROUND);
    float p = 0.0013264727f;
    p = fused(p, r, 0.009671513f);
    p = fused(p, r, 0.055507336f);
    p = fused(p, r, 0.24022242f);
    p = fused(p, r, 0.693147f);
    p = fused(p, r, 1.0f);
    const float power = float_of((bits_of(shifted) << 23) + 0x3f800000u);
    return x < -125.0f ? 0.0f : p * power;
}

DEVICE float quad_max(float v) {
    const float other = shuffle_xor(v, 1), larger = other > v ? other : v;
    const float across = shuffle_xor(larger, 2);
    return across > larger ? across : larger;
}

DEVICE float quad_sum(float v) {
    v += shuffle_xor(v, 1);
    return v + shuffle_xor(v, 2);
}

// State of M * 16 rows: each lane has those of its accumulators, two per sixteen. The maximum is of unscaled scores
// and the same in all lanes of a quad; the sum is the lane's own part until `finish`.
template <int M>
struct RunningSoftmax {
    float max[M][2], sum[M][2];

    METHOD void start() {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                max[m][half] = MINUS_INFINITY;
                sum[m][half] = 0.0f;
            }
    }

    // Replaces scores by their unnormalised weights 2^(scale * (score - max)) and brings `acc`, the weighted sums
    // so far, up to the new maximum. Each row must have a visible score in its first tile: -infinity is no maximum.
    template <int N, int WIDTH>
    METHOD void weigh(float (&scores)[M][N][4], float (&acc)[M][WIDTH][4], float scale) {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float top = max[m][half];
#pragma unroll
                for (int n = 0; n < N; ++n)
#pragma unroll
                    for (int i = half * 2; i < half * 2 + 2; ++i)
                        top = scores[m][n][i] > top ? scores[m][n][i] : top;
                top = quad_max(top);
                const float factor = exp2_weight((max[m][half] - top) * scale);
                max[m][half] = top;
                sum[m][half] *= factor;
#pragma unroll
                for (int n = 0; n < WIDTH; ++n)
#pragma unroll
                    for (int i = half * 2; i < half * 2 + 2; ++i) acc[m][n][i] *= factor;
            }
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int n = 0; n < N; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    scores[m][n][i] = exp2_weight(fused(scores[m][n][i], scale, -max[m][i / 2] * scale));
                    sum[m][i / 2] += scores[m][n][i];
                }
    }

    // Completes the sums and divides the rows of `acc` by them.
    template <int WIDTH>
    METHOD void finish(float (&acc)[M][WIDTH][4]) {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                sum[m][half] = quad_sum(sum[m][half]);
                const float factor = 1.0f / sum[m][half];
#pragma unroll
                for (int n = 0; n < WIDTH; ++n)
#pragma unroll
                    for (int i = half * 2; i < half * 2 + 2; ++i) acc[m][n][i] *= factor;
            }
    }
};
