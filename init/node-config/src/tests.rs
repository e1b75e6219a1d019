//! The promises of the command line: every form is read, every error is named, and what is written is read back.

use super::*;

fn good(cmdline: &str) -> NodeConfig {
    let (config, errors) = parse(cmdline);
    assert_eq!(errors, [], "{cmdline}");
    config
}

fn complaint(cmdline: &str) -> String {
    let (config, errors) = parse(cmdline);
    assert_eq!(
        config,
        NodeConfig::default(),
        "a bad value must not be half applied: {cmdline}"
    );
    match errors.as_slice() {
        [error] => error.to_string(),
        other => panic!("{cmdline}: expected one error, got {other:?}"),
    }
}

#[test]
fn a_whole_worker_command_line_is_read() {
    let config = good(
        "BOOT_IMAGE=/boot/vmlinuz root=/dev/ram0 console=tty0 console=ttyS0,115200n8 panic=10 quiet \
         ip=eth0:dhcp ip=192.168.76.12::192.168.76.1:255.255.255.0::eth1:none:1450 nameserver=9.9.9.9 \
         ironlet.role=worker ironlet.server=192.168.76.11 ironlet.token=abcdef.0123456789abcdef \
         ironlet.node-labels=zone=a,example.com/rack=r1 ironlet.node-taints=dedicated=db:NoSchedule \
         ironlet.registry-mirror=docker.io=http://10.0.2.2:5000 ironlet.registry-mirror=quay.io=https://m/q",
    );
    assert_eq!(config.role, Some(Role::Worker));
    assert_eq!(
        config.server,
        Some(Endpoint {
            host: "192.168.76.11".into(),
            port: 6443
        })
    );
    assert_eq!(config.consoles, ["tty0", "ttyS0,115200n8"]);
    assert_eq!(config.panic, Some(10));
    assert_eq!(
        config.node_labels[1],
        ("example.com/rack".to_owned(), "r1".to_owned())
    );
    assert_eq!(config.node_taints[0].effect, "NoSchedule");
    assert_eq!(config.registry_mirrors.len(), 2);
    assert_eq!(config.ip[0].interface.as_deref(), Some("eth0"));
    assert_eq!(config.ip[0].method, IpMethod::Dhcp);
    let IpMethod::Static(address) = &config.ip[1].method else {
        panic!("{:?}", config.ip[1])
    };
    assert_eq!(
        (address.address, address.prefix),
        ("192.168.76.12".parse().unwrap(), 24)
    );
    assert_eq!(address.gateway, Some("192.168.76.1".parse().unwrap()));
    assert_eq!(
        config.ip[1].extra,
        IpExtra::Link {
            mtu: Some(1450),
            mac: None
        }
    );
}

#[test]
fn what_belongs_to_loaders_and_the_kernel_is_tolerated() {
    for cmdline in [
        "",
        "vmlinuz initrd=initramfs.img",
        "BOOT_IMAGE=(hd0,gpt2)/vmlinuz ro quiet splash -- single",
        "root=\"LABEL=a b\" module.parameter=1 i915.modeset=0 ipv6.disable=1",
        "ironletx.role=worker",
    ] {
        assert_eq!(good(cmdline), NodeConfig::default());
    }
}

#[test]
fn quotes_may_stand_around_the_value_or_the_word() {
    let expected = DiskSelector::Label("MY STATE".into());
    assert_eq!(
        good("ironlet.disk=\"LABEL=MY STATE\"").disk,
        Some(expected.clone())
    );
    assert_eq!(good("\"ironlet.disk=LABEL=MY STATE\" quiet").disk, Some(expected));
}

#[test]
fn the_last_value_wins_so_that_users_override_the_image() {
    assert_eq!(
        good("ironlet.role=worker ironlet.role=master").role,
        Some(Role::Master)
    );
}

#[test]
fn errors_name_parameter_value_and_expectation() {
    assert_eq!(
        complaint("ironlet.role=boss"),
        "ironlet.role=boss: bad value: expected worker or master"
    );
    assert_eq!(
        complaint("ironlet.rolle=master"),
        "ironlet.rolle=master: unknown parameter: expected ironlet.role, perhaps"
    );
    assert!(complaint("ironlet.frobnicate").contains("expected one of ironlet.role, ironlet.server"));
    assert!(complaint("ip=eth0:dhcp6").starts_with("ip=eth0:dhcp6: bad value"));
}

#[test]
fn a_bad_token_is_not_shown() {
    let text = complaint("ironlet.token=abcdef.0123456789ABCDEF");
    assert!(text.starts_with("ironlet.token=<hidden>: bad value"), "{text}");
    let token: Token = "abcdef.0123456789abcdef".parse().unwrap();
    assert_eq!(format!("{token:?}"), "Token(abcdef.<hidden>)");
}

