"""Containers: what they run, see, may do and leave behind."""

import base64
import gzip
import hashlib
import io
import json
import random
import tarfile

import pytest

from cluster import at, container, eventually, pod

conformance = pytest.mark.conformance
FOREVER = ("sleep", "3600")


@conformance(
    "[sig-node] Containers should be able to override the image's default command (container entrypoint) [NodeConformance]",
    "[sig-node] Containers should be able to override the image's default arguments (container cmd) [NodeConformance]",
    "[sig-node] Containers should be able to override the image's default command and arguments [NodeConformance]",
)
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"command": ["echo", "command"]}, "command\n"),
        ({"args": ["echo", "arguments"]}, "arguments\n"),
        ({"command": ["echo", "both:"], "args": ["command", "arguments"]}, "both: command arguments\n"),
    ],
)
def test_command_and_arguments_replace_the_images(ns, fields, expected):
    assert ns.says(container=fields) == expected


@conformance("[sig-node] Containers should use the image defaults if command and args are blank [NodeConformance]")
def test_without_a_command_the_image_decides(ns):
    ns.run("default", container={"stdin": True})
    ns.pod_is("default", "Running")
    assert ns.exec("default", "cat", "/proc/1/cmdline").startswith("sh")


def field(path):
    return {"fieldRef": {"fieldPath": path}}


def from_field(name, path):
    return {"name": name, "valueFrom": field(path)}


def environment(ns, *env, env_from=(), **fields):
    text = ns.says("env", container={"env": list(env), "envFrom": list(env_from), **fields})
    return dict(line.split("=", 1) for line in text.splitlines())


@conformance(
    "[sig-node] Downward API should provide pod name, namespace and IP address as env vars [NodeConformance]",
    "[sig-node] Downward API should provide host IP as an env var [NodeConformance]",
    "[sig-node] Downward API should provide hostIPs as an env var [NodeConformance]",
    "[sig-node] Downward API should provide pod UID as env vars [NodeConformance]",
)
def test_a_pods_fields_are_variables(ns):
    paths = ["metadata.name", "metadata.namespace", "metadata.uid", "status.podIP", "status.hostIP", "status.hostIPs"]
    found = environment(ns, *(from_field("V" + path.replace(".", "_"), path) for path in paths))
    shown = ns.cluster.get(ns.pods("says"))
    values = [found["V" + path.replace(".", "_")] for path in paths]
    meta, status = shown["metadata"], shown["status"]
    assert values[:3] == [meta["name"], ns.name, meta["uid"]]
    # A finished pod has given its address back.
    assert values[3] and status.get("podIP", values[3]) == values[3]
    assert values[4:] == [status["hostIP"], ",".join(one["ip"] for one in status["hostIPs"])]


@conformance(
    "[sig-node] Downward API should provide container's limits.cpu/memory and requests.cpu/memory as env vars [NodeConformance]",
    "[sig-node] Downward API should provide default limits.cpu/memory from node allocatable [NodeConformance]",
)
@pytest.mark.parametrize("limited", [True, False])
def test_resources_are_variables(ns, limited):
    names = ["limits.cpu", "limits.memory"] + (["requests.cpu", "requests.memory"] if limited else [])
    env = [{"name": name.replace(".", "_"), "valueFrom": {"resourceFieldRef": {"resource": name}}} for name in names]
    resources = {"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1250m", "memory": "64Mi"}}
    found = environment(ns, *env, resources=resources if limited else {})
    if limited:
        expected = ["2", str(64 << 20), "1", str(32 << 20)]
    else:
        node = ns.cluster.get(ns.pods("says"))["spec"]["nodeName"]
        allocatable = ns.cluster.get(at("v1", "nodes", name=node))["status"]["allocatable"]
        memory = int(allocatable["memory"].removesuffix("Ki")) << 10
        expected = [allocatable["cpu"], str(memory)]
    assert [found[name.replace(".", "_")] for name in names] == expected


