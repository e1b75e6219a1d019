//! The installed systems as a running machine sees them: which boots, and the idle slot written anew. The system as it
//! was installed has no [`Slot`], so nothing here can write it.

use crate::{
    Disk, DiskError, at,
    boot_config::{Environment, SLOT_FILES},
    esp::put,
    window::Window,
};
use fatfs::{Dir, FileSystem, FsOptions};
use std::{
    fmt,
    io::{self, BufReader, Read, SeekFrom, Write},
};

const ENVIRONMENT: &str = "grub/grubenv";
const CONFIG: &str = "boot.cfg";
/// What a slot holds, in words.
const VERSION: &str = "version";
/// The initramfs has this name until it is known to be whole: GRUB starts no slot without an `initrd`.
const UNPROVEN: &str = "initrd.new";
const CHUNK: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    A,
    B,
}

impl Slot {
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "A" => Some(Self::A),
            "B" => Some(Self::B),
            _ => None,
        }
    }

    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::B => "B",
        })
    }
}

/// The partition of the systems, open. [`Systems::close`] finishes what was written.
pub struct Systems<'a, D: Disk>(FileSystem<Window<'a, D>>);

impl<'a, D: Disk> Systems<'a, D> {
    /// `partition` is the partition itself, from its first byte.
    pub fn open(partition: &'a mut D) -> Result<Self, DiskError> {
        let size = partition.seek(SeekFrom::End(0)).map_err(at("size"))?;
        let options = FsOptions::new().update_accessed_date(false);
        FileSystem::new(Window::new(partition, 0..size), options)
            .map(Self)
            .map_err(at("open"))
    }

    fn root(&self) -> Dir<'_, Window<'a, D>> {
        self.0.root_dir()
    }

    pub fn close(self) -> Result<(), DiskError> {
        self.0.unmount().map_err(at("close"))
    }

    pub fn environment(&self) -> Result<Environment, DiskError> {
        let mut text = String::new();
        let mut file = self.root().open_file(ENVIRONMENT).map_err(at(ENVIRONMENT))?;
        file.read_to_string(&mut text).map_err(at(ENVIRONMENT))?;
        Ok(Environment::parse(&text))
    }

    /// In place: the block is as long as the one before, and GRUB knows where it lies.
    pub fn set_environment(&self, environment: &Environment) -> Result<(), DiskError> {
        let block = environment.render()?;
        let mut file = self.root().open_file(ENVIRONMENT).map_err(at(ENVIRONMENT))?;
        file.write_all(block.as_bytes())
            .and_then(|()| file.flush())
            .map_err(at(ENVIRONMENT))
    }

    /// Whether a slot, or `factory`, has a system to start.
    pub fn is_complete(&self, slot: &str) -> bool {
        let root = self.root();
        let mut files = SLOT_FILES.iter().chain([&CONFIG]);
        files.all(|name| root.open_file(&format!("{slot}/{name}")).is_ok())
    }

    /// What was said of the system when it was written; nothing is known of the installer's.
    pub fn version(&self, slot: &str) -> Option<String> {
        let mut text = String::new();
        let mut file = self.root().open_file(&format!("{slot}/{VERSION}")).ok()?;
        file.read_to_string(&mut text).ok()?;
        Some(text.trim().to_owned())
    }

    /// Removes the system, its way to be started first.
    pub fn clear(&self, slot: Slot) -> Result<(), DiskError> {
        for name in [SLOT_FILES[1], UNPROVEN, SLOT_FILES[0], VERSION] {
            let path = format!("{slot}/{name}");
            match self.root().remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes a cleared slot: a system that does not boot before [`Systems::prove`], with the parameters of the slot
    /// (or `factory`) named `like`.
    pub fn write(
        &self,
        slot: Slot,
        like: &str,
        version: &str,
        files: [&mut dyn Read; SLOT_FILES.len()],
    ) -> Result<(), DiskError> {
        let root = self.root();
        let mut parameters = Vec::new();
        let from = format!("{like}/{CONFIG}");
        let mut file = root.open_file(&from).map_err(at(&from))?;
        file.read_to_end(&mut parameters).map_err(at(&from))?;
        let config = format!("{slot}/{CONFIG}");
        match root.remove(&config) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(config)(error)),
            _ => {}
        }
        put(&root, &config, &mut parameters.as_slice())?;
        put(&root, &format!("{slot}/{VERSION}"), &mut version.as_bytes())?;
        for (name, from) in [SLOT_FILES[0], UNPROVEN].into_iter().zip(files) {
            put(&root, &format!("{slot}/{name}"), from)?;
        }
        Ok(())
    }

