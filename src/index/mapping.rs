//! Read-only bytes of a local index file: mapped, so that every process on the host shares one copy in memory.
//!
//! A mapped file that someone truncates, or whose disk fails, raises SIGBUS in the reader. The handler here puts zero
//! pages where the bytes were and marks the mapping as lost, so the reader sees damage where the process would have died.
//! Whether the bytes are what was written is not this file's business: `file` checks them.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use memmap2::{Mmap, UncheckedAdvice};

/// Mappings that the handler can watch at a time. Files beyond that are read into memory.
const WATCHED_MAX: usize = 256;
/// `Watch::start` of a slot that is taken but not yet watching.
const RESERVED: usize = 1;

/// An address range that the handler answers for.
struct Watch {
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
}

static WATCHES: [Watch; WATCHED_MAX] =
    [const { Watch { start: AtomicUsize::new(0), end: AtomicUsize::new(0), lost: AtomicBool::new(false) } };
        WATCHED_MAX];

/// What stood there before the handler was installed, and the size of a page.
static PREVIOUS: OnceLock<Option<(libc::sigaction, usize)>> = OnceLock::new();

/// Bytes of a file, either mapped and watched, or in memory.
pub(super) enum Mapping {
    /// Mapped; the number is that of its watch.
    Mapped(Mmap, usize),
    /// Read into memory, or never in a file.
    Memory(Vec<u8>),
}

impl Mapping {
    /// Maps the whole of `file`, or reads it where mapping is not possible.
    pub(super) fn of_file(file: &File) -> io::Result<Self> {
        if let Some(slot) = reserve() {
            // SAFETY: the file is private to this program and immutable once written; should it be truncated all the
            // same, the SIGBUS handler replaces the lost pages. Bytes that change under us are plain bytes, checked by
            // the reader, never references or indices that are trusted.
            match unsafe { Mmap::map(file) } {
                Ok(map) if !map.is_empty() => {
                    let start = map.as_ptr() as usize;
                    let watch = &WATCHES[slot];
                    watch.lost.store(false, Ordering::SeqCst);
                    watch.end.store(start + map.len(), Ordering::SeqCst);
                    watch.start.store(start, Ordering::SeqCst);
                    return Ok(Mapping::Mapped(map, slot));
                }
                _ => WATCHES[slot].start.store(0, Ordering::SeqCst),
            }
        }
        let mut bytes = Vec::new();
        let mut file = file;
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(Mapping::Memory(bytes))
    }

    /// Takes pages `from..to` out of this process's memory; they come back from the page cache when they are read again.
    pub(super) fn release(&self, from: usize, to: usize) {
        if let Mapping::Mapped(map, _) = self
            && from < to
            && !self.is_lost()
        {
            // SAFETY: the pages are those of a shared read-only mapping of a file: dropping them changes no byte. If the
            // advice fails, nothing is lost but memory.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, from, to - from) };
        }
    }

    /// Whether some of the bytes were lost since the file was mapped. What was read before the question may be zeros.
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Mapping::Mapped(_, slot) => WATCHES[*slot].lost.load(Ordering::SeqCst),
            Mapping::Memory(_) => false,
        }
    }
}

impl Deref for Mapping {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Mapping::Mapped(map, _) => map,
            Mapping::Memory(bytes) => bytes,
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Mapping::Mapped(_, slot) = self {
            // The map itself goes after this, so the addresses are ours until nobody answers for them any more.
            WATCHES[*slot].start.store(0, Ordering::SeqCst);
        }
    }
}

/// Takes a free watch; `None` if there is none or the handler cannot be installed.
fn reserve() -> Option<usize> {
    (*PREVIOUS.get_or_init(install))?;
    WATCHES
        .iter()
        .position(|watch| watch.start.compare_exchange(0, RESERVED, Ordering::SeqCst, Ordering::SeqCst).is_ok())
}

fn install() -> Option<(libc::sigaction, usize)> {
    // SAFETY: sysconf has no preconditions.
    let page =
        usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok().filter(|len| len.is_power_of_two())?;
    // SAFETY: an all-zero sigaction is a valid value; the handler below calls only what is allowed in a handler; both
    // pointers are to live locals.
    unsafe {
        let mut previous: libc::sigaction = std::mem::zeroed();
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        (libc::sigaction(libc::SIGBUS, &action, &mut previous) == 0).then_some((previous, page))
    }
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // A fault can only be in a mapping after `install` has returned.
    let Some(Some((previous, page))) = PREVIOUS.get() else {
        return;
    };
    // SAFETY: the kernel passes a valid siginfo to a handler installed with SA_SIGINFO, and si_addr is set for SIGBUS.
    let address = unsafe { (*info).si_addr() } as usize;
    for watch in &WATCHES {
        let (start, end) = (watch.start.load(Ordering::SeqCst), watch.end.load(Ordering::SeqCst));
        // A start that has changed meanwhile is another mapping's, and the end may be. That of the mapping at fault does
        // not change: the thread that reads it holds it.
        let is_whole = start == watch.start.load(Ordering::SeqCst);
        if start <= RESERVED || !is_whole || address < start || address >= end {
            continue;
        }
        // First the mark, then the zeros: nobody may see zeros that are not marked.
        watch.lost.store(true, Ordering::SeqCst);
        let from = address & !(page - 1);
        let len = end.next_multiple_of(*page) - from;
        // SAFETY: the range lies inside a live mapping of ours (whoever faulted in it holds it), so MAP_FIXED replaces
        // only our own pages. errno is put back, since the interrupted code may be about to read it.
        unsafe {
            let errno = *libc::__errno_location();
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            let got = libc::mmap(from as *mut libc::c_void, len, libc::PROT_READ, flags, -1, 0);
            *libc::__errno_location() = errno;
            if got != libc::MAP_FAILED {
                return;
            }
        }
    }
    // SAFETY: not ours: whoever was there before gets it; the default action strikes when the access is repeated.
    unsafe {
        if previous.sa_sigaction == libc::SIG_DFL || previous.sa_sigaction == libc::SIG_IGN {
            libc::signal(signal, libc::SIG_DFL);
        } else if previous.sa_flags & libc::SA_SIGINFO != 0 {
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute(previous.sa_sigaction);
            handler(signal, info, context);
        } else {
            let handler: extern "C" fn(libc::c_int) = std::mem::transmute(previous.sa_sigaction);
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_mapped_file_that_is_truncated_reads_as_zeros_and_says_so() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7u8; 300_000]).unwrap();
        let mapping = Mapping::of_file(&file).unwrap();
        let other = Mapping::of_file(&tempfile_of(b"untouched")).unwrap();
        assert!(matches!(mapping, Mapping::Mapped(..)));
        assert!(mapping.iter().all(|byte| *byte == 7) && !mapping.is_lost());
        file.set_len(100).unwrap();
        let sum: u64 = mapping.iter().map(|byte| u64::from(*byte)).sum();
        assert!(sum < 300_000 * 7 && mapping.is_lost());
        assert!(!other.is_lost() && &other[..] == b"untouched");
    }

    #[test]
    fn more_files_than_can_be_watched_are_still_read() {
        let file = tempfile_of(b"content");
        let all: Vec<Mapping> = (0..WATCHED_MAX + 10).map(|_| Mapping::of_file(&file).unwrap()).collect();
        assert!(all.iter().all(|mapping| &mapping[..] == b"content"));
        assert!(all.iter().any(|mapping| matches!(mapping, Mapping::Memory(_))));
    }

    fn tempfile_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }
}