VARIABLES = [
    ("configmaps", "configMap", "data", "[sig-node] ConfigMap should be consumable "),
    ("secrets", "secret", "stringData", "[sig-node] Secrets should be consumable "),
]


@conformance(
    VARIABLES[0][3] + "via environment variable [NodeConformance]",
    VARIABLES[0][3] + "via the environment [NodeConformance]",
    VARIABLES[0][3] + "as environment variable names with various prefixes",
    VARIABLES[1][3] + "from pods in env vars [NodeConformance]",
    VARIABLES[1][3] + "via the environment [NodeConformance]",
    VARIABLES[1][3] + "as environment variable names variable names with various prefixes",
)
@pytest.mark.parametrize(("resource", "kind", "data"), [row[:3] for row in VARIABLES])
def test_keys_become_variables(ns, resource, kind, data):
    ns.cluster.create(
        ns.at("v1", resource), {"metadata": {"name": "source"}, data: {"data-1": "value-1", "data_2": "2"}}
    )
    one = {"name": "ONE", "valueFrom": {kind + "KeyRef": {"name": "source", "key": "data-1"}}}
    prefixes = ["", "p_", "p-", "p.", "3", "#x_", "$"]
    sources = [{**({"prefix": prefix} if prefix else {}), kind + "Ref": {"name": "source"}} for prefix in prefixes]
    found = environment(ns, one, env_from=sources)
    assert found["ONE"] == "value-1"
    for prefix in prefixes:
        assert (found[prefix + "data-1"], found[prefix + "data_2"]) == ("value-1", "2"), prefix


@conformance(
    "[sig-node] Variable Expansion should allow composing env vars into new env vars [NodeConformance]",
    "[sig-node] Variable Expansion should allow substituting values in a container's command [NodeConformance]",
    "[sig-node] Variable Expansion should allow substituting values in a container's args [NodeConformance]",
)
@pytest.mark.parametrize(
    "fields",
    [
        {"command": ["sh", "-c", 'echo "$BOTH"']},
        {"command": ["echo", "$(FOO);;$(BAR)"]},
        {"command": ["echo"], "args": ["$(FOO);;$(BAR)"]},
    ],
)
def test_variables_are_composed_and_substituted(ns, fields):
    env = {"FOO": "foo-value", "BAR": "bar-value", "BOTH": "$(FOO);;$(BAR)"}
    env = [{"name": name, "value": value} for name, value in env.items()]
    assert ns.says(container={**fields, "env": env}) == "foo-value;;bar-value\n"


SUB_PATH = "[sig-node] Variable Expansion should "


def sub_path(expression, *command, **fields):
    mounts = [
        {"name": "work", "mountPath": "/volume_mount"},
        {"name": "work", "mountPath": "/subpath_mount", "subPathExpr": expression},
    ]
    given = {"env": [from_field("NAME", "metadata.name"), from_field("OF", "metadata.annotations['mysubpath']")]}
    return {"container": {**given, "volumeMounts": mounts, **fields}, "volumes": [{"name": "work", "emptyDir": {}}]}


@conformance(
    SUB_PATH + "allow substituting values in a volume subpath",
    SUB_PATH + "succeed in writing subpaths in container",
)
def test_a_sub_path_is_substituted(ns):
    script = "echo there > /subpath_mount/file; cat /volume_mount/foo/$NAME/file"
    spec = sub_path("$(OF)/$(NAME)")
    assert ns.says("sh", "-c", script, annotations={"mysubpath": "foo"}, **spec) == "there\n"


