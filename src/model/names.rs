//! The names of adapters' layers: PEFT's tensors, and which layers its target names mean.

use super::patterns::Whole;
use super::spec::LinearSpec;
use crate::config::Targets;
use crate::error::{Error, Result};

/// PEFT's name of an adapter matrix (`A` or `B`) of `module`.
#[must_use]
pub fn adapter_tensor(module: &str, matrix: char) -> String {
    format!("base_model.model.{module}.lora_{matrix}.weight")
}

/// The layers that targets name, ready to be asked for.
pub struct Modules<'a> {
    targets: &'a Targets,
    pattern: Option<Whole>,
}

impl<'a> Modules<'a> {
    /// `name` of the setting is for messages.
    ///
    /// # Errors
    /// [`crate::error::Kind::Usage`]: a pattern that cannot be matched exactly as PEFT does.
    pub fn new(name: &str, targets: &'a Targets) -> Result<Self> {
        let pattern = match targets {
            Targets::Pattern(pattern) => Some(Whole::new(name, pattern)?),
            Targets::AllLinear | Targets::Names(_) => None,
        };
        Ok(Modules { targets, pattern })
    }

    /// Whether `module` is among them: PEFT's rule, the whole name or its end after a dot, or a match of the pattern.
    #[must_use]
    pub fn has(&self, module: &str) -> bool {
        match self.targets {
            Targets::AllLinear => true,
            Targets::Names(names) => names.iter().any(|name| matches(name, module)),
            Targets::Pattern(_) => self.pattern.as_ref().is_some_and(|pattern| pattern.matches(module)),
        }
    }
}

fn matches(target: &str, module: &str) -> bool {
    module.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Checks that every target names at least one of `modules`.
///
/// # Errors
/// [`crate::error::Kind::Usage`]: lists the targets that match nothing and the names there are.
pub fn check_targets<'a>(
    targets: &Targets,
    modules: impl Iterator<Item = &'a LinearSpec> + Clone,
) -> Result<()> {
    let names = match targets {
        Targets::AllLinear => return Ok(()),
        Targets::Names(names) => names,
        Targets::Pattern(pattern) => {
            let found = Modules::new("target_modules", targets)?;
            if modules.clone().any(|linear| found.has(&linear.module)) {
                return Ok(());
            }
            let first = modules.map(|linear| linear.module.as_str()).next().unwrap_or_default();
            return Err(Error::usage(format!("target_modules: {pattern:?} matches no linear layer"))
                .hint(format!("it must match a whole name, such as {first}")));
        }
    };
    let unmatched: Vec<&str> = names
        .iter()
        .filter(|name| !modules.clone().any(|linear| matches(name, &linear.module)))
        .map(String::as_str)
        .collect();
    if names.is_empty() || !unmatched.is_empty() {
        let what = if names.is_empty() {
            "no target modules are named".into()
        } else {
            format!("target modules that this model does not have: {}", unmatched.join(", "))
        };
        let mut there: Vec<&str> = Vec::new();
        for name in modules.map(|linear| short(&linear.module)) {
            if !there.contains(&name) {
                there.push(name);
            }
        }
        return Err(
            Error::usage(what).hint(format!("it has {}; all-linear means all of them", there.join(", ")))
        );
    }
    Ok(())
}

/// The shortest name of a linear layer that is clear within its block: the last part of the module's, or two where
/// that is ambiguous (v1's `c_proj`).
#[must_use]
pub fn short(module: &str) -> &str {
    let parts = |count: usize| {
        module.rmatch_indices('.').nth(count - 1).map_or(module, |(dot, _)| &module[dot + 1..])
    };
    if parts(1) == "c_proj" { parts(2) } else { parts(1) }
}

/// The distinct target names of these modules, sorted, as PEFT lists them.
#[must_use]
pub fn target_names<'a>(modules: impl Iterator<Item = &'a str>) -> Vec<String> {
    let found: std::collections::BTreeSet<&str> = modules.map(short).collect();
    found.into_iter().map(str::to_owned).collect()
}
