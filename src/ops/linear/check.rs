//! Linear layers with adapters: ranks that are no multiple of 8, layers without adapters, one token, more tokens than a
//! part of the gradients has, more tiles of rows than a GPU takes together, more layers than one launch takes; weights in
//! each element type.

use super::{Backward, Dropout, Forward, Group, Linear, Lora, Packing};
use crate::device::Storage::{self, Activation, F32};
use crate::device::{Capabilities, Purpose, Region};
use crate::element::Element;
use crate::ops::check::forms::{add, columns, product_nn, product_nt, product_tn, put_columns};
use crate::ops::check::{
    self, Cost, Derivative, Finding, Limit, Operation, Outcome, Rig, Shape, boxed, takes_rows, widened,
};
use crate::philox::philox4x32;
use std::borrow::Cow::{self, Borrowed};

/// A group of linear layers.
#[derive(Clone, Debug)]
pub struct Case {
    /// Token rows.
    pub tokens: usize,
    /// Input features.
    pub input: usize,
    /// Output features, rank (0: no adapter) and bias of each layer.
    pub layers: Cow<'static, [(usize, usize, bool)]>,
    /// Whether something is added to the output.
    pub residual: bool,
    /// Probability that an element of the adapters' input is dropped.
    pub dropout: f32,
}

/// Layers as (output features, rank, bias), then whether there is a residual, and the dropout.
const fn case(
    tokens: usize,
    input: usize,
    layers: &'static [(usize, usize, bool)],
    residual: bool,
    dropout: f32,
) -> Case {
    Case { tokens, input, layers: Borrowed(layers), residual, dropout }
}

/// Cases. The shapes around the tiles of a GPU are those of 128 rows, of 64, 128 and 256 columns, and of slices of 32.
pub const CASES: &[Case] = &[
    case(1, 8, &[(8, 1, false)], false, 0.0),
    case(70, 64, &[(64, 4, true), (16, 3, true), (16, 8, true)], false, 0.0),
    case(33, 136, &[(264, 16, false), (264, 0, false)], false, 0.25),
    case(130, 200, &[(72, 8, false)], true, 0.0),
    case(600, 72, &[(24, 80, false)], true, 0.1),
    case(17, 40, &[(48, 0, true)], false, 0.0),
    case(96, 264, &[(520, 64, false), (136, 72, false)], false, 0.0),
    case(1300, 8, &[(136, 1, false)], false, 0.0),
    case(70, 64, &[(136, 0, false)], false, 0.0),
    case(130, 72, &[(264, 16, true), (64, 16, true), (64, 16, true)], false, 0.0),
    case(129, 32, &[(128, 8, false)], true, 0.0),
    case(5, 64, &[(64, 8, false), (40, 16, false), (24, 8, false)], false, 0.0),
    case(140, 264, &[(136, 8, false)], false, 0.0),
    case(67, 264, &[(96, 8, false), (40, 16, false)], false, 0.25),
    case(128, 128, &[(64, 16, false)], false, 0.25),
    case(9, 16, &[(8, 2, true); 20], false, 0.0),
    case(13, 17, &[(16, 4, true), (5, 3, false), (9, 0, true)], false, 0.0),
    case(13, 17, &[(16, 4, true), (5, 3, false), (9, 0, true)], false, 0.3),
    case(29, 260, &[(20, 8, false), (131, 8, true)], true, 0.3),
    case(150, 300, &[(600, 8, true), (64, 8, true)], true, 0.3),
];

/// The operation.
pub const OPERATION: Operation = Operation {
    name: "linear",
    scalar: false,
    #[cfg(feature = "cuda")]
    kernels: super::cuda::KERNELS,
    cases: || boxed(CASES),
    in_model,
};

