//! Which Debian mirror to use: the one the host's own apt sources name, so that local mirrors are respected.

/// What python-apt-common knows of Debian's own mirrors, for hosts whose sources name none (Ubuntu).
pub const TEMPLATE: &str = "/usr/share/python-apt/templates/Debian.info";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirrors {
    pub archive: String,
    pub security: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suite: String,
    components: Vec<String>,
}

/// Chooses among the texts of the host's `*.list` and `*.sources` files, given with their names; `template` is the
/// text of [`TEMPLATE`]. None when neither names a mirror.
pub fn choose<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
    template: Option<&str>,
) -> Option<Mirrors> {
    let sources: Vec<Source> = files
        .into_iter()
        .flat_map(|(name, text)| {
            if name.ends_with(".sources") {
                deb822(text)
            } else {
                one_line(text)
            }
        })
        .filter(|source| source.components.iter().any(|component| component == "main"))
        .collect();
    let named = |directory: &str| {
        let matches =
            |source: &&Source| source.uri.trim_end_matches('/').rsplit('/').next() == Some(directory);
        sources
            .iter()
            .find(matches)
            .map(|source| source.uri.trim_end_matches('/').to_owned())
    };
    // Cloud images keep their mirror in a list file: mirror+file:/etc/apt/mirrors/debian.list.
    let listed = |file: &str| {
        let matches = |source: &&Source| source.uri.starts_with("mirror+file:") && source.uri.ends_with(file);
        sources.iter().find(matches).map(|source| source.uri.clone())
    };
    let fallback = template.and_then(base);
    Some(Mirrors {
        archive: named("debian")
            .or_else(|| listed("/debian.list"))
            .or_else(|| fallback.map(str::to_owned))?,
        security: named("debian-security")
            .or_else(|| listed("/debian-security.list"))
            .or_else(|| Some(format!("{}-security", fallback?)))?,
    })
}

/// The first archive of the template: `BaseURI: https://HOST/debian/`.
fn base(template: &str) -> Option<&str> {
    let uris = template.lines().filter_map(|line| line.strip_prefix("BaseURI:"));
    uris.map(|uri| uri.trim().trim_end_matches('/'))
        .find(|uri| uri.ends_with("/debian"))
}

/// sources.list(5), one-line style.
fn one_line(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb ") else {
            continue;
        };
        let rest = rest.trim_start();
        let rest = if rest.starts_with('[') {
            rest.split_once(']').map_or("", |(_, rest)| rest)
        } else {
            rest
        };
        let mut words = rest.split_whitespace().map(str::to_owned);
        if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
            sources.push(Source {
                uri,
                suite,
                components: words.collect(),
            });
        }
    }
    sources
}

/// sources.list(5), deb822 style: stanzas of `Field: values`, continued on indented lines.
fn deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(stanza(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((field, value)) = line.split_once(':') {
            fields.push((field.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn stanza(fields: &[(String, String)]) -> Vec<Source> {
    let words = |name: &str| -> Vec<String> {
        let values = fields.iter().filter(|(field, _)| field == name);
        values
            .flat_map(|(_, value)| value.split_whitespace().map(str::to_owned))
            .collect()
    };
    if !words("types").iter().any(|kind| kind == "deb") || words("enabled") == ["no"] {
        return Vec::new();
    }
    let (uris, suites, components) = (words("uris"), words("suites"), words("components"));
    let source = |uri: &String, suite: &String| Source {
        uri: uri.clone(),
        suite: suite.clone(),
        components: components.clone(),
    };
    uris.iter()
        .flat_map(|uri| suites.iter().map(move |suite| source(uri, suite)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_mirror_is_taken_and_third_parties_are_not() {
        let deb822 = "Types: deb\n# a comment\nURIs: http://mirror.example/debian/\nSuites: bookworm\n bookworm-updates\nComponents: main\n\n\
            Types: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\nComponents: main\n";
        let lines = "deb [arch=amd64 signed-by=/k.gpg] https://third.example/apt bookworm main # mine\n\
            deb http://old.example/debian trixie main contrib\n#deb http://off.example/debian trixie main\n";
        let ubuntu = "Types: deb\nURIs: http://archive.ubuntu.example/ubuntu/\nSuites: noble\nComponents: main universe\n";
        let cloud = "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: trixie\nComponents: main\n";
        let disabled =
            "Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: trixie\nComponents: main\n";
        let template = "Suite: x\nBaseURI: https://security.example/\n\nSuite: y\nBaseURI: https://main.example/debian/\n";
        const FALLBACK: &str = "https://main.example/debian";
        const FALLBACK_SECURITY: &str = "https://main.example/debian-security";
        let table: [(&[(&str, &str)], &str, &str); 5] = [
            (
                &[("debian.sources", deb822)],
                "http://mirror.example/debian",
                "http://mirror.example/debian-security",
            ),
            (
                &[("sources.list", lines)],
                "http://old.example/debian",
                FALLBACK_SECURITY,
            ),
            (
                &[("ubuntu.sources", ubuntu), ("off.sources", disabled)],
                FALLBACK,
                FALLBACK_SECURITY,
            ),
            (
                &[("debian.sources", cloud)],
                "mirror+file:///etc/apt/mirrors/debian.list",
                FALLBACK_SECURITY,
            ),
            (&[], FALLBACK, FALLBACK_SECURITY),
        ];
        for (files, archive, security) in table {
            let want = Mirrors {
                archive: archive.to_owned(),
                security: security.to_owned(),
            };
            assert_eq!(
                choose(files.iter().copied(), Some(template)),
                Some(want),
                "{files:?}"
            );
        }
        assert_eq!(choose([("ubuntu.sources", ubuntu)], None), None);
    }
}
