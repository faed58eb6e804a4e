//! Every case of every operation on the chosen device.

use super::{Row, Settings};
use crate::device::Capabilities;
use crate::element::Element;
use crate::error::Result;
use crate::ops::OPERATIONS;
use crate::ops::check::{Case, Operation, Rig, described};

pub(super) fn check(settings: &Settings) -> Result<Vec<Row>> {
    let device = settings.chosen()?.capabilities();
    let mut rows = Vec::new();
    for operation in OPERATIONS {
        for case in (operation.cases)().iter().filter(|case| case.runs_on(device)) {
            rows.extend(check_case(settings, operation, &**case, device)?);
        }
    }
    Ok(rows)
}

/// A row for each result.
fn check_case(
    settings: &Settings,
    operation: &Operation,
    case: &dyn Case,
    device: &'static Capabilities,
) -> Result<Vec<Row>> {
    let rig = Rig::new(case, device);
    let mut dev = crate::ops::device(settings.chosen()?, rig.plan(), None)?;
    rig.load(&mut dev)?;
    let first = rig.run(&mut dev)?;
    let mut identical = true;
    for _ in 1..settings.repeats {
        identical &= first.same_bits(&rig.run(&mut dev)?);
    }
    let findings = rig.judge(&first, device.activation == Element::Bf16);
    let row = |found: crate::ops::check::Finding| Row {
        operation: operation.name,
        case: format!("{} of {}", found.name, described(case)),
        error: Some(found.error),
        limit: Some(found.limit),
        identical: Some(identical),
        bits: found.bits,
    };
    Ok(findings.into_iter().map(row).collect())
}
