//! `image`: builds what a machine boots, from Debian packages and our own executables.

mod addons;
mod build;
mod contents;
mod cpio;
mod descriptions;
mod digest;
mod elf;
mod formats;
mod grub;
mod kernel;
mod manifest;
mod mirrors;
mod modules;
mod oci;
mod packages;
mod rootfs;
mod run;
mod squashfs;
mod tree;
mod workdir;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use formats::Format;
use node_config::Role;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Build Ironlet's images.
#[derive(Parser)]
#[command(name = "image", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build an image: OUT/manifest.json and, by format, OUT/{vmlinuz,initramfs,cmdline}, ironlet.iso, disk.raw, pxe/
    Build(BuildArguments),
    /// Take one file out of the newest version of a Debian package (the tests' and qemu/up's kubectl comes this way)
    Fetch(FetchArguments),
    /// Write a container image that travels inside the images as an OCI archive
    Archive(ArchiveArguments),
}

#[derive(Args)]
struct BuildArguments {
    /// What the machine is: worker or master (includes the control plane and etcd)
    #[arg(long, value_parser = role)]
    role: Role,
    /// Output format, repeatable
    #[arg(long, value_enum, default_value = "kernel")]
    format: Vec<Format>,
    /// Kernel parameters to bake in after the image's own
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    cmdline: String,
    /// Directory to write to
    #[arg(long)]
    out: PathBuf,
    /// Directory of the executables init, agent, control-plane and the add-ons [default: where `image` itself is]
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// Look for newer packages now, not only once a day
    #[arg(long)]
    refresh: bool,
}

#[derive(Args)]
struct FetchArguments {
    /// Debian package
    #[arg(long)]
    package: String,
    /// Path inside the package
    #[arg(long)]
    file: PathBuf,
    /// File to write
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args)]
struct ArchiveArguments {
    /// Container image
    #[arg(long, value_enum)]
    name: Addon,
    /// Directory of our own programs, for those that are ours
    #[arg(long, required_if_eq_any = [("name", "cluster-dns"), ("name", "metrics-server")])]
    binaries: Option<PathBuf>,
    /// File to write
    #[arg(long)]
    out: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Addon {
    Busybox,
    ClusterDns,
    MetricsServer,
}

fn role(text: &str) -> Result<Role, String> {
    text.parse().map_err(|_| "expected worker or master".to_owned())
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Build(arguments) => build(arguments),
        Command::Fetch(arguments) => fetch(&arguments),
        Command::Archive(arguments) => archive(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build(arguments: BuildArguments) -> anyhow::Result<()> {
    let (_, errors) = node_config::parse(&arguments.cmdline);
    if let Some(error) = errors.first() {
        bail!("--cmdline: {error}");
    }
    let request = build::Request {
        role: arguments.role,
        formats: arguments.format,
        cmdline: arguments.cmdline,
        binaries: match arguments.binaries {
            Some(directory) => directory,
            None => own_directory()?,
        },
        out: arguments.out,
        cache: cache()?,
        refresh: arguments.refresh,
    };
    let manifest = build::build(&request)?;
    println!("{} image, kernel {}", manifest.role, manifest.kernel);
    for part in manifest.parts.iter().filter(|part| part.size > 0) {
        println!(
            "  {:<24} {:>10}  {}",
            part.name,
            size(part.size),
            part.version.as_deref().unwrap_or_default()
        );
    }
    println!("written to {}", request.out.display());
    for file in &manifest.files {
        println!("  {:<24} {:>10}", file.name, size(file.size));
    }
    let total = manifest.files.iter().map(|file| file.size).sum();
    println!("  {:<24} {:>10}", "total", size(total));
    Ok(())
}

fn fetch(arguments: &FetchArguments) -> anyhow::Result<()> {
    let packages = packages()?;
    let package = packages.find(&arguments.package)?;
    let relative = arguments.file.strip_prefix("/").unwrap_or(&arguments.file);
    let source = packages.extract(&package)?.join(relative);
    create_parent(&arguments.out)?;
    fs::copy(&source, &arguments.out).with_context(|| {
        format!(
            "--file {}: copy it out of {} {}",
            arguments.file.display(),
            package.name,
            package.version
        )
    })?;
    println!(
        "{} {} -> {}",
        package.name,
        package.version,
        arguments.out.display()
    );
    Ok(())
}

fn archive(arguments: &ArchiveArguments) -> anyhow::Result<()> {
    let binaries = arguments.binaries.as_deref().unwrap_or(Path::new(""));
    let own =
        |addon: &addons::Own| anyhow::Ok((addon.name, addon.archive(binaries)?, addons::VERSION.to_owned()));
    let (name, archive, version) = match arguments.name {
        Addon::Busybox => {
            let (archive, version) = addons::busybox(&packages()?)?;
            ("busybox", archive, version)
        }
        Addon::ClusterDns => own(&addons::CLUSTER_DNS)?,
        Addon::MetricsServer => own(&addons::METRICS_SERVER)?,
    };
    create_parent(&arguments.out)?;
    fs::write(&arguments.out, archive).with_context(|| format!("--out {}", arguments.out.display()))?;
    println!("{name} {version} -> {}", arguments.out.display());
    Ok(())
}

fn packages() -> anyhow::Result<packages::Packages> {
    Ok(packages::Packages::open(&cache()?.join("packages"), false)?)
}

fn create_parent(out: &Path) -> anyhow::Result<()> {
    match out.parent() {
        Some(parent) => {
            fs::create_dir_all(parent).with_context(|| format!("--out: create {}", parent.display()))
        }
        None => Ok(()),
    }
}

fn own_directory() -> anyhow::Result<PathBuf> {
    let own = env::current_exe().context("find the own executable; say --binaries")?;
    Ok(own
        .parent()
        .context("the own executable has no directory; say --binaries")?
        .to_owned())
}

/// `$XDG_CACHE_HOME/ironlet` or `~/.cache/ironlet`.
fn cache() -> anyhow::Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    let base = base.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    Ok(base
        .context("neither XDG_CACHE_HOME nor HOME is set: no place to keep downloads")?
        .join("ironlet"))
}

/// Sizes as people read them, in powers of 1000.
fn size(bytes: usize) -> String {
    if bytes < 1_000_000 {
        format!("{:.1} kB", bytes as f64 / 1e3)
    } else {
        format!("{:.1} MB", bytes as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        for (bytes, want) in [(512, "0.5 kB"), (12_345, "12.3 kB"), (34_671_208, "34.7 MB")] {
            assert_eq!(size(bytes), want);
        }
    }

    #[test]
    fn arguments_are_checked_by_name() {
        let parse = |words: &[&str]| Cli::try_parse_from(["image", "build"].iter().chain(words));
        assert!(parse(&["--role", "worker", "--out", "o", "--format", "kernel"]).is_ok());
        let error = parse(&["--role", "boss", "--out", "o"])
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("--role") && error.contains("expected worker or master"),
            "{error}"
        );
    }
}
