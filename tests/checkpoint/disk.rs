//! A disk that can fail and lose power.
//!
//! What was written but not synced is pending: at a power loss each page (4096 bytes), and each file's new
//! length, survives or not, independently; of the changes to the folder an arbitrary prefix survives. A sync
//! that fails has lost what it should have saved, and says nothing the next time (what ext4, XFS and Btrfs do:
//! Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020).

use qwentune::checkpoint::decode::Source;
use qwentune::checkpoint::storage::{Folder, Stored};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

const PAGE: usize = 4096;

/// SplitMix64 (Steele, Lea, Flood 2014): enough to choose cases, and the seed is all there is to print.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

/// What goes wrong at an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    EioOnce,
    EioForever,
    /// From here on nothing fits, until repaired.
    Full,
    ShortWrite,
    Interrupted,
    /// The power goes off; a write is half done.
    PowerOff,
}

pub const TROUBLES: [Trouble; 6] = [
    Trouble::EioOnce,
    Trouble::EioForever,
    Trouble::Full,
    Trouble::ShortWrite,
    Trouble::Interrupted,
    Trouble::PowerOff,
];

/// Ways in which a disk lies about durability: the negative controls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lies {
    pub file_sync: bool,
    pub folder_sync: bool,
}

#[derive(Clone, Default)]
struct Inode {
    data: Vec<u8>,
    durable: Vec<u8>,
    /// Unsynced writes, at most a page each, in order.
    pending: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone)]
enum Change {
    Set(String, usize),
    Remove(String),
    Rename(String, String, usize),
}

#[derive(Default)]
struct Inner {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    journal: Vec<Change>,
    operations: u64,
    trouble: Option<(u64, Trouble)>,
    off: bool,
    lies: Lies,
}

/// The disk: one folder of files. Clones are the same disk.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Inner>>);

enum Go {
    Normal,
    Half,
    HalfThenOff,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Read,
    Change,
    Write,
}

fn os(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl Disk {
    pub fn lying(lies: Lies) -> Disk {
        let disk = Disk::default();
        disk.lock().lies = lies;
        disk
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic inside the disk")
    }

    /// Lets `trouble` happen at the operation `at`, counted from now.
    pub fn plan(&self, at: u64, trouble: Trouble) {
        let mut inner = self.lock();
        inner.trouble = Some((inner.operations + at, trouble));
    }

    /// Nothing goes wrong from now on.
    pub fn repair(&self) {
        self.lock().trouble = None;
    }

    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    pub fn is_off(&self) -> bool {
        self.lock().off
    }

    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    /// Changes the stored bytes, durably, behind the program's back.
    pub fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.lock();
        let id = inner.names[name];
        change(&mut inner.inodes[id].data);
        inner.inodes[id].durable = inner.inodes[id].data.clone();
    }

    /// Removes a name durably, behind the program's back.
    pub fn remove(&self, name: &str) {
        let mut inner = self.lock();
        inner.names.remove(name);
        inner.durable_names.remove(name);
    }

    /// What another machine finds on the disk when the power went off now.
    pub fn after_power_loss(&self, rng: &mut Rng) -> Disk {
        let inner = self.lock();
        let mut names = inner.durable_names.clone();
        let survivors = rng.below(inner.journal.len() + 1);
        inner.journal[..survivors].iter().for_each(|change| apply(change, &mut names));
        // Only files that have a name can be found; the others keep their number.
        let reachable: BTreeSet<usize> = names.values().copied().collect();
        let survivor =
            |(id, inode)| if reachable.contains(&id) { lose_pages(inode, rng) } else { Inode::default() };
        let inodes = inner.inodes.iter().enumerate().map(survivor).collect();
        drop(inner);
        let fresh = Inner { inodes, names: names.clone(), durable_names: names, ..Inner::default() };
        Disk(Arc::new(Mutex::new(fresh)))
    }
}

fn lose_pages(inode: &Inode, rng: &mut Rng) -> Inode {
    let mut data = inode.durable.clone();
    if data.len() < inode.data.len() && rng.coin() {
        data.resize(inode.data.len(), 0);
    }
    for (offset, bytes) in &inode.pending {
        if rng.coin() {
            put(&mut data, *offset, bytes);
        }
    }
    Inode { durable: data.clone(), data, pending: Vec::new() }
}

