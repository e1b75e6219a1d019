//! A machine's system replaced through its node API: the partition is a file, the boot loader is this test.

mod machine_api;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use boot_disk::{Environment, Loader, System, Systems};
use machine_api::{SOON, World, ironctl};
use serde_json::{Value, json};
use support::{eventually, output};

const MIB: u64 = 1 << 20;

/// An installed disk's partition of systems, as a file of its own.
fn partition(directory: &Path) -> PathBuf {
    let path = directory.join("disk");
    let mut disk = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .expect("a disk");
    disk.set_len(1100 * MIB).expect("its size");
    let loader = Loader {
        boot_sector: vec![0; 512],
        core: vec![1; 3000],
        efi: vec![2; 100],
    };
    let (kernel, initramfs) = (b"old kernel".to_vec(), b"old initramfs".to_vec());
    let system = System {
        files: [&kernel, &initramfs],
        cmdline: "console=ttyS0 ironlet.hostname=node-1",
    };
    boot_disk::install(&mut disk, &loader, &system, [7; 16], |disk| disk.sync_all())
        .expect("an installed disk");
    let partition = directory.join("partition");
    let mut file = File::create(&partition).expect("a partition");
    file.set_len(512 * MIB).expect("its size");
    let mut chunk = vec![0; MIB as usize];
    for at in 0..512 {
        disk.seek(SeekFrom::Start((at + 2) * MIB)).expect("a place");
        disk.read_exact(&mut chunk).expect("bytes");
        if chunk.iter().any(|byte| *byte != 0) {
            file.seek(SeekFrom::Start(at * MIB)).expect("a place");
            file.write_all(&chunk).expect("bytes");
        }
    }
    fs::remove_file(path).expect("the disk to go");
    partition
}

/// What `image build --format pxe` writes.
fn image(directory: &Path, version: &str) {
    fs::create_dir_all(directory.join("pxe")).expect("a directory");
    let files = ["pxe/vmlinuz", "pxe/initramfs"].map(|name| {
        let path = directory.join(name);
        fs::write(&path, format!("{name} of {version} ").repeat(100_000)).expect("a file");
        let sum = output(Command::new("sha256sum").arg(&path));
        let sha256 = sum.split(' ').next().expect("a hash").to_owned();
        json!({"name": name, "size": fs::metadata(&path).expect("a file").len(), "sha256": sha256})
    });
    let manifest = json!({"name": "ironlet", "version": version, "role": "worker", "kernel": "6.12.60-amd64",
        "cmdline": "", "parts": [], "files": files});
    fs::write(directory.join("manifest.json"), manifest.to_string()).expect("a manifest");
}

fn environment(partition: &Path, change: impl FnOnce(&mut Environment)) -> Environment {
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(partition)
        .expect("the partition");
    let systems = Systems::open(&mut file).expect("systems");
    let mut environment = systems.environment().expect("GRUB's environment");
    change(&mut environment);
    systems.set_environment(&environment).expect("GRUB's environment");
    systems.close().expect("systems");
    environment
}

struct Upgrades {
    world: World,
    partition: PathBuf,
}

impl Upgrades {
    fn new() -> Self {
        let world = World::new("node-upgrade");
        let partition = partition(world.dir.path());
        Self { world, partition }
    }

    /// The machine starts with the system of a slot.
    fn boot(&mut self, slot: &str, more: &[&str]) {
        let partition = self.partition.display().to_string();
        let state = self.world.dir.join("state").display().to_string();
        let flags = [
            "--slot",
            slot,
            "--system-partition",
            &partition,
            "--state-dir",
            &state,
        ];
        self.world.restart(&[&flags, more].concat());
    }

    fn ironctl(&self, args: &[&str]) -> Result<String, String> {
        ironctl(&self.world.admin(), &[&["--node", "node-1"], args].concat())
    }

    fn status(&self) -> Value {
        let text = self.ironctl(&["status", "-o", "json"]).expect("the status");
        serde_json::from_str(&text).expect("JSON")
    }

    fn upgrade(&self, directory: &Path) -> Result<String, String> {
        self.ironctl(&["upgrade", &directory.display().to_string(), "--no-reboot"])
    }

    /// Waits until the last change has this outcome.
    fn comes_to(&self, outcome: &str, reason: &str) {
        eventually(&format!("the change is {outcome}"), SOON, || {
            let last = self.status()["lastUpgrade"].clone();
            let said = last["reason"].as_str().unwrap_or_default();
            match last["outcome"] == outcome && said.contains(reason) {
                true => Ok(()),
                false => Err(last.to_string()),
            }
        });
    }

    fn node_is_ready(&self, boot_id: &str) {
        let info = [
            "architecture",
            "containerRuntimeVersion",
            "kernelVersion",
            "kubeProxyVersion",
            "kubeletVersion",
            "machineID",
            "operatingSystem",
            "osImage",
            "systemUUID",
        ];
        let mut info: serde_json::Map<String, Value> =
            info.iter().map(|name| ((*name).to_owned(), json!("x"))).collect();
        info.insert("bootID".into(), json!(boot_id));
        let status =
            json!({"status": {"nodeInfo": info, "conditions": [{"type": "Ready", "status": "True"}]}});
        let patch = [
            "patch",
            "node",
            "node-1",
            "--subresource=status",
            "-p",
            &status.to_string(),
        ];
        self.world.plane.kubectl.run(&patch);
    }
}

