//! The syntax of names, labels and keys, each answered with upstream's text for what is wrong.

const LABEL_FORM: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_FORM: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS_1035_FORM: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_FORM: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE_FORM: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY_FORM: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME_FORM: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if inner(*first) && inner(*last))
        && bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric());
    ends && bytes
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// RFC 1123 label: namespaces, containers, volumes.
pub fn dns_label_problem(text: &str) -> Option<String> {
    if text.len() > 63 {
        return Some(too_long(63));
    }
    if is_label(text) {
        return None;
    }
    let is_subdomain = dns_subdomain_problem(text).is_none();
    Some(
        if is_subdomain {
            "must not contain dots"
        } else {
            LABEL_FORM
        }
        .to_owned(),
    )
}

/// RFC 1123 subdomain: most objects' names.
pub fn dns_subdomain_problem(text: &str) -> Option<String> {
    if text.len() > 253 {
        return Some(too_long(253));
    }
    (!text.split('.').all(is_label)).then(|| SUBDOMAIN_FORM.to_owned())
}

/// RFC 1035 label: services.
pub(crate) fn dns_1035_problem(text: &str) -> Option<String> {
    if text.len() > 63 {
        return Some(too_long(63));
    }
    (!is_label(text) || text.as_bytes()[0].is_ascii_digit()).then(|| DNS_1035_FORM.to_owned())
}

/// Names that are one segment of a URL's path: RBAC's.
pub(super) fn path_segment_problem(text: &str) -> Option<String> {
    match text {
        "." | ".." => Some(format!("may not be '{text}'")),
        _ => ['/', '%']
            .iter()
            .find(|illegal| text.contains(**illegal))
            .map(|illegal| format!("may not contain '{illegal}'")),
    }
}

/// `name` or `prefix/name`: label and annotation keys, taints, resources.
pub fn qualified_name_problem(text: &str) -> Option<String> {
    let (prefix, name) = match text.split('/').collect::<Vec<_>>()[..] {
        [name] => (None, name),
        [prefix, name] => (Some(prefix), name),
        _ => {
            return Some(format!(
                "a qualified name {}",
                QUALIFIED_FORM.trim_start_matches("name part ")
            ));
        }
    };
    match prefix {
        Some("") => return Some("prefix part must be non-empty".to_owned()),
        Some(prefix) => {
            if let Some(problem) = dns_subdomain_problem(prefix) {
                return Some(format!("prefix part {problem}"));
            }
        }
        None => {}
    }
    match name {
        "" => Some("name part must be non-empty".to_owned()),
        _ if name.len() > 63 => Some(format!("name part {}", too_long(63))),
        _ => (!is_name_part(name)).then(|| QUALIFIED_FORM.to_owned()),
    }
}

pub fn label_value_problem(text: &str) -> Option<String> {
    if text.len() > 63 {
        return Some(too_long(63));
    }
    (!text.is_empty() && !is_name_part(text)).then(|| VALUE_FORM.to_owned())
}

/// Keys of ConfigMaps and Secrets.
pub(super) fn config_key_problem(text: &str) -> Option<String> {
    if text.len() > 253 {
        return Some(too_long(253));
    }
    let good = !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    match text {
        _ if !good => Some(CONFIG_KEY_FORM.to_owned()),
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        _ if text.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

pub(super) fn env_name_problem(text: &str) -> Option<String> {
    let good = !text.is_empty()
        && text
            .bytes()
            .all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=');
    (!good).then(|| ENV_NAME_FORM.to_owned())
}

/// IANA service names: container ports.
pub(super) fn port_name_problem(text: &str) -> Option<String> {
    let problem = if text.len() > 15 {
        "must be no more than 15 characters"
    } else if !text
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    {
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
    } else if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        "must contain at least one letter (a-z)"
    } else if text.contains("--") {
        "must not contain consecutive hyphens"
    } else if text.starts_with('-') || text.ends_with('-') {
        "must not begin or end with a hyphen"
    } else {
        return None;
    };
    Some(problem.to_owned())
}

/// Below a volume, upstream's `validateLocalNonReservedPath`.
pub(super) fn relative_path_problem(path: &str) -> Option<String> {
    if path.starts_with('/') {
        return Some("must be a relative path".to_owned());
    }
    if path.split('/').any(|part| part == "..") {
        return Some("must not contain '..'".to_owned());
    }
    path.starts_with("..")
        .then(|| "must not start with '..'".to_owned())
}

/// What can be told of a cron schedule without reading its fields.
pub(super) fn schedule_problem(schedule: &str) -> Option<String> {
    const DESCRIPTORS: [&str; 7] = [
        "@yearly",
        "@annually",
        "@monthly",
        "@weekly",
        "@daily",
        "@midnight",
        "@hourly",
    ];
    let timed = schedule
        .split_once(' ')
        .filter(|(zone, _)| zone.starts_with("TZ=") || zone.starts_with("CRON_TZ="));
    let fields: Vec<&str> = timed
        .map_or(schedule, |(_, rest)| rest)
        .split_whitespace()
        .collect();
    if schedule.starts_with('@') {
        let known = DESCRIPTORS.contains(&schedule) || schedule.starts_with("@every ");
        return (!known).then(|| format!("unrecognized descriptor: {schedule}"));
    }
    if fields.len() != 5 {
        let found = fields.join(" ");
        return Some(format!(
            "expected exactly 5 fields, found {}: [{found}]",
            fields.len()
        ));
    }
    let known = |field: &&&str| {
        field
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"*/,-?#".contains(&byte))
    };
    let odd = fields.iter().find(|field| !known(field))?;
    Some(format!(
        "failed to parse int from {odd}: strconv.Atoi: parsing {odd:?}: invalid syntax"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax_of_names() {
        type Check = fn(&str) -> Option<String>;
        let long = "a".repeat(64);
        for (check, good, bad) in [
            (
                dns_label_problem as Check,
                vec!["a", "0-a", &long[..63]],
                vec!["", "A", "-a", "a-", "a.b", "a_b", &long],
            ),
            (
                dns_subdomain_problem,
                vec!["a", "a.b", "0.1"],
                vec!["", ".a", "a..b", "a.", "A.b", "a/b"],
            ),
            (dns_1035_problem, vec!["a", "a-1"], vec!["", "1a", "a.b"]),
            (
                path_segment_problem,
                vec!["system:node", "a b"],
                vec![".", "..", "a/b", "a%b"],
            ),
            (
                qualified_name_problem,
                vec!["a", "A_b.c", "k8s.io/Name"],
                vec!["", "/a", "a/", "a/b/c", "-a", "K8S.io/a", "a b"],
            ),
            (
                label_value_problem,
                vec!["", "a", "A.b_c"],
                vec!["-a", "a-", "a b", &long],
            ),
            (
                config_key_problem,
                vec!["a", ".a", "A_b"],
                vec!["", ".", "..", "..a", "a/b"],
            ),
            (env_name_problem, vec!["A", "a.b", "1 2"], vec!["", "a=b", "é"]),
            (
                port_name_problem,
                vec!["http", "p-1"],
                vec!["1", "a--b", "-a", "A", "abcdefghijklmnop"],
            ),
        ] {
            for text in good {
                assert_eq!(check(text), None, "{text}");
            }
            for text in bad {
                assert!(check(text).is_some(), "{text}");
            }
        }
    }
}
