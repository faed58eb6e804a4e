// The emulated device: runs the kernels of ../op on a CPU, for tests. Threads of a block are fibers of one OS thread;
// they run until they wait, and whoever arrives last at a meeting point does its work. What cannot happen on a GPU
// without undefined behaviour (lanes of a warp at different calls, shared memory too small, a lane that never comes)
// ends the launch with a report. It cannot show speed, bank conflicts, weak memory ordering or tensor-core rounding.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <atomic>
#include <string>
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
    const char* params;  // name of its parameter struct
    size_t params_bytes;
    void (*entry)(const void* params);
    mutable std::atomic<size_t> shared_bytes{0};  // the most that a launch used so far
    Kernel(const char* name, int max_threads, const char* params, size_t params_bytes, void (*entry)(const void*));
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

// Numbers of the source `op/owner.cu`.
struct Constants {
    const char* owner;
    std::vector<Field> values;
    Constants(const char* owner, std::vector<Field> values);
};

// The kernel of that name; null where there is none.
const Kernel* find(const char* name);

int thread();
int block(int axis);
int grid(int axis);

// The block's shared memory; refuses a launch that gave less than `bytes`.
void* shared(size_t bytes);

// All threads that have not ended; what each did before is seen by all after.
void block_barrier(Site site);
void named_barrier(int id, int threads, Site site);
void warp_barrier(Site site);

// What all 32 lanes of a warp do together. They must come with the same site, and to `exchange` with the same key.
// `bytes` (4 or 8) of each lane's value are replaced by those of the lane `from`, modulo 32.
void exchange(void* value, size_t bytes, int from, uint64_t key, Site site);
// `count` matrices of 8x8 16-bit elements, whose rows are 16 bytes each.
void load_matrices(uint32_t* r, const void* row, int count, bool transposed, Site site);
// mma.m16n8k16.
void multiply(float* d, const uint32_t* a, const uint32_t* b, Site site);

// `p` must be aligned and `bytes` from it inside the block's shared memory, or for check_access inside that or a
// registered range of global memory.
void check_shared(const void* p, size_t bytes, size_t alignment, Site site);
void check_access(const void* p, size_t bytes, size_t alignment, Site site);

// cp.async of 16 bytes; `from` null writes zeros. Eager: done at once. Lazy: done by the wait that must have seen it.
void copy_async(void* to, const void* from);
void copy_commit();
void copy_wait(int groups);

}  // namespace emulator