    /// Hands what was written to `check`, and makes it bootable.
    pub fn prove<E: From<DiskError>>(
        &self,
        slot: Slot,
        mut check: impl FnMut(usize, &mut dyn Read) -> Result<(), E>,
    ) -> Result<(), E> {
        let root = self.root();
        for (position, name) in [SLOT_FILES[0], UNPROVEN].into_iter().enumerate() {
            let path = format!("{slot}/{name}");
            let file = root.open_file(&path).map_err(at(&path))?;
            check(position, &mut BufReader::with_capacity(CHUNK, file))?;
        }
        let (from, to) = (format!("{slot}/{UNPROVEN}"), format!("{slot}/{}", SLOT_FILES[1]));
        Ok(root.rename(&from, &root, &to).map_err(at(from))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Loader, MIB, SYSTEM, esp};
    use std::io::Cursor;

    fn partition() -> Cursor<Vec<u8>> {
        let mut disk = Cursor::new(vec![0; (SYSTEM.end - SYSTEM.start + MIB) as usize]);
        let loader = Loader {
            boot_sector: vec![],
            core: vec![],
            efi: b"MZ".to_vec(),
        };
        let range = 0..SYSTEM.end - SYSTEM.start;
        let (kernel, initramfs) = (b"old kernel".to_vec(), b"old initramfs".to_vec());
        let files: [&dyn crate::Source; 2] = [&kernel, &initramfs];
        esp::write(&mut disk, range, &loader, files, "set cmdline='ip=dhcp'\n").unwrap();
        disk
    }

    #[test]
    fn the_idle_slot_is_written_and_tried_and_kept() {
        let mut disk = partition();
        let systems = Systems::open(&mut disk).unwrap();
        assert!(systems.is_complete("A") && systems.is_complete("factory"));
        assert!(!systems.is_complete("B"));

        for round in 0..2 {
            systems.clear(Slot::B).unwrap();
            let (kernel, initramfs) = (vec![round; 3000], vec![9; 2_000_000]);
            let files: [&mut dyn Read; 2] = [&mut kernel.as_slice(), &mut initramfs.as_slice()];
            systems.write(Slot::B, "A", "0.2.0", files).unwrap();
            assert!(!systems.is_complete("B"), "nothing boots that is not proven");
            let mut seen = Vec::new();
            systems
                .prove(Slot::B, |_, file| {
                    let mut bytes = Vec::new();
                    file.read_to_end(&mut bytes).map_err(at("read"))?;
                    seen.push(bytes);
                    Ok::<_, DiskError>(())
                })
                .unwrap();
            assert_eq!(seen, [kernel, initramfs]);
            assert!(systems.is_complete("B"));
        }
        assert_eq!(systems.version("B").as_deref(), Some("0.2.0"));
        assert_eq!(systems.version("A"), None);
        let mut environment = systems.environment().unwrap();
        environment.try_next("B");
        systems.set_environment(&environment).unwrap();
        systems.close().unwrap();

        let systems = Systems::open(&mut disk).unwrap();
        assert_eq!(systems.environment().unwrap().trial(), Some(("B", 2)));
        let mut config = String::new();
        systems
            .root()
            .open_file("B/boot.cfg")
            .unwrap()
            .read_to_string(&mut config)
            .unwrap();
        assert_eq!(config, "set cmdline='ip=dhcp'\n");
    }

    #[test]
    fn what_is_not_proven_does_not_boot() {
        let mut disk = partition();
        let systems = Systems::open(&mut disk).unwrap();
        let files: [&mut dyn Read; 2] = [&mut [1_u8].as_slice(), &mut [2_u8].as_slice()];
        systems.write(Slot::B, "factory", "x", files).unwrap();
        let refused = systems.prove(Slot::B, |_, _| Err(DiskError::ReadBack("B/vmlinuz".into())));
        assert!(refused.is_err());
        assert!(!systems.is_complete("B"));
        systems.clear(Slot::A).unwrap();
        assert!(!systems.is_complete("A"));
        assert!(systems.is_complete("factory"), "the installed system stays");
    }
}
