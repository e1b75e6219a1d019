//! What GRUB does, on installed disks and on media: texts.

use std::collections::BTreeMap;

/// A system: the kernel and what it unpacks.
pub const SYSTEM_FILES: [&str; 2] = ["vmlinuz", "initramfs"];
/// Their names in a slot: 8.3, since the crate for FAT writes long names for `.` and `..`, too, if it may.
pub const SLOT_FILES: [&str; 2] = ["vmlinuz", "initrd"];
/// An archive that holds only `vmlinuz`: media hand it to the kernel as a part of the initramfs, since the installer
/// could not get at the running kernel's file otherwise. GRUB's own way to do that (`newc:`) writes names without
/// their final NUL, which Linux refuses since 6.12.
pub const KERNEL: &str = "kernel.img";

/// [`GRUB_CONFIG`] counts down from it.
const TRIES: u32 = 2;

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
    #[error("boot environment: {0} bytes are more than GRUB's block holds ({ENVIRONMENT})")]
    Environment(usize),
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
set trial=
if [ -n "$next" ]; then
  if [ "$tries" = 2 ]; then
    set boot="$next"
    set trial=ironlet.trial=yes
    set tries=1
    save_env tries
  elif [ "$tries" = 1 ]; then
    set boot="$next"
    set trial=ironlet.trial=yes
    set tries=0
    save_env tries
  fi
fi
if [ ! -f "/$boot/initrd" ]; then
  set boot=factory
  set trial=
fi
function start {
  source "/$1/boot.cfg"
  linux "/$1/vmlinuz" $cmdline ironlet.slot=$1 $2
  initrd "/$1/initrd"
}
menuentry "Ironlet" {
  start "$boot" $trial
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

/// GRUB's variables that last: which system boots (`slot`), and which one is tried how often (`next`, `tries`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    pub fn parse(block: &str) -> Self {
        let pairs = block.lines().filter(|line| !line.starts_with('#'));
        let pairs = pairs.filter_map(|line| line.split_once('='));
        Self(
            pairs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    /// The block has one size, so that GRUB can write it without knowing the file system.
    pub fn render(&self) -> Result<String, BootError> {
        let mut text = String::from("# GRUB Environment Block\n");
        for (name, value) in &self.0 {
            text += &format!("{name}={value}\n");
        }
        if text.len() > ENVIRONMENT {
            return Err(BootError::Environment(text.len()));
        }
        Ok(format!("{text:#<ENVIRONMENT$}"))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The slot that boots when nothing is on trial.
    pub fn slot(&self) -> &str {
        self.get("slot").unwrap_or("A")
    }

    /// The slot on trial, and how many tries are left.
    pub fn trial(&self) -> Option<(&str, u32)> {
        let tries = self.get("tries").and_then(|tries| tries.parse().ok());
        self.get("next").map(|next| (next, tries.unwrap_or(0)))
    }

    pub fn try_next(&mut self, slot: &str) {
        self.0.insert("next".into(), slot.into());
        self.0.insert("tries".into(), TRIES.to_string());
    }

    pub fn end_trial(&mut self) {
        self.0.remove("next");
        self.0.remove("tries");
    }

    pub fn keep(&mut self, slot: &str) {
        self.0.insert("slot".into(), slot.into());
        self.end_trial();
    }
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
    fn an_environment_block_has_its_size_and_says_what_boots() {
        let mut environment = Environment::default();
        let block = environment.render().unwrap();
        assert_eq!(block.len(), ENVIRONMENT);
        assert!(block.starts_with("# GRUB Environment Block\n##"));
        assert_eq!((environment.slot(), environment.trial()), ("A", None));

        environment.try_next("B");
        let block = environment.render().unwrap();
        assert_eq!(block.len(), ENVIRONMENT);
        assert!(
            block.starts_with("# GRUB Environment Block\nnext=B\ntries=2\n##"),
            "{block}"
        );
        assert_eq!(Environment::parse(&block), environment);
        // As GRUB leaves it after the second try.
        let tried = Environment::parse(&block.replace("tries=2", "tries=0"));
        assert_eq!((tried.slot(), tried.trial()), ("A", Some(("B", 0))));

        environment.keep("B");
        assert_eq!((environment.slot(), environment.trial()), ("B", None));
        // A variable that GRUB unsets by an empty value.
        assert_eq!(Environment::parse("next=\n").trial(), None);
    }
}
