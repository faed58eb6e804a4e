//! Causal grouped-query attention: projections, norms of heads, rotary positions, attention, output projection.

use super::projection::{Projection, SharedBuffers};
use super::{Backward, Block, Forward, Kept, Pass, Reads};
use crate::device::{Device, Region, Storage};
use crate::error::Result;
use crate::model::buffers::{Buffers, Saved};
use crate::model::builder::Builder;
use crate::model::spec::AttentionSpec;
use crate::ops::attention::{self, Attention};
use crate::ops::decode_attention::{self, Cache};
use crate::ops::linear::Group;
use crate::ops::rope::{self, HeadNorm, Rope};

pub(super) struct AttentionBlock {
    input: Projection,
    rope: Rope,
    attention: Attention,
    output: Projection,
    /// Factors of the queries by position, where they grow with it.
    logn: Option<Region>,
    buffers: AttentionBuffers,
}

#[derive(Clone, Copy, Default)]
struct AttentionBuffers {
    qkv: Saved,
    /// Rotated.
    qk: Region,
    attended: Saved,
    lse: Region,
    cache: Option<Cache>,
    dqkv: Region,
    dqk: Region,
    dattended: Region,
    delta: Region,
}

impl AttentionBlock {
    pub fn new(spec: &AttentionSpec, layer: usize, b: &mut Builder<'_>) -> Result<Self> {
        let AttentionSpec { heads, kv_heads, head_dim, .. } = *spec;
        b.check_heads(head_dim)?;
        let norm = match &spec.qk_norm {
            Some([q, k]) => Some(HeadNorm { q: b.norm(q)?.weight, k: b.norm(k)?.weight, eps: q.eps }),
            None => None,
        };
        let logn = spec.logn.and_then(|trained| b.decoded(|positions| logarithms(trained, positions)));
        Ok(AttentionBlock {
            input: Projection::mixer_input(&spec.input, layer, b)?,
            rope: Rope { heads, kv_heads, head_dim, table: b.rotary(&spec.rotary), norm },
            attention: Attention {
                heads,
                kv_heads,
                head_dim,
                scale: (1.0 / (head_dim as f64).sqrt()) as f32,
            },
            output: Projection::mixer_output(&spec.output, layer, b)?,
            logn,
            buffers: AttentionBuffers::default(),
        })
    }

    fn rotate(&self, dev: &mut Device, pass: &Pass<'_>) -> [Region; 2] {
        let qkv = pass.rows(self.buffers.qkv.values, self.rope.qkv_width());
        let qk = pass.rows(self.buffers.qk, self.rope.qk_width());
        rope::forward(dev, &self.rope, qkv, pass.angles, qk);
        [qk, qkv]
    }

    /// Puts keys and values where later tokens find them; before that, queries grow.
    fn keep(&self, dev: &mut Device, [qk, qkv]: [Region; 2], kept: &Kept<'_>) -> Cache {
        let cache = self.buffers.cache.expect("a cache is planned for decoding");
        if let Some(table) = self.logn {
            decode_attention::scale_queries(dev, &self.attention, table, kept.positions, qk);
        }
        decode_attention::append(dev, &self.attention, qk, qkv, kept.places, cache);
        cache
    }
}

/// Factors of the queries: `log(position + 1)` to the base of the trained length, and 1 up to it (Qwen v1's
/// modeling_qwen.py).
fn logarithms(trained: usize, positions: usize) -> Vec<f32> {
    let base = libm::log(trained as f64);
    let factor = |n: usize| if n > trained { libm::log(n as f64) / base } else { 1.0 };
    (1..=positions).map(|n| factor(n) as f32).collect()
}

impl Block for AttentionBlock {
    fn groups(&self) -> Vec<&Group> {
        vec![&self.input.group, &self.output.group]
    }

    fn plan(&mut self, b: &mut Buffers<'_>) {
        use Storage::{Activation, F32};
        let (qkv, qk) = (self.rope.qkv_width(), self.rope.qk_width());
        let (attended, heads) = (self.output.group.input, self.attention.heads);
        let kv = self.attention.kv_heads * self.attention.head_dim;
        let cache = b.cache(kv).zip(b.cache(kv)).map(|(k, v)| Cache { k, v });
        self.buffers = AttentionBuffers {
            qkv: b.saved(qkv),
            qk: b.work(Activation, qk),
            attended: b.saved(attended),
            lse: b.kept(F32, heads),
            cache,
            dqkv: b.gradient(Activation, qkv),
            dqk: b.gradient(Activation, qk),
            dattended: b.gradient(Activation, attended),
            delta: b.gradient(F32, heads),
        };
        let shared = SharedBuffers::plan(b, &[&self.input.group, &self.output.group]);
        self.input.plan(b, shared);
        self.output.plan(b, shared);
    }

    fn forward(&self, dev: &mut Device, pass: &Pass<'_>, o: &Forward) {
        let p = &self.attention;
        self.input.forward(dev, pass, o.x, &self.buffers.qkv);
        let [qk, qkv] = self.rotate(dev, pass);
        let attended = pass.rows(self.buffers.attended.values, self.output.group.input);
        let lse = pass.rows(self.buffers.lse, p.heads);
        match &pass.reads {
            Reads::Texts(segments) => attention::forward(dev, p, segments, qk, qkv, attended, lse),
            Reads::Prompts(segments, kept) => {
                self.keep(dev, [qk, qkv], kept);
                attention::forward(dev, p, segments, qk, qkv, attended, lse);
            }
            Reads::Sequences(seen, kept) => {
                let cache = self.keep(dev, [qk, qkv], kept);
                decode_attention::forward(dev, p, qk, seen, cache, attended);
            }
        }
        self.buffers.attended.save(dev, pass);
        self.output.forward_onto(dev, pass, self.buffers.attended.values, o.y, o.residual);
    }

    fn backward(&self, dev: &mut Device, pass: &Pass<'_>, o: &Backward, stop: Option<usize>) {
        let buffers = &self.buffers;
        let dattended = (stop != Some(1)).then_some(buffers.dattended);
        buffers.attended.restore(dev, pass);
        self.output.backward(dev, pass, buffers.attended.values, o.dy, dattended);
        if dattended.is_none() {
            return;
        }
        buffers.qkv.restore(dev, pass);
        let Reads::Texts(segments) = &pass.reads else { unreachable!("a backward pass is over whole texts") };
        let [qk, qkv] = self.rotate(dev, pass);
        let (attended, heads) = (self.output.group.input, self.attention.heads);
        let operands = attention::Backward {
            qk,
            qkv,
            out: pass.rows(buffers.attended.values, attended),
            lse: pass.rows(buffers.lse, heads),
            dout: pass.rows(buffers.dattended, attended),
            delta: pass.rows(buffers.delta, heads),
            dqk: pass.rows(buffers.dqk, self.rope.qk_width()),
            dqkv: pass.rows(buffers.dqkv, self.rope.qkv_width()),
        };
        attention::backward(dev, &self.attention, segments, &operands);
        rope::backward(dev, &self.rope, qkv, pass.angles, operands.dqk, operands.dqkv);
        self.input.backward(dev, pass, o.x, buffers.dqkv, (stop != Some(0)).then_some(o.dx));
    }
}
