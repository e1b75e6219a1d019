//! QEMU's machine protocol (QMP): just enough to press the power button.

use serde_json::{Value, json};
use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Presses the ACPI power button.
pub fn power_button(socket: &Path) -> io::Result<()> {
    let mut monitor = Monitor::connect(socket)?;
    monitor.execute("qmp_capabilities")?;
    monitor.execute("system_powerdown")
}

struct Monitor {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Monitor {
    fn connect(socket: &Path) -> io::Result<Self> {
        let writer = UnixStream::connect(socket)?;
        writer.set_read_timeout(Some(ANSWER_LIMIT))?;
        let mut monitor = Self {
            reader: BufReader::new(writer.try_clone()?),
            writer,
        };
        monitor.message()?;
        Ok(monitor)
    }

    fn execute(&mut self, command: &str) -> io::Result<()> {
        self.writer
            .write_all(format!("{}\n", json!({ "execute": command })).as_bytes())?;
        loop {
            let message = self.message()?;
            if let Some(error) = message.get("error") {
                return Err(io::Error::other(format!(
                    "{command}: {}",
                    error["desc"].as_str().unwrap_or("refused")
                )));
            }
            // Events come in between.
            if message.get("return").is_some() {
                return Ok(());
            }
        }
    }

    fn message(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(io::Error::other)
    }
}
