//! `control-plane all`: the API server, then its two most important clients, in one process. They speak to it over
//! TLS on loopback like any other client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use apiserver::{Companion, ServiceAccountKeys};
use controller_manager::{KeyPem, Signer};
use pki::BootstrapToken;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::addons;
use crate::components::{self, client, issuer, open_store, url};
use crate::flags::{self, StoreKind};
use crate::founding::{self, files};
use crate::objects::{self, Joining};
use crate::{files as disk, process};

pub async fn run(flags: flags::All) -> anyhow::Result<()> {
    let shutdown = process::shutdown_signal()?;
    let directory = flags.founding.data_dir.clone();
    let advertise_address = flags.serving.advertised()?;
    disk::create_directory(&directory)?;
    let _lock = disk::lock(&directory.join("lock"))?;
    let own_address = own_address(flags.serving.bind_address);
    let request = |server| founding::request(&flags.founding, &flags.cluster, advertise_address, server);
    founding::found(&flags.founding, &request(None)?)?;

    let companions = ["scheduler", "controller-manager"].map(|name| Companion {
        name,
        is_running: Arc::default(),
    });
    let config = server_config(&flags, &directory, advertise_address, &companions, &shutdown).await?;
    let server = apiserver::run(config).await?;
    let port = server.address.port();
    // The kubeconfigs name the port, and port 0 is known only now.
    founding::found(
        &flags.founding,
        &request(Some(SocketAddr::new(own_address, port)))?,
    )?;

    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let ready = async {
        server.ready().await;
        start(
            &flags,
            &directory,
            url(advertise_address, port),
            &shutdown,
            &mut tasks,
        )
        .await?;
        for companion in &companions {
            companion.is_running.store(true, Ordering::Relaxed);
        }
        anyhow::Ok(())
    };
    tokio::select! {
        started = ready => started?,
        () = shutdown.cancelled() => {}
    }
    if !shutdown.is_cancelled() {
        println!(
            "Control plane ready: {} (kubeconfig {})",
            url(own_address, port),
            directory.join(files::ADMIN).display()
        );
    }
    let certificates = || {
        let key_pair = components::key_pair_in(&directory, files::APISERVER)?;
        let ca = |stem| disk::read(&directory.join(format!("{stem}.crt")));
        Ok((key_pair, ca(files::CA)?, ca(files::FRONT_PROXY_CA)?))
    };
    let renewed = || {
        founding::found(
            &flags.founding,
            &request(Some(SocketAddr::new(own_address, port)))?,
        )?;
        certificates()
    };
    let outcome = tokio::select! {
        outcome = watch(&mut tasks, &shutdown) => outcome,
        never = components::keep_certificates(&server, certificates()?, renewed) => match never {},
    };
    shutdown.cancel();
    while tasks.join_next().await.is_some() {}
    server.shutdown().await;
    outcome
}

/// A component that ends before it is told to takes the process with it: whoever supervises us starts all anew.
async fn watch(tasks: &mut JoinSet<anyhow::Result<()>>, shutdown: &CancellationToken) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(ended) = tasks.join_next() => ended.context("a component panicked")??,
        }
    }
}

