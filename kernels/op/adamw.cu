// AdamW (Loshchilov & Hutter 2019) on the flat buffers, in PyTorch's order of operations and with the roundings of the
// CPU device (src/ops/adamw): the same bits as there.
//
// Owners   A thread owns four elements, 256 apart.
// Launch   256 threads, grid (ceil(count / 1024), 1, 1), no shared memory.

#include "../prim/prim.cuh"

struct AdamWParams {
    float* params;
    const float* grads;
    float* m;
    float* v;
    uint64_t count;
    float grad_scale;
    float keep;    // 1 - lr * weight decay
    float first;   // 1 - beta1
    float beta2;
    float second;  // 1 - beta2
    float root;    // sqrt(1 - beta2^t)
    float epsilon;
    float size;    // -lr / (1 - beta1^t)
};
EXPORT_PARAMS(AdamWParams, params, grads, m, v, count, grad_scale, keep, first, beta2, second, root, epsilon, size)

constexpr int THREADS = 256;
constexpr int BLOCK = 4 * THREADS;  // elements
EXPORT_CONSTANTS(adamw, BLOCK)

KERNEL(THREADS, 4, adamw_step, AdamWParams) {
    for (int i = 0; i < BLOCK; i += THREADS) {
        const uint64_t at = static_cast<uint64_t>(block_x()) * BLOCK + i + thread_index();
        if (at >= p.count) return;
        const float g = load(p.grads + at) * p.grad_scale, old = load(p.m + at);
        const float m = fused(p.first, g - old, old);
        const float v = fused(p.second * g, g, load(p.v + at) * p.beta2);
        const float denominator = square_root(v) / p.root + p.epsilon;
        const float w = load(p.params + at) * p.keep + p.size * m / denominator;
        store(p.m + at, m);
        store(p.v + at, v);
        store(p.params + at, w);
    }
}
