//! Which device a run uses, and what of that stands in its checkpoints.

use super::cpu::{Arithmetic, Isa};
use super::{Capabilities, Cpu, Device, Planner};
use crate::config::{DeviceChoice, Dtype, Settings};
use crate::error::{Error, Result};
use crate::identity::{Engine, Identity};

#[cfg(feature = "cuda")]
use super::cuda::{AnyKernel, Cuda, Driver, nvidia};

/// How GPUs are found: those of NVIDIA's driver, unless a caller brings another one.
#[derive(Clone, Copy, Debug)]
pub struct Devices {
    /// Whether there is a GPU of that number which runs the kernels, without taking memory on it.
    #[cfg(feature = "cuda")]
    pub probe: fn(u32) -> Result<()>,
    /// Opens a GPU.
    #[cfg(feature = "cuda")]
    pub open: fn(u32) -> Result<Box<dyn Driver>>,
}

#[cfg(feature = "cuda")]
impl Default for Devices {
    fn default() -> Self {
        Devices { probe: nvidia::probe, open: |index| Ok(Box::new(nvidia::open(index)?)) }
    }
}

#[cfg(not(feature = "cuda"))]
#[allow(clippy::derivable_impls)]
impl Default for Devices {
    fn default() -> Self {
        Devices {}
    }
}

/// The device of a run, before memory is allocated on it.
pub enum Chosen {
    /// The CPU.
    Cpu(OnCpu),
    /// A GPU; without a driver only plans can be made for it.
    #[cfg(feature = "cuda")]
    Cuda(Option<Box<dyn Driver>>),
}

/// How the CPU computes.
#[derive(Clone, Debug)]
pub struct OnCpu {
    /// Of products with frozen weights.
    pub arithmetic: Arithmetic,
    /// Vector instructions; all give the same bits.
    pub isa: Isa,
    /// What was found to speak against a GPU, when nothing else was asked for.
    pub instead: Option<String>,
}

impl OnCpu {
    /// f32 with the fastest instructions there are.
    #[must_use]
    pub fn f32() -> Self {
        OnCpu { arithmetic: Arithmetic::F32, isa: Isa::best(), instead: None }
    }

    /// As the settings say; a run that continues keeps its arithmetic where they leave it open.
    ///
    /// # Errors
    /// Instructions that this processor does not have.
    fn of(s: &Settings, resumed: Option<&Identity>, instead: Option<String>) -> Result<Self> {
        let isa = match s.cpu_isa.name() {
            None => Isa::best(),
            Some(name) => Isa::available().into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
                let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
                Error::device(format!("--cpu-isa {name}: this processor has {}", names.join(", ")))
                    .hint("leave it out: the fastest is used, and the numbers are the same")
            })?,
        };
        let before = resumed.filter(|r| r.engine.device == "cpu").map(|r| r.engine.arithmetic.as_str());
        let arithmetic = match s.dtype {
            Dtype::F32 => Arithmetic::F32,
            Dtype::Bf16 => Arithmetic::Bf16,
            Dtype::Auto if before == Some(Arithmetic::Bf16.name()) => Arithmetic::Bf16,
            Dtype::Auto => Arithmetic::F32,
        };
        Ok(OnCpu { arithmetic, isa, instead })
    }
}

/// Memory of a GPU that is not planned: the kernels themselves, recorded work, what the driver takes.
#[cfg(feature = "cuda")]
const UNPLANNED: u64 = 512 << 20;

impl Devices {
    /// Whether the device that was asked for by name is there; takes nothing.
    ///
    /// # Errors
    /// What is missing, and how to get it.
    pub fn check(&self, s: &Settings) -> Result<()> {
        let DeviceChoice::Cuda(index) = s.device else { return Ok(()) };
        self.probe(index).map_err(|e| e.at(format_args!("--device cuda:{index}")))
    }

    #[cfg(feature = "cuda")]
    fn probe(&self, index: u32) -> Result<()> {
        (self.probe)(index)
    }

    #[cfg(not(feature = "cuda"))]
    fn probe(&self, _index: u32) -> Result<()> {
        Err(Error::device("the CUDA device was left out of this build")
            .hint("build with the feature `cuda`, or train on the CPU with --device cpu"))
    }

    /// The device for a run. `auto` is the first GPU that runs the kernels, else the CPU; a run that continues stays on
    /// the kind of device it was on.
    ///
    /// # Errors
    /// A device that was asked for is not there.
    pub fn choose(&self, s: &Settings, resumed: Option<&Identity>) -> Result<Chosen> {
        let before = resumed.map(|identity| identity.engine.device.as_str());
        let on_cpu = before == Some("cpu");
        let cpu = |instead| Ok(Chosen::Cpu(OnCpu::of(s, resumed, instead)?));
        match s.device {
            DeviceChoice::Cpu => cpu(None),
            DeviceChoice::Cuda(index) => self.open(index),
            DeviceChoice::Auto if on_cpu || s.dtype == Dtype::F32 => cpu(None),
            DeviceChoice::Auto => match self.probe(0) {
                Ok(()) => self.open(0),
                Err(why) if before.is_some() => Err(why),
                Err(why) => cpu(Some(why.what)),
            },
        }
    }

