// The vocabulary for a host compiler: the documented meaning of each instruction, run by the emulated device
// (emulator.h). `Site` parameters are filled in by the compiler: where in the kernel a call stands, for the checks that a
// warp's lanes come to the same one, and for reports.
#pragma once

#include "emulator.h"

#define DEVICE static inline
// A member function; its type must have a name of its own among all kernels.
#define METHOD inline

#define KERNEL(threads, blocks, name, Params)                                                                  \
    static void name##_body(const Params& p);                                                                  \
    static void name##_entry(const void* p) { name##_body(*static_cast<const Params*>(p)); }                   \
    static emulator::Kernel name##_kernel{#name, threads, #Params, sizeof(Params), name##_entry};              \
    static void name##_body([[maybe_unused]] const Params& p)

// A parameter struct's size and the offsets of all its fields, to be compared with those of the launch code.
#define EXPORT_PARAMS(S, ...) \
    static const emulator::Layout S##_layout{#S, sizeof(S), {QT_EACH(S, __VA_ARGS__)}};

// Numbers that the launch code has too.
#define EXPORT_CONSTANTS(owner, ...) static const emulator::Constants owner##_constants{#owner, {QT_EACH_VALUE(__VA_ARGS__)}};

// {"field", offset}, for each field: rescanning by QT_EXPAND takes the place of recursion.
#define QT_EACH(S, ...) QT_EXPAND(QT_STEP(S, __VA_ARGS__))
#define QT_STEP(S, f, ...) {#f, offsetof(S, f)}, __VA_OPT__(QT_AGAIN QT_PARENS(S, __VA_ARGS__))
#define QT_AGAIN() QT_STEP
#define QT_EACH_VALUE(...) QT_EXPAND(QT_VALUE(__VA_ARGS__))
#define QT_VALUE(name, ...) {#name, static_cast<size_t>(name)}, __VA_OPT__(QT_VALUE_AGAIN QT_PARENS(__VA_ARGS__))
#define QT_VALUE_AGAIN() QT_VALUE
#define QT_PARENS ()
#define QT_EXPAND(...) QT_EXPAND_2(QT_EXPAND_2(QT_EXPAND_2(QT_EXPAND_2(__VA_ARGS__))))
#define QT_EXPAND_2(...) QT_EXPAND_1(QT_EXPAND_1(QT_EXPAND_1(QT_EXPAND_1(__VA_ARGS__))))
#define QT_EXPAND_1(...) __VA_ARGS__

#define SMEM(Type) (*static_cast<Type*>(emulator::shared(sizeof(Type))))

using emulator::Site;
#define HERE Site site = {__builtin_FILE(), __builtin_LINE()}

DEVICE int thread_index() { return emulator::thread(); }
DEVICE int block_x() { return emulator::block(0); }
DEVICE int block_y() { return emulator::block(1); }
DEVICE int block_z() { return emulator::block(2); }
DEVICE int grid_x() { return emulator::grid(0); }
DEVICE int grid_y() { return emulator::grid(1); }
DEVICE int lane() { return thread_index() & 31; }
DEVICE int warp() { return thread_index() >> 5; }

// ---- meeting points ------------------------------------------------------------------------------------------------

DEVICE void block_sync(HERE) { emulator::block_barrier(site); }
DEVICE void warp_sync(HERE) { emulator::warp_barrier(site); }
DEVICE void named_sync(int id, int threads, HERE) { emulator::named_barrier(id, threads, site); }

template <typename T>
T shuffle_xor(T value, int mask, HERE) {
    emulator::exchange(&value, sizeof(T), lane() ^ mask, 1000 + mask, site);
    return value;
}

// The sources may differ from lane to lane.
template <typename T>
T shuffle(T value, int source, HERE) {
    emulator::exchange(&value, sizeof(T), source, 2000, site);
    return value;
}

template <typename T>
T shuffle_down(T value, int n, HERE) {
    emulator::exchange(&value, sizeof(T), lane() + n < 32 ? lane() + n : lane(), 3000 + n, site);
    return value;
}

// ---- memory --------------------------------------------------------------------------------------------------------

// Inlined whatever the optimisation, so that a tool that counts can tell the places in the kernels apart.
template <typename T>
[[gnu::always_inline]] inline T load(const T* p, HERE) {
    emulator::check_access(p, sizeof(T), alignof(T), site);
    return *p;
}

template <typename T>
[[gnu::always_inline]] inline void store(T* p, T value, HERE) {
    emulator::check_access(p, sizeof(T), alignof(T), site);
    *p = value;
}

DEVICE u128 load_128(const void* p, HERE) {
    emulator::check_access(p, 16, 16, site);
    u128 v;
    memcpy(&v, p, 16);
    return v;
}

DEVICE void store_128(void* p, u128 v, HERE) {
    emulator::check_access(p, 16, 16, site);
    memcpy(p, &v, 16);
}

DEVICE void cp_async_16(void* shared, const void* global, bool valid, HERE) {
    emulator::check_shared(shared, 16, 16, site);
    if (valid) emulator::check_access(global, 16, 16, site);
    emulator::copy_async(shared, valid ? global : nullptr);
}
DEVICE void cp_async_commit() { emulator::copy_commit(); }
template <int N>
void cp_async_wait() {
    emulator::copy_wait(N);
}

// ---- tensor cores (PTX ISA: warp-level matrix instructions) --------------------------------------------------------

DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row, HERE) { emulator::load_matrices(r, row, 4, false, site); }
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, HERE) {
    emulator::load_matrices(r, row, 4, true, site);
}
DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row, HERE) { emulator::load_matrices(r, row, 2, false, site); }
DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, HERE) {
    emulator::load_matrices(r, row, 2, true, site);
}

DEVICE void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], HERE) {
    emulator::multiply(d, a, b, site);
}

// ---- conversions and bits ------------------------------------------------------------------------------------------

DEVICE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
DEVICE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

// NaN becomes the canonical one, as cvt.rn.bf16 has it.
DEVICE bf16 to_bf16(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{0x7fff};
    return bf16{static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
DEVICE uint32_t pack(float low, float high) {
    return static_cast<uint32_t>(to_bf16(high).bits) << 16 | to_bf16(low).bits;
}

DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE float square_root(float x) { return sqrtf(x); }
