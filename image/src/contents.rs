//! What is in an image, as tables. Code elsewhere reads them top to bottom and knows no file by name.

use node_config::Role;

/// A kernel of Debian's, by its metapackage, and the modules that travel with it.
pub struct Flavour {
    pub metapackage: &'static str,
    pub modules: &'static [&'static [ModuleSet]],
}

/// The cloud flavour: half the unpack work and two seconds less to PID 1 than the generic one, and it has all that a
/// virtual machine needs.
pub const VIRTUAL_MACHINES: Flavour = Flavour {
    metapackage: "linux-image-cloud-amd64",
    modules: &[MODULES],
};

/// The generic flavour, with the drivers of servers.
pub const SERVERS: Flavour = Flavour {
    metapackage: "linux-image-amd64",
    modules: &[MODULES, SERVER_MODULES],
};

/// Modules of one purpose. Dependencies are not listed: they come from modules.dep and modules.softdep.
pub struct ModuleSet {
    pub purpose: &'static str,
    pub when: Load,
    pub names: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Before there is a root file system: these live in the initramfs.
    Early,
    /// By PID 1 at every boot, since no device announces them or since first use would be slower.
    Boot,
    /// When a device's modalias or the kernel's module loader asks.
    Demand,
}

pub const MODULES: &[ModuleSet] = &[
    ModuleSet {
        purpose: "root file system",
        when: Load::Early,
        names: &["loop", "squashfs", "overlay"],
    },
    ModuleSet {
        purpose: "entropy and power button",
        when: Load::Boot,
        names: &["virtio_rng", "evdev", "button"],
    },
    ModuleSet {
        purpose: "state disk",
        when: Load::Boot,
        names: &["virtio_blk", "ext4"],
    },
    ModuleSet {
        purpose: "disks",
        when: Load::Demand,
        names: &["nvme", "ahci", "sd_mod", "virtio_scsi"],
    },
    ModuleSet {
        purpose: "network interfaces",
        when: Load::Boot,
        names: &["virtio_net"],
    },
    ModuleSet {
        purpose: "host bridge",
        when: Load::Boot,
        names: &["virtio_console"],
    },
    ModuleSet {
        purpose: "pod network",
        when: Load::Boot,
        names: &["veth", "bridge", "br_netfilter", "vxlan"],
    },
    ModuleSet {
        purpose: "pod network add-ons",
        when: Load::Demand,
        names: &["dummy", "ipvlan", "macvlan", "sch_tbf", "tun"],
    },
    ModuleSet {
        purpose: "iptables for Services",
        when: Load::Boot,
        names: &[
            "nf_tables",
            "nft_compat",
            "nft_chain_nat",
            "nf_conntrack",
            "nf_nat",
            "nf_conntrack_netlink",
            "xt_addrtype",
            "xt_comment",
            "xt_conntrack",
            "xt_mark",
            "xt_MASQUERADE",
            "xt_multiport",
            "xt_nat",
            "xt_recent",
            "xt_statistic",
            "xt_tcpudp",
            "ipt_REJECT",
            "ip6t_REJECT",
        ],
    },
    ModuleSet {
        purpose: "sets for NetworkPolicy",
        when: Load::Demand,
        names: &[
            "ip_set_hash_ip",
            "ip_set_hash_ipport",
            "ip_set_hash_net",
            "xt_set",
        ],
    },
    ModuleSet {
        purpose: "network file systems",
        when: Load::Demand,
        names: &["nfsv3", "nfsv4"],
    },
    ModuleSet {
        purpose: "iptables for everything else",
        when: Load::Demand,
        names: &[
            "nft_limit",
            "nft_log",
            "nft_masq",
            "nft_nat",
            "nft_redir",
            "nft_reject_inet",
            "nft_fib_inet",
            "nf_log_syslog",
            "nfnetlink_log",
            "xt_CHECKSUM",
            "xt_connbytes",
            "xt_connlimit",
            "xt_connmark",
            "xt_CT",
            "xt_hashlimit",
            "xt_iprange",
            "xt_length",
            "xt_limit",
            "xt_LOG",
            "xt_mac",
            "xt_NFLOG",
            "xt_owner",
            "xt_physdev",
            "xt_pkttype",
            "xt_REDIRECT",
            "xt_sctp",
            "xt_socket",
            "xt_state",
            "xt_TCPMSS",
            "xt_TPROXY",
            "ip6t_rpfilter",
            "ipt_rpfilter",
            "sctp",
        ],
    },
    ModuleSet {
        purpose: "removable and firmware file systems",
        when: Load::Demand,
        names: &["vfat", "nls_ascii", "nls_cp437", "isofs"],
    },
    ModuleSet {
        purpose: "watchdog and clock",
        when: Load::Demand,
        names: &["softdog", "i6300esb", "ptp_kvm"],
    },
];

