// Rows of one head in shared memory, and the products of a warp with them (mma.sync m16n8k16).
//
// A tile holds ROWS rows of D bf16 values. Its 16-byte chunks are permuted within each row, chunk ^ (row mod 8):
// the eight rows that ldmatrix reads at once are a multiple of 128 bytes apart and would otherwise share their
// banks; so permuted they, and the eight rows a warp writes at once, lie in different ones. Fragment layouts are
// those of the PTX ISA, "Matrix fragments for mma.m16n8k16".
#pragma once

#include "../prim/prim.cuh"

template <int ROWS, int D>
struct alignas(256) RowTile {
    static constexpr int ROW_BYTES = 2 * D;
    static_assert(ROW_BYTES == 128 || ROW_BYTES == 256, "rows divide the alignment, so chunks are exchanged bit by bit");
    static_assert(D % 64 == 0, "a row is a whole number of bank sweeps, so chunk ^ (row mod 8) stays within it");
    static_assert(ROWS % 16 == 0, "rows come in the sixteens of a matrix fragment");
    uint32_t pairs[ROWS * D / 2];

    // The eight values, four pairs, from column 8 * chunk on.
    METHOD uint32_t* at(int row, int chunk) { return pairs + row * (D / 2) + ((chunk ^ (row & 7)) << 2); }
};

// A lane's place in shared memory, in bytes, and back. Within a row the chunk's number is exchanged by exclusive or, so
// the fragments of one lane differ from its first by a constant: ldmatrix takes an offset that is one instruction away,
// where a full address for each would be kept in registers that the accumulators need.
DEVICE int place_of(const void* p) { return static_cast<int>(static_cast<const unsigned char*>(p) - &SMEM(unsigned char)); }
DEVICE const void* at_place(int place) { return &SMEM(unsigned char) + place; }

// A thread's share of copying a segment's rows into tiles, ROWS at a time. The segment's row 0 is at `source`, rows are
// `stride` values apart; rows from `len` on are not the segment's and become zero, so that no result depends on what
// lies beside it. A cursor that moves on, rather than an address from the tile's number, for the registers' sake.
template <int THREADS, int ROWS, int D>
struct RowCursor {
    static constexpr int CHUNKS = D / 8, ROWS_AT_ONCE = THREADS / CHUNKS;
    static_assert(ROWS % ROWS_AT_ONCE == 0, "every thread copies equally many chunks");
    const bf16* source;
    uint32_t next;  // value, counted from `source`: half the registers of an address, and a segment has fewer than 2^32
    int left;  // rows of the segment from the thread's next one on

    METHOD RowCursor(const bf16* source, int stride, int first, int len) : source(source) {
        const int row = first + thread_index() / CHUNKS;
        next = static_cast<uint32_t>(row) * stride + thread_index() % CHUNKS * 8;
        left = len - row;
    }

    // Starts copying the next rows.
    METHOD void load(RowTile<ROWS, D>& tile, int stride) {
#pragma unroll 1
        for (int i = 0; i < ROWS; i += ROWS_AT_ONCE) {
            cp_async_16(tile.at(thread_index() / CHUNKS + i, thread_index() % CHUNKS), source + next, i < left);
            next += static_cast<uint32_t>(ROWS_AT_ONCE) * stride;
        }
        left -= ROWS;
    }
};

// Starts copying rows `first ..` of a segment; see RowCursor.
template <int THREADS, int ROWS, int D>
DEVICE void load_rows(RowTile<ROWS, D>& tile, const bf16* source, int stride, int first, int len) {
    RowCursor<THREADS, ROWS, D>(source, stride, first, len).load(tile, stride);
}

// acc = A[row ..][D] * B[all rows][D]^T. A's rows in sixteens, B's in eights: acc[m][n] is their 16x8 product.
template <int M, int N, int A_ROWS, int D>
DEVICE void multiply_rows(float (&acc)[M][N][4], RowTile<A_ROWS, D>& a, int row, RowTile<N * 8, D>& b) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[m][n][i] = 0.0f;
    const int a_lane = place_of(a.at(row + (lane() & 15), lane() >> 4));
    const int b_lane = place_of(b.at((lane() & 7) + (lane() >> 4) * 8, lane() >> 3 & 1));
#pragma unroll 2
    for (int chunk = 0; chunk < D / 8; chunk += 2) {
        uint32_t left[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) ldmatrix_x4(left[m], at_place((a_lane ^ chunk * 16) + m * 16 * b.ROW_BYTES));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t right[4];
            ldmatrix_x4(right, at_place((b_lane ^ chunk * 16) + n * 8 * b.ROW_BYTES));
            const uint32_t even[2] = {right[0], right[1]}, odd[2] = {right[2], right[3]};
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma_16816(acc[m][n], left[m], even);
                mma_16816(acc[m][n + 1], left[m], odd);
            }
        }
    }
}

// acc += weights * B, where weights[m][k] is the result of a product with B's rows: an accumulator holds just the
// elements the left operand of the next product wants, so the weights, rounded to bf16, never leave the registers.
template <int M, int K, int N>
DEVICE void multiply_weights(float (&acc)[M][N][4], const float (&weights)[M][K][4], RowTile<K * 8, N * 8>& b) {
    const int b_lane = place_of(b.at(lane() & 15, lane() >> 4));
#pragma unroll
    for (int k = 0; k < K; k += 2) {
        uint32_t left[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float(&pair)[4] = weights[m][k + i / 2];
                left[m][i] = pack(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
            }
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t right[4];
            ldmatrix_x4_trans(right, at_place((b_lane ^ n * 16) + k * 8 * b.ROW_BYTES));
            const uint32_t even[2] = {right[0], right[1]}, odd[2] = {right[2], right[3]};
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma_16816(acc[m][n], left[m], even);
                mma_16816(acc[m][n + 1], left[m], odd);
            }
        }
    }
}

// Writes a warp's M * 16 rows, `row ..` of the block's, to rows `first + row ..` of a segment whose row 0 is at
// `to`, those below `len`; in 16-byte stores, by way of the same rows of `tile`, which nobody else may be using.
template <int M, int N, int ROWS>
DEVICE void store_rows(bf16* to, int stride, int first, int len, const float (&acc)[M][N][4],
                       RowTile<ROWS, N * 8>& tile, int row) {
    // The rows were read by other lanes, by ldmatrix.
    // Unseen: one instruction of the whole warp, here and on every GPU so far; tools that look for races know better.
    warp_sync();
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint32_t* pairs = tile.at(row + m * 16 + half * 8 + lane() / 4, n);
                pairs[lane() % 4] = pack(acc[m][n][half * 2], acc[m][n][half * 2 + 1]);
            }
    warp_sync();
#pragma unroll
    for (int i = 0; i < M * 16 * N / 32; ++i) {
        const int place = i * 32 + lane();
        const int at = row + place / N, chunk = place % N;
        if (first + at < len) {
            store_128(to + static_cast<size_t>(first + at) * stride + chunk * 8, load_128(tile.at(at, chunk)));
        }
    }
}
