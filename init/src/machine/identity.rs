//! Who this machine is, kept on the state disk: its name, its machine ID, its token, and what the next boot needs.

use crate::{services::table, sys::entropy, time};
use node_config::NodeConfig;
use std::{
    fs, io,
    io::Write,
    net::IpAddr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

/// Directories of /var that programs expect, and their modes.
const DIRECTORIES: &[(&str, u32)] = &[
    ("/var/lib", 0o755),
    ("/var/lib/ironlet", 0o700),
    ("/var/log", 0o755),
    ("/var/cache", 0o755),
    ("/var/tmp", 0o1777),
];

fn kept(name: &str) -> PathBuf {
    Path::new(table::STATE).join(name)
}

/// Takes up what an earlier boot left on the state disk. Returns what went wrong, each for the console.
pub fn restore(config: &NodeConfig) -> Vec<String> {
    let steps: [(&str, io::Result<()>); 6] = [
        ("directories of /var", directories()),
        ("the last known time", last_known_time()),
        ("the saved random seed", credit_seed()),
        ("a new random seed", save_seed()),
        ("the machine ID", machine_id()),
        ("the bootstrap token's file", store_token(config)),
    ];
    steps
        .into_iter()
        .filter_map(|(what, result)| result.err().map(|error| format!("{what}: {error}")))
        .collect()
}

/// Leaves what the next boot takes up.
pub fn save() -> Vec<String> {
    let steps = [
        ("the random seed", save_seed()),
        ("the time", write_private(&kept("clock"), b"")),
    ];
    steps
        .into_iter()
        .filter_map(|(what, result)| result.err().map(|error| format!("saving {what}: {error}")))
        .collect()
}

fn directories() -> io::Result<()> {
    for (dir, mode) in DIRECTORIES {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(*mode))?;
    }
    match symlink("/run", "/var/run") {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The calendar must not fall behind the last moment this disk was in use.
fn last_known_time() -> io::Result<()> {
    let Ok(metadata) = fs::metadata(kept("clock")) else {
        return Ok(());
    };
    let known = metadata
        .modified()?
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    time::not_before(known)
}

/// A seed is credited once: it is gone from the disk before the kernel has it.
fn credit_seed() -> io::Result<()> {
    let path = kept("random-seed");
    let Ok(seed) = fs::read(&path) else { return Ok(()) };
    fs::remove_file(&path)?;
    fs::File::open(table::STATE)?.sync_all()?;
    match seed.try_into() {
        Ok(seed) => entropy::credit(seed),
        Err(_) => Err(io::Error::other("it has another size")),
    }
}

fn save_seed() -> io::Result<()> {
    write_private(&kept("random-seed"), &random::<{ entropy::SEED_BYTES }>()?)
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

/// machine-id(5): made once, kept, and shown where programs look for it.
fn machine_id() -> io::Result<()> {
    let path = kept("machine-id");
    let id = match fs::read_to_string(&path) {
        Ok(id) if is_machine_id(id.trim()) => id,
        _ => {
            let id = random::<16>()?
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
                + "\n";
            write_private(&path, id.as_bytes())?;
            id
        }
    };
    write_atomically(Path::new("/etc/machine-id"), &id)
}

fn is_machine_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The token goes to the agent and the founder in a file that only they can read.
fn store_token(config: &NodeConfig) -> io::Result<()> {
    match &config.token {
        Some(token) => write_private(Path::new(table::TOKEN_FILE), token.to_string().as_bytes()),
        None => Ok(()),
    }
}

/// The node's name: the command line's; else the one it had; else the network's.
pub fn hostname(config: &NodeConfig, networks: Option<String>) -> Option<String> {
    let kept = fs::read_to_string(kept("hostname"))
        .ok()
        .map(|name| name.trim().to_owned());
    config
        .hostname
        .clone()
        .or(kept.filter(|name| !name.is_empty()))
        .or(networks)
}

/// Becomes the machine of that name.
pub fn assume(name: &str) -> Vec<String> {
    let steps: [(&str, io::Result<()>); 3] = [
        (
            "setting the host name",
            rustix::system::sethostname(name.as_bytes()).map_err(Into::into),
        ),
        (
            "/etc/hostname",
            write_atomically(Path::new("/etc/hostname"), &format!("{name}\n")),
        ),
        (
            "keeping the host name",
            write_private(&kept("hostname"), name.as_bytes()),
        ),
    ];
    steps
        .into_iter()
        .filter_map(|(what, result)| result.err().map(|error| format!("{what}: {error}")))
        .collect()
}

/// Lets the machine find itself under its own name.
pub fn publish(ip: IpAddr, name: &str) -> io::Result<()> {
    write_atomically(Path::new("/etc/hosts"), &hosts(Some((ip, name))))
}

/// hosts(5)
pub fn hosts(this: Option<(IpAddr, &str)>) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    if let Some((ip, name)) = this {
        text.push_str(&format!("{ip} {name}\n"));
    }
    text
}

/// Readers see the old or the new content, never a part, and a power cut leaves one of the two.
pub fn write_atomically(path: &Path, content: &str) -> io::Result<()> {
    write(path, content.as_bytes(), 0o644)
}

fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    write(path, content, 0o600)
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_lines_name_wins_and_the_networks_is_the_last_resort() {
        let config = node_config::parse("ironlet.hostname=said").0;
        assert_eq!(
            hostname(&config, Some("given".to_owned())).as_deref(),
            Some("said")
        );
        let silent = node_config::parse("").0;
        assert_eq!(
            hostname(&silent, Some("given".to_owned())).as_deref(),
            Some("given")
        );
        assert_eq!(hostname(&silent, None), None);
    }

    #[test]
    fn files_are_replaced_as_a_whole_and_secrets_are_private() {
        let dir = std::env::temp_dir().join(format!("init-identity-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("secret");
        write_private(&path, b"first").unwrap();
        write_private(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing is left behind");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn local_names_always_resolve() {
        assert!(hosts(None).starts_with("127.0.0.1 localhost\n"));
        assert!(hosts(Some(("10.0.0.1".parse().unwrap(), "node-1"))).ends_with("10.0.0.1 node-1\n"));
    }
}