fn in_model(s: &Shape) -> Vec<Box<dyn check::Case>> {
    let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let group = |input: usize, outputs: &[usize], bias: bool, residual: bool| Case {
        tokens: s.tokens,
        input,
        layers: outputs.iter().map(|output| (*output, s.rank, bias)).collect(),
        residual,
        dropout: 0.0,
    };
    boxed(&[
        group(s.hidden, &[q, kv, kv], !s.head_norm, false),
        group(q, &[s.hidden], false, true),
        group(s.hidden, &[s.intermediate; 2], false, false),
        group(s.intermediate, &[s.hidden], false, true),
    ])
}

const SCALE: f32 = 0.75;
const KEY: [u32; 2] = [7, 9];
const COUNTER: [u32; 3] = [3, 11, 12];

/// Elements of the weights up to which a case is differentiated.
const DIFFERENTIATED: usize = 1 << 14;

/// What every element of a dropped input is multiplied by.
fn mask(dropout: f32, elements: usize) -> Vec<f64> {
    let [a, b, c] = COUNTER;
    let kept = |i: usize| {
        let word = philox4x32([(i / 4) as u32, a, b, c], KEY)[i % 4];
        f64::from(word) >= f64::from(dropout) * 4_294_967_296.0
    };
    let keep = f64::from(1.0 / (1.0 - dropout));
    (0..elements).map(|i| if dropout == 0.0 || kept(i) { keep } else { 0.0 }).collect()
}

// ---- operands --------------------------------------------------------------------------------------------------------

/// A group's layers on the rig.
struct Layers {
    group: Group,
    params: Region,
    packed: Region,
    table: Vec<u32>,
}

impl Layers {
    fn new(rig: &mut Rig, case: &Case) -> Self {
        let len = |columns: &dyn Fn(usize) -> usize| -> usize {
            case.layers.iter().map(|(output, rank, _)| columns(*rank) * (case.input + output)).sum()
        };
        let device = rig.device();
        let params = rig.random(F32, len(&|rank| rank), 0.2);
        let grads = rig.random(F32, params.len, 1.0);
        let copies = len(&|rank| device.row_len(rank));
        let packed = rig.planner().region(Purpose::TrainableState, Storage::Copy, copies);
        let group = Group { input: case.input, output: 0, layers: Vec::new() };
        let mut all = Layers { group, params, packed, table: Vec::new() };
        let (mut used, mut copied) = (0, 0);
        for (at, &(output, rank, bias)) in case.layers.iter().enumerate() {
            let mixed = [Element::Bf16, Element::F32, Element::F16][at % 3];
            let element = if rig.measures() { Element::Bf16 } else { mixed };
            let weight = rig.matrix(element, output, case.input, (1.0 / case.input as f32).sqrt());
            let bias = bias.then(|| rig.random(F32, output, 0.5));
            let lora = (rank > 0)
                .then(|| all.adapter([rank, device.row_len(rank), output], grads, (&mut used, &mut copied)));
            all.group.layers.push(Linear { weight, bias, column: all.group.output, lora });
            all.group.output += output;
        }
        all
    }

    /// The next ranges of the flat buffers and of the copies.
    fn adapter(
        &mut self,
        [rank, width, output]: [usize; 3],
        grads: Region,
        (used, copied): (&mut usize, &mut usize),
    ) -> Lora {
        let input = self.group.input;
        let (a, b) = (*used, *used + rank * input);
        *used = b + output * rank;
        let mut copy = |source: usize, matrix: [usize; 2], copy: [usize; 2]| {
            let place = self.packed.slice(*copied, copy[0] * copy[1]);
            let entry = [source, *copied, matrix[0], matrix[1], copy[0], copy[1]];
            self.table.extend(entry.map(|v| v as u32));
            *copied += place.len;
            place
        };
        let packed = [copy(a, [rank, input], [width, input]), copy(b, [output, rank], [output, width])];
        let range = |all: Region, first, len| all.slice(first, len);
        Lora {
            rank,
            width,
            scale: SCALE,
            a: range(self.params, a, rank * input),
            b: range(self.params, b, output * rank),
            grad_a: range(grads, a, rank * input),
            grad_b: range(grads, b, output * rank),
            packed,
        }
    }
}

impl Case {
    fn output(&self) -> usize {
        self.layers.iter().map(|(output, ..)| output).sum()
    }

