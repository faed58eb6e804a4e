//! The delta rule over a chunk of tokens at once: the same recurrence as products of small matrices.
//!
//! Within a chunk, `b_i` sums the decays g up to token i; `Γ_ij = e^(b_i - b_j)` for i >= j; all exponents are at most
//! zero. With rows q̂, k̂, v, u in Q, K, V, R and the state S before the chunk:
//!
//! ```text
//! N_ij = Γ_ij (k_i·k_j), i > j;   P_ij = Γ_ij (q_i·k_j), i >= j
//! U = V - e^b ∘ (K S) - N R,  R = β ∘ U     row by row
//! O = e^b ∘ (Q S) + P R
//! S ← e^(b_n) S + (e^(b_n - b) ∘ K)ᵀ R
//! ```

use super::panels::{Panels, add_transposed_product, product};
use crate::device::cpu::Isa;
use crate::device::cpu::lanes::{self, LANES};
use crate::device::cpu::math::exp;

/// Tokens of a chunk, counted from the segment's first. Part of the order of the sums: it never changes.
pub(super) const CHUNK: usize = 64;

/// q̂ and k̂ of a chunk for one key head, row-major [n, dk], and their products with k̂.
pub(super) struct Keys {
    isa: Isa,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    /// `q_i·k_j` and `k_i·k_j`, [n, n].
    qk: Vec<f32>,
    kk: Vec<f32>,
}

/// β and the decays of a chunk for one value head.
pub(super) struct Decays {
    pub beta: Vec<f32>,
    /// `e^b_i`.
    pub before: Vec<f32>,
    /// `e^(b_n - b_i)`.
    pub after: Vec<f32>,
    /// Γ, [n, n].
    gamma: Vec<f32>,
}

/// One value head's chunk.
pub(super) struct Chunk<'a> {
    pub keys: &'a Keys,
    pub decays: Decays,
    /// N and P.
    n: Vec<f32>,
    p: Vec<f32>,
}

/// Gradients of a chunk.
pub(super) struct ChunkGradients {
    /// Row-major, [n, dk].
    pub dq: Vec<f32>,
    pub dk: Vec<f32>,
    /// [n, dv].
    pub dv: Panels,
    pub dbeta: Vec<f32>,
    pub dg: Vec<f32>,
}

impl Keys {
    #[inline(always)]
    pub fn new(isa: Isa, q: Vec<f32>, k: Vec<f32>, dim: usize) -> Self {
        let transposed = Panels::transposed(&k, dim);
        let (qk, kk) = (product(isa, &q, &transposed).to_rows(), product(isa, &k, &transposed).to_rows());
        Keys { isa, q, k, qk, kk }
    }
}

impl Decays {
    /// From β and g of each token.
    #[inline(always)]
    pub fn new(beta: Vec<f32>, g: &[f32]) -> Self {
        let n = g.len();
        let mut sum = 0.0f64;
        let sums: Vec<f64> = g
            .iter()
            .map(|g| {
                sum += f64::from(*g);
                sum
            })
            .collect();
        let mut gamma = vec![0.0; n * n];
        for (i, row) in gamma.chunks_exact_mut(n).enumerate() {
            for (x, b) in row.iter_mut().zip(&sums[..=i]) {
                *x = exp((sums[i] - b) as f32);
            }
        }
        let before = sums.iter().map(|b| exp(*b as f32)).collect();
        let after = sums.iter().map(|b| exp((sum - b) as f32)).collect();
        Decays { beta, before, after, gamma }
    }

    fn last(&self) -> f32 {
        self.before[self.before.len() - 1]
    }
}