@conformance(
    SUB_PATH + "fail substituting values in a volume subpath with backticks",
    SUB_PATH + "fail substituting values in a volume subpath with absolute path",
    SUB_PATH + "verify that a failing subpath expansion can be modified during the lifecycle of a container [Slow]",
)
@pytest.mark.parametrize("value", ["..", "`hostname`/..", "/tmp"])
def test_a_bad_sub_path_holds_the_container_until_it_is_good(ns, value):
    ns.run("held", *FOREVER, annotations={"mysubpath": value}, **sub_path("$(OF)"))

    def held():
        status = ns.cluster.get(ns.pods("held"))["status"]
        assert status["phase"] == "Pending"
        assert status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"

    eventually("the container waits", held)
    ns.cluster.patch(ns.pods("held"), {"metadata": {"annotations": {"mysubpath": "mypath"}}})
    ns.pod_is("held", "Running")
    ns.exec("held", "touch", "/subpath_mount/file")
    assert ns.exec("held", "ls", "/volume_mount/mypath") == "file\n"


SECURITY = "[sig-node] Security Context "
CONTEXT = "should support {}.RunAsUser And {}.RunAsGroup [LinuxOnly]"


@conformance(
    SECURITY + CONTEXT.format(*["pod.Spec.SecurityContext"] * 2),
    SECURITY + CONTEXT.format(*["container.SecurityContext"] * 2),
    SECURITY
    + "When creating a container with runAsUser should run the container with uid 65534 [LinuxOnly] [NodeConformance]",
)
@pytest.mark.parametrize(
    ("of_pod", "own", "expected"),
    [
        ({"runAsUser": 1001, "runAsGroup": 2002}, {}, "1001 2002"),
        ({"runAsUser": 1001, "runAsGroup": 2002}, {"runAsUser": 1002, "runAsGroup": 2003}, "1002 2003"),
        ({}, {"runAsUser": 65534, "runAsGroup": 0}, "65534 0"),
        ({}, {"runAsUser": 0}, "0 0"),
    ],
)
def test_users_and_groups(ns, of_pod, own, expected):
    script = "echo $(id -u) $(id -g)"
    found = ns.says("sh", "-c", script, securityContext=of_pod, container={"securityContext": own})
    assert found == expected + "\n"


@conformance(
    SECURITY
    + "When creating a pod with privileged should run the container as unprivileged when false [LinuxOnly] [NodeConformance]",
    SECURITY
    + "When creating a pod with readOnlyRootFilesystem should run the container with writable rootfs when readOnlyRootFilesystem=false [NodeConformance]",
    SECURITY
    + "when creating containers with AllowPrivilegeEscalation should not allow privilege escalation when false [LinuxOnly] [NodeConformance]",
    "[sig-node] Kubelet when scheduling a read only busybox container should not write to root filesystem [LinuxOnly] [NodeConformance]",
)
@pytest.mark.parametrize(
    ("own", "script", "expected"),
    [
        ({"privileged": False}, "ip link add dummy0 type dummy 2>&1 || true", "not permitted"),
        ({"readOnlyRootFilesystem": False}, "echo written > /file; cat /file", "written"),
        ({"readOnlyRootFilesystem": True}, "(echo written > /file) 2>&1; ls /file 2>&1; true", "Read-only file system"),
        ({"allowPrivilegeEscalation": False, "runAsUser": 1000}, "grep NoNewPrivs /proc/self/status", "\t1"),
        ({"runAsUser": 1000}, "grep NoNewPrivs /proc/self/status", "\t0"),
    ],
)
def test_what_a_container_may_do(ns, own, script, expected):
    assert expected in ns.says("sh", "-c", script, container={"securityContext": own})


SYSCTLS = "[sig-node] Sysctls [LinuxOnly] [NodeConformance] should "


@conformance(SYSCTLS + "support sysctls [Environment:NotInUserNS]")
def test_sysctls_are_set(ns):
    sysctl = {"name": "kernel.shm_rmid_forced", "value": "1"}
    found = ns.says("sysctl", "kernel.shm_rmid_forced", securityContext={"sysctls": [sysctl]})
    assert found == "kernel.shm_rmid_forced = 1\n"


