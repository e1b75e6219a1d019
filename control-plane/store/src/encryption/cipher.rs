//! The ciphers, each in upstream's format: `k8s:enc:<kind>:v1:<key name>:` and then what the kind writes.

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit};
use bytes::Bytes;
use crypto_secretbox::aead::Aead as _;
use crypto_secretbox::{KeyInit as _, XSalsa20Poly1305};
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::MARK;

const AES_BLOCK: usize = 16;
const SECRETBOX_NONCE: usize = 24;

type Problem = &'static str;

pub enum Cipher {
    Identity,
    AesGcm {
        mark: Vec<u8>,
        key: Box<LessSafeKey>,
    },
    AesCbc {
        mark: Vec<u8>,
        key: Vec<u8>,
    },
    Secretbox {
        mark: Vec<u8>,
        key: Box<XSalsa20Poly1305>,
    },
}

fn mark(kind: &str, name: &str) -> Vec<u8> {
    let mut mark = MARK.to_vec();
    mark.extend(format!("{kind}:v1:{name}:").bytes());
    mark
}

fn random<const N: usize>() -> Result<[u8; N], Problem> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| "no random numbers")?;
    Ok(bytes)
}

impl Cipher {
    pub fn aes_gcm(name: &str, key: &[u8]) -> Result<Self, Problem> {
        let algorithm = match key.len() {
            16 => &AES_128_GCM,
            32 => &AES_256_GCM,
            _ => return Err("secret must be 16 or 32 bytes"),
        };
        let key = UnboundKey::new(algorithm, key).map_err(|_| "not a key")?;
        Ok(Self::AesGcm {
            mark: mark("aesgcm", name),
            key: Box::new(LessSafeKey::new(key)),
        })
    }

    pub fn aes_cbc(name: &str, key: &[u8]) -> Result<Self, Problem> {
        if !matches!(key.len(), 16 | 24 | 32) {
            return Err("secret must be 16, 24 or 32 bytes");
        }
        Ok(Self::AesCbc {
            mark: mark("aescbc", name),
            key: key.to_vec(),
        })
    }

    pub fn secretbox(name: &str, key: &[u8]) -> Result<Self, Problem> {
        let key = XSalsa20Poly1305::new_from_slice(key).map_err(|_| "secret must be 32 bytes")?;
        Ok(Self::Secretbox {
            mark: mark("secretbox", name),
            key: Box::new(key),
        })
    }

    fn mark(&self) -> &[u8] {
        match self {
            Self::Identity => b"",
            Self::AesGcm { mark, .. } | Self::AesCbc { mark, .. } | Self::Secretbox { mark, .. } => mark,
        }
    }

    /// Whether a stored value is this cipher's.
    pub fn wrote(&self, stored: &[u8]) -> bool {
        match self {
            Self::Identity => !stored.starts_with(MARK),
            other => stored.starts_with(other.mark()),
        }
    }

