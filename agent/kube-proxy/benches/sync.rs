//! What a change costs, and what everything costs, at 10, 1,000 and 10,000 Services of two endpoints: `cargo bench -p
//! kube-proxy` as root; arguments are other numbers. The rules go to a network namespace of its own.

use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event as Watch;
use kube_proxy::{Config, Event, Proxier};
use serde_json::json;

const INSIDE: &str = "IRONLET_BENCH_INSIDE_NAMESPACE";
const CHANGES: usize = 20;

fn service(n: usize) -> Service {
    serde_json::from_value(json!({"metadata": {"name": format!("s{n}"), "namespace": "ns"},
        "spec": {"clusterIP": format!("10.96.{}.{}", n / 250, n % 250 + 1), "ports": [{"name": "http", "port": 80}]}}))
    .unwrap()
}

fn slice(n: usize, last: usize) -> EndpointSlice {
    let address = |last| json!({"addresses": [format!("10.{}.{}.{last}", 128 + n / 62_500, n / 250 % 250)]});
    serde_json::from_value(json!({
        "metadata": {"name": format!("s{n}-x"), "namespace": "ns", "labels": {"kubernetes.io/service-name": format!("s{n}")}},
        "addressType": "IPv4", "endpoints": [address(1), address(last)],
        "ports": [{"name": "http", "port": 8080}]}))
    .unwrap()
}

/// The time of each sync after one event, and their median.
async fn median(proxier: &mut Proxier, events: impl Iterator<Item = Event>) -> Duration {
    let mut times = Vec::new();
    for event in events {
        let started = Instant::now();
        proxier.apply(event);
        assert!(proxier.sync().await);
        times.push(started.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

async fn measure(count: usize) {
    let config = Config {
        node_name: "n1".into(),
        cluster_cidrs: vec!["10.128.0.0/9".parse().unwrap()],
        node_port_addresses: vec![],
        health_port: 0,
        metrics_port: 0,
    };
    let mut proxier = Proxier::new(&config);
    for n in 0..count {
        proxier.apply(Event::Service(Watch::InitApply(service(n))));
        proxier.apply(Event::Slice(Watch::InitApply(slice(n, 2))));
    }
    proxier.apply(Event::Service(Watch::InitDone));
    proxier.apply(Event::Slice(Watch::InitDone));
    proxier.apply(Event::Node(Watch::InitDone));
    let started = Instant::now();
    assert!(proxier.sync().await);
    let full = started.elapsed();
    let endpoint = median(
        &mut proxier,
        (0..CHANGES).map(|i| Event::Slice(Watch::Apply(slice(count / 2, 3 + i)))),
    )
    .await;
    let added = median(
        &mut proxier,
        (0..CHANGES).map(|i| Event::Service(Watch::Apply(service(count + i)))),
    )
    .await;
    let gone = median(
        &mut proxier,
        (0..CHANGES).map(|i| Event::Service(Watch::Delete(service(count + i)))),
    )
    .await;
    println!("{count:>7} {full:>12.1?} {endpoint:>12.1?} {added:>12.1?} {gone:>12.1?}");
}

fn main() {
    if std::env::var_os(INSIDE).is_none() {
        let exe = std::env::current_exe().expect("own path");
        let arguments = std::env::args()
            .skip(1)
            .filter(|argument| argument.parse::<usize>().is_ok());
        let mut command = Command::new("unshare");
        let status = command
            .arg("--net")
            .arg(exe)
            .args(arguments)
            .env(INSIDE, "1")
            .status();
        assert!(status.expect("unshare(1) from util-linux").success());
        return;
    }
    let mut counts: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse().ok())
        .collect();
    if counts.is_empty() {
        counts = vec![10, 1_000, 10_000];
    }
    println!("Services    full sync     endpoint        added         gone   (medians of {CHANGES})");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    for count in counts {
        runtime.block_on(measure(count));
    }
}
