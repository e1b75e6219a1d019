//! Query strings for the backend.

/// `key=value` pairs, encoded.
pub fn encode<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let encoded = pairs
        .into_iter()
        .map(|(key, value)| format!("{}={}", escape(key), escape(value)));
    encoded.collect::<Vec<_>>().join("&")
}

pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request_info::query_pairs;

    #[test]
    fn what_is_encoded_decodes_the_same() {
        let pairs = [("command", "sh -c 'a&b=c+d'"), ("command", "é%"), ("tty", "1")];
        let text = encode(pairs);
        let decoded: Vec<_> = query_pairs(&text).collect();
        assert_eq!(decoded, pairs.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }
}
