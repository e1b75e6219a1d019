//! The cgroup v2 device filter: an eBPF program that says which devices a cgroup may open or make.

use super::check;
use nix::libc;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// One allowed device; no number means any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub block: bool,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// `ACCESS_…` bits.
    pub access: u32,
}

pub const ACCESS_MKNOD: u32 = 1;
pub const ACCESS_READ: u32 = 2;
pub const ACCESS_WRITE: u32 = 4;
pub const ACCESS_ALL: u32 = 7;

/// Devices every container may use (OCI runtime-spec, "Default Devices"), pseudo
/// terminals, and making (but not opening) any node.
pub const DEFAULT_RULES: [Rule; 10] = [
    Rule {
        block: false,
        major: None,
        minor: None,
        access: ACCESS_MKNOD,
    },
    Rule {
        block: true,
        major: None,
        minor: None,
        access: ACCESS_MKNOD,
    },
    Rule {
        block: false,
        major: Some(1),
        minor: Some(3),
        access: ACCESS_ALL,
    },
    Rule {
        block: false,
        major: Some(1),
        minor: Some(5),
        access: ACCESS_ALL,
    },
    Rule {
        block: false,
        major: Some(1),
        minor: Some(7),
        access: ACCESS_ALL,
    },
    Rule {
        block: false,
        major: Some(1),
        minor: Some(8),
        access: ACCESS_ALL,
    },
    Rule {
        block: false,
        major: Some(1),
        minor: Some(9),
        access: ACCESS_ALL,
    },
    Rule {
        block: false,
        major: Some(5),
        minor: Some(0),
        access: ACCESS_ALL,
    },
    Rule {
        block: false,
        major: Some(5),
        minor: Some(2),
        access: ACCESS_ALL,
    },
    Rule {
        block: false,
        major: Some(136),
        minor: None,
        access: ACCESS_ALL,
    },
];

/// An eBPF instruction as the kernel lays it out.
fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = immediate.to_le_bytes();
    u64::from_le_bytes([code, destination | source << 4, low, high, a, b, c, d])
}

const LOAD_WORD: u8 = 0x61;
const MOVE_IMMEDIATE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND_IMMEDIATE: u8 = 0x57;
const SHIFT_RIGHT_IMMEDIATE: u8 = 0x77;
const JUMP_NOT_EQUAL_IMMEDIATE: u8 = 0x55;
const EXIT: u8 = 0x95;

/// The program: the context holds access << 16 | type, major, minor.
fn assemble(rules: &[Rule]) -> Vec<u64> {
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE_REGISTER, 3, 2, 0, 0),
        instruction(AND_IMMEDIATE, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_IMMEDIATE, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        // BPF_DEVCG_DEV_BLOCK is 1, BPF_DEVCG_DEV_CHAR 2.
        let mut tests = vec![(2, if rule.block { 1 } else { 2 })];
        tests.extend(rule.major.map(|major| (4, major)));
        tests.extend(rule.minor.map(|minor| (5, minor)));
        let denied = !rule.access & ACCESS_ALL;
        let access = [
            instruction(MOVE_REGISTER, 0, 3, 0, 0),
            instruction(AND_IMMEDIATE, 0, 0, 0, denied as i32),
            instruction(JUMP_NOT_EQUAL_IMMEDIATE, 0, 0, 2, 0),
        ];
        let accept = [
            instruction(MOVE_IMMEDIATE, 0, 0, 0, 1),
            instruction(EXIT, 0, 0, 0, 0),
        ];
        let mut remaining = tests.len() + access.len() + accept.len();
        for (register, value) in tests {
            remaining -= 1;
            program.push(instruction(
                JUMP_NOT_EQUAL_IMMEDIATE,
                register,
                0,
                remaining as i16,
                value as i32,
            ));
        }
        program.extend(access);
        program.extend(accept);
    }
    program.extend([
        instruction(MOVE_IMMEDIATE, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    program
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i64> {
    // SAFETY: the attributes are plain old data of the size given, alive across the
    // call, and the pointers inside point to buffers that outlive it too.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    check(result).map(|()| result)
}

/// Allows the cgroup these devices and no others. It ends with the cgroup.
pub fn attach(cgroup: &Path, rules: &[Rule]) -> io::Result<()> {
    let program = assemble(rules);
    let license = c"Apache-2.0";
    let load = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    let loaded = bpf(BPF_PROG_LOAD, &load)?;
    // SAFETY: BPF_PROG_LOAD returned a new descriptor that nothing else owns.
    let loaded = unsafe { OwnedFd::from_raw_fd(loaded as i32) };
    let folder = File::open(cgroup)?;
    let attach = AttachAttributes {
        target: folder.as_raw_fd() as u32,
        program: loaded.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attach).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would, for the instructions it uses.
    fn allows(program: &[u64], block: bool, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | if block { 1 } else { 2 }, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0;
        loop {
            let [code, registers_used, low, high, a, b, c, d] = program[at].to_le_bytes();
            let (destination, source) = (usize::from(registers_used & 15), usize::from(registers_used >> 4));
            let offset = i16::from_le_bytes([low, high]);
            let immediate = i32::from_le_bytes([a, b, c, d]) as u32 as u64;
            match code {
                LOAD_WORD => registers[destination] = u64::from(context[offset as usize / 4]),
                MOVE_IMMEDIATE => registers[destination] = immediate,
                MOVE_REGISTER => registers[destination] = registers[source],
                AND_IMMEDIATE => registers[destination] &= immediate,
                SHIFT_RIGHT_IMMEDIATE => registers[destination] >>= immediate,
                JUMP_NOT_EQUAL_IMMEDIATE => {
                    if registers[destination] != immediate {
                        at = (at as i64 + i64::from(offset)) as usize;
                    }
                }
                EXIT => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
            at += 1;
        }
    }

    #[test]
    fn only_the_listed_devices_can_be_opened() {
        let mut rules = DEFAULT_RULES.to_vec();
        rules.push(Rule {
            block: true,
            major: Some(8),
            minor: Some(1),
            access: ACCESS_READ,
        });
        let program = assemble(&rules);
        for (block, access, major, minor, expected) in [
            (false, ACCESS_READ | ACCESS_WRITE, 1, 3, true),
            (false, ACCESS_READ, 136, 77, true),
            (false, ACCESS_READ, 1, 1, false),
            (true, ACCESS_MKNOD, 8, 0, true),
            (true, ACCESS_READ, 8, 0, false),
            (true, ACCESS_READ, 8, 1, true),
            (true, ACCESS_READ | ACCESS_WRITE, 8, 1, false),
            (true, ACCESS_READ, 1, 3, false),
        ] {
            assert_eq!(
                allows(&program, block, access, major, minor),
                expected,
                "{block} {access} {major}:{minor}"
            );
        }
    }
}
