//! Frozen linear layers with adapters: forward and backward against f64, gradients against finite differences
//! of the f64 form, and the same bits for every instruction set and any number of threads.

use crate::matmul::{Values, assert_bits, assert_near, stored, widened};
use qwentune::device::cpu::{Arithmetic, Cpu, Isa, Rounding};
use qwentune::device::{Device, Planner, Purpose, Region, Storage};
use qwentune::element::Element;
use qwentune::ops::linear::{Backward, Dropout, Forward, Group, Linear, Lora, backward, forward};
use qwentune::philox::philox4x32;

/// Rows of a layer's weight, its rank and LoRA scale (rank 0: no adapter), whether it has a bias.
type Layer = (usize, usize, f32, bool);

/// One group and everything it reads.
struct Case {
    tokens: usize,
    input: usize,
    layers: Vec<Layer>,
    dropout: Option<Dropout>,
    residual: bool,
    planner: Planner,
    contents: Vec<(Region, Vec<f32>)>,
}

/// The regions of a case.
struct Operands {
    group: Group,
    forward: Forward,
    backward: Backward,
}

const NOWHERE: Region = Region { storage: Storage::Copy, start: 0, len: 0 };
const DROPOUT: Dropout = Dropout { p: 0.3, key: [7, 9], counter: [3, 1, 2], clock: NOWHERE };

impl Case {
    fn new(tokens: usize, input: usize, layers: &[Layer], dropout: Option<Dropout>, residual: bool) -> Self {
        let (planner, contents) = (Planner::new(Cpu::CAPABILITIES), Vec::new());
        Case { tokens, input, layers: layers.to_vec(), dropout, residual, planner, contents }
    }

    fn region(&mut self, values: Vec<f32>) -> Region {
        let region = self.planner.region(Purpose::Workspace, Storage::F32, values.len());
        self.contents.push((region, values));
        region
    }

    fn operands(&mut self) -> Operands {
        let (t, input) = (self.tokens, self.input);
        let mut values = Values::new((t * 131 + input) as u64);
        let mut layers = Vec::new();
        let mut column = 0;
        for (rows, rank, scale, bias) in self.layers.clone() {
            let elements = [Element::Bf16, Element::F32, Element::F16];
            let weight = stored(&values.many(rows * input), elements[layers.len() % 3], rows, input, 1);
            let bias = bias.then(|| self.region(values.many(rows)));
            let lora = (rank > 0).then(|| Lora {
                rank,
                width: rank,
                scale,
                a: self.region(values.many(rank * input)),
                b: self.region(values.many(rows * rank)),
                grad_a: self.region(values.many(rank * input)),
                grad_b: self.region(values.many(rows * rank)),
                packed: [NOWHERE; 2],
            });
            layers.push(Linear { weight, bias, column, lora });
            column += rows;
        }
        let group = Group { input, output: column, layers };
        let (x, scratch) = (self.region(values.many(t * input)), self.region(vec![0.0; t * input]));
        let (y, s) =
            (self.region(vec![f32::NAN; t * column]), self.region(vec![f32::NAN; t * group.rank_sum()]));
        let residual = self.residual.then(|| self.region(values.many(t * column)));
        let (dy, ds) =
            (self.region(values.many(t * column)), self.region(vec![f32::NAN; t * group.rank_sum()]));
        let dx = Some(self.region(vec![f32::NAN; t * input]));
        let dropout = self.dropout;
        let forward = Forward { x, y, s, residual, kept: false, dropout, scratch };
        let partial = self.region(vec![f32::NAN; group.partial_len(Cpu::CAPABILITIES, t)]);
        let backward = Backward { x, s, dy, ds, dx, dropout, scratch, partial };
        Operands { group, forward, backward }
    }

