//! Streams: standard input, and what commands print, each stored as one file.

use std::ffi::OsString;
use std::io::{self, Read};
use std::process::{Child, Command, Stdio};

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

/// A stream being read.
pub(super) enum Open {
    Stdin(io::Stdin),
    Command(Child, OsString),
}

impl Open {
    pub(super) fn start(source: &StreamSource) -> io::Result<Open> {
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
                Ok(Open::Command(command.spawn().map_err(named)?, program.clone()))
            }
        }
    }

    /// Fills `out` as far as the stream goes.
    pub(super) fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut at = 0;
        while at < out.len() {
            let read = match self {
                Open::Stdin(stdin) => stdin.lock().read(&mut out[at..]),
                Open::Command(child, _) => child.stdout.as_mut().expect("piped").read(&mut out[at..]),
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
        let Open::Command(child, program) = &mut self else { return Ok(()) };
        child.stdout = None;
        let status = child.wait()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("{program:?} failed: {status}"))) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Open::Command(child, _) = self {
            // Harmless after it ended; after an error nobody reads its output any more.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
