"""kubectl as people use it."""

import contextlib
import json
import subprocess

import pytest
import requests

from cluster import container, eventually

conformance = pytest.mark.conformance
KUBECTL = "[sig-cli] Kubectl client "
FOREVER = ("sleep", "3600")


@pytest.fixture
def kubectl(cluster, ns):
    def run(*args, **options):
        return cluster.kubectl("-n", ns.name, *args, **options)

    return run


def controller(name="rc", replicas=1, *command):
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [container("c", *(command or FOREVER), ports=[{"containerPort": 6379}])]},
    }
    spec = {"replicas": replicas, "selector": {"app": name}, "template": template}
    return json.dumps({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": name}, "spec": spec})


def pods_of(ns, app="rc"):
    return [
        one
        for one in ns.cluster.items(ns.pods(), labelSelector=f"app={app}")
        if "deletionTimestamp" not in one["metadata"]
    ]


def running(ns, count, app="rc"):
    def all_run():
        found = pods_of(ns, app)
        assert [one["status"].get("phase") for one in found] == ["Running"] * count
        return [one["metadata"]["name"] for one in found]

    return eventually(f"{count} pods run", all_run)


@conformance(
    KUBECTL + "Kubectl api-versions should check if v1 is in available api versions",
    KUBECTL + "Kubectl cluster-info should check if Kubernetes control plane services is included in cluster-info",
    KUBECTL + "Kubectl version should check is all data is printed",
)
def test_the_cluster_tells_of_itself(kubectl):
    assert "v1" in kubectl("api-versions").splitlines()
    assert "Kubernetes control plane" in kubectl("cluster-info") and "is running at" in kubectl("cluster-info")
    versions = json.loads(kubectl("version", "-o", "json"))
    for side in ("clientVersion", "serverVersion"):
        fields = ("major", "minor", "gitVersion", "gitCommit", "buildDate", "goVersion", "compiler", "platform")
        assert not set(fields) - set(versions[side])


@conformance(
    KUBECTL + "Update Demo should create and stop a replication controller",
    KUBECTL + "Update Demo should scale a replication controller",
)
def test_controllers_are_scaled(kubectl, ns):
    kubectl("create", "-f", "-", stdin=controller(replicas=2))
    running(ns, 2)
    for count in (1, 2):
        assert (
            kubectl("scale", "rc", "rc", f"--replicas={count}", "--timeout=5m") == "replicationcontroller/rc scaled\n"
        )
        running(ns, count)
    kubectl("delete", "--grace-period=0", "--force", "-f", "-", stdin=controller())
    assert "No resources found" in kubectl("get", "rc,svc", "-l", "app=rc", "--no-headers", ok=False)
    running(ns, 0)


@conformance(KUBECTL + "Kubectl describe should check if kubectl describe prints relevant information for rc and pods")
def test_describe_tells_what_matters(kubectl, ns):
    kubectl("create", "-f", "-", stdin=controller())
    [name] = running(ns, 1)
    kubectl("expose", "rc", "rc", "--port=6379")
    for what, words in [
        (
            ("pod", name),
            [
                "Name:",
                "Namespace:",
                "Node:",
                "Labels:",
                "app=rc",
                "Status:",
                "Running",
                "IP:",
                "Controlled By:",
                "Image:",
                "State:",
                "QoS Class:",
            ],
        ),
        (
            ("rc", "rc"),
            [
                "Name:",
                "Selector:",
                "app=rc",
                "Replicas:",
                "1 current",
                "1 desired",
                "Pods Status:",
                "1 Running",
                "Pod Template:",
                "Events:",
            ],
        ),
        (
            ("service", "rc"),
            [
                "Name:",
                "Selector:",
                "Type:",
                "ClusterIP",
                "IP:",
                "Port:",
                "<unset>",
                "6379/TCP",
                "Endpoints:",
                "Session Affinity:",
            ],
        ),
        (("namespace", ns.name), ["Name:", "Labels:", "Annotations:", "Status:", "Active"]),
    ]:
        told = kubectl("describe", *what)
        assert not [word for word in words if word not in told], told
    node = pods_of(ns)[0]["spec"]["nodeName"]
    told = kubectl("describe", "node", node)
    words = [
        "Labels:",
        "Annotations:",
        "CreationTimestamp:",
        "Conditions:",
        "LastHeartbeatTime",
        "Addresses:",
        "Capacity:",
    ]
    words += ["Kernel Version:", "Container Runtime Version:", "Kubelet Version:", "Pods:"]
    assert not [word for word in words if word not in told], told


@conformance(
    KUBECTL + "Kubectl diff should check if kubectl diff finds a difference for Deployments",
    KUBECTL + "Kubectl server-side dry-run should check if kubectl can dry-run update Pods",
)
def test_changes_are_tried_first(cluster, kubectl, ns):
    template = {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [container("c", *FOREVER)]}}
    spec = {"selector": {"matchLabels": {"app": "d"}}, "template": template, "replicas": 1}
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec}
    kubectl("create", "-f", "-", stdin=json.dumps(body))
    template["spec"]["containers"][0]["image"] = "busybox:other"
    told = kubectl("diff", "-f", "-", stdin=json.dumps(body), ok=False)
    assert "busybox:other" in told and "+" in told
    kubectl(
        "run", "p", "--image=busybox", "--image-pull-policy=IfNotPresent", "--labels=run=p", "--command", "--", *FOREVER
    )
    patch = json.dumps({"spec": {"containers": [{"name": "p", "image": "busybox:other"}]}})
    assert "patched" in kubectl("patch", "pod", "p", "-p", patch, "--dry-run=server")
    assert cluster.get(ns.pods("p"))["spec"]["containers"][0]["image"] == "busybox"