@conformance(SYSCTLS + "reject invalid sysctls")
def test_bad_names_of_sysctls_are_refused(ns, refused):
    names = ["foo-", "kernel.shmmax", "safe-and-unsafe", "bar.."]
    sysctls = [{"name": name, "value": "100000000"} for name in names]
    with refused(422, "Invalid") as error:
        ns.run("sysctls", securityContext={"sysctls": sysctls})
    for name in ("foo-", "bar.."):
        assert f'Invalid value: "{name}"' in error.error.message
    for name in ("safe-and-unsafe", "kernel.shmmax"):
        assert name not in error.error.message


KUBELET = "[sig-node] Kubelet when scheduling "


@conformance(KUBELET + "a busybox command in a pod should print the output to logs [NodeConformance]")
def test_what_a_container_writes_is_logged(ns):
    assert ns.says("sh", "-c", "echo 'Hello World'; sleep 0.1; echo two >&2") == "Hello World\ntwo\n"


@conformance(
    KUBELET + "a busybox command that always fails in a pod should have an terminated reason [NodeConformance]",
    KUBELET + "a busybox command that always fails in a pod should be possible to delete [NodeConformance]",
)
def test_a_failing_container_says_so_and_can_go(ns):
    ns.run("false", "false", restartPolicy="Always")

    def failed():
        status = ns.cluster.get(ns.pods("false"))["status"]["containerStatuses"][0]
        ended = status["state"].get("terminated") or status["lastState"]["terminated"]
        assert (ended["exitCode"], ended["reason"]) == (1, "Error")

    eventually("it has failed", failed)
    ns.cluster.delete(ns.pods("false"))
    ns.gone(ns.pods("false"))


@conformance(KUBELET + "an agnhost Pod with hostAliases should write entries to /etc/hosts [NodeConformance]")
def test_host_aliases_are_in_the_hosts_file(ns):
    aliases = [{"ip": "123.45.67.89", "hostnames": ["foo", "bar"]}]
    assert "123.45.67.89\tfoo\tbar\n" in ns.says("cat", "/etc/hosts", hostAliases=aliases)


@conformance("[sig-node] KubeletManagedEtcHosts should test kubelet managed /etc/hosts file [NodeConformance]")
def test_whose_hosts_files_the_kubelet_writes(ns):
    managed = "# Kubernetes-managed hosts file."
    own = {"volumeMounts": [{"name": "hosts", "mountPath": "/etc/hosts"}]}
    ns.cluster.create(
        ns.pods(),
        pod(
            "net",
            containers=[container("a", *FOREVER), container("b", *FOREVER), container("c", *FOREVER, **own)],
            volumes=[{"name": "hosts", "hostPath": {"path": "/etc/hosts", "type": "File"}}],
        ),
    )
    ns.run("host", *FOREVER, hostNetwork=True)
    ns.pod_is("net", "Running")
    ns.pod_is("host", "Running")
    for name, of, expected in [("net", "a", True), ("net", "b", True), ("net", "c", False), ("host", "c", False)]:
        text = ns.cluster.kubectl("-n", ns.name, "exec", name, "-c", of, "--", "cat", "/etc/hosts")
        assert (managed in text) == expected, (name, of, text)


MESSAGE = "[sig-node] Container Runtime blackbox test on terminated container should report termination message "


