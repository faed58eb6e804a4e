//! Which vector instructions the processor has, and code compiled for them.

#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512, Avx512Bf16};
use super::simd::{Portable, Simd};

/// Work written once over [`Simd`]; `run` is `inline(always)`.
pub(super) trait Job {
    fn run<S: Simd>(self);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// Plain Rust with `mul_add`; the only one outside x86-64.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// All of AVX2's, and AVX-512F.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// All of those, and AVX-512-BF16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

/// An instruction set this processor has: values come from detection alone. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Level);

impl Isa {
    /// Every instruction set usable here, slowest first.
    #[must_use]
    pub fn available() -> Vec<Isa> {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut all = vec![Isa(Level::Portable)];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            all.push(Isa(Level::Avx2));
            if is_x86_feature_detected!("avx512f") {
                all.push(Isa(Level::Avx512));
                if is_x86_feature_detected!("avx512bf16") {
                    all.push(Isa(Level::Avx512Bf16));
                }
            }
        }
        all
    }

    /// The fastest one.
    #[must_use]
    pub fn best() -> Isa {
        *Isa::available().last().expect("the portable one is always there")
    }

    /// Its name: `portable`, `avx2`, `avx512`, `avx512bf16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Whether pairs of bf16 are multiplied by one instruction.
    #[must_use]
    pub fn multiplies_pairs(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => true,
            _ => false,
        }
    }

    /// Runs a job compiled for this instruction set.
    #[inline]
    pub(super) fn dispatch<J: Job>(self, job: J) {
        match self.0 {
            Level::Portable => job.run::<Portable>(),
            // SAFETY: this value exists only where detection found the instructions.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { dispatch_avx2(job) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { dispatch_avx512(job) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => unsafe { dispatch_avx512_bf16(job) },
        }
    }

    /// Runs `f`, compiled for this instruction set. Give an `#[inline(always)]` closure or function with the
    /// whole loop in it: what is inlined uses the instructions (`mul_add` is one instruction then).
    pub fn run<R>(self, f: impl FnOnce() -> R) -> R {
        match self.0 {
            Level::Portable => f(),
            // SAFETY: this value exists only where detection found the instructions.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { run_avx2(f) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 => unsafe { run_avx512(f) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f")]
fn run_avx512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dispatch_avx2<J: Job>(job: J) {
    job.run::<Avx2>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f")]
fn dispatch_avx512<J: Job>(job: J) {
    job.run::<Avx512>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bf16")]
fn dispatch_avx512_bf16<J: Job>(job: J) {
    job.run::<Avx512Bf16>();
}