    #[cfg(feature = "cuda")]
    fn open(&self, index: u32) -> Result<Chosen> {
        Ok(Chosen::Cuda(Some((self.open)(index)?)))
    }

    #[cfg(not(feature = "cuda"))]
    fn open(&self, index: u32) -> Result<Chosen> {
        self.probe(index).map(|()| Chosen::Cpu(OnCpu::f32()))
    }

    /// As [`Devices::choose`], for a plan: a GPU that was asked for need not be there.
    ///
    /// # Errors
    /// A build without GPUs.
    pub fn choose_for_plan(&self, s: &Settings) -> Result<Chosen> {
        #[cfg(feature = "cuda")]
        if matches!(s.device, DeviceChoice::Cuda(_)) && self.check(s).is_err() {
            return Ok(Chosen::Cuda(None));
        }
        self.choose(s, None)
    }
}

impl Chosen {
    /// What it can: memory is planned for that.
    #[must_use]
    pub fn capabilities(&self) -> &'static Capabilities {
        match self {
            Chosen::Cpu(cpu) => Cpu::capabilities_in(cpu.arithmetic),
            #[cfg(feature = "cuda")]
            Chosen::Cuda(_) => Cuda::CAPABILITIES,
        }
    }

    /// The arithmetic, which decides a run's bits.
    ///
    /// # Errors
    /// A GPU that cannot run the kernels.
    pub fn engine(&self) -> Result<Engine> {
        match self {
            Chosen::Cpu(OnCpu { arithmetic, .. }) => Ok(Engine {
                device: "cpu".into(),
                arithmetic: arithmetic.name().into(),
                version: arithmetic.version().into(),
                kernels: None,
            }),
            #[cfg(feature = "cuda")]
            Chosen::Cuda(driver) => {
                let mut engine = Engine {
                    device: "cuda".into(),
                    arithmetic: "bf16".into(),
                    version: Cuda::VERSION.into(),
                    kernels: None,
                };
                if let Some(driver) = driver {
                    let (major, minor) = driver.facts().capability;
                    engine.device = format!("cuda {major}.{minor}");
                    engine.kernels = Some(driver.identity()?);
                }
                Ok(engine)
            }
        }
    }

    /// Bytes that a run may plan with; unlimited where nobody tells.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn available(&self) -> Result<u64> {
        match self {
            Chosen::Cpu(_) => Ok(crate::sys::available_memory()),
            #[cfg(feature = "cuda")]
            Chosen::Cuda(None) => Ok(u64::MAX),
            #[cfg(feature = "cuda")]
            Chosen::Cuda(Some(driver)) => Ok(driver.memory_free()?.saturating_sub(UNPLANNED)),
        }
    }

    /// Version of the driver it is reached by.
    #[must_use]
    pub fn driver(&self) -> Option<String> {
        match self {
            #[cfg(feature = "cuda")]
            Chosen::Cuda(Some(driver)) => Some(driver.facts().driver.clone()),
            _ => None,
        }
    }

    /// The GPU's name, as its driver has it.
    #[must_use]
    pub fn card(&self) -> Option<String> {
        match self {
            #[cfg(feature = "cuda")]
            Chosen::Cuda(Some(driver)) => Some(driver.facts().name.clone()),
            _ => None,
        }
    }

    /// One line on the device.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Chosen::Cpu(OnCpu { arithmetic, isa, instead }) => {
                let why = instead.as_ref().map_or(String::new(), |why| format!(" ({why})"));
                format!("CPU, {}, {}{why}", arithmetic.name(), isa.name())
            }
            #[cfg(feature = "cuda")]
            Chosen::Cuda(None) => "a GPU, none of which is here: sizes only".into(),
            #[cfg(feature = "cuda")]
            Chosen::Cuda(Some(driver)) => {
                let facts = driver.facts();
                let (major, minor) = facts.capability;
                format!("{}, compute capability {major}.{minor}, bf16", facts.name)
            }
        }
    }

    /// Allocates the planned memory. A GPU gets `kernels`.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn device(
        self,
        plan: &Planner,
        threads: Option<usize>,
        #[cfg(feature = "cuda")] kernels: &[&'static dyn AnyKernel],
    ) -> Result<Device> {
        match self {
            Chosen::Cpu(OnCpu { arithmetic, isa, .. }) => {
                let mut cpu = Cpu::new(plan, threads)?;
                (cpu.arithmetic, cpu.isa) = (arithmetic, isa);
                Ok(Device::Cpu(cpu))
            }
            #[cfg(feature = "cuda")]
            Chosen::Cuda(None) => Err(Error::device("there is no GPU to run on")),
            #[cfg(feature = "cuda")]
            Chosen::Cuda(Some(driver)) => Ok(Device::Cuda(Box::new(Cuda::new(driver, plan, kernels)?))),
        }
    }
}