    fn device(&self, threads: usize, isa: Isa, rounding: Rounding) -> Device {
        let mut cpu = Cpu::new(&self.planner, Some(threads)).unwrap();
        (cpu.isa, cpu.rounding) = (isa, rounding);
        for (region, values) in &self.contents {
            cpu.write(*region).copy_from_slice(values);
        }
        Device::Cpu(cpu)
    }

    fn initial(&self, region: Region) -> Vec<f64> {
        let found = self.contents.iter().find(|(r, _)| r.start == region.start && r.len == region.len);
        found.expect("a region of this case").1.iter().map(|v| f64::from(*v)).collect()
    }

    /// y in f64, from the given x and the given adapters.
    fn reference(&self, o: &Operands, x: &[f64], adapters: &[(Vec<f64>, Vec<f64>)]) -> Vec<f64> {
        let (t, input, width) = (self.tokens, self.input, o.group.output);
        let mut y = vec![0.0; t * width];
        let mask = self.mask();
        let dropped: Vec<f64> = x.iter().zip(&mask).map(|(x, m)| x * m).collect();
        let mut adapters = adapters.iter();
        for layer in &o.group.layers {
            let weight = widened(&layer.weight);
            let bias = layer.bias.map(|b| self.initial(b));
            let adapter = layer.lora.map(|lora| (lora, adapters.next().expect("an adapter for each")));
            for row in 0..t {
                let at = |values: &[f64], i: usize| values[row * input + i];
                let s: Vec<f64> = adapter.map_or(vec![], |(lora, (a, _))| {
                    let dot = |r: usize| (0..input).map(|i| at(&dropped, i) * a[r * input + i]).sum::<f64>();
                    (0..lora.rank).map(|r| f64::from(lora.scale) * dot(r)).collect()
                });
                for j in 0..layer.weight.rows() {
                    let mut sum: f64 = (0..input).map(|i| at(x, i) * weight[j * input + i]).sum();
                    sum += bias.as_ref().map_or(0.0, |b| b[j]);
                    if let Some((lora, (_, b))) = adapter {
                        sum += s.iter().enumerate().map(|(r, s)| s * b[j * lora.rank + r]).sum::<f64>();
                    }
                    y[row * width + layer.column + j] = sum;
                }
            }
        }
        if let Some(residual) = o.forward.residual {
            y.iter_mut().zip(self.initial(residual)).for_each(|(y, r)| *y += r);
        }
        y
    }

    /// What every element of the adapters' input is multiplied by.
    fn mask(&self) -> Vec<f64> {
        let elements = self.tokens * self.input;
        let Some(d) = self.dropout else { return vec![1.0; elements] };
        let kept = |i: usize| {
            let [a, b, c] = d.counter;
            let word = philox4x32([(i / 4) as u32, a, b, c], d.key)[i % 4];
            f64::from(word) >= f64::from(d.p) * 2f64.powi(32)
        };
        (0..elements).map(|i| if kept(i) { 1.0 / (1.0 - f64::from(d.p)) } else { 0.0 }).collect()
    }

    fn adapters(&self, o: &Operands) -> Vec<(Vec<f64>, Vec<f64>)> {
        o.group.layers.iter().filter_map(|l| l.lora).map(|l| (self.initial(l.a), self.initial(l.b))).collect()
    }
}

fn read(dev: &Device, region: Region) -> Vec<f32> {
    let Device::Cpu(cpu) = dev else { panic!("these tests build CPU devices") };
    cpu.read(region).to_vec()
}

fn cases() -> Vec<Case> {
    let qkv: &[Layer] = &[(16, 4, 0.5, true), (5, 3, 1.7, false), (9, 0, 0.0, true)];
    let mut all = Vec::new();
    for dropout in [None, Some(DROPOUT)] {
        all.push(Case::new(13, 17, qkv, dropout, false));
        all.push(Case::new(1, 8, &[(3, 8, 2.0, false)], dropout, true));
        all.push(Case::new(29, 260, &[(20, 8, 2.0, false), (131, 8, 0.25, true)], dropout, true));
    }
    all.push(Case::new(7, 12, &[(6, 0, 0.0, true)], None, true));
    all
}

