//! A database server runs on the snapshot of its data directory, writable through an overlay or read-only. Its tables
//! are OpenStack's, made by the services' own migrations.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::attach::{Attached, Server, run};
use crate::support::mount::within;
use crate::support::sandbox::{Sandbox, files_below};
use crate::support::services::Services;

const LIMIT: Duration = Duration::from_secs(60);
/// OpenStack's databases: identity, images, volumes, networks, and three of the compute service.
const DATABASES: [&str; 7] = ["keystone", "glance", "cinder", "neutron", "nova_api", "nova_cell0", "nova_cell1"];
/// The first question to every server, and its answer.
const STATES: &str = "SELECT vm_state, COUNT(*) FROM nova_cell1.instances GROUP BY vm_state ORDER BY vm_state";
const ANSWER: &str = "active\t1800\nshelved_offloaded\t40\nstopped\t160\n";
/// Instances whose project, image and address their own services know.
const KNOWN: &str = "
    SELECT COUNT(*) FROM nova_cell1.instances AS instance
      JOIN nova_api.instance_mappings AS mapping ON mapping.instance_uuid = instance.uuid
      JOIN keystone.project AS project ON project.id = instance.project_id
      JOIN glance.images AS image ON image.id = instance.image_ref
      JOIN neutron.ports AS port ON port.device_id = instance.uuid AND port.project_id = project.id
      JOIN neutron.ipallocations AS address ON address.port_id = port.id";

/// Where a server listens.
struct Client(PathBuf);

impl Client {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["--no-defaults", "--user=root", "--socket"]).arg(&self.0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// What a statement gives, a line a row.
    fn query(&self, sql: &str) -> String {
        let mut client = self.command("mariadb");
        client.args(["--batch", "--skip-column-names", "-e", sql]);
        let output = client.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{sql:.200}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a statement that counts gives.
    fn count(&self, sql: &str) -> u64 {
        self.query(sql).trim().parse().unwrap()
    }

    /// Checksums of every table of OpenStack's.
    fn checksums(&self) -> BTreeMap<String, String> {
        let mut sums = BTreeMap::new();
        for database in DATABASES {
            let listed = self.query(&format!(
                "SELECT CONCAT(table_schema, '.', table_name) FROM information_schema.tables
                 WHERE table_schema = '{database}' AND table_type = 'BASE TABLE'"
            ));
            let tables: Vec<&str> = listed.lines().collect();
            assert!(tables.len() > 10, "{database} has {} tables", tables.len());
            for line in self.query(&format!("CHECKSUM TABLE {}", tables.join(", "))).lines() {
                let (table, sum) = line.split_once('\t').unwrap();
                assert_ne!(sum, "NULL", "{table} cannot be read");
                sums.insert(table.to_owned(), sum.to_owned());
            }
        }
        sums
    }

    /// The server's own check of everything.
    fn check(&self) {
        let mut check = self.command("mariadb-check");
        let output = check.args(["--all-databases", "--silent"]).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
        let output = output.unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.is_empty(), "mariadb-check: {said}");
    }

    /// A prepared backup of a server that runs, in the new directory `dir`.
    fn back_up(&self, dir: &Path) {
        let (target, socket) = (format!("--target-dir={}", dir.display()), format!("--socket={}", self.0.display()));
        run("mariadb-backup", args!["--no-defaults", "--backup", "--user=root", socket, target]);
        run("mariadb-backup", args!["--no-defaults", "--prepare", target]);
    }
}

/// A server on a data directory, without anything of the machine's own configuration.
struct Database {
    server: Server,
    client: Client,
}

