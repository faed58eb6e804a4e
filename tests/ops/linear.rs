//! Linear layers with adapters: passes that leave something out, and the dropout's mask.

use super::rig::device;
use qwentune::device::cpu::{Cpu, Isa, Rounding};
use qwentune::device::{Device, Region, Storage};
use qwentune::ops::check::Rig;
use qwentune::ops::linear::{self, Dropout, Forward, Group, Linear, Lora};
use std::cell::RefCell;

const NOWHERE: Region = Region { storage: Storage::Copy, start: 0, len: 0 };

/// A group with one adapter, and everything that its passes read and write.
#[derive(Clone)]
struct Operands {
    group: Group,
    forward: Forward,
    backward: linear::Backward,
}

const TOKENS: usize = 64;
const INPUT: usize = 64;

fn operands(dropout: Option<Dropout>) -> (Rig, Operands) {
    let made = RefCell::new(None);
    let case = super::rig::single(|rig| {
        rig.seed(5);
        let storage = Storage::Activation;
        let weight = rig.matrix(qwentune::element::Element::Bf16, 24, INPUT, 0.1);
        let [a, grad_a] = [(); 2].map(|()| rig.random(Storage::F32, 4 * INPUT, 1.0));
        let [b, grad_b] = [(); 2].map(|()| rig.random(Storage::F32, 24 * 4, 1.0));
        let lora = Lora { rank: 4, width: 4, scale: 0.5, a, b, grad_a, grad_b, packed: [NOWHERE; 2] };
        let layers = vec![Linear { weight, bias: None, column: 0, lora: Some(lora) }];
        let group = Group { input: INPUT, output: 24, layers };
        let [x, scratch] = [1.0, 0.0].map(|size| rig.random(storage, TOKENS * INPUT, size));
        let dy = rig.random(storage, TOKENS * 24, 1.0);
        let [y, s, ds, dx] = [24, 4, 4, INPUT].map(|n| rig.space(storage, TOKENS * n));
        let forward = Forward { x, y, s, residual: None, kept: false, dropout, scratch };
        let partial = rig.space(Storage::F32, group.partial_len(Cpu::CAPABILITIES, TOKENS));
        let backward = linear::Backward { x, s, dy, ds, dx: Some(dx), dropout, scratch, partial };
        *made.borrow_mut() = Some(Operands { group, forward, backward });
    });
    let rig = Rig::new(&case, Cpu::CAPABILITIES);
    drop(case);
    (rig, made.into_inner().expect("the rig was set up"))
}

fn passes(rig: &Rig, o: &Operands) -> Device {
    let mut dev = device(rig, 2, Isa::best(), Rounding::None);
    rig.reset(&mut dev).expect("the CPU");
    linear::forward(&mut dev, &o.group, &o.forward);
    linear::backward(&mut dev, &o.group, &o.backward);
    dev
}

#[test]
fn without_dx_only_the_adapters_gradients_are_written() {
    let (rig, whole) = operands(None);
    let part = Operands { backward: linear::Backward { dx: None, ..whole.backward }, ..whole.clone() };
    let (mut all, mut some) = (passes(&rig, &whole), passes(&rig, &part));
    let dx = whole.backward.dx.expect("it is asked for");
    assert!(all.read(dx).expect("the CPU").iter().all(|v| v.is_finite()));
    assert!(some.read(dx).expect("the CPU").iter().all(|v| v.is_nan()));
    let lora = whole.group.layers[0].lora.expect("an adapter");
    for region in [lora.grad_a, lora.grad_b] {
        assert_eq!(all.read(region).expect("the CPU"), some.read(region).expect("the CPU"));
    }
}

#[test]
fn dropout_keeps_about_the_right_share_and_changes_with_its_counter() {
    let dropped = |counter| {
        let (rig, o) = operands(Some(Dropout { p: 0.3, key: [7, 9], counter, clock: NOWHERE }));
        passes(&rig, &o).read(o.forward.scratch).expect("the CPU")
    };
    let first = dropped([1, 2, 3]);
    let kept = first.iter().filter(|v| **v != 0.0).count() as f64 / first.len() as f64;
    assert!((kept - 0.7).abs() < 0.03, "{kept} kept");
    assert_ne!(first, dropped([1, 2, 4]));
    assert_eq!(first, dropped([1, 2, 3]));
}