@conformance(
    MESSAGE + "if TerminationMessagePath is set as non-root user and at a non-default path [NodeConformance]",
    MESSAGE + "from log output if TerminationMessagePolicy FallbackToLogsOnError is set [NodeConformance]",
    MESSAGE + "as empty when pod succeeds and TerminationMessagePolicy FallbackToLogsOnError is set [NodeConformance]",
    MESSAGE + "from file when pod succeeds and TerminationMessagePolicy FallbackToLogsOnError is set [NodeConformance]",
)
@pytest.mark.parametrize(
    ("script", "fields", "phase", "expected"),
    [
        ("printf DONE > /dev/custom", {"terminationMessagePath": "/dev/custom", "user": 1000}, "Succeeded", "DONE"),
        ("printf DONE; exit 1", {"terminationMessagePolicy": "FallbackToLogsOnError"}, "Failed", "DONE"),
        ("printf DONE", {"terminationMessagePolicy": "FallbackToLogsOnError"}, "Succeeded", None),
        ("printf OK > /dev/termination-log", {"terminationMessagePolicy": "FallbackToLogsOnError"}, "Succeeded", "OK"),
    ],
)
def test_a_containers_last_words(ns, script, fields, phase, expected):
    user = fields.get("user")
    rest = {key: value for key, value in fields.items() if key != "user"}
    ns.run("words", "sh", "-c", script, container={**rest, "securityContext": {"runAsUser": user} if user else {}})
    ended = ns.pod_is("words", phase)["status"]["containerStatuses"][0]["state"]["terminated"]
    assert ended.get("message") == expected


@conformance(
    "[sig-node] Container Runtime blackbox test when starting a container that exits should run with the expected status [NodeConformance]"
)
@pytest.mark.parametrize(
    ("policy", "phase", "restarts", "state"),
    [
        ("Always", "Running", 2, "running"),
        ("OnFailure", "Succeeded", 1, "terminated"),
        ("Never", "Failed", 0, "terminated"),
    ],
)
def test_containers_that_exit_under_each_policy(ns, policy, phase, restarts, state):
    """The first run fails, the second succeeds, the third goes on."""
    script = "echo hello >> /count/runs; case $(wc -l < /count/runs) in 1) exit 1;; 2) exit 0;; esac; sleep 3600"
    mount = {"volumeMounts": [{"name": "count", "mountPath": "/count"}]}
    volume = {"name": "count", "emptyDir": {"medium": "Memory"}}
    ns.run("exits", "sh", "-c", script, restartPolicy=policy, container=mount, volumes=[volume])

    def settled():
        status = ns.cluster.get(ns.pods("exits"))["status"]
        own = status["containerStatuses"][0]
        found = status["phase"], own["restartCount"], next(iter(own["state"])), own["ready"]
        assert found == (phase, restarts, state, state == "running")

    eventually("the expected status", settled, 90)


def registry_files(content):
    """What a registry serves of an image `kitten` that has one file."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        member = tarfile.TarInfo("data.json")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    layer = gzip.compress(plain.getvalue())
    digest = lambda data: "sha256:" + hashlib.sha256(data).hexdigest()  # noqa: E731
    rootfs = {"type": "layers", "diff_ids": [digest(plain.getvalue())]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    kind = "application/vnd.oci.image."
    about = lambda what, data: {"mediaType": kind + what, "digest": digest(data), "size": len(data)}  # noqa: E731
    parts = {"config": about("config.v1+json", config), "layers": [about("layer.v1.tar+gzip", layer)]}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": kind + "manifest.v1+json", **parts}).encode()
    return {"manifests/1": manifest, **{f"blobs/{digest(data)}": data for data in (config, layer)}}


@conformance(
    "[sig-node] ImageVolume should succeed with pod and pull policy of Always [LinuxOnly] [MinimumKubeletVersion:1.35]"
)
def test_an_image_is_a_volume(ns):
    """The image comes from a registry on the node's loopback, which needs no TLS."""
    files = registry_files(b"kitten.jpg")
    data = {f"file-{number}": base64.b64encode(body).decode() for number, body in enumerate(files.values())}
    ns.cluster.create(ns.at("v1", "configmaps"), {"metadata": {"name": "registry"}, "binaryData": data})
    items = [{"key": f"file-{number}", "path": path} for number, path in enumerate(files)]
    port = str(random.randint(20000, 29000))
    served = {"name": "files", "configMap": {"name": "registry", "items": items}}
    mount = {"volumeMounts": [{"name": "files", "mountPath": "/www/v2/kitten"}]}
    httpd = ("httpd", "-f", "-p", "127.0.0.1:" + port, "-h", "/www")
    ns.run("registry", *httpd, container=mount, volumes=[served], hostNetwork=True)
    node = ns.pod_is("registry", "Running")["spec"]["nodeName"]
    volume = {"name": "volume", "image": {"reference": f"localhost:{port}/kitten:1", "pullPolicy": "Always"}}
    mount = {"volumeMounts": [{"name": "volume", "mountPath": "/volume"}]}
    ns.run("imaged", *FOREVER, nodeName=node, container=mount, volumes=[volume])
    ns.pod_is("imaged", "Running")
    assert ns.exec("imaged", "cat", "/volume/data.json") == "kitten.jpg"
    assert "Read-only" in ns.cluster.kubectl("-n", ns.name, "exec", "imaged", "--", "touch", "/volume/file", ok=False)


