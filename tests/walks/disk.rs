//! A file system that loses power: folders in folders, open ones that are followed when they are moved, locks.
//!
//! What was written but not synced is pending: at a power loss each page (4096 bytes), and each file's new length,
//! survives or not, independently. Of the changes to names that no sync made durable an arbitrary prefix survives; a
//! rename from folder to folder is one change. A process that is killed loses nothing that was done.

use crate::checkpoint::disk::Rng;
use qwentune::checkpoint::decode::Source;
use qwentune::checkpoint::storage::{Disk, Entry, Folder, Held, Locked, Stored, Tree};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

const PAGE: usize = 4096;
const ROOT: usize = 0;

#[derive(Clone)]
enum Node {
    File { data: Vec<u8>, durable: Vec<u8>, pending: Vec<(usize, Vec<u8>)> },
    Folder { names: BTreeMap<String, usize>, durable: BTreeMap<String, usize> },
}

#[derive(Clone)]
enum Change {
    Set(usize, String, usize),
    Remove(usize, String),
    Move((usize, String), (usize, String), usize),
    Exchange((usize, String), (usize, String), [usize; 2]),
}

#[derive(Clone)]
struct Inner {
    nodes: Vec<Node>,
    journal: Vec<Change>,
    operations: u64,
    /// The operation at which the process ends, half of it done when it is a write.
    ends_at: Option<u64>,
    off: bool,
    locked: BTreeSet<usize>,
}

/// The file system. Clones are the same one.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<Inner>>);

