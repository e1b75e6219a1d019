"""Volumes made of small files and directories: their content, modes, owners and updates."""

import base64

import pytest

from cluster import at, container, eventually, pod

conformance = pytest.mark.conformance
FOREVER = ("sleep", "3600")
STAT = "stat -L -c '%a %u %g'"


def mounted(*command, name="volume", path="/etc/volume", **fields):
    return container("c", *command, volumeMounts=[{"name": name, "mountPath": path}], **fields)


def read(ns, source, script, name="says", **spec):
    """What a script says of the volume at /etc/volume."""
    spec = {"volumes": [{"name": "volume", **source}], "containers": [mounted("sh", "-c", script)], **spec}
    return ns.says(name=name, **spec)


def names(area, *rest):
    """The names that plain volumes and projections share."""
    plain = {"configMap": "ConfigMap", "secret": "Secrets", "downwardAPI": "Downward API volume"}[area]
    return [f"[sig-storage] {kind} {one} [NodeConformance]" for kind in (plain, f"Projected {area}") for one in rest]


def keyed(kind, projected, name="source", **fields):
    """A volume of a ConfigMap's or Secret's keys, on its own or projected."""
    mode = {key: fields.pop(key) for key in ("defaultMode",) if key in fields}
    if projected:
        return {"projected": {"sources": [{kind: {"name": name, **fields}}], **mode}}
    return {kind: {"secretName" if kind == "secret" else "name": name, **fields, **mode}}


RESOURCES = {"configMap": ("configmaps", "data"), "secret": ("secrets", "stringData")}


def store(ns, kind, data, name="source"):
    resource, key = RESOURCES[kind]
    return ns.cluster.create(ns.at("v1", resource), {"metadata": {"name": name}, key: data})


ITEMS = [{"key": "data-1", "path": "path/to/data-2"}]
CONSUMED = "should be consumable from pods in volume"


@conformance(
    *names(
        "configMap",
        CONSUMED,
        CONSUMED + " as non-root",
        CONSUMED + " with defaultMode set [LinuxOnly]",
        CONSUMED + " with mappings",
        CONSUMED + " with mappings and Item mode set [LinuxOnly]",
        CONSUMED + " with mappings as non-root",
    ),
    *names(
        "secret",
        CONSUMED,
        CONSUMED + " as non-root with defaultMode and fsGroup set [LinuxOnly]",
        CONSUMED + " with defaultMode set [LinuxOnly]",
        CONSUMED + " with mappings",
        CONSUMED + " with mappings and Item Mode set [LinuxOnly]",
    ),
)
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("kind", ["configMap", "secret"])
@pytest.mark.parametrize(
    ("fields", "user", "group", "expected"),
    [
        ({}, None, None, "644 0 0"),
        ({}, 1000, None, "644 0 0"),
        ({"defaultMode": 0o400}, None, None, "400 0 0"),
        ({"defaultMode": 0o440}, 1000, 1001, "440 0 1001"),
        ({"items": ITEMS}, None, None, "644 0 0"),
        ({"items": ITEMS}, 1000, None, "644 0 0"),
        ({"items": [{**ITEMS[0], "mode": 0o400}]}, None, None, "400 0 0"),
    ],
)
def test_keys_become_files(ns, kind, projected, fields, user, group, expected):
    store(ns, kind, {"data-1": "value-1", "data-2": "value-2"})
    file = "/etc/volume/" + ("path/to/data-2" if "items" in fields else "data-1")
    security = {key: value for key, value in (("runAsUser", user), ("fsGroup", group)) if value}
    script = f"{STAT} {file}; cat {file}; echo; ls /etc/volume"
    found = read(ns, keyed(kind, projected, **fields), script, securityContext=security)
    listing = "path\n" if "items" in fields else "data-1\ndata-2\n"
    assert found == f"{expected}\nvalue-1\n{listing}"


@conformance(
    *names("configMap", "should be consumable in multiple volumes in the same pod"),
    *names("secret", "should be consumable in multiple volumes in a pod"),
    "[sig-storage] Secrets should be able to mount in a volume regardless of a different secret existing with same name in different namespace [NodeConformance]",
    "[sig-storage] EmptyDir wrapper volumes should not conflict",
)
def test_one_source_in_several_volumes(ns):
    for kind in RESOURCES:
        store(ns, kind, {"data-1": kind})
    sources = [keyed(kind, projected) for kind in RESOURCES for projected in (False, True)]
    volumes = [{"name": f"v{number}", **source} for number, source in enumerate(sources)]
    mounts = [{"name": volume["name"], "mountPath": "/" + volume["name"]} for volume in volumes]
    found = ns.says(
        "cat", *(f"/v{number}/data-1" for number in range(4)), container={"volumeMounts": mounts}, volumes=volumes
    )
    assert found == "configMap" * 2 + "secret" * 2