@conformance(
    KUBECTL + "Kubectl patch should add annotations for pods in rc",
    KUBECTL + "Kubectl label should update the label on a resource",
    KUBECTL + "Kubectl replace should update a single-container pod's image",
    KUBECTL + "Kubectl run pod should create a pod from an image when restart is Never",
)
def test_objects_are_changed(cluster, kubectl, ns):
    run = ("--image=busybox", "--restart=Never", "--image-pull-policy=IfNotPresent", "--command", "--", *FOREVER)
    kubectl("run", "p", *run)
    made = ns.pod_is("p", "Running")
    assert made["spec"]["restartPolicy"] == "Never" and made["metadata"]["labels"] == {"run": "p"}
    kubectl("patch", "pod", "p", "-p", '{"metadata": {"annotations": {"x": "y"}}}')
    assert cluster.get(ns.pods("p"))["metadata"]["annotations"]["x"] == "y"
    for argument, shown in [("testing=value", "value"), ("testing-", "")]:
        kubectl("label", "pods", "p", argument)
        assert kubectl("get", "pod", "p", "-L", "testing", "--no-headers").split()[5:] == shown.split()
    found = json.loads(kubectl("get", "pod", "p", "-o", "json"))
    found["spec"]["containers"][0]["image"] = "busybox:other"
    kubectl("replace", "-f", "-", stdin=json.dumps(found))
    assert cluster.get(ns.pods("p"))["spec"]["containers"][0]["image"] == "busybox:other"


@conformance(KUBECTL + "Kubectl expose should create services for rc")
def test_services_are_made_of_others(cluster, kubectl, ns):
    kubectl("create", "-f", "-", stdin=controller())
    kubectl("expose", "rc", "rc", "--name=rm2", "--port=1234", "--target-port=6379")
    kubectl("expose", "service", "rm2", "--name=rm3", "--port=2345", "--target-port=6379")
    running(ns, 1)
    for name, port in (("rm2", 1234), ("rm3", 2345)):
        assert [one["port"] for one in cluster.get(ns.at("v1", "services", name))["spec"]["ports"]] == [port]

        def led():
            [subset] = cluster.get(ns.at("v1", "endpoints", name))["subsets"]
            assert [one["port"] for one in subset["ports"]] == [6379] and len(subset["addresses"]) == 1

        eventually(f"endpoints of {name}", led)


@conformance("[sig-cli] Kubectl logs logs should be able to retrieve and filter logs")
def test_logs_are_filtered(kubectl, ns):
    script = "i=0; while [ $i -lt 100 ]; do echo line $i of many; i=$((i+1)); done; sleep 3600"
    ns.run("p", "sh", "-c", script)
    ns.pod_is("p", "Running")

    def whole():
        found = kubectl("logs", "p", "c").splitlines()
        assert len(found) == 100
        return found

    lines = eventually("all lines", whole)
    assert kubectl("logs", "p", "c", "--tail=1").splitlines() == lines[-1:]
    assert kubectl("logs", "p", "c", "--limit-bytes=1") == "l"
    [stamped] = kubectl("logs", "p", "c", "--tail=1", "--timestamps").splitlines()
    stamp, _, text = stamped.partition(" ")
    assert text == lines[-1] and stamp[10] == "T" and stamp.endswith("Z")
    assert len(kubectl("logs", "p", "c", "--since=24h").splitlines()) == 100
    assert not kubectl("logs", "p", "c", "--since-time=2100-01-01T00:00:00Z")


@contextlib.contextmanager
def proxy(cluster, *args):
    """A running `kubectl proxy` and the line that says where."""
    command = ["kubectl", "--kubeconfig", cluster.kubeconfig, "proxy", *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline()
    finally:
        process.terminate()
        process.wait()


@conformance(
    KUBECTL + "Proxy server should support proxy with --port 0",
    KUBECTL + "Proxy server should support --unix-socket=/path",
)
def test_kubectl_is_a_proxy(cluster, tmp_path):
    with proxy(cluster, "-p", "0", "--disable-filter") as line:
        address = line.split()[-1]
        assert "v1" in requests.get(f"http://{address}/api/").json()["versions"]
    socket = tmp_path / "socket"
    with proxy(cluster, f"--unix-socket={socket}"):
        told = subprocess.run(
            ["curl", "-s", "--unix-socket", socket, "http://localhost/api/"], capture_output=True, text=True
        )
        assert "v1" in json.loads(told.stdout)["versions"]


@conformance(KUBECTL + "Guestbook application should create and stop a working application")
def test_an_application_of_two_tiers_works(cluster, kubectl, ns):
    store = controller("store", 1, "sh", "-c", "mkdir /www; echo kept > /www/entry; exec httpd -f -p 6379 -h /www")
    answer = "cat > /dev/null & printf 'HTTP/1.0 200 OK\\r\\n\\r\\n'; wget -q -O - http://store:6379/entry"
    front = controller("front", 2, "nc", "-ll", "-p", "6379", "-e", "sh", "-c", answer)
    for body in (store, front):
        kubectl("create", "-f", "-", stdin=body)
    for name in ("store", "front"):
        kubectl("expose", "rc", name, "--port=6379")
    running(ns, 1, "store"), running(ns, 2, "front")
    path = ns.at("v1", "services", "front:6379", "proxy")

    def answered():
        assert cluster.request("GET", path + "/") == "kept\n"

    eventually("the front serves what the store keeps", answered)
    for body in (front, store):
        assert "deleted" in kubectl("delete", "--grace-period=0", "--force", "-f", "-", stdin=body)
