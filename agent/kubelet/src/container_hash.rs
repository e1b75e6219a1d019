//! The fingerprint that tells whether a running container still matches its specification.

use k8s_openapi::api::core::v1::Container;

/// FNV-1a over the fields whose change demands a restart: upstream hashes name and image only, since every
/// other field of a running pod's container is immutable or changed in place.
pub fn container_hash(container: &Container) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let image = container.image.as_deref().unwrap_or_default();
    for byte in container.name.bytes().chain([0]).chain(image.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    format!("{hash:x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_name_and_image_matter() {
        let base = Container {
            name: "a".into(),
            image: Some("b:1".into()),
            ..Default::default()
        };
        let command = Container {
            command: Some(vec!["x".into()]),
            ..base.clone()
        };
        let image = Container {
            image: Some("b:2".into()),
            ..base.clone()
        };
        assert_eq!(container_hash(&base), container_hash(&command));
        assert_ne!(container_hash(&base), container_hash(&image));
    }
}
