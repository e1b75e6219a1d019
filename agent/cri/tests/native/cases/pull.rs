//! Pulls from a real registry: every shape of image, every kind of credentials, faults on the way.

use crate::faults::Proxy;
use crate::image::{self, Dialect, Image, Packing, entry, named};
use crate::node::Node;
use crate::registry::Registry;
use crate::token_server;
use cri_api::v1::*;
use serde_json::json;
use std::path::Path;
use tar::EntryType;
use tonic::{Code, Status};

/// `user:secret`, by bcrypt.
const PASSWORDS: &str = "user:$2b$04$arAUOyfk.FvPvnjm7o2qKOZ9wilKyUjk/b.6rcw8/5oVyZ7Qm2fJq\n";

fn spec(name: &str) -> Option<ImageSpec> {
    Some(ImageSpec {
        image: name.into(),
        ..Default::default()
    })
}

async fn pull(node: &Node, name: &str, auth: Option<AuthConfig>) -> Result<String, Status> {
    let request = PullImageRequest {
        image: spec(name),
        auth,
        sandbox_config: None,
    };
    Ok(node.images().pull_image(request).await?.into_inner().image_ref)
}

async fn found(node: &Node, name: &str) -> Option<Listed> {
    let request = ImageStatusRequest {
        image: spec(name),
        verbose: false,
    };
    node.images()
        .image_status(request)
        .await
        .unwrap()
        .into_inner()
        .image
}

type Listed = cri_api::v1::Image;

async fn remove(node: &Node, name: &str) {
    let request = RemoveImageRequest { image: spec(name) };
    node.images().remove_image(request).await.unwrap();
}

fn layer(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    build(&mut tar);
    tar.into_inner().unwrap()
}

/// Bytes that no compression makes smaller, the same every time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn big(megabytes: usize) -> Image {
    let content = noise(megabytes << 20);
    let tar = layer(|tar| entry(tar, EntryType::Regular, "noise", "", 0o644, &content));
    Image::new(&[(tar, Packing::Plain)], &json!({}), Dialect::Oci)
}

