//! A store that does not answer for a while: whoever waits for it waits alone.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use bygone::backend::mem::Memory;
use bygone::backend::{Backend, Listed, ObjectKind, ObjectName, Result};
use bygone::fuse::mount::Allowed;
use bygone::fuse::{self, POLL_DEFAULT};
use bygone::id::ObjectId;
use bygone::progress::Progress;
use bygone::repo::{OpenOptions, Repository};
use bygone::source::WalkOptions;
use bygone::vfs::{self, Vfs, View};
use bygone::{backup, fuse::Mounted};

use crate::support::generate::noise;
use crate::support::mount::within;

const LIMIT: Duration = Duration::from_secs(30);

/// Objects in memory; reads of packs wait while the gate is closed.
#[derive(Default)]
struct Gated {
    memory: Memory,
    closed: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicUsize,
}

impl Gated {
    fn close(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }
}

/// Opens the gate however the test ends: a reader that waits for a mount cannot be killed.
struct OpenAtEnd(Arc<Gated>);

impl Drop for OpenAtEnd {
    fn drop(&mut self) {
        self.0.close(false);
    }
}

impl Backend for Gated {
    fn location(&self) -> String {
        "gated".to_owned()
    }
    fn is_remote(&self) -> bool {
        true
    }
    fn create(&self) -> Result<()> {
        self.memory.create()
    }
    fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<()> {
        self.memory.put(name, bytes)
    }
    fn get(&self, name: ObjectName, len_max: u64) -> Result<Vec<u8>> {
        self.memory.get(name, len_max)
    }
    fn get_range(&self, name: ObjectName, offset: u64, out: &mut [u8]) -> Result<()> {
        if name.kind == ObjectKind::Pack {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            drop(self.opened.wait_while(self.closed.lock().unwrap(), |closed| *closed).unwrap());
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        self.memory.get_range(name, offset, out)
    }
    fn list(&self, kind: ObjectKind, found: &mut dyn FnMut(Listed)) -> Result<()> {
        self.memory.list(kind, found)
    }
    fn len(&self, name: ObjectName) -> Result<u64> {
        self.memory.len(name)
    }
    fn delete(&self, name: ObjectName) -> Result<()> {
        self.memory.delete(name)
    }
    fn clean(&self, age_min_s: u64) -> Result<u64> {
        self.memory.clean(age_min_s)
    }
}

fn back_up(store: &Arc<Gated>, source: &Path) -> ObjectId {
    let repo = Repository::init(store.clone(), b"p", &OpenOptions::default()).unwrap();
    let targets = vec![source.as_os_str().as_encoded_bytes().to_vec()];
    let options = backup::Options { walk: WalkOptions { targets, ..Default::default() }, ..Default::default() };
    backup::run(&repo, options, &Arc::new(Progress::new())).unwrap().snapshot.unwrap()
}

fn mount(store: &Arc<Gated>, snapshot: ObjectId, path: &Path, on: &Path) -> Mounted {
    let repo = Repository::open(store.clone(), b"p", &OpenOptions::default()).unwrap();
    let path = path.iter().skip(1).map(|name| name.as_encoded_bytes().to_vec()).collect();
    let vfs = Vfs::new(repo, vfs::Options::new(View::Subtree { snapshot, path })).unwrap();
    let options = fuse::Options {
        source: "bygone:gated".to_owned(),
        allowed: Allowed { others: false, exec: true },
        poll: POLL_DEFAULT,
        xattrs: true,
        remote: true,
        on_error: Box::new(|error| panic!("{error}")),
    };
    fuse::mount(Arc::new(vfs), on, options).unwrap()
}

/// Runs `ask` on a thread of its own; false if it has not come back in time.
fn answers(ask: impl FnOnce() + Send + 'static) -> bool {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        ask();
        sender.send(()).unwrap();
    });
    receiver.recv_timeout(LIMIT).is_ok()
}

#[test]
fn readers_that_wait_for_the_store_do_not_hold_up_the_others() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let (source, on) = (dir.path().join("source"), dir.path().join("mnt"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&on).unwrap();
    let contents: Vec<Vec<u8>> = (0..4).map(|n| noise(n, 1 << 20)).collect();
    for (n, bytes) in contents.iter().enumerate() {
        fs::write(source.join(n.to_string()), bytes).unwrap();
    }
    let store = Arc::new(Gated::default());
    let snapshot = back_up(&store, &source);
    let mounted = mount(&store, snapshot, &source, &on);
    let _open = OpenAtEnd(store.clone());

    let any = on.join("0");
    let ask = move || {
        // The kernel does not keep attributes of this sort, so the mount is asked each time.
        let mut value = [0; 100];
        rustix::fs::getxattr(&any, "user.bygone.blake3", &mut value[..]).unwrap();
    };
    ask();
    store.close(true);
    let readers: Vec<_> = (0..4)
        .map(|n| {
            let path = on.join(n.to_string());
            std::thread::spawn(move || fs::read(path).unwrap())
        })
        .collect();
    assert!(within(LIMIT, || store.waiting.load(Ordering::SeqCst) >= 2), "nobody reads from the store");
    assert!(answers(ask), "a question that needs no store waits for it");
    let listed = on.clone();
    assert!(answers(move || assert_eq!(fs::read_dir(listed).unwrap().count(), 4)), "a listing waits for the store");
    store.close(false);
    for (reader, bytes) in readers.into_iter().zip(&contents) {
        assert!(reader.join().unwrap() == *bytes);
    }
    mounted.point().detach().unwrap();
    mounted.wait().unwrap();
}
