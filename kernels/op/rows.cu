// Whole rows moved by index: the embedding, the scored rows, and the way back.
//
// Owners   A thread owns eight neighbours of a written row. Indices of a scatter are distinct.
// Launch   256 threads, grid (ceil(rows * width / 8 / 256), 1, 1), no shared memory. `width` is a multiple of 8.

#include "../tile/elements.cuh"

struct RowsParams {
    bf16* out;
    const bf16* x;
    const uint32_t* index;  // [rows]
    int rows;
    int width;
};
EXPORT_PARAMS(RowsParams, out, x, index, rows, width)

// ---- kernels ----------------------------------------------------------------------------------------------------

constexpr int THREADS = 256;
EXPORT_CONSTANTS(rows, THREADS)

// Places of a thread's piece: in the rows that lie one after the other, and in those the index names.
DEVICE bool place_of_piece(const RowsParams& p, size_t& dense, size_t& indexed) {
    const int64_t pieces = p.width / 8, place = thread_place(THREADS), row = place / pieces;
    if (row >= p.rows) return false;
    dense = static_cast<size_t>(place) * 8;
    indexed = static_cast<size_t>(load(p.index + row)) * p.width + place % pieces * 8;
    return true;
}

// ---- instances --------------------------------------------------------------------------------------------------

KERNEL(THREADS, 4, rows_gather, RowsParams) {
    size_t dense, indexed;
    if (place_of_piece(p, dense, indexed)) store_128(p.out + dense, load_128(p.x + indexed));
}

KERNEL(THREADS, 4, rows_scatter, RowsParams) {
    size_t dense, indexed;
    if (place_of_piece(p, dense, indexed)) store_128(p.out + indexed, load_128(p.x + dense));
}
