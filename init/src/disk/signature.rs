//! What a disk holds, from its first bytes: nothing may be formatted that is not provably blank. Pure.

/// The part that is looked at: partition tables, and the super-blocks of all usual file systems, are within.
pub const LOOK_BYTES: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Blank,
    /// ext2, ext3 or ext4, with its label.
    Ext {
        label: String,
    },
    Other(&'static str),
}

/// Magic bytes, where they are, and whose they are. What is not known here is "data".
const KNOWN: &[(usize, &[u8], &str)] = &[
    (512, b"EFI PART", "a GPT partition table"),
    (0, b"XFSB", "an XFS file system"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0, b"hsqs", "a squashfs image"),
    (32769, b"CD001", "an ISO 9660 image"),
    (65600, b"_BHRfS_M", "a Btrfs file system"),
    (4086, b"SWAPSPACE2", "swap space"),
    (536, b"LVM2 001", "an LVM volume"),
    (4096, b"\xfc\x4e\x2b\xa9", "a RAID member"),
    (3, b"NTFS    ", "an NTFS file system"),
    (82, b"FAT32   ", "a FAT file system"),
    (1024, b"\xe2\xe1\xf5\xe0", "an EROFS image"),
    (510, b"\x55\xaa", "a partition table or boot sector"),
];

const EXT_MAGIC: (usize, &[u8]) = (1024 + 56, b"\x53\xef");
const EXT_LABEL: usize = 1024 + 120;

pub fn identify(start: &[u8]) -> Content {
    let holds = |offset: usize, magic: &[u8]| start.get(offset..offset + magic.len()) == Some(magic);
    if holds(EXT_MAGIC.0, EXT_MAGIC.1) {
        let label = start.get(EXT_LABEL..EXT_LABEL + 16).unwrap_or(&[]);
        let label = label.split(|&b| b == 0).next().unwrap_or(&[]);
        return Content::Ext {
            label: String::from_utf8_lossy(label).into_owned(),
        };
    }
    if let Some((_, _, name)) = KNOWN.iter().find(|(offset, magic, _)| holds(*offset, magic)) {
        return Content::Other(name);
    }
    if start.iter().all(|&b| b == 0) {
        Content::Blank
    } else {
        Content::Other("data")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_content_is_named() {
        for (offset, magic, name) in KNOWN {
            let mut disk = vec![0; LOOK_BYTES];
            disk[*offset..offset + magic.len()].copy_from_slice(magic);
            assert_eq!(identify(&disk), Content::Other(name));
        }
    }

    #[test]
    fn ext4_is_known_with_its_label() {
        let mut disk = vec![0; LOOK_BYTES];
        disk[1080..1082].copy_from_slice(&[0x53, 0xef]);
        disk[1144..1157].copy_from_slice(b"IRONLET-STATE");
        assert_eq!(
            identify(&disk),
            Content::Ext {
                label: "IRONLET-STATE".to_owned()
            }
        );
    }

    #[test]
    fn one_byte_that_is_not_zero_is_data() {
        assert_eq!(identify(&vec![0; LOOK_BYTES]), Content::Blank);
        for at in [0, 511, 4095, LOOK_BYTES - 1] {
            let mut disk = vec![0; LOOK_BYTES];
            disk[at] = 1;
            assert_eq!(identify(&disk), Content::Other("data"), "{at}");
        }
    }

    #[test]
    fn a_tiny_disk_is_no_reason_to_panic() {
        for length in [0, 1, 511, 1081, 1100] {
            assert_eq!(identify(&vec![0; length]), Content::Blank);
        }
    }
}
