//! Image names as users write them, and their canonical form.

use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub host: String,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("couldn't parse image name {0:?}: invalid reference format")]
    Format(String),
    #[error("couldn't parse image name {0:?}: repository name must be lowercase")]
    Uppercase(String),
    #[error("couldn't parse image name {0:?}: unsupported or malformed digest")]
    Digest(String),
}

const DEFAULT_HOST: &str = "docker.io";

impl Reference {
    /// Understands `name`, `name:tag`, `host/name@digest` and so on; `:latest` when nothing is said.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let bad = || ReferenceError::Format(text.to_owned());
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(ReferenceError::Digest(text.to_owned())),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (
                name,
                Some(tag)
                    .filter(|tag| is_tag(tag))
                    .ok_or_else(bad)?
                    .to_owned()
                    .into(),
            ),
            _ => (rest, None),
        };
        let (host, path) = match name.split_once('/') {
            Some((first, path)) if first == "localhost" || (first.contains(['.', ':']) && is_host(first)) => {
                (first, path.to_owned())
            }
            _ => (DEFAULT_HOST, name.to_owned()),
        };
        let repository = if host == DEFAULT_HOST && !path.contains('/') && !path.is_empty() {
            format!("library/{path}")
        } else {
            path
        };
        if repository.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase(text.to_owned()));
        }
        if !repository.split('/').all(is_path_component) || host.is_empty() {
            return Err(bad());
        }
        let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self {
            host: host.to_owned(),
            repository,
            tag,
            digest,
        })
    }

    /// `host/repository`
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// `host/repository:tag`
    pub fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}:{tag}", self.name()))
    }

    /// `host/repository@digest`
    pub fn with_digest(&self, digest: &str) -> String {
        format!("{}@{digest}", self.name())
    }

    /// What the registry is asked for.
    pub fn wanted(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest
            .as_ref()
            .map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

/// `sha256:` and 64 lower-case hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex64)
}

pub fn is_hex64(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_host(host: &str) -> bool {
    host.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
        && host
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || ".:-[]".contains(c))
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= 128
        && tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && tag
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn is_path_component(part: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    ends(part.chars().next())
        && ends(part.chars().last())
        && part
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_their_canonical_form() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, canonical) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("team/app", "docker.io/team/app:latest".to_owned()),
            ("localhost/app:v1", "localhost/app:v1".to_owned()),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest".to_owned()),
            (
                "registry.k8s.io/pause:3.10",
                "registry.k8s.io/pause:3.10".to_owned(),
            ),
            (
                &format!("busybox@{digest}"),
                format!("docker.io/library/busybox@{digest}"),
            ),
            (&format!("h.io/a:t@{digest}"), format!("h.io/a:t@{digest}")),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        for text in [
            "",
            ":tag",
            "a:",
            "a b",
            "h.io/",
            "a//b",
            "-a",
            "a@sha256:12",
            "../a",
            "h.io/a/../b",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
        assert_eq!(
            Reference::parse("App"),
            Err(ReferenceError::Uppercase("App".into()))
        );
    }
}
