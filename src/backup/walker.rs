//! The walk on a thread of its own, ahead of the scan: asking the kernel about entries and comparing them take as long as
//! each other where nothing has changed.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use crate::progress::Progress;
use crate::source::{self, Event, Walk, WalkOptions};

/// Events in a batch; each may hold a directory open.
const BATCH_EVENTS: usize = 256;
/// Batches on their way.
const BATCHES: usize = 3;

/// A step of the walk, with the path of a directory that is entered.
pub(super) type Walked = (Event, Vec<u8>);

/// A walk that runs ahead.
pub(super) struct Walker {
    batches: Receiver<Vec<Walked>>,
    at_hand: std::vec::IntoIter<Walked>,
    targets: Vec<Vec<u8>>,
}

impl Walker {
    /// Starts the walk; returns when its targets are found.
    pub(super) fn start(options: WalkOptions, progress: Arc<Progress>) -> io::Result<Result<Walker, source::Error>> {
        let (begun_sender, begun) = sync_channel(1);
        let (sender, batches) = sync_channel(BATCHES);
        let run = move || {
            let mut walk = match Walk::new(options, &progress) {
                Ok(walk) => walk,
                Err(error) => {
                    let _ = begun_sender.send(Err(error));
                    return;
                }
            };
            let _ = begun_sender.send(Ok(walk.targets().to_vec()));
            let mut batch = Vec::with_capacity(BATCH_EVENTS);
            while let Some(event) = walk.next() {
                let path = if let Event::Enter(_) = event { walk.path().to_vec() } else { Vec::new() };
                batch.push((event, path));
                if batch.len() == BATCH_EVENTS {
                    let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH_EVENTS));
                    if progress.is_cancelled() || sender.send(full).is_err() {
                        return;
                    }
                }
            }
            let _ = sender.send(batch);
        };
        std::thread::Builder::new().name("walk".to_owned()).spawn(run)?;
        let begun = begun.recv().map_err(|_| io::Error::other("the walk ended early"))?;
        Ok(begun.map(|targets| Walker { batches, at_hand: Vec::new().into_iter(), targets }))
    }

    /// The targets that were found.
    pub(super) fn targets(&self) -> &[Vec<u8>] {
        &self.targets
    }
}

impl Iterator for Walker {
    type Item = Walked;

    fn next(&mut self) -> Option<Walked> {
        loop {
            if let Some(event) = self.at_hand.next() {
                return Some(event);
            }
            self.at_hand = self.batches.recv().ok()?.into_iter();
        }
    }
}