    /// The least work of a pass: the products with the weights, and those of the adapters.
    fn cost(&self) -> Cost {
        let (t, input) = (self.tokens, self.input);
        let elements = |f: &dyn Fn(usize, usize) -> usize| -> usize {
            self.layers.iter().map(|(output, rank, _)| f(*output, *rank)).sum()
        };
        let (weights, adapters) =
            (elements(&|output, _| input * output), elements(&|output, rank| rank * (input + output)));
        let residual = if self.residual { t * self.output() } else { 0 };
        Cost {
            flops: 2.0 * t as f64 * (weights + adapters) as f64,
            activations: t * (input + self.output()) + residual,
            words: adapters,
            weights,
        }
    }
}

impl check::Case for Case {
    fn runs_on(&self, device: &Capabilities) -> bool {
        takes_rows(device, self.input) && self.layers.iter().all(|(output, ..)| takes_rows(device, *output))
    }

    fn set_up(&self, rig: &mut Rig) {
        rig.seed(41);
        let l = Layers::new(rig, self);
        let (tokens, input) = (self.tokens, self.input);
        let (output, columns) = (l.group.output, l.group.rank_sum());
        let x = rig.random(Activation, tokens * input, 1.0);
        let dy = rig.random(Activation, tokens * output, 1.0);
        let residual = self.residual.then(|| rig.random(Activation, tokens * output, 1.0));
        let [y, s, ds, dx, scratch] =
            [output, columns, columns, input, input].map(|n| rig.space(Activation, tokens * n));
        let partial = rig.space(F32, l.group.partial_len(rig.device(), tokens));
        let clock = rig.list(COUNTER[1..].to_vec());
        let table = rig.list(l.table);
        let dropout = (self.dropout > 0.0).then_some(Dropout {
            p: self.dropout,
            key: KEY,
            counter: COUNTER,
            clock: clock.region,
        });
        let (params, packed) = (l.params, l.packed);
        if rig.device().own_memory {
            rig.call("pack", Cost { words: 2 * params.len, ..Cost::default() }, move |dev, lists| {
                super::pack(dev, &Packing { params, packed, table: lists[table.at] });
                Ok(())
            });
        }
        let group = l.group.clone();
        rig.call("forward", self.cost(), move |dev, _| {
            super::forward(dev, &group, &Forward { x, y, s, residual, kept: false, dropout, scratch });
            Ok(())
        });
        // The adapters' products twice: for the input's gradient and for their own.
        let cost = self.cost();
        let adapters = 2.0 * (tokens * params.len) as f64;
        let cost = Cost { flops: cost.flops + adapters, words: 3 * params.len, ..cost };
        let group = l.group.clone();
        rig.call("backward", cost, move |dev, _| {
            let o = Backward { x, s, dy, ds, dx: Some(dx), dropout, scratch, partial };
            super::backward(dev, &group, &o);
            Ok(())
        });
        let operands =
            Operands { case: self.clone(), group: l.group, x, dy, residual, results: [y, s, ds, dx] };
        if self.input * output <= DIFFERENTIATED {
            operands.differentiate(rig);
        }
        let mut results = operands.results.to_vec();
        results.extend(operands.adapters().flat_map(|lora| [lora.grad_a, lora.grad_b]));
        rig.wants(&results, move |o| operands.judge(o));
    }
}

/// Where everything lies.
#[derive(Clone)]
struct Operands {
    case: Case,
    group: Group,
    x: Region,
    dy: Region,
    residual: Option<Region>,
    /// y, s, ds and dx.
    results: [Region; 4],
}

