//! Streams: standard input, and what commands print, each stored as one file.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

/// A stream to store as a file in the root directory.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The file's name.
    pub name: String,
    /// Where its bytes come from.
    pub source: StreamSource,
}

/// Where a stream's bytes come from.
#[derive(Clone, Debug)]
pub enum StreamSource {
    /// Standard input.
    Stdin,
    /// The standard output of a program with its arguments. If it fails there is no snapshot.
    Command(Vec<OsString>),
}

/// Variables that may hold our secrets; commands do not inherit them.
const SECRET_VARIABLES: [&str; 4] =
    ["BYGONE_PASSWORD", "RESTIC_PASSWORD", "BYGONE_PASSWORD_COMMAND", "RESTIC_PASSWORD_COMMAND"];

/// The command that runs at the moment, for whoever ends the run while its output is waited for.
#[derive(Clone, Default)]
pub(super) struct Running(Arc<Mutex<State>>);

#[derive(Clone, Copy, Default)]
enum State {
    #[default]
    None,
    /// The leader of a process group.
    Group(Pid),
    /// A process in our own group.
    Process(Pid),
    /// No other may start.
    Ended,
}

impl State {
    fn terminate(self) {
        // What has ended by itself needs no signal.
        let _ = match self {
            State::Group(leader) => rustix::process::kill_process_group(leader, Signal::TERM),
            State::Process(process) => rustix::process::kill_process(process, Signal::TERM),
            State::None | State::Ended => Ok(()),
        };
    }
}

impl Running {
    /// Ends the command and all that it has started; there will be no other.
    pub(super) fn end(&self) {
        let mut state = self.0.lock().expect("no panic while held");
        state.terminate();
        *state = State::Ended;
    }

    fn start(&self, command: &mut Command) -> io::Result<Child> {
        let mut state = self.0.lock().expect("no panic while held");
        if matches!(*state, State::Ended) {
            return Err(io::Error::other("the run has ended"));
        }
        // A shell does not pass a signal on to what it waits for, a process group gets it whole. Where we have the
        // terminal, Ctrl-C reaches everybody anyway, and a group of its own could not ask there for a password.
        let has_terminal = has_terminal();
        if !has_terminal {
            command.process_group(0);
        }
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        *state = if has_terminal { State::Process(pid) } else { State::Group(pid) };
        Ok(child)
    }

    /// Waits for the command. It is in reach of [`Running::end`] until then, and its number is not given to another.
    fn wait(&self, child: &mut Child) -> io::Result<std::process::ExitStatus> {
        let pid = Pid::from_child(child);
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let _ = rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::Pid(pid), options));
        let mut state = self.0.lock().expect("no panic while held");
        if !matches!(*state, State::Ended) {
            *state = State::None;
        }
        child.wait()
    }
}

/// Whether we are in the foreground of a terminal.
fn has_terminal() -> bool {
    let Ok(terminal) = File::open("/dev/tty") else { return false };
    rustix::termios::tcgetpgrp(terminal) == Ok(rustix::process::getpgrp())
}

/// A stream being read.
pub(super) enum Open {
    Stdin(io::Stdin),
    Command(Child, OsString, Running),
}

impl Open {
    pub(super) fn start(source: &StreamSource, running: &Running) -> io::Result<Open> {
        match source {
            StreamSource::Stdin => Ok(Open::Stdin(io::stdin())),
            StreamSource::Command(words) => {
                let (program, arguments) = words
                    .split_first()
                    .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no command given"))?;
                let mut command = Command::new(program);
                command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
                SECRET_VARIABLES.iter().for_each(|name| {
                    command.env_remove(name);
                });
                let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot run {program:?}: {error}"));
                Ok(Open::Command(running.start(&mut command).map_err(named)?, program.clone(), running.clone()))
            }
        }
    }

    /// Fills `out` as far as the stream goes.
    pub(super) fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut at = 0;
        while at < out.len() {
            let read = match self {
                Open::Stdin(stdin) => stdin.lock().read(&mut out[at..]),
                Open::Command(child, ..) => child.stdout.as_mut().expect("piped").read(&mut out[at..]),
            };
            match read {
                Ok(0) => break,
                Ok(len) => at += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(at)
    }

    /// Waits for a command; an error unless it succeeded.
    pub(super) fn finish(mut self) -> io::Result<()> {
        let Open::Command(child, program, running) = &mut self else { return Ok(()) };
        child.stdout = None;
        let status = running.wait(child)?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("{program:?} failed: {status}"))) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Open::Command(child, _, running) = self {
            // Harmless after it ended; after an error nobody reads its output any more.
            running.0.lock().expect("no panic while held").terminate();
            let _ = child.kill();
            let _ = running.wait(child);
        }
    }
}
