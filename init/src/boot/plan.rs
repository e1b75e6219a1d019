//! The boot, read top to bottom.

use super::{
    Boot, Policy::{Degrade, Rescue}, Step, StepError, cgroups, files, mounts, root, sysctls,
};
use crate::{console, disk, modules, services::table, thread::keep, time};
use node_config::NodeConfig;
use std::{fs, io, path::Path, sync::Arc};

pub(super) const STEPS: &[Step] = &[
    Step { name: "mounts", on_failure: Degrade, run: |_| mounts::mount_all() },
    Step { name: "consoles", on_failure: Degrade, run: |_| consoles() },
    Step { name: "modules for the root", on_failure: Degrade, run: |_| listed_modules() },
    Step { name: "root", on_failure: Rescue, run: |_| root::enter() },
    Step { name: "parameters", on_failure: Degrade, run: parameters },
    Step { name: "modules", on_failure: Degrade, run: |_| listed_modules() },
    Step { name: "devices", on_failure: Degrade, run: |_| devices() },
    Step { name: "cgroups", on_failure: Degrade, run: |_| cgroups::delegate() },
    Step { name: "kernel settings", on_failure: Degrade, run: |_| sysctls::apply() },
    Step { name: "clock", on_failure: Degrade, run: |_| Ok(time::from_battery()?) },
    Step { name: "files", on_failure: Degrade, run: |_| files::prepare() },
    Step { name: "image", on_failure: Degrade, run: image },
];

fn consoles() -> Result<(), StepError> {
    keep("consoles", console::write_forever);
    Ok(())
}

/// Parameters that a later version acts on; silence would look like consent.
type Later = (&'static str, fn(&NodeConfig) -> bool);
const LATER: &[Later] = &[
    ("bond=", |config| !config.bonds.is_empty()),
    ("vlan=", |config| !config.vlans.is_empty()),
    ("ironlet.install=", |config| config.install.is_some()),
    ("ironlet.config=", |config| config.config.is_some()),
];

/// Defaults the image brings, overridden by what the loader passed.
const IMAGE_PARAMETERS: &str = "/usr/lib/ironlet/cmdline";

/// Where the agent reads what was wrong with the command line, one error a line.
const PARAMETER_ERRORS: &str = "/run/ironlet/parameter-errors";

fn parameters(boot: &mut Boot) -> Result<(), StepError> {
    let baked = fs::read_to_string(IMAGE_PARAMETERS).unwrap_or_default();
    let given = fs::read_to_string("/proc/cmdline").map_err(StepError::at("/proc/cmdline"))?;
    let (config, errors) = node_config::parse(&format!("{baked} {given}"));
    let mut told: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let later = LATER.iter().filter(|(_, given)| given(&config));
    told.extend(later.map(|(name, _)| format!("{name}: not supported by this version, and ignored")));
    told.iter().for_each(|error| console::say(format_args!("parameter error: {error}")));
    boot.config = Arc::new(config);
    fs::create_dir_all("/run/ironlet/log").map_err(StepError::at("/run/ironlet/log"))?;
    let text: String = told.iter().map(|error| format!("{error}\n")).collect();
    fs::write(PARAMETER_ERRORS, text).map_err(StepError::at(PARAMETER_ERRORS))
}

fn listed_modules() -> Result<(), StepError> {
    let list = match fs::read_to_string(modules::LIST) {
        Ok(list) => list,
        // An image whose kernel has everything built in needs no list.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StepError::at(modules::LIST)(error)),
    };
    let loader = modules::Loader::of_running_kernel()?;
    let names = list.lines().map(str::trim).filter(|name| !name.is_empty() && !name.starts_with('#'));
    collect(names.filter_map(|name| loader.load(name).err()))
}

fn devices() -> Result<(), StepError> {
    if !Path::new("/usr/lib/modules").exists() {
        return Ok(());
    }
    let loader = modules::Loader::of_running_kernel()?;
    let listener = modules::Listener::open()?;
    let failed: Vec<_> =
        modules::devices_present().iter().filter_map(|alias| loader.load_for_device(alias).err()).collect();
    modules::name_virtio_ports();
    keep("devices", move || {
        while let Err(error) = listener.serve(&loader) {
            console::say(format_args!("device events: {error}"));
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    });
    collect(failed.into_iter())
}

fn image(boot: &mut Boot) -> Result<(), StepError> {
    boot.image = table::ImageFacts {
        control_plane: Path::new("/usr/bin/control-plane").exists(),
        openapi_descriptions: Path::new(table::OPENAPI_DESCRIPTIONS).exists(),
        kubeconfig_port: Path::new(table::KUBECONFIG_PORT).exists(),
    };
    let devices: Vec<String> = disk::block_devices().iter().map(|path| path.display().to_string()).collect();
    console::say(format_args!("role {}; disks: {}", table::role(&boot.config, &boot.image), devices.join(" ")));
    Ok(())
}

/// One failure does not stop the others from being tried, and each is told.
pub(super) fn collect<E: ToString>(errors: impl Iterator<Item = E>) -> Result<(), StepError> {
    let errors: Vec<String> = errors.map(|error| error.to_string()).collect();
    if errors.is_empty() { Ok(()) } else { Err(StepError::Several(errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(name: &str) -> usize {
        STEPS.iter().position(|step| step.name == name).unwrap_or_else(|| panic!("no step {name}"))
    }

    #[test]
    fn steps_come_after_what_they_need() {
        for (before, after) in [
            ("mounts", "consoles"),
            ("modules for the root", "root"),
            ("root", "modules"),
            ("root", "parameters"),
            ("modules", "kernel settings"),
            ("devices", "image"),
            ("parameters", "image"),
        ] {
            assert!(position(before) < position(after), "{before} must come before {after}");
        }
    }

    #[test]
    fn parameters_of_later_versions_are_not_ignored() {
        for cmdline in ["bond=bond0:eth0", "vlan=v7:eth0", "ironlet.install=auto", "ironlet.config=https://c/x"] {
            let config = node_config::parse(cmdline).0;
            let named: Vec<_> = LATER.iter().filter(|(_, given)| given(&config)).map(|(name, _)| *name).collect();
            assert_eq!(named.len(), 1, "{cmdline}");
            assert!(cmdline.starts_with(named[0]), "{cmdline}");
        }
        let none = node_config::parse("ip=dhcp ironlet.role=worker").0;
        assert!(!LATER.iter().any(|(_, given)| given(&none)));
    }
}
