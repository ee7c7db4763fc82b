//! Pack numbers of this process: which pack each stands for, also after its file was merged into another.
//!
//! Every file gets a run of numbers when it is taken in; packs written here get theirs one by one. A number never comes
//! to mean another pack. The names behind the numbers of files that were merged away are kept up to [`RETIRED_MAX`];
//! older ones are forgotten, and asking for them sends the caller back to look the blob up again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::file::IndexFile;
use super::{Damaged, PackInfo, PackNumber};

/// Packs of files merged away whose names are kept: 40 bytes each.
const RETIRED_MAX: usize = 500_000;
/// Numbers set aside at a time for packs written by this process.
const RUN_LEN: u32 = 4096;

enum Run {
    File(Arc<IndexFile>),
    Packs(Vec<PackInfo>),
}

/// What every number handed out so far stands for.
#[derive(Default)]
pub(super) struct PackNumbers {
    runs: BTreeMap<u32, Run>,
    next: u32,
    /// First number of the run that grows with each pack written here.
    growing: Option<u32>,
    retired: VecDeque<u32>,
    retired_len: usize,
}

impl PackNumbers {
    /// Numbers all packs of `file`; returns the first number.
    pub(super) fn add_file(&mut self, file: &Arc<IndexFile>) -> u32 {
        self.start_run(Run::File(file.clone()), file.pack_count())
    }

    /// Numbers one pack.
    pub(super) fn add(&mut self, info: PackInfo) -> u32 {
        if let Some(base) = self.growing
            && let Some(Run::Packs(packs)) = self.runs.get_mut(&base)
            && packs.len() < RUN_LEN as usize
        {
            packs.push(info);
            return base + packs.len() as u32 - 1;
        }
        let base = self.start_run(Run::Packs(vec![info]), RUN_LEN);
        self.growing = Some(base);
        base
    }

    fn start_run(&mut self, run: Run, len: u32) -> u32 {
        let base = self.next;
        // Four thousand million packs taken in by one process would be a repository of 64 PiB.
        self.next = base.checked_add(len.max(1)).expect("a process takes in fewer than 2^32 packs");
        self.runs.insert(base, run);
        base
    }

    /// Lets go of the file whose first number is `base`, keeping its packs' names if they can be read.
    pub(super) fn retire(&mut self, base: u32) {
        let Some(Run::File(file)) = self.runs.remove(&base) else {
            return;
        };
        let packs: Result<Vec<PackInfo>, Damaged> = file.packs().map(|entry| Ok(entry?.info)).collect();
        let Ok(packs) = packs else {
            return;
        };
        self.retired_len += packs.len();
        self.retired.push_back(base);
        self.runs.insert(base, Run::Packs(packs));
        while self.retired_len > RETIRED_MAX
            && let Some(oldest) = self.retired.pop_front()
        {
            if let Some(Run::Packs(packs)) = self.runs.remove(&oldest) {
                self.retired_len -= packs.len();
            }
        }
    }

    /// The pack that `number` stands for.
    pub(super) fn get(&self, number: PackNumber) -> Result<PackInfo, Damaged> {
        let (base, run) = self.runs.range(..=number.0).next_back().ok_or(Damaged)?;
        let at = number.0 - base;
        match run {
            Run::File(file) if at < file.pack_count() => Ok(file.pack(at)?.info),
            Run::File(_) => Err(Damaged),
            Run::Packs(packs) => packs.get(at as usize).copied().ok_or(Damaged),
        }
    }
}
