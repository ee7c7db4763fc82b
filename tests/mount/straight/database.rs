//! A database server runs on the snapshot of its data directory, writable through an overlay or read-only.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::attach::{Attached, Server, run};
use crate::support::mount::within;
use crate::support::sandbox::{Sandbox, files_below};

const LIMIT: Duration = Duration::from_secs(60);
/// Databases, and tables in each: as many as a small cloud has.
const DATABASES: [(&str, usize); 3] = [("compute", 120), ("network", 110), ("identity", 50)];

/// A schema as such services have it: keys that point to other tables, indexes, soft deletes, text, a view, a routine.
fn schema() -> String {
    let mut sql = String::from("SET foreign_key_checks = 0;\n");
    for (database, tables) in DATABASES {
        writeln!(sql, "CREATE DATABASE {database} CHARACTER SET utf8mb4; USE {database};").unwrap();
        for n in 0..tables {
            write!(
                sql,
                "CREATE TABLE resources_{n:03} (
                   id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
                   uuid CHAR(36) NOT NULL, name VARCHAR(255), state ENUM('building', 'active', 'error') NOT NULL,
                   parent_id BIGINT, document MEDIUMTEXT, size DECIMAL(20, 3), created DATETIME(6), deleted INT DEFAULT 0,
                   UNIQUE KEY by_uuid (uuid, deleted), KEY by_name (name), KEY by_state (state, created)"
            )
            .unwrap();
            if n % 3 != 0 {
                let parent = n / 3 * 3;
                write!(sql, ", FOREIGN KEY (parent_id) REFERENCES resources_{parent:03} (id) ON DELETE SET NULL")
                    .unwrap();
            }
            sql.push_str(") ENGINE = InnoDB;\n");
            if n % 4 == 0 {
                write!(sql, "INSERT INTO resources_{n:03} (uuid, name, state, document, size, created) VALUES ")
                    .unwrap();
                for row in 0..40 {
                    let comma = if row == 0 { "" } else { ", " };
                    let text = crate::support::generate::text(n as u64 * 1000 + row, 300);
                    let text = String::from_utf8(text).unwrap().replace(['\'', '\\'], " ");
                    write!(
                        sql,
                        "{comma}('{n:08}-{row:04}', 'name {row}', 'active', '{text}', {row}.125, '2026-01-01 00:00:00.25')"
                    )
                    .unwrap();
                }
                sql.push_str(";\n");
            }
        }
        sql.push_str("CREATE VIEW active AS SELECT uuid, name FROM resources_000 WHERE state = 'active';\n");
        sql.push_str("CREATE FUNCTION doubled(n INT) RETURNS INT DETERMINISTIC RETURN n * 2;\n");
    }
    sql
}

/// A server on a data directory, without anything of the machine's own configuration.
struct Database {
    server: Server,
    socket: PathBuf,
}

impl Database {
    fn make(sandbox: &Sandbox, data: &Path) {
        run(
            "mariadb-install-db",
            args![
                "--no-defaults",
                "--user=root",
                format!("--datadir={}", data.display()),
                "--skip-test-db",
                "--auth-root-authentication-method=normal",
                format!("--tmpdir={}", sandbox.path("tmp").display()),
            ],
        );
    }

