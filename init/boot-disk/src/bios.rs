//! GRUB's way from the BIOS to its core, as grub-install sets it up: the first sector knows the core's first sector,
//! and that one lists where the rest is.

use crate::boot_config::BootError;

const SECTOR: usize = 512;
/// GRUB's `GRUB_BOOT_MACHINE_KERNEL_SECTOR`.
const KERNEL_SECTOR: usize = 0x5c;
/// GRUB's `GRUB_BOOT_MACHINE_DRIVE_CHECK`: a jump that two no-operations replace for disks with a sane BIOS.
const DRIVE_CHECK: usize = 0x66;
/// Code ends where the disk signature and the MBR's partition table begin.
const CODE_END: usize = 440;
const PARTITIONS: usize = 446;
/// The last block list entry of the core's first sector: first sector (8 bytes), count (2), segment (2).
const BLOCK_LIST: usize = 0x1f4;
/// GRUB's `GRUB_BOOT_MACHINE_KERNEL_SEG` plus the first sector.
const SEGMENT: u16 = 0x820;

/// The protective MBR of a GPT disk of so many sectors, with the code that loads the core at `core`.
pub fn boot_sector(code: &[u8], core: u64, sectors: u64) -> Result<[u8; SECTOR], BootError> {
    let mut sector = [0; SECTOR];
    let code = code.get(..CODE_END).ok_or(BootError::Loader("boot sector"))?;
    sector[..CODE_END].copy_from_slice(code);
    sector[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&core.to_le_bytes());
    sector[DRIVE_CHECK..DRIVE_CHECK + 2].fill(0x90);
    let length = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    let protective: [u8; 8] = [0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff];
    sector[PARTITIONS..PARTITIONS + 8].copy_from_slice(&protective);
    sector[PARTITIONS + 8..PARTITIONS + 12].copy_from_slice(&1_u32.to_le_bytes());
    sector[PARTITIONS + 12..PARTITIONS + 16].copy_from_slice(&length.to_le_bytes());
    sector[SECTOR - 2..].copy_from_slice(&[0x55, 0xaa]);
    Ok(sector)
}

/// The core as it lies on a disk from sector `start` on.
pub fn core_at(core: &[u8], start: u64) -> Result<Vec<u8>, BootError> {
    let mut core = core.to_vec();
    core.resize(core.len().next_multiple_of(SECTOR), 0);
    let rest = u16::try_from(core.len() / SECTOR)
        .ok()
        .and_then(|sectors| sectors.checked_sub(1))
        .filter(|rest| *rest > 0)
        .ok_or(BootError::Loader("core"))?;
    core[BLOCK_LIST..BLOCK_LIST + 8].copy_from_slice(&(start + 1).to_le_bytes());
    core[BLOCK_LIST + 8..BLOCK_LIST + 10].copy_from_slice(&rest.to_le_bytes());
    core[BLOCK_LIST + 10..BLOCK_LIST + 12].copy_from_slice(&SEGMENT.to_le_bytes());
    Ok(core)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_lists_its_own_rest() {
        let core = core_at(&[1; 1025], 2048).unwrap();
        assert_eq!(core.len(), 1536);
        assert_eq!(core[0x1f4..0x1fc], 2049_u64.to_le_bytes());
        assert_eq!(core[0x1fc..0x200], [2, 0, 0x20, 0x08]);
        assert!(core_at(&[1; 100], 2048).is_err());
    }
}