impl Operands {
    fn adapters(&self) -> impl Iterator<Item = Lora> + '_ {
        self.group.layers.iter().filter_map(|layer| layer.lora)
    }

    fn form(&self, given: &dyn Fn(Region) -> Vec<f64>) -> Form {
        let mut first = 0;
        let mut layer = |l: &Linear| {
            let adapter = l.lora.map(|lora| {
                first += lora.width;
                Adapter { rank: lora.rank, first: first - lora.width, a: given(lora.a), b: given(lora.b) }
            });
            Layer {
                column: l.column,
                weight: widened(&l.weight),
                bias: l.bias.map_or(vec![0.0; l.weight.rows()], given),
                adapter,
            }
        };
        let layers = self.group.layers.iter().map(&mut layer).collect();
        Form {
            input: self.case.input,
            output: self.group.output,
            columns: self.group.rank_sum(),
            layers,
            mask: mask(self.case.dropout, self.x.len),
            residual: self.residual.map(given),
        }
    }

    /// Each result from what the device itself stored before it, so that an error is that of one product.
    fn judge(&self, o: &Outcome<'_>) -> Vec<Finding> {
        let form = self.form(&|region| o.given(region));
        let [y, s, ds, dx] = self.results;
        let (xs, dys) = (o.given(self.x), o.given(self.dy));
        let dropped: Vec<f64> = form.dropped(&xs).into_iter().map(|v| o.stored(v)).collect();
        let (stored_s, stored_ds) = (o.got(s), o.got(ds));
        let limit = Limit::ROUNDED.with_f32(5e-6);
        let mut all = vec![
            o.finding("y", y, &form.y(&xs, &stored_s), limit),
            o.finding("s", s, &form.s(&dropped), limit),
            o.finding("ds", ds, &form.ds(&dys), limit),
            o.finding("dx", dx, &form.dx(&dys, &stored_ds), limit),
        ];
        let gradients = form.gradients(&dropped, &stored_s, &dys, &stored_ds);
        let sums = Limit::SUMMED.with_f32(1e-5);
        for (lora, [a, b]) in self.adapters().zip(gradients) {
            for (name, region, gradient) in [("dA", lora.grad_a, a), ("dB", lora.grad_b, b)] {
                let before = o.given(region);
                let sum: Vec<f64> = before.iter().zip(gradient).map(|(first, g)| first + g).collect();
                all.push(o.finding(name, region, &sum, sums));
            }
        }
        all
    }

    fn differentiate(&self, rig: &mut Rig) {
        let own = self.clone();
        rig.derivative("dx", move |rig| {
            let form = own.form(&|region| rig.given(region));
            let (at, upper) = (rig.given(own.x), rig.given(own.dy));
            let gradient = form.dx(&upper, &form.ds(&upper));
            let function = Box::new(move |x: &[f64]| form.y(x, &form.s(&form.dropped(x))));
            Derivative { function, at, upper, gradient }
        });
        for (at, _) in self.adapters().enumerate() {
            for side in [0, 1] {
                let own = self.clone();
                rig.derivative(["dA", "dB"][side], move |rig| own.of_adapter(rig, at, side));
            }
        }
    }

    /// Of A (`side` 0) or B of an adapter.
    fn of_adapter(&self, rig: &Rig, adapter: usize, side: usize) -> Derivative {
        let form = self.form(&|region| rig.given(region));
        let (xs, upper) = (rig.given(self.x), rig.given(self.dy));
        let dropped = form.dropped(&xs);
        let gradients = form.gradients(&dropped, &form.s(&dropped), &upper, &form.ds(&upper));
        let gradient = gradients[adapter][side].clone();
        let found = form.layers.iter().filter_map(|l| l.adapter.as_ref()).nth(adapter);
        let at = found.map(|a| if side == 0 { a.a.clone() } else { a.b.clone() }).unwrap_or_default();
        let function = Box::new(move |values: &[f64]| {
            let mut changed = form.clone();
            let own = changed.layers.iter_mut().filter_map(|l| l.adapter.as_mut()).nth(adapter);
            if let Some(own) = own {
                if side == 0 { own.a = values.to_vec() } else { own.b = values.to_vec() }
            }
            changed.y(&xs, &changed.s(&dropped))
        });
        Derivative { function, at, upper, gradient }
    }
}

// ---- the f64 form ----------------------------------------------------------------------------------------------------