#[test]
fn bad_values_of_every_key_are_errors() {
    for cmdline in [
        "ironlet.role",
        "ironlet.server=",
        "ironlet.server=host:0",
        "ironlet.server=host:65536",
        "ironlet.server=[::1",
        "ironlet.ca-hash=sha256:abc",
        "ironlet.ca-hash=md5:0123",
        "ironlet.hostname=Node_1",
        "ironlet.node-ip=10.0.0.256",
        "ironlet.node-labels=zone",
        "ironlet.node-labels=-a=b",
        "ironlet.node-taints=a=b:Never",
        "ironlet.pod-cidr=10.244.0.1/16",
        "ironlet.pod-cidr=10.244.0.0/33",
        "ironlet.service-cidr=10.96.0.0",
        "ironlet.cluster-domain=.local",
        "ironlet.store=sqlite",
        "ironlet.disk=sda",
        "ironlet.disk=/dev/../etc",
        "ironlet.disk=LABEL=",
        "ironlet.install=yes",
        "ironlet.wipe=true",
        "ironlet.trial=1",
        "ironlet.upgrade-key=RWQf6LRCGA9i53ml",
        "ironlet.slot=C",
        "ironlet.registry-mirror=docker.io",
        "ironlet.registry-mirror=docker.io=ftp://x",
        "ironlet.config=/etc/x",
        "ip=",
        "ip=eth0",
        "ip=10.0.0.1:::24::eth0:dhcp",
        "ip=10.0.0.1:::255.0.255.0::eth0:none",
        "ip=10.0.0.1/24:::24::eth0:none",
        "ip=eth0:dhcp:12",
        "ip=averyveryverylongname:dhcp",
        "nameserver=dns",
        "bond=",
        "vlan=eth0",
        "vlan=vlan0:eth0",
        "vlan=eth0.4095:eth0",
        "vlan=storage:eth0",
        "panic=never",
    ] {
        assert!(complaint(cmdline).contains("bad value"), "{cmdline}");
    }
}

#[test]
fn every_dracut_form_of_ip_is_read() {
    let forms = [
        ("dhcp", None, IpExtra::None),
        ("on", None, IpExtra::None),
        ("eth0:dhcp", Some("eth0"), IpExtra::None),
        (
            "eth0:dhcp:1400",
            Some("eth0"),
            IpExtra::Link {
                mtu: Some(1400),
                mac: None,
            },
        ),
        (
            "eth0:dhcp::52:54:00:12:34:56",
            Some("eth0"),
            IpExtra::Link {
                mtu: None,
                mac: Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
            },
        ),
        ("::::node-1:eth0:dhcp", Some("eth0"), IpExtra::None),
        (
            "::::node-1:eth0:dhcp:9.9.9.9:1.1.1.1:10.0.0.1",
            Some("eth0"),
            IpExtra::Servers {
                nameservers: vec!["9.9.9.9".parse().unwrap(), "1.1.1.1".parse().unwrap()],
                ntp: Some("10.0.0.1".parse().unwrap()),
            },
        ),
    ];
    for (text, interface, extra) in forms {
        let parameter: IpParameter = text.parse().unwrap_or_else(|_| panic!("{text}"));
        assert_eq!(parameter.method, IpMethod::Dhcp, "{text}");
        assert_eq!(parameter.interface.as_deref(), interface, "{text}");
        assert_eq!(parameter.extra, extra, "{text}");
    }
    for text in [
        "10.0.0.5::10.0.0.1:255.255.255.0:n:eth1:none",
        "10.0.0.5/24::10.0.0.1::n:eth1:off",
    ] {
        let parameter: IpParameter = text.parse().unwrap_or_else(|_| panic!("{text}"));
        assert_eq!(parameter.to_string(), "10.0.0.5::10.0.0.1:24:n:eth1:none");
    }
    let v6: IpParameter = "[fd00::5]::[fd00::1]:64::eth0:none".parse().unwrap();
    assert_eq!(v6.to_string(), "[fd00::5]::[fd00::1]:64::eth0:none");
}

