//! The cgroup hierarchy of pods: `kubepods/{burstable,besteffort}/pod<uid>` with what the pod may use together.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use tracing::{info, warn};

use crate::context::uid;
use crate::resources::{CPU_PERIOD, QosClass, qos_class, quota, shares, weight};

const ROOT: &str = "kubepods";
const CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "cpuset", "hugetlb"];

/// When a limit of the pod is set beside those of its containers: before they grow, or after they have shrunk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Grow,
    Shrink,
}

/// Works on a cgroup v2 mount; a root without controllers gives pods no cgroups, said once.
pub struct Cgroups {
    root: Option<PathBuf>,
    pod_pids: Option<u64>,
}

/// What all pods together may use, and each one of processes.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    pub milli_cpus: i64,
    pub memory: Option<i64>,
    pub pod_pids: Option<u64>,
}

impl Cgroups {
    /// Creates the hierarchy's upper levels with every controller that the machine offers.
    pub fn new(root: &Path, node: &Limits) -> Self {
        match prepare(root, node) {
            Ok(()) => Self {
                root: Some(root.to_owned()),
                pod_pids: node.pod_pids,
            },
            Err(error) => {
                warn!(root = %root.display(), %error, "no cgroup v2 controllers: pods run without resource limits");
                Self {
                    root: None,
                    pod_pids: None,
                }
            }
        }
    }

    /// The pod's cgroup as CRI's `cgroup_parent`.
    pub fn parent(&self, pod: &Pod) -> String {
        if self.root.is_none() {
            return String::new();
        }
        format!("/{}", relative(pod))
    }

    /// Creates the pod's cgroup and sets its limits.
    pub fn create(&self, pod: &Pod) -> std::io::Result<()> {
        let Some(root) = &self.root else { return Ok(()) };
        let dir = root.join(relative(pod));
        fs::create_dir_all(&dir)?;
        enable_controllers(&dir);
        let pids = self.pod_pids.map(|limit| ("pids.max", limit.to_string()));
        set(&dir, limits(pod).into_iter().chain(pids))
    }

    /// Sets what has grown, or everything.
    pub fn resize(&self, pod: &Pod, step: Step) -> std::io::Result<()> {
        let Some(root) = &self.root else { return Ok(()) };
        let dir = root.join(relative(pod));
        let grows = |file: &str, value: &str| {
            let present = fs::read_to_string(dir.join(file)).unwrap_or_default();
            amount(value) > amount(&present)
        };
        let limits = limits(pod).into_iter();
        set(
            &dir,
            limits.filter(|(file, value)| step == Step::Shrink || grows(file, value)),
        )
    }

