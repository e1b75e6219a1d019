//! The FlowSchemas and PriorityLevelConfigurations every cluster has (upstream: `apis/flowcontrol/bootstrap`).

use serde_json::{Map, Value, json};

pub const GROUP: &str = "flowcontrol.apiserver.k8s.io";
pub const SCHEMAS: &str = "flowschemas";
pub const LEVELS: &str = "prioritylevelconfigurations";
pub const AUTOUPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// Name, shares, lendable percent, and queues, hand size, queue length; no queues: excess is rejected.
type Level = (&'static str, i64, i64, Option<[i64; 3]>);
const LIMITED: [Level; 7] = [
    ("catch-all", 5, 0, None),
    ("global-default", 20, 50, Some([128, 6, 50])),
    ("leader-election", 10, 0, Some([16, 4, 50])),
    ("node-high", 40, 25, Some([64, 6, 50])),
    ("system", 30, 33, Some([64, 6, 50])),
    ("workload-high", 40, 50, Some([128, 6, 50])),
    ("workload-low", 100, 90, Some([128, 6, 50])),
];
const EXEMPT: &str = "exempt";

enum Rules {
    All,
    Probes,
    LeaderElection,
    Nodes,
}

/// Name, precedence, level, distinguisher, rules, subjects: `G:group`, `U:user`, `S:namespace` for its accounts.
type Schema = (
    &'static str,
    i64,
    &'static str,
    &'static str,
    Rules,
    &'static [&'static str],
);
const EVERYONE: &[&str] = &["G:system:unauthenticated", "G:system:authenticated"];
const SCHEMA_TABLE: [Schema; 11] = [
    ("exempt", 1, EXEMPT, "", Rules::All, &["G:system:masters"]),
    ("probes", 2, EXEMPT, "", Rules::Probes, EVERYONE),
    (
        "system-leader-election",
        100,
        "leader-election",
        "ByUser",
        Rules::LeaderElection,
        &[
            "U:system:kube-controller-manager",
            "U:system:kube-scheduler",
            "S:kube-system",
        ],
    ),
    (
        "system-node-high",
        400,
        "node-high",
        "ByUser",
        Rules::Nodes,
        &["G:system:nodes"],
    ),
    (
        "system-nodes",
        500,
        "system",
        "ByUser",
        Rules::All,
        &["G:system:nodes"],
    ),
    (
        "kube-controller-manager",
        800,
        "workload-high",
        "ByNamespace",
        Rules::All,
        &["U:system:kube-controller-manager"],
    ),
    (
        "kube-scheduler",
        800,
        "workload-high",
        "ByNamespace",
        Rules::All,
        &["U:system:kube-scheduler"],
    ),
    (
        "kube-system-service-accounts",
        900,
        "workload-high",
        "ByNamespace",
        Rules::All,
        &["S:kube-system"],
    ),
    (
        "service-accounts",
        9000,
        "workload-low",
        "ByUser",
        Rules::All,
        &["G:system:serviceaccounts"],
    ),
    (
        "global-default",
        9900,
        "global-default",
        "ByUser",
        Rules::All,
        EVERYONE,
    ),
    ("catch-all", 10000, "catch-all", "ByUser", Rules::All, EVERYONE),
];

/// Without these nothing is classified, so nobody may change them.
pub fn is_mandatory(name: &str) -> bool {
    matches!(name, "exempt" | "catch-all")
}

/// Plural and object; levels come before the schemas that name them.
pub fn wanted() -> Vec<(&'static str, Value)> {
    let limited = LIMITED.map(|(name, shares, lendable, queues)| {
        let response = match queues {
            None => json!({"type": "Reject"}),
            Some([queues, hand, length]) => {
                json!({"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": length}})
            }
        };
        let limited = json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response});
        (LEVELS, object("PriorityLevelConfiguration", name, json!({"type": "Limited", "limited": limited})))
    });
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let exempt = (LEVELS, object("PriorityLevelConfiguration", EXEMPT, exempt));
    let schemas = SCHEMA_TABLE
        .iter()
        .map(|schema| (SCHEMAS, object("FlowSchema", schema.0, schema_spec(schema))));
    std::iter::once(exempt).chain(limited).chain(schemas).collect()
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind,
        "metadata": {"name": name, "annotations": {AUTOUPDATE: "true"}}, "spec": spec})
}

fn schema_spec((_, precedence, level, distinguisher, rules, subjects): &Schema) -> Value {
    let subjects: Vec<Value> = subjects
        .iter()
        .filter_map(|subject| self::subject(subject))
        .collect();
    let resources = |groups: &[&str], resources: &[&str], verbs: &[&str], cluster: bool| {
        let mut rule =
            json!({"apiGroups": groups, "resources": resources, "verbs": verbs, "namespaces": ["*"]});
        if cluster {
            rule["clusterScope"] = true.into();
        }
        rule
    };
    let lease = |verbs: &[&str]| resources(&["coordination.k8s.io"], &["leases"], verbs, false);
    let mut rule = Map::from_iter([("subjects".to_owned(), Value::from(subjects))]);
    let (of_resources, others) = match rules {
        Rules::All => (
            vec![resources(&["*"], &["*"], &["*"], true)],
            Some(json!({"nonResourceURLs": ["*"], "verbs": ["*"]})),
        ),
        Rules::Probes => (
            vec![],
            Some(json!({"nonResourceURLs": ["/healthz", "/readyz", "/livez"], "verbs": ["get"]})),
        ),
        Rules::LeaderElection => (vec![lease(&["get", "create", "update"])], None),
        Rules::Nodes => (
            vec![
                resources(&[""], &["nodes", "nodes/status"], &["*"], true),
                lease(&["*"]),
            ],
            None,
        ),
    };
    if !of_resources.is_empty() {
        rule.insert("resourceRules".into(), of_resources.into());
    }
    if let Some(others) = others {
        rule.insert("nonResourceRules".into(), json!([others]));
    }
    let mut spec = json!({"matchingPrecedence": precedence, "priorityLevelConfiguration": {"name": level}, "rules": [rule]});
    if !distinguisher.is_empty() {
        spec["distinguisherMethod"] = json!({"type": distinguisher});
    }
    spec
}

fn subject(text: &str) -> Option<Value> {
    let (kind, name) = text.split_once(':')?;
    Some(match kind {
        "G" => json!({"kind": "Group", "group": {"name": name}}),
        "U" => json!({"kind": "User", "user": {"name": name}}),
        _ => json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": name, "name": "*"}}),
    })
}
