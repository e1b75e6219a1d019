//! The administrator's kubeconfig: what the master published, made to point at the forwarded port.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// The first key of a kubeconfig, and the last one; until that has come, the guest is still writing.
const START: &str = "apiVersion:";
const KEY: &str = "client-key-data:";

/// The last complete kubeconfig in what came through the port (a master that reboots writes another one), with
/// `server:` pointing at 127.0.0.1:`port`.
pub fn rewrite(published: &str, port: u16) -> Option<String> {
    let text = &published[published.rfind(START)?..];
    if !text.ends_with('\n') || !text.contains(KEY) {
        return None;
    }
    let mut rewritten = String::new();
    let mut servers = 0;
    for line in text.lines() {
        match line.split_once("server: ") {
            Some((indent, _)) => {
                servers += 1;
                rewritten.push_str(&format!("{indent}server: \"https://127.0.0.1:{port}\"\n"));
            }
            None => rewritten.push_str(&format!("{line}\n")),
        }
    }
    (servers == 1).then_some(rewritten)
}

/// Writes it for its owner only, whole or not at all.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&partial)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "apiVersion: \"v1\"\nclusters:\n- cluster:\n    server: \"https://10.0.2.15:6443\"\n  name: k\nusers:\n- name: a\n  user:\n    client-key-data: AA==\n";

    #[test]
    fn the_server_is_replaced_and_half_a_file_is_not_taken() {
        let got = rewrite(TEXT, 40001).unwrap();
        assert_eq!(got, TEXT.replace("10.0.2.15:6443", "127.0.0.1:40001"));
        for end in 0..TEXT.len() {
            assert_eq!(rewrite(&TEXT[..end], 1), None, "cut at {end}");
        }
        let twice = format!("{}{}", TEXT.replace("AA==", "OLD="), TEXT);
        assert_eq!(rewrite(&twice, 40001).unwrap(), got);
        assert_eq!(
            rewrite(&format!("{TEXT}apiVersion: \"v1\"\n"), 1),
            None,
            "the second is still coming"
        );
    }
}