    /// How many processes and threads the pod has.
    pub fn processes(&self, pod: &Pod) -> u64 {
        let current = self
            .root
            .as_ref()
            .and_then(|root| fs::read_to_string(root.join(relative(pod)).join("pids.current")).ok());
        current.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// Removes the pod's cgroup with everything below it; processes must be gone.
    pub fn remove(&self, uid: &str) {
        let Some(root) = &self.root else { return };
        for class in ["", "burstable", "besteffort"] {
            let dir = root.join(ROOT).join(class).join(format!("pod{uid}"));
            if dir.exists()
                && let Err(error) = remove_tree(&dir)
            {
                info!(cgroup = %dir.display(), %error, "cgroup not removed yet");
            }
        }
    }
}

fn prepare(root: &Path, node: &Limits) -> std::io::Result<()> {
    let available = fs::read_to_string(root.join("cgroup.controllers"))?;
    if !available
        .split_whitespace()
        .any(|controller| controller == "memory")
    {
        return Err(std::io::Error::other("the memory controller is not available"));
    }
    enable_controllers(root);
    for class in ["", "burstable", "besteffort"] {
        let dir = root.join(ROOT).join(class);
        fs::create_dir_all(&dir)?;
        enable_controllers(&dir);
    }
    set(
        &root.join(ROOT).join("besteffort"),
        [("cpu.weight", "1".to_owned())].into_iter(),
    )?;
    let memory = node.memory.map_or("max".to_owned(), |bytes| bytes.to_string());
    let all = [
        ("cpu.weight", weight(shares(node.milli_cpus)).to_string()),
        ("memory.max", memory),
    ];
    set(&root.join(ROOT), all.into_iter())
}

/// Hands what the cgroup has on to its children; one by one, since one refusal must not cost the others.
fn enable_controllers(dir: &Path) {
    let available = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    for controller in CONTROLLERS {
        if available.split_whitespace().any(|name| name == controller)
            && let Err(error) = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"))
        {
            warn!(cgroup = %dir.display(), controller, %error, "cgroup controller not enabled");
        }
    }
}

fn relative(pod: &Pod) -> String {
    match qos_class(pod) {
        QosClass::Guaranteed => format!("{ROOT}/pod{}", uid(pod)),
        QosClass::Burstable => format!("{ROOT}/burstable/pod{}", uid(pod)),
        QosClass::BestEffort => format!("{ROOT}/besteffort/pod{}", uid(pod)),
    }
}

fn set(dir: &Path, limits: impl Iterator<Item = (&'static str, String)>) -> std::io::Result<()> {
    for (file, value) in limits {
        // A controller that the machine lacks has no such file.
        if dir.join(file).exists() {
            fs::write(dir.join(file), value)?;
        }
    }
    Ok(())
}

/// The first number of an interface file; `max` is more than any.
fn amount(value: &str) -> u64 {
    let first = value.split_whitespace().next().unwrap_or_default();
    if first == "max" {
        u64::MAX
    } else {
        first.parse().unwrap_or(0)
    }
}

/// Interface files and values; a limit exists only when every container has one, or the pod its own.
fn limits(pod: &Pod) -> Vec<(&'static str, String)> {
    let requests = api::resources::pod_requests(pod);
    let limits = api::resources::pod_limits(pod);
    let has = |resources: Option<&ResourceRequirements>, name: &str| {
        resources
            .and_then(|resources| resources.limits.as_ref())
            .is_some_and(|limits| limits.contains_key(name))
    };
    let limited = |name: &str| {
        let Some(spec) = &pod.spec else { return false };
        let mut all = spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten());
        has(spec.resources.as_ref(), name) || all.all(|container| has(container.resources.as_ref(), name))
    };
    let limit = |name: &str| {
        limits
            .get(name)
            .filter(|amount| !amount.is_zero() && limited(name))
    };
    let request = requests
        .get("cpu")
        .filter(|request| !request.is_zero())
        .or_else(|| limit("cpu"));
    let cpu_shares = request.map_or(shares(0), |quantity| shares(quantity.milli_value()));
    let cpu = limit("cpu").map_or("max".to_owned(), |cpu| quota(cpu.milli_value()).to_string());
    let memory = limit("memory").map_or("max".to_owned(), |memory| memory.value().to_string());
    vec![
        ("cpu.weight", weight(cpu_shares).to_string()),
        ("cpu.max", format!("{cpu} {CPU_PERIOD}")),
        ("memory.max", memory),
    ]
}

fn remove_tree(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::TempDir;
    use k8s_openapi::api::core::v1::{Container, PodSpec};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn pod(limits: &[(&str, &str)]) -> Pod {
        let limits: std::collections::BTreeMap<_, _> = limits
            .iter()
            .map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned())))
            .collect();
        // As the API server's defaults leave it: requests are limits.
        let requests = Some(limits.clone());
        let resources = ResourceRequirements {
            limits: Some(limits),
            requests,
            ..Default::default()
        };
        let container = Container {
            resources: Some(resources),
            ..Default::default()
        };
        let mut pod = Pod {
            spec: Some(PodSpec {
                containers: vec![container],
                ..Default::default()
            }),
            ..Default::default()
        };
        pod.metadata.uid = Some("u".into());
        pod
    }

    #[test]
    fn hierarchy_follows_the_class() {
        let dir = TempDir::new("cgroups");
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory pids").unwrap();
        let cgroups = Cgroups::new(dir.path(), &Limits::default());
        assert_eq!(cgroups.parent(&pod(&[])), "/kubepods/besteffort/podu");
        assert_eq!(cgroups.parent(&pod(&[("cpu", "1")])), "/kubepods/burstable/podu");
        assert_eq!(
            cgroups.parent(&pod(&[("cpu", "1"), ("memory", "1Gi")])),
            "/kubepods/podu"
        );
        cgroups.create(&pod(&[])).unwrap();
        assert!(dir.path().join("kubepods/besteffort/podu").is_dir());
    }

    #[test]
    fn without_controllers_pods_have_no_cgroup() {
        let dir = TempDir::new("cgroups-none");
        fs::write(dir.path().join("cgroup.controllers"), "").unwrap();
        let cgroups = Cgroups::new(dir.path(), &Limits::default());
        assert_eq!(cgroups.parent(&pod(&[])), "");
        cgroups.create(&pod(&[])).unwrap();
    }

    #[test]
    fn pod_limits_are_sums() {
        let files = limits(&pod(&[("cpu", "1500m"), ("memory", "64Mi")]));
        let expected = [
            ("cpu.weight", "59"),
            ("cpu.max", "150000 100000"),
            ("memory.max", "67108864"),
        ];
        assert_eq!(files, expected.map(|(file, value)| (file, value.to_owned())));
    }
}
