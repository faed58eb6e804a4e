// Matrix products of the linear layers (src/ops/linear, src/ops/loss): everything but the adapters' own gradients.
//
//   forward    y_i = [x | s_i] [W_i | B_i]^T + b_i (+ residual)         terms NT, one output for each layer of the group
//   s          s_i = scale_i drop(x) A_i^T                              NT
//   backward   dx = sum ds_i A_i, masked by the dropout, + sum dy_i W_i NN
//   ds         ds_i = scale_i dy_i B_i                                  NN
//   head       logits = x head^T in f32 (NT), dx = dlogits head (NN)
//
// Launch: 256 threads; grid (8 * outputs, ceil(max columns / TILE), ceil(rows / 1024)), TILE = 64, 128 or 256 as its name
// says; shared memory 4 * 64 * (128 + TILE) bytes. One block owns a tile and makes it from beginning to end: no sums
// across blocks, so the bits depend on the shapes alone. bf16 in, f32 accumulation, rounded once on the way out.
#include "../tile/product.cuh"

// One output: `count` terms from `first` on.
struct Output {
    const float* bias;  // [columns] or null
    int first;
    int count;
    int columns;
    int column;  // of the output row
    float scale;
    int reserved;
};

constexpr int MAX_OUTPUTS = 16;
constexpr int MAX_TERMS = 2 * MAX_OUTPUTS;

struct LinearParams {
    Term terms[MAX_TERMS];
    Output outputs[MAX_OUTPUTS];
    void* y;               // [rows, stride], bf16 or f32
    const bf16* residual;  // as y, or null
    int rows;
    int stride;
    int wide;  // whether y is f32
    // Dropout of the terms before `pause`: an element stays when its random word is at least `limit`.
    int pause;
    uint32_t limit;
    float keep;  // 1 / (1 - p)
    uint32_t key[2];
    const uint32_t* clock;
    uint32_t site;
    int reserved;
};
EXPORT_PARAMS(LinearParams, terms, outputs, y, residual, rows, stride, wide, pause, limit, keep, key, clock, site, reserved)
EXPORT_PARAMS(Term, a, b, a_stride, b_stride, depth, reserved)
EXPORT_PARAMS(Output, bias, first, count, columns, column, scale, reserved)

// ---- kernels -------------------------------------------------------------------------------------------------------

// A gradient that passed a dropped input: element i = row * columns + column of the mask, two neighbours at a time.
DEVICE void mask_pair(const LinearParams& p, int columns, int row, int column, float& x, float& y) {
    const size_t element = static_cast<size_t>(row) * columns + column;
    const Words words = philox4x32(
        Words{{static_cast<uint32_t>(element / 4), p.site, load(p.clock), load(p.clock + 1)}}, p.key[0], p.key[1]);
    const int word = static_cast<int>(element % 4);  // 0 or 2: columns are a multiple of 8
    x = (word == 0 ? words.w[0] : words.w[2]) >= p.limit ? x * p.keep : 0.0f;
    y = (word == 0 ? words.w[1] : words.w[3]) >= p.limit ? y * p.keep : 0.0f;
}

// One of the outputs' columns: the sum with all that is added to it.
DEVICE float finished(const LinearParams& p, const Output& o, size_t at, int column, float x) {
    x *= o.scale;
    if (o.bias) x += load(o.bias + column);
    return p.residual ? x + to_float(load(p.residual + at)) : x;
}

// Two neighbours; of an odd number of columns the last one stands alone.
DEVICE void store_pair(const LinearParams& p, const Output& o, int row, int column, float x, float y) {
    const size_t at = static_cast<size_t>(row) * p.stride + o.column + column;
    const bool both = column + 1 < o.columns;
    x = finished(p, o, at, column, x);
    if (both) y = finished(p, o, at + 1, column + 1, y);
    if (p.wide) {
        float* to = static_cast<float*>(p.y) + at;
        store(to, x);
        if (both) store(to + 1, y);
    } else if (both) {
        store(reinterpret_cast<uint32_t*>(static_cast<bf16*>(p.y) + at), pack(x, y));
    } else {
        store(static_cast<bf16*>(p.y) + at, to_bf16(x));
    }
}

// Tiles of rows that are taken together: blocks that run at the same time share what they read of both operands in the
// cache, where row after row all of B would pass by for each.
constexpr int TOGETHER = 8;
EXPORT_CONSTANTS(linear, MAX_OUTPUTS, MAX_TERMS, ROWS, TOGETHER)

template <int COLUMNS, bool TRANSPOSED_B>
DEVICE void linear(const LinearParams& p) {
    const Output& o = p.outputs[block_x() / TOGETHER];
    const int row = (block_z() * TOGETHER + block_x() % TOGETHER) * ROWS, column = block_y() * COLUMNS;
    if (row >= p.rows || column >= o.columns) return;
    Accumulators<COLUMNS> acc;
    const auto mask = [&] {
        each_accumulator(acc, [&](float& x, float& y, int r, int c) {
            mask_pair(p, o.columns, row + r, column + c, x, y);
        });
    };
    accumulate<COLUMNS, TRANSPOSED_B>(acc, SMEM(Ring<COLUMNS>), p.terms + o.first, o.count, row, p.rows, column, o.columns,
                                      p.pause, mask);
    each_accumulator(acc, [&](float& x, float& y, int r, int c) {
        if (row + r < p.rows && column + c < o.columns) store_pair(p, o, row + r, column + c, x, y);
    });
}

// ---- instances -----------------------------------------------------------------------------------------------------

KERNEL(THREADS, 1, linear_nt_64, LinearParams) { linear<64, true>(p); }
KERNEL(THREADS, 1, linear_nt_128, LinearParams) { linear<128, true>(p); }
KERNEL(THREADS, 1, linear_nt_256, LinearParams) { linear<256, true>(p); }
KERNEL(THREADS, 1, linear_nn_64, LinearParams) { linear<64, false>(p); }
KERNEL(THREADS, 1, linear_nn_128, LinearParams) { linear<128, false>(p); }
KERNEL(THREADS, 1, linear_nn_256, LinearParams) { linear<256, false>(p); }
