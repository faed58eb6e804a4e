//! The CPU form, row by row.

use super::{ShortConvolution, Windows};
use crate::device::cpu::math::sigmoid;
use crate::device::cpu::tasks;
use crate::device::{Cpu, Region};
use crate::ops::attention::Segment;

/// For each row, how many rows of its segment lie before it, and after it.
fn places(segments: &[Segment]) -> Vec<[usize; 2]> {
    let rows = |s: &Segment| {
        let len = s.len as usize;
        (0..len).map(move |i| [i, len - 1 - i])
    };
    segments.iter().flat_map(rows).collect()
}

/// `out += w ∘ x`.
#[inline(always)]
fn add(out: &mut [f32], w: &[f32], x: &[f32]) {
    for ((out, w), x) in out.iter_mut().zip(w).zip(x) {
        *out = w.mul_add(*x, *out);
    }
}

/// The convolution at row `row`, of which `before` rows of the segment come first.
#[inline(always)]
fn convolve(p: &ShortConvolution, weight: &[f32], x: &[f32], row: usize, before: usize, out: &mut [f32]) {
    out.fill(0.0);
    for back in (0..p.taps.min(before + 1)).rev() {
        let x = &x[(row - back) * p.width..][..p.channels];
        add(out, &weight[(p.taps - 1 - back) * p.channels..][..p.channels], x);
    }
}

#[inline(always)]
fn silu(values: &mut [f32]) {
    for v in values {
        *v *= sigmoid(*v);
    }
}

pub(in super::super) fn forward(
    cpu: &mut Cpu,
    p: &ShortConvolution,
    segments: &[Segment],
    x: Region,
    y: Region,
    windows: Option<Windows<'_>>,
) {
    let isa = cpu.isa;
    let kept = windows.map_or(Region { len: 0, ..y }, |w| w.region);
    let (pool, [x, weight], [out, kept]) = cpu.split([x, p.weight], [y, kept]);
    let n = tasks::rows(p.channels);
    let places = places(segments);
    tasks::run(
        pool,
        isa,
        out.chunks_mut(n * p.channels).zip(places.chunks(n)).enumerate().collect(),
        #[inline(always)]
        |(task, (out, places))| {
            for (i, (out, [before, _])) in out.chunks_exact_mut(p.channels).zip(places).enumerate() {
                convolve(p, weight, x, task * n + i, *before, out);
                silu(out);
            }
        },
    );
    if let Some(windows) = windows {
        for (segment, slot) in segments.iter().zip(windows.slots.values) {
            let window = &mut kept[*slot as usize * p.window_len()..][..p.window_len()];
            let (start, len) = (segment.start as usize, segment.len as usize);
            for (back, row) in (1..p.taps).zip(window.chunks_exact_mut(p.channels).rev()) {
                match len.checked_sub(back) {
                    Some(at) => row.copy_from_slice(&x[(start + at) * p.width..][..p.channels]),
                    None => row.fill(0.0),
                }
            }
        }
    }
    cpu.round(y);
}

pub(in super::super) fn step(
    cpu: &mut Cpu,
    p: &ShortConvolution,
    x: Region,
    y: Region,
    windows: Windows<'_>,
) {
    let (_, [x, weight], [out, kept]) = cpu.split([x, p.weight], [y, windows.region]);
    let rows = out.chunks_exact_mut(p.channels).zip(x.chunks_exact(p.width));
    for ((out, x), slot) in rows.zip(windows.slots.values) {
        let window = &mut kept[*slot as usize * p.window_len()..][..p.window_len()];
        out.fill(0.0);
        let (x, taps) = (&x[..p.channels], weight.chunks_exact(p.channels));
        for (x, w) in window.chunks_exact(p.channels).chain([x]).zip(taps) {
            add(out, w, x);
        }
        silu(out);
        window.copy_within(p.channels.min(window.len()).., 0);
        if let Some(newest) = window.chunks_exact_mut(p.channels).next_back() {
            newest.copy_from_slice(x);
        }
    }
    cpu.round(y);
}

/// First the gradient of the convolution itself, in place of `dy`: with s = σ(c), d silu(c)/dc = s (1 + c (1 - s)). Then
/// each input's, from the rows that saw it.
pub(in super::super) fn backward(
    cpu: &mut Cpu,
    p: &ShortConvolution,
    segments: &[Segment],
    x: Region,
    dy: Region,
    dx: Region,
) {
    let isa = cpu.isa;
    let (pool, [x, weight], [dc, dx_rows]) = cpu.split([x, p.weight], [dy, dx]);
    let n = tasks::rows(p.channels);
    let places = places(segments);
    tasks::run(
        pool,
        isa,
        dc.chunks_mut(n * p.channels).zip(places.chunks(n)).enumerate().collect(),
        #[inline(always)]
        |(task, (dc, places))| {
            let mut c = vec![0.0; p.channels];
            for (i, (dc, [before, _])) in dc.chunks_exact_mut(p.channels).zip(places).enumerate() {
                convolve(p, weight, x, task * n + i, *before, &mut c);
                for (dc, c) in dc.iter_mut().zip(&c) {
                    let s = sigmoid(*c);
                    *dc *= s * c.mul_add(1.0 - s, 1.0);
                }
            }
        },
    );
    let dc = &*dc;
    tasks::run(
        pool,
        isa,
        dx_rows.chunks_mut(n * p.width).zip(places.chunks(n)).enumerate().collect(),
        #[inline(always)]
        |(task, (dx, places))| {
            for (i, (dx, [_, after])) in dx.chunks_exact_mut(p.width).zip(places).enumerate() {
                let dx = &mut dx[..p.channels];
                dx.fill(0.0);
                for ahead in 0..p.taps.min(after + 1) {
                    let dc = &dc[(task * n + i + ahead) * p.channels..][..p.channels];
                    add(dx, &weight[(p.taps - 1 - ahead) * p.channels..][..p.channels], dc);
                }
            }
        },
    );
    cpu.round(dx);
}
