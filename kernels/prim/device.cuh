// The vocabulary for nvcc: one wrapper for each instruction. PTX ISA chapters are named where a wrapper is not obvious.
#pragma once

#include "types.cuh"

#define DEVICE __device__ __forceinline__
#define METHOD __device__ __forceinline__

// A kernel of at most `threads` threads a block and at least `blocks` blocks a multiprocessor, with one parameter struct.
#define KERNEL(threads, blocks, name, Params) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params p)

// The host compiler exports the struct's layout, to be compared with that of the launch code.
#define EXPORT_PARAMS(...)

// The same for numbers that the launch code has too: those of the source `op/owner.cu`.
#define EXPORT_CONSTANTS(owner, ...)

extern __shared__ __align__(1024) unsigned char shared_memory[];

// The block's shared memory; its size is given at the launch.
#define SMEM(Type) (*reinterpret_cast<Type*>(shared_memory))

DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
DEVICE int grid_y() { return static_cast<int>(gridDim.y); }
DEVICE int lane() { return thread_index() & 31; }
DEVICE int warp() { return thread_index() >> 5; }

// ---- meeting points ------------------------------------------------------------------------------------------------

DEVICE void block_sync() { __syncthreads(); }
DEVICE void warp_sync() { __syncwarp(); }

// Barrier `id` (1 to 15) of `threads` threads, a multiple of 32.
DEVICE void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

template <typename T>
DEVICE T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

template <typename T>
DEVICE T shuffle(T value, int source) {
    return __shfl_sync(0xffffffffu, value, source);
}

// The value `n` lanes above; a lane without one keeps its own.
template <typename T>
DEVICE T shuffle_down(T value, int n) {
    return __shfl_down_sync(0xffffffffu, value, static_cast<unsigned>(n));
}

// ---- memory --------------------------------------------------------------------------------------------------------

DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// One value, aligned to its size; global or shared.
template <typename T>
DEVICE T load(const T* p) {
    return *p;
}

template <typename T>
DEVICE void store(T* p, T value) {
    *p = value;
}

// 16 bytes, aligned; global or shared.
DEVICE u128 load_128(const void* p) {
    const uint4 v = *static_cast<const uint4*>(p);
    return u128{{v.x, v.y, v.z, v.w}};
}

DEVICE void store_128(void* p, u128 v) { *static_cast<uint4*>(p) = make_uint4(v.w[0], v.w[1], v.w[2], v.w[3]); }

// Starts copying 16 bytes to shared memory; with `valid` false zeros are written and `global` is not read.
DEVICE void cp_async_16(void* shared, const void* global, bool valid) {
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}

// Ends a group of copies.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the newest N of this thread's groups are unfinished. Other threads see the data after a barrier.
template <int N>
DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- tensor cores (PTX ISA: warp-level matrix instructions) --------------------------------------------------------

// Four 8x8 matrices of 16-bit elements: lane i gives the address of row i % 8 of matrix i / 8; lane l receives elements
// 2 (l % 4) and the next of row l / 4 of each.
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// As ldmatrix_x4 with each matrix transposed.
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Two matrices; lanes 0 to 15 give the addresses.
DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// d[16, 8] += a[16, 16] b[16, 8], bf16 in, f32 out. Lane l = 4 g + t holds of a: rows g, g + 8 (registers 0, 1), columns
// 2 t, 2 t + 1, then the same with columns + 8 (registers 2, 3); of b: rows 2 t, 2 t + 1 (register 0) and + 8 (1) of
// column g; of d: row g columns 2 t, 2 t + 1, then row g + 8.
DEVICE void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- conversions and bits ------------------------------------------------------------------------------------------

DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
DEVICE uint32_t bits_of(float value) { return __float_as_uint(value); }
DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

// Rounded to nearest, ties to even.
DEVICE bf16 to_bf16(float value) {
    bf16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(value));
    return r;
}

// Two values rounded to bf16 in one register.
DEVICE uint32_t pack(float low, float high) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE float square_root(float x) { return sqrtf(x); }
