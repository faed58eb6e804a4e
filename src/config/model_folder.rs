//! Where a model's files are: a folder, a folder of the Hugging Face cache, or a hub name that is in that cache.
//! Nothing is ever downloaded.

use crate::error::{Error, Result};
use crate::files;
use std::path::{Path, PathBuf};

/// The folder that `name` stands for: itself, the snapshot in a cache folder `models--ORG--NAME`, or that of the hub
/// name `ORG/NAME` in the local cache (huggingface_hub, "Understand caching").
///
/// # Errors
/// Input: no such folder, with the command that gets it where `name` may be a hub name.
pub fn find(name: &Path) -> Result<PathBuf> {
    if files::is_folder(name)? {
        return if files::is_folder(&name.join("snapshots"))? {
            snapshot(name)
        } else {
            Ok(name.to_path_buf())
        };
    }
    let missing = Error::input(format!("{}: no such model folder", name.display()));
    let Some(hub) = hub_name(name) else { return Err(missing) };
    let remedy = format!("nothing is downloaded here; if it is a hub name: hf download {hub}");
    let Some(cache) = cache() else { return Err(missing.hint(remedy)) };
    let folder = cache.join(format!("models--{}", hub.replace('/', "--")));
    if files::is_folder(&folder)? { snapshot(&folder) } else { Err(missing.hint(remedy)) }
}

/// `ORG/NAME`, where the path may be one.
fn hub_name(name: &Path) -> Option<&str> {
    let text = name.to_str()?;
    let (org, model) = text.split_once('/')?;
    let plain = |part: &str| {
        let letters = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && part.chars().all(letters) && !part.starts_with('.')
    };
    (plain(org) && plain(model)).then_some(text)
}

/// The cache of hub files: `HF_HUB_CACHE`, `HF_HOME/hub`, or `~/.cache/huggingface/hub`.
fn cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let named = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].into_iter().find_map(set);
    let home = || set("HF_HOME").map(|home| home.join("hub"));
    let user =
        || Some(set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?.join("huggingface/hub"));
    named.or_else(home).or_else(user)
}

/// The snapshot that a cache folder's `refs/main` names, else its only one.
fn snapshot(folder: &Path) -> Result<PathBuf> {
    let snapshots = folder.join("snapshots");
    let main = folder.join("refs/main");
    let main = if files::exists(&main)? { files::read_text(&main, 1024)? } else { String::new() };
    let plain = |revision: &str| !revision.is_empty() && revision.chars().all(|c| c.is_ascii_hexdigit());
    if plain(main.trim()) {
        let named = snapshots.join(main.trim());
        if files::is_folder(&named)? {
            return Ok(named);
        }
    }
    let reading = |e: std::io::Error| Error::reading(&snapshots, e);
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&snapshots).map_err(reading)? {
        let path = entry.map_err(reading)?.path();
        if files::is_folder(&path)? {
            all.push(path);
        }
    }
    all.sort();
    match all.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Error::input(format!("{}: no snapshot is in this cache folder", folder.display()))
            .hint("download it again: hf download ORG/NAME")),
        many => {
            let names: Vec<String> = many.iter().map(|path| path.display().to_string()).collect();
            Err(Error::input(format!(
                "{}: it has {} snapshots and no refs/main",
                folder.display(),
                many.len()
            ))
            .hint(format!("name one: {}", names.join(", "))))
        }
    }
}

/// A path as it was written, `~` and `~/…` being the user's home; the shell has done this only where a word begins so.
///
/// # Errors
/// Usage: another user's home, or none is known.
pub fn expand_home(text: &str) -> Result<String> {
    let Some(rest) = text.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
        return match text.strip_prefix('~') {
            Some(_) => Err(Error::usage(format!("'{text}': only ~/ is expanded"))
                .hint("write the path in full, or ./~NAME")),
            None => Ok(text.to_owned()),
        };
    };
    let home = std::env::var("HOME").ok().filter(|home| home.starts_with('/'));
    let home = home
        .ok_or_else(|| Error::usage(format!("'{text}': HOME is not set")).hint("write the path in full"))?;
    Ok(format!("{}{rest}", home.trim_end_matches('/')))
}
