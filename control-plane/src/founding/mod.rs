//! Founding: the files a control plane cannot start without, made once and renewed in time.

mod plan;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use jiff::Timestamp;
use pki::BootstrapToken;

pub use plan::{Founding, files};

use crate::{files as disk, flags};

/// `control-plane found`.
pub fn run(flags: &flags::Found) -> anyhow::Result<()> {
    let request = request(
        &flags.founding,
        &flags.cluster,
        flags.advertise_address,
        flags.advertise_address,
        flags.secure_port,
    )?;
    disk::create_directory(&flags.founding.data_dir)?;
    let _lock = disk::lock(&flags.founding.data_dir.join("lock"))?;
    found(&flags.founding, &request)
}

/// Brings the data directory up to what `request` asks for.
pub fn found(flags: &flags::Founding, request: &Founding) -> anyhow::Result<()> {
    let directory = &flags.data_dir;
    let mut existing = BTreeMap::new();
    for name in plan::file_names() {
        if let Some(content) = disk::read_optional(&directory.join(name))? {
            existing.insert(name.to_owned(), content);
        }
    }
    let mut request = request.clone();
    if let Some(path) = &flags.bootstrap_token_file {
        request.bootstrap_token = read_token(path)?;
    }
    let writes = plan::plan(&existing, &request, Timestamp::now())
        .with_context(|| format!("--data-dir {}", directory.display()))?;
    for write in &writes {
        let path = directory.join(write.name);
        if let Some(parent) = path.parent() {
            disk::create_directory(parent)?;
        }
        disk::write(&path, &write.content)?;
        tracing::info!(file = %path.display(), why = write.why, "written");
    }
    if let Some(path) = &flags.bootstrap_token_file
        && disk::read_optional(path)?.is_none()
    {
        let token = disk::read(&directory.join(files::BOOTSTRAP_TOKEN))?;
        disk::write(path, &token)?;
        tracing::info!(file = %path.display(), "bootstrap token written");
    }
    Ok(())
}

/// What the flags ask for. `server` is the address our own components use.
pub fn request(
    founding: &flags::Founding,
    cluster: &flags::Cluster,
    advertise_address: IpAddr,
    server: IpAddr,
    port: u16,
) -> anyhow::Result<Founding> {
    let mut names: Vec<String> = hostname().into_iter().collect();
    let mut addresses = Vec::new();
    for name in &founding.apiserver_cert_extra_sans {
        match name.parse::<IpAddr>() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(name.clone()),
        }
    }
    Ok(Founding {
        advertise_address,
        server: crate::components::url(server, port),
        service_address: first_address(&cluster.service_cluster_ip_range)?,
        cluster_domain: cluster.cluster_domain.clone(),
        names,
        addresses,
        bootstrap_token: None,
        cluster_id: founding.cluster_id.clone(),
    })
}

fn read_token(path: &PathBuf) -> anyhow::Result<Option<BootstrapToken>> {
    let Some(text) = disk::read_optional(path)? else {
        return Ok(None);
    };
    let token = BootstrapToken::parse(text.trim())
        .with_context(|| format!("--bootstrap-token-file {}", path.display()))?;
    Ok(Some(token))
}

fn hostname() -> Option<String> {
    let name = disk::read(Path::new("/proc/sys/kernel/hostname")).ok()?;
    let name = name.trim();
    (!name.is_empty() && name != "(none)").then(|| name.to_owned())
}

/// The address of the `kubernetes` Service: the first after the network's own.
fn first_address(ranges: &[String]) -> anyhow::Result<IpAddr> {
    let range = ranges.first().context("--service-cluster-ip-range is empty")?;
    let (address, bits) = range
        .split_once('/')
        .context("--service-cluster-ip-range: expected ADDRESS/BITS")?;
    let bits: u32 = bits.parse()?;
    Ok(match address.parse()? {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            IpAddr::V4(((u32::from(address) & mask) + 1).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            IpAddr::V6(((u128::from(address) & mask) + 1).into())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_service_address_follows_the_network() {
        for (range, address) in [
            ("10.96.0.0/12", "10.96.0.1"),
            ("10.97.3.4/12", "10.96.0.1"),
            ("192.168.1.0/24", "192.168.1.1"),
            ("fd00:10::/108", "fd00:10::1"),
        ] {
            let expected: IpAddr = address.parse().unwrap();
            assert_eq!(first_address(&[range.into()]).unwrap(), expected, "{range}");
        }
    }
}
