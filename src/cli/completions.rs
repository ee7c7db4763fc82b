//! `bygone completions`: what shells and manual readers need, made from the definition of the command line.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::CommandFactory;
use clap_complete::Shell;

use super::exit::Exit;
use super::{Cli, Global, output};

/// Arguments of `completions`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    pub shell: Option<Shell>,
    /// Write the manual pages into this directory instead
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "shell")]
    pub man: Option<PathBuf>,
}

/// Prints completions or writes manual pages.
pub fn run(args: &Args, _: &Global) -> Result<Exit> {
    let mut command = Cli::command();
    if let Some(directory) = &args.man {
        for (name, page) in man_pages() {
            let path = directory.join(name);
            std::fs::write(&path, page).with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        return Ok(Exit::Success);
    }
    let Some(shell) = args.shell else { bail!("name a shell: bash, zsh, fish, elvish or powershell") };
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut command, "bygone", &mut out);
    output::stdout().write_all(&out)?;
    Ok(Exit::Success)
}

/// The manual pages of section 1: file name and text.
pub fn man_pages() -> Vec<(String, Vec<u8>)> {
    let mut command = Cli::command();
    command.build();
    let mut pages = vec![page(&command, "bygone".to_owned())];
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let name = format!("bygone-{}", sub.get_name());
        pages.push(page(
            &sub.clone().name(name.clone()).display_name(name.clone()).bin_name(name.replace('-', " ")),
            name,
        ));
    }
    pages
}

fn page(command: &clap::Command, name: String) -> (String, Vec<u8>) {
    let mut text = Vec::new();
    let version = concat!("bygone ", env!("CARGO_PKG_VERSION"));
    let man = clap_mangen::Man::new(command.clone()).title(name.to_uppercase()).source(version).manual("bygone manual");
    man.render(&mut text).expect("writing to memory does not fail");
    (format!("{name}.1"), text)
}
