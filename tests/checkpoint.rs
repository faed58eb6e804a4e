//! Checkpoints: the format, the folder's rules, and what survives of them.

use qwentune::checkpoint::state::{
    Ancestor, Best, Change, Cursor, Descent, History, Length, PlanOrigin, State, TensorEntry, digest_of,
};
use qwentune::identity::{BaseModel, Identity};
use qwentune::report::line::{EvalLine, LogLine, StepLine};
use std::collections::BTreeMap;
use std::path::PathBuf;

mod crash;
pub mod disk;
mod format;
mod model;
mod python;
mod store;

/// A state of `step` whose every value depends on the step and on `salt`.
pub fn state(step: u64, salt: u64) -> State {
    sized_state(step, salt, 5)
}

/// As [`state`], with tensors of 3 x `width` and `width` x 2.
pub fn sized_state(step: u64, salt: u64, width: usize) -> State {
    let tensors = vec![
        TensorEntry { name: "layers.0.q_proj.lora_A".into(), shape: [3, width], offset: 0 },
        TensorEntry { name: "layers.0.q_proj.lora_B".into(), shape: [width, 2], offset: 3 * width },
    ];
    let value = |i: usize, k: u64| ((i as u64 * 37 + step * 11 + salt * 101 + k) % 1009) as f32 / 64.0;
    let array = |k: u64| (0..5 * width).map(|i| value(i, k)).collect::<Vec<f32>>();
    let line = |s: u64| {
        let (epoch, loss, grad_norm) = (s as f64 / 8.0, 2.0 / s as f64, 1.0 / 3.0);
        LogLine::Step(StepLine { step: s, epoch, loss, grad_norm, lr: 1e-4 / 7.0, tokens: 100 + salt })
    };
    let mut log: Vec<LogLine> = (1..=step).map(line).collect();
    log.push(LogLine::Eval(EvalLine { step, epoch: step as f64 / 8.0, eval_loss: 0.1 }));
    let weights: Vec<f32> = array(1).iter().map(|x| x - 7.0).collect();
    State {
        step,
        tainted: salt % 2 == 1,
        identity: identity(salt),
        history: History {
            lengths: vec![Length { from_step: 0, total_steps: 1000, warmup_steps: 3 }],
            changes: vec![Change { from_step: 1, setting: "eval_steps".into(), value: salt.to_string() }],
            lineage: vec![Ancestor { descent: Descent::Branch, step: 1, digest: "ab".into() }],
            plan: PlanOrigin { step: 1, epoch: 2, samples: 3 },
        },
        tensors,
        m: array(2).iter().map(|x| -x).collect(),
        v: array(3),
        cursor: Cursor {
            samples: step * 8,
            tokens: step * 800,
            updates_behind: 1,
            best: Some(Best { loss: 0.1, step, adapter: digest_of(&weights) }),
            stale_evaluations: 1,
        },
        weights,
        log,
    }
}

/// The identity of a run with seed `salt`.
pub fn identity(salt: u64) -> Identity {
    let files = BTreeMap::from([("a.safetensors".into(), "\u{e9}\"\\\n".into())]);
    Identity {
        model: BaseModel { files, encoding: "bf16".into() },
        settings: BTreeMap::from([("seed".into(), salt.to_string())]),
        ..Identity::default()
    }
}

/// An empty folder of its own for the test `name`.
pub fn fresh_folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("checkpoint-{name}"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a writable target folder");
    folder
}
