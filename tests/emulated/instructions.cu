// Kernels that show single instructions, and mistakes that the emulated device must report.
#include "../../kernels/prim/prim.cuh"

struct ProbeParams {
    const bf16* a;
    const bf16* b;
    uint32_t* out;
    int which;
    int reserved;
};
EXPORT_PARAMS(ProbeParams, a, b, out, which, reserved)

struct ProbeShared {
    bf16 a[16 * 16];
    bf16 b[16 * 16];
};

// a: 16x16, b: 16x8 stored [n][k]; out: 4 registers a lane as mma_16816 leaves them.
KERNEL(32, 1, probe_mma, ProbeParams) {
    const int l = lane(), g = l / 4, t = l % 4;
    const auto pair = [](const bf16* at) { return static_cast<uint32_t>(at[1].bits) << 16 | at[0].bits; };
    uint32_t a[4], b[2];
    for (int r = 0; r < 4; ++r) a[r] = pair(p.a + (g + 8 * (r % 2)) * 16 + 2 * t + 8 * (r / 2));
    for (int r = 0; r < 2; ++r) b[r] = pair(p.b + g * 16 + 2 * t + 8 * r);
    float d[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    mma_16816(d, a, b);
    for (int r = 0; r < 4; ++r) p.out[4 * l + r] = bits_of(d[r]);
}

// out: what each lane got of the 16x16 matrix a, by the instruction `which`.
KERNEL(32, 1, probe_ldmatrix, ProbeParams) {
    ProbeShared& s = SMEM(ProbeShared);
    const int l = lane();
    for (int i = l; i < 256; i += 32) s.a[i] = p.a[i];
    block_sync();
    uint32_t r[4] = {0, 0, 0, 0};
    uint32_t(&two)[2] = reinterpret_cast<uint32_t(&)[2]>(r);
    const bf16* row = &s.a[(l % 16) * 16 + 8 * (l / 16)];
    if (p.which == 0) ldmatrix_x4(r, row);
    if (p.which == 1) ldmatrix_x4_trans(r, row);
    if (p.which == 2) ldmatrix_x2(two, row);
    if (p.which == 3) ldmatrix_x2_trans(two, row);
    for (int i = 0; i < 4; ++i) p.out[4 * l + i] = r[i];
}

// Shuffles of the lane's number: xor 5, from lane 3 l mod 32, 7 down.
KERNEL(32, 1, probe_shuffle, ProbeParams) {
    const int l = lane();
    p.out[3 * l] = shuffle_xor(static_cast<uint32_t>(l), 5);
    p.out[3 * l + 1] = shuffle(static_cast<uint32_t>(l), 3 * l % 32);
    p.out[3 * l + 2] = shuffle_down(static_cast<uint32_t>(l), 7);
}

// The sum over the warp of 2^lane in f64, which has no 32 bits to lose; and lane 31 - l's share of it.
KERNEL(32, 1, probe_shuffle_f64, ProbeParams) {
    const int l = lane();
    double value = 1.0;
    for (int i = 0; i < l; ++i) value *= 2.0;
    const double other = shuffle_xor(value, 31), sum = warp_sum(value);
    p.out[2 * l] = static_cast<uint32_t>(sum);
    p.out[2 * l + 1] = static_cast<uint32_t>(other);
}

// Two pairs of warps, each with a barrier of its own, twice: what thread t of a pair wrote, thread 63 - t reads. The
// fifth warp never comes to a barrier.
KERNEL(160, 1, probe_named, ProbeParams) {
    ProbeShared& s = SMEM(ProbeShared);
    const int t = thread_index(), pair = t / 64, other = pair * 64 + 63 - t % 64;
    if (pair == 2) return;
    for (int round = 0; round < 2; ++round) {
        s.a[t].bits = static_cast<uint16_t>(1000 * round + t);
        named_sync(1 + pair, 64);
        p.out[2 * t + round] = s.a[other].bits;
        named_sync(1 + pair, 64);
    }
}

// The block's barrier when a warp has ended before it, and a warp's own barrier in a branch of one warp.
KERNEL(96, 1, probe_barriers, ProbeParams) {
    ProbeShared& s = SMEM(ProbeShared);
    const int t = thread_index(), l = lane();
    s.a[t].bits = static_cast<uint16_t>(t);
    if (warp() == 2) return;
    block_sync();
    p.out[t] = s.a[63 - t].bits;
    if (warp() == 0) {
        s.b[l].bits = static_cast<uint16_t>(100 + l);
        warp_sync();
        p.out[64 + l] = s.b[31 - l].bits;
    }
}

// What a block and a thread are called.
KERNEL(64, 1, probe_places, ProbeParams) {
    const int block = (block_z() * grid_y() + block_y()) * grid_x() + block_x();
    p.out[64 * block + thread_index()] = static_cast<uint32_t>(block_z() * 1000 + block_y() * 100 + block_x() * 10 + warp());
    if (lane() != thread_index() % 32) p.out[0] = 0;
}

// Arithmetic on words 2 l and 2 l + 1 of `a`, as f32 or as they are.
KERNEL(32, 1, probe_values, ProbeParams) {
    const int l = lane();
    const auto* words = reinterpret_cast<const uint32_t*>(p.a);
    const float x = float_of(load(words + 2 * l)), y = float_of(load(words + 2 * l + 1));
    p.out[5 * l] = to_bf16(x).bits;
    p.out[5 * l + 1] = pack(x, y);
    p.out[5 * l + 2] = multiply_high(bits_of(x), bits_of(y));
    p.out[5 * l + 3] = bits_of(fused(x, y, -x));
    p.out[5 * l + 4] = bits_of(square_root(x));
}

// A group that is not the newest, with an empty one after it; zeros from an address that nobody may read; and a copy
// that is in no group, which no wait waits for.
KERNEL(32, 1, probe_groups, ProbeParams) {
    ProbeShared& s = SMEM(ProbeShared);
    const int l = lane();
    if (l % 2) cp_async_16(&s.a[8 * l], p.a + 8 * l, true);
    else cp_async_16(&s.a[8 * l], reinterpret_cast<const bf16*>(uintptr_t{1} << 20), false);
    cp_async_commit();
    cp_async_commit();
    cp_async_16(&s.b[8 * l], p.b + 8 * l, true);
    cp_async_wait<1>();
    block_sync();
    p.out[2 * l] = s.a[8 * l].bits;
    cp_async_wait<0>();
    p.out[2 * l + 1] = s.b[8 * l].bits;
}

// Two groups of copies, zero fill, and what is seen after waiting for the first and for both.
KERNEL(32, 1, probe_copy, ProbeParams) {
    ProbeShared& s = SMEM(ProbeShared);
    const int l = lane();
    cp_async_16(&s.a[8 * l], p.a + 8 * l, l % 2 == 0);
    cp_async_commit();
    cp_async_16(&s.b[8 * l], p.b + 8 * l, true);
    cp_async_commit();
    if (p.which > 0) cp_async_wait<1>();
    if (p.which > 1) cp_async_wait<0>();
    block_sync();
    for (int i = 0; i < 8; ++i) {
        p.out[16 * l + i] = s.a[8 * l + i].bits;
        p.out[16 * l + 8 + i] = s.b[8 * l + i].bits;
    }
}

// Mistakes, by `which`.
KERNEL(64, 1, probe_mistake, ProbeParams) {
    ProbeShared& s = SMEM(ProbeShared);
    const int t = thread_index();
    switch (p.which) {
        case 0:  // half of a warp never comes
            if (t % 32 < 16) warp_sync();
            else named_sync(1, 64);
            break;
        case 1:  // lanes of a warp at different calls
            if (t % 2) shuffle_xor(1.0f, 1);
            else shuffle_xor(1.0f, 2);
            break;
        case 2:  // a barrier of more threads than there are
            named_sync(2, 96);
            break;
        case 3:  // global memory that nobody, no other test either, allocated
            load_128(reinterpret_cast<const bf16*>(uintptr_t{1} << 20));
            break;
        case 4:  // a shared address as a global one, past the end
            cp_async_16(&s.b[0] + 256, p.a, true);
            break;
        case 5:  // an odd address
            load_128(p.a + 1);
            break;
        case 6:  // beyond shared memory
            s.b[256 + t].bits = 1;
            break;
        case 7:  // a shuffle after lanes have ended
            if (t % 32 != 0) shuffle_xor(1, 1);
            break;
        case 8:  // a value that begins inside an allocation and ends outside
            load(reinterpret_cast<const uint64_t*>(p.a + 60) + t % 2);
            break;
        case 9:  // one past the end
            store(p.out + 512, 0u);
            break;
    }
}

// Missing barrier: the second half reads what the first half writes.
KERNEL(64, 1, probe_race, ProbeParams) {
    ProbeShared& s = SMEM(ProbeShared);
    const int t = thread_index();
    s.a[t].bits = static_cast<uint16_t>(t);
    if (p.which) block_sync();
    p.out[t] = s.a[63 - t].bits;
}
