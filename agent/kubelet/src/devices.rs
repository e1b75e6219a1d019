//! Devices of plugins (v1beta1): plugins register, tell which devices they have, and say how a container gets its own.
//! Which container has which device is noted in a file, so that it keeps them across restarts of everything.

mod assignments;
mod pod_resources;
mod registration;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use tracing::{info, warn};

use crate::context::uid;
use assignments::Assignments;

#[allow(clippy::all, clippy::pedantic)]
pub mod api {
    tonic::include_proto!("v1beta1");
}

pub use pod_resources::run as run_pod_resources;
pub use registration::run as run_registration;

use api::device_plugin_client::DevicePluginClient;

const HEALTHY: &str = "Healthy";

/// A resource and the plugin that has it.
#[derive(Default)]
struct Plugin {
    socket: PathBuf,
    options: api::DevicePluginOptions,
    /// Whether each device is healthy.
    devices: BTreeMap<String, bool>,
}

#[derive(Default)]
struct State {
    plugins: BTreeMap<String, Plugin>,
    assignments: Assignments,
}

pub struct Devices {
    directory: PathBuf,
    state: Arc<Mutex<State>>,
}

/// What a container gets besides what its specification says.
#[derive(Debug, Default)]
pub struct Given {
    pub env: Vec<(String, String)>,
    pub mounts: Vec<api::Mount>,
    pub devices: Vec<api::DeviceSpec>,
    pub annotations: Vec<(String, String)>,
    pub cdi: Vec<String>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|e| e.into_inner())
}

/// How many devices of which resource the container wants.
fn wanted(container: &Container) -> Vec<(String, usize)> {
    let limits = container
        .resources
        .as_ref()
        .and_then(|resources| resources.limits.as_ref());
    let counted = limits
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.contains('/'))
        .map(|(name, wire)| {
            let count = usize::try_from(::api::quantity::Quantity::of(wire).value()).unwrap_or(0);
            (name.clone(), count)
        });
    counted.filter(|(_, count)| *count > 0).collect()
}

