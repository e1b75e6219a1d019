//! From what the API tells to what the kernel does: dirty Services become fragments, fragments become changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use tracing::{debug, info, warn};

use crate::Config;
use crate::apply::Applied;
use crate::conntrack::{self, Frontend, Served};
use crate::health::{Health, ServicePorts};
use crate::metrics::{self, Metrics};
use crate::ruleset::{self, Fragment};
use crate::service_map::Ports;
use crate::tracker::{Event, Key, Tracker};
use netfilter::Family;
use netfilter::iptables::IptablesError;

/// Rules for everything, whatever we believe of the kernel (upstream's full sync).
const FULL: Duration = Duration::from_secs(3600);
/// More Services than this are cheaper in a full sync.
const MANY: usize = 1000;

/// kube-proxy without its watches.
pub struct Proxier {
    tracker: Tracker,
    families: Vec<FamilyRules>,
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
    service_ports: ServicePorts,
    /// Services whose rules a failed sync has left as they were.
    waiting: Vec<Key>,
}

struct FamilyRules {
    family: Family,
    applied: Applied,
    cluster_cidr: Option<IpNet>,
    served: HashMap<Key, Served>,
    last_full: Option<Instant>,
    /// The last change of a Service's policies left it without endpoints here.
    without_local: BTreeMap<Key, [bool; 2]>,
}

impl Proxier {
    pub fn new(config: &Config) -> Self {
        let of = |family| {
            config
                .cluster_cidrs
                .iter()
                .copied()
                .find(|c| Family::of(c.addr()) == family)
        };
        let families = [Family::V4, Family::V6]
            .into_iter()
            .filter(|family| {
                of(*family).is_some() || (*family == Family::V4 && config.cluster_cidrs.is_empty())
            })
            .map(|family| FamilyRules {
                family,
                applied: Applied::new(family, ruleset::base(family, &config.node_port_addresses)),
                cluster_cidr: of(family),
                served: HashMap::new(),
                last_full: None,
                without_local: BTreeMap::new(),
            })
            .collect();
        let health = Arc::new(Health::default());
        Self {
            tracker: Tracker::new(&config.node_name),
            families,
            metrics: Arc::default(),
            service_ports: ServicePorts::new(Arc::clone(&health)),
            health,
            waiting: Vec::new(),
        }
    }

    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Service(_) => self.metrics.add(
                "kubeproxy_sync_proxy_rules_service_changes_total",
                String::new(),
                1,
            ),
            Event::Slice(_) => self.metrics.add(
                "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                String::new(),
                1,
            ),
            Event::Node(_) => {}
        }
        self.tracker.apply(event);
        self.health.eligible(self.tracker.eligible);
        if self.tracker.is_dirty() {
            self.health.pending();
            self.metrics.set(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                String::new(),
                now(),
            );
        }
    }

    /// There is something to sync, and enough is known to sync it.
    pub fn is_due(&self) -> bool {
        self.tracker.is_ready()
            && (self.tracker.is_dirty()
                || !self.waiting.is_empty()
                || self.families.iter().any(|f| f.applied.needs_full()))
    }

    /// Makes the kernel agree with what is known; true when that worked for all families.
    pub async fn sync(&mut self) -> bool {
        let mut dirty = self.tracker.take_dirty();
        dirty.extend(self.waiting.drain(..));
        let mut failed = false;
        for rules in &mut self.families {
            failed |= !rules.sync(&self.tracker, dirty.iter(), &self.metrics).await;
        }
        for key in &dirty {
            let ports = self
                .families
                .iter()
                .flat_map(|f| self.tracker.ports(f.family, key).into_values());
            let check =
                ports.filter_map(|port| Some((port.health_check_node_port?, port.endpoints.local_ready)));
            self.service_ports.set(key, check.max());
        }
        if failed {
            self.waiting = dirty.into_iter().collect();
        } else {
            self.health.updated();
        }
        !failed
    }

    /// Looks for changes of our rules by somebody else; the next sync writes what they damaged anew.
    pub async fn inspect(&mut self) {
        for rules in &mut self.families {
            if rules.last_full.is_some_and(|last| last.elapsed() > FULL) {
                rules.applied.forget();
                continue;
            }
            match rules.applied.drifted().await {
                Ok(false) => {}
                Ok(true) => {
                    warn!(family = ?rules.family, "somebody else changed the rules of Services; writing them anew");
                    rules.applied.forget();
                }
                Err(error) => warn!(%error, "cannot read the rules of Services"),
            }
        }
    }
}

