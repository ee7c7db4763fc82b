//! Where the password comes from: a prompt, a file, a command, the environment, a systemd credential. Never an argument,
//! which every process on the host can read.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use zeroize::Zeroizing;

/// A password.
pub type Password = Zeroizing<Vec<u8>>;

/// Longest password in bytes.
const LEN_MAX: u64 = 1 << 20;
/// Name of the systemd credential.
const CREDENTIAL: &str = "bygone-password";

/// Options that say where the password is.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct PasswordArgs {
    /// File whose first line is the password
    #[arg(
        short = 'p',
        long,
        global = true,
        value_name = "FILE",
        env = "BYGONE_PASSWORD_FILE",
        help_heading = "Global options"
    )]
    pub password_file: Option<PathBuf>,
    /// Command whose first line of output is the password
    #[arg(
        long,
        global = true,
        value_name = "COMMAND",
        env = "BYGONE_PASSWORD_COMMAND",
        help_heading = "Global options"
    )]
    pub password_command: Option<String>,
    /// Use an empty password; the repository is not protected against whoever can read it
    #[arg(long, global = true, help_heading = "Global options")]
    pub insecure_no_password: bool,
}

impl PasswordArgs {
    /// The password, from the first source that is given: option, environment, credential, prompt.
    pub fn read(&self, prompt: &str, confirm: bool) -> Result<Password> {
        if self.insecure_no_password {
            return Ok(Password::default());
        }
        if let Some(file) = &self.password_file {
            return from_file(file);
        }
        if let Some(command) = &self.password_command {
            return from_command(command);
        }
        if let Some(password) = variable("BYGONE_PASSWORD").or_else(|| variable("RESTIC_PASSWORD")) {
            return Ok(password);
        }
        if let Some(file) = std::env::var_os("RESTIC_PASSWORD_FILE") {
            return from_file(Path::new(&file));
        }
        if let Some(command) = std::env::var_os("RESTIC_PASSWORD_COMMAND") {
            return from_command(&command.to_string_lossy());
        }
        if let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") {
            let file = Path::new(&directory).join(CREDENTIAL);
            if file.exists() {
                return from_file(&file);
            }
        }
        from_prompt(prompt, confirm)
    }
}

fn variable(name: &str) -> Option<Password> {
    use std::os::unix::ffi::OsStringExt;
    std::env::var_os(name).map(|value| Zeroizing::new(value.into_vec()))
}

/// The first line of a file, without its line end.
pub fn from_file(path: &Path) -> Result<Password> {
    let read = || -> std::io::Result<Password> {
        let mut bytes = Password::default();
        std::fs::File::open(path)?.take(LEN_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().with_context(|| format!("cannot read the password file `{}`", path.display()))?;
    first_line(bytes).with_context(|| format!("the password file `{}` is empty", path.display()))
}

fn from_command(command: &str) -> Result<Password> {
    let failed = || format!("the password command `{command}` failed");
    let output = std::process::Command::new("sh")
        .arg("-c")
        .arg(command)
        .stdin(std::process::Stdio::inherit())
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(failed)?;
    if !output.status.success() {
        bail!("{}: {}", failed(), output.status);
    }
    first_line(Zeroizing::new(output.stdout))
        .with_context(|| format!("the password command `{command}` printed nothing"))
}

fn first_line(mut bytes: Password) -> Option<Password> {
    let len = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    bytes.truncate(len);
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    if bytes.is_empty() { None } else { Some(bytes) }
}

/// Asks on the terminal, twice to `confirm`.
pub fn from_prompt(prompt: &str, confirm: bool) -> Result<Password> {
    if !std::io::stdin().is_terminal() && !std::io::stderr().is_terminal() {
        bail!("no password given: use --password-file, --password-command or $BYGONE_PASSWORD");
    }
    let ask = |text: &str| -> Result<Password> {
        let line = rpassword::prompt_password(text).context("cannot read the password from the terminal")?;
        Ok(Zeroizing::new(line.into_bytes()))
    };
    let password = ask(&format!("{prompt}: "))?;
    if password.is_empty() {
        bail!("the password is empty; use --insecure-no-password if that is what you want");
    }
    if confirm && ask("again: ")? != password {
        bail!("the passwords differ");
    }
    Ok(password)
}
