// A tile of D = sum over terms of A B, for tensor cores of sm_80 and later: cp.async brings slices of 32 of the inner
// dimension through a ring of stages, ldmatrix and mma.sync consume them, the accumulators stay in registers.
//
// A block of 256 threads makes 128 rows by COLUMNS columns; its 8 warps stand 2 by 4, each making 64 rows by COLUMNS / 4.
// The terms follow each other in one loop, so LoRA's product is some more slices of the same accumulation. The order of
// all sums is that of the slices, whatever runs beside: one block makes a tile from beginning to end.
//
// In shared memory 16-byte chunks are permuted so that the eight rows an ldmatrix reads lie in different banks.
#pragma once

#include "../prim/prim.cuh"

// One product of the sum. Sizes and strides in elements, all multiples of 8; pointers on 16 bytes.
struct Term {
    const bf16* a;  // [rows, depth], rows `a_stride` apart
    const bf16* b;  // [columns, depth] (NT) or [depth, columns] (NN), rows `b_stride` apart
    int a_stride;
    int b_stride;
    int depth;
    int reserved;
};

constexpr int ROWS = 128;
constexpr int SLICE = 32;
constexpr int STAGES = 4;
constexpr int THREADS = 256;
constexpr int CHUNK = 8;  // elements of 16 bytes

template <int COLUMNS>
struct Stage {
    bf16 a[ROWS * SLICE];
    bf16 b[COLUMNS * SLICE];
};

template <int COLUMNS>
struct Ring {
    Stage<COLUMNS> stage[STAGES];
};

// Place of chunk `chunk` of row `row`, rows of 32 elements: two rows fill the 128 bytes of all banks.
DEVICE int narrow_place(int row, int chunk) { return row * SLICE + (chunk ^ ((row >> 1) & 3)) * CHUNK; }

// The same for rows of COLUMNS elements, at least 64.
template <int COLUMNS>
DEVICE int wide_place(int row, int chunk) {
    return row * COLUMNS + (chunk ^ (row & 7)) * CHUNK;
}

// Walks through the slices of the terms.
struct Cursor {
    int term;
    int depth;  // of the next slice's beginning
};

DEVICE void advance(Cursor& c, const Term* terms) {
    c.depth += SLICE;
    if (c.depth >= terms[c.term].depth) {
        c.depth = 0;
        ++c.term;
    }
}

// Starts copying the slice at `c`; what lies beyond the matrices becomes zero.
template <int COLUMNS, bool TRANSPOSED_B>
DEVICE void load_slice(Stage<COLUMNS>& stage, const Term& t, int depth, int row, int rows, int column, int columns) {
    const int thread = thread_index();
#pragma unroll
    for (int i = thread; i < ROWS * SLICE / CHUNK; i += THREADS) {
        const int r = i / 4, chunk = i % 4, k = depth + chunk * CHUNK;
        const bool valid = row + r < rows && k < t.depth;
        const bf16* from = t.a + static_cast<size_t>(valid ? row + r : 0) * t.a_stride + (valid ? k : 0);
        cp_async_16(&stage.a[narrow_place(r, chunk)], from, valid);
    }
#pragma unroll
    for (int i = thread; i < COLUMNS * SLICE / CHUNK; i += THREADS) {
        if (TRANSPOSED_B) {
            const int n = i / 4, chunk = i % 4, k = depth + chunk * CHUNK;
            const bool valid = column + n < columns && k < t.depth;
            const bf16* from = t.b + static_cast<size_t>(valid ? column + n : 0) * t.b_stride + (valid ? k : 0);
            cp_async_16(&stage.b[narrow_place(n, chunk)], from, valid);
        } else {
            const int r = i / (COLUMNS / CHUNK), chunk = i % (COLUMNS / CHUNK);
            const int k = depth + r, n = column + chunk * CHUNK;
            const bool valid = k < t.depth && n < columns;
            const bf16* from = t.b + static_cast<size_t>(valid ? k : 0) * t.b_stride + (valid ? n : 0);
            cp_async_16(&stage.b[wide_place<COLUMNS>(r, chunk)], from, valid);
        }
    }
}

