//! The etcd engine keeps the trait's promises. Needs an `etcd` binary (Debian: package etcd-server)
//! in `IRONLET_TEST_ETCD` or on the PATH.

mod suite;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use store::{EtcdConfig, EtcdStore, Store};

struct Server {
    child: Child,
    _directory: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

async fn open() -> (Arc<dyn Store>, Server) {
    let binary = std::env::var("IRONLET_TEST_ETCD").unwrap_or_else(|_| "etcd".into());
    let directory = tempfile::tempdir().unwrap();
    let (client, peer) = (free_port(), free_port());
    let client = format!("http://127.0.0.1:{client}");
    let peer = format!("http://127.0.0.1:{peer}");
    let child = Command::new(&binary)
        .arg("--data-dir")
        .arg(directory.path())
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args([
            "--initial-cluster",
            &format!("default={peer}"),
            "--log-level",
            "error",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| {
            panic!(
                "cannot start {binary}: {error}; install etcd-server or set IRONLET_TEST_ETCD=/path/to/etcd"
            )
        });
    let server = Server {
        child,
        _directory: directory,
    };
    let config = EtcdConfig {
        endpoints: vec![client],
        ca: None,
        certificate: None,
        key: None,
    };
    let mut problem = None;
    for _ in 0..600 {
        match EtcdStore::connect(&config).await {
            Ok(store) => return (store, server),
            Err(error) => problem = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("etcd never answered: {problem:?}");
}

suite!(open());
