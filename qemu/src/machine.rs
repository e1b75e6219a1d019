//! A machine as QEMU's arguments. Pure: what is decided here is only started elsewhere.

use crate::{accelerator::Accelerator, cluster::Node, layout::NodeFiles};
use node_config::Role;
use std::path::Path;

pub const PROGRAM: &str = "qemu-system-x86_64";

/// The virtio-serial port over which a master hands out the administrator's kubeconfig.
const KUBECONFIG_PORT: &str = "io.ironlet.kubeconfig";

/// Everything the arguments depend on.
pub struct Machine<'a> {
    pub cluster: &'a str,
    pub node: &'a Node,
    /// Directory of the role's image.
    pub image: &'a Path,
    pub files: &'a NodeFiles,
    /// The lab network's socket.
    pub hub: &'a Path,
    pub accelerator: Accelerator,
    /// Ports on 127.0.0.1 and the guest's ports that they lead to.
    pub forwards: &'a [(u16, u16)],
}

pub fn arguments(machine: &Machine<'_>) -> Vec<String> {
    let Machine {
        cluster,
        node,
        image,
        files,
        hub,
        accelerator,
        forwards,
    } = machine;
    let [.., last] = node.lab_address.octets();
    let mac = |network: u8| format!("52:54:00:76:{network:02x}:{last:02x}");
    let forward = |(host, guest): &(u16, u16)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}");
    let forwards: String = forwards.iter().map(forward).collect();
    let mut words = Words::default();
    words.pair("-name", format!("ironlet-{cluster}-{}", node.name));
    words
        .flag("-nodefaults")
        .flag("-no-user-config")
        .pair("-display", "none")
        .pair("-machine", "q35");
    for (name, value) in accelerator.arguments() {
        words.pair(name, *value);
    }
    words
        .pair("-smp", node.cpus)
        .pair("-m", node.memory)
        .pair("-rtc", "base=utc");
    words
        .pair("-kernel", path(&image.join("vmlinuz")))
        .pair("-initrd", path(&image.join("initramfs")));
    words.pair("-append", &node.cmdline);
    words.pair(
        "-chardev",
        format!(
            "socket,id=serial,path={},server=on,wait=off,logfile={},logappend=on",
            path(&files.serial),
            path(&files.log)
        ),
    );
    words.pair("-serial", "chardev:serial");
    words.pair(
        "-chardev",
        format!(
            "socket,id=monitor,path={},server=on,wait=off",
            path(&files.monitor)
        ),
    );
    words.pair("-mon", "chardev=monitor,mode=control");
    words.pair("-device", "virtio-rng-pci");
    words.pair(
        "-drive",
        format!(
            "if=none,id=state,format=raw,discard=unmap,file={}",
            path(&files.disk)
        ),
    );
    words.pair("-device", "virtio-blk-pci,drive=state,serial=ironlet-state");
    // Fixed slots: the kernel names interfaces in this order, eth0 and eth1. No option ROMs: nothing boots from them.
    words.pair("-netdev", format!("user,id=outside{forwards}"));
    words.pair(
        "-device",
        format!("virtio-net-pci,netdev=outside,mac={},addr=0x10,romfile=", mac(0)),
    );
    words.pair(
        "-netdev",
        format!("stream,id=lab,server=off,addr.type=unix,addr.path={}", path(hub)),
    );
    words.pair(
        "-device",
        format!("virtio-net-pci,netdev=lab,mac={},addr=0x11,romfile=", mac(1)),
    );
    if node.role == Role::Master {
        words.pair(
            "-chardev",
            format!("file,id=kubeconfig,path={}", path(&files.published)),
        );
        words.pair("-device", "virtio-serial-pci");
        words.pair(
            "-device",
            format!("virtserialport,chardev=kubeconfig,name={KUBECONFIG_PORT}"),
        );
    }
    words.0
}

/// QEMU separates options with commas; a comma in a path is written twice.
fn path(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[derive(Default)]
struct Words(Vec<String>);

impl Words {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.to_owned());
        self
    }

    fn pair(&mut self, name: &str, value: impl ToString) -> &mut Self {
        self.0.push(name.to_owned());
        self.0.push(value.to_string());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn render(role: Role, accelerator: Accelerator, forwards: &[(u16, u16)]) -> String {
        let node = Node {
            name: format!("{role}-1"),
            role,
            memory: 512,
            cpus: 2,
            lab_address: Ipv4Addr::new(192, 168, 76, 11),
            cmdline: "console=ttyS0 ironlet.hostname=x".into(),
        };
        let files = NodeFiles::new(Path::new("/state"), &node.name);
        let words = arguments(&Machine {
            cluster: "lab",
            node: &node,
            image: Path::new("/images,1/x"),
            files: &files,
            hub: Path::new("/state/hub.socket"),
            accelerator,
            forwards,
        });
        // One option a line.
        words
            .join("\n")
            .replace("\n-", "\u{0}-")
            .replace('\n', " ")
            .replace('\u{0}', "\n")
            + "\n"
    }

    #[test]
    fn golden_arguments() {
        let goldens = [
            (
                include_str!("../tests/golden/master-tcg.txt"),
                render(Role::Master, Accelerator::Tcg, &[(40123, 6443), (40124, 10270)]),
            ),
            (
                include_str!("../tests/golden/worker-kvm.txt"),
                render(Role::Worker, Accelerator::Kvm, &[(40125, 10270)]),
            ),
        ];
        for (want, got) in goldens {
            assert_eq!(got, want);
        }
    }
}