EPHEMERAL = "[sig-node] Ephemeral Containers [NodeConformance] "


@conformance(
    EPHEMERAL + "will start an ephemeral container in an existing pod",
    EPHEMERAL + "should update the ephemeral containers in an existing pod",
)
def test_ephemeral_containers_join_a_running_pod(ns):
    ns.run("host", *FOREVER)
    ns.pod_is("host", "Running")
    path = ns.pods("host", "ephemeralcontainers")
    polo = container("debugger", "sh", "-c", "echo polo; sleep 3600", stdin=True, tty=True)
    change = {"spec": {"ephemeralContainers": [{**polo, "targetContainerName": "c"}]}}
    found = ns.cluster.patch(path, change, "strategic")["spec"]["ephemeralContainers"]
    assert [one["name"] for one in found] == ["debugger"]
    more = container("second", "sh", "-c", "echo marco; sleep 3600")
    ns.cluster.update(path, lambda found: found["spec"]["ephemeralContainers"].append(more))

    def running():
        shown = ns.cluster.get(ns.pods("host"))
        states = {one["name"]: next(iter(one["state"])) for one in shown["status"]["ephemeralContainerStatuses"]}
        assert states == {"debugger": "running", "second": "running"}
        assert "polo" in ns.log("host", container="debugger")
        assert ns.log("host", container="second") == "marco\n"

    eventually("both run", running)
    names = [one["name"] for one in ns.cluster.get(path)["spec"]["ephemeralContainers"]]
    assert names == ["debugger", "second"]


@conformance("[sig-node] Lease lease API should be available")
def test_leases_are_kept(ns):
    path = ns.at("coordination.k8s.io/v1", "leases")
    spec = {"holderIdentity": "holder", "leaseDurationSeconds": 30, "leaseTransitions": 0}
    times = {"acquireTime": "2026-01-02T03:04:05.000006Z", "renewTime": "2026-01-02T03:04:07.000008Z"}
    made = ns.cluster.create(path, {"metadata": {"name": "lease"}, "spec": {**spec, **times}})
    assert made["spec"] == {**spec, **times}
    one = path + "/lease"
    assert ns.cluster.get(one)["spec"] == made["spec"]
    changed = ns.cluster.update(one, lambda found: found["spec"].update(leaseDurationSeconds=60, leaseTransitions=1))
    assert changed["spec"] == {**made["spec"], "leaseDurationSeconds": 60, "leaseTransitions": 1}
    assert (
        ns.cluster.patch(one, {"spec": {"holderIdentity": "other"}}, "strategic")["spec"]["holderIdentity"] == "other"
    )
    for name in ("lease2", "lease3"):
        ns.cluster.create(path, {"metadata": {"name": name, "labels": {"many": "yes"}}, "spec": spec})
    assert len(ns.cluster.items(path)) == 3
    ns.cluster.delete(path, labelSelector="many=yes")
    assert [found["metadata"]["name"] for found in ns.cluster.items(path)] == ["lease"]
    ns.cluster.delete(one)
    assert ns.cluster.exists(one) is None
