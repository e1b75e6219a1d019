//! A watchdog over a system on trial: what hangs before it was found good is restarted by the hardware, or by the
//! kernel's own timer where there is none (Documentation/watchdog/watchdog-api.rst).

use crate::{console, modules::Loader, sys::watchdog};
use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

const DEVICE: &str = "/dev/watchdog";
const SOFTWARE: &str = "softdog";
/// Longer than the slowest turn of the machine's loop, its shutdown included.
const TIMEOUT: Duration = Duration::from_secs(180);
/// Without this byte before it, closing the device is no end.
const DISARM: &[u8] = b"V";

pub struct Watchdog {
    path: PathBuf,
    device: File,
}

impl Watchdog {
    /// Arms it. `drivers_loaded`: hardware without a driver has had its chance.
    pub fn start(drivers_loaded: bool) -> Option<Self> {
        let path = Path::new(DEVICE);
        if !path.exists() {
            if !drivers_loaded {
                return None;
            }
            let loaded = Loader::of_running_kernel().and_then(|loader| loader.load(SOFTWARE));
            if let Err(error) = loaded {
                console::say(format_args!("watchdog: {error}"));
                return None;
            }
        }
        match Self::over(path) {
            Ok(watchdog) => {
                console::say(format_args!(
                    "watchdog: restarts this system on trial if it hangs for {} s",
                    TIMEOUT.as_secs()
                ));
                Some(watchdog)
            }
            Err(error) => {
                console::say(format_args!("watchdog: {DEVICE}: {error}"));
                None
            }
        }
    }

    fn over(path: &Path) -> io::Result<Self> {
        let device = File::options().write(true).open(path)?;
        // A device that has one timeout only keeps it.
        let _ = watchdog::set_timeout(&device, TIMEOUT);
        Ok(Self {
            path: path.to_owned(),
            device,
        })
    }

    /// To be done again and again.
    pub fn pet(&mut self) {
        self.write(b"\0");
    }

    pub fn disarm(mut self) {
        self.write(DISARM);
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Err(error) = self.device.write_all(bytes) {
            console::say(format_args!("watchdog: {}: {error}", self.path.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_is_announced() {
        let path = std::env::temp_dir().join(format!("init-watchdog-{}", std::process::id()));
        std::fs::write(&path, b"").unwrap();
        let mut watchdog = Watchdog::over(&path).unwrap();
        watchdog.pet();
        watchdog.pet();
        watchdog.disarm();
        assert_eq!(std::fs::read(&path).unwrap(), b"\0\0V");
        std::fs::remove_file(&path).unwrap();
    }
}
