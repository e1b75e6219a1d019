//! A server with an empty disk and our ISO in its drive: it installs itself, restarts, and goes on from its disk; its
//! system is replaced by another, and by one that does not work.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pki::Kubeconfig;
use serde_json::Value;
use support::{BOOT, Kubectl, Program, TempDir, command, eventually, output};

const DISK_BYTES: u64 = 4 << 30;

fn build_image(dir: &TempDir, args: &[&str], parameters: &str) {
    let mut image = command("image");
    image.arg("build").args(args).args(["--cmdline", parameters]);
    output(image.arg("--out").arg(dir.path()));
}

/// A machine with `disk` on SATA and, where there is one, our ISO in its drive.
fn boot(dir: &TempDir, memory: &str, nics: &[&str]) -> Program {
    let file = |name: &str| dir.join(name).display().to_string();
    let mut machine = Command::new("qemu-system-x86_64");
    machine.args(["-machine", "q35", "-accel", "tcg,thread=multi"]);
    machine.args(["-cpu", "max,-cx16", "-smp", "2", "-m", memory, "-display", "none"]);
    for nic in nics {
        machine.args(["-nic", nic]);
    }
    machine.args(["-device", "ahci,id=sata"]);
    machine.args(["-device", "ide-hd,drive=disk,bus=sata.0,bootindex=0", "-drive"]);
    machine.arg(format!("if=none,id=disk,format=raw,file={}", file("disk")));
    if dir.join("ironlet.iso").exists() {
        machine.args(["-device", "ide-cd,drive=cd,bus=sata.1,bootindex=1", "-drive"]);
        let iso = file("ironlet.iso");
        machine.arg(format!("if=none,id=cd,media=cdrom,readonly=on,file={iso}"));
    }
    machine.arg("-serial").arg(format!("file:{}", file("console")));
    machine.args(["-device", "virtio-serial-pci", "-chardev"]);
    machine.arg(format!("file,id=kubeconfig,path={}", file("published")));
    let port = "virtserialport,chardev=kubeconfig,name=io.ironlet.kubeconfig";
    machine.args(["-device", port]);
    Program::start(&mut machine, dir.join("qemu.log"))
}

struct Server {
    dir: TempDir,
    machine: Program,
}

impl Server {
    /// Builds an image that installs itself, and puts it in. The firmware prefers the disk, as servers do; it is empty
    /// at first, so the first start is from the CD.
    fn install(name: &str, build: &[&str], memory: &str, nic: &str) -> Self {
        let dir = TempDir::new(name);
        let parameters = "ironlet.install=auto ironlet.hostname=metal-1";
        build_image(&dir, &[&["--format", "iso"], build].concat(), parameters);
        File::create(dir.join("disk"))
            .and_then(|file| file.set_len(DISK_BYTES))
            .expect("an empty disk");
        let machine = boot(&dir, memory, &[nic]);
        Self { dir, machine }
    }

    /// A raw image on a disk that is larger.
    fn from_disk_image(name: &str, parameters: &str, nics: &[&str]) -> Self {
        let dir = TempDir::new(name);
        build_image(&dir, &["--role", "worker", "--format", "disk"], parameters);
        fs::rename(dir.join("disk.raw"), dir.join("disk")).expect("a raw image");
        let disk = File::options().write(true).open(dir.join("disk"));
        disk.and_then(|disk| disk.set_len(DISK_BYTES))
            .expect("a larger disk");
        let machine = boot(&dir, "768", nics);
        Self { dir, machine }
    }

    fn shows(&mut self, text: &str) {
        let console = self.dir.join("console");
        eventually(&format!("the console shows {text:?}"), BOOT, || {
            self.machine.check()?;
            let console = fs::read(&console).unwrap_or_default();
            let console = String::from_utf8_lossy(&console).into_owned();
            if console.contains(text) {
                Ok(())
            } else {
                Err(console)
            }
        });
    }

    /// The administrator's kubeconfig, for the port that leads to the API server.
    fn kubeconfig(&mut self, port: u16) -> PathBuf {
        let published = self.dir.join("published");
        let kubeconfig = eventually("a kubeconfig", BOOT, || {
            self.machine.check()?;
            let text = fs::read_to_string(&published).map_err(|error| error.to_string())?;
            let last = text.rfind("apiVersion:").ok_or("nothing has come")?;
            if !text[last..].contains("client-key-data:") {
                return Err("not all has come".to_owned());
            }
            Kubeconfig::parse(&text[last..]).map_err(|error| error.to_string())
        });
        let path = self.dir.join("kubeconfig");
        let kubeconfig = Kubeconfig {
            server: format!("https://127.0.0.1:{port}"),
            ..kubeconfig
        };
        fs::write(&path, kubeconfig.render()).expect("a file");
        path
    }
}

