//! AppArmor: which loaded profile a container is put under, if any.

use cri_api::v1;
use cri_api::v1::security_profile::ProfileType;

/// The kernel's list: a line of `NAME (MODE)` for each profile.
pub const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const LOCALHOST: &str = "localhost/";

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApparmorError {
    #[error("apparmor is not supported on this host: profile {0:?}")]
    Disabled(String),
    #[error("apparmor profile not found {0}")]
    NotLoaded(String),
}

/// Decides by the structured field and, where that is not set, by the deprecated text before it.
pub fn profile(
    security: &v1::LinuxContainerSecurityContext,
    enabled: bool,
    loaded: impl FnOnce() -> String,
) -> Result<Option<String>, ApparmorError> {
    #[allow(
        deprecated,
        reason = "clients older than the structured field send nothing else"
    )]
    let text = &security.apparmor_profile;
    let asked = match &security.apparmor {
        Some(profile) if profile.profile_type() == ProfileType::Localhost => {
            let name = &profile.localhost_ref;
            Some(name.strip_prefix(LOCALHOST).unwrap_or(name))
        }
        Some(_) => None,
        None => text.strip_prefix(LOCALHOST),
    };
    let Some(name) = asked.filter(|_| !security.privileged).map(str::to_owned) else {
        return Ok(None);
    };
    if !enabled {
        return Err(ApparmorError::Disabled(name));
    }
    let known = loaded()
        .lines()
        .any(|line| line.rsplit_once(" (").is_some_and(|(known, _)| known == name));
    if known {
        Ok(Some(name))
    } else {
        Err(ApparmorError::NotLoaded(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structured_field_comes_first_and_profiles_must_be_loaded() {
        let field = |kind: ProfileType, name: &str| {
            Some(v1::SecurityProfile {
                profile_type: kind as i32,
                localhost_ref: name.into(),
            })
        };
        let found = |name: &str| Ok(Some(name.to_owned()));
        let missing = || Err(ApparmorError::NotLoaded("none".into()));
        for (text, apparmor, expected) in [
            ("", None, Ok(None)),
            ("runtime/default", None, Ok(None)),
            ("unconfined", None, Ok(None)),
            ("localhost/deny", None, found("deny")),
            ("localhost/none", None, missing()),
            ("", field(ProfileType::Localhost, "deny"), found("deny")),
            ("", field(ProfileType::Localhost, "localhost/deny"), found("deny")),
            (
                "localhost/none",
                field(ProfileType::Localhost, "deny"),
                found("deny"),
            ),
            (
                "localhost/deny",
                field(ProfileType::Localhost, "localhost/none"),
                missing(),
            ),
            ("localhost/deny", field(ProfileType::RuntimeDefault, ""), Ok(None)),
            ("localhost/deny", field(ProfileType::Unconfined, ""), Ok(None)),
        ] {
            #[allow(deprecated, reason = "what older clients send")]
            let security = v1::LinuxContainerSecurityContext {
                apparmor_profile: text.into(),
                apparmor,
                ..Default::default()
            };
            let loaded = || "deny-all (enforce)\ndeny (enforce)\n".to_owned();
            assert_eq!(profile(&security, true, loaded), expected, "{security:?}");
            if let Ok(Some(name)) = expected {
                let disabled = Err(ApparmorError::Disabled(name));
                assert_eq!(profile(&security, false, loaded), disabled);
            }
        }
    }
}
