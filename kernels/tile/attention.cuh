// What the attention kernels share: a block's place in the packed rows, and where the heads lie.
#pragma once

#include "rows.cuh"
#include "softmax.cuh"

// One task: `rows` rows (the kernel's constant) of one segment, the `block`-th such. The host lists each block of
// each segment once: for `rows` = R a segment of n rows has the blocks 0 .. ceil(n / R) - 1. Any order gives the
// same results; long tasks first keeps the device busy. A task with `len` 0 is nothing to do.
struct AttentionWork {
    int start;  // first row of the segment
    int len;    // rows of the segment
    int block;
};

// Rows of a key tile, and of a query tile in the backward pass. Part of the order of the sums: it never changes.
constexpr int ATTENTION_STEP = 64;
constexpr int ATTENTION_THREADS = 128;

// One binary for sm_80, 86 and 89: the two latter have 99 KiB of shared memory for a block.
constexpr int ATTENTION_SHARED_BYTES = 99 * 1024;