/// A small deterministic generator (xorshift), so that a failure can be had again from its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.roll(choices.len() as u64) as usize].clone()
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.roll(2) == 0).then(|| make(self))
    }

    fn some<T>(&mut self, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.roll(3)).map(|_| make(self)).collect()
    }

    fn address(&mut self) -> IpAddr {
        if self.roll(2) == 0 {
            IpAddr::V4((self.roll(1 << 32) as u32).into())
        } else {
            IpAddr::V6((u128::from(self.roll(u64::MAX)) << 64 | u128::from(self.roll(u64::MAX))).into())
        }
    }

    fn cidr(&mut self) -> Cidr {
        let prefix = self.roll(33) as u8;
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Cidr {
            address: IpAddr::V4((self.roll(1 << 32) as u32 & mask).into()),
            prefix,
        }
    }

    fn ip(&mut self) -> IpParameter {
        let address = self.address();
        let longest = if address.is_ipv4() { 33 } else { 129 };
        let fixed = StaticAddress {
            address,
            prefix: self.roll(longest) as u8,
            peer: self.maybe(Self::address),
            gateway: self.maybe(Self::address),
        };
        let link = IpExtra::Link {
            mtu: Some(1280 + self.roll(8000) as u32),
            mac: self.maybe(|_| [2, 0, 0, 1, 2, 0xff]),
        };
        let servers = IpExtra::Servers {
            nameservers: vec![self.address(), self.address()][..1 + self.roll(2) as usize].to_vec(),
            ntp: self.maybe(Self::address),
        };
        IpParameter {
            interface: self.maybe(|d| d.pick(&["eth0", "enp1s0f0", "bond0.7"]).to_owned()),
            method: self.pick(&[IpMethod::Dhcp, IpMethod::Off, IpMethod::Static(fixed)]),
            hostname: self.maybe(|d| d.pick(&["node-1", "a.example.com"]).to_owned()),
            extra: self.pick(&[IpExtra::None, link, servers]),
        }
    }

    fn config(&mut self) -> NodeConfig {
        let name = |d: &mut Self| d.pick(&["node-1", "master.example.com", "10.0.0.1"]).to_owned();
        let device = |d: &mut Self| d.pick(&["/dev/vda", "/dev/disk/by-id/x"]).into();
        NodeConfig {
            role: self.maybe(|d| d.pick(&[Role::Worker, Role::Master])),
            server: self.maybe(|d| Endpoint {
                host: d.pick(&["node-1", "10.0.0.1", "fd00::1"]).to_owned(),
                port: 1 + d.roll(65_535) as u16,
            }),
            token: self.maybe(|_| "abcdef.0123456789abcdef".parse().unwrap()),
            ca_hash: self.maybe(|_| format!("sha256:{}", "0a".repeat(32))),
            hostname: self.maybe(name),
            node_ip: self.maybe(Self::address),
            node_labels: self.some(|d| {
                (
                    d.pick(&["zone", "a.b/c"]).to_owned(),
                    d.pick(&["", "x_1"]).to_owned(),
                )
            }),
            node_taints: self.some(|d| Taint {
                key: d.pick(&["dedicated", "a.b/c"]).to_owned(),
                value: d.pick(&["", "db"]).to_owned(),
                effect: d
                    .pick(&["NoSchedule", "PreferNoSchedule", "NoExecute"])
                    .to_owned(),
            }),
            pod_cidr: self.some(Self::cidr),
            service_cidr: self.some(Self::cidr),
            cluster_domain: self.maybe(name),
            store: self.maybe(|d| d.pick(&[StoreKind::Etcd, StoreKind::Embedded])),
            disk: self.maybe(|d| match d.roll(3) {
                0 => DiskSelector::None,
                1 => DiskSelector::Label(d.pick(&["IRONLET-STATE", "MY STATE"]).to_owned()),
                _ => DiskSelector::Device(device(d)),
            }),
            install: self.maybe(|d| d.maybe(device).map_or(InstallTarget::Auto, InstallTarget::Device)),
            wipe: self.roll(2) == 1,
            slot: self.maybe(|d| d.pick(&["A", "B", "factory"]).to_owned()),
            trial: self.roll(2) == 1,
            upgrade_key: self
                .maybe(|_| "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3".to_owned()),
            registry_mirrors: self.some(|d| RegistryMirror {
                host: d.pick(&["docker.io", "registry:5000"]).to_owned(),
                url: d
                    .pick(&["http://10.0.2.2:5000", "https://m/docker.io?x=y"])
                    .to_owned(),
            }),
            config: self.maybe(|d| match d.roll(2) {
                0 => ConfigSource::Url("https://config/node.yaml".to_owned()),
                _ => ConfigSource::Labelled {
                    label: "CONFIG".to_owned(),
                    path: "/my node.yaml".to_owned(),
                },
            }),
            ip: self.some(Self::ip),
            nameservers: self.some(Self::address),
            bonds: self.some(|d| Bond {
                name: "bond0".to_owned(),
                members: d.some(|d| d.pick(&["eth0", "eth1"]).to_owned()),
                options: d.some(|d| ("mode".to_owned(), d.pick(&["802.3ad", "1"]).to_owned())),
                mtu: d.maybe(|_| 9000),
            }),
            vlans: self.some(|_| Vlan {
                name: "vlan7".to_owned(),
                device: "eth0".to_owned(),
                id: 7,
            }),
            consoles: self.some(|d| d.pick(&["tty0", "ttyS0,115200n8"]).to_owned()),
            panic: self.maybe(|d| d.roll(100) as i32 - 50),
        }
    }
}

#[test]
fn what_is_written_is_read_back() {
    for seed in 1..=2000_u64 {
        let config = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)).config();
        let text = config.to_string();
        let (read, errors) = parse(&text);
        assert_eq!(errors, [], "seed {seed}: {text}");
        assert_eq!(read, config, "seed {seed}: {text}");
    }
}

#[test]
fn no_text_makes_the_parser_panic() {
    let pieces = [
        "ip=", ":", "[", "]", "\"", " ", "=", "ironlet.", "token", "10.0.0.1", "/", "24", "é", "\0", ".", ",",
    ];
    for seed in 1..=5000_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let text: String = (0..dice.roll(20)).map(|_| dice.pick(&pieces)).collect();
        let (config, _) = parse(&text);
        assert_eq!(parse(&config.to_string()).0, config, "{text}");
    }
}
