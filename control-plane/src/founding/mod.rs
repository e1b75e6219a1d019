//! Founding: the files a control plane cannot start without, made once and renewed in time.

mod plan;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use pki::BootstrapToken;

use plan::FileWrite;
pub use plan::{Founding, files};

use crate::files::{self as disk, FileError};
use crate::flags;

const WRITERS: usize = 8;

/// `control-plane found`.
pub fn run(flags: &flags::Found) -> anyhow::Result<()> {
    let server = SocketAddr::new(flags.advertise_address, flags.secure_port);
    let request = request(
        &flags.founding,
        &flags.cluster,
        flags.advertise_address,
        Some(server),
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
    write_all(directory, &writes)?;
    if let Some(path) = &flags.bootstrap_token_file
        && disk::read_optional(path)?.is_none()
    {
        let token = disk::read(&directory.join(files::BOOTSTRAP_TOKEN))?;
        disk::write(path, &token)?;
        let pin = pki::ca_pin(&disk::read(&directory.join(format!("{}.crt", files::CA)))?)?;
        // Nobody was given this token: the machine's console is where people find it.
        println!(
            "others join with ironlet.token={} ironlet.ca-hash={pin}",
            token.trim()
        );
    }
    Ok(())
}

/// Each write waits for the disk, so they wait together; all but the last, which vouches for the others.
fn write_all(directory: &Path, writes: &[FileWrite]) -> Result<(), FileError> {
    let write = |write: &FileWrite| {
        let path = directory.join(write.name);
        disk::write(&path, &write.content)?;
        tracing::info!(file = %path.display(), why = write.why, "written");
        Ok(())
    };
    for parent in writes.iter().filter_map(|write| Path::new(write.name).parent()) {
        disk::create_directory(&directory.join(parent))?;
    }
    let Some((last, others)) = writes.split_last() else {
        return Ok(());
    };
    std::thread::scope(|scope| {
        let chunks = others.chunks(others.len().div_ceil(WRITERS).max(1));
        let threads: Vec<_> = chunks
            .map(|chunk| scope.spawn(move || chunk.iter().try_for_each(write)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    write(last)
}

/// What the flags ask for. `server` is where our own components find the API server, when that is known.
pub fn request(
    founding: &flags::Founding,
    cluster: &flags::Cluster,
    advertise_address: IpAddr,
    server: Option<SocketAddr>,
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
        server: server.map(|server| crate::components::url(server.ip(), server.port())),
        service_address: first_address(&cluster.service_cluster_ip_range)?,
        cluster_domain: cluster.cluster_domain.clone(),
        names,
        addresses,
        bootstrap_token: None,
        cluster_id: founding.cluster_id.clone(),
    })
}

fn read_token(path: &Path) -> anyhow::Result<Option<BootstrapToken>> {
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
