//! Each system call of the program on files of a test's folder, in turn: it fails once, or from then on for ever. The
//! program is the one that is released; the kernel asks the test before it carries out a call (seccomp's user
//! notification, Linux 5.5), so nothing in the program knows.

mod commands;
mod supervisor;
