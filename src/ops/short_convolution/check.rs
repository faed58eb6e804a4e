//! The short convolution: segments shorter than its window and longer, around the pieces of rows, one tap, more rows of
//! input than of channels, and one more token of each segment.

use super::{ShortConvolution, Windows};
use crate::device::Capabilities;
use crate::device::Storage::{Activation, F32};
use crate::ops::attention::{Segment, Segments, placed, work};
use crate::ops::check::forms::sigmoid;
use crate::ops::check::{self, Cost, Derivative, Limit, Operation, Rig, Shape, boxed, takes_rows};
use std::borrow::Cow::{self, Borrowed};

/// A convolution.
#[derive(Clone, Debug)]
pub struct Case {
    /// Channels.
    pub channels: usize,
    /// Tokens that a channel sees.
    pub taps: usize,
    /// Columns of the input beside the channels.
    pub beside: usize,
    /// Lengths of the segments.
    pub segments: Cow<'static, [u32]>,
}

/// Short convolutions.
pub const CASES: &[Case] = &[
    Case { channels: 1, taps: 1, beside: 0, segments: Borrowed(&[1]) },
    Case { channels: 21, taps: 2, beside: 3, segments: Borrowed(&[5, 1]) },
    Case { channels: 24, taps: 4, beside: 16, segments: Borrowed(&[1, 2, 9, 40, 3]) },
    Case { channels: 512, taps: 4, beside: 264, segments: Borrowed(&[63, 64, 65]) },
    Case { channels: 2056, taps: 4, beside: 0, segments: Borrowed(&[130]) },
];

/// The operation.
pub const OPERATION: Operation = Operation {
    name: "short_convolution",
    scalar: true,
    #[cfg(feature = "cuda")]
    kernels: crate::device::cuda::Kernels::NONE,
    cases: || boxed(CASES),
    in_model,
};

fn in_model(s: &Shape) -> Vec<Box<dyn check::Case>> {
    let case = |d: check::DeltaShape| Case {
        channels: 2 * d.key_heads * d.key_dim + d.value_heads * d.value_dim,
        taps: d.taps,
        beside: d.value_heads * (d.value_dim + 2),
        segments: Cow::Owned(vec![s.row as u32; s.tokens / s.row]),
    };
    s.delta.into_iter().flat_map(|d| boxed(&[case(d)])).collect()
}

/// The operation in f64.
#[derive(Clone)]
struct Form {
    channels: usize,
    taps: usize,
    width: usize,
    segments: Vec<Segment>,
    weight: Vec<f64>,
}

impl Form {
    /// Calls `f` with each row of the output, the row of the input that is `back` before it, and that tap's weights.
    fn each(&self, mut f: impl FnMut(usize, usize, &[f64])) {
        for segment in &self.segments {
            let start = segment.start as usize;
            for t in 0..segment.len as usize {
                for back in 0..self.taps.min(t + 1) {
                    let tap = self.taps - 1 - back;
                    f(start + t, start + t - back, &self.weight[tap * self.channels..][..self.channels]);
                }
            }
        }
    }

    /// The convolution without SiLU.
    fn convolved(&self, x: &[f64]) -> Vec<f64> {
        let mut c = vec![0.0; x.len() / self.width * self.channels];
        self.each(|to, from, weight| {
            let x = &x[from * self.width..];
            let c = c[to * self.channels..].iter_mut();
            c.zip(weight).zip(x).for_each(|((c, w), x)| *c += w * x);
        });
        c
    }

    fn forward(&self, x: &[f64]) -> Vec<f64> {
        self.convolved(x).into_iter().map(|c| c * sigmoid(c)).collect()
    }

    /// Gradient of the input, zero beside the channels.
    fn backward(&self, x: &[f64], dy: &[f64]) -> Vec<f64> {
        let slope = |c: f64| sigmoid(c) + c * sigmoid(c) * sigmoid(-c);
        let dc: Vec<f64> = self.convolved(x).into_iter().zip(dy).map(|(c, dy)| dy * slope(c)).collect();
        let mut dx = vec![0.0; x.len()];
        self.each(|from, to, weight| {
            let dc = &dc[from * self.channels..];
            let dx = dx[to * self.width..].iter_mut();
            dx.zip(weight).zip(dc).for_each(|((dx, w), dc)| *dx += w * dc);
        });
        dx
    }

