//! PEM armour around DER, as every tool of the ecosystem reads it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_parser::pem::Pem;

pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// The DER of every block with this label, in order; text between blocks is ignored.
pub(crate) fn decode_all(label: &str, text: &str) -> Vec<Vec<u8>> {
    Pem::iter_from_buffer(text.as_bytes())
        .map_while(Result::ok)
        .filter(|block| block.label == label)
        .map(|block| block.contents)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_in_order_and_by_label() {
        let text = format!(
            "{}noise\n{}{}",
            encode("A", b"one"),
            encode("B", b"two"),
            encode("A", &[7; 100])
        );
        assert_eq!(decode_all("A", &text), vec![b"one".to_vec(), vec![7; 100]]);
        assert_eq!(decode_all("B", &text), vec![b"two".to_vec()]);
        assert!(decode_all("A", "-----BEGIN A-----\n!!!\n-----END A-----\n").is_empty());
    }
}
