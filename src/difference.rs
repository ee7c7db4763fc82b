//! What bytes have in common with others: the copies and insertions that make the one of the other. Pure.
//!
//! Follows the other bytes in step for as long as they are equal. At a difference it looks whether they go on equal a
//! little later, in step or a little off it, as after an edit of a field; if not, an index of the other bytes, made
//! only then, says where the next bytes occur. What is near is taken first, though what the index finds may be longer:
//! text repeats itself, and to jump there and back costs more than it brings. Rows of equal length, though, agree in
//! part wherever they are laid: where much is inserted between such copies, the index is asked for what is being
//! inserted. The index knows every fourth position by the hash of the sixteen bytes there, which finds every run of 19
//! equal bytes (the scheme of J. MacDonald's xdelta, "File System Support for Delta Compression", 2000).

use std::ops::Range;

use crate::format::delta::Command;

/// Shortest copy in step, in bytes: what its command costs, and a little.
const COPY_MIN: usize = 8;
/// Shortest copy a little off step, in bytes: shorter ones are accidents.
const NEAR_MIN: usize = 12;
/// How far off step is a little, in bytes.
const NEAR: usize = 40;
/// Bytes that the index knows a position by.
const WINDOW: usize = 16;
/// It knows one position in this many.
const STRIDE: usize = 4;
/// Bytes after a difference in which the others may go on in step before the index is made.
const STEP_MAX: usize = 64;
/// Bytes inserted, less one in [`DEBT_PAID_BY`] of those copied since, after which it is doubtful that the step is right.
const DEBT_MAX: usize = 48;
const DEBT_PAID_BY: usize = 16;
/// Shortest copy from elsewhere, in bytes, that the step is then given up for; and it must be twice as long as the one in step.
const BETTER_MIN: usize = 64;
/// Bits of the index's table at most.
const BITS_MAX: u32 = 20;

/// Finds differences; keeps the memory of its index for the next call.
#[derive(Default)]
pub struct Differ {
    /// Position in the base plus one by hash, 0 for none.
    table: Vec<u32>,
    bits: u32,
}

