// Sums, and sums of squares, of chunks of the flat buffers, in f64.
//
// Owners   A block owns a chunk of 16384 elements.
// Order    Each thread's elements, 256 apart, in order; a warp's tree; the warps in order. The host adds the chunks in order.
// Launch   256 threads, grid (ceil(count / 16384), 1, 1), 64 bytes of shared memory.

#include "../prim/prim.cuh"

struct SumParams {
    double* sums;
    const float* x;
    uint64_t count;
};
EXPORT_PARAMS(SumParams, sums, x, count)

constexpr int THREADS = 256;
constexpr int CHUNK = 16384;
EXPORT_CONSTANTS(reduce, CHUNK)

struct SumShared {
    double warps[THREADS / 32];
};

// The chunk's sum, in the first thread.
template <bool SQUARES>
DEVICE void sum_chunk(const SumParams& p) {
    auto& shared = SMEM(SumShared);
    const uint64_t first = static_cast<uint64_t>(block_x()) * CHUNK;
    double sum = 0.0;
    for (int i = thread_index(); i < CHUNK && first + i < p.count; i += THREADS) {
        const double x = static_cast<double>(load(p.x + first + i));
        sum = sum + (SQUARES ? x * x : x);
    }
    sum = warp_sum(sum);
    if (lane() == 0) shared.warps[warp()] = sum;
    block_sync();
    if (thread_index() != 0) return;
    sum = 0.0;
    for (int w = 0; w < THREADS / 32; ++w) sum += shared.warps[w];
    store(p.sums + block_x(), sum);
}

KERNEL(THREADS, 4, sum_of_squares, SumParams) { sum_chunk<true>(p); }

KERNEL(THREADS, 4, sum, SumParams) { sum_chunk<false>(p); }