fn put(data: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if data.len() < offset + bytes.len() {
        data.resize(offset + bytes.len(), 0);
    }
    data[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn apply(change: &Change, names: &mut BTreeMap<String, usize>) {
    match change {
        Change::Set(name, id) => {
            names.insert(name.clone(), *id);
        }
        Change::Remove(name) => {
            names.remove(name);
        }
        Change::Rename(from, to, id) => {
            names.remove(from);
            names.insert(to.clone(), *id);
        }
    }
}

impl Inner {
    fn gate(&mut self, sort: Sort) -> io::Result<Go> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        self.operations += 1;
        let Some((at, trouble)) = self.trouble else { return Ok(Go::Normal) };
        let (now, later) = (self.operations == at, self.operations >= at);
        match trouble {
            Trouble::EioOnce if now => Err(os(libc::EIO)),
            Trouble::EioForever if later => Err(os(libc::EIO)),
            Trouble::Full if later && sort != Sort::Read => Err(os(libc::ENOSPC)),
            Trouble::ShortWrite if now && sort == Sort::Write => Ok(Go::Half),
            Trouble::Interrupted if now && sort == Sort::Write => Err(os(libc::EINTR)),
            Trouble::PowerOff if now => {
                self.off = true;
                if sort == Sort::Write {
                    Ok(Go::HalfThenOff)
                } else {
                    Err(io::Error::other("the power is off"))
                }
            }
            _ => Ok(Go::Normal),
        }
    }

    fn change(&mut self, change: Change) {
        apply(&change, &mut self.names);
        self.journal.push(change);
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| os(libc::ENOENT))
    }
}

impl Folder for Disk {
    fn create(&self, name: &str) -> io::Result<Box<dyn Stored>> {
        let mut inner = self.lock();
        inner.gate(Sort::Change)?;
        if inner.names.contains_key(name) {
            return Err(os(libc::EEXIST));
        }
        inner.inodes.push(Inode::default());
        let id = inner.inodes.len() - 1;
        inner.change(Change::Set(name.into(), id));
        Ok(Box::new(OpenFile { disk: self.clone(), id }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Stored>> {
        let mut inner = self.lock();
        inner.gate(Sort::Read)?;
        let id = inner.find(name)?;
        Ok(Box::new(OpenFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        let mut inner = self.lock();
        inner.gate(Sort::Change)?;
        let id = inner.find(from)?;
        if !replace && inner.names.contains_key(to) {
            return Err(os(libc::EEXIST));
        }
        inner.change(Change::Rename(from.into(), to.into(), id));
        Ok(())
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.gate(Sort::Change)?;
        let id = inner.find(from)?;
        if inner.names.contains_key(to) {
            return Err(os(libc::EEXIST));
        }
        inner.change(Change::Set(to.into(), id));
        Ok(())
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        let mut inner = self.lock();
        // A full disk can still remove.
        inner.gate(Sort::Read)?;
        inner.find(name)?;
        inner.change(Change::Remove(name.into()));
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut inner = self.lock();
        inner.gate(Sort::Read)?;
        Ok(inner.names.keys().cloned().collect())
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.lock();
        let passed = inner.gate(Sort::Read);
        if inner.off || inner.lies.folder_sync {
            return passed.map(|_| ());
        }
        let journal = std::mem::take(&mut inner.journal);
        if passed.is_ok() {
            journal.iter().for_each(|change| apply(change, &mut inner.durable_names));
        }
        passed.map(|_| ())
    }

    fn free_bytes(&self) -> Option<u64> {
        Some(4321)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("disk")
    }

    fn in_place(&self) -> bool {
        true
    }
}

struct OpenFile {
    disk: Disk,
    id: usize,
}

impl Source for OpenFile {
    fn size(&self) -> io::Result<u64> {
        let mut inner = self.disk.lock();
        inner.gate(Sort::Read)?;
        Ok(inner.inodes[self.id].data.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut inner = self.disk.lock();
        inner.gate(Sort::Read)?;
        let data = &inner.inodes[self.id].data[..];
        Source::read_at(&data, offset, buffer)
    }
}

impl Stored for OpenFile {
    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.lock();
        match inner.gate(Sort::Write)? {
            Go::Normal => {
                inner.inodes[self.id].data.resize(len as usize, 0);
                Ok(())
            }
            Go::Half | Go::HalfThenOff => Err(os(libc::EINTR)),
        }
    }

    fn write_some(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.disk.lock();
        let go = inner.gate(Sort::Write)?;
        let written = if matches!(go, Go::Normal) { bytes.len() } else { bytes.len() / 2 };
        let inode = &mut inner.inodes[self.id];
        let mut at = offset as usize;
        for page in bytes[..written].chunks(PAGE) {
            put(&mut inode.data, at, page);
            inode.pending.push((at, page.to_vec()));
            at += page.len();
        }
        if matches!(go, Go::HalfThenOff) { Err(io::Error::other("the power is off")) } else { Ok(written) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.lock();
        let passed = inner.gate(Sort::Change);
        if inner.off || inner.lies.file_sync {
            return passed.map(|_| ());
        }
        let inode = &mut inner.inodes[self.id];
        let pending = std::mem::take(&mut inode.pending);
        if passed.is_ok() {
            inode.durable.resize(inode.data.len(), 0);
            pending.iter().for_each(|(offset, bytes)| put(&mut inode.durable, *offset, bytes));
        }
        passed.map(|_| ())
    }
}
