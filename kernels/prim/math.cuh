// Arithmetic written once for both compilers: the same bits on a GPU, on the emulated device and on the CPU device
// (src/device/cpu/math.rs, src/philox.rs). Multiply-adds are explicit, so neither compiler may form others.
#pragma once

DEVICE float to_float(bf16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
DEVICE float low(uint32_t pair) { return float_of(pair << 16); }
DEVICE float high(uint32_t pair) { return float_of(pair & 0xffff0000u); }

// 2^n for -126 <= n <= 127.
DEVICE float power_of_two(int n) { return float_of(static_cast<uint32_t>(n + 127) << 23); }

// e^x within one unit in the last place: x = n ln 2 + r (Cody and Waite's two-part ln 2), Taylor's polynomial of degree 7
// for e^r, 2^n in two factors, so that small results are subnormal.
DEVICE float exp_f32(float x) {
    const float round = 12582912.0f;
    x = x > 90.0f ? 90.0f : x;
    x = x < -110.0f ? -110.0f : x;
    const float shifted = fused(x, 1.44269504f, round);
    const float n = shifted - round;
    const float r = fused(n, 2.1219444e-4f, fused(n, -355.0f / 512.0f, x));
    float p = 1.0f / 5040.0f;
    p = fused(r, p, 1.0f / 720.0f);
    p = fused(r, p, 1.0f / 120.0f);
    p = fused(r, p, 1.0f / 24.0f);
    p = fused(r, p, 1.0f / 6.0f);
    p = fused(r, p, 0.5f);
    p = fused(r, p, 1.0f);
    p = fused(r, p, 1.0f);
    const int exponent = static_cast<int>(bits_of(shifted) - bits_of(round));
    const int half = exponent >> 1;
    return p * power_of_two(half) * power_of_two(exponent - half);
}

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exp_f32(-x)); }

// Natural logarithm of a positive normal number, in f64 and then rounded: x = m 2^e with m in [sqrt(1/2), sqrt(2)),
// ln m = 2 artanh((m - 1) / (m + 1)), whose series is cut below 2e-13.
DEVICE float log_f32(float x) {
    const uint32_t offset = bits_of(x) - 0x3f3504f3u;
    const int exponent = static_cast<int>(offset) >> 23;
    const double m = static_cast<double>(float_of((offset & 0x007fffffu) + 0x3f3504f3u));
    const double s = (m - 1.0) / (m + 1.0);
    const double q = s * s;
    double p = 1.0 / 15.0;
    p = p * q + 1.0 / 13.0;
    p = p * q + 1.0 / 11.0;
    p = p * q + 1.0 / 9.0;
    p = p * q + 1.0 / 7.0;
    p = p * q + 1.0 / 5.0;
    p = p * q + 1.0 / 3.0;
    p = p * q + 1.0;
    return static_cast<float>(static_cast<double>(exponent) * 0.693147180559945309417 + 2.0 * s * p);
}

// Philox4x32-10 (Salmon et al. 2011): four random words of a counter under a key.
struct Words {
    uint32_t w[4];
};

DEVICE Words philox4x32(Words counter, uint32_t key0, uint32_t key1) {
    Words c = counter;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t high0 = multiply_high(c.w[0], 0xD2511F53u), low0 = c.w[0] * 0xD2511F53u;
        const uint32_t high1 = multiply_high(c.w[2], 0xCD9E8D57u), low1 = c.w[2] * 0xCD9E8D57u;
        c = Words{{high1 ^ c.w[1] ^ key0, low1, high0 ^ c.w[3] ^ key1, low0}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return c;
}

// Sum over the lanes of a warp, the same in all of them: a fixed tree.
template <typename T>
DEVICE T warp_sum(T value) {
#pragma unroll
    for (int n = 16; n > 0; n >>= 1) value += shuffle_xor(value, n);
    return value;
}

DEVICE float warp_max(float value) {
#pragma unroll
    for (int n = 16; n > 0; n >>= 1) {
        const float other = shuffle_xor(value, n);
        value = other > value ? other : value;
    }
    return value;
}
