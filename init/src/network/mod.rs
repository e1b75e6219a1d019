//! The machine's network: interfaces configured as they appear, by DHCP or as the command line says.

mod dhcp;
pub mod netlink;
mod plan;
mod snapshot;
mod stacked;

pub use snapshot::{Interface, Snapshot};

use crate::{console, thread::keep};
use dhcp::Lease;
use netlink::{Link, LinkChanges, Netlink, Route};
use node_config::{NodeConfig, StaticAddress};
use plan::{Assignment, Method};
use stacked::Step;
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

/// The metric of interface number 0; later interfaces' default routes are worse.
const METRIC: u32 = 100;

const RETRY: Duration = Duration::from_secs(5);

/// Tells the machine what the network is now.
type Notify = Arc<dyn Fn(Snapshot) + Send + Sync>;

#[derive(Clone)]
struct Network {
    config: Arc<NodeConfig>,
    snapshot: Arc<Mutex<Snapshot>>,
    notify: Notify,
}

/// Configures interfaces now and whenever one appears, for ever, in threads of its own.
pub fn start(config: Arc<NodeConfig>, notify: impl Fn(Snapshot) + Send + Sync + 'static) {
    let network = Network {
        config,
        snapshot: Arc::default(),
        notify: Arc::new(notify),
    };
    keep("network", move || {
        loop {
            if let Err(error) = network.follow_links() {
                console::say(format_args!("network: {error}; trying again"));
            }
            thread::sleep(RETRY);
        }
    });
}

impl Network {
    fn follow_links(&self) -> io::Result<()> {
        // Opened before links are listed, so that none is missed in between.
        let changes = LinkChanges::open()?;
        let mut netlink = Netlink::open()?;
        let links = netlink.links()?;
        if let Some(loopback) = links.iter().find(|link| link.name == "lo") {
            netlink.set_up(loopback.index, None, None)?;
        }
        loop {
            let links = netlink.links()?;
            self.update(|snapshot| {
                snapshot
                    .interfaces
                    .retain(|interface| links.iter().any(|link| link.index == interface.index));
                snapshot.missing = plan::missing(&self.config, &links);
            });
            let configured: Vec<String> =
                self.lock(|snapshot| snapshot.interfaces.iter().map(|i| i.name.clone()).collect());
            for step in stacked::steps(&self.config, &links) {
                if let Err((name, error)) = take(&mut netlink, step) {
                    console::say(format_args!("{name}: {error}"));
                }
            }
            for assignment in plan::assignments(&self.config, &links, &configured) {
                let name = assignment.link.name.clone();
                if let Err(error) = self.configure(&mut netlink, assignment) {
                    console::say(format_args!("{name}: {error}"));
                }
            }
            changes.wait()?;
        }
    }

    fn configure(&self, netlink: &mut Netlink, assignment: Assignment) -> io::Result<()> {
        let link = &assignment.link;
        let mut interface = Interface::new(link);
        interface.nameservers.clone_from(&assignment.nameservers);
        interface.ntp.extend(assignment.ntp);
        interface.hostname.clone_from(&assignment.hostname);
        self.update(|snapshot| snapshot.set(interface.clone()));
        netlink.set_up(link.index, assignment.mtu, assignment.mac)?;
        match assignment.method {
            Method::Static(address) => {
                set_static(netlink, link, &address)?;
                console::say(format_args!(
                    "{}: {}/{} (static)",
                    link.name, address.address, address.prefix
                ));
                interface.address = Some((address.address, address.prefix));
                interface.default_route = address.gateway.is_some();
                self.update(|snapshot| snapshot.set(interface));
            }
            Method::Dhcp => {
                console::say(format_args!("{}: asking for an address (DHCP)", link.name));
                self.follow_leases(link.clone(), interface);
            }
        }
        Ok(())
    }

    fn follow_leases(&self, link: Link, interface: Interface) {
        let network = self.clone();
        keep(&format!("dhcp-{}", link.name), move || {
            let hostname = network.config.hostname.clone();
            while network.lock(|snapshot| snapshot.interfaces.iter().any(|i| i.index == link.index)) {
                let changed = |change| network.lease_changed(&link, &interface, change);
                if let Err(error) = dhcp::run(&link, hostname.clone(), changed) {
                    console::say(format_args!("{}: DHCP: {error}; trying again", link.name));
                }
                thread::sleep(RETRY);
            }
        });
    }

