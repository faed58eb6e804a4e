//! Gated DeltaNet on packed rows: a segment has the bytes of the segment alone, in results and in gradients.

use super::rig::{normal, results};
use qwentune::device::Storage::F32;
use qwentune::device::{Device, Region};
use qwentune::ops::attention::{Segments, placed};
use qwentune::ops::check::Rig;
use qwentune::ops::delta_rule::{self, Backward, DeltaRule, Gates};
use qwentune::ops::short_convolution::{self, ShortConvolution};

/// Segments: the last has as many tokens as the first, and neighbours on both sides of a chunk's end.
const LENS: [u32; 3] = [70, 9, 70];

/// Operands of a run: rows of each of some widths, of the tokens from one on.
fn rows(rig: &mut Rig, widths: &[usize], skip: usize, tokens: usize) -> Vec<Region> {
    let all = LENS.iter().sum::<u32>() as usize;
    let part = |(seed, width): (usize, &usize)| {
        normal(seed as u64 + 1, all * width, 1.0)[skip * width..][..tokens * width].to_vec()
    };
    let values: Vec<Vec<f32>> = widths.iter().enumerate().map(part).collect();
    values.into_iter().map(|values| rig.holding(F32, values)).collect()
}

/// Compares the last segment of the packed rows with the same alone. `run` is given the rig, the lengths, and the first
/// token, and says which results there are and how wide their rows are.
fn assert_alone_as_packed(run: impl Fn(&mut Rig, &'static [u32], usize) -> Vec<(Region, usize)>) {
    let tails = |lens: &'static [u32], skip: usize| {
        let widths = std::cell::RefCell::new(Vec::new());
        let got = results(|rig| {
            let out = run(rig, lens, skip);
            *widths.borrow_mut() = out.iter().map(|(_, width)| *width).collect();
            rig.wants(&out.into_iter().map(|(region, _)| region).collect::<Vec<_>>(), |_| Vec::new());
        });
        let last = lens[lens.len() - 1] as usize;
        let tail = |(values, width): (Vec<f32>, &usize)| {
            values[values.len() - last * width..].iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
        };
        got.into_iter().zip(&*widths.borrow()).map(tail).collect::<Vec<_>>()
    };
    let (packed, alone) = (tails(&LENS, 0), tails(&LENS[2..], 79));
    assert!(packed.iter().flatten().any(|bits| *bits != 0), "nothing was computed");
    assert_eq!(packed, alone);
}

fn call(rig: &mut Rig, work: impl Fn(&mut Device) + 'static) {
    rig.call("both passes", Default::default(), move |dev, _| {
        work(dev);
        Ok(())
    });
}

#[test]
fn segments_of_a_delta_rule_do_not_see_each_other() {
    assert_alone_as_packed(|rig, lens, skip| {
        let [a_log, dt_bias] = [0.5, -1.0].map(|value| rig.holding(F32, vec![value; 4]));
        let gates = Gates { width: 11, b: 2, a: 6 };
        let p = DeltaRule { key_heads: 2, value_heads: 4, key_dim: 8, value_dim: 24, a_log, dt_bias, gates };
        let tokens = lens.iter().sum::<u32>() as usize;
        let widths = [p.qkv_width(), gates.width, p.out_width()];
        let operands = rows(rig, &widths, skip, tokens);
        let (qkv, projected, dout) = (operands[0], operands[1], operands[2]);
        let [dqkv, dprojected, out] = widths.map(|width| rig.zeros(F32, tokens * width));
        call(rig, move |dev| {
            let segments = placed(lens);
            let segments = Segments::host(&segments);
            delta_rule::forward(dev, &p, &segments, [qkv, projected], out, None);
            let o = Backward { qkv, projected, dout, dqkv, dprojected };
            delta_rule::backward(dev, &p, &segments, &o);
        });
        vec![(out, widths[2]), (dqkv, widths[0]), (dprojected, widths[1])]
    });
}

#[test]
fn segments_of_a_short_convolution_do_not_see_each_other() {
    assert_alone_as_packed(|rig, lens, skip| {
        let weight = rig.random(F32, 4 * 21, 0.7);
        let p = ShortConvolution { channels: 21, taps: 4, width: 24, weight };
        let tokens = lens.iter().sum::<u32>() as usize;
        let operands = rows(rig, &[p.width, p.channels], skip, tokens);
        let (x, dy) = (operands[0], operands[1]);
        let [y, dx] = [p.channels, p.width].map(|width| rig.zeros(F32, tokens * width));
        call(rig, move |dev| {
            let segments = placed(lens);
            short_convolution::forward(dev, &p, &Segments::host(&segments), x, y, None);
            short_convolution::backward(dev, &p, &Segments::host(&segments), x, dy, dx);
        });
        vec![(y, p.channels), (dx, p.width)]
    });
}
