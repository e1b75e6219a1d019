//! Crediting saved randomness to the kernel's pool (random(4)).
#![allow(unsafe_code)]

use rustix::fd::AsRawFd;
use std::{fs::File, io};

/// The seed's size: the pool holds 256 bits.
pub const SEED_BYTES: usize = 32;

/// `struct rand_pool_info` of linux/random.h with its buffer.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    size: i32,
    seed: [u8; SEED_BYTES],
}

const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;

/// Adds the seed to the pool and counts it as full entropy.
pub fn credit(seed: [u8; SEED_BYTES]) -> io::Result<()> {
    let random = File::options().write(true).open("/dev/urandom")?;
    let info = PoolInfo {
        entropy_bits: SEED_BYTES as i32 * 8,
        size: SEED_BYTES as i32,
        seed,
    };
    // SAFETY: `info` is a `struct rand_pool_info` whose `buf` holds `buf_size` bytes.
    if unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &info) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
