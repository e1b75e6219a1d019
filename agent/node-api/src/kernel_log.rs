//! The kernel's messages, as /dev/kmsg hands them out: one record a read (Documentation/ABI/testing/dev-kmsg).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tonic::Status;

use crate::v1::{KernelMessage, KernelMessages};

const PATH: &str = "/dev/kmsg";
/// The kernel hands out no longer records (CONSOLE_EXT_LOG_MAX).
const LONGEST: usize = 8192;
const BATCH: usize = 500;
const LOOK: Duration = Duration::from_millis(250);

pub struct KernelLog(File);

impl KernelLog {
    /// Begins at the oldest message that is kept.
    pub fn open() -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(PATH)?;
        Ok(Self(file))
    }

    /// What there is to read at once.
    fn available(&mut self) -> io::Result<Vec<KernelMessage>> {
        let mut messages = Vec::new();
        let mut record = [0; LONGEST];
        while messages.len() < BATCH {
            match self.0.read(&mut record) {
                Ok(0) => break,
                Ok(length) => messages.extend(parse(&String::from_utf8_lossy(&record[..length]))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Overwritten before it was read; the next read has the oldest that is left.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(messages)
    }
}

pub async fn send(mut log: KernelLog, follow: bool, to: Sender<Result<KernelMessages, Status>>) {
    loop {
        let message = match log.available() {
            Ok(messages) if messages.is_empty() && follow => {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => continue,
                    () = to.closed() => return,
                }
            }
            Ok(messages) if messages.is_empty() => return,
            Ok(messages) => Ok(KernelMessages { messages }),
            Err(error) => Err(Status::internal(format!("{PATH}: {error}"))),
        };
        if to.send(message).await.is_err() {
            return;
        }
    }
}

/// `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,…];TEXT`, then lines of properties that begin with a blank.
fn parse(record: &str) -> Option<KernelMessage> {
    let (prefix, rest) = record.split_once(';')?;
    let mut fields = prefix.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let microseconds = fields.nth(1)?.parse().ok()?;
    let text = rest.lines().next().unwrap_or_default();
    Some(KernelMessage {
        microseconds,
        level: priority & 7,
        text: unescape(text),
    })
}

/// The kernel writes what is not printable, and backslashes, as `\xHH`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after
            .strip_prefix(b"x")
            .and_then(|hex| std::str::from_utf8(hex.get(..2)?).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(code) if byte == b'\\' => {
                bytes.push(code);
                rest = &after[3..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read() {
        let message =
            parse("30,1234,5678900,-;virtio_net virtio0: up\\x5cdown\n SUBSYSTEM=virtio\n").unwrap();
        assert_eq!(
            message,
            KernelMessage {
                microseconds: 5_678_900,
                level: 6,
                text: "virtio_net virtio0: up\\down".into()
            }
        );
        assert_eq!(parse("6,1,2,-,caller=T1;a;b\n").unwrap().text, "a;b");
        assert_eq!(unescape("caf\\xc3\\xa9 \\x"), "café \\x");
        assert_eq!(parse("nonsense"), None);
    }
}
