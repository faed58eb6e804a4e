// SwiGLU (Shazeer 2020): out = silu(gate) * up, and the gradients of gate and up in their place.
//
//   s = sigmoid(gate);  dgate = dout up s (1 + gate (1 - s)),  dup = dout gate s
//
// Owners   A thread owns eight neighbours of a row.
// Launch   256 threads, grid (ceil(rows * width / 8 / 256), 1, 1), no shared memory. `width` is a multiple of 8.

#include "../tile/elements.cuh"

struct SwigluParams {
    bf16* gate_up;  // [rows, 2 width]; the backward pass replaces it by its gradient
    bf16* out;      // [rows, width]: the result, or its gradient
    int rows;
    int width;
};
EXPORT_PARAMS(SwigluParams, gate_up, out, rows, width)

// ---- kernels ----------------------------------------------------------------------------------------------------

constexpr int THREADS = 256;
EXPORT_CONSTANTS(swiglu, THREADS)

// Where a thread's eight elements are; false beyond the last.
DEVICE bool place_of_eight(const SwigluParams& p, size_t& gate, size_t& out) {
    const int64_t pieces = p.width / 8, place = thread_place(THREADS), row = place / pieces;
    gate = static_cast<size_t>(row) * 2 * p.width + place % pieces * 8;
    out = static_cast<size_t>(place) * 8;
    return row < p.rows;
}

// ---- instances --------------------------------------------------------------------------------------------------

KERNEL(THREADS, 4, swiglu_forward, SwigluParams) {
    size_t gate, out;
    if (!place_of_eight(p, gate, out)) return;
    Eight g = load_eight(p.gate_up + gate);
    const Eight u = load_eight(p.gate_up + gate + p.width);
#pragma unroll
    for (int i = 0; i < 8; ++i) g.v[i] = g.v[i] * sigmoid(g.v[i]) * u.v[i];
    store_eight(p.out + out, g);
}

KERNEL(THREADS, 4, swiglu_backward, SwigluParams) {
    size_t gate, out;
    if (!place_of_eight(p, gate, out)) return;
    Eight g = load_eight(p.gate_up + gate), u = load_eight(p.gate_up + gate + p.width);
    const Eight dy = load_eight(p.out + out);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float s = sigmoid(g.v[i]), up = u.v[i];
        u.v[i] = dy.v[i] * (g.v[i] * s);
        g.v[i] = dy.v[i] * up * (s * fused(g.v[i], 1.0f - s, 1.0f));
    }
    store_eight(p.gate_up + gate, g);
    store_eight(p.gate_up + gate + p.width, u);
}
