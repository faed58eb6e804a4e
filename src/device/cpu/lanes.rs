//! Sums in a fixed order that vectorise: sixteen lanes side by side, on every instruction set.

/// Lanes of a panel.
pub const LANES: usize = 16;

/// One row of a panel: the same element of sixteen independent problems.
pub type Lanes = [f32; LANES];

/// Adds the lanes pairwise.
#[inline(always)]
pub fn tree<T: Copy + std::ops::AddAssign>(mut lanes: [T; LANES]) -> T {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            let other = lanes[i + width];
            lanes[i] += other;
        }
    }
    lanes[0]
}

/// `Σ f(i)` in f64: every lane sums every sixteenth element, then the lanes are added pairwise.
#[inline(always)]
pub fn sum(len: usize, f: impl Fn(usize) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let whole = len / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(first + l);
        }
    }
    for (l, i) in (whole..len).enumerate() {
        lanes[l] += f(i);
    }
    tree(lanes)
}

/// `Σ a·b` in f64, where the products are exact.
#[inline(always)]
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    let b = &b[..a.len()];
    sum(
        a.len(),
        #[inline(always)]
        |i| f64::from(a[i]) * f64::from(b[i]),
    )
}

/// `c[i] = Σ_k a[i, k] · b[k]` with rows of `a` as long as `b`; k ascending.
///
/// Six rows of sums fill the registers of AVX2 and hide the latency of the multiply-add; fewer are taken at the
/// end. Each sum is its own, so the tiling never reaches a result.
#[inline(always)]
pub fn row_products(a: &[f32], b: &[Lanes], c: &mut [Lanes]) {
    let mut i = 0;
    while i < c.len() {
        i += match c.len() - i {
            6.. => row_tile::<6>(a, i, b, c),
            4.. => row_tile::<4>(a, i, b, c),
            2.. => row_tile::<2>(a, i, b, c),
            _ => row_tile::<1>(a, i, b, c),
        };
    }
}

#[inline(always)]
fn row_tile<const M: usize>(a: &[f32], first: usize, b: &[Lanes], c: &mut [Lanes]) -> usize {
    let rows: [&[f32]; M] = std::array::from_fn(|m| &a[(first + m) * b.len()..][..b.len()]);
    let mut sums = [[0.0f32; LANES]; M];
    for (k, b) in b.iter().enumerate() {
        for m in 0..M {
            // SAFETY: every row is as long as `b`. With a check here the sums would leave their registers.
            let x = unsafe { *rows[m].get_unchecked(k) };
            for l in 0..LANES {
                sums[m][l] = x.mul_add(b[l], sums[m][l]);
            }
        }
    }
    c[first..first + M].copy_from_slice(&sums);
    M
}

/// `c[i] += Σ_r a[r, i] · b[r]` with rows of `a` as long as `c`; r ascending from zero, then added.
#[inline(always)]
pub fn column_products(a: &[f32], b: &[Lanes], c: &mut [Lanes]) {
    let mut i = 0;
    while i < c.len() {
        i += match c.len() - i {
            6.. => column_tile::<6>(a, i, b, c),
            4.. => column_tile::<4>(a, i, b, c),
            2.. => column_tile::<2>(a, i, b, c),
            _ => column_tile::<1>(a, i, b, c),
        };
    }
}

#[inline(always)]
fn column_tile<const M: usize>(a: &[f32], first: usize, b: &[Lanes], c: &mut [Lanes]) -> usize {
    let mut sums = [[0.0f32; LANES]; M];
    for (row, b) in a.chunks_exact(c.len()).zip(b) {
        let x = &row[first..first + M];
        for m in 0..M {
            for l in 0..LANES {
                sums[m][l] = x[m].mul_add(b[l], sums[m][l]);
            }
        }
    }
    for (c, sum) in c[first..first + M].iter_mut().zip(&sums) {
        for l in 0..LANES {
            c[l] += sum[l];
        }
    }
    M
}

/// Puts a row into lane `lane` of a panel.
#[inline(always)]
pub fn set_lane(panel: &mut [Lanes], lane: usize, row: &[f32]) {
    for (to, from) in panel.iter_mut().zip(row) {
        to[lane] = *from;
    }
}

/// Reads lane `lane` of a panel into a row.
#[inline(always)]
pub fn get_lane(panel: &[Lanes], lane: usize, row: &mut [f32]) {
    for (from, to) in panel.iter().zip(row) {
        *to = from[lane];
    }
}
