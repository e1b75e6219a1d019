//! A server with an empty disk and our ISO in its drive: it installs itself, restarts, and goes on from its disk.

use std::fs::{self, File};
use std::process::Command;

use support::{BOOT, Program, TempDir, command, eventually, output};

const DISK_BYTES: u64 = 4 << 30;

/// The firmware prefers the disk, as servers do; it is empty at first, so the first start is from the CD.
#[test]
fn a_machine_installs_itself_from_the_iso_and_goes_on_from_its_disk() {
    let dir = TempDir::new("install");
    let mut build = command("image");
    build.args(["build", "--role", "worker", "--format", "iso"]);
    build.args(["--cmdline", "ironlet.install=auto ironlet.hostname=metal-1"]);
    output(build.arg("--out").arg(dir.path()));
    let disk = dir.join("disk");
    File::create(&disk)
        .and_then(|file| file.set_len(DISK_BYTES))
        .expect("an empty disk");

    let console = dir.join("console");
    let mut machine = Command::new("qemu-system-x86_64");
    machine.args([
        "-machine",
        "q35",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max,-cx16",
        "-smp",
        "2",
    ]);
    machine.args(["-m", "768", "-display", "none", "-nic", "user"]);
    machine.args([
        "-device",
        "ahci,id=sata",
        "-device",
        "ide-hd,drive=disk,bus=sata.0,bootindex=0",
    ]);
    machine.args(["-device", "ide-cd,drive=cd,bus=sata.1,bootindex=1"]);
    machine
        .arg("-drive")
        .arg(format!("if=none,id=disk,format=raw,file={}", disk.display()));
    let iso = dir.join("ironlet.iso");
    machine.arg("-drive").arg(format!(
        "if=none,id=cd,media=cdrom,readonly=on,file={}",
        iso.display()
    ));
    machine.arg("-serial").arg(format!("file:{}", console.display()));
    let mut machine = Program::start(&mut machine, dir.join("qemu.log"));

    let mut shows = |text: &str| {
        eventually(&format!("the console shows {text:?}"), BOOT, || {
            machine.check()?;
            let console = fs::read(&console).unwrap_or_default();
            let console = String::from_utf8_lossy(&console).into_owned();
            if console.contains(text) {
                Ok(())
            } else {
                Err(console)
            }
        });
    };
    shows("INSTALL: writing to /dev/sda");
    shows("INSTALL: /dev/sda: written and read back");
    shows("slot A of the installed systems");
    shows("state disk: /dev/sda3 is /var");
    shows("host name metal-1");
}