#[test]
fn a_machine_installs_itself_from_the_iso_and_goes_on_from_its_disk() {
    let mut server = Server::install("install", &["--role", "worker"], "768", "user");
    server.shows("INSTALL: writing to /dev/sda");
    server.shows("INSTALL: /dev/sda: written and read back");
    server.shows("slot A of the installed systems");
    server.shows("state disk: /dev/sda3 is /var");
    server.shows("host name metal-1");
}

/// The bond's links lead to two networks, and it uses one at a time.
#[test]
fn a_disk_image_takes_the_whole_disk_and_a_bond_its_links() {
    let parameters =
        "ironlet.hostname=metal-2 bond=bond0:eth0,eth1:mode=active-backup,miimon=100 ip=bond0:dhcp";
    let nics = ["user,model=e1000", "user,model=e1000,restrict=on"];
    let mut server = Server::from_disk_image("disk-image", parameters, &nics);
    server.shows("state disk: /dev/sda3 has grown to 35");
    server.shows("state disk: /dev/sda3 is /var");
    server.shows("bond0: eth0 is a member");
    server.shows("bond0: eth1 is a member");
    server.shows("bond0: asking for an address (DHCP)");
    server.shows("host name metal-2");
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// The image with half its initramfs, and a manifest that says so: no check before the boot can know.
fn broken(image: &Path, broken: &Path) {
    fs::create_dir_all(broken.join("pxe")).expect("a directory");
    fs::copy(image.join("pxe/vmlinuz"), broken.join("pxe/vmlinuz")).expect("the kernel");
    let mut initramfs = fs::read(image.join("pxe/initramfs")).expect("the initramfs");
    initramfs.truncate(initramfs.len() / 2);
    let path = broken.join("pxe/initramfs");
    fs::write(&path, &initramfs).expect("half of it");
    let sum = output(Command::new("sha256sum").arg(&path));
    let text = fs::read_to_string(image.join("manifest.json")).expect("the manifest");
    let mut manifest: Value = serde_json::from_str(&text).expect("JSON");
    for file in manifest["files"].as_array_mut().expect("files") {
        if file["name"] == "pxe/initramfs" {
            file["size"] = initramfs.len().into();
            file["sha256"] = sum.split(' ').next().expect("a hash").into();
        }
    }
    fs::write(broken.join("manifest.json"), manifest.to_string()).expect("a manifest");
}

#[test]
fn a_good_system_is_kept_and_a_broken_one_left() {
    let (api, node) = (free_port(), free_port());
    let nic = format!("user,hostfwd=tcp:127.0.0.1:{api}-:6443,hostfwd=tcp:127.0.0.1:{node}-:10270");
    let mut server = Server::install("upgrade", &["--role", "master", "--format", "pxe"], "2048", &nic);
    server.shows("slot A of the installed systems");
    // The installer's kubeconfig never was: nothing runs while it installs.
    let kubeconfig = server.kubeconfig(api);
    let kubectl = Kubectl::new(&kubeconfig);
    let ready = r#"{.status.conditions[?(@.type=="Ready")].status}"#;
    kubectl.wait_for(&["node", "metal-1"], ready, "True", BOOT);
    kubectl.run(&["create", "configmap", "kept", "--from-literal=a=b"]);

    let endpoint = format!("127.0.0.1:{node}");
    let ironctl = |args: &[&str]| {
        let mut ironctl = command("ironctl");
        ironctl.arg("--kubeconfig").arg(&kubeconfig);
        ironctl
            .args(["--node", "metal-1", "--endpoint", &endpoint])
            .args(args);
        ironctl
    };
    let slot = || {
        let status = output(&mut ironctl(&["status", "-o", "json"]));
        let status: Value = serde_json::from_str(&status).expect("JSON");
        status["slot"].as_str().unwrap_or_default().to_owned()
    };
    eventually("the node API answers", BOOT, || {
        let status = ironctl(&["status"]).output().map_err(|error| error.to_string())?;
        if status.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&status.stderr).into_owned())
        }
    });
    assert_eq!(slot(), "A");
    let image = server.dir.path().display().to_string();
    let mut upgrade = Program::start(&mut ironctl(&["upgrade", &image]), server.dir.join("good.log"));
    upgrade.succeeds(BOOT * 4);
    assert!(upgrade.output().contains("it is kept"), "{}", upgrade.output());
    assert_eq!(slot(), "B");
    assert_eq!(
        kubectl.run(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]),
        "b"
    );

    let directory = server.dir.join("broken");
    broken(server.dir.path(), &directory);
    let directory = directory.display().to_string();
    let upgrade = Program::start(&mut ironctl(&["upgrade", &directory]), server.dir.join("bad.log"));
    let said = eventually("the broken system is left", BOOT * 6, || {
        server.machine.check()?;
        let said = upgrade.output();
        if said.contains("ironctl: ") {
            Ok(said)
        } else {
            Err(said)
        }
    });
    assert!(
        said.contains("slot A was not kept: it was started and never came as far"),
        "{said}"
    );
    assert_eq!(slot(), "B");
    kubectl.wait_for(
        &["node", "metal-1"],
        ready,
        "True",
        BOOT + Duration::from_secs(60),
    );
}
