// The emulated device: runs the kernels of ../op on a CPU, for tests. Threads of a block are fibers of one OS thread;
// they run until they wait, and whoever arrives last at a meeting point does its work. What cannot happen on a GPU
// without undefined behaviour (lanes of a warp at different calls, shared memory too small, a lane that never comes)
// ends the launch with a report. It cannot show speed, bank conflicts, weak memory ordering or tensor-core rounding.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <string>
#include <type_traits>
#include <vector>

#include "../prim/types.cuh"

namespace emulator {

// Where in the kernels' source a call stands.
struct Site {
    const char* file;
    int line;
};

// A kernel that can be launched. Objects of this type register themselves.
struct Kernel {
    const char* name;
    int max_threads;
    size_t params_bytes;
    void (*entry)(const void* params);
    Kernel(const char* name, int max_threads, size_t params_bytes, void (*entry)(const void*));
};

struct Field {
    const char* name;
    size_t offset;
};

// The layout of a parameter struct.
struct Layout {
    const char* name;
    size_t bytes;
    std::vector<Field> fields;
    Layout(const char* name, size_t bytes, std::vector<Field> fields);
};

int thread();
int block(int axis);
int grid(int axis);

// The block's shared memory; refuses a launch that gave less than `bytes`.
void* shared(size_t bytes);

// All threads that have not ended.
void block_barrier(Site site);
void named_barrier(int id, int threads, Site site);

// The last of a warp's lanes calls `work` with the slots of all 32. Lanes must come with the same site and key.
void meet_warp_erased(Site site, uint64_t key, void* slot, void (*work)(void* self, void** slots), void* self);

template <typename Work>
void meet_warp(Site site, uint64_t key, void* slot, Work&& work) {
    using W = std::remove_reference_t<Work>;
    if constexpr (std::is_function_v<W>) {
        meet_warp_erased(site, key, slot, [](void* w, void** s) { reinterpret_cast<W*>(w)(s); }, reinterpret_cast<void*>(&work));
    } else {
        meet_warp_erased(site, key, slot, [](void* w, void** s) { (*static_cast<W*>(w))(s); }, const_cast<std::remove_const_t<W>*>(&work));
    }
}

// `p` must be aligned and `bytes` from it inside the block's shared memory, or for check_access inside that or a
// registered range of global memory.
void check_shared(const void* p, size_t bytes, size_t alignment, Site site);
void check_access(const void* p, size_t bytes, size_t alignment, Site site);

// cp.async of 16 bytes; `from` null writes zeros. Eager: done at once. Lazy: done by the wait that must have seen it.
void copy_async(void* to, const void* from);
void copy_commit();
void copy_wait(int groups);

// Operands of a lane in mma.m16n8k16.
struct Fragments {
    float* d;
    const uint32_t* a;
    const uint32_t* b;
};
void multiply(void** slots);

}  // namespace emulator
