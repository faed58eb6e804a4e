//! Trains on a program's own conversations, with a progress bar of its own, and stops after five steps.

use qwentune::{Control, Event, Kind, Request, Result, ResumeFrom, Rows, Settings, Summary, tokenise, train};
use serde_json::{Value, json};

fn conversation(n: u32) -> Value {
    let (question, answer) = (format!("What is {n} plus {n}?"), (n + n).to_string());
    json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
}

/// 64 conversations. A run that is in `output` already is continued.
pub fn request(model: &str, output: &str) -> Result<Request> {
    let mut settings = Settings { model: model.into(), output_dir: output.into(), ..Settings::default() };
    settings.resume_from_checkpoint = Some(ResumeFrom::Auto);
    let train = tokenise(&settings, &(0..64).map(conversation).collect::<Vec<_>>())?;
    let rows = Rows { train, eval: Vec::new() };
    Ok(Request { rows: Some(rows), ..Request::new(&settings) })
}

/// Trains to the end, or until `last` steps are done: another thread could ask for the stop as well.
pub fn train_until(request: Request, last: u64) -> Result<Summary> {
    let (control, mut total) = (Control::default(), 1);
    train(request, &control, &mut |event: &Event| match event {
        Event::Started { total: steps, .. } => total = *steps,
        Event::Step { line, .. } => {
            let done = "#".repeat((30 * line.step / total) as usize);
            eprint!("\r[{done:<30}] step {} of {total}, loss {:.4}", line.step, line.loss);
            (line.step == last).then(|| control.request_stop());
        }
        Event::Saved { path, .. } => eprintln!("\nsaved {}", path.display()),
        _ => {}
    })
}

/// `embed MODEL OUTPUT`
pub fn main() -> Result<()> {
    let [model, output] = [1, 2].map(|n| std::env::args().nth(n).unwrap_or_default());
    match train_until(request(&model, &output)?, 5) {
        Err(stopped) if stopped.kind == Kind::Stopped => println!("{stopped}"),
        ended => println!("the adapter is in {}", ended?.adapter.display()),
    }
    Ok(())
}
