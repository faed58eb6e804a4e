//! Runs a program whose system calls on files below a folder are counted, and may be answered with an error.

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// What fails.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The first call that does, counted from 0.
    pub first: usize,
    /// Whether all later ones do too.
    pub forever: bool,
    /// With which error.
    pub errno: i32,
    /// Whether calls that only read are counted.
    pub reads: bool,
    /// Only calls of this name are; empty: all.
    pub only: &'static str,
}

/// What came of a program.
pub struct Ended {
    pub output: Output,
    /// Calls on files below the folder, by name, in order.
    pub calls: Vec<String>,
}

/// How a call says which file it is on.
#[derive(Clone, Copy, PartialEq)]
enum Names {
    /// An open file, first argument.
    Open,
    /// A path, first argument.
    Path,
    /// An open folder and a path, first two arguments.
    At,
}

/// Calls that change files, and then those that only look.
const CHANGES: &[(i64, &str, Names)] = &[
    (libc::SYS_mkdirat, "mkdirat", Names::At),
    (libc::SYS_renameat2, "renameat2", Names::At),
    (libc::SYS_linkat, "linkat", Names::At),
    (libc::SYS_unlinkat, "unlinkat", Names::At),
    (libc::SYS_write, "write", Names::Open),
    (libc::SYS_writev, "writev", Names::Open),
    (libc::SYS_pwrite64, "pwrite64", Names::Open),
    (libc::SYS_fsync, "fsync", Names::Open),
    (libc::SYS_fdatasync, "fdatasync", Names::Open),
    (libc::SYS_ftruncate, "ftruncate", Names::Open),
    (libc::SYS_fallocate, "fallocate", Names::Open),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, "mkdir", Names::Path),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, "rmdir", Names::Path),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, "rename", Names::Path),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, "unlink", Names::Path),
    (libc::SYS_renameat, "renameat", Names::At),
];
const LOOKS: &[(i64, &str, Names)] = &[
    (libc::SYS_openat, "openat", Names::At),
    (libc::SYS_flock, "flock", Names::Open),
    (libc::SYS_read, "read", Names::Open),
    (libc::SYS_pread64, "pread64", Names::Open),
    (libc::SYS_statx, "statx", Names::At),
    (libc::SYS_newfstatat, "newfstatat", Names::At),
    (libc::SYS_getdents64, "getdents64", Names::Open),
];

/// A call the program waits in.
#[repr(C)]
#[derive(Clone, Copy)]
struct Asked {
    id: u64,
    pid: u32,
    flags: u32,
    nr: i32,
    arch: u32,
    instruction: u64,
    args: [u64; 6],
}

#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
const CONTINUE: u32 = 1;

/// Whether this system lets a test do so; containers may forbid it.
pub fn possible() -> bool {
    let mut probe = Command::new("true");
    run(&mut probe, Path::new("/nowhere"), None).is_ok()
}

/// Runs `command` to its end; `fault` is what fails of its calls on files below `folder`.
pub fn run(command: &mut Command, folder: &Path, fault: Option<Fault>) -> io::Result<Ended> {
    let (ours, theirs) = pair()?;
    let filter = filter();
    // The listener is handed over before the program begins, through a socket whose end is inherited.
    let end = theirs.as_raw_fd();
    // SAFETY: between fork and exec only system calls are made, on memory that was there before.
    unsafe {
        command.pre_exec(move || {
            let listener = install(&filter)?;
            send_fd(end, listener)?;
            libc::close(listener);
            Ok(())
        });
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    drop(theirs);
    let listener = receive_fd(ours.as_raw_fd())?;
    Ok(supervise(child, &listener, folder, fault))
}

fn supervise(child: Child, listener: &OwnedFd, folder: &Path, fault: Option<Fault>) -> Ended {
    let pid = child.id();
    let output = std::thread::spawn(move || child.wait_with_output().unwrap());
    let mut calls = Vec::new();
    while !output.is_finished() {
        if !is_ready(listener) {
            continue;
        }
        // SAFETY: the kernel fills in the structure, all zeros of which is what it asks for.
        let mut asked: Asked = unsafe { std::mem::zeroed() };
        // SAFETY: the structure is the one this request takes.
        if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut asked) } != 0 {
            continue;
        }
        let mut answer = Answer { id: asked.id, value: 0, error: 0, flags: CONTINUE };
        let call = CHANGES.iter().chain(LOOKS).find(|(nr, ..)| *nr == i64::from(asked.nr));
        let counted = fault.is_none_or(|f| {
            let looks = LOOKS.iter().any(|(nr, ..)| *nr == i64::from(asked.nr));
            (f.reads || !looks) && (f.only.is_empty() || call.is_some_and(|call| call.1 == f.only))
        });
        if counted && let Some(call) = on_file_below(&asked, pid, folder) {
            let number = calls.len();
            calls.push(call);
            let fails = |f: &Fault| number == f.first || (f.forever && number > f.first);
            if let Some(f) = fault.filter(fails) {
                answer = Answer { id: asked.id, value: 0, error: -f.errno, flags: 0 };
            }
        }
        // SAFETY: as above. A program that was killed meanwhile needs no answer.
        unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw const answer) };
    }
    Ended { output: output.join().unwrap(), calls }
}