    /// `at` is the key in the store: a value moved elsewhere does not open where the cipher can tell.
    pub fn seal(&self, at: &[u8], value: Bytes) -> Result<Bytes, Problem> {
        let mut stored = self.mark().to_vec();
        match self {
            Self::Identity => return Ok(value),
            Self::AesGcm { key, .. } => {
                let nonce: [u8; NONCE_LEN] = random()?;
                let mut text = value.to_vec();
                key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(at), &mut text)
                    .map_err(|_| "cannot be encrypted")?;
                stored.extend(nonce);
                stored.extend(text);
            }
            Self::AesCbc { key, .. } => {
                let iv: [u8; AES_BLOCK] = random()?;
                stored.extend(iv);
                stored.extend(match key.len() {
                    16 => cbc_seal::<aes::Aes128>(key, &iv, &value)?,
                    24 => cbc_seal::<aes::Aes192>(key, &iv, &value)?,
                    _ => cbc_seal::<aes::Aes256>(key, &iv, &value)?,
                });
            }
            Self::Secretbox { key, .. } => {
                let nonce: [u8; SECRETBOX_NONCE] = random()?;
                let text = key
                    .encrypt((&nonce).into(), value.as_ref())
                    .map_err(|_| "cannot be encrypted")?;
                stored.extend(nonce);
                stored.extend(text);
            }
        }
        Ok(stored.into())
    }

    /// The other way round, of a value this cipher [`wrote`](Self::wrote).
    pub fn open(&self, at: &[u8], stored: &Bytes) -> Result<Bytes, Problem> {
        let rest = &stored[self.mark().len()..];
        let short = "the stored data was shorter than the required size";
        let broken = "the stored data cannot be decrypted with this key";
        let opened = match self {
            Self::Identity => return Ok(stored.clone()),
            Self::AesGcm { key, .. } => {
                let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or(short)?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| short)?;
                let mut text = text.to_vec();
                let opened = key.open_in_place(nonce, Aad::from(at), &mut text);
                opened.map_err(|_| broken)?.to_vec()
            }
            Self::AesCbc { key, .. } => {
                let (iv, text) = rest.split_at_checked(AES_BLOCK).ok_or(short)?;
                match key.len() {
                    16 => cbc_open::<aes::Aes128>(key, iv, text)?,
                    24 => cbc_open::<aes::Aes192>(key, iv, text)?,
                    _ => cbc_open::<aes::Aes256>(key, iv, text)?,
                }
            }
            Self::Secretbox { key, .. } => {
                let (nonce, text) = rest.split_first_chunk::<SECRETBOX_NONCE>().ok_or(short)?;
                key.decrypt(nonce.into(), text).map_err(|_| broken)?
            }
        };
        Ok(opened.into())
    }
}

fn cbc_seal<C>(key: &[u8], iv: &[u8], text: &[u8]) -> Result<Vec<u8>, Problem>
where
    C: aes::cipher::BlockEncryptMut + aes::cipher::BlockCipher + aes::cipher::KeyInit,
{
    let cipher = cbc::Encryptor::<C>::new_from_slices(key, iv).map_err(|_| "not a key")?;
    Ok(cipher.encrypt_padded_vec_mut::<Pkcs7>(text))
}

fn cbc_open<C>(key: &[u8], iv: &[u8], text: &[u8]) -> Result<Vec<u8>, Problem>
where
    C: aes::cipher::BlockDecryptMut + aes::cipher::BlockCipher + aes::cipher::KeyInit,
{
    let cipher = cbc::Decryptor::<C>::new_from_slices(key, iv).map_err(|_| "not a key")?;
    cipher
        .decrypt_padded_vec_mut::<Pkcs7>(text)
        .map_err(|_| "the stored data cannot be decrypted with this key")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_only() {
        let key = [7; 32];
        let at = b"/registry/secrets/ns/a";
        let other = [8; 32];
        type Make = fn(&str, &[u8]) -> Result<Cipher, Problem>;
        for (make, kind) in [
            (Cipher::aes_gcm as Make, "aesgcm"),
            (Cipher::aes_cbc, "aescbc"),
            (Cipher::secretbox, "secretbox"),
        ] {
            let cipher = make("k1", &key).unwrap();
            let value = Bytes::from_static(br#"{"kind":"Secret"}"#);
            let stored = cipher.seal(at, value.clone()).unwrap();
            assert!(stored.starts_with(format!("k8s:enc:{kind}:v1:k1:").as_bytes()));
            assert!(!stored.windows(6).any(|part| part == b"Secret"), "{kind}");
            assert!(cipher.wrote(&stored) && !Cipher::Identity.wrote(&stored));
            assert_eq!(cipher.open(at, &stored), Ok(value.clone()), "{kind}");
            assert_ne!(
                cipher.seal(at, value.clone()).unwrap(),
                stored,
                "{kind}: a nonce each time"
            );
            assert_ne!(
                make("k1", &other).unwrap().open(at, &stored).as_ref(),
                Ok(&value),
                "{kind}"
            );
            let cut = stored.slice(..stored.len() - stored.len() / 2);
            assert!(cipher.open(at, &cut).is_err(), "{kind}");
            assert!(make("k1", &key[..5]).is_err(), "{kind}");
        }
        let moved = Cipher::aes_gcm("k1", &key).unwrap();
        let stored = moved.seal(at, Bytes::from_static(b"x")).unwrap();
        assert!(moved.open(b"/registry/secrets/ns/b", &stored).is_err());
    }
}