@conformance("[sig-storage] EmptyDir wrapper volumes should not cause race condition when used for configmaps [Serial]")
def test_many_volumes_in_many_pods(ns):
    wanted = 30
    for number in range(wanted):
        store(ns, "configMap", {"data-1": str(number)}, f"source-{number}")
    volumes = [{"name": f"v{number}", **keyed("configMap", False, f"source-{number}")} for number in range(wanted)]
    mounts = [{"name": volume["name"], "mountPath": "/" + volume["name"]} for volume in volumes]
    for name in ("one", "two", "three"):
        ns.run(name, "sh", "-c", "cat /v*/data-1 | wc -c", container={"volumeMounts": mounts}, volumes=volumes)
    for name in ("one", "two", "three"):
        ns.pod_is(name, "Succeeded")
        assert ns.log(name) == "50\n"


@conformance("[sig-storage] ConfigMap binary data should be reflected in volume [NodeConformance]")
def test_bytes_are_bytes(ns):
    data = {"data": {"text": "t"}, "binaryData": {"dump.bin": base64.b64encode(b"\xde\xca\xfe\x00").decode()}}
    ns.cluster.create(ns.at("v1", "configmaps"), {"metadata": {"name": "source"}, **data})
    found = read(ns, keyed("configMap", False), "cat /etc/volume/text; xxd -p /etc/volume/dump.bin")
    assert found == "tdecafe00\n"


@conformance(
    *names("configMap", "updates should be reflected in volume", "optional updates should be reflected in volume"),
    *names("secret", "optional updates should be reflected in volume"),
)
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("kind", ["configMap", "secret"])
def test_changes_reach_running_containers(ns, kind, projected):
    """One source is changed, one deleted, one made only after the pod."""
    store(ns, kind, {"data": "first"}, "changed")
    store(ns, kind, {"data": "here"}, "deleted")
    volumes = [
        {"name": "changed", **keyed(kind, projected, "changed")},
        {"name": "deleted", **keyed(kind, projected, "deleted", optional=True)},
        {"name": "created", **keyed(kind, projected, "created", optional=True)},
    ]
    mounts = [{"name": volume["name"], "mountPath": "/v/" + volume["name"]} for volume in volumes]
    ns.run("watching", *FOREVER, container={"volumeMounts": mounts}, volumes=volumes)
    ns.pod_is("watching", "Running")
    look = ("sh", "-c", "cd /v; for one in */*; do echo $one=$(cat $one); done")
    files = {"changed/data=first", "deleted/data=here", "created/*="}
    assert set(ns.exec("watching", *look).splitlines()[-3:]) & files >= {"changed/data=first", "deleted/data=here"}
    resource, key = RESOURCES[kind]
    ns.cluster.patch(ns.at("v1", resource, "changed"), {key: {"data": "second"}})
    ns.cluster.delete(ns.at("v1", resource, "deleted"))
    store(ns, kind, {"data": "new"}, "created")

    def updated():
        assert set(ns.exec("watching", *look).split()) == {"changed/data=second", "created/data=new"}

    eventually("the files are new", updated, 120)


def downward(projected, *items, **fields):
    if projected:
        return {"projected": {"sources": [{"downwardAPI": {"items": list(items)}}], **fields}}
    return {"downwardAPI": {"items": list(items), **fields}}


def of_field(path, field, **fields):
    return {"path": path, "fieldRef": {"fieldPath": field}, **fields}


def of_resource(path, resource):
    return {"path": path, "resourceFieldRef": {"containerName": "c", "resource": resource, "divisor": "1"}}


@conformance(
    *names(
        "downwardAPI",
        "should provide podname only",
        "should set DefaultMode on files [LinuxOnly]",
        "should set mode on item file [LinuxOnly]",
    )
)
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize(
    ("of_all", "own", "mode"), [({}, {}, "644"), ({"defaultMode": 0o400}, {}, "400"), ({}, {"mode": 0o400}, "400")]
)
def test_a_pods_name_is_a_file(ns, projected, of_all, own, mode):
    source = downward(projected, of_field("podname", "metadata.name", **own), **of_all)
    assert read(ns, source, f"{STAT} /etc/volume/podname; cat /etc/volume/podname") == f"{mode} 0 0\nsays"


