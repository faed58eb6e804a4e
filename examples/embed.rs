//! Trains on a program's own token rows, stops after five steps, and continues to the end.

use qwentune::config::{ResumeFrom, Settings};
use qwentune::data::dataset::{IGNORED, Row, Rows};
use qwentune::error::{Kind, Result};
use qwentune::report::event::Event;
use qwentune::train::{self, Control, Request, Summary};

/// 64 rows of 12 tokens, the last 8 of each scored. A run that is in `output` already is continued.
pub fn request(model: &str, output: &str) -> Request {
    let ids = |n: u32| (0..12).map(|i| (n + i * i) % 50).collect::<Vec<u32>>();
    let label = |(i, id): (usize, u32)| if i < 4 { IGNORED } else { id as i32 };
    let row = |n| Row { ids: ids(n), labels: ids(n).into_iter().enumerate().map(label).collect() };
    let rows = Rows { train: (0..64).map(row).collect(), eval: Vec::new() };
    let mut settings = Settings { model: model.into(), output_dir: output.into(), ..Settings::default() };
    settings.resume_from_checkpoint = Some(ResumeFrom::Auto);
    Request { rows: Some(rows), ..Request::new(&settings) }
}

/// Shows each step's loss and asks for a stop after the fifth; trains until stopped or done.
pub fn train_and_stop(request: Request) -> Result<Summary> {
    let control = Control::default();
    train::train(request, &control, &mut |event: &Event| {
        let Event::Step { line, .. } = event else { return };
        println!("step {}: loss {:.4}", line.step, line.loss);
        (line.step == 5).then(|| control.request_stop());
    })
}

/// A run that was stopped has saved its complete state: the same request continues it.
pub fn main() -> Result<()> {
    let [model, output] = [1, 2].map(|n| std::env::args().nth(n).unwrap_or_default());
    match train_and_stop(request(&model, &output)) {
        Err(e) if e.kind == Kind::Stopped => train_and_stop(request(&model, &output)).map(|_| ()),
        done => done.map(|_| ()),
    }
}