#[derive(Clone)]
struct Adapter {
    rank: usize,
    /// First column in `s`.
    first: usize,
    a: Vec<f64>,
    b: Vec<f64>,
}

#[derive(Clone)]
struct Layer {
    column: usize,
    weight: Vec<f64>,
    bias: Vec<f64>,
    adapter: Option<Adapter>,
}

/// The operation in f64.
#[derive(Clone)]
struct Form {
    input: usize,
    output: usize,
    /// Columns of `s`.
    columns: usize,
    layers: Vec<Layer>,
    mask: Vec<f64>,
    residual: Option<Vec<f64>>,
}

fn plus(to: &mut [f64], from: &[f64]) {
    add(to, 1.0, from);
}

fn scaled(values: Vec<f64>) -> Vec<f64> {
    values.into_iter().map(|v| v * f64::from(SCALE)).collect()
}

impl Form {
    fn adapters(&self) -> impl Iterator<Item = (&Layer, &Adapter)> + '_ {
        self.layers.iter().filter_map(|layer| Some((layer, layer.adapter.as_ref()?)))
    }

    fn dropped(&self, x: &[f64]) -> Vec<f64> {
        x.iter().zip(&self.mask).map(|(x, m)| x * m).collect()
    }

    fn s(&self, dropped: &[f64]) -> Vec<f64> {
        let mut s = vec![0.0; dropped.len() / self.input * self.columns];
        for (_, a) in self.adapters() {
            let product = scaled(product_nt(dropped, &a.a, self.input));
            put_columns(&mut s, self.columns, a.first, a.rank, &product);
        }
        s
    }

    fn y(&self, x: &[f64], s: &[f64]) -> Vec<f64> {
        let mut y = vec![0.0; x.len() / self.input * self.output];
        for layer in &self.layers {
            let rows = layer.bias.len();
            let mut sum = product_nt(x, &layer.weight, self.input);
            sum.chunks_exact_mut(rows).for_each(|row| plus(row, &layer.bias));
            if let Some(a) = &layer.adapter {
                plus(&mut sum, &product_nt(&columns(s, self.columns, a.first, a.rank), &a.b, a.rank));
            }
            put_columns(&mut y, self.output, layer.column, rows, &sum);
        }
        if let Some(residual) = &self.residual {
            plus(&mut y, residual);
        }
        y
    }

    fn dy_of(&self, layer: &Layer, dy: &[f64]) -> Vec<f64> {
        columns(dy, self.output, layer.column, layer.bias.len())
    }

    fn ds(&self, dy: &[f64]) -> Vec<f64> {
        let mut ds = vec![0.0; dy.len() / self.output * self.columns];
        for (layer, a) in self.adapters() {
            let product = scaled(product_nn(&self.dy_of(layer, dy), &a.b, a.rank));
            put_columns(&mut ds, self.columns, a.first, a.rank, &product);
        }
        ds
    }

    fn dx(&self, dy: &[f64], ds: &[f64]) -> Vec<f64> {
        let mut dx = vec![0.0; dy.len() / self.output * self.input];
        for (_, a) in self.adapters() {
            plus(&mut dx, &product_nn(&columns(ds, self.columns, a.first, a.rank), &a.a, self.input));
        }
        dx.iter_mut().zip(&self.mask).for_each(|(dx, m)| *dx *= m);
        for layer in &self.layers {
            plus(&mut dx, &product_nn(&self.dy_of(layer, dy), &layer.weight, self.input));
        }
        dx
    }

    /// dA and dB of each adapter.
    fn gradients(&self, dropped: &[f64], s: &[f64], dy: &[f64], ds: &[f64]) -> Vec<[Vec<f64>; 2]> {
        let own = |all: &[f64], a: &Adapter| columns(all, self.columns, a.first, a.rank);
        let each = |(layer, a): (&Layer, &Adapter)| {
            let da = product_tn(&own(ds, a), a.rank, dropped, self.input);
            [da, product_tn(&self.dy_of(layer, dy), layer.bias.len(), &own(s, a), a.rank)]
        };
        self.adapters().map(each).collect()
    }
}