/// Drivers of hardware that is not virtual, or is of other hypervisors. Devices ask for them by their modalias.
pub const SERVER_MODULES: &[ModuleSet] = &[
    ModuleSet {
        purpose: "network interfaces of servers",
        when: Load::Demand,
        names: &[
            "atlantic",
            "be2net",
            "bnx2",
            "bnx2x",
            "bnxt_en",
            "cxgb4",
            "e1000",
            "e1000e",
            "ena",
            "enic",
            "forcedeth",
            "gve",
            "hv_netvsc",
            "i40e",
            "ice",
            "igb",
            "igc",
            "ixgbe",
            "mlx4_en",
            "mlx5_core",
            "nfp",
            "qede",
            "r8169",
            "sfc",
            "sky2",
            "tg3",
            "vmxnet3",
            "xen_netfront",
        ],
    },
    ModuleSet {
        purpose: "links of several interfaces",
        when: Load::Demand,
        names: &["bonding", "8021q"],
    },
    ModuleSet {
        purpose: "disks of servers",
        when: Load::Demand,
        names: &[
            "aacraid",
            "arcmsr",
            "ata_piix",
            "hpsa",
            "hv_storvsc",
            "isci",
            "megaraid_sas",
            "mpi3mr",
            "mpt3sas",
            "mptsas",
            "mptspi",
            "sata_mv",
            "sata_sil24",
            "sdhci_pci",
            "smartpqi",
            "sr_mod",
            "vmd",
            "vmw_pvscsi",
            "xen_blkfront",
        ],
    },
    ModuleSet {
        purpose: "USB: keyboards, disks",
        when: Load::Demand,
        names: &[
            "ehci_pci",
            "hid_generic",
            "ohci_pci",
            "uas",
            "uhci_hcd",
            "usb_storage",
            "usbhid",
            "xhci_pci",
        ],
    },
    ModuleSet {
        purpose: "watchdogs and management controllers",
        when: Load::Demand,
        names: &[
            "hpwdt",
            "iTCO_wdt",
            "ipmi_devintf",
            "ipmi_si",
            "ipmi_watchdog",
            "sp5100_tco",
        ],
    },
    ModuleSet {
        purpose: "checksums of ext4, built into the other flavour",
        when: Load::Demand,
        names: &["crc32c_generic", "crc32c_intel"],
    },
    ModuleSet {
        purpose: "firmware's variables",
        when: Load::Demand,
        names: &["efivarfs"],
    },
];

/// Packages that may supply shared libraries; which of their files travel is computed from what needs them.
pub const LIBRARY_PACKAGES: &[&str] = &[
    "libc6",
    "libxtables12",
    "libipset13t64",
    "libmnl0",
    "libnftnl11",
    "libipset13t64",
    "libext2fs2t64",
    "libcom-err2",
    "libblkid1",
    "libuuid1",
];

pub const LIBRARY_DIRECTORY: &str = "usr/lib/x86_64-linux-gnu";