@conformance(
    *names(
        "downwardAPI",
        "should provide container's cpu limit",
        "should provide container's cpu request",
        "should provide container's memory limit",
        "should provide container's memory request",
        "should provide node allocatable (cpu) as default cpu limit if the limit is not set",
        "should provide node allocatable (memory) as default memory limit if the limit is not set",
    )
)
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("limited", [True, False])
def test_resources_are_files(ns, projected, limited):
    resources = {"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1250m", "memory": "64Mi"}}
    kinds = ["limits.cpu", "limits.memory"] + (["requests.cpu", "requests.memory"] if limited else [])
    source = downward(projected, *(of_resource(kind, kind) for kind in kinds))
    script = "cd /etc/volume; for one in %s; do echo $(cat $one); done" % " ".join(kinds)
    own = mounted("sh", "-c", script, resources=resources if limited else {})
    found = read(ns, source, script, containers=[own]).split()
    if limited:
        assert found == ["2", str(64 << 20), "1", str(32 << 20)]
    else:
        node = ns.cluster.get(ns.pods("says"))["spec"]["nodeName"]
        allocatable = ns.cluster.get(at("v1", "nodes", name=node))["status"]["allocatable"]
        assert found == [allocatable["cpu"], str(int(allocatable["memory"].removesuffix("Ki")) << 10)]


@conformance(*names("downwardAPI", "should update annotations on modification", "should update labels on modification"))
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("what", ["labels", "annotations"])
def test_new_labels_and_annotations_reach_files(ns, projected, what):
    source = downward(projected, of_field("shown", f"metadata.{what}"))
    body = pod("shows", volumes=[{"name": "volume", **source}], containers=[mounted(*FOREVER)])
    body["metadata"][what] = {"key1": "value1"}
    ns.cluster.create(ns.pods(), body)
    ns.pod_is("shows", "Running")
    show = lambda: ns.exec("shows", "cat", "/etc/volume/shown")  # noqa: E731
    assert 'key1="value1"' in show()
    ns.cluster.update(ns.pods("shows"), lambda found: found["metadata"][what].update(key3="value3"))

    def changed():
        assert 'key1="value1"\n' in show() and 'key3="value3"' in show()

    eventually(f"new {what}", changed, 120)


@conformance(
    "[sig-storage] Projected combined should project all components that make up the projection API [Projection] [NodeConformance]"
)
def test_all_kinds_in_one_directory(ns):
    store(ns, "configMap", {"configmap-data": "of a map"})
    store(ns, "secret", {"secret-data": "of a secret"})
    sources = [
        {"configMap": {"name": "source"}},
        {"secret": {"name": "source"}},
        {"downwardAPI": {"items": [of_field("podname", "metadata.name")]}},
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
    ]
    script = "cd /etc/volume; ls; cat configmap-data secret-data podname"
    found = read(ns, {"projected": {"sources": sources}}, script)
    assert found == "configmap-data\npodname\nsecret-data\ntoken\nof a mapof a secretsays"