#[test]
fn a_system_is_tried_and_kept_or_left() {
    let mut machine = Upgrades::new();
    let new = machine.world.dir.join("new");
    image(&new, "0.2.0");
    machine.boot("A", &[]);

    // Good: written while the node works, tried, kept when this boot's kubelet is Ready.
    let said = machine.upgrade(&new).unwrap();
    assert!(
        said.contains("slot B has Ironlet 0.2.0, Linux 6.12.60-amd64, read back"),
        "{said}"
    );
    assert!(said.contains("the machine has no ironlet.upgrade-key"), "{said}");
    assert_eq!(environment(&machine.partition, |_| {}).trial(), Some(("B", 2)));
    assert_eq!(machine.status()["lastUpgrade"]["outcome"], "pending");
    machine.node_is_ready("the boot before");
    machine.boot("B", &[]);
    machine.comes_to("pending", "the kubelet has not reported since this boot");
    let refused = machine.upgrade(&new).unwrap_err();
    assert!(refused.contains("slot B is on trial"), "{refused}");
    assert!(
        machine.world.orders.try_recv().is_err(),
        "init has not heard of it yet"
    );
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    machine.node_is_ready(boot_id.trim());
    machine.comes_to("kept", "");
    assert_eq!(machine.world.orders.recv_timeout(SOON).unwrap(), "good");
    let kept = environment(&machine.partition, |_| {});
    assert_eq!((kept.slot(), kept.trial()), ("B", None));

    // Damaged on the way: nothing changes but the idle slot.
    let damaged = machine.world.dir.join("damaged");
    image(&damaged, "0.3.0");
    fs::write(damaged.join("pxe/initramfs"), "cut off").unwrap();
    let refused = machine.upgrade(&damaged).unwrap_err();
    assert!(
        refused.contains("pxe/initramfs: 7 bytes with SHA-256"),
        "{refused}"
    );
    let after = environment(&machine.partition, |_| {});
    assert_eq!((after.slot(), after.trial()), ("B", None));
    let refused = machine.ironctl(&["rollback", "--no-reboot"]).unwrap_err();
    assert!(
        refused.contains("slot A has no system to go back to"),
        "{refused}"
    );

    // It panics twice: the boot loader brings the old one back, and the reason is kept.
    image(&damaged, "0.3.0");
    machine.upgrade(&damaged).unwrap();
    environment(&machine.partition, |environment| {
        *environment = Environment::parse("slot=B\nnext=A\ntries=0\n");
    });
    machine.boot("B", &[]);
    machine.comes_to("failed", "never came as far as its node API");
    assert_eq!(environment(&machine.partition, |_| {}).trial(), None);
    let status = machine.ironctl(&["status"]).unwrap();
    assert!(
        status.contains("B         running, boots   0.2.0, Linux 6.12.60-amd64"),
        "{status}"
    );
    assert!(
        status.contains("last change of the system: slot B to A: failed: it was started"),
        "{status}"
    );

    // Back to the other one by request, and with a key no stranger's image.
    let said = machine.ironctl(&["rollback", "--no-reboot"]).unwrap();
    assert!(
        said.contains("the next boot starts slot A (Ironlet 0.3.0"),
        "{said}"
    );
    assert_eq!(environment(&machine.partition, |_| {}).trial(), Some(("A", 2)));
    let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    machine.boot("B", &["--upgrade-key", key]);
    let refused = machine.upgrade(&new).unwrap_err();
    assert!(
        refused.contains("PermissionDenied: this machine takes signed images only"),
        "{refused}"
    );
    assert_eq!(
        environment(&machine.partition, |_| {}).trial(),
        Some(("A", 2)),
        "as it was"
    );
}

#[test]
fn a_machine_without_slots_says_so() {
    let mut world = World::new("node-no-slots");
    world.restart(&[]);
    let image_dir = world.dir.join("image");
    image(&image_dir, "0.2.0");
    let on_node = |args: &[&str]| ironctl(&world.admin(), &[&["--node", "node-1"], args].concat());
    let refused = on_node(&["upgrade", &image_dir.display().to_string()]).unwrap_err();
    assert!(refused.contains("not booted from an installed disk"), "{refused}");
    let refused = on_node(&["upgrade", "/nowhere"]).unwrap_err();
    assert!(refused.contains("/nowhere/manifest.json"), "{refused}");
    let refused = on_node(&["etcd", "members"]).unwrap_err();
    assert!(refused.contains("no etcd runs on this machine"), "{refused}");
    on_node(&["reset", "--wipe-state"]).unwrap();
    assert_eq!(world.orders.recv_timeout(SOON).unwrap(), "reset");
    let bundle = world.dir.join("bundle.tar").display().to_string();
    let said = on_node(&["support-bundle", &bundle]).unwrap();
    assert!(said.contains("of 10 parts"), "{said}");
    let listed = output(Command::new("tar").args(["-tf", &bundle]));
    for name in ["status.json", "logs/agent.txt", "links.json", "missing.txt"] {
        assert!(listed.lines().any(|line| line == name), "{listed}");
    }
}
