//! With bf16 rounding asked for, activations are stored as bf16 values and statistics stay f32.

use super::rig::Rig;
use qwentune::device::cpu::{Isa, Rounding};
use qwentune::device::{Device, Indices, Matrix};
use qwentune::ops::attention::{self, Attention, Segment, Segments};
use qwentune::ops::rmsnorm::{self, RmsNorm};
use qwentune::ops::rope::{self, Rope};
use qwentune::ops::{embedding, swiglu};

#[test]
fn stored_activations_are_rounded_where_asked() {
    let (tokens, d) = (20, 16);
    let mut rig = Rig::new(61);
    let table = Matrix::from_f32(&super::rig::normal(1, 5 * d, 1.0), 5, d);
    let [x, normed, weight, rstd] = [tokens * d, tokens * d, d, tokens].map(|n| rig.random(n, 1.0).0);
    let angles = rig.given(&rope::table(d, 1e4, tokens));
    let [qk, dqk] = [tokens * 3 * d; 2].map(|n| rig.random(n, 1.0).0);
    let [qkv, dqkv] = [tokens * 4 * d; 2].map(|n| rig.random(n, 1.0).0);
    let [out, dout] = [tokens * 2 * d; 2].map(|n| rig.random(n, 1.0).0);
    let [lse, delta] = [tokens * 2; 2].map(|n| rig.random(n, 1.0).0);
    let (gate_up, wide) = (rig.random(tokens * 2 * d, 1.0).0, rig.random(tokens * d, 1.0).0);

    let Device::Cpu(mut cpu) = rig.device(2, Isa::best()) else { panic!("the rig has CPUs") };
    cpu.rounding = Rounding::Bf16;
    let mut dev = Device::Cpu(cpu);
    let ids: Vec<u32> = (0..tokens as u32).map(|t| t % 5).collect();
    let positions: Vec<u32> = (0..tokens as u32).collect();
    let norm = RmsNorm { dim: d, eps: 1e-6, weight };
    let rope =
        Rope { heads: 2, kv_heads: 1, head_dim: d, gated: false, turned: d, table: angles, norm: None };
    let attention = Attention { heads: 2, kv_heads: 1, head_dim: d, gated: false, scale: 0.25 };
    let list = [Segment { start: 0, len: tokens as u32 }];
    let segments = Segments::host(&list);
    embedding::forward(&mut dev, &table, Indices::host(&ids), x);
    rmsnorm::forward(&mut dev, &norm, x, normed, rstd);
    rope::forward(&mut dev, &rope, qkv, Indices::host(&positions), qk);
    attention::forward(&mut dev, &attention, &segments, qk, qkv, out, lse);
    let o = attention::Backward { qk, qkv, out, lse, dout, delta, dqk, dqkv };
    attention::backward(&mut dev, &attention, &segments, &o);
    rope::backward(&mut dev, &rope, qkv, Indices::host(&positions), dqk, dqkv);
    swiglu::forward(&mut dev, gate_up, d, wide);
    swiglu::backward(&mut dev, gate_up, d, wide);

    let Device::Cpu(cpu) = dev else { panic!("as above") };
    for region in [x, normed, qk, out, dqk, dqkv, wide, gate_up] {
        assert!(cpu.read(region).iter().all(|v| v.to_bits() & 0xffff == 0), "not bf16: {region:?}");
    }
    for region in [rstd, lse, delta] {
        assert!(cpu.read(region).iter().any(|v| v.to_bits() & 0xffff != 0), "statistic rounded: {region:?}");
    }
}
