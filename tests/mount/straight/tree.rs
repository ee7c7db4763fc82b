//! Trees that programs live in are used where they lie in a snapshot: a system's root, a repository of git.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::attach::{Attached, run};
use crate::support::generate::{noise, text};
use crate::support::oracle::assert_rsync_finds_nothing;
use crate::support::sandbox::Sandbox;

/// Enough of a system to log in: the files of these packages and of what they need, as they are installed here.
fn system_of_packages(root: &Path) {
    let wanted =
        ["bash", "coreutils", "dpkg", "findutils", "grep", "perl-base", "sed", "tar", "base-files", "libc-bin"];
    let mut packages = BTreeSet::from(wanted.map(str::to_owned));
    // What they need, and what that needs.
    for _ in 0..3 {
        let show = ["-W".to_owned(), "-f=${Depends}, ${Pre-Depends}\n".to_owned()];
        let known = Command::new("dpkg-query").args(show).args(&packages).output().unwrap();
        let known = String::from_utf8(known.stdout).unwrap();
        let names = known.split([',', '|', '\n']).filter_map(|entry| entry.split_whitespace().next());
        packages.extend(names.map(|name| name.split(':').next().unwrap().to_owned()));
    }
    // Of alternatives one is installed, of names some are not packages: what is not there is left out.
    let files = Command::new("dpkg-query").arg("-L").args(&packages).output().unwrap();
    let files = String::from_utf8(files.stdout).unwrap();
    let list = root.parent().unwrap().join("files");
    // Where /bin is a link to /usr/bin, the packages may still say /bin.
    let files = files.lines().filter(|line| line.starts_with('/') && Path::new(line).exists());
    let files = files.filter(|line| !line.starts_with("/usr/share/doc") && !line.starts_with("/usr/share/locale"));
    fs::write(&list, files.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    fs::create_dir_all(root).unwrap();
    for link in ["bin", "sbin", "lib", "lib64"] {
        if let Ok(to) = fs::read_link(Path::new("/").join(link)) {
            std::os::unix::fs::symlink(&to, root.join(link)).unwrap();
            fs::create_dir_all(root.join(to)).unwrap();
        }
    }
    let pack = format!(
        "tar -C / --no-recursion -cf - -T {} | tar -C {} --keep-directory-symlink -xpf -",
        list.display(),
        root.display()
    );
    run("bash", ["-c", &pack]);
    fs::create_dir_all(root.join("dev")).unwrap();
    run("mknod", args!["-m", "666", root.join("dev/null"), "c", "1", "3"]);
}

fn runs_in_place(sandbox: &Sandbox, root: &Path) {
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    let lower = mount.latest().join("root");
    let Some(overlay) = Attached::overlay(&lower, &sandbox.path("overlay")) else {
        crate::support::skipped("overlayfs is refused here");
        return;
    };
    let script = "set -e; test $(id -u) = 0; dpkg --version | head -n 1; perl -e 'print 6 * 7, qq(\\n)'; \
                  echo changed >> /etc/debian_version; mkdir -p /srv/new; echo new > /srv/new/file; rm /bin/sed; echo >/dev/null; \
                  find /usr -type f | wc -l";
    let said = run("chroot", args![overlay.dir(), "/bin/bash", "-c", script]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].contains("package management"), "{said}");
    assert_eq!(lines[1], "42");
    assert!(lines[2].parse::<u64>().unwrap() > 300, "{said}");
    assert_eq!(fs::read_to_string(overlay.dir().join("srv/new/file")).unwrap(), "new\n");
    drop(overlay);
    // Straight off the mount too, where nothing can be written.
    let refused = run("chroot", args![lower, "/bin/bash", "-c", "echo no > /etc/no || echo refused"]);
    assert_eq!(refused, "refused\n");
    assert_rsync_finds_nothing(root, &lower);
    mount.unmount();
}

#[test]
fn a_system_runs_in_place_on_an_overlay() {
    needs_root!();
    needs_fuse!();
    needs_program!("dpkg-query");
    let sandbox = Sandbox::new();
    let root = sandbox.source().join("root");
    system_of_packages(&root);
    runs_in_place(&sandbox, &root);
}

#[test]
#[ignore = "slow group: fetches a whole system from a mirror"]
fn slow_a_system_made_by_debootstrap_runs_in_place_on_an_overlay() {
    needs_root!();
    needs_fuse!();
    needs_program!("debootstrap");
    let sandbox = Sandbox::new();
    let root = sandbox.source().join("root");
    let known = run("apt-get", ["indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"]);
    let Some((suite, mirror)) = known.lines().next().and_then(|line| line.split_once(' ')) else {
        crate::support::skipped("apt knows no mirror");
        return;
    };
    let made = Command::new("debootstrap").args(["--variant=minbase", suite]).arg(&root).arg(mirror).output().unwrap();
    if !made.status.success() {
        crate::support::skipped("debootstrap reaches no mirror");
        return;
    }
    runs_in_place(&sandbox, &root);
}

#[test]
fn git_finds_nothing_changed_and_nothing_broken_on_the_mount() {
    needs_fuse!();
    needs_program!("git");
    let sandbox = Sandbox::new();
    let git = |dir: &Path, args: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(dir).args(["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "gc.auto=0"]);
        command.args(args).env("HOME", sandbox.path("home")).env("GIT_CONFIG_NOSYSTEM", "1");
        let output = command.output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "git {args:?}: {said}");
        said
    };
    let source = sandbox.source();
    git(&source, &["init", "-q", "-b", "main"]);
    for round in 0..3 {
        for n in 0..60 {
            sandbox.write(&format!("dir-{}/file-{n}", n % 7), text(round * 100 + n, 2000));
        }
        sandbox.write("binary", noise(round, 300_000));
        git(&source, &["add", "."]);
        git(&source, &["commit", "-q", "-m", &format!("round {round}")]);
        if round == 1 {
            git(&source, &["gc", "-q"]);
        }
    }
    std::os::unix::fs::symlink("binary", source.join("link")).unwrap();
    git(&source, &["add", "."]);
    git(&source, &["commit", "-q", "-m", "a link"]);
    sandbox.backup();
    let mount = sandbox.mount("mnt");
    let shown = mount.latest();
    assert_eq!(git(&shown, &["status", "--porcelain"]), "");
    assert_eq!(git(&shown, &["fsck", "--full", "--strict", "--no-progress"]), "");
    assert_eq!(git(&shown, &["log", "--format=%s"]), "a link\nround 2\nround 1\nround 0\n");
    assert_eq!(git(&shown, &["diff", "--stat", "HEAD~1", "--", "link"]).lines().count(), 2);
    mount.unmount();
}
