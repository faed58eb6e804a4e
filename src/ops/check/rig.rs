//! A case on its operands: filled memory, the calls, and the comparison with what is wanted.

use super::{Case, Cost, Limit};
use crate::device::{Capabilities, Device, Indices, Matrix, Planner, Purpose, Region, Storage};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::philox::{Stream, uniform};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// A number that a call returns.
pub type Number = Rc<Cell<f64>>;

type Work = Box<dyn Fn(&mut Device, &[Indices<'_>]) -> Result<()>>;
type Judge = Box<dyn Fn(&Outcome<'_>) -> Vec<Finding>>;
type Differentiate = Box<dyn Fn(&Rig) -> Derivative>;

/// One call of an operation, as forward or backward pass.
pub struct Call {
    /// What it does.
    pub name: &'static str,
    /// The least work of it.
    pub cost: Cost,
    work: Work,
}

/// Integers in the rig, by their place among its lists.
#[derive(Clone, Copy, Debug)]
pub struct List {
    /// Their place in what a call is given.
    pub at: usize,
    /// Where the device has its copy.
    pub region: Region,
}

/// A result beside what was wanted of it.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Which result.
    pub name: &'static str,
    /// ‖got − want‖ / ‖want‖.
    pub error: f64,
    /// The largest error that is right, on the device it comes from.
    pub limit: f64,
    /// Digest of what was got.
    pub bits: String,
}

/// A function in f64.
pub type Function = Box<dyn Fn(&[f64]) -> Vec<f64>>;

/// A function in f64 at one place, and what is said to be its gradient there.
pub struct Derivative {
    /// The function.
    pub function: Function,
    /// Where.
    pub at: Vec<f64>,
    /// Gradient of its result.
    pub upper: Vec<f64>,
    /// Gradient of its argument that follows.
    pub gradient: Vec<f64>,
}

/// A case set up for devices of one kind. Values are bf16 numbers everywhere, so that all devices start from the same.
pub struct Rig {
    planner: Planner,
    seed: u64,
    quick: bool,
    /// What regions hold at first; shorter ones come again until the region is full.
    values: Vec<(Region, Vec<f32>)>,
    guards: Vec<Region>,
    lists: Vec<(Region, Vec<u32>)>,
    matrices: Vec<Matrix>,
    calls: Vec<Call>,
    results: Vec<Region>,
    numbers: Vec<Number>,
    judge: Judge,
    derivatives: Vec<(&'static str, Differentiate)>,
}

/// What stands between regions.
const GUARD: [f32; 64] = [-1.5e30; 64];

/// Values before they come again, where only time is asked for; a model's matrices are larger than what is worth drawing.
const PERIOD: usize = (1 << 18) + 3;

impl Rig {
    /// The case with its operands.
    #[must_use]
    pub fn new(case: &dyn Case, device: &'static Capabilities) -> Self {
        Self::set_up(case, device, false)
    }

    /// The same to be measured: values repeat, and no result of it is compared.
    #[must_use]
    pub fn to_measure(case: &dyn Case, device: &'static Capabilities) -> Self {
        Self::set_up(case, device, true)
    }

    fn set_up(case: &dyn Case, device: &'static Capabilities, quick: bool) -> Self {
        let mut rig = Rig {
            planner: Planner::new(device),
            seed: 0,
            quick,
            values: Vec::new(),
            guards: Vec::new(),
            lists: Vec::new(),
            matrices: Vec::new(),
            calls: Vec::new(),
            results: Vec::new(),
            numbers: Vec::new(),
            judge: Box::new(|_| Vec::new()),
            derivatives: Vec::new(),
        };
        rig.guard();
        case.set_up(&mut rig);
        rig
    }

    // ---- for cases -------------------------------------------------------------------------------------------------

    /// What is planned for.
    #[must_use]
    pub fn device(&self) -> &'static Capabilities {
        self.planner.capabilities()
    }

    /// Whether only time is asked for: operands are then those of released models.
    #[must_use]
    pub fn measures(&self) -> bool {
        self.quick
    }

    /// The plan, for what operations reserve themselves.
    pub fn planner(&mut self) -> &mut Planner {
        &mut self.planner
    }

    /// Values from here on follow from `seed`.
    pub fn seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    /// About normal, with the given deviation, rounded to bf16.
    pub fn normal(&mut self, len: usize, size: f32) -> Vec<f32> {
        let drawn = self.drawn(self.period(len), size);
        repeated(drawn, len)
    }

    fn drawn(&mut self, len: usize, size: f32) -> Vec<f32> {
        self.seed += 1;
        let draw = |i: u64| uniform(self.seed, Stream::LoraInit, i);
        let sum = |i: u64| (0..4).map(|j| draw(4 * i + j)).sum::<f64>() - 2.0;
        (0..len as u64).map(|i| bf16((sum(i) * 3.0f64.sqrt()) as f32 * size)).collect()
    }

    /// How many of `len` values are made.
    fn period(&self, len: usize) -> usize {
        if self.quick { len.min(PERIOD) } else { len }
    }

    /// A region that holds `values` at first.
    pub fn holding(&mut self, storage: Storage, values: Vec<f32>) -> Region {
        self.region(storage, values.len(), values)
    }

    fn region(&mut self, storage: Storage, len: usize, values: Vec<f32>) -> Region {
        let region = self.planner.region(Purpose::Workspace, storage, len);
        self.values.push((region, values));
        self.guard();
        region
    }

    /// A line of memory that no call may touch. All regions are one allocation, so that tools which watch the ends of
    /// allocations see nothing of what is written beyond a region.
    fn guard(&mut self) {
        let guard = self.planner.region(Purpose::Workspace, Storage::F32, GUARD.len());
        self.guards.push(guard);
    }

    /// A region of random values.
    pub fn random(&mut self, storage: Storage, len: usize, size: f32) -> Region {
        let values = self.drawn(self.period(len), size);
        self.region(storage, len, values)
    }

    /// A region to be written: NaN where the operation leaves something out.
    pub fn space(&mut self, storage: Storage, len: usize) -> Region {
        self.region(storage, len, vec![f32::NAN; self.period(len)])
    }

    /// A region of zeros.
    pub fn zeros(&mut self, storage: Storage, len: usize) -> Region {
        self.region(storage, len, vec![0.0; self.period(len)])
    }

    /// A frozen matrix of random values, with its place on the device.
    pub fn matrix(&mut self, element: Element, rows: usize, cols: usize, size: f32) -> Matrix {
        let len = rows * cols;
        let drawn = self.drawn(self.period(len), size);
        let bytes = repeated(encoded(&drawn, element), len * element.bytes());
        let matrix = Matrix::new(Arc::new(bytes), 0, element, rows, cols).planned(&mut self.planner);
        self.matrices.push(matrix.clone());
        matrix
    }

    /// Integers for the calls.
    pub fn list(&mut self, values: Vec<u32>) -> List {
        let region = self.planner.region(Purpose::Inputs, Storage::Integer, values.len());
        self.lists.push((region, values));
        List { at: self.lists.len() - 1, region }
    }

    /// Adds a call; it is given all lists.
    pub fn call(
        &mut self,
        name: &'static str,
        cost: Cost,
        work: impl Fn(&mut Device, &[Indices<'_>]) -> Result<()> + 'static,
    ) {
        self.calls.push(Call { name, cost, work: Box::new(work) });
    }

    /// A place for a number that a call returns.
    pub fn number(&mut self) -> Number {
        let number = Rc::new(Cell::new(f64::NAN));
        self.numbers.push(Rc::clone(&number));
        number
    }

    /// Says what is read after the calls, and what of it is right.
    pub fn wants(&mut self, results: &[Region], judge: impl Fn(&Outcome<'_>) -> Vec<Finding> + 'static) {
        self.results = results.to_vec();
        self.judge = Box::new(judge);
    }

    /// Adds a gradient of the f64 form, for the tests to compare with finite differences.
    pub fn derivative(&mut self, name: &'static str, differentiate: impl Fn(&Rig) -> Derivative + 'static) {
        self.derivatives.push((name, Box::new(differentiate)));
    }

    /// What a region, or a part of one, held at first.
    ///
    /// # Panics
    /// When it is none of the rig's.
    #[must_use]
    pub fn given(&self, region: Region) -> Vec<f64> {
        let part = |(whole, values): &(Region, Vec<f32>)| {
            let first = region.start.checked_sub(whole.start).filter(|_| region.storage == whole.storage)?;
            values.get(first..first + region.len).map(wide)
        };
        self.values.iter().find_map(part).expect("a region of this rig")
    }

    // ---- for who runs them -----------------------------------------------------------------------------------------

    /// The plan that a device for it is made with.
    #[must_use]
    pub fn plan(&self) -> &Planner {
        &self.planner
    }

    /// The calls, in order.
    #[must_use]
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// What is read after the calls.
    #[must_use]
    pub fn results(&self) -> &[Region] {
        &self.results
    }

    /// The gradients of the f64 form.
    pub fn derivatives(&self) -> impl Iterator<Item = (&'static str, Derivative)> + '_ {
        self.derivatives.iter().map(|(name, differentiate)| (*name, differentiate(self)))
    }

    /// Copies the frozen matrices to a new device.
    ///
    /// # Errors
    /// When the device failed.
    pub fn load(&self, dev: &mut Device) -> Result<()> {
        self.matrices.iter().try_for_each(|matrix| dev.upload(matrix))
    }

    /// Gives all regions their first values.
    ///
    /// # Errors
    /// When the device failed.
    pub fn reset(&self, dev: &mut Device) -> Result<()> {
        self.guards.iter().try_for_each(|guard| dev.write(*guard, &GUARD))?;
        self.values.iter().try_for_each(|(region, values)| {
            (0..region.len).step_by(values.len().max(1)).try_for_each(|first| {
                let len = values.len().min(region.len - first);
                dev.write(region.slice(first, len), &values[..len])
            })
        })
    }

    /// Does `work` with the lists in their places.
    ///
    /// # Errors
    /// When the device failed.
    pub fn with_lists<T>(
        &self,
        dev: &mut Device,
        work: impl FnOnce(&mut Device, &[Indices<'_>]) -> Result<T>,
    ) -> Result<T> {
        let mut lists = Vec::with_capacity(self.lists.len());
        for (region, values) in &self.lists {
            let [list] = dev.place(*region, [values])?;
            lists.push(list);
        }
        work(dev, &lists)
    }

    /// All calls on the first values, and what the results hold then.
    ///
    /// # Errors
    /// When the device failed, or something was written beside the regions.
    pub fn run(&self, dev: &mut Device) -> Result<Results> {
        self.reset(dev)?;
        self.with_lists(dev, |dev, lists| self.calls.iter().try_for_each(|call| call.run(dev, lists)))?;
        for guard in &self.guards {
            if dev.read(*guard)? != GUARD {
                return Err(Error::check(format!("something was written beside the operands, at {guard:?}")));
            }
        }
        let regions = self.results.iter().map(|region| dev.read(*region)).collect::<Result<_>>()?;
        Ok(Results { regions, numbers: self.numbers.iter().map(|n| n.get()).collect() })
    }

    /// Compares results with what is wanted; `rounds` says whether the device stores activations as bf16.
    #[must_use]
    pub fn judge(&self, got: &Results, rounds: bool) -> Vec<Finding> {
        (self.judge)(&Outcome { rig: self, got, rounds })
    }
}

impl Call {
    /// Does it.
    ///
    /// # Errors
    /// When the device failed.
    pub fn run(&self, dev: &mut Device, lists: &[Indices<'_>]) -> Result<()> {
        (self.work)(dev, lists)
    }
}

/// What the regions hold after the calls, and what these returned.
#[derive(Clone, Debug)]
pub struct Results {
    /// In the order of [`Rig::results`].
    pub regions: Vec<Vec<f32>>,
    numbers: Vec<f64>,
}

impl Results {
    /// Whether both are the same bits.
    #[must_use]
    pub fn same_bits(&self, other: &Results) -> bool {
        let regions = |r: &Results| r.regions.iter().flatten().map(|v| v.to_bits()).collect::<Vec<u32>>();
        let numbers = |r: &Results| r.numbers.iter().map(|v| v.to_bits()).collect::<Vec<u64>>();
        regions(self) == regions(other) && numbers(self) == numbers(other)
    }

    /// BLAKE3 of all of them, hexadecimal.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for region in &self.regions {
            let bytes: Vec<u8> = region.iter().flat_map(|v| v.to_le_bytes()).collect();
            hasher.update(&bytes);
        }
        self.numbers.iter().for_each(|v| _ = hasher.update(&v.to_le_bytes()));
        hasher.finalize().to_hex().to_string()
    }
}

/// What a device made of the case.
pub struct Outcome<'a> {
    rig: &'a Rig,
    got: &'a Results,
    rounds: bool,
}

impl Outcome<'_> {
    /// What the region held at first.
    #[must_use]
    pub fn given(&self, region: Region) -> Vec<f64> {
        self.rig.given(region)
    }

    /// What it holds now.
    #[must_use]
    pub fn got(&self, region: Region) -> Vec<f64> {
        wide(self.result(region))
    }

    fn result(&self, region: Region) -> &[f32] {
        let at = self.rig.results.iter().position(|r| *r == region);
        &self.got.regions[at.expect("a result of this rig")]
    }

    /// A value as the device stores an activation.
    #[must_use]
    pub fn stored(&self, value: f64) -> f64 {
        if self.rounds { f64::from(bf16(value as f32)) } else { value }
    }

    /// A region beside what is wanted of it.
    #[must_use]
    pub fn finding(&self, name: &'static str, region: Region, want: &[f64], limit: Limit) -> Finding {
        let got = self.result(region);
        assert_eq!(got.len(), want.len(), "{name}: length");
        let bytes = got.iter().flat_map(|v| v.to_le_bytes());
        self.compared(name, &wide(got), want, limit, &bytes.collect::<Vec<u8>>())
    }

    /// The number `at` of those that calls returned, beside what is wanted of it.
    #[must_use]
    pub fn number(&self, name: &'static str, at: usize, want: f64, limit: Limit) -> Finding {
        let got = self.got.numbers[at];
        self.compared(name, &[got], &[want], limit, &got.to_le_bytes())
    }

    fn compared(&self, name: &'static str, got: &[f64], want: &[f64], limit: Limit, bytes: &[u8]) -> Finding {
        let bits = blake3::hash(bytes).to_hex()[..16].to_owned();
        let limit = if self.rounds { limit.bf16 } else { limit.f32 };
        Finding { name, error: distance(got, want), limit, bits }
    }
}

/// ‖got − want‖ / ‖want‖; the first alone where nothing but zeros is wanted; infinite for NaN.
fn distance(got: &[f64], want: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(want).map(|(g, w)| g - w));
    let whole = norm(&mut want.iter().copied());
    let error = if whole > 0.0 { difference / whole } else { difference };
    if error.is_nan() { f64::INFINITY } else { error }
}

/// `values` again and again until there are `len`.
fn repeated<T: Copy>(mut values: Vec<T>, len: usize) -> Vec<T> {
    values.reserve_exact(len - values.len());
    while values.len() < len {
        let more = values.len().min(len - values.len());
        values.extend_from_within(..more);
    }
    values
}

fn bf16(value: f32) -> f32 {
    half::bf16::from_f32(value).to_f32()
}

fn encoded(values: &[f32], element: Element) -> Vec<u8> {
    match element {
        Element::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Element::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        Element::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
    }
}

/// All of a matrix, row after row.
#[must_use]
pub fn widened(matrix: &Matrix) -> Vec<f64> {
    let mut row = vec![0.0; matrix.cols()];
    (0..matrix.rows())
        .flat_map(|i| {
            matrix.read_row(i, &mut row);
            wide(&row)
        })
        .collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}
