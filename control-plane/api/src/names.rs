//! Names derived from other things: hashes in upstream's alphabet, generated suffixes.

use serde::Serialize;
use std::hash::Hasher;

/// Upstream's `rand.SafeEncodeString` alphabet: no vowels (no bad words), no 0, 1, 3 (no confusion).
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Each byte of `text` becomes one letter of the safe alphabet.
pub fn safe_encode(text: &str) -> String {
    text.bytes()
        .map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()]))
        .collect()
}

/// A hash of the value's JSON as it appears in names and in the label `pod-template-hash`: the decimal 32-bit hash in
/// the safe alphabet. `collisions` counts the names already taken by something else.
pub fn hash_name<T: Serialize>(value: &T, collisions: i32) -> String {
    let mut hasher = Fnv32a::default();
    hasher.write(&serde_json::to_vec(value).unwrap_or_default());
    hasher.write(&collisions.to_le_bytes());
    safe_encode(&hasher.0.to_string())
}

/// `n` random letters of the safe alphabet from a source of random numbers.
pub fn random_suffix(n: usize, mut random: impl FnMut() -> u32) -> String {
    (0..n)
        .map(|_| char::from(ALPHABET[random() as usize % ALPHABET.len()]))
        .collect()
}

struct Fnv32a(u32);

impl Default for Fnv32a {
    fn default() -> Self {
        Self(0x811c_9dc5)
    }
}

impl Hasher for Fnv32a {
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 ^ u32::from(*b)).wrapping_mul(0x0100_0193);
        }
    }
    fn finish(&self) -> u64 {
        self.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_look_like_upstreams() {
        let hash = hash_name(&serde_json::json!({"containers": []}), 0);
        assert!((1..=10).contains(&hash.len()), "{hash}");
        assert!(hash.bytes().all(|b| ALPHABET.contains(&b)), "{hash}");
        assert_ne!(hash, hash_name(&serde_json::json!({"containers": []}), 1));
        assert_eq!(hash, hash_name(&serde_json::json!({"containers": []}), 0));
        // '0' is 48, and 48 mod 27 = 21.
        assert_eq!(safe_encode("0123456789"), "456789bcdf");
    }
}
