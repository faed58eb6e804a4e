//! A region that is being copied to the host beside other work: what would change it waits for the copy by itself. On the
//! emulated device a copy that nobody waits for is done as late as it may be, so a missing wait shows in what it holds.

use super::driver::Emulated;
use super::library::MODES;
use qwentune::device::Chosen;
use qwentune::device::{Device, Planner, Purpose, Region, Storage};
use qwentune::ops::adamw::{self, AdamW};
use qwentune::ops::rows;

const LEN: usize = 3000;
const ADAMW: AdamW =
    AdamW { lr: 0.1, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, step: 1, grad_scale: 1.0 };

fn values(seed: usize) -> Vec<f32> {
    (0..LEN).map(|i| ((i * 37 + seed * 101) % 97) as f32 / 16.0 + 0.5).collect()
}

type Change = fn(&mut Device, &[Region; 4]);

const CHANGES: &[(&str, Change)] = &[
    ("an optimizer step", |dev, [w, m, v, g]| adamw::step(dev, &ADAMW, *w, *g, *m, *v)),
    ("zeros", |dev, [_, m, ..]| rows::zero(dev, *m)),
    ("a part written", |dev, [w, ..]| dev.write(w.slice(100, 50), &[9.0; 50]).unwrap()),
];

#[test]
fn what_would_change_a_copied_region_waits_for_the_copy() {
    for mode in 0..MODES.len() {
        for (what, change) in CHANGES {
            let chosen = Chosen::Cuda(Some(Box::new(Emulated::new(mode))));
            let mut planner = Planner::new(chosen.capabilities());
            let regions = [(); 4].map(|()| planner.region(Purpose::TrainableState, Storage::F32, LEN));
            let mut dev = qwentune::ops::device(chosen, &planner, None).unwrap();
            for (seed, region) in regions.into_iter().enumerate() {
                dev.write(region, &values(seed)).unwrap();
            }
            let [w, m, v, _] = regions;
            dev.begin_copy([w, m, v], Default::default()).unwrap();
            change(&mut dev, &regions);
            let copied = dev.end_copy().unwrap();
            for (seed, copied) in copied.iter().enumerate() {
                assert!(*copied == values(seed), "{what}: array {seed} as it was before, mode {mode}");
            }
            let changed = [w, m, v].map(|region| dev.read(region).unwrap());
            assert!(changed != copied, "{what} changes nothing");
            // The next copy has the new values, in the memory of the last.
            let memory = copied[0].as_ptr();
            dev.begin_copy([w, m, v], copied).unwrap();
            let again = dev.end_copy().unwrap();
            assert!(again == changed && again[0].as_ptr() == memory, "{what}: the copy after it");
        }
    }
}
