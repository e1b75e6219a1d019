//! Debian's docker-registry on loopback: open, with a password, with tokens or with TLS; filled by a small
//! client of the distribution API.

use crate::image::{Image, manifest_type, named};
use crate::packages;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

pub struct Registry {
    server: Child,
    pub address: String,
}

impl Registry {
    /// `more`: lines of its configuration, such as `auth:`; `tls`: certificate and key.
    pub fn start(folder: &Path, more: &str, tls: Option<(&Path, &Path)>) -> Self {
        let storage = folder.join("registry");
        std::fs::create_dir_all(&storage).expect("folder");
        let address = {
            let probe = TcpListener::bind("127.0.0.1:0").expect("port");
            format!("localhost:{}", probe.local_addr().expect("address").port())
        };
        let tls = tls.map_or(String::new(), |(certificate, key)| {
            format!(
                "  tls:\n    certificate: {}\n    key: {}\n",
                certificate.display(),
                key.display()
            )
        });
        let config = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{tls}{more}",
            storage.display(),
        );
        let path = folder.join(format!("registry-{}.yml", address.replace(':', "-")));
        std::fs::write(&path, config).expect("configuration");
        let server = Command::new(packages::REGISTRY.path())
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env_clear()
            .spawn()
            .expect("docker-registry");
        let registry = Self { server, address };
        let started = Instant::now();
        while TcpStream::connect(&registry.address).is_err() {
            assert!(started.elapsed() < PATIENCE, "the registry answers");
            std::thread::sleep(Duration::from_millis(10));
        }
        registry
    }

    /// Pushes blobs and manifest under a tag.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) {
        for blob in &image.blobs {
            self.push_blob(repository, blob);
        }
        self.push_manifest(repository, tag, &image.manifest, manifest_type(image.dialect));
    }

    pub fn push_blob(&self, repository: &str, blob: &[u8]) {
        let begun = self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), "", &[]);
        let location = header(&begun, "location");
        let path = location
            .split_once(&self.address)
            .map_or(location.as_str(), |(_, path)| path);
        let joint = if path.contains('?') { '&' } else { '?' };
        let put = format!("{path}{joint}digest={}", named(blob).replace(':', "%3A"));
        let done = self.request("PUT", &put, "application/octet-stream", blob);
        assert!(done.starts_with("HTTP/1.1 201"), "{done}");
    }

    pub fn push_manifest(&self, repository: &str, tag: &str, manifest: &[u8], media_type: &str) {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let done = self.request("PUT", &path, media_type, manifest);
        assert!(done.starts_with("HTTP/1.1 201"), "{done}");
    }

    fn request(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("registry");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("request");
        stream.write_all(body).expect("request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answer");
        answer
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn header(answer: &str, name: &str) -> String {
    let line = answer
        .lines()
        .find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
    let line = line.unwrap_or_else(|| panic!("no {name} in {answer}"));
    line.split_once(':').expect("header").1.trim().to_owned()
}
