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
