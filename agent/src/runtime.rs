//! `agent cri`: the container runtime with our pod network in it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;

use crate::args;
use crate::pod_network::Adapter;

pub async fn run(args: args::Cri) -> anyhow::Result<()> {
    let directory = args.root_dir.join("network");
    let network = network::PodNetwork::new(&directory)
        .with_context(|| format!("pod network in {}", directory.display()))?;
    let listen = PathBuf::from(args.listen.trim_start_matches("unix://"));
    let config = cri::Config {
        listen,
        root_dir: args.root_dir,
        image_archives: args.image_archives,
        registry_mirrors: args.registry_mirrors,
        network: Arc::new(Adapter(network)),
    };
    Ok(cri::run(config).await?)
}
