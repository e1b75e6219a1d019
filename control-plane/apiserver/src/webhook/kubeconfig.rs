//! Kubeconfigs that say where a webhook of the server itself is, and who we are to it.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use rustls::ClientConfig;
use serde_json::Value;

use crate::config::KeyPair;
use crate::object::text;
use crate::proxy::dial;

pub struct Webhook {
    pub url: Uri,
    /// None: plain HTTP.
    pub tls: Option<ClientConfig>,
    pub token: Option<String>,
}

/// The cluster and user of the current context.
pub fn read(path: &Path) -> Result<Webhook, String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let (config, _) =
        schema::codec::parse_patch(schema::MediaType::Yaml, &bytes).map_err(|error| error.to_string())?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let context = named(&config, "contexts", text(&config, "/current-context"), "context")?;
    let cluster = named(&config, "clusters", text(context, "/cluster"), "cluster")?;
    let user = match text(context, "/user") {
        "" => &Value::Null,
        name => named(&config, "users", name, "user")?,
    };
    let url: Uri = text(cluster, "/server")
        .parse()
        .map_err(|error| format!("clusters: server: {error}"))?;
    if url.host().is_none() || !matches!(url.scheme_str(), Some("http" | "https")) {
        return Err(format!("clusters: server: {url:?} is no URL of a webhook"));
    }
    let tls = match url.scheme_str() {
        Some("https") => Some(tls(cluster, user, directory)?),
        _ => None,
    };
    let token = match (text(user, "/token"), text(user, "/tokenFile")) {
        ("", "") => None,
        ("", file) => {
            let path = directory.join(file);
            let token = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            Some(token.trim().to_owned())
        }
        (token, _) => Some(token.to_owned()),
    };
    Ok(Webhook { url, tls, token })
}

fn tls(cluster: &Value, user: &Value, directory: &Path) -> Result<ClientConfig, String> {
    let ca = pem(cluster, "certificate-authority", directory)?;
    let client = match (
        pem(user, "client-certificate", directory)?,
        pem(user, "client-key", directory)?,
    ) {
        (Some(certificate), Some(key)) => Some(KeyPair { certificate, key }),
        _ => None,
    };
    let is_verified = cluster["insecure-skip-tls-verify"] != true;
    match ca {
        Some(ca) => dial::client_config(Some(&ca), client.as_ref()),
        None if is_verified => dial::system_config(client.as_ref()),
        None => dial::client_config(None, client.as_ref()),
    }
    .map_err(|error| error.to_string())
}

fn named<'a>(config: &'a Value, list: &str, name: &str, field: &str) -> Result<&'a Value, String> {
    let entries = config[list].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = match (name, entries) {
        // A single entry needs no context to pick it.
        ("", [only]) => Some(only),
        _ => entries.iter().find(|entry| entry["name"] == name),
    };
    found
        .map(|entry| &entry[field])
        .ok_or_else(|| format!("{list}: there is no {name:?}"))
}

/// `<field>-data`, or the file that `<field>` names.
fn pem(object: &Value, field: &str, directory: &Path) -> Result<Option<String>, String> {
    let data = object[format!("{field}-data")].as_str().unwrap_or_default();
    if !data.is_empty() {
        let bytes = STANDARD
            .decode(data)
            .map_err(|error| format!("{field}-data: {error}"))?;
        return String::from_utf8(bytes)
            .map(Some)
            .map_err(|error| format!("{field}-data: {error}"));
    }
    match object[field].as_str().unwrap_or_default() {
        "" => Ok(None),
        path => fs::read_to_string(directory.join(path))
            .map(Some)
            .map_err(|error| format!("{field} {path}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Webhook, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        fs::write(directory.path().join("token"), "from-a-file\n").unwrap();
        fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn contexts_pick_cluster_and_user() {
        let text = "
current-context: b
contexts:
- {name: a, context: {cluster: one, user: u}}
- {name: b, context: {cluster: two, user: v}}
clusters:
- {name: one, cluster: {server: 'http://10.0.0.1/x'}}
- {name: two, cluster: {server: 'http://10.0.0.1:81/y'}}
users:
- {name: u, user: {token: t}}
- {name: v, user: {tokenFile: token}}
";
        let found = parse(text).unwrap();
        assert_eq!(found.url.to_string(), "http://10.0.0.1:81/y");
        assert_eq!(found.token.as_deref(), Some("from-a-file"));
        assert!(found.tls.is_none());
        for (from, to, expected) in [
            (
                "current-context: b",
                "current-context: c",
                "contexts: there is no \"c\"",
            ),
            ("user: v", "user: w", "users: there is no \"w\""),
            (
                "http://10.0.0.1:81/y",
                "ftp://x/y",
                "clusters: server: ftp://x/y is no URL of a webhook",
            ),
            ("tokenFile: token", "tokenFile: none", ""),
        ] {
            let told = parse(&text.replace(from, to)).err().expect(to);
            assert!(told.starts_with(expected), "{told}");
        }
    }
}
