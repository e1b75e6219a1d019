"""OCI archives of the images that the suite's pods use, from a Debian root and programs built by `build`.

images.py WORK BINARIES: writes WORK/images/*.tar.
"""
import hashlib
import io
import json
import pathlib
import subprocess
import sys
import tarfile

WORK, BINARIES = map(pathlib.Path, sys.argv[1:3])
BIN, ROOT, OUT = WORK / "bin", WORK / "rootfs", WORK / "images"
SOURCES = WORK / "go/src/k8s.io/kubernetes/test/images"
TOOLS = WORK.parent / "tools"
PATH = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
UNUSED = ["./dev/*", "./proc/*", "./sys/*", "./var/cache/*", "./usr/share/doc/*", "./usr/share/locale/*", "./usr/share/man/*"]

E2E = "k8s.gcr.io/e2e-test-images/"
OLD = "gcr.io/kubernetes-e2e-test-images/"
HUB = "docker.io/library/"

HTTPD = b"""#!/bin/bash
set -e
mkdir -p /var/run/apache2 /var/log/apache2
. /etc/apache2/envvars
echo 'ServerName localhost' >> /etc/apache2/apache2.conf
rm -rf /var/www/html
ln -s /usr/local/apache2/htdocs /var/www/html
exec /usr/sbin/apache2 -DFOREGROUND
"""


def layer(*entries):
    """A tar of files (name, path or bytes, mode), directories (name, mode) and links (name, target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, *rest in entries:
            entry, content = tarfile.TarInfo(name), None
            if len(rest) == 2:
                source, entry.mode = rest
                content = source if isinstance(source, bytes) else source.read_bytes()
                entry.size = len(content)
            elif isinstance(rest[0], int):
                entry.type, entry.mode = tarfile.DIRTYPE, rest[0]
            else:
                entry.type, entry.linkname = tarfile.SYMTYPE, rest[0]
            tar.addfile(entry, io.BytesIO(content) if content is not None else None)
    return buffer.getvalue()


def image(names, layers, **config):
    """Writes one archive; the first name's last part is the file's name."""
    blobs = {}

    def blob(media_type, data):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    layers = [blob(LAYER, data) for data in layers]
    rootfs = {"type": "layers", "diff_ids": [entry["digest"] for entry in layers]}
    config = {"architecture": "amd64", "os": "linux", "config": {"Env": PATH, **config}, "rootfs": rootfs}
    config = blob(CONFIG, json.dumps(config).encode())
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    manifest = blob(MANIFEST, json.dumps(manifest).encode())
    named = [{**manifest, "annotations": {"io.containerd.image.name": name}} for name in names]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": named}
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode()}
    files.update({f"blobs/sha256/{digest}": data for digest, data in blobs.items()})
    file = names[0].rsplit("/", 1)[1].split(":")[0]
    (OUT / f"{file}.tar").write_bytes(layer(*((name, data, 0o644) for name, data in files.items())))


def main():
    OUT.mkdir(exist_ok=True)
    excluded = [f"--exclude={pattern}" for pattern in UNUSED]
    tar = ["tar", "-C", ROOT, "--numeric-owner", *excluded, "-cf", "-", "."]
    base = subprocess.run(tar, check=True, stdout=subprocess.PIPE).stdout
    porter = SOURCES / "agnhost/porter"
    agnhost = layer(
        ("agnhost", BIN / "agnhost", 0o755),
        ("localhost.crt", porter / "localhost.crt", 0o644),
        ("localhost.key", porter / "localhost.key", 0o644),
        ("uploads", 0o755),
        ("agnhost-2", "agnhost"),
        ("usr/local/bin/iperf", "/usr/bin/iperf"),
        ("usr/local/bin/busybox", TOOLS / "busybox", 0o755),
        *((f"usr/local/bin/{applet}", "busybox") for applet in ("wget", "netstat")),
    )
    pages = SOURCES / "nautilus/html"
    nautilus = layer(*((name, pages / name, 0o644) for name in ("data.json", "nautilus.jpg")))
    image(
        [E2E + "agnhost:2.21", E2E + "agnhost:2.20", "us.gcr.io/k8s-artifacts-prod/e2e-test-images/agnhost:2.21"],
        [base, agnhost],
        Entrypoint=["/agnhost"],
        Cmd=["pause"],
    )
    image([OLD + "nautilus:1.0"], [base, agnhost, nautilus], Entrypoint=["/agnhost"], Cmd=["test-webserver"])
    httpd = layer(
        ("usr/local/bin/httpd-foreground", HTTPD, 0o755),
        ("usr/local/apache2/htdocs/index.html", b"<html><body><h1>It works!</h1></body></html>", 0o644),
    )
    image([HUB + f"httpd:2.4.{patch}-alpine" for patch in (38, 39)], [base, httpd], Cmd=["httpd-foreground"])
    image([HUB + f"nginx:1.{minor}-alpine" for minor in (14, 15)], [base], Cmd=["nginx", "-g", "daemon off;"])
    image([OLD + "jessie-dnsutils:1.0"], [base], Cmd=["sleep", "3600"])
    image([OLD + "nonroot:1.0"], [base], User="1234", Cmd=["/bin/sh"])
    image([OLD + "nonewprivs:1.0"], [base, layer(("nnp", BIN / "nnp", 0o4755))], User="1000", Entrypoint=["/nnp"])
    image(["k8s.gcr.io/pause:3.2"], [layer(("agnhost", BIN / "agnhost", 0o755))], Entrypoint=["/agnhost", "pause"])
    sample = layer(("sample-apiserver", BIN / "sample-apiserver", 0o755), ("tmp", 0o1777))
    image([OLD + "sample-apiserver:1.17"], [sample], Entrypoint=["/sample-apiserver"])
    etcd = layer(("usr/local/bin/etcd", TOOLS / "etcd", 0o755))
    image(["k8s.gcr.io/etcd:3.4.13-0"], [base, etcd], Cmd=["/usr/local/bin/etcd"])
    busybox = TOOLS / "busybox"
    applets = subprocess.run([busybox, "--list"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    links = [(f"bin/{applet}", "busybox") for applet in applets if applet != "busybox"]
    directories = [(name, 0o755) for name in ("bin", "dev", "etc", "home", "proc", "sys", "usr", "var")]
    users = ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)
    box = layer(*directories, ("tmp", 0o1777), ("root", 0o700), users, ("bin/busybox", busybox, 0o755), *links)
    image([HUB + "busybox:1.29"], [box], Cmd=["sh"])
    dns = layer(("cluster-dns", BINARIES / "cluster-dns", 0o755), ("etc", 0o755), ("proc", 0o755), ("sys", 0o755))
    version = subprocess.run([BINARIES / "image", "--version"], check=True, stdout=subprocess.PIPE, text=True)
    image([f"ironlet.local/cluster-dns:{version.stdout.split()[1]}"], [dns], Entrypoint=["/cluster-dns"])


main()
