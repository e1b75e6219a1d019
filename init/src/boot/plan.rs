//! The boot, read top to bottom.

use super::{
    Boot,
    Policy::{Degrade, Rescue},
    Step, StepError, cgroups, files, mounts, root, sysctls,
};
use crate::{console, modules, services::table, sys::clock, thread::keep, time};
use node_config::NodeConfig;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::{
    fs, io,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "mounts",
        on_failure: Degrade,
        run: |_| mounts::mount_all(),
    },
    Step {
        name: "consoles",
        on_failure: Degrade,
        run: |_| consoles(),
    },
    Step {
        name: "modules for the root",
        on_failure: Degrade,
        run: |_| listed_modules(),
    },
    Step {
        name: "root",
        on_failure: Rescue,
        run: |boot| {
            boot.payload = root::enter()?;
            Ok(())
        },
    },
    Step {
        name: "parameters",
        on_failure: Degrade,
        run: parameters,
    },
    Step {
        name: "limits",
        on_failure: Degrade,
        run: |_| limits(),
    },
    Step {
        name: "drivers",
        on_failure: Degrade,
        run: drivers,
    },
    Step {
        name: "kernel settings",
        on_failure: Degrade,
        run: |_| sysctls::apply(),
    },
    Step {
        name: "cgroups",
        on_failure: Degrade,
        run: |_| cgroups::delegate(),
    },
    Step {
        name: "clock",
        on_failure: Degrade,
        run: |_| Ok(time::from_battery()?),
    },
    Step {
        name: "files",
        on_failure: Degrade,
        run: |_| files::prepare(),
    },
    Step {
        name: "image",
        on_failure: Degrade,
        run: image,
    },
];

fn consoles() -> Result<(), StepError> {
    keep("consoles", console::write_forever);
    Ok(())
}

/// Parameters that a later version acts on; silence would look like consent.
type Later = (&'static str, fn(&NodeConfig) -> bool);
const LATER: &[Later] = &[("ironlet.config=", |config| config.config.is_some())];

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
    told.iter()
        .for_each(|error| console::say(format_args!("parameter error: {error}")));
    if config.install.is_none() {
        // Its memory is for others.
        boot.payload = None;
    }
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
    let names = list
        .lines()
        .map(str::trim)
        .filter(|name| !name.is_empty() && !name.starts_with('#'));
    collect(names.filter_map(|name| loader.load(name).err()))
}

/// Resources of every process to come. The kernel starts PID 1 with 4096 files at most; etcd, the agent and servers
/// in containers need more.
fn limits() -> Result<(), StepError> {
    const FILES: u64 = 1 << 20;
    let limit = |most| Rlimit {
        current: most,
        maximum: most,
    };
    let limits = [
        (Resource::Nofile, limit(Some(FILES))),
        (Resource::Nproc, limit(None)),
        (
            Resource::Core,
            Rlimit {
                current: Some(0),
                maximum: None,
            },
        ),
    ];
    collect(
        limits
            .into_iter()
            .filter_map(|(resource, limit)| setrlimit(resource, limit).err().map(io::Error::from)),
    )
}

/// Drivers of the devices present and to come, then the modules that no device announces, beside the rest of boot:
/// it is seconds of work on a slow machine, the first pod is far, and who needs a module sooner has the kernel ask for
/// it. Settings of modules come after them.
fn drivers(boot: &mut Boot) -> Result<(), StepError> {
    let settled = boot.devices_settled.clone();
    if !Path::new("/usr/lib/modules").exists() {
        settled.store(true, Ordering::Release);
        return Ok(());
    }
    let loader = Arc::new(modules::Loader::of_running_kernel()?);
    let listener = modules::Listener::open()?;
    let for_late_devices = loader.clone();
    keep("devices", move || {
        while let Err(error) = listener.serve(&for_late_devices) {
            console::say(format_args!("device events: {error}"));
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    });
    keep("drivers", move || {
        let started = clock::since_boot();
        modules::load_for_devices_present(&loader);
        modules::name_virtio_ports();
        settled.store(true, Ordering::Release);
        let devices = clock::since_boot();
        for error in [listed_modules(), sysctls::apply()]
            .into_iter()
            .filter_map(Result::err)
        {
            console::say(format_args!("modules and their settings: {error}"));
        }
        let (devices, modules) = (
            (devices - started).as_millis(),
            (clock::since_boot() - devices).as_millis(),
        );
        console::say(format_args!(
            "drivers of devices: {devices} ms, other modules: {modules} ms, beside the boot"
        ));
    });
    Ok(())
}

fn image(boot: &mut Boot) -> Result<(), StepError> {
    boot.image = table::ImageFacts {
        control_plane: Path::new("/usr/bin/control-plane").exists(),
        openapi_descriptions: Path::new(table::OPENAPI_DESCRIPTIONS).exists(),
        // Ports are announced while boot goes on.
        kubeconfig_port: false,
        screen: console::has_screen(),
    };
    console::say(format_args!("role {}", table::role(&boot.config, &boot.image)));
    if let Some(slot) = &boot.config.slot {
        console::say(format_args!("slot {slot} of the installed systems"));
    }
    Ok(())
}

/// One failure does not stop the others from being tried, and each is told.
pub(super) fn collect<E: ToString>(errors: impl Iterator<Item = E>) -> Result<(), StepError> {
    let errors: Vec<String> = errors.map(|error| error.to_string()).collect();
    if errors.is_empty() {
        Ok(())
    } else {
        Err(StepError::Several(errors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(name: &str) -> usize {
        STEPS
            .iter()
            .position(|step| step.name == name)
            .unwrap_or_else(|| panic!("no step {name}"))
    }

    #[test]
    fn steps_come_after_what_they_need() {
        for (before, after) in [
            ("mounts", "consoles"),
            ("modules for the root", "root"),
            ("root", "drivers"),
            ("root", "parameters"),
            ("parameters", "image"),
        ] {
            assert!(
                position(before) < position(after),
                "{before} must come before {after}"
            );
        }
    }

    #[test]
    fn parameters_of_later_versions_are_not_ignored() {
        let of = |cmdline: &str| -> Vec<&str> {
            let config = node_config::parse(cmdline).0;
            let named = LATER.iter().filter(|(_, given)| given(&config));
            named.map(|(name, _)| *name).collect()
        };
        assert_eq!(of("ironlet.config=https://c/x"), ["ironlet.config="]);
        assert_eq!(of("ip=dhcp ironlet.role=worker bond=bond0:eth0"), [""; 0]);
    }
}
