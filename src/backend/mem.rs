//! Objects in memory, for tests.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use super::{Backend, Error, ErrorKind, Listed, ObjectKind, ObjectName, Result};

/// A store that lives as long as the value.
#[derive(Default)]
pub struct Memory {
    objects: Mutex<BTreeMap<ObjectName, Vec<u8>>>,
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes a stored object in place, as a faulty store would.
    pub fn damage(&self, name: ObjectName, change: impl FnOnce(&mut Vec<u8>)) {
        change(self.objects.lock().expect("no panic while held").get_mut(&name).expect("the object exists"));
    }

    fn with<T>(&self, op: &'static str, name: ObjectName, read: impl FnOnce(&[u8]) -> Option<T>) -> Result<T> {
        let error = |kind, source| Error { op, object: name.path(), location: self.location(), kind, source };
        let objects = self.objects.lock().expect("no panic while held");
        let object =
            objects.get(&name).ok_or_else(|| error(ErrorKind::NotFound, io::Error::from(io::ErrorKind::NotFound)))?;
        read(object).ok_or_else(|| error(ErrorKind::Truncated, io::Error::from(io::ErrorKind::UnexpectedEof)))
    }
}

impl Backend for Memory {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    fn create(&self) -> Result<()> {
        if self.objects.lock().expect("no panic while held").contains_key(&ObjectName::config()) {
            let (object, source) = ("config".to_owned(), io::Error::from(io::ErrorKind::AlreadyExists));
            return Err(Error { op: "create", object, location: self.location(), kind: ErrorKind::Other, source });
        }
        Ok(())
    }

    fn put(&self, name: ObjectName, bytes: &[u8]) -> Result<()> {
        self.objects.lock().expect("no panic while held").entry(name).or_insert_with(|| bytes.to_vec());
        Ok(())
    }

    fn get(&self, name: ObjectName, len_max: u64) -> Result<Vec<u8>> {
        self.with("read", name, |object| (object.len() as u64 <= len_max).then(|| object.to_vec()))
    }

    fn get_range(&self, name: ObjectName, offset: u64, out: &mut [u8]) -> Result<()> {
        self.with("read", name, |object| {
            let from = usize::try_from(offset).ok()?;
            out.copy_from_slice(object.get(from..from.checked_add(out.len())?)?);
            Some(())
        })
    }

    fn list(&self, kind: ObjectKind, found: &mut dyn FnMut(Listed)) -> Result<()> {
        let listed: Vec<Listed> = {
            let objects = self.objects.lock().expect("no panic while held");
            let of_kind = objects.iter().filter(|(name, _)| name.kind == kind && kind != ObjectKind::Config);
            of_kind.map(|(name, object)| Listed { id: name.id, len: object.len() as u64 }).collect()
        };
        listed.into_iter().for_each(found);
        Ok(())
    }

    fn len(&self, name: ObjectName) -> Result<u64> {
        self.with("stat", name, |object| Some(object.len() as u64))
    }

    fn delete(&self, name: ObjectName) -> Result<()> {
        self.objects.lock().expect("no panic while held").remove(&name);
        Ok(())
    }

    fn clean(&self, _age_min_s: u64) -> Result<u64> {
        Ok(0)
    }
}