#[test]
fn forward_matches_f64() {
    for mut case in cases() {
        let o = case.operands();
        let mut dev = case.device(2, Isa::best(), Rounding::None);
        forward(&mut dev, &o.group, &o.forward);
        let expected = case.reference(&o, &case.initial(o.forward.x), &case.adapters(&o));
        assert_near(&expected, &read(&dev, o.forward.y), 2e-5, "y");
    }
}

/// d/dv of Σ y·dy by central differences; y is linear in every single value, so the step may be large.
fn difference(case: &Case, o: &Operands, dy: &[f64], change: impl Fn(f64) -> Vec<f64>) -> f64 {
    let _ = (case, o);
    let value = |step: f64| -> f64 { change(step).iter().zip(dy).map(|(y, d)| y * d).sum() };
    (value(0.5) - value(-0.5)) / 1.0
}

#[test]
fn gradients_match_finite_differences() {
    for mut case in cases() {
        let o = case.operands();
        let mut dev = case.device(2, Isa::best(), Rounding::None);
        forward(&mut dev, &o.group, &o.forward);
        backward(&mut dev, &o.group, &o.backward);
        let (x, adapters) = (case.initial(o.forward.x), case.adapters(&o));
        let dy = case.initial(o.backward.dy);
        let dx = read(&dev, o.backward.dx.unwrap());
        for i in (0..x.len()).step_by(1 + x.len() / 40) {
            let expected = difference(&case, &o, &dy, |step| {
                let mut x = x.clone();
                x[i] += step;
                case.reference(&o, &x, &adapters)
            });
            assert_near(&[expected], &dx[i..=i], 2e-5, &format!("dx[{i}]"));
        }
        let loras = o.group.layers.iter().filter_map(|l| l.lora);
        for (n, lora) in loras.enumerate() {
            for (region, first) in [(lora.grad_a, true), (lora.grad_b, false)] {
                let (before, after) = (case.initial(region), read(&dev, region));
                for i in (0..after.len()).step_by(1 + after.len() / 20) {
                    let expected = before[i]
                        + difference(&case, &o, &dy, |step| {
                            let mut adapters = adapters.clone();
                            let (a, b) = &mut adapters[n];
                            (if first { a } else { b })[i] += step;
                            case.reference(&o, &x, &adapters)
                        });
                    assert_near(&[expected], &after[i..=i], 2e-5, &format!("adapter {n}, A {first}, {i}"));
                }
            }
        }
    }
}

/// Everything the two passes write.
fn written(dev: &Device, o: &Operands) -> Vec<f32> {
    let mut regions = vec![o.forward.y, o.forward.s, o.backward.ds, o.backward.dx.unwrap()];
    regions.extend(o.group.layers.iter().filter_map(|l| l.lora).flat_map(|l| [l.grad_a, l.grad_b]));
    regions.into_iter().flat_map(|r| read(dev, r)).collect()
}

#[test]
fn bits_do_not_depend_on_threads_or_instructions() {
    let big = [(600, 8, 2.0, true), (64, 8, 2.0, true)];
    for mut case in cases().into_iter().chain([Case::new(150, 300, &big, Some(DROPOUT), true)]) {
        let o = case.operands();
        for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
            let run = |threads, isa| {
                let mut dev = case.device(threads, isa, Rounding::None);
                dev.cpu_mut().expect("the CPU").arithmetic = arithmetic;
                forward(&mut dev, &o.group, &o.forward);
                backward(&mut dev, &o.group, &o.backward);
                written(&dev, &o)
            };
            let expected = run(1, Isa::available()[0]);
            for isa in Isa::available() {
                for threads in 1..=4 {
                    assert_bits(&expected, &run(threads, isa), &format!("{} {threads}", isa.name()));
                }
            }
        }
    }
}

