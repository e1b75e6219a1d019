//! What the node has promised to pods: the resources of every container as admitted or resized, and as the runtime
//! has put them into effect, in one small file a pod, so that a restarted kubelet goes on where it was.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use api::pod::HostPort;
use api::quantity::{Format, Quantity};
use api::resources::{self, ResourceList};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::context::uid;

/// By container name; what the pod has as a whole is under [`POD`].
pub type Resources = BTreeMap<String, ResourceRequirements>;
pub const POD: &str = "";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    pub allocated: Resources,
    pub actuated: Resources,
    /// All that the pod asks for, as the scheduler counts it.
    requests: BTreeMap<String, Wire>,
    #[serde(default)]
    host_ports: Vec<HostPort>,
    /// The generation of the specification that was promised last.
    pub generation: Option<i64>,
}

/// What other pods of the node have.
#[derive(Debug, Default)]
pub struct Others {
    pub requests: ResourceList,
    pub host_ports: Vec<HostPort>,
}

/// What the specification asks for.
pub fn desired(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else {
        return Resources::new();
    };
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let of = |container: &Container| {
        (
            container.name.clone(),
            container.resources.clone().unwrap_or_default(),
        )
    };
    let mut all: Resources = containers.map(of).collect();
    all.extend(spec.resources.clone().map(|own| (POD.to_owned(), own)));
    all
}

/// Overwrites what the specification asks for with what was promised.
pub fn apply(pod: &mut Pod, granted: &Resources) {
    let Some(spec) = &mut pod.spec else { return };
    for container in spec
        .init_containers
        .iter_mut()
        .flatten()
        .chain(&mut spec.containers)
    {
        if let Some(resources) = granted.get(&container.name) {
            container.resources = Some(resources.clone());
        }
    }
    if let Some(resources) = granted.get(POD) {
        spec.resources = Some(resources.clone());
    }
}

/// Promises to all pods of the node.
pub struct Allocations {
    directory: PathBuf,
    known: Mutex<HashMap<String, Allocation>>,
}

impl Allocations {
    pub fn load(directory: &Path) -> std::io::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut known = HashMap::new();
        for entry in fs::read_dir(directory)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // What a power cut left unreadable is promised anew: no container has outlived it.
            let read = fs::read(entry.path()).ok();
            let read = read.and_then(|bytes| serde_json::from_slice::<Allocation>(&bytes).ok());
            if let (Some(uid), Some(allocation)) = (name.strip_suffix(".json"), read) {
                known.insert(uid.to_owned(), allocation);
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            known: Mutex::new(known),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Allocation>> {
        self.known.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn get(&self, uid: &str) -> Option<Allocation> {
        self.lock().get(uid).cloned()
    }

    /// Promises the pod what it asks for unless `check`, told what all others have, objects.
    pub fn grant<E>(&self, pod: &Pod, check: impl FnOnce(&Others) -> Result<(), E>) -> Result<Allocation, E> {
        let mut known = self.lock();
        let mut others = Others::default();
        for (_, other) in known.iter().filter(|(key, _)| *key != uid(pod)) {
            resources::add(&mut others.requests, &resources::parse(Some(&other.requests)));
            *others.requests.entry(resources::PODS.to_owned()).or_default() +=
                Quantity::from_units(1, Format::DecimalSI);
            others.host_ports.extend_from_slice(&other.host_ports);
        }
        check(&others)?;
        let allocation = known.entry(uid(pod).to_owned()).or_default();
        allocation.allocated = desired(pod);
        let requests = resources::pod_requests(pod);
        allocation.requests = requests
            .iter()
            .map(|(name, amount)| (name.clone(), amount.to_wire()))
            .collect();
        allocation.host_ports = api::pod::host_ports(pod);
        allocation.generation = pod.metadata.generation;
        self.write(uid(pod), allocation);
        Ok(allocation.clone())
    }

    /// Notes that a container runs with these resources now.
    pub fn actuate(&self, uid: &str, container: &str, resources: ResourceRequirements) {
        let mut known = self.lock();
        if let Some(allocation) = known.get_mut(uid)
            && allocation.actuated.get(container) != Some(&resources)
        {
            allocation.actuated.insert(container.to_owned(), resources);
            self.write(uid, allocation);
        }
    }

    pub fn release(&self, uid: &str) {
        if self.lock().remove(uid).is_some() {
            let _ = fs::remove_file(self.file(uid));
        }
    }

    /// Releases what pods had that are gone.
    pub fn retain(&self, uids: &BTreeSet<String>) {
        let gone: Vec<String> = self
            .lock()
            .keys()
            .filter(|uid| !uids.contains(*uid))
            .cloned()
            .collect();
        gone.iter().for_each(|uid| self.release(uid));
    }

    fn file(&self, uid: &str) -> PathBuf {
        self.directory.join(format!("{uid}.json"))
    }

    fn write(&self, uid: &str, allocation: &Allocation) {
        let (file, new) = (self.file(uid), self.directory.join(format!("{uid}.new")));
        let bytes = serde_json::to_vec(allocation).unwrap_or_default();
        if let Err(error) = fs::write(&new, bytes).and_then(|()| fs::rename(&new, &file)) {
            warn!(file = %file.display(), %error, "allocation not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::TempDir;
    use k8s_openapi::api::core::v1::PodSpec;

    fn pod(uid: &str, cpu: &str) -> Pod {
        let resources = ResourceRequirements {
            requests: Some([("cpu".to_owned(), Wire(cpu.to_owned()))].into()),
            ..Default::default()
        };
        let container = Container {
            name: "c".into(),
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
        pod.metadata.uid = Some(uid.into());
        pod
    }

    #[test]
    fn promises_survive_and_others_are_counted() {
        let dir = TempDir::new("allocation");
        let granted = Allocations::load(dir.path()).unwrap();
        granted.grant(&pod("a", "1"), |_| Ok::<_, ()>(())).unwrap();
        granted.grant(&pod("b", "500m"), |_| Ok::<_, ()>(())).unwrap();
        granted.actuate("a", "c", desired(&pod("a", "1"))["c"].clone());

        let again = Allocations::load(dir.path()).unwrap();
        assert_eq!(again.get("a"), granted.get("a"));
        let mut changed = pod("a", "2");
        let refused = again.grant(&changed, |others| {
            let others = &others.requests;
            assert_eq!((others["cpu"].milli_value(), others["pods"].value()), (500, 1));
            Err("full")
        });
        assert_eq!(refused, Err("full"));
        apply(&mut changed, &again.get("a").unwrap().allocated);
        assert_eq!(changed, pod("a", "1"), "the promise holds");
        again.retain(&["b".to_owned()].into());
        assert_eq!(again.get("a"), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
