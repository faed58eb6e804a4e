// What LoRA needs beside the products of linear.cu: bf16 copies of the matrices, dropped inputs, and their gradients.
//
//   adapters_pack            A [width, in], B [out, width] in bf16 from the flat f32 parameters, zero beyond the rank
//   adapters_drop            out = drop(x): element i stays when its random word is at least `limit`
//   adapters_gradient_parts  parts[split] = left^T right over the split's tokens (dB = dy^T s, dA^T = drop(x)^T ds)
//   adapters_gradient_sums   gradient += the parts, in the order of the splits
//
// Owners   pack: a thread owns eight neighbours of a copy. drop: eight neighbours. parts: a block owns 64 by 64 elements
//          of one split's part, a warp 16 rows of them. sums: a thread owns an element.
// Order    A split's tokens in order, sixteen at a time as the tensor cores add them; then the splits in order. Splits
//          are a function of the number of tokens.
// Launch   pack: 256 threads, grid (any, matrices, 1). drop: 256 threads, grid (ceil(count / 8 / 256), 1, 1).
//          parts: 128 threads, grid (tiles of the largest job, splits, jobs), GradientShared: 49152 bytes.
//          sums: 256 threads, grid (ceil(elements of the largest job / 256), 1, jobs).

#include "../tile/elements.cuh"
#include "../tile/rows.cuh"

struct PackParams {
    bf16* packed;
    const float* params;
    const uint32_t* table;  // for each matrix: place in params, in packed, rows, columns, those of the copy
};
EXPORT_PARAMS(PackParams, packed, params, table)

struct DropParams {
    bf16* out;
    const bf16* x;
    const uint32_t* clock;
    uint64_t count;
    uint32_t key[2];
    uint32_t site;
    uint32_t limit;
    float keep;
    int reserved;
};
EXPORT_PARAMS(DropParams, out, x, clock, count, key, site, limit, keep, reserved)

struct GradientJob {
    const bf16* left;   // [tokens, rows]
    const bf16* right;  // [tokens, columns]
    float* parts;       // [splits, rows, columns]
    float* gradient;    // [rows, rank], transposed: [rank, rows]
    int left_stride;
    int right_stride;
    int rows;
    int columns;
    int rank;
    int transposed;
};
EXPORT_PARAMS(GradientJob, left, right, parts, gradient, left_stride, right_stride, rows, columns, rank, transposed)

constexpr int MAX_JOBS = 32;

struct GradientParams {
    GradientJob jobs[MAX_JOBS];
    int tokens;
    int split;  // tokens of a part
};
EXPORT_PARAMS(GradientParams, jobs, tokens, split)

// ---- copies and dropout -----------------------------------------------------------------------------------------

constexpr int THREADS = 256;
constexpr int PACK_COLUMNS = 6;  // integers of an entry of the table

KERNEL(THREADS, 4, adapters_pack, PackParams) {
    const uint32_t* entry = p.table + PACK_COLUMNS * block_y();
    const float* from = p.params + load(entry);
    bf16* to = p.packed + load(entry + 1);
    const int rows = static_cast<int>(load(entry + 2)), columns = static_cast<int>(load(entry + 3));
    const int all_rows = static_cast<int>(load(entry + 4)), pieces = static_cast<int>(load(entry + 5)) / 8;
    for (int64_t i = thread_place(THREADS); i < static_cast<int64_t>(all_rows) * pieces; i += grid_x() * THREADS) {
        const int row = static_cast<int>(i / pieces), column = static_cast<int>(i % pieces) * 8;
        Eight x;
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            const bool inside = row < rows && column + k < columns;
            x.v[k] = inside ? load(from + static_cast<size_t>(row) * columns + column + k) : 0.0f;
        }
        store_eight(to + i * 8, x);
    }
}

KERNEL(THREADS, 4, adapters_drop, DropParams) {
    const uint64_t first = static_cast<uint64_t>(thread_place(THREADS)) * 8;
    if (first >= p.count) return;
    Eight x = load_eight(p.x + first);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint32_t counter = static_cast<uint32_t>(first / 4) + half;
        const Words words = philox4x32(Words{{counter, p.site, load(p.clock), load(p.clock + 1)}}, p.key[0], p.key[1]);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            float& value = x.v[half * 4 + k];
            value = words.w[k] >= p.limit ? value * p.keep : 0.0f;
        }
    }
    store_eight(p.out + first, x);
}

// ---- gradients --------------------------------------------------------------------------------------------------

