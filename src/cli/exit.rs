//! How the program ends: one table of exit codes, those that restic's users know.

use std::process::ExitCode;

use crate::backend::ErrorKind;
use crate::backup;
use crate::repo;

/// An exit code and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything was done.
    Success = 0,
    /// Nothing, or not enough, was done.
    Failure = 1,
    /// Some entries could not be read or written; the rest was done.
    Partial = 3,
    /// There is no repository.
    NoRepository = 10,
    /// No key opens with the password.
    WrongPassword = 12,
    /// Ended by a signal.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl Exit {
    /// The code that an error ends the program with.
    pub fn of_error(error: &anyhow::Error) -> Exit {
        error
            .chain()
            .find_map(|cause| cause.downcast_ref().or_else(|| of_backup(cause)).map(of_repository))
            .unwrap_or(Exit::Failure)
    }
}

fn of_backup<'e>(cause: &'e (dyn std::error::Error + 'static)) -> Option<&'e repo::Error> {
    match cause.downcast_ref()? {
        backup::Error::Repository(error) => Some(error),
        _ => None,
    }
}

fn of_repository(error: &repo::Error) -> Exit {
    match error {
        repo::Error::NoRepository { .. } => Exit::NoRepository,
        repo::Error::WrongPassword { .. } => Exit::WrongPassword,
        repo::Error::Cancelled => Exit::Interrupted,
        _ => Exit::Failure,
    }
}

/// What the user can do about an error, if anything is known to help.
pub fn hint(error: &anyhow::Error) -> Option<&'static str> {
    let error = error.chain().find_map(|cause| cause.downcast_ref().or_else(|| of_backup(cause)))?;
    match error {
        repo::Error::NoRepository { .. } => Some("check the path given with `-r`, or create one with `bygone init`"),
        repo::Error::WrongPassword { .. } => {
            Some("the password comes from `--password-file`, `--password-command`, $BYGONE_PASSWORD or the prompt")
        }
        repo::Error::Version { .. } => Some("use a version of bygone that knows this format"),
        repo::Error::MissingBlob { .. } | repo::Error::Corrupt { .. } => {
            Some("`bygone check --read-data` tells what is affected; a new backup stores again what is missing")
        }
        repo::Error::Backend(error) => match error.kind {
            ErrorKind::Full => Some("make room and run the command again: the repository is as it was before"),
            ErrorKind::Denied => Some("check the owner and the permissions of the repository"),
            _ => None,
        },
        _ => None,
    }
}
