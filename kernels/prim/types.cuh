// Values that both compilers know: bfloat16 as bits, pairs of them in a register, 16 bytes as one access.
#pragma once

#include <stddef.h>
#include <stdint.h>

// The upper half of a binary32.
struct bf16 {
    uint16_t bits;
};

// What one 128-bit load or store moves: eight bf16 or four f32.
struct alignas(16) u128 {
    uint32_t w[4];
};
