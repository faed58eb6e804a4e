//! Sums and products in f64, which the operations' own forms are made of.

/// `a · b`.
#[must_use]
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `to += factor · from`.
pub fn add(to: &mut [f64], factor: f64, from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}

/// `a·bᵀ` of `a` [rows, depth] and `b` [columns, depth].
#[must_use]
pub fn product_nt(a: &[f64], b: &[f64], depth: usize) -> Vec<f64> {
    a.chunks_exact(depth).flat_map(|row| b.chunks_exact(depth).map(move |column| dot(row, column))).collect()
}

/// `a·b` of `a` [rows, depth] and `b` [depth, columns].
#[must_use]
pub fn product_nn(a: &[f64], b: &[f64], columns: usize) -> Vec<f64> {
    let depth = b.len() / columns;
    let mut out = vec![0.0; a.len() / depth.max(1) * columns];
    for (row, out) in a.chunks_exact(depth).zip(out.chunks_exact_mut(columns)) {
        row.iter().zip(b.chunks_exact(columns)).for_each(|(factor, b)| add(out, *factor, b));
    }
    out
}

/// `aᵀ·b` of `a` [depth, rows] and `b` [depth, columns].
#[must_use]
pub fn product_tn(a: &[f64], rows: usize, b: &[f64], columns: usize) -> Vec<f64> {
    let mut out = vec![0.0; rows * columns];
    for (a, b) in a.chunks_exact(rows).zip(b.chunks_exact(columns)) {
        a.iter().zip(out.chunks_exact_mut(columns)).for_each(|(factor, out)| add(out, *factor, b));
    }
    out
}

/// Columns `first .. first + count` of rows of `width` elements.
#[must_use]
pub fn columns(values: &[f64], width: usize, first: usize, count: usize) -> Vec<f64> {
    values.chunks_exact(width).flat_map(|row| row[first..first + count].iter().copied()).collect()
}

/// Writes `count` columns of rows of `width` elements.
pub fn put_columns(to: &mut [f64], width: usize, first: usize, count: usize, from: &[f64]) {
    for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(count)) {
        to[first..first + count].copy_from_slice(from);
    }
}

/// Softmax weights of `scores`, and their log-sum-exp.
#[must_use]
pub fn softmax(scores: &[f64]) -> (Vec<f64>, f64) {
    let max = scores.iter().fold(f64::MIN, |m, s| m.max(*s));
    let lse = max + libm::log(scores.iter().map(|s| libm::exp(s - max)).sum::<f64>());
    (scores.iter().map(|s| libm::exp(s - lse)).collect(), lse)
}