impl Database {
    /// Starts one and waits for its first answer.
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
        let mut database = Self { server: Server::start(&mut command, &log), client: Client(socket) };
        let answered = || {
            assert!(
                database.server.0.try_wait().unwrap().is_none(),
                "mariadbd has ended: {}",
                fs::read_to_string(&log).unwrap()
            );
            database.client.command("mariadb").args(["-e", "SELECT 1"]).status().unwrap().success()
        };
        assert!(within(LIMIT, answered), "mariadbd does not answer: {}", fs::read_to_string(&log).unwrap());
        database
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

/// A server with OpenStack's databases, which tests share and leave as it is; `None`, said loudly, where there is none.
fn openstack() -> Option<Client> {
    // A set for itself: while tables are made nothing else of the set could be started.
    let services = Services::start("schemas", &["mariadb"], &[])?;
    services.make_schemas()?;
    Some(Client(services.fact("/mariadb/socket").into()))
}

#[test]
fn mariadb_runs_on_the_snapshot_of_a_prepared_backup_and_reads_it_without_copying() {
    needs_mariadb!();
    let sandbox = Sandbox::fast();
    let Some(original) = openstack() else { return };
    let prepared = sandbox.source().join("prepared");
    original.back_up(&prepared);
    let sums = original.checksums();
    assert_eq!(original.query(KNOWN), "2000\n");
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
    let states = database.client.query(STATES);
    let took = begun.elapsed();
    let (bytes, tables) = copied_up(&read_only.join("upper"));
    eprintln!("read-only: {took:?} from mount to the first answer, {} KiB copied up", bytes >> 10);
    assert_eq!(states, ANSWER);
    assert_eq!(database.client.checksums(), sums);
    assert_eq!(tables, Vec::<PathBuf>::new(), "read-only, and yet copied");
    // Logs and a few files of the server's own.
    assert!(bytes < 4 << 20, "{bytes} bytes are copied up");
    database.server.end();
    drop((database, overlay));

    let begun = Instant::now();
    let overlay = Attached::overlay(&lower, &writable).unwrap();
    let mut database = Database::start(&sandbox, "writable", overlay.dir(), &[]);
    let states = database.client.query(STATES);
    let took = begun.elapsed();
    let (bytes, tables) = copied_up(&writable.join("upper"));
    eprintln!(
        "writable: {took:?} from overlay to the first answer, {} KiB and {} tables copied up",
        bytes >> 10,
        tables.len()
    );
    assert_eq!(states, ANSWER);
    assert_eq!(database.client.query(KNOWN), "2000\n");
    assert_eq!(database.client.checksums(), sums);
    database.client.query("UPDATE nova_cell1.instances SET power_state = 0; DROP TABLE nova_cell0.task_log");
    assert_eq!(database.client.count("SELECT COUNT(*) FROM nova_cell1.instances WHERE power_state = 0"), 2000);
    database.client.check();
    database.server.end();
    drop((database, overlay));
    crate::support::oracle::assert_rsync_finds_nothing(&prepared, &lower);
    mount.unmount();
}

#[test]
fn mariadb_recovers_on_the_snapshot_of_a_crash() {
    needs_mariadb!();
    let sandbox = Sandbox::fast();
    let Some(openstack) = openstack() else { return };
    let data = sandbox.source().join("data");
    openstack.back_up(&data);
    let mut sums = openstack.checksums();
    let mut original = Database::start(&sandbox, "original", &data, &[]);
    let mut writer = original.client.command("mariadb");
    let endless = "INSERT INTO nova_cell1.instance_faults (instance_uuid, code, message, details, deleted)
                   SELECT uuid, 500, 'No valid host was found.', REPEAT('Traceback ', 150), 0
                   FROM nova_cell1.instances WHERE id = 1;\n"
        .repeat(50_000);
    let script = sandbox.path("endless.sql");
    fs::write(&script, endless).unwrap();
    let mut writer = writer.stdin(fs::File::open(script).unwrap()).spawn().unwrap();
    let written = |client: &Client| client.count("SELECT COUNT(*) FROM nova_cell1.instance_faults");
    assert!(within(LIMIT, || written(&original.client) > 200), "nothing is written");
    let before = written(&original.client);
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
    let states = database.client.query(STATES);
    eprintln!("after a crash: {:?} from mount to the first answer", begun.elapsed());
    assert_eq!(states, ANSWER);
    let after = written(&database.client);
    assert!(after >= before, "{after} rows are left of at least {before}");
    let mut recovered = database.client.checksums();
    assert_ne!(recovered.remove("nova_cell1.instance_faults"), sums.remove("nova_cell1.instance_faults"));
    assert_eq!(recovered, sums);
    database.client.check();
    database.server.end();
    drop((database, overlay));
    crate::support::oracle::assert_rsync_finds_nothing(&data, &mount.latest().join("data"));
    mount.unmount();
}
