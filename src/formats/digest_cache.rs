//! Digests of weight files that need not be computed again. A digest stands for a file's content at the next start, so
//! it is believed only from a folder in which nobody but this user can have put it.

use super::open_folder::{Access, OpenFolder};
use super::publish::{FileDraft, Memory, Over};
use crate::error::{Error, Result};
use crate::files;
use std::ffi::OsStr;
use std::path::Path;

/// The folder below a cache folder.
const FOLDER: &str = "digests";

/// The open folder of digests.
#[derive(Debug)]
pub struct DigestCache(OpenFolder);

impl DigestCache {
    /// Opens the digests below the cache folder `cache`, creating both for this user alone.
    ///
    /// # Errors
    /// It cannot be opened; or others can write in it.
    pub fn open(cache: &Path) -> Result<Self> {
        let path = cache.join(FOLDER);
        let fault = |e: std::io::Error| Error::io("opening", &path, e);
        let cache = OpenFolder::create(cache, Access::Private).map_err(fault)?;
        cache.make_folder(FOLDER, Access::Private).map_err(fault)?;
        let folder = cache.enter(FOLDER).map_err(fault)?;
        let found = folder.stat().map_err(fault)?;
        if found.st_uid != rustix::process::geteuid().as_raw() || found.st_mode & 0o022 != 0 {
            return Err(Error::output(format!("others can write in {}", path.display()))
                .hint(format!("chmod go-w {0}, or chown it", path.display())));
        }
        Ok(DigestCache(folder))
    }

    /// The digest kept under `key`, if it is one.
    pub(super) fn get(&self, key: &str) -> Option<String> {
        let file = self.0.open_file(key).ok()?;
        let text = files::read_from(file, Path::new(key), 65).ok()?;
        let digest = std::str::from_utf8(&text).ok()?.strip_suffix('\n')?;
        let is_digest = digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_digest.then(|| digest.to_owned())
    }

    /// Keeps a digest. Where it cannot be kept, the next start takes some seconds more, and nothing else happens.
    pub(super) fn keep(&self, key: &str, digest: &str) {
        let kept = FileDraft::in_folder(&self.0, OsStr::new(key)).and_then(|mut draft| {
            draft.write(format!("{digest}\n").as_bytes())?;
            draft.publish(Over::Earlier, &Memory)
        });
        drop(kept);
    }
}