impl FamilyRules {
    async fn sync(
        &mut self,
        tracker: &Tracker,
        dirty: impl ExactSizeIterator<Item = &Key> + Clone,
        metrics: &Metrics,
    ) -> bool {
        let started = Instant::now();
        let suspects = self.take_stock(tracker, dirty.clone(), metrics);
        let full = self.applied.needs_full() || dirty.len() > MANY;
        let outcome = match full {
            true => self.full(tracker).await,
            false => self.partial(tracker, dirty).await,
        };
        let labels = metrics::of(self.family);
        let (duration, failures) = match full {
            true => (
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
            ),
            false => (
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
            ),
        };
        match outcome {
            Ok(lines) => {
                let took = started.elapsed();
                metrics.observe(duration, labels.clone(), took);
                metrics.observe(
                    "kubeproxy_sync_proxy_rules_duration_seconds",
                    labels.clone(),
                    took,
                );
                metrics.set(
                    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                    labels.clone(),
                    now(),
                );
                metrics.set(
                    "kubeproxy_sync_proxy_rules_iptables_last",
                    labels.clone(),
                    lines as f64,
                );
                if full {
                    info!(family = ?self.family, lines, ?took, "the rules of all Services are in place");
                    for (table, count) in self.applied.rule_counts() {
                        let labels = format!("{labels},table=\"{table}\"");
                        metrics.set("kubeproxy_sync_proxy_rules_iptables_total", labels, count as f64);
                    }
                } else {
                    debug!(family = ?self.family, lines, ?took, "rules are in place");
                }
                let forgotten = conntrack::clean(self.family, suspects).await;
                metrics.add(
                    "kubeproxy_conntrack_reconciler_deleted_entries_total",
                    labels,
                    forgotten,
                );
                true
            }
            Err(error) => {
                metrics.add(failures, labels, 1);
                warn!(family = ?self.family, %error, "cannot apply the rules of Services; trying again");
                false
            }
        }
    }

    async fn partial(
        &mut self,
        tracker: &Tracker,
        dirty: impl Iterator<Item = &Key>,
    ) -> Result<usize, IptablesError> {
        let changes: Vec<_> = dirty
            .map(|key| {
                (
                    key.clone(),
                    fragment(tracker, self.family, self.cluster_cidr, key),
                )
            })
            .collect();
        self.applied.change(&changes).await
    }

    async fn full(&mut self, tracker: &Tracker) -> Result<usize, IptablesError> {
        let (family, cidr) = (self.family, self.cluster_cidr);
        let all = tracker
            .services()
            .map(|key| (key.clone(), fragment(tracker, family, cidr, key)));
        let lines = self.applied.full(all).await?;
        self.last_full = Some(Instant::now());
        Ok(lines)
    }

    /// Notes who serves the dirty Services; tells whose tracked connections may lead astray now.
    fn take_stock<'a>(
        &mut self,
        tracker: &Tracker,
        dirty: impl Iterator<Item = &'a Key>,
        metrics: &Metrics,
    ) -> Vec<Frontend> {
        let mut suspects = Vec::new();
        for key in dirty {
            let ports = tracker.ports(self.family, key);
            suspects.extend(conntrack::suspects(self.served.get(key), &ports));
            let served = conntrack::served(&ports);
            match served.is_empty() {
                true => self.served.remove(key),
                false => self.served.insert(key.clone(), served),
            };
            match without_local(&ports) {
                [false, false] => self.without_local.remove(key),
                without => self.without_local.insert(key.clone(), without),
            };
        }
        for (index, policy) in ["internal", "external"].into_iter().enumerate() {
            let count = self
                .without_local
                .values()
                .filter(|without| without[index])
                .count();
            let labels = format!("{},traffic_policy=\"{policy}\"", metrics::of(self.family));
            metrics.set(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                labels,
                count as f64,
            );
        }
        suspects
    }
}

fn fragment(tracker: &Tracker, family: Family, cluster_cidr: Option<IpNet>, key: &Key) -> Fragment {
    ruleset::render(&tracker.ports(family, key), cluster_cidr, &tracker.node)
}

/// Whether a policy Local, internal and external, finds nobody here though somebody serves elsewhere.
fn without_local(ports: &Ports) -> [bool; 2] {
    let lacks =
        |port: &&crate::service_map::ServicePort| port.endpoints.any && port.endpoints.local.is_empty();
    let mut lacking = ports.values().filter(lacks);
    let internal = lacking.clone().any(|port| port.internal_local);
    [
        internal,
        lacking.any(|port| port.external_local && port.is_external()),
    ]
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}