/// Waits a moment for a call; the program may also have ended.
fn is_ready(listener: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid structure.
    unsafe { libc::poll(&raw mut poll, 1, 20) > 0 && poll.revents & libc::POLLIN != 0 }
}

/// The call's name and file, where that is below the folder.
fn on_file_below(asked: &Asked, pid: u32, folder: &Path) -> Option<String> {
    let (_, name, names) = CHANGES.iter().chain(LOOKS).find(|(nr, ..)| *nr == i64::from(asked.nr))?;
    let link = |what: String| std::fs::read_link(format!("/proc/{pid}/{what}")).ok();
    let open = |fd: u64| match fd as i32 {
        libc::AT_FDCWD => link("cwd".into()),
        fd => link(format!("fd/{fd}")),
    };
    let path = match names {
        Names::Open => open(asked.args[0])?,
        Names::Path => link("cwd".into())?.join(text_at(pid, asked.args[0])?),
        Names::At => open(asked.args[0])?.join(text_at(pid, asked.args[1])?),
    };
    let inside = path.strip_prefix(folder).ok()?;
    Some(format!("{name} {}", inside.display()))
}

/// The path at an address of the program.
fn text_at(pid: u32, address: u64) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::FileExt;
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut bytes = [0; 4096];
    // A page at a time, since the next may not be there.
    let first = 4096 - (address % 4096) as usize;
    let mut read = memory.read_at(&mut bytes[..first], address).ok()?;
    if !bytes[..read].contains(&0) {
        read += memory.read_at(&mut bytes[read..], address + read as u64).unwrap_or(0);
    }
    let text = CStr::from_bytes_until_nul(&bytes[..read]).ok()?;
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(text.to_bytes())))
}

/// A filter that asks for the calls of the tables and lets all others pass.
fn filter() -> Vec<libc::sock_filter> {
    let load = libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 };
    let mut filter = vec![load];
    for (nr, ..) in CHANGES.iter().chain(LOOKS) {
        filter.push(libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: *nr as u32 });
        filter.push(libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_USER_NOTIF });
    }
    filter.push(libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW });
    filter
}

fn install(filter: &[libc::sock_filter]) -> io::Result<RawFd> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: both calls take plain values and a structure that lives through them.
    let listener = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        let (set, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
        libc::syscall(libc::SYS_seccomp, set, flags, &raw const program)
    };
    if listener < 0 { Err(io::Error::last_os_error()) } else { Ok(listener as RawFd) }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: two integers to be filled in; the descriptors are nobody else's.
    unsafe {
        if libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// Room for one descriptor in a message, aligned as the kernel wants it.
type Control = [u64; 4];

fn message(byte: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: plain data, of which all zeros is an empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = byte;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: arithmetic on a length.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } as _;
    message
}

fn send_fd(socket: RawFd, fd: RawFd) -> io::Result<()> {
    let (mut data, mut control) = ([0u8; 1], Control::default());
    let mut byte = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: 1 };
    let message = message(&mut byte, &mut control);
    // SAFETY: the header lies in `control`, which has room for it and one descriptor.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
        if libc::sendmsg(socket, &raw const message, 0) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn receive_fd(socket: RawFd) -> io::Result<OwnedFd> {
    let (mut data, mut control) = ([0u8; 1], Control::default());
    let mut byte = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: 1 };
    let mut message = message(&mut byte, &mut control);
    // SAFETY: the kernel fills in `control`; a header is read only where it says there is one, and the descriptor in it
    // is new and nobody else's.
    unsafe {
        if libc::recvmsg(socket, &raw mut message, libc::MSG_CMSG_CLOEXEC) <= 0 {
            return Err(io::Error::last_os_error());
        }
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()))
    }
}