pub enum Content {
    Directory,
    Link(&'static str),
    Text(&'static str),
    /// One of our own executables, by name.
    Own(&'static str),
    /// A file of a package.
    Packaged(&'static str, &'static str),
    /// Files of a package's directory: package, directory, names.
    Several(&'static str, &'static str, &'static [&'static str]),
    /// All certificates below a package's directory, in one file.
    Certificates(&'static str, &'static str),
}

pub struct Item {
    pub path: &'static str,
    pub mode: u32,
    /// `None`: both roles.
    pub role: Option<Role>,
    pub content: Content,
}

const fn both(path: &'static str, mode: u32, content: Content) -> Item {
    Item {
        path,
        mode,
        role: None,
        content,
    }
}

const fn master(path: &'static str, mode: u32, content: Content) -> Item {
    Item {
        path,
        mode,
        role: Some(Role::Master),
        content,
    }
}

/// The root file system, apart from libraries, kernel modules and container images. PID 1 is in the initramfs, and brings
/// itself along as /init.
pub const ROOT: &[Item] = &[
    both("dev", 0o755, Content::Directory),
    both("etc/cni/net.d", 0o755, Content::Directory),
    both("opt/cni/bin", 0o755, Content::Directory),
    both("proc", 0o555, Content::Directory),
    both("root", 0o700, Content::Directory),
    both("run", 0o755, Content::Directory),
    both("sys", 0o555, Content::Directory),
    both("tmp", 0o1777, Content::Directory),
    both("usr/bin", 0o755, Content::Directory),
    both("usr/lib64", 0o755, Content::Directory),
    both("var", 0o755, Content::Directory),
    both("bin", 0, Content::Link("usr/bin")),
    both("lib", 0, Content::Link("usr/lib")),
    both("lib64", 0, Content::Link("usr/lib64")),
    both("sbin", 0, Content::Link("usr/sbin")),
    both("usr/sbin/modprobe", 0, Content::Link("/init")),
    both("usr/bin/agent", 0o755, Content::Own("agent")),
    master("usr/bin/control-plane", 0o755, Content::Own("control-plane")),
    master(
        "usr/bin/etcd",
        0o755,
        Content::Packaged("etcd-server", "usr/bin/etcd"),
    ),
    both(
        "etc/passwd",
        0o644,
        Content::Text("root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"),
    ),
    both("etc/group", 0o644, Content::Text("root:x:0:\nnogroup:x:65534:\n")),
    both(
        "etc/nsswitch.conf",
        0o644,
        Content::Text("passwd: files\ngroup: files\nhosts: files dns\n"),
    ),
    both(
        "etc/ssl/certs/ca-certificates.crt",
        0o644,
        Content::Certificates("ca-certificates", "usr/share/ca-certificates"),
    ),
    both(
        "etc/mke2fs.conf",
        0o644,
        Content::Packaged("e2fsprogs", "etc/mke2fs.conf"),
    ),
    both(
        "usr/sbin/mke2fs",
        0o755,
        Content::Packaged("e2fsprogs", "usr/sbin/mke2fs"),
    ),
    both("usr/sbin/mkfs.ext4", 0, Content::Link("mke2fs")),
    both(
        "usr/sbin/e2fsck",
        0o755,
        Content::Packaged("e2fsprogs", "usr/sbin/e2fsck"),
    ),
    both("usr/sbin/fsck.ext4", 0, Content::Link("e2fsck")),
    both(
        "usr/sbin/xtables-nft-multi",
        0o755,
        Content::Packaged("iptables", "usr/sbin/xtables-nft-multi"),
    ),
    both("usr/sbin/iptables", 0, Content::Link("xtables-nft-multi")),
    both("usr/sbin/iptables-restore", 0, Content::Link("xtables-nft-multi")),
    both("usr/sbin/iptables-save", 0, Content::Link("xtables-nft-multi")),
    both("usr/sbin/ip6tables", 0, Content::Link("xtables-nft-multi")),
    both(
        "usr/sbin/ip6tables-restore",
        0,
        Content::Link("xtables-nft-multi"),
    ),
    both("usr/sbin/ip6tables-save", 0, Content::Link("xtables-nft-multi")),
    both(
        "usr/sbin/ipset",
        0o755,
        Content::Packaged("ipset", "usr/sbin/ipset"),
    ),
    both(
        "usr/lib/x86_64-linux-gnu/xtables",
        0o644,
        Content::Several(
            "iptables",
            "usr/lib/x86_64-linux-gnu/xtables",
            &[
                "libip6t_REJECT.so",
                "libip6t_icmp6.so",
                "libipt_REJECT.so",
                "libipt_icmp.so",
                "libxt_CHECKSUM.so",
                "libxt_CONNMARK.so",
                "libxt_CT.so",
                "libxt_DNAT.so",
                "libxt_LOG.so",
                "libxt_MARK.so",
                "libxt_MASQUERADE.so",
                "libxt_NFLOG.so",
                "libxt_NOTRACK.so",
                "libxt_REDIRECT.so",
                "libxt_SET.so",
                "libxt_SNAT.so",
                "libxt_TCPMSS.so",
                "libxt_TPROXY.so",
                "libxt_TRACE.so",
                "libxt_addrtype.so",
                "libxt_comment.so",
                "libxt_connbytes.so",
                "libxt_connlimit.so",
                "libxt_connmark.so",
                "libxt_conntrack.so",
                "libxt_hashlimit.so",
                "libxt_iprange.so",
                "libxt_length.so",
                "libxt_limit.so",
                "libxt_mac.so",
                "libxt_mark.so",
                "libxt_multiport.so",
                "libxt_owner.so",
                "libxt_physdev.so",
                "libxt_pkttype.so",
                "libxt_recent.so",
                "libxt_rpfilter.so",
                "libxt_sctp.so",
                "libxt_set.so",
                "libxt_socket.so",
                "libxt_standard.so",
                "libxt_state.so",
                "libxt_statistic.so",
                "libxt_tcp.so",
                "libxt_udp.so",
            ],
        ),
    ),
];

/// Directories the initramfs has besides /init, its modules and the root image.
pub const INITRAMFS_DIRECTORIES: &[&str] = &["dev", "proc", "run", "sys", "tmp"];

/// The kernel's own parameters of every image; `--cmdline` follows and so overrides. Serial last: it is /dev/console.
pub const CMDLINE: &str = "console=tty0 console=ttyS0,115200 panic=10 loglevel=4";

/// The parameters that PID 1 puts before the kernel's command line.
pub const PARAMETERS: &str = "usr/lib/ironlet/cmdline";
pub const MODULES_LOAD: &str = "usr/lib/ironlet/modules.load";
/// GRUB's parts, for the installer.
pub const LOADER: &str = "usr/lib/ironlet/loader";
pub const IMAGES: &str = "usr/share/ironlet/images";
pub const DESCRIPTIONS: &str = "usr/share/ironlet/openapi-descriptions.zst";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_path_and_no_module_is_listed_twice() {
        let mut paths = BTreeSet::new();
        for item in ROOT {
            assert!(paths.insert(item.path), "{}", item.path);
        }
        let mut modules = BTreeSet::new();
        for name in MODULES.iter().chain(SERVER_MODULES).flat_map(|set| set.names) {
            assert!(modules.insert(name), "{name}");
        }
    }
}
