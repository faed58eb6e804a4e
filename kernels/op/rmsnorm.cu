// RMSNorm (Zhang & Sennrich 2019): y = x / sqrt(mean(x^2) + eps) * w, and its gradient for a frozen w.
//
//   rstd = 1 / sqrt(mean(x^2) + eps)
//   dx  += rstd (dy w - c x),  c = rstd^2 mean(x dy w)
//
// Owners   A warp owns a row; its lanes take eight neighbours at a time, 256 apart. The row is read twice, the second
//          time from the cache.
// Order    Each lane's sum in the order of its elements, f32, then the warp's tree: a function of the row alone.
// Launch   256 threads, grid (ceil(rows / 8), 1, 1), no shared memory. `dim` is a multiple of 8, rows start at
//          multiples of 16 bytes.

#include "../tile/elements.cuh"

struct RmsNormForward {
    bf16* y;
    float* rstd;
    const bf16* x;
    const float* weight;
    int rows;
    int dim;
    float eps;
    int given;  // rstd is read, not computed: the same bits again
};
EXPORT_PARAMS(RmsNormForward, y, rstd, x, weight, rows, dim, eps, given)

struct RmsNormBackward {
    bf16* dx;
    const bf16* x;
    const bf16* dy;
    const float* rstd;
    const float* weight;
    int rows;
    int dim;
};
EXPORT_PARAMS(RmsNormBackward, dx, x, dy, rstd, weight, rows, dim)

// ---- kernels ----------------------------------------------------------------------------------------------------

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
EXPORT_CONSTANTS(rmsnorm, WARPS)
constexpr int STEP = 32 * 8;

DEVICE float inverse_rms(const bf16* x, int dim, float eps) {
    float sum = 0.0f;
    for (int i = lane() * 8; i < dim; i += STEP) {
        const Eight a = load_eight(x + i);
#pragma unroll
        for (int k = 0; k < 8; ++k) sum = fused(a.v[k], a.v[k], sum);
    }
    return 1.0f / square_root(warp_sum(sum) / static_cast<float>(dim) + eps);
}

// ---- instances --------------------------------------------------------------------------------------------------

KERNEL(THREADS, 4, rmsnorm_forward, RmsNormForward) {
    const int row = block_x() * WARPS + warp();
    if (row >= p.rows) return;
    const size_t first = static_cast<size_t>(row) * p.dim;
    const float rstd = p.given ? load(p.rstd + row) : inverse_rms(p.x + first, p.dim, p.eps);
    if (!p.given && lane() == 0) store(p.rstd + row, rstd);
    for (int i = lane() * 8; i < p.dim; i += STEP) {
        Eight x = load_eight(p.x + first + i);
        const Eight w = load_eight(p.weight + i);
#pragma unroll
        for (int k = 0; k < 8; ++k) x.v[k] = x.v[k] * rstd * w.v[k];
        store_eight(p.y + first + i, x);
    }
}

KERNEL(THREADS, 4, rmsnorm_backward, RmsNormBackward) {
    const int row = block_x() * WARPS + warp();
    if (row >= p.rows) return;
    const size_t first = static_cast<size_t>(row) * p.dim;
    const float rstd = load(p.rstd + row);
    float dot = 0.0f;
    for (int i = lane() * 8; i < p.dim; i += STEP) {
        const Eight x = load_eight(p.x + first + i), dy = load_eight(p.dy + first + i), w = load_eight(p.weight + i);
#pragma unroll
        for (int k = 0; k < 8; ++k) dot = fused(x.v[k], dy.v[k] * w.v[k], dot);
    }
    const float c = warp_sum(dot) / static_cast<float>(p.dim) * rstd * rstd;
    for (int i = lane() * 8; i < p.dim; i += STEP) {
        const Eight x = load_eight(p.x + first + i), dy = load_eight(p.dy + first + i), w = load_eight(p.weight + i);
        Eight dx = load_eight(p.dx + first + i);
#pragma unroll
        for (int k = 0; k < 8; ++k) dx.v[k] = fused(rstd, fused(x.v[k], -c, dy.v[k] * w.v[k]), dx.v[k]);
        store_eight(p.dx + first + i, dx);
    }
}