    /// Starts one and waits for its first answer to a real question.
    fn start(sandbox: &Sandbox, name: &str, data: &Path, more: &[&str]) -> Self {
        let socket = sandbox.path(&format!("{name}.sock"));
        let log = sandbox.path(&format!("{name}.log"));
        let mut command = Command::new("mariadbd");
        command
            .args(["--no-defaults", "--user=root", "--skip-networking", "--innodb-buffer-pool-size=64M"])
            .args(["--innodb-log-file-size=16M", "--innodb-flush-log-at-trx-commit=2"])
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--pid-file={}", sandbox.path(&format!("{name}.pid")).display()))
            .arg(format!("--tmpdir={}", sandbox.path("tmp").display()))
            .args(more);
        let mut database = Self { server: Server::start(&mut command, &log), socket };
        let answered = || {
            assert!(
                database.server.0.try_wait().unwrap().is_none(),
                "mariadbd has ended: {}",
                fs::read_to_string(&log).unwrap()
            );
            database.client("mariadb").args(["-e", "SELECT 1"]).status().unwrap().success()
        };
        assert!(within(LIMIT, answered), "mariadbd does not answer: {}", fs::read_to_string(&log).unwrap());
        database
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["--no-defaults", "--user=root", "--socket"]).arg(&self.socket);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// What a statement gives, a line a row.
    fn query(&self, sql: &str) -> String {
        let mut client = self.client("mariadb");
        client.args(["--batch", "--skip-column-names", "-e", sql]);
        let output = client.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{sql:.200}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn load(&self, sandbox: &Sandbox, sql: &str) {
        let script = sandbox.path("script.sql");
        fs::write(&script, sql).unwrap();
        let output = self.client("mariadb").stdin(fs::File::open(script).unwrap()).stderr(Stdio::piped()).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Checksums of every table of ours.
    fn checksums(&self) -> BTreeMap<String, String> {
        let mut sums = BTreeMap::new();
        for (database, tables) in DATABASES {
            let names: Vec<String> = (0..tables).map(|n| format!("{database}.resources_{n:03}")).collect();
            for line in self.query(&format!("CHECKSUM TABLE {}", names.join(", "))).lines() {
                let (table, sum) = line.split_once('\t').unwrap();
                sums.insert(table.to_owned(), sum.to_owned());
            }
        }
        assert_eq!(sums.len(), DATABASES.iter().map(|(_, tables)| tables).sum::<usize>());
        sums
    }

    /// The server's own check of everything.
    fn check(&self) {
        let mut check = self.client("mariadb-check");
        let output = check.args(["--all-databases", "--silent"]).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
        let output = output.unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.is_empty(), "mariadb-check: {said}");
    }
}

/// Bytes of all files below `dir`, and the names of tablespaces among them.
fn copied_up(dir: &Path) -> (u64, Vec<PathBuf>) {
    let files = files_below(dir);
    let bytes = files.iter().map(|file| fs::metadata(file).unwrap().blocks() * 512).sum();
    let is_table = |file: &PathBuf| {
        file.extension().is_some_and(|extension| extension == "ibd") || file.file_name().unwrap() == "ibdata1"
    };
    (bytes, files.into_iter().filter(is_table).collect())
}

macro_rules! needs_mariadb {
    () => {
        needs_root!();
        needs_fuse!();
        needs_program!("mariadbd");
        needs_program!("mariadb-backup");
        needs_program!("mariadb-check");
    };
}

#[test]
fn mariadb_runs_on_the_snapshot_of_a_prepared_backup_and_reads_it_without_copying() {
    needs_mariadb!();
    let sandbox = Sandbox::fast();
    let data = sandbox.path("data");
    Database::make(&sandbox, &data);
    let mut original = Database::start(&sandbox, "original", &data, &[]);
    original.load(&sandbox, &schema());
    let sums = original.checksums();
    let prepared = sandbox.source().join("prepared");
    let target = format!("--target-dir={}", prepared.display());
    let socket = format!("--socket={}", original.socket.display());
    run("mariadb-backup", args!["--no-defaults", "--backup", "--user=root", socket, target]);
    run("mariadb-backup", args!["--no-defaults", "--prepare", target]);
    original.server.end();
    sandbox.backup();

    let begun = Instant::now();
    let mount = sandbox.mount("mnt");
    let lower = mount.latest().join("prepared");
    let (writable, read_only) = (sandbox.path("writable"), sandbox.path("read-only"));
    let Some(overlay) = Attached::overlay(&lower, &read_only) else {
        crate::support::skipped("overlayfs is refused here");
        return;
    };
    let mut database = Database::start(&sandbox, "read-only", overlay.dir(), &["--innodb-read-only=1"]);
    let count = database.query("SELECT COUNT(*) FROM compute.resources_000 WHERE state = 'active'");
    let (bytes, tables) = copied_up(&read_only.join("upper"));
    eprintln!("read-only: {:?} from mount to the first answer, {} KiB copied up", begun.elapsed(), bytes >> 10);
    assert_eq!(count.trim(), "40");
    assert_eq!(database.checksums(), sums);
    assert_eq!(tables, Vec::<PathBuf>::new(), "read-only, and yet copied");
    // Logs and a few files of the server's own.
    assert!(bytes < 4 << 20, "{bytes} bytes are copied up");
    database.server.end();
    drop((database, overlay));

    let begun = Instant::now();
    let overlay = Attached::overlay(&lower, &writable).unwrap();
    let mut database = Database::start(&sandbox, "writable", overlay.dir(), &[]);
    let rows = database.query("SELECT name, identity.doubled(21) FROM network.active ORDER BY name LIMIT 1");
    eprintln!("writable: {:?} from overlay to the first answer", begun.elapsed());
    assert_eq!(rows, "name 0\t42\n");
    assert_eq!(database.checksums(), sums);
    database.query("UPDATE compute.resources_004 SET deleted = 1; DROP TABLE identity.resources_049");
    assert_eq!(database.query("SELECT COUNT(*) FROM compute.resources_004 WHERE deleted = 1").trim(), "40");
    database.check();
    database.server.end();
    drop((database, overlay));
    crate::support::oracle::assert_rsync_finds_nothing(&prepared, &lower);
    mount.unmount();
}

#[test]
fn mariadb_recovers_on_the_snapshot_of_a_crash() {
    needs_mariadb!();
    let sandbox = Sandbox::fast();
    let data = sandbox.source().join("data");
    Database::make(&sandbox, &data);
    let mut original = Database::start(&sandbox, "original", &data, &[]);
    original.load(&sandbox, &schema());
    original.query("CREATE TABLE compute.written (n BIGINT AUTO_INCREMENT PRIMARY KEY, text VARCHAR(2000))");
    let mut writer = original.client("mariadb");
    let endless = "INSERT INTO compute.written (text) VALUES (REPEAT('x', 1500));\n".repeat(50_000);
    let script = sandbox.path("endless.sql");
    fs::write(&script, endless).unwrap();
    let mut writer = writer.stdin(fs::File::open(script).unwrap()).spawn().unwrap();
    let written = || original.query("SELECT COUNT(*) FROM compute.written").trim().parse::<u64>().unwrap();
    assert!(within(LIMIT, || written() > 200), "nothing is written");
    let before = written();
    original.server.crash();
    let _ = writer.wait();
    sandbox.backup();

    let begun = Instant::now();
    let mount = sandbox.mount("mnt");
    let Some(overlay) = Attached::overlay(&mount.latest().join("data"), &sandbox.path("overlay")) else {
        crate::support::skipped("overlayfs is refused here");
        return;
    };
    let mut database = Database::start(&sandbox, "recovered", overlay.dir(), &[]);
    let after = database.query("SELECT COUNT(*) FROM compute.written").trim().parse::<u64>().unwrap();
    eprintln!("after a crash: {:?} from mount to the first answer", begun.elapsed());
    assert!(after >= before, "{after} rows are left of at least {before}");
    database.check();
    database.server.end();
    drop((database, overlay));
    crate::support::oracle::assert_rsync_finds_nothing(&data, &mount.latest().join("data"));
    mount.unmount();
}
