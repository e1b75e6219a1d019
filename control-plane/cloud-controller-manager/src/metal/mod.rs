//! The provider without a cloud: machines as they are, addresses from a configured pool or the nodes' own.

use crate::config::Pool;
use crate::provider::{Instance, Provider};
use k8s_openapi::api::core::v1::{Node, Service};
use std::collections::BTreeSet;
use std::net::IpAddr;

pub struct Metal {
    pool: Vec<Pool>,
}

impl Metal {
    pub fn new(pool: Vec<Pool>) -> Self {
        Self { pool }
    }
}

impl Provider for Metal {
    fn instance(&self, node: &Node) -> Instance {
        let info = node.status.as_ref().and_then(|s| s.node_info.as_ref());
        let uuid = info
            .map(|i| i.system_uuid.as_str())
            .filter(|uuid| !uuid.is_empty());
        let id = uuid.or(node.metadata.name.as_deref()).unwrap_or_default();
        Instance {
            id: format!("metal://{}", id.to_lowercase()),
            kind: "metal".into(),
        }
    }

    fn addresses(
        &self,
        service: &Service,
        current: &[IpAddr],
        taken: &BTreeSet<IpAddr>,
        nodes: &[&Node],
    ) -> Result<Vec<IpAddr>, String> {
        let spec = service.spec.as_ref();
        let families = spec.and_then(|s| s.ip_families.clone()).unwrap_or_default();
        let families = if families.is_empty() {
            vec!["IPv4".to_owned()]
        } else {
            families
        };
        let mut addresses = Vec::new();
        for family in &families {
            let v4 = family == "IPv4";
            if self.pool.is_empty() {
                let own = nodes.iter().flat_map(|n| api::node::addresses(n, "InternalIP"));
                addresses.extend(
                    own.filter_map(|a| a.parse::<IpAddr>().ok())
                        .filter(|a| a.is_ipv4() == v4),
                );
                continue;
            }
            let free = |a: &IpAddr| a.is_ipv4() == v4 && !taken.contains(a);
            let held = |a: &IpAddr| self.pool.iter().any(|p| p.contains(*a));
            let wish = spec
                .and_then(|s| s.load_balancer_ip.as_deref())
                .and_then(|a| a.parse::<IpAddr>().ok());
            let chosen = match wish.filter(|a| a.is_ipv4() == v4) {
                Some(wish) if !held(&wish) => {
                    return Err(format!("spec.loadBalancerIP: {wish} is not in the pool"));
                }
                Some(wish) if !free(&wish) => return Err(format!("spec.loadBalancerIP: {wish} is taken")),
                Some(wish) => Some(wish),
                None => {
                    let kept = current.iter().copied().find(|a| held(a) && free(a));
                    kept.or_else(|| self.pool.iter().flat_map(Pool::addresses).find(free))
                }
            };
            addresses.extend(chosen);
        }
        if addresses.is_empty() {
            let source = if self.pool.is_empty() {
                "no ready node has"
            } else {
                "the pool has no free"
            };
            return Err(format!("{source} address of family {}", families.join(" or ")));
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn given(pool: &[&str], spec: Value, current: &[&str], taken: &[&str]) -> Result<Vec<String>, String> {
        let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<IpAddr>>();
        let metal = Metal::new(pool.iter().map(|p| p.parse().unwrap()).collect());
        let service: Service = from_value(json!({"spec": spec})).unwrap();
        let node: Node = from_value(json!({"status": {"addresses": [
            {"type": "InternalIP", "address": "192.168.0.5"}, {"type": "InternalIP", "address": "fd00::5"}]}}))
        .unwrap();
        let taken = parse(taken).into_iter().collect();
        let addresses = metal.addresses(&service, &parse(current), &taken, &[&node])?;
        Ok(addresses.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn addresses_are_kept_wished_for_or_free() {
        let pool = ["10.0.0.1-10.0.0.3"];
        let list = |a: &[&str]| Ok(a.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        assert_eq!(given(&pool, json!({}), &[], &["10.0.0.1"]), list(&["10.0.0.2"]));
        assert_eq!(given(&pool, json!({}), &["10.0.0.3"], &[]), list(&["10.0.0.3"]));
        assert_eq!(
            given(&pool, json!({}), &["10.9.9.9"], &[]),
            list(&["10.0.0.1"]),
            "no longer in the pool"
        );
        assert_eq!(
            given(&pool, json!({"loadBalancerIP": "10.0.0.2"}), &["10.0.0.3"], &[]),
            list(&["10.0.0.2"])
        );
        assert!(given(&pool, json!({"loadBalancerIP": "10.0.0.2"}), &[], &["10.0.0.2"]).is_err());
        assert!(given(&pool, json!({}), &[], &["10.0.0.1", "10.0.0.2", "10.0.0.3"]).is_err());
        assert_eq!(
            given(&[], json!({"ipFamilies": ["IPv6", "IPv4"]}), &[], &[]),
            list(&["fd00::5", "192.168.0.5"])
        );
    }
}
