//! Drivers for the devices that are there, and for those that come later.

use super::Loader;
use crate::console;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_KOBJECT_UEVENT};
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::symlink,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
};

/// The kernel's multicast group of uevents (not udev's).
const KERNEL_EVENTS: u32 = 1;

/// The aliases of all devices, each once.
fn devices_present() -> BTreeSet<String> {
    let mut aliases = BTreeSet::new();
    for bus in children(Path::new("/sys/bus")) {
        for device in children(&bus.join("devices")) {
            if let Ok(alias) = fs::read_to_string(device.join("modalias")) {
                aliases.insert(alias.trim().to_owned());
            }
        }
    }
    aliases
}

/// Loads the drivers of all devices present, several at a time: some take long to find out what they drive.
pub fn load_for_devices_present(loader: &Loader) {
    const AT_A_TIME: usize = 4;
    let aliases = Mutex::new(devices_present().into_iter());
    let next = || aliases.lock().unwrap_or_else(PoisonError::into_inner).next();
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(alias) = next() {
                    load(loader, &alias);
                }
            });
        }
    });
}

fn children(dir: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

/// Gives each virtio port its name under /dev/virtio-ports, as udev's rule does elsewhere.
pub fn name_virtio_ports() {
    for port in children(Path::new("/sys/class/virtio-ports")) {
        let Ok(name) = fs::read_to_string(port.join("name")) else {
            continue;
        };
        let (name, Some(device)) = (name.trim(), port.file_name()) else {
            continue;
        };
        if name.is_empty() || name.contains('/') {
            continue;
        }
        let link = Path::new("/dev/virtio-ports").join(name);
        let made = fs::create_dir_all("/dev/virtio-ports")
            .and_then(|()| symlink(Path::new("..").join(device), &link));
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                console::say(format_args!("{}: {error}", link.display()));
            }
            _ => {}
        }
    }
}

/// The kernel's announcements of devices.
pub struct Listener(Socket);

impl Listener {
    /// Listens from now on: open it before looking at the devices present, and none is missed.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_KOBJECT_UEVENT)?;
        socket.bind(&SocketAddr::new(0, KERNEL_EVENTS))?;
        Ok(Self(socket))
    }

    /// Loads drivers for devices as they appear. Returns only when the socket fails.
    pub fn serve(&self, loader: &Loader) -> io::Result<()> {
        loop {
            let (message, _) = match self.0.recv_from_full() {
                // Events were lost in a storm: look at everything again.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    devices_present().iter().for_each(|alias| load(loader, alias));
                    continue;
                }
                result => result?,
            };
            let fields = added_device(&message);
            if let Some(alias) = fields.modalias {
                load(loader, alias);
            }
            if fields.subsystem == Some("virtio-ports") {
                name_virtio_ports();
            }
        }
    }
}

fn load(loader: &Loader, alias: &str) {
    if let Err(error) = loader.load_for_device(alias) {
        console::say(format_args!("driver for {alias}: {error}"));
    }
}

#[derive(Default, Debug, PartialEq, Eq)]
struct AddedDevice<'a> {
    modalias: Option<&'a str>,
    subsystem: Option<&'a str>,
}

/// What an `add` event says; empty for other events. Fields are separated by NUL.
fn added_device(message: &[u8]) -> AddedDevice<'_> {
    let fields: Vec<&str> = message
        .split(|&b| b == 0)
        .filter_map(|field| std::str::from_utf8(field).ok())
        .collect();
    let value = |name: &str| {
        fields
            .iter()
            .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    };
    if value("ACTION") == Some("add") {
        AddedDevice {
            modalias: value("MODALIAS"),
            subsystem: value("SUBSYSTEM"),
        }
    } else {
        AddedDevice::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_added_devices_count() {
        let add = b"add@/devices/x\0ACTION=add\0SUBSYSTEM=virtio\0MODALIAS=virtio:d1v2\0SEQNUM=7\0";
        assert_eq!(
            added_device(add),
            AddedDevice {
                modalias: Some("virtio:d1v2"),
                subsystem: Some("virtio")
            }
        );
        assert_eq!(
            added_device(b"remove@/x\0ACTION=remove\0MODALIAS=virtio:d1v2\0"),
            AddedDevice::default()
        );
        assert_eq!(added_device(b"\xff\0"), AddedDevice::default());
    }
}
