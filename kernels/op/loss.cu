// Cross-entropy of rows of logits, and their gradient in the logits' place.
//
//   loss = ln sum exp(l - max) - (l[target] - max)
//   dl   = scale (softmax(l) - [target])
//
// Layout   logits f32 [rows, stride], stride the vocabulary rounded up to 8. The gradient is bf16 and starts where its
//          row of logits does, so that rows are 2 * stride bf16 apart; its columns beyond the vocabulary are zero, as
//          the product that follows reads whole pieces of 16 bytes.
// Owners   A block owns a row. A piece of gradients lies where logits of this or an earlier piece were: it is written when
//          all threads have read theirs.
// Order    Each thread's logits, 512 apart, in order; a warp's tree; the warps in order.
// Launch   512 threads, grid (rows, 1, 1), 128 bytes of shared memory.

#include "../prim/prim.cuh"

struct LossParams {
    float* logits;
    const uint32_t* targets;
    float* losses;
    int rows;
    int vocab;
    int stride;
    int backward;
    float scale;
    int reserved;
};
EXPORT_PARAMS(LossParams, logits, targets, losses, rows, vocab, stride, backward, scale, reserved)

// ---- kernels ----------------------------------------------------------------------------------------------------

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;

struct LossShared {
    float max[WARPS], sum[WARPS];
};

DEVICE float row_max(const float* row, int vocab, float (&warps)[WARPS]) {
    float max = -__builtin_inff();
    for (int i = thread_index(); i < vocab; i += THREADS) {
        const float l = load(row + i);
        max = l > max ? l : max;
    }
    max = warp_max(max);
    if (lane() == 0) warps[warp()] = max;
    block_sync();
    max = warps[0];
    for (int w = 1; w < WARPS; ++w) max = warps[w] > max ? warps[w] : max;
    return max;
}

DEVICE float row_sum(const float* row, int vocab, float max, float (&warps)[WARPS]) {
    float sum = 0.0f;
    for (int i = thread_index(); i < vocab; i += THREADS) sum += exp_f32(load(row + i) - max);
    sum = warp_sum(sum);
    if (lane() == 0) warps[warp()] = sum;
    block_sync();
    sum = 0.0f;
    for (int w = 0; w < WARPS; ++w) sum += warps[w];
    return sum;
}

// Replaces the row by its gradient, two neighbours a thread. NaN logits stay NaN.
DEVICE void replace_row(const LossParams& p, float* row, int target, float max, float factor) {
    const auto gradient = [&](int i) {
        if (i >= p.vocab) return 0.0f;
        const float value = exp_f32(load(row + i) - max) * factor;
        return i == target ? value - p.scale : value;
    };
    auto* pairs = reinterpret_cast<uint32_t*>(row);
    for (int first = 0; first < p.stride; first += 2 * THREADS) {
        const int i = first + 2 * thread_index();
        const uint32_t pair = i < p.stride ? pack(gradient(i), gradient(i + 1)) : 0;
        // All logits up to this piece's have been read, and that of the target; what is written lies among them.
        block_sync();
        if (i < p.stride) store(pairs + i / 2, pair);
    }
}

// ---- instances --------------------------------------------------------------------------------------------------

KERNEL(THREADS, 2, loss_rows, LossParams) {
    auto& shared = SMEM(LossShared);
    float* row = p.logits + static_cast<size_t>(block_x()) * p.stride;
    const int target = static_cast<int>(load(p.targets + block_x()));
    const float max = row_max(row, p.vocab, shared.max), sum = row_sum(row, p.vocab, max, shared.sum);
    if (thread_index() == 0) store(p.losses + block_x(), log_f32(sum) - (load(row + target) - max));
    if (!p.backward) return;
    replace_row(p, row, target, max, p.scale / sum);
}
