//! One error type: what is wrong, where, and what to do; its [`Kind`] decides the exit status.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What sort of thing went wrong. The numbers are the exit statuses of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A check the command makes did not hold, or a bug of ours.
    Check = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// An input file is wrong: model, tokenizer, data, adapter, checkpoint.
    Input = 65,
    /// The device is not there, or has too little memory.
    Device = 69,
    /// The output folder cannot be used.
    Output = 73,
    /// Reading or writing failed.
    Io = 74,
    /// Stopped on request after saving a checkpoint.
    Stopped = 75,
    /// Resume refused: something that decides the result differs.
    Refused = 76,
    /// Training diverged: a loss or gradient is not finite.
    Diverged = 79,
}

/// An error: one line that says what and where, and optionally a second that says what to do.
///
/// A program decides by [`Error::kind`], and where it wants to know more looks at the
/// [source](std::error::Error::source) with `downcast_ref`: the operating system's [`io::Error`], or the typed
/// error of the module that found it. The texts are for people: they hold the source's words, and change.
#[derive(Clone, Debug)]
pub struct Error {
    /// Decides the exit status.
    pub kind: Kind,
    /// What is wrong and where (file, row, tensor).
    pub what: String,
    /// What to do about it; empty when the first line says it all.
    pub remedy: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `what` names the file, row or tensor.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Error { kind, what: what.into(), remedy: String::new(), source: None }
    }

    /// Something that must hold did not.
    pub fn check(what: impl Into<String>) -> Self {
        Self::new(Kind::Check, what)
    }

    /// The command line or configuration is wrong.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Kind::Usage, what)
    }

    /// An input file is wrong.
    pub fn input(what: impl Into<String>) -> Self {
        Self::new(Kind::Input, what)
    }

    /// The device is missing or too small.
    pub fn device(what: impl Into<String>) -> Self {
        Self::new(Kind::Device, what)
    }

    /// The output folder cannot be used.
    pub fn output(what: impl Into<String>) -> Self {
        Self::new(Kind::Output, what)
    }

    /// Resume refused.
    pub fn refused(what: impl Into<String>) -> Self {
        Self::new(Kind::Refused, what)
    }

    /// Training diverged.
    pub fn diverged(what: impl Into<String>) -> Self {
        Self::new(Kind::Diverged, what)
    }

    /// Reading or writing `path` failed while `doing` something ("reading", "writing").
    pub fn io(doing: &str, path: &Path, source: io::Error) -> Self {
        Self::new(Kind::Io, format!("{doing} {}: {source}", path.display())).caused_by(source)
    }

    /// An input file that could not be opened or read: missing files are wrong input, the rest is I/O.
    pub fn reading(path: &Path, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::PermissionDenied => Kind::Input,
            _ => Kind::Io,
        };
        Self::new(kind, format!("cannot read {}: {source}", path.display())).caused_by(source)
    }

    /// Keeps what this error follows from, for programs. The text is to say it already.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// The same error, with the place it was found at before its text: `place: what`.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.what = format!("{place}: {}", self.what);
        self
    }

    /// The same error as one of `kind`: whoever calls knows better what a wrong text came from.
    #[must_use]
    pub fn of_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// The process exit status.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.kind as u8
    }
}

/// The text with everything escaped that a terminal would obey and not show: names of files and their contents come
/// from anywhere. Line feeds and tabs stay. Whatever is printed goes through it; errors hold texts as they are.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| if is_obeyed(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(escape).collect())
}

/// Control characters, and those that change the direction of the text behind them.
fn is_obeyed(c: char) -> bool {
    let redirects = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    redirects || (c.is_control() && c != '\n' && c != '\t')
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.remedy.is_empty() {
            write!(f, "\n  {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.source.as_deref()?;
        Some(source)
    }
}
