//! What GRUB does, on installed disks and on media: texts.

/// A system: the kernel and what it unpacks.
pub const SYSTEM_FILES: [&str; 2] = ["vmlinuz", "initramfs"];
/// Their names in a slot: 8.3, since the crate for FAT writes long names for `.` and `..`, too, if it may.
pub const SLOT_FILES: [&str; 2] = ["vmlinuz", "initrd"];
/// An archive that holds only `vmlinuz`: media hand it to the kernel as a part of the initramfs, since the installer
/// could not get at the running kernel's file otherwise. GRUB's own way to do that (`newc:`) writes names without
/// their final NUL, which Linux refuses since 6.12.
pub const KERNEL: &str = "kernel.img";

/// The size of GRUB's environment block.
const ENVIRONMENT: usize = 1024;

/// Longer ones the kernel cuts off (`COMMAND_LINE_SIZE` of x86).
const CMDLINE_MAX: usize = 2047;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BootError {
    #[error("GRUB's {0} is not what grub-mkimage makes")]
    Loader(&'static str),
    #[error("kernel parameters: {0:?} cannot be written to a boot configuration")]
    Character(char),
    #[error("kernel parameters: {0} bytes are more than the kernel takes ({CMDLINE_MAX})")]
    Long(usize),
}

/// The menu of an installed disk. `next` is a slot to be tried `tries` times; the node clears it when it is Ready, and
/// makes it `slot`. A slot without a kernel leads to the system as it was installed.
pub const GRUB_CONFIG: &str = r#"serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set timeout=2
set slot=A
load_env
set boot="$slot"
if [ -n "$next" ]; then
  if [ "$tries" = 2 ]; then
    set boot="$next"
    set tries=1
    save_env tries
  elif [ "$tries" = 1 ]; then
    set boot="$next"
    set tries=0
    save_env tries
  fi
fi
if [ ! -f "/$boot/initrd" ]; then
  set boot=factory
fi
function start {
  source "/$1/boot.cfg"
  linux "/$1/vmlinuz" $cmdline ironlet.slot=$1
  initrd "/$1/initrd"
}
menuentry "Ironlet" {
  start "$boot"
}
menuentry "Ironlet, slot A" {
  start A
}
menuentry "Ironlet, slot B" {
  start B
}
menuentry "Ironlet, as installed" {
  start factory
}
"#;

/// The part of the menu that differs from slot to slot.
pub fn slot_config(cmdline: &str) -> Result<String, BootError> {
    if cmdline.len() > CMDLINE_MAX {
        return Err(BootError::Long(cmdline.len()));
    }
    Ok(format!("set cmdline={}\n", quoted(cmdline)?))
}

/// GRUB commands that boot the system below `directory` of a medium, whose kernel is in [`KERNEL`].
pub fn loader_commands(directory: &str, cmdline: &str) -> Result<String, BootError> {
    quoted(cmdline)?;
    let [kernel, initramfs] = SYSTEM_FILES;
    Ok(format!(
        "loopback kernel {directory}/{KERNEL}\nlinux (kernel)/{kernel} {cmdline}\n\
         initrd {directory}/{KERNEL} {directory}/{initramfs}\n"
    ))
}

fn quoted(text: &str) -> Result<String, BootError> {
    let special = |c: char| {
        matches!(
            c,
            '\'' | '"' | '\\' | '$' | ';' | '{' | '}' | '|' | '&' | '<' | '>' | '#'
        )
    };
    match text.chars().find(|c| special(*c) || c.is_control()) {
        Some(character) => Err(BootError::Character(character)),
        None => Ok(format!("'{text}'")),
    }
}

pub fn empty_environment() -> String {
    format!("{:#<ENVIRONMENT$}", "# GRUB Environment Block\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_cannot_become_commands() {
        assert_eq!(
            slot_config("ip=dhcp ironlet.token=a.b").unwrap(),
            "set cmdline='ip=dhcp ironlet.token=a.b'\n"
        );
        assert_eq!(slot_config("a'; reboot"), Err(BootError::Character('\'')));
        assert_eq!(loader_commands("/boot", "a\nb"), Err(BootError::Character('\n')));
        assert_eq!(slot_config(&"x".repeat(3000)), Err(BootError::Long(3000)));
    }

    #[test]
    fn an_environment_block_has_its_size() {
        let block = empty_environment();
        assert_eq!(block.len(), ENVIRONMENT);
        assert!(block.starts_with("# GRUB Environment Block\n##"));
    }
}