constexpr int TILE = 64;
constexpr int TOKENS = 64;  // of a stage
constexpr int STAGES = 3;
constexpr int PART_THREADS = 128;
EXPORT_CONSTANTS(linear_adapters, MAX_JOBS, TILE, THREADS, PACK_COLUMNS)

struct GradientShared {
    struct Stage {
        RowTile<TOKENS, TILE> left, right;
    } stages[STAGES];
};

// Starts copying tokens `first ..` of the 64 columns from `column` on; zero beyond `end` and `columns`.
DEVICE void load_columns(RowTile<TOKENS, TILE>& tile, const bf16* source, int stride, int first, int end, int column,
                         int columns) {
    const int chunk = thread_index() % 8, at = column + chunk * 8;
#pragma unroll
    for (int i = thread_index() / 8; i < TOKENS; i += PART_THREADS / 8) {
        const bool valid = first + i < end && at < columns;
        const size_t from = valid ? static_cast<size_t>(first + i) * stride + at : 0;
        cp_async_16(tile.at(i, chunk), source + from, valid);
    }
}

// acc += left^T right for the warp's sixteen columns of left; of right the first `eights` eights.
DEVICE void multiply_tokens(float (&acc)[TILE / 8][4], GradientShared::Stage& stage, int eights) {
    const int l = lane(), column = warp() * 16;
#pragma unroll
    for (int k = 0; k < TOKENS; k += 16) {
        uint32_t a[4];
        // Matrices: columns 0-7 and 8-15 of the first eight tokens, then of the next; transposed, they are rows.
        ldmatrix_x4_trans(a, stage.left.at(k + l % 8 + l / 16 * 8, column / 8 + l / 8 % 2));
#pragma unroll
        for (int n = 0; n < TILE / 8; n += 2) {
            if (n >= eights) continue;
            uint32_t b[4];
            ldmatrix_x4_trans(b, stage.right.at(k + l % 16, n + l / 16));
            const uint32_t even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
            mma_16816(acc[n], a, even);
            mma_16816(acc[n + 1], a, odd);
        }
    }
}

KERNEL(PART_THREADS, 4, adapters_gradient_parts, GradientParams) {
    auto& shared = SMEM(GradientShared);
    const GradientJob& job = p.jobs[block_z()];
    const int across = (job.columns + TILE - 1) / TILE;
    const int row = block_x() / across * TILE, column = block_x() % across * TILE;
    if (row >= job.rows) return;
    const int first = block_y() * p.split, end = first + p.split < p.tokens ? first + p.split : p.tokens;
    const int steps = (end - first + TOKENS - 1) / TOKENS;
    const int eights = (job.columns - column + 7) / 8;
    const auto load_stage = [&](int step) {
        if (step < steps) {
            auto& stage = shared.stages[step % STAGES];
            load_columns(stage.left, job.left, job.left_stride, first + step * TOKENS, end, row, job.rows);
            load_columns(stage.right, job.right, job.right_stride, first + step * TOKENS, end, column, job.columns);
        }
        cp_async_commit();  // also an empty group, so that the count of groups stays that of the steps
    };
    float acc[TILE / 8][4] = {};
    for (int step = 0; step < STAGES - 1; ++step) load_stage(step);
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<STAGES - 2>();
        // Everybody's copies of this stage are there, and nobody reads the one that is loaded next any more.
        block_sync();
        multiply_tokens(acc, shared.stages[step % STAGES], eights);
        load_stage(step + STAGES - 1);
    }
    float* part = job.parts + static_cast<size_t>(block_y()) * job.rows * job.columns;
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int r = row + warp() * 16 + lane() / 4 + i / 2 * 8, c = column + n * 8 + lane() % 4 * 2 + i % 2;
            if (r < job.rows && c < job.columns) store(part + static_cast<size_t>(r) * job.columns + c, acc[n][i]);
        }
}

KERNEL(THREADS, 4, adapters_gradient_sums, GradientParams) {
    const GradientJob& job = p.jobs[block_z()];
    const int64_t at = thread_place(THREADS), size = static_cast<int64_t>(job.rows) * job.columns;
    if (at >= static_cast<int64_t>(job.rows) * job.rank) return;
    const int64_t row = job.transposed ? at % job.rows : at / job.rank;
    const int64_t column = job.transposed ? at / job.rows : at % job.rank;
    const float* part = job.parts + row * job.columns + column;
    float sum = 0.0f;
    for (int first = 0; first < p.tokens; first += p.split, part += size) sum += load(part);
    store(job.gradient + at, load(job.gradient + at) + sum);
}
