//! From a password to the repository's master key, and from the master key to every key in use.
//!
//! A key object wraps the master key with a key that Argon2id makes of a password. The master key is used for nothing
//! but derivation, one context string for each use, so that no key ever serves two purposes.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Key};
use zeroize::Zeroizing;

use crate::format::codec::{Decoder, Encode, Result};
use crate::format::header::{HEADER_LEN, Header, StoredKind};
use crate::format::tree::Time;
use crate::id::{BlobId, BlobKind, ContentHash, RepositoryId};

/// Memory for Argon2id, in large pages where the system has them: entering 64 MiB in small ones takes a third of the time
/// that the derivation takes.
fn memory_in_large_pages(blocks: usize) -> Vec<argon2::Block> {
    const PAGE: usize = 4096;
    let mut memory: Vec<argon2::Block> = Vec::with_capacity(blocks);
    let address = memory.as_ptr() as usize;
    let (from, to) = (address.next_multiple_of(PAGE), address + memory.capacity() * size_of::<argon2::Block>());
    if from < to {
        // SAFETY: the range is within this vector's own memory, and the advice changes nothing that can be seen.
        let _ = unsafe { libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_HUGEPAGE) };
    }
    memory.resize(blocks, argon2::Block::new());
    memory
}

/// Cost of Argon2id for new keys: above the OWASP password storage recommendation for one pass (46 MiB), and half of what
/// opening a repository takes (50 of 100 ms on two cores); three passes would double that for every command.
const COST: Cost = Cost { memory_kib: 64 << 10, passes: 1, lanes: 4 };
/// Highest cost that a key object may ask of a reader: 1 GiB, 16 passes, 64 lanes. A hostile one cannot take more.
const COST_MAX: Cost = Cost { memory_kib: 1 << 20, passes: 16, lanes: 64 };

/// KiB that Argon2id needs for each lane.
const MEMORY_KIB_PER_LANE: u32 = 8;

const WRAPPED_LEN: usize = 32 + 16;
const LABEL_LEN_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// The one secret of a repository.
pub struct MasterKey(Zeroizing<[u8; 32]>);

impl MasterKey {
    /// A fresh random one.
    pub fn random() -> std::io::Result<MasterKey> {
        Ok(MasterKey(Zeroizing::new(random()?)))
    }

    fn derive(&self, context: &str, salt: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&*self.0);
        hasher.update(salt);
        Zeroizing::new(*hasher.finalize().as_bytes())
    }
}

/// `N` bytes from the operating system.
pub fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes)
}

/// The keys in use, derived from the master key.
pub struct Keys {
    master: MasterKey,
    ids: [Zeroizing<[u8; 32]>; 3],
}

impl Keys {
    /// Derives the keys of the repository whose master key is `master`.
    pub fn new(master: MasterKey) -> Keys {
        let ids = BlobKind::ALL.map(|kind| {
            master.derive(
                match kind {
                    BlobKind::Data => "bygone 2026-11 id of a data blob",
                    BlobKind::Tree => "bygone 2026-11 id of a tree blob",
                    BlobKind::List => "bygone 2026-11 id of a list blob",
                },
                b"",
            )
        });
        Keys { master, ids }
    }

    /// The master key, to wrap it for another password.
    pub fn master(&self) -> &MasterKey {
        &self.master
    }

    /// The id of the blob of `kind` whose plaintext hashes to `hash`.
    pub fn blob_id(&self, kind: BlobKind, hash: &ContentHash) -> BlobId {
        let keyed = blake3::keyed_hash(&self.ids[kind as usize], &hash.0);
        BlobId::from_bytes(&keyed.as_bytes()[..crate::id::BLOB_ID_LEN]).expect("a hash is longer than an id")
    }

    /// The key that seals the object with this salt, and no other object.
    pub fn object_key(&self, salt: &[u8; 32]) -> Zeroizing<[u8; 32]> {
        self.master.derive("bygone 2026-11 object key", salt)
    }

    /// The secret table of the chunker.
    pub fn gear(&self) -> Zeroizing<[u64; 256]> {
        let seed = self.master.derive("bygone 2026-11 gear table", b"");
        let mut bytes = Zeroizing::new([0u8; 2048]);
        blake3::Hasher::new_keyed(&seed).finalize_xof().fill(&mut *bytes);
        let mut gear = Zeroizing::new([0u64; 256]);
        for (value, bytes) in gear.iter_mut().zip(bytes.chunks_exact(8)) {
            *value = u64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
        }
        gear
    }
}

/// A key object: the master key wrapped for one password, and who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyObject {
    header: Header,
    cost: Cost,
    commitment: [u8; 32],
    wrapped: [u8; WRAPPED_LEN],
    /// When it was made.
    pub created: Time,
    /// Host it was made on.
    pub host: String,
    /// User who made it.
    pub user: String,
}