#[inline]
fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[inline]
fn hash(bytes: &[u8], at: usize) -> u64 {
    // Odd constants of large order; the top bits are used.
    (word(bytes, at).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word(bytes, at + 8)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// Bytes that `a` and `b` begin with alike.
#[inline]
fn common(a: &[u8], b: &[u8]) -> usize {
    let len = a.len().min(b.len());
    let mut at = 0;
    while at + 8 <= len {
        let different = word(a, at) ^ word(b, at);
        if different != 0 {
            return at + (different.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    at + a[at..len].iter().zip(&b[at..len]).take_while(|(a, b)| a == b).count()
}

impl Differ {
    fn index(&mut self, base: &[u8]) {
        let positions = (base.len() / STRIDE).max(1);
        self.bits = (usize::BITS - positions.leading_zeros()).clamp(8, BITS_MAX);
        self.table.clear();
        self.table.resize(1 << self.bits, 0);
        if base.len() < WINDOW {
            return;
        }
        // Backwards, so that of equal windows the first is found: the copy can go on the longest.
        for step in (0..=(base.len() - WINDOW) / STRIDE).rev() {
            let at = step * STRIDE;
            self.table[(hash(base, at) >> (64 - self.bits)) as usize] = at as u32 + 1;
        }
    }

    /// Where in `base` the bytes at `at` of `new` occur, if the index knows: the position and how many are equal.
    #[inline]
    fn find(&self, base: &[u8], new: &[u8], at: usize) -> Option<(usize, usize)> {
        let found = self.table[(hash(new, at) >> (64 - self.bits)) as usize] as usize;
        let from = found.checked_sub(1)?;
        let len = common(&new[at..], &base[from..]);
        (len >= WINDOW).then_some((from, len))
    }

    /// The commands that make `new` of `base`, both below 4 GiB; `None` if they would insert more than `insert_max`
    /// bytes. The beginning of `new` is expected at `at` of `base`.
    pub fn commands(&mut self, base: &[u8], new: &[u8], at: usize, insert_max: usize) -> Option<Vec<Command>> {
        let mut commands = Vec::new();
        let mut insert_left = insert_max;
        let mut is_indexed = false;
        let mut debt = 0;
        // Up to here the blob is made; in step with that the base is at `from`, which may be outside of it.
        let (mut done, mut from) = (0, at as i64);
        while done < new.len() {
            let last = new.len().min(done.saturating_add(insert_left).saturating_add(1));
            let Some(mut copy) = self.next_copy(base, new, done..last, from, &mut is_indexed) else {
                let insert = new.len() - done;
                if insert > insert_left {
                    return None;
                }
                commands.push(Command { insert: insert as u32, copy: 0, from: 0 });
                break;
            };
            if debt + copy.to - done > DEBT_MAX
                && let Some(better) = self.better(base, new, done, &copy, &mut is_indexed)
            {
                copy = better;
            }
            let back = new[done..copy.to].iter().rev().zip(base[..copy.from].iter().rev());
            let back = back.take_while(|(a, b)| a == b).count();
            let insert = copy.to - back - done;
            insert_left = insert_left.checked_sub(insert)?;
            let (from_base, len) = (copy.from - back, copy.len + back);
            commands.push(Command { insert: insert as u32, copy: len as u32, from: from_base as u32 });
            debt = (debt + insert).saturating_sub(len / DEBT_PAID_BY);
            (done, from) = (done + insert + len, (from_base + len) as i64);
        }
        Some(commands)
    }

    /// A copy of what would be inserted before `copy`, and of much more than that has.
    fn better(&mut self, base: &[u8], new: &[u8], done: usize, copy: &Copy, is_indexed: &mut bool) -> Option<Copy> {
        if !*is_indexed {
            self.index(base);
            *is_indexed = true;
        }
        let mut inserted = (done..copy.to).take_while(|to| to + WINDOW <= new.len());
        let found = inserted.find_map(|to| {
            let (from, len) = self.find(base, new, to)?;
            (len >= BETTER_MIN).then_some(Copy { to, from, len })
        })?;
        (found.len >= 2 * copy.len).then_some(found)
    }

    /// The next bytes of `new` that are worth copying, where they begin within `range`.
    fn next_copy(
        &mut self,
        base: &[u8],
        new: &[u8],
        range: Range<usize>,
        from: i64,
        is_indexed: &mut bool,
    ) -> Option<Copy> {
        let far = range.end.min(range.start + STEP_MAX);
        for to in range.start..far {
            let step = from + (to - range.start) as i64;
            if let Some(copy) = in_step(base, new, to, step).or_else(|| near(base, new, to, step)) {
                return Some(copy);
            }
        }
        if far == new.len() {
            return None;
        }
        if !*is_indexed {
            self.index(base);
            *is_indexed = true;
        }
        for to in range.clone() {
            let step = from + (to - range.start) as i64;
            let copy = if to < far { None } else { in_step(base, new, to, step) };
            if copy.is_some() {
                return copy;
            }
            if to + WINDOW <= new.len()
                && let Some((from, len)) = self.find(base, new, to)
            {
                return Some(Copy { to, from, len });
            }
        }
        None
    }
}

/// `len` bytes at `to` of the new bytes that are at `from` of the base.
struct Copy {
    to: usize,
    from: usize,
    len: usize,
}

/// What goes on at `step` of the base, if it is enough.
#[inline]
fn in_step(base: &[u8], new: &[u8], to: usize, step: i64) -> Option<Copy> {
    let from = usize::try_from(step).ok().filter(|from| *from < base.len())?;
    let len = common(&new[to..], &base[from..]);
    (len >= COPY_MIN || len > 0 && to + len == new.len()).then_some(Copy { to, from, len })
}

/// The longest of what goes on a little beside `step` of the base.
#[inline]
fn near(base: &[u8], new: &[u8], to: usize, step: i64) -> Option<Copy> {
    if to + NEAR_MIN > new.len() || base.len() < NEAR_MIN {
        return None;
    }
    let wanted = word(new, to);
    let first = (step - NEAR as i64).max(0) as usize;
    let last = usize::try_from(step + NEAR as i64).ok()?.min(base.len() - NEAR_MIN);
    let mut best: Option<Copy> = None;
    for from in first..=last {
        if word(base, from) == wanted {
            let len = common(&new[to..], &base[from..]);
            if len >= NEAR_MIN && best.as_ref().is_none_or(|best| len > best.len) {
                best = Some(Copy { to, from, len });
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Makes `new` of `base`; returns the inserted bytes and the number of commands.
    fn check(base: &[u8], new: &[u8], at: usize) -> (usize, usize) {
        let commands = Differ::default().commands(base, new, at, usize::MAX).expect("no limit");
        let mut made = Vec::new();
        let mut inserted = 0;
        for Command { insert, copy, from } in &commands {
            made.extend_from_slice(&new[made.len()..made.len() + *insert as usize]);
            made.extend_from_slice(&base[*from as usize..(*from + *copy) as usize]);
            inserted += *insert as usize;
        }
        assert!(made == new);
        (inserted, commands.len())
    }

    #[test]
    fn equal_bytes_are_one_copy() {
        let base = noise(1, 100_000);
        assert_eq!(check(&base, &base, 0), (0, 1));
        assert_eq!(check(&base, &base[1234..80_000], 1234), (0, 1));
        assert_eq!(check(&base, &base[1234..80_000], 0), (0, 1), "a wrong expectation costs nothing");
        assert_eq!(check(&base, &base[1234..80_000], 99_999), (0, 1));
        assert_eq!(check(b"", b"", 0), (0, 0));
        assert_eq!(check(b"", b"abc", 0), (3, 1));
        assert_eq!(check(b"abc", b"abc", 7), (3, 1), "too short to be found elsewhere");
        assert_eq!(check(b"abc", b"abc", 0), (0, 1));
    }

    #[test]
    fn edits_cost_what_they_change() {
        let base = noise(2, 200_000);
        let mut new = base.clone();
        for at in (1000..190_000).step_by(10_000) {
            new[at..at + 10].copy_from_slice(&noise(at as u64, 10));
        }
        let (inserted, commands) = check(&base, &new, 0);
        assert!(inserted <= 190 && commands <= 21, "{inserted} in {commands}");
        new.splice(50_000..50_000, noise(3, 77));
        new.drain(120_000..120_500);
        let (inserted, commands) = check(&base, &new, 0);
        assert!(inserted <= 190 + 77 + 40 && commands <= 24, "{inserted} in {commands}");
    }

    #[test]
    fn what_moved_is_found() {
        let base = noise(4, 50_000);
        let new = [&base[30_000..], &base[..30_000]].concat();
        let (inserted, commands) = check(&base, &new, 0);
        assert!(inserted <= 40 && commands <= 3, "{inserted} in {commands}");
    }

    #[test]
    fn rows_of_equal_length_are_found_again_after_one_was_deleted_or_inserted() {
        let row = |n: u64| {
            let id = blake3::hash(&n.to_le_bytes()).to_hex();
            format!("INSERT INTO `instances` VALUES ({n:>7},'{}','active',NULL,'{}');\n", &id[..32], &id[40..52])
        };
        let base: String = (0..600).map(row).collect();
        let mut rows: Vec<String> = (0..600).map(row).collect();
        let first_lost = rows.remove(100);
        rows.insert(250, row(9000));
        rows.remove(400);
        rows.insert(500, row(9001));
        let (inserted, commands) = check(base.as_bytes(), rows.concat().as_bytes(), 0);
        // Two rows that are new, and what it takes to notice four times.
        let len_max = 2 * first_lost.len() + 4 * (DEBT_MAX + 70);
        assert!(inserted <= len_max && commands < 60, "{inserted} in {commands}");
    }

    #[test]
    fn bytes_with_nothing_in_common_are_given_up_early() {
        let (base, new) = (noise(5, 100_000), noise(6, 100_000));
        assert_eq!(Differ::default().commands(&base, &new, 0, 10_000), None);
        assert_eq!(check(&base, &new, 0), (100_000, 1));
    }

    #[test]
    fn zeros_and_random_edits_of_repetitive_text_come_back() {
        check(&[0; 10_000], &[0; 9_999], 3);
        check(&[0; 100], &[0; 9_999], 0);
        let line = b"INSERT INTO instances VALUES (17, 'active', NULL, 'compute-012');\n";
        let base = line.repeat(500);
        for seed in 0..200u64 {
            let mut new = base.clone();
            for edit in noise(seed, 64).chunks(8) {
                let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % new.len();
                let end = (at + usize::from(edit[2] % 40)).min(new.len());
                new.splice(at..end, edit[3..3 + usize::from(edit[3] % 5)].to_vec());
            }
            let (inserted, _) = check(&base, &new, (seed as usize) % 90);
            assert!(inserted < new.len() / 10);
        }
    }
}
