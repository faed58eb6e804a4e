//! What stands in for rendering in a build without the feature `text`: only tokenised rows are read.

use super::prepare::Outcome;
use super::rows::Content;
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::identity::Template;

/// Never made.
pub(super) enum Renderer {}

impl Renderer {
    pub(super) fn open(_: &Settings, _: usize) -> Result<Self> {
        Err(Error::usage("this build reads tokenised rows (input_ids) only")
            .hint("build with the feature `text`, or tokenise the rows first"))
    }

    pub(super) fn identity(&self) -> (String, Template) {
        match *self {}
    }

    pub(super) fn require_template(&self) -> Result<()> {
        match *self {}
    }

    pub(super) fn outcome(&self, _: &Content, _: &Settings) -> Outcome {
        match *self {}
    }
}
