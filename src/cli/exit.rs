//! How the program ends: one table of exit codes, those that restic's users know.

use std::process::ExitCode;

use crate::backend::{ErrorKind, ObjectKind};
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
    /// Whoever read the output has gone away: what a shell shows of a program that SIGPIPE ended.
    BrokenPipe = 141,
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
        repo::Error::NoRepository { .. } => Some(
            "check what is given with `-r`, a directory, `s3:https://HOST/BUCKET/PREFIX` or `swift:CONTAINER:/PREFIX`, or \
             create a repository with `bygone init`",
        ),
        repo::Error::WrongPassword { .. } => {
            Some("the password comes from `--password-file`, `--password-command`, $BYGONE_PASSWORD or the prompt")
        }
        repo::Error::Version { .. } => Some("use a version of bygone that knows this format"),
        repo::Error::MissingBlob { .. } => {
            Some("`bygone check` tells what is affected; a new backup stores again what the source still has")
        }
        repo::Error::Corrupt { .. } => of_damage(error.object_kind()),
        repo::Error::Backend(failure) => match failure.kind {
            ErrorKind::Full => Some("make room and run the command again: every snapshot is as it was before"),
            // Remote stores say themselves what to check.
            ErrorKind::Denied if failure.source.raw_os_error().is_some() => {
                Some("check the owner and the permissions of the repository")
            }
            ErrorKind::NotFound if error.object_kind() == Some(ObjectKind::Pack) => {
                Some("`bygone check` tells what is affected; a new backup stores again what the source still has")
            }
            ErrorKind::Truncated => of_damage(error.object_kind()),
            _ => None,
        },
        _ => None,
    }
}

/// What helps against the damage of an object of this kind. Only packs and indexes say what the source may still have.
fn of_damage(kind: Option<ObjectKind>) -> Option<&'static str> {
    match kind? {
        ObjectKind::Config => {
            Some("nothing can be read without the configuration: put it back from a copy of the repository")
        }
        ObjectKind::Key => Some("use the password of another key, or put the key back from a copy of the repository"),
        ObjectKind::Snapshot => {
            Some("`bygone snapshots` lists the others, which can be read; this one only a copy of the repository has")
        }
        ObjectKind::Pack | ObjectKind::Index => Some(
            "`bygone check --read-data` tells what is affected; move the damaged object out of the repository, then a new \
             backup stores again what the source still has",
        ),
    }
}