// Accumulators of a warp: 4 tiles of 16 rows by COLUMNS / 32 tiles of 8 columns, as mma_16816 has them.
template <int COLUMNS>
struct Accumulators {
    static constexpr int WIDTH = COLUMNS / 32;
    float d[4][WIDTH][4];
};

// Calls f(value, row, column) for each accumulator, with its place in the block's tile.
template <int COLUMNS, typename F>
DEVICE void each_accumulator(Accumulators<COLUMNS>& acc, F f) {
    const int first_row = warp() / 4 * 64 + lane() / 4, first_column = warp() % 4 * (COLUMNS / 4) + lane() % 4 * 2;
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int n = 0; n < Accumulators<COLUMNS>::WIDTH; ++n) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                f(acc.d[m][n][2 * half], acc.d[m][n][2 * half + 1], first_row + 16 * m + 8 * half, first_column + 8 * n);
            }
        }
    }
}

template <int COLUMNS, bool TRANSPOSED_B>
DEVICE void multiply_slice(Accumulators<COLUMNS>& acc, const Stage<COLUMNS>& stage) {
    const int row = warp() / 4 * 64, column = warp() % 4 * (COLUMNS / 4), l = lane();
#pragma unroll
    for (int k = 0; k < SLICE; k += 16) {
        uint32_t a[4][4];
#pragma unroll
        for (int m = 0; m < 4; ++m) {
            // Matrices: rows 0-7 and 8-15 of the first 8 columns, then of the next 8.
            ldmatrix_x4(a[m], &stage.a[narrow_place(row + 16 * m + l % 16, k / CHUNK + l / 16)]);
        }
#pragma unroll
        for (int n = 0; n < Accumulators<COLUMNS>::WIDTH; n += 2) {
            uint32_t b[4];
            if (TRANSPOSED_B) {
                // Matrices: columns 0-7 at depths 0-7 and 8-15, then columns 8-15.
                ldmatrix_x4(b, &stage.b[narrow_place(column + 8 * n + l % 8 + l / 16 * 8, k / CHUNK + l / 8 % 2)]);
            } else {
                ldmatrix_x4_trans(b, &stage.b[wide_place<COLUMNS>(k + l % 16, (column + 8 * n) / CHUNK + l / 16)]);
            }
            const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < 4; ++m) {
                mma_16816(acc.d[m][n], a[m], left);
                mma_16816(acc.d[m][n + 1], a[m], right);
            }
        }
    }
}

// acc = the sum of `count` terms for the tile at (row, column). Before the slices of term `pause` (none if it is not below
// `count`) `paused` is called.
template <int COLUMNS, bool TRANSPOSED_B, typename F>
DEVICE void accumulate(Accumulators<COLUMNS>& acc, Ring<COLUMNS>& ring, const Term* terms, int count, int row, int rows,
                       int column, int columns, int pause, F paused) {
    each_accumulator(acc, [](float& x, float& y, int, int) { x = y = 0.0f; });
    Cursor next = {0, 0}, now = {0, 0};
    const auto load = [&](int step) {
        if (next.term < count) {
            load_slice<COLUMNS, TRANSPOSED_B>(ring.stage[step % STAGES], terms[next.term], next.depth, row, rows, column,
                                              columns);
            advance(next, terms);
        }
        cp_async_commit();  // also an empty group, so that the count of groups stays that of the steps
    };
    // A warp whose part lies beyond the matrix only helps copying: of an adapter's few columns that is three in four.
    const bool active = row + warp() / 4 * 64 < rows && column + warp() % 4 * (COLUMNS / 4) < columns;
    for (int step = 0; step < STAGES - 1; ++step) load(step);
    for (int step = 0; now.term < count; ++step) {
        cp_async_wait<STAGES - 2>();
        // Everybody's copies of this slice are there, and nobody reads the stage that is loaded next any more.
        block_sync();
        if (now.term == pause && now.depth == 0) paused();
        if (active) multiply_slice<COLUMNS, TRANSPOSED_B>(acc, ring.stage[step % STAGES]);
        load(step + STAGES - 1);
        advance(now, terms);
    }
}
