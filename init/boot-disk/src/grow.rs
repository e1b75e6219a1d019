//! A disk that is larger than the image written to it: the state partition takes the rest.

use crate::{Disk, DiskError, MIB, SECTOR, STATE_NAME, at};
use gptman::GPT;
use std::io::{self, SeekFrom};

/// Less than this is not worth a new table of partitions.
const WORTH: u64 = 16 * MIB;

/// Gives the state partition what lies free after it, when it is the last one. Returns its new size when there was
/// something to give. The table's copy at the end of the disk is durable before the one at its start changes, so that
/// a power cut leaves one of them good.
pub fn grow<D: Disk>(
    disk: &mut D,
    mut flush: impl FnMut(&mut D) -> io::Result<()>,
) -> Result<Option<u64>, DiskError> {
    let mut table = GPT::read_from(disk, SECTOR)?;
    let used = table.iter().filter(|(_, entry)| entry.is_used());
    let Some((number, last)) = used.max_by_key(|(_, entry)| entry.ending_lba) else {
        return Ok(None);
    };
    if last.partition_name.as_str() != STATE_NAME {
        return Ok(None);
    }
    let (first, before) = (last.starting_lba, last.ending_lba);
    let size = disk.seek(SeekFrom::End(0)).map_err(at("size"))?;
    table.header.update_from(disk, SECTOR)?;
    let end = table.header.last_usable_lba;
    if size < SECTOR || end < before + WORTH / SECTOR {
        return Ok(None);
    }
    table[number].ending_lba = end;
    let entries: Vec<_> = (1..=table.header.number_of_partition_entries)
        .map(|number| table[number].clone())
        .collect();
    let mut copy = table.header.clone();
    copy.primary_lba = table.header.backup_lba;
    copy.backup_lba = table.header.primary_lba;
    copy.partition_entry_lba = end + 1;
    copy.write_into(disk, SECTOR, &entries)?;
    flush(disk).map_err(at("flush"))?;
    table.write_into(disk)?;
    flush(disk).map_err(at("flush"))?;
    Ok(Some((end + 1 - first) * SECTOR))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Loader, System, install};
    use std::io::{Read, Seek};

    fn disk(size: u64) -> std::fs::File {
        let mut disk = tempfile::tempfile().unwrap();
        disk.set_len(size).unwrap();
        let loader = Loader {
            boot_sector: vec![0xeb; 512],
            core: vec![0xc0; 3000],
            efi: b"MZ".to_vec(),
        };
        let system = System {
            files: [&vec![1], &vec![2]],
            cmdline: "",
        };
        install(&mut disk, &loader, &system, [7; 16], |disk| disk.sync_all()).unwrap();
        disk
    }

    fn state_size(table: &GPT) -> u64 {
        let state = table
            .iter()
            .find(|(_, entry)| entry.partition_name.as_str() == STATE_NAME);
        state.unwrap().1.size().unwrap() * SECTOR
    }

    #[test]
    fn the_state_takes_what_the_disk_has_more_than_the_image() {
        let mut disk = disk(1100 * MIB);
        let mut sector = [0; 512];
        disk.rewind().unwrap();
        disk.read_exact(&mut sector).unwrap();
        assert_eq!(grow(&mut disk, |disk| disk.sync_all()).unwrap(), None, "it fits");

        disk.set_len(3000 * MIB).unwrap();
        let grown = grow(&mut disk, |disk| disk.sync_all()).unwrap();
        assert!(
            grown.is_some_and(|size| size > 2480 * MIB && size < 2486 * MIB),
            "{grown:?}"
        );
        let table = GPT::find_from(&mut disk).unwrap();
        assert_eq!(Some(state_size(&table)), grown);
        assert_eq!(table.iter().filter(|(_, entry)| entry.is_used()).count(), 3);
        assert_eq!(grow(&mut disk, |disk| disk.sync_all()).unwrap(), None, "done");
        let mut after = [0; 512];
        disk.rewind().unwrap();
        disk.read_exact(&mut after).unwrap();
        assert_eq!(sector, after, "the boot code is untouched");
    }

    #[test]
    fn a_power_cut_leaves_a_table_that_is_good() {
        for cut_after in 0..2 {
            let mut disk = disk(1100 * MIB);
            disk.set_len(2000 * MIB).unwrap();
            let mut flushes = 0;
            let cut = grow(&mut disk, |_| {
                flushes += 1;
                if flushes > cut_after {
                    Err(io::ErrorKind::BrokenPipe.into())
                } else {
                    Ok(())
                }
            });
            assert!(cut.is_err());
            // What was not flushed may be there or not; the other copy has to be whole.
            let place = if cut_after == 0 {
                2000 * MIB - SECTOR
            } else {
                SECTOR
            };
            crate::write_at(&mut disk, place, &[0; 512]).unwrap();
            let table = GPT::find_from(&mut disk).unwrap();
            assert!(state_size(&table) > 500 * MIB);
        }
    }
}
