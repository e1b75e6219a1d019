//! Each component alone: flags to configuration, then run until told to stop.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use apiserver::{KeyPair, ServiceAccountKeys};
use controller_manager::{KeyPem, Signer};
use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;

use crate::flags::{self, StoreKind};
use crate::{files, process};

/// Upstream looks at its certificate files as often.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(60);

pub fn url(address: IpAddr, port: u16) -> String {
    format!("https://{}", SocketAddr::new(address, port))
}

/// `<stem>.crt` and `<stem>.key`.
pub fn key_pair_in(directory: &Path, stem: &str) -> anyhow::Result<KeyPair> {
    let read = |kind: &str| files::read(&directory.join(format!("{stem}.{kind}")));
    Ok(KeyPair {
        certificate: read("crt")?,
        key: read("key")?,
    })
}

pub fn issuer(cluster_domain: &str) -> String {
    format!("https://kubernetes.default.svc.{cluster_domain}")
}

pub async fn open_store(
    flags: &flags::Store,
    data_dir: Option<&Path>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Arc<dyn store::Store>> {
    let engine = open_engine(flags, data_dir, shutdown).await?;
    let Some(path) = &flags.encryption_provider_config else {
        return Ok(engine);
    };
    let named = || format!("--encryption-provider-config {}", path.display());
    let config = serde_saphyr::from_str(&files::read(path)?).with_context(named)?;
    Ok(store::EncryptedStore::new(engine, &config).with_context(named)?)
}

async fn open_engine(
    flags: &flags::Store,
    data_dir: Option<&Path>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Arc<dyn store::Store>> {
    match (flags.store, data_dir) {
        (StoreKind::Embedded, Some(directory)) => {
            let path = directory.join("store");
            files::create_directory(&path)?;
            // The embedded store does blocking work when it opens.
            let opened = tokio::task::block_in_place(|| store::EmbeddedStore::open(&path));
            Ok(opened
                .with_context(|| format!("--data-dir {}: cannot open the store", directory.display()))?)
        }
        (StoreKind::Embedded, None) => anyhow::bail!("--data-dir is needed for --store embedded"),
        (StoreKind::Etcd, _) => {
            let config = etcd_config(flags, data_dir)?;
            tokio::select! {
                connected = wait_for_etcd(&config) => Ok(connected),
                () = shutdown.cancelled() => anyhow::bail!("told to stop before etcd answered"),
            }
        }
    }
}

/// etcd starts beside us and may take its time: that is no reason to end.
async fn wait_for_etcd(config: &store::EtcdConfig) -> Arc<store::EtcdStore> {
    const RETRY: Duration = Duration::from_millis(250);
    const REMIND: u32 = 40;
    let mut failures: u32 = 0;
    loop {
        match store::EtcdStore::connect(config).await {
            Ok(store) => return store,
            Err(error) if failures.is_multiple_of(REMIND) => {
                let servers = config.endpoints.join(",");
                tracing::warn!(servers, %error, "--etcd-servers: cannot connect yet; trying on");
            }
            Err(_) => {}
        }
        failures += 1;
        tokio::time::sleep(RETRY).await;
    }
}

fn etcd_config(flags: &flags::Store, data_dir: Option<&Path>) -> anyhow::Result<store::EtcdConfig> {
    let tls = flags
        .etcd_servers
        .iter()
        .any(|server| server.starts_with("https://"));
    let read = |given: &Option<PathBuf>, default: &str| -> anyhow::Result<Option<String>> {
        let path = match (given, data_dir) {
            (Some(path), _) => path.clone(),
            (None, Some(directory)) if tls => directory.join(default),
            _ => return Ok(None),
        };
        Ok(Some(files::read(&path)?))
    };
    Ok(store::EtcdConfig {
        endpoints: flags.etcd_servers.clone(),
        ca: read(&flags.etcd_cafile, "pki/etcd/ca.crt")?,
        certificate: read(&flags.etcd_certfile, "pki/apiserver-etcd-client.crt")?,
        key: read(&flags.etcd_keyfile, "pki/apiserver-etcd-client.key")?,
    })
}

/// Empty when kubelets are not to be verified (upstream's and kubeadm's default: theirs sign for themselves).
pub fn kubelet_ca(flags: &flags::Serving) -> anyhow::Result<String> {
    Ok(flags
        .kubelet_certificate_authority
        .as_deref()
        .map(files::read)
        .transpose()?
        .unwrap_or_default())
}

/// The configuration of the controller manager but for its credentials.
pub fn controllers_config(
    flags: &flags::Controllers,
    service_cluster_ip_range: &[String],
) -> controller_manager::Config {
    controller_manager::Config {
        controllers: flags.controllers.clone(),
        cluster_cidr: flags.cluster_cidr.clone(),
        service_cluster_ip_range: service_cluster_ip_range.to_vec(),
        node_cidr_mask_size_ipv4: flags.node_cidr_mask_size_ipv4,
        node_cidr_mask_size_ipv6: flags.node_cidr_mask_size_ipv6,
        node_monitor_period: flags.node_monitor_period,
        node_monitor_grace_period: flags.node_monitor_grace_period,
        node_startup_grace_period: flags.node_startup_grace_period,
        node_eviction: controller_manager::NodeEviction {
            rate: flags.node_eviction_rate,
            secondary_rate: flags.secondary_node_eviction_rate,
            unhealthy_zone_threshold: flags.unhealthy_zone_threshold,
            large_cluster_size_threshold: flags.large_cluster_size_threshold,
        },
        cluster_signing_duration: flags.cluster_signing_duration,
        legacy_service_account_token_clean_up_period: flags.legacy_service_account_token_clean_up_period,
        terminated_pod_gc_threshold: flags.terminated_pod_gc_threshold,
        autoscaling: controller_manager::Autoscaling {
            sync_period: flags.horizontal_pod_autoscaler_sync_period,
            downscale_stabilization: signed(flags.horizontal_pod_autoscaler_downscale_stabilization),
            tolerance: flags.horizontal_pod_autoscaler_tolerance,
            cpu_initialization_period: signed(flags.horizontal_pod_autoscaler_cpu_initialization_period),
            initial_readiness_delay: signed(flags.horizontal_pod_autoscaler_initial_readiness_delay),
        },
        ..controller_manager::Config::default()
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// A client from a kubeconfig file.
pub async fn client(kubeconfig: &Path) -> anyhow::Result<kube::Client> {
    let named = || format!("kubeconfig {}", kubeconfig.display());
    let file = kube::config::Kubeconfig::read_from(kubeconfig).with_context(named)?;
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(file, &options)
        .await
        .with_context(named)?;
    kube::Client::try_from(config).with_context(named)
}

pub async fn apiserver(flags: flags::ApiServer) -> anyhow::Result<()> {
    let shutdown = process::shutdown_signal()?;
    let advertise_address = flags.serving.advertised()?;
    let _lock = match &flags.data_dir {
        Some(directory) => {
            files::create_directory(directory)?;
            Some(files::lock(&directory.join("lock"))?)
        }
        None => None,
    };
    let key_pair = |certificate: &Path, key: &Path| -> anyhow::Result<KeyPair> {
        Ok(KeyPair {
            certificate: files::read(certificate)?,
            key: files::read(key)?,
        })
    };
    let public_keys = flags
        .service_account_key_file
        .iter()
        .map(|path| files::read(path));
    let config = apiserver::Config {
        store: open_store(&flags.store, flags.data_dir.as_deref(), &shutdown).await?,
        bind_address: SocketAddr::new(flags.serving.bind_address, flags.serving.secure_port),
        advertise_address,
        serving: key_pair(&flags.tls_cert_file, &flags.tls_private_key_file)?,
        client_ca: files::read(&flags.client_ca_file)?,
        kubelet_client: key_pair(&flags.kubelet_client_certificate, &flags.kubelet_client_key)?,
        kubelet_ca: kubelet_ca(&flags.serving)?,
        front_proxy: front_proxy(&flags)?,
        service_account: ServiceAccountKeys {
            signing_key: files::read(&flags.service_account_signing_key_file)?,
            public_keys: public_keys.collect::<Result<_, _>>()?,
            issuer: flags
                .service_account_issuer
                .clone()
                .unwrap_or_else(|| issuer(&flags.cluster.cluster_domain)),
        },
        service_cidrs: flags.cluster.service_cluster_ip_range.clone(),
        node_port_range: flags.serving.service_node_port_range,
        cluster_domain: flags.cluster.cluster_domain.clone(),
        openapi_descriptions: flags.serving.openapi_descriptions.clone(),
        event_ttl_seconds: i64::try_from(flags.serving.event_ttl.as_secs()).unwrap_or(i64::MAX),
        compaction_interval: flags.store.etcd_compaction_interval,
        companions: Vec::new(),
        audit: flags.serving.audit.options(),
        access: flags.serving.access.options(),
        admission: flags.serving.admission(),
        shutdown_delay: flags.serving.shutdown_delay_duration,
    };
    let server = apiserver::run(config).await?;
    tokio::select! {
        () = server.ready() => println!("API server ready: {}", url(advertise_address, server.address.port())),
        () = shutdown.cancelled() => {}
    }
    let read = || {
        let requestheader = flags.front_proxy.requestheader_client_ca_file.as_deref();
        Ok((
            key_pair(&flags.tls_cert_file, &flags.tls_private_key_file)?,
            files::read(&flags.client_ca_file)?,
            requestheader.map(files::read).transpose()?.unwrap_or_default(),
        ))
    };
    let known = read()?;
    tokio::select! {
        () = shutdown.cancelled() => {}
        never = keep_certificates(&server, known, read) => match never {},
    }
    server.shutdown().await;
    Ok(())
}

fn front_proxy(flags: &flags::ApiServer) -> anyhow::Result<apiserver::FrontProxy> {
    let given = &flags.front_proxy;
    let read = |path: &Option<PathBuf>| path.as_deref().map(files::read).transpose();
    let client = match (
        read(&given.proxy_client_cert_file)?,
        read(&given.proxy_client_key_file)?,
    ) {
        (Some(certificate), Some(key)) => Some(KeyPair { certificate, key }),
        _ => None,
    };
    Ok(apiserver::FrontProxy {
        client_ca: read(&given.requestheader_client_ca_file)?.unwrap_or_default(),
        allowed_names: given.requestheader_allowed_names.clone(),
        headers: apiserver::FrontProxyHeaders {
            username: given.requestheader_username_headers.clone(),
            uid: given.requestheader_uid_headers.clone(),
            group: given.requestheader_group_headers.clone(),
            extra_prefix: given.requestheader_extra_headers_prefix.clone(),
        },
        client,
    })
}

/// The serving certificate, and the authorities of clients and of front proxies.
pub type Certificates = (KeyPair, String, String);

/// Serves what `read` gives, looking again and again. What cannot be read changes nothing.
pub async fn keep_certificates(
    server: &apiserver::Handle,
    mut known: Certificates,
    read: impl Fn() -> anyhow::Result<Certificates>,
) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(CERTIFICATE_INTERVAL).await;
        let taken = read().and_then(|found| {
            if found != known {
                server.replace_certificates(&found.0, &found.1, &found.2)?;
                tracing::info!("serving with changed certificates");
            }
            Ok(found)
        });
        match taken {
            Ok(found) => known = found,
            Err(error) => tracing::warn!(error = format!("{error:#}"), "certificates are not renewed"),
        }
    }
}

pub async fn scheduler(flags: flags::Scheduler) -> anyhow::Result<()> {
    let shutdown = process::shutdown_signal()?;
    let mut config = scheduler::Config {
        leader_elect: flags.leader_elect,
        identity: identity(),
        metrics_address: Some(flags.metrics_bind_address),
        ..Default::default()
    };
    if let Some(path) = &flags.config {
        let named = || format!("--config {}", path.display());
        let document = serde_saphyr::from_str(&files::read(path)?).with_context(named)?;
        config.apply(document).with_context(named)?;
    }
    Ok(scheduler::run(client(&flags.kubeconfig).await?, config, shutdown).await?)
}

pub async fn controller_manager(flags: flags::ControllerManager) -> anyhow::Result<()> {
    let shutdown = process::shutdown_signal()?;
    let mut config = controllers_config(&flags.controllers, &flags.service_cluster_ip_range);
    config.leader_elect = flags.leader_elect;
    config.identity = identity();
    if let (Some(certificate), Some(key)) =
        (&flags.cluster_signing_cert_file, &flags.cluster_signing_key_file)
    {
        config.cluster_signing = Some(Signer {
            cert_pem: files::read(certificate)?,
            key_pem: files::read(key)?,
        });
    }
    if let Some(path) = &flags.root_ca_file {
        config.root_ca_pem = Some(files::read(path)?);
    }
    if let Some(path) = &flags.service_account_private_key_file {
        config.service_account_private_key_pem = Some(KeyPem(files::read(path)?));
    }
    Ok(controller_manager::run(client(&flags.kubeconfig).await?, config, shutdown).await?)
}

pub async fn cloud_controller_manager(flags: flags::CloudControllerManager) -> anyhow::Result<()> {
    let shutdown = process::shutdown_signal()?;
    let config = cloud_controller_manager::Config {
        pool: flags.cloud.load_balancer_pool,
        leader_elect: flags.leader_elect,
        identity: identity(),
    };
    Ok(cloud_controller_manager::run(client(&flags.kubeconfig).await?, config, shutdown).await?)
}

/// Differs between processes, so that two of them never both hold a Lease.
fn identity() -> String {
    let host = files::read(Path::new("/proc/sys/kernel/hostname")).unwrap_or_default();
    format!("{}_{}", host.trim(), std::process::id())
}
