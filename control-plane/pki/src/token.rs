//! Bootstrap tokens, `id.secret` (kubeadm's format).

use std::fmt;

use ring::rand::{SecureRandom as _, SystemRandom};
use thiserror::Error;

const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

#[derive(Debug, Error, PartialEq, Eq)]
pub enum TokenError {
    #[error("the bootstrap token is not of the form \"[a-z0-9]{{6}}.[a-z0-9]{{16}}\"")]
    Format,
    #[error("the system gives no random bytes")]
    Random,
}

/// A bootstrap token. `Debug` and logs show the id only.
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    id: String,
    secret: String,
}

impl BootstrapToken {
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let (id, secret) = text.split_once('.').ok_or(TokenError::Format)?;
        let valid = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|byte| ALPHABET.contains(&byte))
        };
        if !valid(id, ID_LENGTH) || !valid(secret, SECRET_LENGTH) {
            return Err(TokenError::Format);
        }
        Ok(Self {
            id: id.into(),
            secret: secret.into(),
        })
    }

    pub fn generate() -> Result<Self, TokenError> {
        Ok(Self {
            id: random_text(ID_LENGTH)?,
            secret: random_text(SECRET_LENGTH)?,
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// The whole token, as a user types it.
    pub fn reveal(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

impl fmt::Debug for BootstrapToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "BootstrapToken({}.****************)", self.id)
    }
}

/// Uniform over the alphabet: bytes that would favour its start are drawn again.
fn random_text(length: usize) -> Result<String, TokenError> {
    let random = SystemRandom::new();
    let limit = 256 - 256 % ALPHABET.len();
    let mut text = String::with_capacity(length);
    let mut bytes = [0; 32];
    while text.len() < length {
        random.fill(&mut bytes).map_err(|_| TokenError::Random)?;
        let fair = bytes
            .iter()
            .map(|byte| usize::from(*byte))
            .filter(|byte| *byte < limit);
        text.extend(
            fair.take(length - text.len())
                .map(|byte| char::from(ALPHABET[byte % ALPHABET.len()])),
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_parse_strictly_and_generated_ones_parse() {
        let token = BootstrapToken::parse("abcdef.0123456789abcdef").unwrap();
        assert_eq!((token.id(), token.secret()), ("abcdef", "0123456789abcdef"));
        assert_eq!(token.reveal(), "abcdef.0123456789abcdef");
        for bad in [
            "",
            "abcdef",
            "abcdef.",
            "abcde.0123456789abcdef",
            "ABCDEF.0123456789abcdef",
            "abcdef.0123456789abcdef0",
            "abcdef.0123456789abcde\n",
        ] {
            assert_eq!(BootstrapToken::parse(bad), Err(TokenError::Format), "{bad:?}");
        }
        let generated = BootstrapToken::generate().unwrap();
        assert_eq!(BootstrapToken::parse(&generated.reveal()).unwrap(), generated);
        assert_ne!(generated, BootstrapToken::generate().unwrap());
    }

    #[test]
    fn debug_output_hides_the_secret() {
        let token = BootstrapToken::parse("abcdef.0123456789abcdef").unwrap();
        assert!(!format!("{token:?}").contains(token.secret()));
    }
}