impl Devices {
    pub fn load(root_dir: &Path) -> Self {
        let directory = root_dir.join("device-plugins");
        let state = State {
            assignments: Assignments::load(&directory),
            ..Default::default()
        };
        Self {
            directory,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Capacity and allocatable of every resource that a plugin has had here.
    pub fn resources(&self) -> BTreeMap<String, (Wire, Wire)> {
        let state = lock(&self.state);
        let amount = |count: usize| Wire(count.to_string());
        let one = |plugin: &Plugin| {
            let healthy = plugin.devices.values().filter(|healthy| **healthy).count();
            (amount(plugin.devices.len()), amount(healthy))
        };
        state
            .plugins
            .iter()
            .map(|(name, plugin)| (name.clone(), one(plugin)))
            .collect()
    }

    /// Gives the container the devices it wants: those it had, or free ones.
    pub async fn allocate(&self, pod: &Pod, container: &Container) -> Result<Given, String> {
        let mut given = Given::default();
        for (resource, count) in wanted(container) {
            let (socket, options, mut ids) = {
                let state = lock(&self.state);
                // Resources without a plugin are counted by the scheduler and given by nobody.
                let Some(plugin) = state.plugins.get(&resource) else {
                    continue;
                };
                let had = state.assignments.of(uid(pod), &container.name, &resource);
                (plugin.socket.clone(), plugin.options, had)
            };
            if ids.len() != count {
                ids = self
                    .choose(pod, container, &resource, count, &socket, options)
                    .await?;
            }
            let mut client = DevicePluginClient::new(cri_api::channel(&socket));
            let request = api::AllocateRequest {
                container_requests: vec![api::ContainerAllocateRequest {
                    devices_ids: ids.iter().cloned().collect(),
                }],
            };
            let fail = |status: tonic::Status| {
                format!("Allocate failed due to {}, which is unexpected", status.message())
            };
            let answer = client.allocate(request).await.map_err(fail)?.into_inner();
            for one in answer.container_responses {
                given.env.extend(one.envs);
                given.mounts.extend(one.mounts);
                given.devices.extend(one.devices);
                given.annotations.extend(one.annotations);
                given
                    .cdi
                    .extend(one.cdi_devices.into_iter().map(|device| device.name));
            }
            if options.pre_start_required {
                let request = api::PreStartContainerRequest {
                    devices_ids: ids.into_iter().collect(),
                };
                client.pre_start_container(request).await.map_err(fail)?;
            }
        }
        Ok(given)
    }

    async fn choose(
        &self,
        pod: &Pod,
        container: &Container,
        resource: &str,
        count: usize,
        socket: &Path,
        options: api::DevicePluginOptions,
    ) -> Result<BTreeSet<String>, String> {
        let free = {
            let state = lock(&self.state);
            let taken = state.assignments.taken(resource);
            let devices = state
                .plugins
                .get(resource)
                .map(|plugin| plugin.devices.clone())
                .unwrap_or_default();
            let free = devices
                .into_iter()
                .filter(|(id, healthy)| *healthy && !taken.contains(id));
            free.map(|(id, _)| id).collect::<BTreeSet<String>>()
        };
        if free.len() < count {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {count}, Available: {}",
                free.len()
            ));
        }
        let mut chosen: BTreeSet<String> = free.iter().take(count).cloned().collect();
        if options.get_preferred_allocation_available {
            let request = api::PreferredAllocationRequest {
                container_requests: vec![api::ContainerPreferredAllocationRequest {
                    available_device_i_ds: free.iter().cloned().collect(),
                    must_include_device_i_ds: Vec::new(),
                    allocation_size: i32::try_from(count).unwrap_or(i32::MAX),
                }],
            };
            let mut client = DevicePluginClient::new(cri_api::channel(socket));
            match client.get_preferred_allocation(request).await {
                Ok(answer) => {
                    let preferred = answer.into_inner().container_responses.into_iter().next();
                    let preferred: BTreeSet<String> = preferred
                        .into_iter()
                        .flat_map(|one| one.device_i_ds)
                        .filter(|id| free.contains(id))
                        .collect();
                    if preferred.len() == count {
                        chosen = preferred;
                    }
                }
                Err(status) => warn!(resource, error = status.message(), "plugin prefers no devices"),
            }
        }
        let mut state = lock(&self.state);
        let taken = state.assignments.taken(resource);
        if chosen.iter().any(|id| taken.contains(id)) {
            return Err(format!("devices of {resource} were given to another container"));
        }
        state
            .assignments
            .set(uid(pod), &container.name, resource, chosen.clone());
        state.assignments.write(&self.directory);
        Ok(chosen)
    }

    pub fn release(&self, pod_uid: &str) {
        let mut state = lock(&self.state);
        if state.assignments.release(pod_uid) {
            state.assignments.write(&self.directory);
        }
    }

    /// Follows a plugin's devices until it goes away.
    pub fn follow(&self, resource: String, socket: PathBuf, options: api::DevicePluginOptions) {
        let state = self.state.clone();
        info!(resource, socket = %socket.display(), "device plugin registered");
        let mut plugins = lock(&state);
        let plugin = plugins.plugins.entry(resource.clone()).or_default();
        (plugin.socket, plugin.options) = (socket.clone(), options);
        drop(plugins);
        tokio::spawn(async move {
            let mut client = DevicePluginClient::new(cri_api::channel(&socket));
            let listed = client.list_and_watch(api::Empty {}).await;
            let error = match listed {
                Ok(stream) => {
                    let mut stream = stream.into_inner();
                    loop {
                        match stream.message().await {
                            Ok(Some(list)) => {
                                let devices = list
                                    .devices
                                    .into_iter()
                                    .map(|device| (device.id, device.health == HEALTHY));
                                let mut state = lock(&state);
                                if let Some(plugin) = state
                                    .plugins
                                    .get_mut(&resource)
                                    .filter(|one| one.socket == socket)
                                {
                                    plugin.devices = devices.collect();
                                }
                            }
                            Ok(None) => break "it has closed its list".to_owned(),
                            Err(status) => break status.message().to_owned(),
                        }
                    }
                }
                Err(status) => status.message().to_owned(),
            };
            warn!(resource, error, "device plugin gone, its devices are unhealthy");
            let mut state = lock(&state);
            if let Some(plugin) = state
                .plugins
                .get_mut(&resource)
                .filter(|one| one.socket == socket)
            {
                plugin.devices.values_mut().for_each(|healthy| *healthy = false);
            }
        });
    }
}