fn nothing_half_made(node: &Node) {
    let left: Vec<_> = std::fs::read_dir(node.folder.join("root/tmp"))
        .unwrap()
        .flatten()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn layers_on_disk(node: &Node) -> usize {
    std::fs::read_dir(node.folder.join("root/l")).unwrap().count() / 2
}

/// Layers that hide, link, mark and escape.
fn tricky_layers() -> [(Vec<u8>, Packing); 3] {
    let base = image::layers()[0].clone();
    let middle = layer(|tar| {
        entry(tar, EntryType::Directory, "data", "", 0o755, b"");
        entry(tar, EntryType::Regular, "data/old", "", 0o644, b"old\n");
        entry(tar, EntryType::Directory, "replaced", "", 0o755, b"");
        entry(tar, EntryType::Regular, "replaced/gone", "", 0o644, b"gone\n");
        entry(tar, EntryType::Regular, "etc/first", "", 0o644, b"linked\n");
        entry(tar, EntryType::Link, "etc/second", "etc/first", 0o644, b"");
        entry(tar, EntryType::Symlink, "escape", "../../../../tmp", 0o777, b"");
        tar.append_pax_extensions([("SCHILY.xattr.user.colour", &b"blue"[..])])
            .unwrap();
        entry(tar, EntryType::Regular, "etc/marked", "", 0o4755, b"marked\n");
    });
    let top = layer(|tar| {
        entry(tar, EntryType::Regular, "data/.wh.old", "", 0o644, b"");
        entry(tar, EntryType::Regular, "data/new", "", 0o644, b"new\n");
        entry(tar, EntryType::Directory, "replaced", "", 0o755, b"");
        entry(tar, EntryType::Regular, "replaced/.wh..wh..opq", "", 0o644, b"");
        entry(tar, EntryType::Regular, "replaced/fresh", "", 0o644, b"fresh\n");
        // Through the link of the layer below: inside, /tmp is meant.
        entry(tar, EntryType::Regular, "tmp/landed", "", 0o644, b"inside\n");
    });
    [
        (base, Packing::Gzip),
        (middle, Packing::Zstd),
        (top, Packing::Gzip),
    ]
}

pub async fn images_of_every_shape_are_pulled(node: &mut Node) {
    let registry = Registry::start(&node.folder, "", None);
    let host = &registry.address;
    let config = json!({"User": "app:video", "Cmd": ["/bin/sh"], "Labels": {"a": "b"}});
    let tricky = Image::new(&tricky_layers(), &config, Dialect::Oci);
    registry.push("team/tricky", "v1", &tricky);
    let name = format!("{host}/team/tricky:v1");
    assert_eq!(pull(node, &name, None).await.unwrap(), tricky.id());
    let status = found(node, &name).await.unwrap();
    let by_digest = format!("{host}/team/tricky@{}", tricky.digest());
    assert_eq!(
        (&status.repo_tags[..], &status.repo_digests[..]),
        (&[name.clone()][..], &[by_digest.clone()][..])
    );
    assert_eq!(
        (status.username.as_str(), status.uid, status.pinned),
        ("app", None, false)
    );
    for known_as in [&by_digest, &tricky.id(), &tricky.id()[7..], &tricky.id()[7..20]] {
        assert_eq!(found(node, known_as).await.expect(known_as).id, tricky.id());
    }
    let sandbox = node.sandbox().await;
    let script = "cd /; ls data replaced etc/first etc/second; cat data/new etc/second escape/landed; id; \
                  test etc/first -ef etc/second && echo same; ls -l etc/marked";
    let mut container = node.script("c", script);
    container.image = spec(&tricky.id());
    let (code, text) = node.output(&sandbox, container).await;
    let expected = "etc/first\netc/second\n\ndata:\nnew\n\nreplaced:\nfresh\nnew\nlinked\ninside\nuid=1000(app) gid=44(video)";
    assert!(text.starts_with(expected), "{text}");
    assert!(text.contains("same\n-rwsr-xr-x"), "{text}");
    assert_eq!(code, 0);
    let mut value = [0u8; 16];
    let mark = std::fs::read_dir(node.folder.join("root/l"))
        .unwrap()
        .flatten()
        .map(|layer| layer.path().join("etc/marked"))
        .find(|path| path.exists())
        .unwrap();
    let n = rustix::fs::getxattr(mark, "user.colour", &mut value).unwrap();
    assert_eq!(&value[..n], b"blue");
    // Docker's documents, a list of platforms, an index of indexes, a name with tag and digest.
    let docker = Image::new(&tricky_layers()[..1], &json!({"User": "7"}), Dialect::Docker);
    let oci = Image::new(&tricky_layers()[..1], &json!({"User": "8"}), Dialect::Oci);
    registry.push("list", "docker", &docker);
    registry.push("list", "oci", &oci);
    let entry_of = |bytes: &[u8], media_type: &str, architecture: &str| {
        json!({"mediaType": media_type, "digest": named(bytes), "size": bytes.len(),
               "platform": {"os": "linux", "architecture": architecture}})
    };
    let list_type = "application/vnd.docker.distribution.manifest.list.v2+json";
    let list = json!({"schemaVersion": 2, "mediaType": list_type, "manifests": [
        entry_of(&oci.manifest, image::manifest_type(Dialect::Oci), "s390x"),
        entry_of(&docker.manifest, image::manifest_type(Dialect::Docker), "amd64"),
    ]})
    .to_string();
    registry.push_manifest("list", "latest", list.as_bytes(), list_type);
    assert_eq!(
        pull(node, &format!("{host}/list"), None).await.unwrap(),
        docker.id()
    );
    let status = found(node, &format!("{host}/list:latest")).await.unwrap();
    assert_eq!(status.uid.unwrap().value, 7);
    // An image is known by the digest of what its name stands for.
    assert_eq!(
        status.repo_digests,
        [format!("{host}/list@{}", named(list.as_bytes()))]
    );
    let both = format!("{host}/list:latest@{}", oci.digest());
    assert_eq!(pull(node, &both, None).await.unwrap(), oci.id());
    let status = found(node, &both).await.unwrap();
    assert_eq!((status.repo_tags.len(), status.repo_digests.len()), (0, 1));
    let foreign = json!({"schemaVersion": 2, "mediaType": list_type, "manifests": [
        entry_of(&oci.manifest, image::manifest_type(Dialect::Oci), "s390x"),
    ]})
    .to_string();
    registry.push_manifest("list", "foreign", foreign.as_bytes(), list_type);
    let error = pull(node, &format!("{host}/list:foreign"), None)
        .await
        .unwrap_err();
    assert!(error.message().contains("no match for platform"), "{error}");
    // Three names of one image, and a tag that moves.
    registry.push("list", "moving", &docker);
    registry.push("other/name", "x", &docker);
    for name in ["list:moving", "other/name:x"] {
        assert_eq!(
            pull(node, &format!("{host}/{name}"), None).await.unwrap(),
            docker.id()
        );
    }
    assert_eq!(found(node, &docker.id()).await.unwrap().repo_tags.len(), 3);
    registry.push("list", "moving", &oci);
    assert_eq!(
        pull(node, &format!("{host}/list:moving"), None).await.unwrap(),
        oci.id()
    );
    assert_eq!(found(node, &docker.id()).await.unwrap().repo_tags.len(), 2);
    let missing = format!("{host}/list:none");
    let error = pull(node, &missing, None).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (
            Code::NotFound,
            format!("failed to pull and unpack image {missing:?}: failed to resolve reference {missing:?}: {missing}: not found").as_str()
        )
    );
    let error = pull(node, "localhost:1/x", None).await.unwrap_err();
    assert!(
        error.message().contains("failed to do request: GET") && error.message().contains("refused"),
        "{error}"
    );
    assert_eq!(
        pull(node, "UPPER", None).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    // What a container stands on stays while it does; the rest goes with its image.
    remove(node, &tricky.id()).await;
    remove(node, &tricky.id()).await;
    assert!(found(node, &tricky.id()).await.is_none());
    for id in [docker.id(), oci.id()] {
        remove(node, &id).await;
    }
    assert_eq!(
        layers_on_disk(node),
        2 + 2,
        "the container's and busybox's, one of them shared"
    );
    nothing_half_made(node);
}

fn auth(username: &str, password: &str) -> Option<AuthConfig> {
    Some(AuthConfig {
        username: username.into(),
        password: password.into(),
        ..Default::default()
    })
}

pub async fn registries_are_shown_credentials(node: &mut Node) {
    let open = Registry::start(&node.folder, "", None);
    let image = big(1);
    open.push("private", "1", &image);
    let passwords = node.folder.join("htpasswd");
    std::fs::write(&passwords, PASSWORDS).unwrap();
    let basic = format!(
        "auth:\n  htpasswd:\n    realm: r\n    path: {}\n",
        passwords.display()
    );
    let basic = Registry::start(&node.folder, &basic, None);
    let bundle = node.folder.join("bundle.pem");
    let realm = token_server::start(&bundle);
    let (service, issuer) = (token_server::SERVICE, token_server::ISSUER);
    let token = format!(
        "auth:\n  token:\n    realm: {realm}\n    service: {service}\n    issuer: {issuer}\n    rootcertbundle: {}\n",
        bundle.display()
    );
    let token = Registry::start(&node.folder, &token, None);
    let denied =
        "pull access denied, repository does not exist or may require authorization: authorization failed: ";
    for (registry, nobody, wrong) in [
        (
            &basic,
            format!("{denied}no basic auth credentials"),
            denied.to_owned(),
        ),
        (
            &token,
            denied.to_owned(),
            format!("failed to fetch oauth token: unexpected status from GET request to {realm}"),
        ),
    ] {
        let name = format!("{}/private:1", registry.address);
        for (credentials, expected) in [(None, nobody), (auth("user", "wrong"), wrong)] {
            let error = pull(node, &name, credentials).await.unwrap_err();
            assert!(error.message().contains(&expected), "{error}");
            assert!(error.message().starts_with(&format!(
                "failed to pull and unpack image {name:?}: failed to resolve reference {name:?}: "
            )));
        }
        assert_eq!(
            pull(node, &name, auth("user", "secret")).await.unwrap(),
            image.id()
        );
        remove(node, &image.id()).await;
    }
    let name = format!("{}/private:1", token.address);
    let refresh = |secret: &str| {
        Some(AuthConfig {
            identity_token: secret.into(),
            ..Default::default()
        })
    };
    let error = pull(node, &name, refresh("bad")).await.unwrap_err();
    assert!(
        error.message().contains("unexpected status from POST request"),
        "{error}"
    );
    assert_eq!(pull(node, &name, refresh("good")).await.unwrap(), image.id());
    nothing_half_made(node);
}

fn certificates(folder: &Path) -> [std::path::PathBuf; 3] {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(vec![]).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
    let certificate = leaf.signed_by(&key, &issuer).unwrap();
    let paths = ["ca.pem", "cert.pem", "key.pem"].map(|name| folder.join(name));
    for (path, text) in paths
        .iter()
        .zip([root.pem(), certificate.pem(), key.serialize_pem()])
    {
        std::fs::write(path, text).unwrap();
    }
    paths
}

pub async fn registries_are_trusted_by_their_authority(node: &mut Node) {
    let [authority, certificate, key] = certificates(&node.folder);
    let open = Registry::start(&node.folder, "", None);
    let image = big(1);
    open.push("library/app", "latest", &image);
    let tls = Registry::start(&node.folder, "", Some((&certificate, &key)));
    node.mirrors = vec![format!("docker.io=https://{}", tls.address)];
    node.restart().await;
    // The registry itself cannot be reached from here: what is told is told of it.
    let error = pull(node, "app", None).await.unwrap_err();
    assert!(
        error.message().contains("docker.io/library/app:latest"),
        "{error}"
    );
    node.trusted = Some(authority);
    node.restart().await;
    assert_eq!(pull(node, "app", None).await.unwrap(), image.id());
    let status = found(node, "docker.io/library/app").await.unwrap();
    assert_eq!(status.repo_tags, ["docker.io/library/app:latest"]);
}

pub async fn broken_pulls_are_taken_up_or_leave_nothing(node: &mut Node) {
    let registry = Registry::start(&node.folder, "", None);
    let image = big(5);
    registry.push("big", "1", &image);
    let layer = named(&image.blobs[0]);
    let proxy = Proxy::start(&registry.address, 3, 1 << 20);
    node.mirrors = vec![format!("mirror.test={}", proxy.url)];
    node.restart().await;
    let before = layers_on_disk(node);
    assert_eq!(pull(node, "mirror.test/big:1", None).await.unwrap(), image.id());
    let asked = proxy.asked().to_ascii_lowercase();
    assert_eq!(asked.matches("range: bytes=").count(), 3, "{asked}");
    assert!(asked.contains("?ns=mirror.test"), "{asked}");
    remove(node, &image.id()).await;
    // Two pulls at once fetch each layer once.
    let other = Image::new(
        &[(layer_of_noise(&image), Packing::Plain)],
        &json!({"User": "9"}),
        Dialect::Oci,
    );
    registry.push("big", "2", &other);
    let proxy = Proxy::start(&registry.address, 0, 0);
    node.mirrors = vec![format!("mirror.test={}", proxy.url)];
    node.restart().await;
    let (first, second, third) = tokio::join!(
        pull(node, "mirror.test/big:1", None),
        pull(node, "mirror.test/big:1", None),
        pull(node, "mirror.test/big:2", None)
    );
    assert_eq!(
        [first.unwrap(), second.unwrap(), third.unwrap()],
        [image.id(), image.id(), other.id()]
    );
    assert_eq!(proxy.asked().matches(&format!("blobs/{layer}")).count(), 1);
    for id in [image.id(), other.id()] {
        remove(node, &id).await;
    }
    nothing_half_made(node);
    // A pull whose caller has gone is given up, wherever it stands.
    for milliseconds in [1, 2, 3, 4, 6, 8, 12, 16] {
        let mut request = tonic::Request::new(PullImageRequest {
            image: spec("mirror.test/big:1"),
            ..Default::default()
        });
        request.set_timeout(std::time::Duration::from_millis(milliseconds));
        let _given_up_or_done = node.images().pull_image(request).await;
    }
    node.until("the given-up pulls leave nothing", async || {
        let empty = std::fs::read_dir(node.folder.join("root/tmp")).unwrap().count() == 0;
        empty.then_some(())
    })
    .await;
    remove(node, &image.id()).await;
    // A registry that serves other bytes than were pushed.
    let hex = &layer[7..];
    let stored = node.folder.join(format!(
        "registry/docker/registry/v2/blobs/sha256/{}/{hex}/data",
        &hex[..2]
    ));
    let mut bytes = std::fs::read(&stored).unwrap();
    bytes[2 << 20] ^= 1;
    std::fs::write(&stored, bytes).unwrap();
    let error = pull(node, "mirror.test/big:1", None).await.unwrap_err();
    assert!(error.message().contains(&format!("not to {layer}")), "{error}");
    nothing_half_made(node);
    assert_eq!(layers_on_disk(node), before);
}

fn layer_of_noise(image: &Image) -> Vec<u8> {
    image.blobs[0].clone()
}

pub async fn a_full_disk_refuses_a_pull_and_nothing_else(node: &mut Node) {
    let registry = Registry::start(&node.folder, "", None);
    let (huge, small) = (big(12), big(1));
    registry.push("huge", "1", &huge);
    registry.push("small", "1", &small);
    node.kill_server();
    let root = node.folder.join("root");
    let mount = |args: &[&str]| {
        let status = std::process::Command::new(args[0])
            .args(&args[1..])
            .arg(&root)
            .status()
            .unwrap();
        assert!(status.success(), "{args:?}");
    };
    mount(&["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs"]);
    node.start().await;
    let before = layers_on_disk(node);
    let error = pull(node, &format!("{}/huge:1", registry.address), None)
        .await
        .unwrap_err();
    assert!(error.message().contains("No space left on device"), "{error}");
    nothing_half_made(node);
    assert_eq!(layers_on_disk(node), before);
    assert_eq!(
        pull(node, &format!("{}/small:1", registry.address), None)
            .await
            .unwrap(),
        small.id()
    );
    node.kill_server();
    mount(&["umount"]);
    node.start().await;
}
