//! Pods reach the outside under the node's address: the nat chain `IRONLET-POSTROUTING`.

use std::fmt::Write;

use ipnet::IpNet;
use netfilter::Family;
use netfilter::iptables::{self, IptablesError, Jump};

pub const CHAIN: &str = "IRONLET-POSTROUTING";

/// The chain's content in iptables-save format: what leaves the cluster from this node's pods is
/// masqueraded, what stays within keeps its source.
pub fn render(family: Family, pod_cidrs: &[IpNet], cluster_cidrs: &[IpNet]) -> String {
    let of_family = |nets: &[IpNet]| -> Vec<IpNet> {
        nets.iter()
            .copied()
            .filter(|n| Family::of(n.addr()) == family)
            .collect()
    };
    let mut out = format!("*nat\n:{CHAIN} - [0:0]\n");
    let pods = of_family(pod_cidrs);
    for cluster in of_family(cluster_cidrs) {
        let _ = writeln!(out, "-A {CHAIN} -d {cluster} -j RETURN");
    }
    let multicast = if family == Family::V4 {
        "224.0.0.0/4"
    } else {
        "ff00::/8"
    };
    let _ = writeln!(out, "-A {CHAIN} -d {multicast} -j RETURN");
    for pod in pods {
        let _ = writeln!(out, "-A {CHAIN} -s {pod} -j MASQUERADE --random-fully");
    }
    out.push_str("COMMIT\n");
    out
}

pub async fn apply(
    family: Family,
    pod_cidrs: &[IpNet],
    cluster_cidrs: &[IpNet],
) -> Result<(), IptablesError> {
    iptables::restore(family, &render(family, pod_cidrs, cluster_cidrs)).await?;
    let jump = Jump {
        chain: "POSTROUTING",
        first: false,
        rule: &["-j", CHAIN],
    };
    iptables::ensure_jumps(family, "nat", &[jump]).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_traffic_that_leaves_the_cluster_is_masqueraded() {
        let pods = ["10.244.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()];
        let cluster = ["10.244.0.0/16".parse().unwrap()];
        assert_eq!(
            render(Family::V4, &pods, &cluster),
            "*nat\n:IRONLET-POSTROUTING - [0:0]\n\
             -A IRONLET-POSTROUTING -d 10.244.0.0/16 -j RETURN\n\
             -A IRONLET-POSTROUTING -d 224.0.0.0/4 -j RETURN\n\
             -A IRONLET-POSTROUTING -s 10.244.1.0/24 -j MASQUERADE --random-fully\n\
             COMMIT\n"
        );
    }
}