    fn lease_changed(&self, link: &Link, interface: &Interface, change: dhcp::Change) {
        let mut interface = interface.clone();
        let result = Netlink::open().and_then(|mut netlink| match change {
            dhcp::Change::Use(lease) => {
                use_lease(&mut netlink, link, &lease)?;
                interface.lease(&lease);
                Ok(())
            }
            dhcp::Change::Drop(lease) => {
                netlink.remove_address(link.index, lease.address.into(), lease.prefix)
            }
        });
        if let Err(error) = result {
            console::say(format_args!("{}: applying the lease: {error}", link.name));
        }
        self.update(|snapshot| snapshot.set(interface));
    }

    fn lock<T>(&self, look: impl FnOnce(&mut Snapshot) -> T) -> T {
        look(&mut self.snapshot.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        let changed = self.lock(|snapshot| {
            let before = snapshot.clone();
            change(snapshot);
            (*snapshot != before).then(|| snapshot.clone())
        });
        if let Some(snapshot) = changed {
            (self.notify)(snapshot);
        }
    }
}

/// Carries out one step towards a bond or VLAN; the next one follows from the change it makes.
fn take(netlink: &mut Netlink, step: Step) -> Result<(), (String, io::Error)> {
    match step {
        Step::MakeBond { name, options, mtu } => {
            let made = netlink.add_bond(&name).and_then(|()| {
                // Text as on the command line, which netlink has no form for.
                let directory = Path::new("/sys/class/net").join(&name).join("bonding");
                options.iter().try_for_each(|(option, value)| {
                    let set = fs::write(directory.join(option), value);
                    set.map_err(|error| io::Error::other(format!("{option}={value}: {error}")))
                })?;
                let links = netlink.links()?;
                let bond = links.iter().find(|link| link.name == name);
                bond.map_or(Ok(()), |bond| netlink.set_up(bond.index, mtu, None))
            });
            made.map_err(|error| (name, error))
        }
        Step::AddMember { bond, member } => {
            netlink
                .add_member(bond.index, member.index)
                .map_err(|error| (format!("{} of {}", member.name, bond.name), error))?;
            console::say(format_args!("{}: {} is a member", bond.name, member.name));
            Ok(())
        }
        Step::MakeVlan { name, id, device } => {
            let made = netlink
                .set_up(device.index, None, None)
                .and_then(|()| netlink.add_vlan(&name, id, device.index));
            made.map_err(|error| (name.clone(), error))?;
            console::say(format_args!("{name}: VLAN {id} of {}", device.name));
            Ok(())
        }
    }
}

fn set_static(netlink: &mut Netlink, link: &Link, address: &StaticAddress) -> io::Result<()> {
    netlink.add_address(link.index, address.address, address.prefix, address.peer)?;
    let Some(gateway) = address.gateway else {
        return Ok(());
    };
    add_gateway(netlink, link, None, gateway, address.address)
}

fn use_lease(netlink: &mut Netlink, link: &Link, lease: &Lease) -> io::Result<()> {
    if lease.mtu.is_some() {
        netlink.set_up(link.index, lease.mtu, None)?;
    }
    netlink.add_address(link.index, lease.address.into(), lease.prefix, None)?;
    for ((destination, prefix), gateway) in &lease.routes {
        let destination = (*prefix > 0).then_some((IpAddr::V4(*destination), *prefix));
        if *gateway == Ipv4Addr::UNSPECIFIED {
            let metric = METRIC + link.index;
            netlink.add_route(
                link.index,
                &Route {
                    destination,
                    gateway: None,
                    source: None,
                    metric,
                },
            )?;
        } else {
            add_gateway(
                netlink,
                link,
                destination,
                (*gateway).into(),
                lease.address.into(),
            )?;
        }
    }
    Ok(())
}

/// A route through a gateway, which need not be within the interface's own prefix.
fn add_gateway(
    netlink: &mut Netlink,
    link: &Link,
    destination: Option<(IpAddr, u8)>,
    gateway: IpAddr,
    source: IpAddr,
) -> io::Result<()> {
    let metric = METRIC + link.index;
    let route = Route {
        destination,
        gateway: Some(gateway),
        source: Some(source),
        metric,
    };
    match netlink.add_route(link.index, &route) {
        Err(error) if error.raw_os_error() == Some(libc::ENETUNREACH) => {
            let bits = if gateway.is_ipv4() { 32 } else { 128 };
            let direct = Route {
                destination: Some((gateway, bits)),
                gateway: None,
                source: Some(source),
                metric,
            };
            netlink.add_route(link.index, &direct)?;
            netlink.add_route(link.index, &route)
        }
        result => result,
    }
}
