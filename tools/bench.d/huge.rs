//! Makes a repository huge: adds so many small blobs that nobody refers to, and so many copies of its latest snapshot.
//!
//! `huge DIRECTORY BLOBS SNAPSHOTS`; the password is in BYGONE_PASSWORD.

use std::error::Error;
use std::sync::Arc;

use bygone::backend::local::Local;
use bygone::id::{BlobKind, ContentHash};
use bygone::pool::{Pool, cores};
use bygone::repo::writer::{WriteOptions, Writer};
use bygone::repo::{OpenOptions, Repository};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, blobs, snapshots] = &arguments[..] else {
        return Err("usage: huge DIRECTORY BLOBS SNAPSHOTS".into());
    };
    let password = std::env::var("BYGONE_PASSWORD")?;
    let repo = Repository::open(Arc::new(Local::new(directory)), password.as_bytes(), &OpenOptions::default())?;
    let pool = Arc::new(Pool::new("huge", cores())?);
    let mut writer = Writer::new(repo.clone(), pool, WriteOptions::default())?;
    for number in 0..blobs.parse::<u64>()? {
        let bytes = [number.to_le_bytes(), *b"one huge"].concat();
        writer.store(BlobKind::Data, repo.blob_id(BlobKind::Data, &ContentHash::of(&bytes)), &bytes)?;
    }
    writer.finish()?;
    let (_, mut snapshot) = repo.snapshots()?.into_iter().next_back().ok_or("no snapshot to copy")?;
    for _ in 0..snapshots.parse::<u64>()? {
        snapshot.time.sec += 3600;
        repo.put_snapshot(&snapshot)?;
    }
    Ok(())
}
