//! Container environments: `$(VAR)` expansion, Service links, and the merge order of upstream's
//! `makeEnvironmentVariables`.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Container, Service};

/// Replaces `$(NAME)` where `lookup` knows the name; `$$` is an escaped dollar, unknown references stay.
pub fn expand(input: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut output = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        output.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            output.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => output.push_str(&value),
                None => {
                    output.push_str("$(");
                    output.push_str(name);
                    output.push(')');
                }
            }
            rest = tail;
        } else {
            output.push('$');
            rest = after;
        }
    }
    output.push_str(rest);
    output
}

/// The value of `key` in a file of `KEY=VALUE` lines; quotes around a value are not part of it.
pub fn file_variable(text: &str, key: &str) -> Option<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let mut found = lines
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| name.trim() == key);
    let value = found.next_back()?.1.trim();
    let quoted = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    Some(quoted('\'').or_else(|| quoted('"')).unwrap_or(value).to_owned())
}

/// Like [`expand`], but a reference nobody knows is an error, named by the whole input.
pub fn expand_known(input: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let missing = std::cell::Cell::new(false);
    let expanded = expand(input, &|name| {
        let found = lookup(name);
        missing.set(missing.get() || found.is_none());
        found
    });
    if missing.get() {
        Err(input.to_owned())
    } else {
        Ok(expanded)
    }
}

/// The variables that announce Services (`NAME_SERVICE_HOST`, …) to pods of `namespace`: its own Services when
/// links are wanted, and always the API server's.
pub fn service_variables<'a>(
    services: impl Iterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let of = service.metadata.namespace.as_deref().unwrap_or_default();
        let is_master = of == "default" && name == "kubernetes";
        if is_master && !chosen.contains_key(name) || links && of == namespace {
            chosen.insert(name, service);
        }
    }
    let mut variables = BTreeMap::new();
    for (name, service) in chosen {
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec
            .cluster_ip
            .as_deref()
            .filter(|ip| !ip.is_empty() && *ip != "None")
        else {
            continue;
        };
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let prefix = variable_name(name);
        let host = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip.to_owned()
        };
        let url = |port: &k8s_openapi::api::core::v1::ServicePort| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
            (format!("{protocol}://{host}:{}", port.port), protocol)
        };
        variables.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
        variables.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
        variables.insert(format!("{prefix}_PORT"), url(first).0);
        for port in ports {
            if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                variables.insert(
                    format!("{prefix}_SERVICE_PORT_{}", variable_name(name)),
                    port.port.to_string(),
                );
            }
            let (url, protocol) = url(port);
            let port_prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
            variables.insert(port_prefix.clone(), url);
            variables.insert(format!("{port_prefix}_PROTO"), protocol);
            variables.insert(format!("{port_prefix}_PORT"), port.port.to_string());
            variables.insert(format!("{port_prefix}_ADDR"), ip.to_owned());
        }
    }
    variables
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

/// Values that must be fetched before the environment can be put together, in specification order.
#[derive(Default)]
pub struct Sources {
    /// `envFrom`, prefixes applied.
    pub from: Vec<(String, String)>,
    /// `env[].valueFrom` by index; `None` = an optional source that does not exist.
    pub values: HashMap<usize, Option<String>>,
}

/// Merges everything in upstream's order: `envFrom`, then `env` with expansion, then Service variables nobody set.
pub fn merge(
    container: &Container,
    sources: &Sources,
    services: &BTreeMap<String, String>,
) -> Vec<(String, String)> {
    let mut result: BTreeMap<String, String> = sources.from.iter().cloned().collect();
    let mut own: BTreeMap<String, String> = BTreeMap::new();
    for (index, variable) in container.env.iter().flatten().enumerate() {
        let value = match (&variable.value_from, &variable.value) {
            (Some(_), _) => match sources.values.get(&index) {
                Some(Some(value)) => value.clone(),
                _ => continue,
            },
            (None, value) => expand(value.as_deref().unwrap_or_default(), &|name| {
                own.get(name).or_else(|| services.get(name)).cloned()
            }),
        };
        own.insert(variable.name.clone(), value.clone());
        result.insert(variable.name.clone(), value);
    }
    for (name, value) in services {
        result.entry(name.clone()).or_insert_with(|| value.clone());
    }
    result.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ServicePort, ServiceSpec};

    #[test]
    fn expansion_table() {
        let lookup = |name: &str| (name == "A").then(|| "x".to_owned());
        for (input, expected) in [
            ("$(A)", "x"),
            ("a$(A)b$(A)", "axbx"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$x"),
            ("$(B)", "$(B)"),
            ("$A $(A", "$A $(A"),
            ("$", "$"),
            ("", ""),
        ] {
            assert_eq!(expand(input, &lookup), expected, "{input}");
        }
    }

    fn service(namespace: &str, name: &str, ip: &str) -> Service {
        let mut service = Service::default();
        service.metadata.namespace = Some(namespace.into());
        service.metadata.name = Some(name.into());
        service.spec = Some(ServiceSpec {
            cluster_ip: Some(ip.into()),
            ports: Some(vec![ServicePort {
                name: Some("http".into()),
                port: 80,
                ..Default::default()
            }]),
            ..Default::default()
        });
        service
    }

    #[test]
    fn service_links() {
        let services = [
            service("default", "kubernetes", "10.96.0.1"),
            service("app", "my-db", "10.96.0.7"),
            service("app", "headless", "None"),
            service("other", "hidden", "10.96.0.9"),
        ];
        let linked = service_variables(services.iter(), "app", true);
        assert_eq!(linked["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
        assert_eq!(linked["MY_DB_PORT"], "tcp://10.96.0.7:80");
        assert_eq!(linked["MY_DB_SERVICE_PORT_HTTP"], "80");
        assert_eq!(linked["MY_DB_PORT_80_TCP_ADDR"], "10.96.0.7");
        assert!(
            !linked
                .keys()
                .any(|key| key.starts_with("HEADLESS") || key.starts_with("HIDDEN"))
        );
        let unlinked = service_variables(services.iter(), "app", false);
        assert!(unlinked.keys().all(|key| key.starts_with("KUBERNETES_")) && !unlinked.is_empty());
    }

    #[test]
    fn merge_order() {
        let variable = |name: &str, value: &str| EnvVar {
            name: name.into(),
            value: Some(value.into()),
            ..Default::default()
        };
        let container = Container {
            env: Some(vec![
                variable("A", "own"),
                variable("B", "$(A)-$(SVC)-$(MISSING)"),
                EnvVar {
                    name: "C".into(),
                    value_from: Some(EnvVarSource::default()),
                    ..Default::default()
                },
                EnvVar {
                    name: "D".into(),
                    value_from: Some(EnvVarSource::default()),
                    ..Default::default()
                },
            ]),
            ..Default::default()
        };
        let sources = Sources {
            from: vec![("A".into(), "from".into()), ("E".into(), "from".into())],
            values: [(2, Some("fetched".to_owned())), (3, None)].into(),
        };
        let services = [
            ("SVC".to_owned(), "s".to_owned()),
            ("A".to_owned(), "service".to_owned()),
        ]
        .into();
        let merged = merge(&container, &sources, &services);
        let expected = [
            ("A", "own"),
            ("B", "own-s-$(MISSING)"),
            ("C", "fetched"),
            ("E", "from"),
            ("SVC", "s"),
        ];
        assert_eq!(
            merged,
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }
}