fn os(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

fn ended() -> io::Error {
    io::Error::other("the process has ended")
}

fn empty_folder() -> Node {
    Node::Folder { names: BTreeMap::new(), durable: BTreeMap::new() }
}

fn put(data: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if data.len() < offset + bytes.len() {
        data.resize(offset + bytes.len(), 0);
    }
    data[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl Inner {
    /// Counts an operation; true when half of it is to be done before the end.
    fn gate(&mut self) -> io::Result<bool> {
        if self.off {
            return Err(ended());
        }
        self.operations += 1;
        self.off = self.ends_at == Some(self.operations);
        Ok(self.off)
    }

    fn whole(&mut self) -> io::Result<()> {
        if self.gate()? { Err(ended()) } else { Ok(()) }
    }

    fn names(&self, folder: usize) -> &BTreeMap<String, usize> {
        match &self.nodes[folder] {
            Node::Folder { names, .. } => names,
            Node::File { .. } => panic!("a file is no folder"),
        }
    }

    fn find(&self, folder: usize, name: &str) -> io::Result<usize> {
        self.names(folder).get(name).copied().ok_or_else(|| os(libc::ENOENT))
    }

    /// Folder and last name of a path of names separated by slashes.
    fn reach(&self, folder: usize, path: &str) -> io::Result<(usize, String)> {
        match path.rsplit_once('/') {
            None => Ok((folder, path.to_owned())),
            Some((above, name)) => {
                let mut at = folder;
                for part in above.split('/') {
                    at = self.find(at, part)?;
                }
                Ok((at, name.to_owned()))
            }
        }
    }

    fn change(&mut self, change: Change) {
        self.apply(&change, false);
        self.journal.push(change);
    }

    fn apply(&mut self, change: &Change, durable: bool) {
        let nodes = &mut self.nodes;
        let mut edit =
            |folder: usize, edit: &mut dyn FnMut(&mut BTreeMap<String, usize>)| match &mut nodes[folder] {
                Node::Folder { durable: kept, .. } if durable => edit(kept),
                Node::Folder { names, .. } => edit(names),
                Node::File { .. } => panic!("a file is no folder"),
            };
        match change {
            Change::Set(folder, name, id) => edit(*folder, &mut |names| _ = names.insert(name.clone(), *id)),
            Change::Remove(folder, name) => edit(*folder, &mut |names| _ = names.remove(name)),
            Change::Exchange((a, one), (b, other), [first, second]) => {
                edit(*a, &mut |names| _ = names.insert(one.clone(), *second));
                edit(*b, &mut |names| _ = names.insert(other.clone(), *first));
            }
            Change::Move((from, old), (to, new), id) => {
                edit(*from, &mut |names| _ = names.remove(old));
                edit(*to, &mut |names| _ = names.insert(new.clone(), *id));
            }
        }
    }
}

impl Change {
    fn touches(&self, folder: usize) -> bool {
        match self {
            Change::Set(at, ..) | Change::Remove(at, _) => *at == folder,
            Change::Move((from, _), (to, _), _) | Change::Exchange((from, _), (to, _), _) => {
                *from == folder || *to == folder
            }
        }
    }
}

impl SimDisk {
    pub fn new() -> SimDisk {
        SimDisk(Arc::new(Mutex::new(Inner {
            nodes: vec![empty_folder()],
            journal: Vec::new(),
            operations: 0,
            ends_at: None,
            off: false,
            locked: BTreeSet::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic inside the disk")
    }

    /// Lets the process end at the operation `at`, counted from now.
    pub fn end_at(&self, at: u64) {
        let mut inner = self.lock();
        inner.ends_at = Some(inner.operations + at);
    }

    pub fn never_end(&self) {
        self.lock().ends_at = None;
    }

    pub fn has_ended(&self) -> bool {
        self.lock().off
    }

    /// What the next process finds after one was killed, or had ended.
    pub fn after_kill(&self) -> SimDisk {
        let mut inner = self.lock().clone();
        (inner.off, inner.ends_at, inner.operations) = (false, None, 0);
        inner.locked.clear();
        SimDisk(Arc::new(Mutex::new(inner)))
    }

    /// What another machine finds when the power went off now.
    pub fn after_power_loss(&self, rng: &mut Rng) -> SimDisk {
        let mut inner = self.lock().clone();
        let survivors = rng.below(inner.journal.len() + 1);
        let journal = std::mem::take(&mut inner.journal);
        journal[..survivors].iter().for_each(|change| inner.apply(change, true));
        for node in &mut inner.nodes {
            match node {
                Node::Folder { names, durable } => names.clone_from(durable),
                Node::File { data, durable, pending } => {
                    let mut kept = std::mem::take(durable);
                    if kept.len() < data.len() && rng.coin() {
                        kept.resize(data.len(), 0);
                    }
                    for (offset, bytes) in std::mem::take(pending) {
                        if rng.coin() {
                            put(&mut kept, offset, &bytes);
                        }
                    }
                    data.clone_from(&kept);
                    *durable = kept;
                }
            }
        }
        (inner.off, inner.ends_at, inner.operations) = (false, None, 0);
        inner.locked.clear();
        SimDisk(Arc::new(Mutex::new(inner)))
    }

    /// All that is there is durable: time has passed.
    pub fn settle(&self) {
        let mut inner = self.lock();
        inner.journal.clear();
        for node in &mut inner.nodes {
            match node {
                Node::Folder { names, durable } => durable.clone_from(names),
                Node::File { data, durable, pending } => {
                    durable.clone_from(data);
                    pending.clear();
                }
            }
        }
    }

    fn walk(&self, path: &Path) -> io::Result<usize> {
        let inner = self.lock();
        let mut at = ROOT;
        for part in from_here(path).components() {
            if let Component::Normal(name) = part {
                if matches!(inner.nodes[at], Node::File { .. }) {
                    return Err(os(libc::ENOTDIR));
                }
                at = inner.find(at, name.to_str().expect("text"))?;
            }
        }
        Ok(at)
    }

    /// Every file below `path`, by its name from there.
    pub fn files(&self, path: &str) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        if let Ok(at) = self.walk(Path::new(path)) {
            self.collect(at, "", &mut all);
        }
        all
    }

    fn collect(&self, folder: usize, before: &str, all: &mut BTreeMap<String, Vec<u8>>) {
        let names = self.lock().names(folder).clone();
        for (name, id) in names {
            let shown = format!("{before}{name}");
            let node = self.lock().nodes[id].clone();
            match node {
                Node::File { data, .. } => _ = all.insert(shown, data),
                Node::Folder { .. } => self.collect(id, &format!("{shown}/"), all),
            }
        }
    }

    /// Renames a folder or file behind the program's back.
    pub fn rename_path(&self, from: &str, to: &str) {
        let mut inner = self.lock();
        let (a, old) = inner.reach(ROOT, from).expect("there");
        let (b, new) = inner.reach(ROOT, to).expect("there");
        let id = inner.find(a, &old).expect("there");
        inner.change(Change::Move((a, old), (b, new), id));
    }

    /// Removes a file behind the program's back.
    pub fn remove(&self, path: &str) {
        let mut inner = self.lock();
        let (folder, name) = inner.reach(ROOT, path).expect("there");
        inner.change(Change::Remove(folder, name));
    }

    /// Changes the stored bytes behind the program's back.
    pub fn tamper(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let id = self.walk(Path::new(path)).expect("there");
        if let Node::File { data, .. } = &mut self.lock().nodes[id] {
            change(data);
        }
    }

    fn handle(&self, id: usize, path: &Path) -> io::Result<Box<dyn Tree>> {
        match self.lock().nodes[id] {
            Node::Folder { .. } => Ok(Box::new(At { disk: self.clone(), id, path: path.to_owned() })),
            Node::File { .. } => Err(os(libc::ENOTDIR)),
        }
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Tree>> {
        self.lock().whole()?;
        self.handle(self.walk(path)?, path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Tree>> {
        let mut at = ROOT;
        for part in from_here(path).components() {
            let Component::Normal(name) = part else { continue };
            let name = name.to_str().expect("text").to_owned();
            let mut inner = self.lock();
            inner.whole()?;
            at = match inner.find(at, &name) {
                Ok(id) => id,
                Err(_) => {
                    inner.nodes.push(empty_folder());
                    let id = inner.nodes.len() - 1;
                    inner.change(Change::Set(at, name, id));
                    drop(inner);
                    At { disk: self.clone(), id: at, path: PathBuf::new() }.sync()?;
                    id
                }
            };
        }
        self.handle(at, path)
    }

    fn open_file(&self, path: &Path) -> io::Result<Box<dyn Stored>> {
        self.lock().whole()?;
        Ok(Box::new(OpenFile { disk: self.clone(), id: self.walk(path)? }))
    }

    fn entry(&self, path: &Path) -> io::Result<Option<Entry>> {
        self.lock().whole()?;
        match self.walk(path) {
            Ok(id) => Ok(Some(kind(&self.lock().nodes[id]))),
            Err(e) if [Some(libc::ENOENT), Some(libc::ENOTDIR)].contains(&e.raw_os_error()) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        self.walk(path)?;
        Ok(from_here(path).components().filter(|part| matches!(part, Component::Normal(_))).collect())
    }
}

/// The working directory is the root.
fn from_here(path: &Path) -> &Path {
    static HERE: OnceLock<PathBuf> = OnceLock::new();
    let here = HERE.get_or_init(|| std::env::current_dir().expect("a working directory"));
    path.strip_prefix(here).unwrap_or(path)
}

fn kind(node: &Node) -> Entry {
    match node {
        Node::File { .. } => Entry::File,
        Node::Folder { .. } => Entry::Folder,
    }
}

struct At {
    disk: SimDisk,
    id: usize,
    path: PathBuf,
}

impl Folder for At {
    fn create(&self, name: &str) -> io::Result<Box<dyn Stored>> {
        let mut inner = self.disk.lock();
        inner.whole()?;
        if inner.names(self.id).contains_key(name) {
            return Err(os(libc::EEXIST));
        }
        inner.nodes.push(Node::File { data: Vec::new(), durable: Vec::new(), pending: Vec::new() });
        let id = inner.nodes.len() - 1;
        inner.change(Change::Set(self.id, name.to_owned(), id));
        Ok(Box::new(OpenFile { disk: self.disk.clone(), id }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Stored>> {
        let mut inner = self.disk.lock();
        inner.whole()?;
        let id = inner.find(self.id, name)?;
        Ok(Box::new(OpenFile { disk: self.disk.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        let mut inner = self.disk.lock();
        inner.whole()?;
        let (a, old) = inner.reach(self.id, from)?;
        let (b, new) = inner.reach(self.id, to)?;
        let id = inner.find(a, &old)?;
        if !replace && inner.names(b).contains_key(&new) {
            return Err(os(libc::EEXIST));
        }
        inner.change(Change::Move((a, old), (b, new), id));
        Ok(())
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.disk.lock();
        inner.whole()?;
        let id = inner.find(self.id, from)?;
        if inner.names(self.id).contains_key(to) {
            return Err(os(libc::EEXIST));
        }
        inner.change(Change::Set(self.id, to.to_owned(), id));
        Ok(())
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        let mut inner = self.disk.lock();
        inner.whole()?;
        let (folder, name) = inner.reach(self.id, name)?;
        inner.find(folder, &name)?;
        inner.change(Change::Remove(folder, name));
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut inner = self.disk.lock();
        inner.whole()?;
        Ok(inner.names(self.id).keys().cloned().collect())
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.lock();
        inner.whole()?;
        let (mine, others): (Vec<Change>, Vec<Change>) =
            std::mem::take(&mut inner.journal).into_iter().partition(|change| change.touches(self.id));
        mine.iter().for_each(|change| inner.apply(change, true));
        inner.journal = others;
        Ok(())
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn in_place(&self) -> bool {
        self.disk.walk(&self.path).is_ok_and(|id| id == self.id)
    }
}

impl Tree for At {
    fn entry(&self, name: &str) -> io::Result<Option<Entry>> {
        let mut inner = self.disk.lock();
        inner.whole()?;
        Ok(inner.names(self.id).get(name).map(|id| kind(&inner.nodes[*id])))
    }

    fn subfolder(&self, name: &str) -> io::Result<Box<dyn Tree>> {
        let id = {
            let mut inner = self.disk.lock();
            inner.whole()?;
            inner.find(self.id, name)?
        };
        self.disk.handle(id, &self.path.join(name))
    }

    fn create_subfolder(&self, name: &str) -> io::Result<()> {
        {
            let mut inner = self.disk.lock();
            inner.whole()?;
            if inner.names(self.id).contains_key(name) {
                return Err(os(libc::EEXIST));
            }
            inner.nodes.push(empty_folder());
            let id = inner.nodes.len() - 1;
            inner.change(Change::Set(self.id, name.to_owned(), id));
        }
        self.sync()
    }

    fn exchange(&self, one: &str, other: &str) -> io::Result<bool> {
        let mut inner = self.disk.lock();
        inner.whole()?;
        let (a, one) = inner.reach(self.id, one)?;
        let (b, other) = inner.reach(self.id, other)?;
        let ids = [inner.find(a, &one)?, inner.find(b, &other)?];
        inner.change(Change::Exchange((a, one), (b, other), ids));
        Ok(true)
    }

    fn remove_folder(&self, name: &str) -> io::Result<()> {
        self.unlink(name)
    }

    fn lock(&self, name: &str) -> io::Result<Locked> {
        if self.entry(name)?.is_none() {
            self.create(name)?;
        }
        if !self.disk.lock().locked.insert(self.id) {
            return Ok(Locked::By("another walk".into()));
        }
        let held: Held = Arc::new(Unlock { disk: self.disk.clone(), id: self.id });
        Ok(Locked::Held(held))
    }

    fn remark(&self) -> Option<String> {
        None
    }
}

struct Unlock {
    disk: SimDisk,
    id: usize,
}

impl Drop for Unlock {
    fn drop(&mut self) {
        self.disk.lock().locked.remove(&self.id);
    }
}

struct OpenFile {
    disk: SimDisk,
    id: usize,
}

impl OpenFile {
    fn with<T>(
        &self,
        inner: &mut Inner,
        work: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>, &mut Vec<(usize, Vec<u8>)>) -> T,
    ) -> T {
        match &mut inner.nodes[self.id] {
            Node::File { data, durable, pending } => work(data, durable, pending),
            Node::Folder { .. } => panic!("a folder is no file"),
        }
    }
}

impl Source for OpenFile {
    fn size(&self) -> io::Result<u64> {
        let mut inner = self.disk.lock();
        inner.whole()?;
        match &inner.nodes[self.id] {
            Node::File { data, .. } => Ok(data.len() as u64),
            Node::Folder { .. } => Err(os(libc::EISDIR)),
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut inner = self.disk.lock();
        inner.whole()?;
        self.with(&mut inner, |data, _, _| Source::read_at(&&data[..], offset, buffer))
    }
}

impl Stored for OpenFile {
    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.lock();
        inner.whole()?;
        self.with(&mut inner, |data, _, _| data.resize(len as usize, 0));
        Ok(())
    }

    fn write_some(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.disk.lock();
        let half = inner.gate()?;
        let written = if half { bytes.len() / 2 } else { bytes.len() };
        self.with(&mut inner, |data, _, pending| {
            let mut at = offset as usize;
            for page in bytes[..written].chunks(PAGE) {
                put(data, at, page);
                pending.push((at, page.to_vec()));
                at += page.len();
            }
        });
        if half { Err(ended()) } else { Ok(written) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.lock();
        inner.whole()?;
        self.with(&mut inner, |data, durable, pending| {
            durable.resize(data.len(), 0);
            std::mem::take(pending).iter().for_each(|(offset, bytes)| put(durable, *offset, bytes));
        });
        Ok(())
    }
}