impl KeyObject {
    /// Wraps `master` of `repository` for `password`.
    pub fn wrap(
        master: &MasterKey,
        repository: &RepositoryId,
        password: &[u8],
        created: Time,
        host: &str,
        user: &str,
    ) -> std::io::Result<KeyObject> {
        Self::wrap_at(COST, master, repository, password, created, host, user)
    }

    fn wrap_at(
        cost: Cost,
        master: &MasterKey,
        repository: &RepositoryId,
        password: &[u8],
        created: Time,
        host: &str,
        user: &str,
    ) -> std::io::Result<KeyObject> {
        let mut object = KeyObject {
            header: Header { kind: StoredKind::Key, salt: random()? },
            cost,
            commitment: [0; 32],
            wrapped: [0; WRAPPED_LEN],
            created,
            host: host.chars().take(255).collect(),
            user: user.chars().take(255).collect(),
        };
        let (key, commitment) = object.stretch(password)?;
        object.commitment = commitment;
        object.wrapped[..32].copy_from_slice(&*master.0);
        let aad = object.associated_data(repository);
        let tag = Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key))
            .encrypt_inout_detached(&[0; 12].into(), &aad, (&mut object.wrapped[..32]).into())
            .map_err(|_| std::io::Error::other("encryption failed"))?;
        object.wrapped[32..].copy_from_slice(&tag);
        Ok(object)
    }

    /// The master key, if `password` is the right one. The commitment is compared first, so that a ciphertext made to
    /// open under two keys is refused.
    pub fn unwrap(&self, repository: &RepositoryId, password: &[u8]) -> std::io::Result<Option<MasterKey>> {
        let (key, commitment) = self.stretch(password)?;
        if blake3::Hash::from_bytes(commitment) != blake3::Hash::from_bytes(self.commitment) {
            return Ok(None);
        }
        let mut master = Zeroizing::new([0u8; 32]);
        master.copy_from_slice(&self.wrapped[..32]);
        let tag: [u8; 16] = self.wrapped[32..].try_into().expect("sixteen bytes of tag");
        let aad = self.associated_data(repository);
        let opened = Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key)).decrypt_inout_detached(
            &[0; 12].into(),
            &aad,
            (&mut master[..]).into(),
            &tag.into(),
        );
        Ok(opened.is_ok().then_some(MasterKey(master)))
    }

    fn stretch(&self, password: &[u8]) -> std::io::Result<(Zeroizing<[u8; 32]>, [u8; 32])> {
        let bad = |error: argon2::Error| std::io::Error::other(format!("Argon2id failed: {error}"));
        let Cost { memory_kib, passes, lanes } = self.cost;
        let params = argon2::Params::new(memory_kib, passes, lanes, Some(32)).map_err(bad)?;
        let mut memory = memory_in_large_pages(params.block_count());
        let argon = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let mut key = Zeroizing::new([0u8; 32]);
        argon.hash_password_into_with_memory(password, &self.header.salt, &mut *key, &mut memory[..]).map_err(bad)?;
        let commitment = blake3::derive_key("bygone 2026-11 key commitment", &*key);
        Ok((key, commitment))
    }

    fn associated_data(&self, repository: &RepositoryId) -> Vec<u8> {
        let mut aad = self.encode_front();
        aad.extend_from_slice(&repository.0);
        aad
    }

    fn encode_front(&self) -> Vec<u8> {
        let mut out = self.header.encode().to_vec();
        for cost in [self.cost.memory_kib, self.cost.passes, self.cost.lanes] {
            out.extend_from_slice(&cost.to_le_bytes());
        }
        out.put_signed(self.created.sec);
        out.put_varint(u64::from(self.created.nsec));
        out.put_bytes(self.host.as_bytes());
        out.put_bytes(self.user.as_bytes());
        out.extend_from_slice(&self.commitment);
        out
    }

    /// The object as stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.encode_front();
        out.extend_from_slice(&self.wrapped);
        out
    }

    /// Decodes a key object; refuses costs above the cap, and those that Argon2id is not defined for.
    pub fn decode(stored: &[u8]) -> Result<KeyObject> {
        let mut input = Decoder::new(stored);
        let header = Header::decode(input.take(HEADER_LEN, "key header")?, StoredKind::Key)?;
        let cost =
            Cost { memory_kib: input.u32("memory cost")?, passes: input.u32("time cost")?, lanes: input.u32("lanes")? };
        if cost.memory_kib > COST_MAX.memory_kib || cost.passes > COST_MAX.passes || cost.lanes > COST_MAX.lanes {
            return Err(input.error("password cost (above what this program accepts)"));
        }
        if cost.passes == 0 || cost.lanes == 0 || cost.memory_kib < MEMORY_KIB_PER_LANE * cost.lanes {
            return Err(input.error("password cost (below what Argon2id needs)"));
        }
        let sec = input.signed("creation time")?;
        let nsec = input.varint_u32("creation time")?;
        if nsec >= 1_000_000_000 || !crate::format::snapshot::seconds_are_shown(sec) {
            return Err(input.error("creation time"));
        }
        let host = input.text(LABEL_LEN_MAX, "host")?;
        let user = input.text(LABEL_LEN_MAX, "user")?;
        let commitment = input.array("key commitment")?;
        let wrapped = input.array("wrapped key")?;
        input.finish("key")?;
        Ok(KeyObject { header, cost, commitment, wrapped, created: Time { sec, nsec }, host, user })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Cost = Cost { memory_kib: 64, passes: 1, lanes: 1 };

    fn object(master: &MasterKey, password: &[u8]) -> KeyObject {
        KeyObject::wrap_at(CHEAP, master, &RepositoryId([5; 32]), password, Time::default(), "host", "user")
            .expect("wrapping works")
    }

    #[test]
    fn a_key_opens_with_its_password_in_its_repository_only() {
        let master = MasterKey::random().expect("randomness");
        let key = object(&master, b"secret");
        let key = KeyObject::decode(&key.encode()).expect("decodes");
        let open = |id, password: &[u8]| key.unwrap(&RepositoryId([id; 32]), password).expect("no system error");
        assert_eq!(*open(5, b"secret").expect("opens").0, *master.0);
        assert!(open(5, b"Secret").is_none());
        assert!(open(6, b"secret").is_none());
    }

    #[test]
    fn every_flipped_bit_of_a_key_object_is_noticed() {
        let master = MasterKey::random().expect("randomness");
        let stored = object(&master, b"x").encode();
        for at in 0..stored.len() {
            let mut bad = stored.clone();
            bad[at] ^= 1;
            let Ok(key) = KeyObject::decode(&bad) else { continue };
            if key.cost != CHEAP && key.cost.memory_kib > 1 << 12 {
                continue; // too dear to try
            }
            let opened = key.unwrap(&RepositoryId([5; 32]), b"x");
            assert!(!matches!(opened, Ok(Some(_))), "byte {at}");
        }
    }

    #[test]
    fn a_key_object_that_asks_for_too_much_memory_is_refused() {
        let mut key = object(&MasterKey::random().expect("randomness"), b"x");
        key.cost.memory_kib = COST_MAX.memory_kib + 1;
        assert!(KeyObject::decode(&key.encode()).is_err());
    }

    #[test]
    fn a_key_object_whose_cost_argon2_is_not_defined_for_is_refused_by_name() {
        let key = object(&MasterKey::random().expect("randomness"), b"x");
        assert!(KeyObject::decode(&key.encode()).is_ok());
        for (memory_kib, passes, lanes) in [(64, 0, 1), (64, 1, 0), (7, 1, 1), (31, 1, 4), (0, 0, 0)] {
            let mut bad = key.clone();
            bad.cost = Cost { memory_kib, passes, lanes };
            let error = KeyObject::decode(&bad.encode()).expect_err("no such cost");
            assert!(error.to_string().contains("password cost"), "{error}");
        }
    }

    #[test]
    fn derived_keys_are_those_of_the_first_release() {
        let keys = Keys::new(MasterKey(Zeroizing::new([7; 32])));
        let hash = ContentHash::of(b"abc");
        let ids = BlobKind::ALL.map(|kind| keys.blob_id(kind, &hash).to_hex());
        assert_eq!(ids, KNOWN_IDS.map(String::from));
        assert_eq!(ContentHash(*keys.object_key(&[9; 32])).to_hex(), KNOWN_OBJECT_KEY);
        assert_eq!(keys.gear()[0], KNOWN_GEAR[0]);
        assert_eq!(keys.gear()[255], KNOWN_GEAR[1]);
    }

    const KNOWN_IDS: [&str; 3] = [
        "3d641e239ada39d8517bca4e8ecaf9af91b69004",
        "f1633d9b9bf1636d8e83a08a124a0e56e387cbdb",
        "68848f9cb9b8f9a973b000f037851ecbd12beb49",
    ];
    const KNOWN_OBJECT_KEY: &str = "28e99e0f3ec27a4bf1ea18988be5c31f5920b6be35f488ef3b318531eb06ff40";
    const KNOWN_GEAR: [u64; 2] = [5833618532951856926, 18138720738449031786];
}