/// So that micro-batches can be computed anywhere, and their gradients added in order.
#[test]
fn the_gradient_of_a_micro_batch_is_summed_by_itself_and_then_added() {
    let mut case =
        Case::new(700, 24, &[(40, 4, 1.5, false), (7, 4, 0.5, false), (9, 3, 1.0, true)], None, false);
    let o = case.operands();
    let gradients: Vec<Region> =
        o.group.layers.iter().filter_map(|l| l.lora).flat_map(|l| [l.grad_a, l.grad_b]).collect();
    let mut onto = case.device(2, Isa::best(), Rounding::None);
    let mut alone = case.device(2, Isa::best(), Rounding::None);
    for region in &gradients {
        alone.cpu_mut().expect("the CPU").write(*region).fill(0.0);
    }
    for dev in [&mut onto, &mut alone] {
        forward(dev, &o.group, &o.forward);
        backward(dev, &o.group, &o.backward);
    }
    for region in gradients {
        let before = case.initial(region);
        let sum = |(old, new): (&f64, f32)| *old as f32 + new;
        let expected: Vec<f32> = before.iter().zip(read(&alone, region)).map(sum).collect();
        assert_bits(&expected, &read(&onto, region), "gradient");
    }
}

#[test]
fn without_dx_only_the_adapters_gradients_are_written() {
    for mut case in cases() {
        let o = case.operands();
        let mut whole = case.device(2, Isa::best(), Rounding::None);
        let mut part = case.device(2, Isa::best(), Rounding::None);
        for (dev, dx) in [(&mut whole, o.backward.dx), (&mut part, None)] {
            forward(dev, &o.group, &o.forward);
            backward(dev, &o.group, &Backward { dx, ..o.backward });
        }
        assert!(read(&part, o.backward.dx.unwrap()).iter().all(|v| v.is_nan()));
        for lora in o.group.layers.iter().filter_map(|l| l.lora) {
            for region in [lora.grad_a, lora.grad_b] {
                assert_bits(&read(&whole, region), &read(&part, region), "gradient");
            }
        }
    }
}

#[test]
fn rounding_mode_stores_bf16_activations_and_f32_gradients() {
    for mut case in cases() {
        let o = case.operands();
        let mut exact = case.device(2, Isa::best(), Rounding::None);
        let mut rounded = case.device(2, Isa::best(), Rounding::Bf16);
        for dev in [&mut exact, &mut rounded] {
            forward(dev, &o.group, &o.forward);
            backward(dev, &o.group, &o.backward);
        }
        for region in [o.forward.y, o.forward.s, o.backward.ds, o.backward.dx.unwrap()] {
            let (exact, rounded) = (read(&exact, region), read(&rounded, region));
            assert!(rounded.iter().all(|v| v.to_bits() & 0xffff == 0), "a stored activation is not bf16");
            let expected: Vec<f64> = exact.iter().map(|v| f64::from(*v)).collect();
            // Several roundings of 2^-9 each, some of them of terms larger than their sum.
            assert_near(&expected, &rounded, 0.2, "rounded");
        }
        let grads = o.group.layers.iter().filter_map(|l| l.lora).map(|l| read(&rounded, l.grad_a));
        for grad in grads {
            assert!(grad.iter().any(|v| v.to_bits() & 0xffff != 0), "a gradient was rounded");
        }
    }
}

#[test]
fn dropout_keeps_about_the_right_share_and_changes_with_its_counter() {
    let share = |counter: [u32; 3]| {
        let case = Case::new(64, 64, &[(1, 1, 1.0, false)], Some(Dropout { counter, ..DROPOUT }), false);
        case.mask()
    };
    let mask = share([1, 2, 3]);
    let kept = mask.iter().filter(|m| **m > 0.0).count() as f64 / mask.len() as f64;
    assert!((kept - 0.7).abs() < 0.03, "{kept} kept");
    assert_ne!(mask, share([1, 2, 4]));
    assert_eq!(mask, share([1, 2, 3]));
}