    /// The last `taps - 1` rows of each segment, oldest first, zeros before its first.
    fn windows(&self, x: &[f64]) -> Vec<Vec<f64>> {
        let row = |segment: &Segment, back: usize| match (segment.len as usize).checked_sub(back) {
            Some(t) => x[(segment.start as usize + t) * self.width..][..self.channels].to_vec(),
            None => vec![0.0; self.channels],
        };
        let window = |segment| (1..self.taps).rev().flat_map(|back| row(segment, back)).collect();
        self.segments.iter().map(window).collect()
    }

    /// One more row of each segment, and the windows after it.
    fn step(&self, windows: &[Vec<f64>], x: &[f64]) -> (Vec<f64>, Vec<Vec<f64>>) {
        let (mut out, mut after) = (Vec::new(), Vec::new());
        for (window, x) in windows.iter().zip(x.chunks_exact(self.width)) {
            let mut rows = window.clone();
            rows.extend(&x[..self.channels]);
            let tap = |c: usize| {
                let taps = (c..rows.len()).step_by(self.channels);
                taps.map(|i| rows[i] * self.weight[i]).sum::<f64>()
            };
            out.extend((0..self.channels).map(tap).map(|c| c * sigmoid(c)));
            after.push(rows[self.channels..].to_vec());
        }
        (out, after)
    }
}

impl check::Case for Case {
    fn runs_on(&self, device: &Capabilities) -> bool {
        device.gated_mixers && takes_rows(device, self.channels) && takes_rows(device, self.beside)
    }

    fn set_up(&self, rig: &mut Rig) {
        let Case { channels, taps, beside, .. } = *self;
        let (segments, width) = (placed(&self.segments), channels + beside);
        let (count, tokens) = (segments.len(), self.segments.iter().sum::<u32>() as usize);
        rig.seed(31);
        let x = rig.random(Activation, tokens * width, 1.0);
        let next = rig.random(Activation, count * width, 1.0);
        let weight = rig.random(F32, taps * channels, 0.7);
        let dy = rig.random(Activation, tokens * channels, 1.0);
        let y = rig.space(Activation, tokens * channels);
        let y_next = rig.space(Activation, count * channels);
        let dx = rig.zeros(Activation, tokens * width);
        let p = ShortConvolution { channels, taps, width, weight };
        // One slot more than there are segments: nobody's, which stays as it is.
        let windows = rig.zeros(Activation, (count + 1) * p.window_len());
        let slots = rig.list((1..=count as u32).rev().collect());
        let lists = work(&segments).map(|words| rig.list(words));
        let len = tokens * channels;
        let passing = Cost { activations: 2 * len, words: taps * channels, ..Cost::default() };
        let of_forward = segments.clone();
        rig.call("forward", passing, move |dev, all| {
            let segments = Segments { list: &of_forward, work: lists.map(|list| all[list.at]) };
            let windows = Windows { region: windows, slots: all[slots.at] };
            super::forward(dev, &p, &segments, x, y, Some(windows));
            Ok(())
        });
        let activations = count * (2 * channels + 2 * p.window_len());
        rig.call("step", Cost { activations, ..passing }, move |dev, all| {
            super::step(dev, &p, next, y_next, Windows { region: windows, slots: all[slots.at] });
            Ok(())
        });
        let of_backward = segments.clone();
        rig.call("backward", Cost { activations: 3 * len, ..passing }, move |dev, all| {
            let segments = Segments { list: &of_backward, work: lists.map(|list| all[list.at]) };
            super::backward(dev, &p, &segments, x, dy, dx);
            Ok(())
        });
        let form = move |weight| Form { channels, taps, width, segments: segments.clone(), weight };
        let of_results = form.clone();
        rig.wants(&[y, y_next, windows, dx], move |o| {
            let (form, x) = (of_results(o.given(weight)), o.given(x));
            let (stepped, after) = form.step(&form.windows(&x), &o.given(next));
            let mut kept = vec![0.0; p.window_len()];
            after.iter().rev().for_each(|window| kept.extend(window));
            vec![
                o.finding("y", y, &form.forward(&x), Limit::ROUNDED),
                o.finding("y of one more", y_next, &stepped, Limit::ROUNDED),
                o.finding("windows", windows, &kept, Limit::SAME),
                o.finding("dx", dx, &form.backward(&x, &o.given(dy)), TWICE_ROUNDED),
            ]
        });
        rig.derivative("dx", move |rig| {
            let (form, at, upper) = (form(rig.given(weight)), rig.given(x), rig.given(dy));
            let gradient = form.backward(&at, &upper);
            Derivative { function: Box::new(move |x: &[f64]| form.forward(x)), at, upper, gradient }
        });
    }
}

/// The gradient of the convolution itself is an activation, and so is that of its input.
const TWICE_ROUNDED: Limit = Limit { f32: 1e-6, bf16: 1e-2 };