async fn start(
    flags: &flags::All,
    directory: &Path,
    join_server: String,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let read = |name: &str| disk::read(&directory.join(name));
    // The embedded store has one owner, so there is no second instance to elect against. With etcd the name stays the
    // same over restarts: a restarted master takes its own Lease back at once.
    let leader_elect = flags.store.store == StoreKind::Etcd;
    let identity = join_server.clone();
    let ca_pem = read("pki/ca.crt")?;

    let scheduler_client = client(&directory.join(files::SCHEDULER)).await?;
    let config = scheduler::Config {
        leader_elect,
        identity: identity.clone(),
        ..Default::default()
    };
    let stop = shutdown.clone();
    tasks.spawn(async move {
        scheduler::run(scheduler_client, config, stop.clone())
            .await
            .context("scheduler")?;
        anyhow::ensure!(stop.is_cancelled(), "the scheduler ended by itself");
        Ok(())
    });

    let manager_client = client(&directory.join(files::CONTROLLER_MANAGER)).await?;
    let mut config =
        components::controllers_config(&flags.controllers, &flags.cluster.service_cluster_ip_range);
    config.leader_elect = leader_elect;
    config.identity.clone_from(&identity);
    config.cluster_signing = Some(Signer {
        cert_pem: ca_pem.clone(),
        key_pem: read("pki/ca.key")?,
    });
    config.root_ca_pem = Some(ca_pem.clone());
    config.service_account_private_key_pem = Some(KeyPem(read(files::SERVICE_ACCOUNT_KEY)?));
    let stop = shutdown.clone();
    tasks.spawn(async move {
        controller_manager::run(manager_client, config, stop.clone())
            .await
            .context("controller manager")?;
        anyhow::ensure!(stop.is_cancelled(), "the controller manager ended by itself");
        Ok(())
    });

    let cloud_client = client(&directory.join(files::CLOUD_CONTROLLER_MANAGER)).await?;
    let config = cloud_controller_manager::Config {
        pool: flags.cloud.load_balancer_pool.clone(),
        leader_elect,
        identity,
    };
    let stop = shutdown.clone();
    tasks.spawn(async move {
        cloud_controller_manager::run(cloud_client, config, stop.clone())
            .await
            .context("cloud controller manager")?;
        anyhow::ensure!(
            stop.is_cancelled(),
            "the cloud controller manager ended by itself"
        );
        Ok(())
    });

    let joining = Joining {
        token: BootstrapToken::parse(read(files::BOOTSTRAP_TOKEN)?.trim()).context("bootstrap-token")?,
        server: join_server,
        ca_pem,
    };
    let admin = client(&directory.join(files::ADMIN)).await?;
    let stop = shutdown.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = objects::publish(admin, &joining) => {}
            () = stop.cancelled() => {}
        }
        Ok(())
    });

    for addon in &flags.addons {
        let cidr = flags.cluster.service_cluster_ip_range.first();
        let cidr = cidr.context("--service-cluster-ip-range: --addons needs a network")?;
        let objects = addons::objects(*addon, cidr, &flags.cluster.cluster_domain).context("--addons")?;
        let admin = client(&directory.join(files::ADMIN)).await?;
        let stop = shutdown.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = addons::apply(admin, &objects) => {}
                () = stop.cancelled() => {}
            }
            Ok(())
        });
    }

    if let Some(path) = &flags.publish_kubeconfig {
        disk::write(path, &read(files::ADMIN)?).context("--publish-kubeconfig")?;
    }
    Ok(())
}

async fn server_config(
    flags: &flags::All,
    directory: &Path,
    advertise_address: IpAddr,
    companions: &[Companion],
    shutdown: &CancellationToken,
) -> anyhow::Result<apiserver::Config> {
    let read = |name: String| disk::read(&directory.join(name));
    let key_pair = |stem| components::key_pair_in(directory, stem);
    let ca = read(format!("{}.crt", files::CA))?;
    Ok(apiserver::Config {
        store: open_store(&flags.store, Some(directory), shutdown).await?,
        bind_address: SocketAddr::new(flags.serving.bind_address, flags.serving.secure_port),
        advertise_address,
        serving: key_pair(files::APISERVER)?,
        client_ca: ca,
        kubelet_client: key_pair(files::KUBELET_CLIENT)?,
        kubelet_ca: components::kubelet_ca(&flags.serving)?,
        front_proxy: apiserver::FrontProxy {
            client_ca: read(format!("{}.crt", files::FRONT_PROXY_CA))?,
            allowed_names: vec![files::FRONT_PROXY_NAME.into()],
            client: Some(key_pair(files::FRONT_PROXY_CLIENT)?),
            ..apiserver::FrontProxy::default()
        },
        service_account: ServiceAccountKeys {
            signing_key: read(files::SERVICE_ACCOUNT_KEY.into())?,
            public_keys: vec![read(files::SERVICE_ACCOUNT_PUBLIC.into())?],
            issuer: issuer(&flags.cluster.cluster_domain),
        },
        service_cidrs: flags.cluster.service_cluster_ip_range.clone(),
        node_port_range: flags.serving.service_node_port_range,
        cluster_domain: flags.cluster.cluster_domain.clone(),
        openapi_descriptions: flags.serving.openapi_descriptions.clone(),
        event_ttl_seconds: i64::try_from(flags.serving.event_ttl.as_secs()).unwrap_or(i64::MAX),
        compaction_interval: flags.store.etcd_compaction_interval,
        companions: companions.to_vec(),
        audit: flags.serving.audit.options(),
        access: flags.serving.access.options(),
        admission: flags.serving.admission(),
        shutdown_delay: flags.serving.shutdown_delay_duration,
    })
}

/// Where our own clients find the server.
fn own_address(bind_address: IpAddr) -> IpAddr {
    match bind_address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}
