//! Pack numbers of this process: which pack each stands for, also after its file was merged into another.
//!
//! Every file gets a run of numbers when it is taken in; packs written here get theirs one by one. A number stands for
//! the same pack as long as the process lives: 40 bytes for each pack, and again each time its file is merged.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::file::IndexFile;
use super::{PackInfo, PackNumber};

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
}

impl PackNumbers {
    /// Numbers all packs of `file`; returns the first number.
    pub(super) fn add_file(&mut self, file: &Arc<IndexFile>) -> u32 {
        self.start_run(Run::File(file.clone()), file.packs().len() as u32)
    }

    /// Numbers one pack.
    pub(super) fn add(&mut self, info: PackInfo) -> PackNumber {
        if let Some(base) = self.growing
            && let Some(Run::Packs(packs)) = self.runs.get_mut(&base)
            && packs.len() < RUN_LEN as usize
        {
            packs.push(info);
            return PackNumber(base + packs.len() as u32 - 1);
        }
        let base = self.start_run(Run::Packs(vec![info]), RUN_LEN);
        self.growing = Some(base);
        PackNumber(base)
    }

    fn start_run(&mut self, run: Run, len: u32) -> u32 {
        let base = self.next;
        // At 16 MiB a pack these would hold 64 PiB.
        self.next = base.checked_add(len.max(1)).expect("a process takes in fewer than 2^32 packs");
        self.runs.insert(base, run);
        base
    }

    /// Lets go of the file whose first number is `base`, but not of its packs' names.
    pub(super) fn retire(&mut self, base: u32) {
        if let Some(run) = self.runs.get_mut(&base)
            && let Run::File(file) = run
        {
            *run = Run::Packs(file.packs().iter().map(|entry| entry.info).collect());
        }
    }

    /// The pack that `number` stands for; `None` for a number that was not handed out.
    pub(super) fn get(&self, number: PackNumber) -> Option<PackInfo> {
        let (base, run) = self.runs.range(..=number.0).next_back()?;
        let at = (number.0 - base) as usize;
        match run {
            Run::File(file) => Some(file.packs().get(at)?.info),
            Run::Packs(packs) => packs.get(at).copied(),
        }
    }
}
