// Which scores of a tile are hidden: those of keys after their query.
#pragma once

#include "../prim/prim.cuh"

// Row and column, within a warp's accumulators, of element `i` of the 16x8 product [m][n].
DEVICE int accumulator_row(int m, int i) { return m * 16 + i / 2 * 8 + lane() / 4; }
DEVICE int accumulator_column(int n, int i) { return n * 8 + lane() % 4 * 2 + i % 2; }

// Sets `value` where a key comes after its query: rows are queries from `query` on, columns keys from `key` on.
// Tiles whose last key is not after the first query need no mask. One difference is compared with constants, as
// positions of all rows and columns would not fit into the registers beside the accumulators.
template <int M, int N>
DEVICE void hide_later_keys(float (&scores)[M][N][4], int query, int key, float value) {
    const int ahead = key + accumulator_column(0, 0) - query - accumulator_row(0, 0);
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (ahead > m * 16 + i / 2 * 8 - n * 8 - i % 2) scores[m][n][i] = value;
            }
}

// Sets 0 where a key comes after its query: rows are keys from `key` on, columns queries from `query` on.
template <int M, int N>
DEVICE void hide_earlier_queries(float (&weights)[M][N][4], int key, int query) {
    const int ahead = key + accumulator_row(0, 0) - query - accumulator_column(0, 0);
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (ahead > n * 8 + i % 2 - m * 16 - i / 2 * 8) weights[m][n][i] = 0.0f;
            }
}
