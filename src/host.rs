//! Who and where this process is: host name, user, and the names of users and groups.

use std::fs;

/// The host's name.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The user's name, or the number if it has none.
pub fn user_name() -> String {
    let uid = rustix::process::getuid().as_raw();
    user_names().into_iter().find(|(number, _)| *number == uid).map_or_else(|| uid.to_string(), |(_, name)| name)
}

/// Local users by number, sorted; the first name of a number counts.
pub fn user_names() -> Vec<(u32, String)> {
    names("/etc/passwd")
}

/// Local groups by number, sorted; the first name of a number counts.
pub fn group_names() -> Vec<(u32, String)> {
    names("/etc/group")
}

fn names(path: &str) -> Vec<(u32, String)> {
    let text = fs::read(path).unwrap_or_default();
    let mut names: Vec<(u32, String)> = String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            Some((fields.nth(1)?.parse().ok()?, name.to_owned()))
        })
        .collect();
    names.sort_by_key(|(number, _)| *number);
    names.dedup_by_key(|(number, _)| *number);
    names
}
