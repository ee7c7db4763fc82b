//! `bygone key`: the passwords that open a repository.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::exit::Exit;
use super::output::{self, local_time, print_table, quote, rfc3339};
use super::secret::{self, Password, PasswordArgs};
use super::{Global, json};
use crate::repo::Repository;

/// Arguments of `key`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with keys.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// List the keys
    List,
    /// Add a password
    Add(New),
    /// Remove a key, given the first digits of its id
    Remove {
        /// First digits of the key's id
        id: String,
    },
    /// Replace the password that was used by a new one
    Passwd(New),
}

/// Where the new password comes from.
#[derive(clap::Args, Debug)]
pub struct New {
    /// File whose first line is the new password
    #[arg(long, value_name = "FILE")]
    pub new_password_file: Option<PathBuf>,
    /// Command whose first line of output is the new password
    #[arg(long, value_name = "COMMAND")]
    pub new_password_command: Option<String>,
    /// Make the new password empty
    #[arg(long)]
    pub new_insecure_no_password: bool,
}

impl New {
    fn read(&self) -> Result<Password> {
        if let Some(file) = &self.new_password_file {
            return secret::from_file(file);
        }
        let password_command = self.new_password_command.clone();
        let insecure_no_password = self.new_insecure_no_password;
        if password_command.is_some() || insecure_no_password {
            return PasswordArgs { password_file: None, password_command, insecure_no_password }.read("", false);
        }
        secret::from_prompt("new password", true)
            .context("the new password: use --new-password-file or --new-password-command where there is no terminal")
    }
}

/// Runs the subcommand.
pub fn run(args: &Args, global: &Global) -> Result<Exit> {
    let repo = global.open_repository()?;
    match &args.command {
        Command::List => list(&repo, global)?,
        Command::Add(new) => {
            let id = repo.add_key(&new.read()?)?;
            say(global, "added", &id.short())?;
        }
        Command::Remove { id } => {
            let keys = repo.key_objects()?;
            let matching: Vec<_> = keys.iter().filter(|(key, _, _)| key.to_hex().starts_with(id.as_str())).collect();
            match matching[..] {
                [(_, _, true)] => {
                    bail!("key `{id}` is the one in use; open the repository with another one to remove it")
                }
                [(key, _, false)] => {
                    repo.remove_key(key)?;
                    say(global, "removed", &key.short())?;
                }
                [] => bail!("no key has an id that starts with `{id}`"),
                _ => bail!("{} keys have ids that start with `{id}`; give more digits", matching.len()),
            }
        }
        Command::Passwd(new) => {
            // The new key is there before the old one goes.
            let id = repo.add_key(&new.read()?)?;
            repo.remove_old_key()?;
            say(global, "changed", &id.short())?;
        }
    }
    Ok(Exit::Success)
}

fn say(global: &Global, what: &str, id: &str) -> std::io::Result<()> {
    let mut out = output::stdout();
    if global.json {
        json::write_line(&mut out, &serde_json::json!({"message_type": what, "id": id}))?;
    } else if !global.quiet {
        writeln!(out, "{what} key {id}")?;
    }
    Ok(())
}

fn list(repo: &Repository, global: &Global) -> Result<()> {
    let keys = repo.key_objects()?;
    let mut out = output::stdout();
    if global.json {
        let list: Vec<_> = keys
            .iter()
            .map(|(id, key, current)| match key {
                Ok(key) => serde_json::json!({
                    "current": current, "id": id.to_hex(), "userName": key.user, "hostName": key.host,
                    "created": rfc3339(key.created),
                }),
                Err(error) => {
                    serde_json::json!({"current": current, "id": id.to_hex(), "error": error.to_string()})
                }
            })
            .collect();
        json::write_line(&mut out, &list)?;
        return Ok(());
    }
    let rows: Vec<Vec<String>> = keys
        .iter()
        .map(|(id, key, current)| {
            let id = format!("{}{}", if *current { "*" } else { " " }, id.short());
            let shown = |text: &str| quote(text.as_bytes()).into_owned();
            match key {
                Ok(key) => vec![id, shown(&key.user), shown(&key.host), local_time(key.created)],
                Err(error) => vec![id, String::new(), String::new(), shown(&error.to_string())],
            }
        })
        .collect();
    print_table(&mut out, &[" ID", "User", "Host", "Created"], &rows)?;
    Ok(())
}