@pytest.mark.parametrize(
    ("security", "expected"),
    [
        ({}, "644 0 0"),
        ({"runAsUser": 1000}, "600 1000 0"),
        ({"fsGroup": 2000}, "640 0 2000"),
        ({"runAsUser": 1000, "fsGroup": 2000}, "640 1000 2000"),
    ],
)
def test_who_may_read_a_token(ns, security, expected):
    source = {"projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]}}
    token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    script = f"{STAT} /etc/volume/token; {STAT} {token}; wc -c < /etc/volume/token > /dev/null"
    assert read(ns, source, script, securityContext=security) == f"{expected}\n" * 2


EMPTY = "[sig-storage] EmptyDir volumes "
CASES = [
    (user, mode, medium)
    for user in ("root", "non-root")
    for mode in ("0644", "0666", "0777")
    for medium in ("tmpfs", "default")
]


@conformance(
    EMPTY + "volume on default medium should have the correct mode [LinuxOnly] [NodeConformance]",
    EMPTY + "volume on tmpfs should have the correct mode [LinuxOnly] [NodeConformance]",
    *(EMPTY + f"should support ({','.join(case)}) [LinuxOnly] [NodeConformance]" for case in CASES),
)
@pytest.mark.parametrize("user", [0, 1001])
@pytest.mark.parametrize(("medium", "kind", "root"), [("Memory", "tmpfs", "1777"), ("", None, "777")])
def test_an_empty_directory_takes_files_of_all_modes(ns, user, medium, kind, root):
    modes = "0644 0666 0777"
    script = (
        "cd /etc/volume; stat -c %a .; stat -f -c %T .; "
        f"for mode in {modes}; do echo content-$mode > f$mode; chmod $mode f$mode; stat -c '%a %u' f$mode; cat f$mode; done"
    )
    found = read(ns, {"emptyDir": {"medium": medium}}, script, securityContext={"runAsUser": user}).split("\n")
    assert found[0] == root
    assert kind in (None, found[1])
    expected = [line for mode in modes.split() for line in (f"{mode[1:]} {user}", f"content-{mode}")]
    assert found[2:-1] == expected


@conformance(EMPTY + "pod should support shared volumes between containers")
def test_containers_share_a_directory(ns):
    writer = container(
        "writer", "sh", "-c", "echo shared > /v/file; sleep 3600", volumeMounts=[{"name": "volume", "mountPath": "/v"}]
    )
    body = pod("sharing", volumes=[{"name": "volume", "emptyDir": {}}], containers=[writer, mounted(*FOREVER)])
    ns.cluster.create(ns.pods(), body)
    ns.pod_is("sharing", "Running")

    def shared():
        text = ns.cluster.kubectl(
            "-n", ns.name, "exec", "sharing", "-c", "c", "--", "cat", "/etc/volume/file", ok=False
        )
        assert text == "shared\n"

    eventually("the other's file", shared)


ATOMIC = "[sig-storage] Subpath Atomic writer volumes should support subpaths with "


@conformance(
    ATOMIC + "configmap pod",
    ATOMIC + "configmap pod with mountPath of existing file",
    ATOMIC + "secret pod",
    ATOMIC + "projected pod",
    ATOMIC + "downward pod",
)
@pytest.mark.parametrize(
    ("source", "path", "expected"),
    [
        (keyed("configMap", False), "/mounted", "content"),
        (keyed("configMap", False), "/etc/group", "content"),
        (keyed("secret", False), "/mounted", "content"),
        (keyed("configMap", True), "/mounted", "content"),
        (downward(False, of_field("file", "metadata.name")), "/mounted", "says"),
    ],
)
def test_one_file_of_a_volume_is_mounted(ns, source, path, expected):
    for kind in RESOURCES:
        store(ns, kind, {"file": "content"})
    mounts = [{"name": "volume", "mountPath": path, "subPath": "file"}]
    volumes = [{"name": "volume", **source}]
    assert ns.says("cat", path, container={"volumeMounts": mounts}, volumes=volumes) == expected


def test_a_local_volume_may_be_a_link(ns):
    folder = f"/tmp/{ns.name}"
    host = {"volumes": [{"name": "volume", "hostPath": {"path": "/tmp"}}]}

    def on_host(name, script, **spec):
        ns.run(name, containers=[mounted("sh", "-c", script)], **host, **spec)
        return ns.pod_is(name, "Succeeded")["spec"]["nodeName"]

    node = on_host("makes", f"mkdir -p /etc/volume/{ns.name}/real && ln -s real /etc/volume/{ns.name}/link")
    chosen = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    size, modes = {"storage": "1Mi"}, ["ReadWriteOnce"]
    volume = {
        "capacity": size,
        "accessModes": modes,
        "storageClassName": "",
        "local": {"path": f"{folder}/link"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [chosen]}]}},
        "claimRef": {"namespace": ns.name, "name": "linked"},
    }
    ns.cluster.create(at("v1", "persistentvolumes"), {"metadata": {"name": ns.name}, "spec": volume})
    claim = {"accessModes": modes, "storageClassName": "", "resources": {"requests": size}}
    ns.cluster.create(ns.at("v1", "persistentvolumeclaims"), {"metadata": {"name": "linked"}, "spec": claim})
    source = {"persistentVolumeClaim": {"claimName": "linked"}}
    security = {"fsGroup": 1234, "runAsUser": 1000}
    said = read(ns, source, f"echo kept > /etc/volume/file && {STAT} /etc/volume/file", securityContext=security)
    assert said == "644 1000 1234\n"
    ns.cluster.delete(at("v1", "persistentvolumes", name=ns.name))
    left = f"cd /etc/volume && cat {ns.name}/real/file && rm -r {ns.name}"
    on_host("looks", left, nodeName=node)
    assert ns.log("looks") == "kept\n"