/// `a ∘ b`.
#[inline(always)]
fn hadamard(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

/// Rows of `values`, `dim` elements each, multiplied by `factors`.
#[inline(always)]
fn scaled(values: &[f32], dim: usize, factors: &[f32]) -> Vec<f32> {
    let rows = values.chunks_exact(dim).zip(factors);
    rows.flat_map(|(row, factor)| row.iter().map(move |x| x * factor)).collect()
}

/// Keeps what lies below the diagonal.
#[inline(always)]
fn strictly_lower(matrix: &mut [f32], n: usize) {
    for (i, row) in matrix.chunks_exact_mut(n).enumerate() {
        row[i..].fill(0.0);
    }
}

impl<'a> Chunk<'a> {
    #[inline(always)]
    pub fn new(keys: &'a Keys, decays: Decays) -> Self {
        let p = hadamard(&decays.gamma, &keys.qk);
        let mut n = hadamard(&decays.gamma, &keys.kk);
        strictly_lower(&mut n, decays.beta.len());
        Chunk { keys, decays, n, p }
    }

    #[inline(always)]
    fn product(&self, a: &[f32], b: &Panels) -> Panels {
        product(self.keys.isa, a, b)
    }

    #[inline(always)]
    fn add_transposed_product(&self, a: &[f32], b: &Panels, c: &mut Panels) {
        add_transposed_product(self.keys.isa, a, b, c);
    }

    fn len(&self) -> usize {
        self.decays.beta.len()
    }

    fn dim(&self) -> usize {
        self.keys.k.len() / self.len()
    }

    /// U and R for values `v` and the state before.
    #[inline(always)]
    pub fn errors(&self, v: &Panels, state: &Panels) -> [Panels; 2] {
        let mut u = self.product(&self.keys.k, state);
        u.scale_rows(&self.decays.before);
        u.scale(-1.0);
        u.add(1.0, v);
        let mut r = Panels::zeros(u.rows, u.cols);
        let len = self.len();
        for panel in 0..u.panels() {
            let (u, r) = (u.panel_mut(panel), r.panel_mut(panel));
            for i in 0..len {
                let mut row = u[i];
                for (n, r) in self.n[i * len..][..i].iter().zip(&r[..i]) {
                    for l in 0..LANES {
                        row[l] = (-n).mul_add(r[l], row[l]);
                    }
                }
                u[i] = row;
                for l in 0..LANES {
                    r[i][l] = self.decays.beta[i] * row[l];
                }
            }
        }
        [u, r]
    }

    /// O.
    #[inline(always)]
    pub fn output(&self, r: &Panels, state: &Panels) -> Panels {
        let mut out = self.product(&self.keys.q, state);
        out.scale_rows(&self.decays.before);
        out.add(1.0, &self.product(&self.p, r));
        out
    }

    /// The state after the chunk.
    #[inline(always)]
    pub fn advance(&self, r: &Panels, state: &mut Panels) {
        state.scale(self.decays.last());
        self.add_transposed_product(&scaled(&self.keys.k, self.dim(), &self.decays.after), r, state);
    }

    /// Gradients for `dout`, given the states before and after and the gradient `d` of the one after; `d` becomes that of
    /// the one before.
    #[inline(always)]
    pub fn backward(
        &self,
        v: &Panels,
        [before, after]: [&Panels; 2],
        dout: &Panels,
        d: &mut Panels,
    ) -> ChunkGradients {
        let [u, r] = self.errors(v, before);
        let y = self.error_gradient(dout, d);
        let mut dv = y.clone();
        dv.scale_rows(&self.decays.beta);
        let (y_rows, u_rows) = (y.to_rows(), u.to_rows());
        let dbeta = y_rows
            .chunks_exact(v.cols)
            .zip(u_rows.chunks_exact(v.cols))
            .map(|(y, u)| lanes::dot(y, u) as f32)
            .collect();
        let decay_of_state = d.dot(after);
        let (dq, dk, db) = self.key_gradients(before, [&r, &y, &dv], dout, d);
        let dg = decay_gradients(db, decay_of_state);
        d.scale(self.decays.last());
        let dim = self.dim();
        self.add_transposed_product(&scaled(&self.keys.q, dim, &self.decays.before), dout, d);
        let minus: Vec<f32> = self.decays.before.iter().map(|x| -x).collect();
        self.add_transposed_product(&scaled(&self.keys.k, dim, &minus), &dv, d);
        ChunkGradients { dq, dk, dv, dbeta, dg }
    }

    /// Y: solves `(I + β N)ᵀ Y = Pᵀ dO + (e^(b_n - b) ∘ K) D`, the rows descending.
    #[inline(always)]
    fn error_gradient(&self, dout: &Panels, d: &Panels) -> Panels {
        let len = self.len();
        let mut y = self.product(&scaled(&self.keys.k, self.dim(), &self.decays.after), d);
        self.add_transposed_product(&self.p, dout, &mut y);
        for panel in 0..y.panels() {
            let y = y.panel_mut(panel);
            for i in (0..len).rev() {
                let (earlier, later) = y.split_at_mut(i + 1);
                let row = &mut earlier[i];
                for (j, later) in (i + 1..len).zip(later) {
                    let factor = -self.decays.beta[j] * self.n[j * len + i];
                    for (x, y) in row.iter_mut().zip(later) {
                        *x = factor.mul_add(*y, *x);
                    }
                }
            }
        }
        y
    }

    /// dQ and dK, and of each token the gradient of its summed decay.
    #[inline(always)]
    fn key_gradients(
        &self,
        state: &Panels,
        [r, y, dx]: [&Panels; 3],
        dout: &Panels,
        d: &Panels,
    ) -> (Vec<f32>, Vec<f32>, Vec<f64>) {
        let (len, dim) = (self.len(), self.dim());
        let r_transposed = Panels::transposed(&r.to_rows(), r.cols);
        let mut h = hadamard(&self.product(&dout.to_rows(), &r_transposed).to_rows(), &self.decays.gamma);
        let mut n = hadamard(&self.product(&y.to_rows(), &r_transposed).to_rows(), &self.decays.gamma);
        strictly_lower(&mut n, len);
        for (row, beta) in n.chunks_exact_mut(len).zip(&self.decays.beta) {
            row.iter_mut().for_each(|x| *x *= -beta);
        }
        for (i, row) in h.chunks_exact_mut(len).enumerate() {
            row[i + 1..].fill(0.0);
        }
        let (keys, queries) = (Panels::of(&self.keys.k, dim, dim), Panels::of(&self.keys.q, dim, dim));
        let state_transposed = Panels::transposed(&state.to_rows(), state.cols);
        let mut dq = self.product(&dout.to_rows(), &state_transposed);
        dq.scale_rows(&self.decays.before);
        dq.add(1.0, &self.product(&h, &keys));
        let mut as_row = self.product(&dx.to_rows(), &state_transposed);
        as_row.scale_rows(&self.decays.before);
        as_row.scale(-1.0);
        as_row.add(1.0, &self.product(&n, &keys));
        let mut as_column = self.product(&r.to_rows(), &Panels::transposed(&d.to_rows(), d.cols));
        as_column.scale_rows(&self.decays.after);
        self.add_transposed_product(&h, &queries, &mut as_column);
        self.add_transposed_product(&n, &keys, &mut as_column);
        let (dq, as_row, as_column) = (dq.to_rows(), as_row.to_rows(), as_column.to_rows());
        let db = (0..len)
            .map(|i| {
                let at = i * dim..(i + 1) * dim;
                let (q, k) = (&self.keys.q[at.clone()], &self.keys.k[at.clone()]);
                lanes::dot(q, &dq[at.clone()]) + lanes::dot(k, &as_row[at.clone()])
                    - lanes::dot(k, &as_column[at])
            })
            .collect();
        let dk = as_row.iter().zip(&as_column).map(|(a, b)| a + b).collect();
        (dq, dk, db)
    }
}

/// `dg_i = Σ_{l >= i} db_l`, with the state's decay at the last token.
#[inline(always)]
fn decay_gradients(db: Vec<f64>, of_state: f64) -> Vec<f32> {
    let mut sum = of_state;
    let mut dg: Vec<f32> = db
        .iter()
        .rev()
        .map(|db| {
            sum += db;
            sum as f32
        })
        .collect();
    dg.reverse();
    dg
}
