"""Programs outside that the API server asks: may it be, how shall it be, and what is it in another version."""

import base64
import contextlib
import http.server
import json
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse

import pytest

from cluster import Refused, at, eventually, pod
from test_api_machinery import definition

conformance = pytest.mark.conformance
WEBHOOK = "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] "
CONVERSION = "[sig-api-machinery] CustomResourceConversionWebhook [Privileged:ClusterAdmin] should be able to convert "
ADMISSION = "admissionregistration.k8s.io/v1"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="module")
def certified(cluster, tmp_path_factory):
    """The address the API server finds this process at, and a certificate for it."""
    url = urllib.parse.urlparse(cluster.server)
    with contextlib.closing(socket.create_connection((url.hostname, url.port))) as connection:
        address = connection.getsockname()[0]
    folder = tmp_path_factory.mktemp("certificate")
    key, certificate = folder / "key", folder / "crt"
    command = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {key} -out {certificate} -days 2"
    )
    names = ["-subj", f"/CN={address}", "-addext", f"subjectAltName=IP:{address}"]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return address, key, certificate


@pytest.fixture
def serve(certified):
    """`serve(answer)` is a client configuration that leads to `answer(request)`; what it was asked is kept."""
    address, key, certificate = certified
    servers = []

    def start(answer):
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append(review["request"])
                response = {"uid": review["request"]["uid"], **answer(review["request"])}
                body = json.dumps(
                    {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}
                ).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer((address, 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        bundle = base64.b64encode(certificate.read_bytes()).decode()
        return {"url": f"https://{address}:{server.server_port}/", "caBundle": bundle}, asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def denying(reason):
    return lambda _: {"allowed": False, "status": {"message": reason}}


def patching(*operations):
    encoded = base64.b64encode(json.dumps(operations).encode()).decode()
    return lambda _: {"allowed": True, "patchType": "JSONPatch", "patch": encoded}


def everything(resource, group="", version="*", operations=("CREATE",)):
    return [{"apiGroups": [group], "apiVersions": [version], "operations": list(operations), "resources": [resource]}]


@pytest.fixture
def hook(cluster, ns):
    """Registers a webhook for the test's namespace and waits until it is asked about a ConfigMap with its marker."""
    made = []

    def register(kind, config, rules, name=None, **more):
        own = {"matchLabels": {"kubernetes.io/metadata.name": ns.name}}
        fields = {"sideEffects": "None", "admissionReviewVersions": ["v1"], "namespaceSelector": own, **more}
        hooks = [{"name": "hook.example.com", "clientConfig": config, "rules": rules, **fields}]
        path = at(ADMISSION, f"{kind}webhookconfigurations")
        body = {"metadata": {"name": name or f"{ns.name}-{len(made)}", "labels": {"of": ns.name}}, "webhooks": hooks}
        made.append(f"{path}/{cluster.create(path, body)['metadata']['name']}")
        return made[-1]

    yield register
    for path in made:
        if cluster.exists(path):
            cluster.delete(path)


def is_denied(cluster, attempt, reason):
    def denied():
        with pytest.raises(Refused) as caught:
            attempt()
        assert reason in caught.value.message, caught.value
        return caught.value

    return eventually(f"denied: {reason}", denied)


@conformance(WEBHOOK + "should be able to deny pod and configmap creation")
def test_webhooks_deny(cluster, ns, serve, hook):
    config, asked = serve(denying("no such thing"))
    hook("validating", config, everything("configmaps", operations=["CREATE", "UPDATE"]) + everything("pods"))
    error = is_denied(cluster, lambda: cluster.create(ns.pods(), pod("p"), dryRun="All"), "no such thing")
    assert error.code == 400
    assert error.message == 'admission webhook "hook.example.com" denied the request: no such thing'
    is_denied(cluster, lambda: cluster.create(ns.at("v1", "configmaps"), {"metadata": {"name": "c"}}), "no such thing")
    root = ns.at("v1", "configmaps", "kube-root-ca.crt")
    for kind in ("merge", "strategic"):
        is_denied(cluster, lambda: cluster.patch(root, {"data": {"a": "b"}}, kind), "no such thing")
    assert asked[0]["namespace"] == ns.name and asked[0]["dryRun"] and asked[0]["operation"] == "CREATE"


@conformance(WEBHOOK + "should be able to deny attaching pod")
def test_webhooks_deny_attaching(cluster, ns, serve, hook):
    config, _ = serve(denying("attaching is not allowed"))
    ns.run("p", "sleep", "3600")
    ns.pod_is("p", "Ready")
    hook("validating", config, everything("pods/attach", operations=["CONNECT"]))

    def denied():
        told = cluster.kubectl("-n", ns.name, "attach", "p", "-c=c", "--pod-running-timeout=5s", ok=False)
        assert "attaching is not allowed" in told

    # Until the webhook is known, kubectl would attach and stay.
    is_denied(
        cluster, lambda: cluster.request("POST", ns.pods("p", "attach"), container="c", stdout="true"), "attaching"
    )
    denied()


@pytest.fixture
def noxus(cluster, ns):
    """The path of a custom kind in the test's namespace."""
    group = f"{ns.name}.example.com"
    schema = {
        "openAPIV3Schema": {
            "type": "object",
            "properties": {"data": {"type": "object", "additionalProperties": {"type": "string"}}},
        }
    }
    cluster.create(DEFINITIONS, definition(group, "Noxu", schema=schema))
    path = at(f"{group}/v1", "noxus", ns.name)
    eventually("the kind is served", lambda: cluster.get(path))
    yield path
    cluster.delete(f"{DEFINITIONS}/noxus.{group}")


def noxu(ns, name="n", version="v1", **data):
    return {"apiVersion": f"{ns.name}.example.com/{version}", "kind": "Noxu", "metadata": {"name": name}, "data": data}


@conformance(WEBHOOK + "should be able to deny custom resource creation, update and deletion")
def test_webhooks_deny_custom_resources(cluster, ns, serve, hook, noxus):
    def answer(request):
        found = request.get("object") or request["oldObject"]
        return {"allowed": found.get("data", {}).get("key") != "bad", "status": {"message": "bad key"}}

    config, _ = serve(answer)
    hook("validating", config, everything("noxus", f"{ns.name}.example.com", operations=["CREATE", "UPDATE", "DELETE"]))
    is_denied(cluster, lambda: cluster.create(noxus, noxu(ns, key="bad"), dryRun="All"), "bad key")
    cluster.create(noxus, noxu(ns, key="good"))
    is_denied(cluster, lambda: cluster.patch(noxus + "/n", {"data": {"key": "bad"}}), "bad key")
    cluster.delete(noxus + "/n")


@conformance(WEBHOOK + "should unconditionally reject operations on fail closed webhook")
def test_webhooks_that_are_not_there_reject(cluster, ns, hook):
    config = {"url": "https://127.0.0.1:1/none"}
    hook("validating", config, everything("configmaps"), failurePolicy="Fail")
    error = is_denied(
        cluster,
        lambda: cluster.create(ns.at("v1", "configmaps"), {"metadata": {"name": "c"}}),
        "failed calling webhook",
    )
    assert error.code == 500 and 'failed calling webhook "hook.example.com"' in error.message


@conformance(
    WEBHOOK + "should mutate configmap",
    WEBHOOK + "should mutate pod and apply defaults after mutation",
    WEBHOOK + "should mutate custom resource",
    WEBHOOK + "should mutate custom resource with pruning",
)
def test_webhooks_change(cluster, ns, serve, hook, noxus):
    config, _ = serve(patching({"op": "add", "path": "/data/second", "value": "yes"}))
    hook("mutating", config, everything("configmaps") + everything("noxus", f"{ns.name}.example.com"))
    pruned, _ = serve(patching({"op": "add", "path": "/unknown", "value": "yes"}))
    hook("mutating", pruned, everything("noxus", f"{ns.name}.example.com"))
    added = [{"name": "added", "image": "busybox"}]
    config, _ = serve(patching({"op": "add", "path": "/spec/initContainers", "value": added}))
    hook("mutating", config, everything("pods"))

    def changed():
        body = {"metadata": {"name": "c"}, "data": {"first": "yes"}}
        made = cluster.create(ns.at("v1", "configmaps"), body, dryRun="All")
        assert made["data"] == {"first": "yes", "second": "yes"}
        made = cluster.create(noxus, noxu(ns, first="yes"), dryRun="All")
        assert made["data"] == {"first": "yes", "second": "yes"} and "unknown" not in made
        [first] = cluster.create(ns.pods(), pod("p"), dryRun="All")["spec"]["initContainers"]
        assert first["terminationMessagePolicy"] == "File" and first["imagePullPolicy"] == "Always"

    eventually("all are changed", changed)


@conformance(WEBHOOK + "should not be able to mutate or prevent deletion of webhook configuration objects")
def test_webhooks_do_not_watch_over_webhooks(cluster, ns, serve, hook):
    selected = {"objectSelector": {"matchLabels": {"of": ns.name}}, "namespaceSelector": {}}
    config, _ = serve(denying("never"))
    rules = everything("*", "admissionregistration.k8s.io", operations=["*"])
    hook("validating", config, rules, **selected)
    config, _ = serve(patching({"op": "add", "path": "/metadata/labels/changed", "value": "yes"}))
    hook("mutating", config, rules, **selected)
    plain = hook("validating", {"url": "https://127.0.0.1:1/none"}, everything("none", "none.example.com"))
    assert "changed" not in cluster.get(plain)["metadata"]["labels"]
    cluster.delete(plain)


@conformance(WEBHOOK + "should deny crd creation")
def test_webhooks_deny_definitions(cluster, ns, serve, hook):
    config, _ = serve(denying("no such kind"))
    selected = {"objectSelector": {"matchLabels": {"of": ns.name}}, "namespaceSelector": {}}
    hook("validating", config, everything("customresourcedefinitions", "apiextensions.k8s.io"), **selected)
    body = definition(f"{ns.name}.example.com", "Denied")
    body["metadata"]["labels"] = {"of": ns.name}
    is_denied(cluster, lambda: cluster.create(DEFINITIONS, body, dryRun="All"), "no such kind")


@conformance(WEBHOOK + "should honor timeout")
def test_webhooks_have_their_time(cluster, ns, serve, hook):
    def slow(_):
        time.sleep(2)
        return {"allowed": True}

    config, _ = serve(slow)
    create = lambda: cluster.create(ns.at("v1", "configmaps"), {"metadata": {"name": "c"}}, dryRun="All")
    path = hook("validating", config, everything("configmaps"), failurePolicy="Fail", timeoutSeconds=1)
    error = is_denied(cluster, create, "context deadline exceeded")
    assert error.code == 500
    for change in ({"failurePolicy": "Ignore"}, {"failurePolicy": "Fail", "timeoutSeconds": 10}):
        found = cluster.get(path)
        found["webhooks"][0].update(change)
        cluster.replace(path, found)
        eventually(f"created with {change}", create)


@conformance(
    *(WEBHOOK + f"listing {kind} webhooks should work" for kind in ("mutating", "validating")),
    *(WEBHOOK + f"patching/updating a {kind} webhook should work" for kind in ("mutating", "validating")),
)
@pytest.mark.parametrize("kind", ["mutating", "validating"])
def test_webhooks_are_configured(cluster, ns, serve, hook, kind):
    answer = (
        denying("no") if kind == "validating" else patching({"op": "add", "path": "/data", "value": {"seen": "yes"}})
    )
    config, _ = serve(answer)
    path = hook(kind, config, everything("configmaps"))
    collection, _ = path.rsplit("/", 1)

    def is_asked(wanted):
        def so():
            try:
                made = cluster.create(ns.at("v1", "configmaps"), {"metadata": {"name": "c"}}, dryRun="All")
                assert ("data" in made) == wanted
            except Refused as refused:
                assert wanted and "denied the request" in refused.message

        eventually(f"asked: {wanted}", so)

    is_asked(True)
    found = cluster.get(path)
    found["webhooks"][0]["rules"][0]["operations"] = ["UPDATE"]
    cluster.replace(path, found)
    is_asked(False)
    cluster.patch(path, [{"op": "replace", "path": "/webhooks/0/rules/0/operations", "value": ["CREATE"]}], "json")
    is_asked(True)
    of_test = {"labelSelector": f"of={ns.name}"}
    assert len(cluster.items(collection, **of_test)) == 1
    cluster.delete(collection, **of_test)
    is_asked(False)


@conformance(WEBHOOK + "should mutate everything except 'skip-me' configmaps")
def test_conditions_leave_some_out(cluster, ns, serve, hook):
    config, _ = serve(patching({"op": "add", "path": "/data", "value": {"seen": "yes"}}))
    conditions = [{"name": "not-skipped", "expression": "object.metadata.name != 'skip-me'"}]
    hook("mutating", config, everything("configmaps"), matchConditions=conditions)

    def seen():
        for name, wanted in [("other", True), ("skip-me", False)]:
            made = cluster.create(ns.at("v1", "configmaps"), {"metadata": {"name": name}}, dryRun="All")
            assert ("data" in made) == wanted

    eventually("all but one are changed", seen)


def converting(request):
    """What v1 calls hostPort, v2 calls host and port."""
    wanted = request["desiredAPIVersion"]
    converted = []
    for one in request["objects"]:
        one["apiVersion"] = wanted
        if wanted.endswith("v2") and "hostPort" in one:
            one["host"], one["port"] = one.pop("hostPort").split(":")
        elif wanted.endswith("v1") and "host" in one:
            one["hostPort"] = f"{one.pop('host')}:{one.pop('port')}"
        converted.append(one)
    return {"result": {"status": "Success"}, "convertedObjects": converted}


@pytest.fixture
def converted(cluster, ns, serve):
    """Paths of a kind in two versions, the first stored."""
    config, _ = serve(converting)
    group = f"{ns.name}.example.com"
    body = definition(group, "Noxu", versions=("v2", "v1"))
    review = {"clientConfig": config, "conversionReviewVersions": ["v1"]}
    body["spec"]["conversion"] = {"strategy": "Webhook", "webhook": review}
    cluster.create(DEFINITIONS, body)
    paths = [at(f"{group}/{version}", "noxus", ns.name) for version in ("v1", "v2")]
    for path in paths:
        eventually("the version is served", lambda: cluster.get(path))
    yield paths
    cluster.delete(f"{DEFINITIONS}/noxus.{group}")


@conformance(CONVERSION + "from CR v1 to CR v2", CONVERSION + "a non homogeneous list of CRs")
def test_kinds_are_converted(cluster, ns, converted):
    first, second = converted
    one = {**noxu(ns, "one"), "hostPort": "localhost:8080"}
    cluster.create(first, one)
    found = cluster.get(second + "/one")
    assert (found["host"], found["port"]) == ("localhost", "8080") and "hostPort" not in found
    two = {**noxu(ns, "two", "v2"), "host": "localhost", "port": "9090"}
    cluster.create(second, two)
    assert [item["hostPort"] for item in cluster.items(first)] == ["localhost:8080", "localhost:9090"]
    assert [item["port"] for item in cluster.items(second)] == ["8080", "9090"]


@conformance(WEBHOOK + "should mutate custom resource with different stored version")
def test_webhooks_change_whatever_version_is_stored(cluster, ns, serve, hook):
    group = f"{ns.name}.example.com"
    body = definition(group, "Noxu", versions=("v2", "v1"))
    cluster.create(DEFINITIONS, body)
    path = at(f"{group}/v1", "noxus", ns.name)
    try:
        eventually("the kind is served", lambda: cluster.get(path))
        config, _ = serve(patching({"op": "add", "path": "/data/second", "value": "yes"}))
        hook("mutating", config, everything("noxus", group, operations=["CREATE", "UPDATE"]))

        def changed():
            made = cluster.create(path, noxu(ns, first="yes"), dryRun="All")
            assert made["data"] == {"first": "yes", "second": "yes"}

        eventually("it is changed", changed)
        cluster.create(path, noxu(ns, first="yes"))
        found = cluster.get(f"{DEFINITIONS}/noxus.{group}")
        for version in found["spec"]["versions"]:
            version["storage"] = version["name"] == "v2"
        cluster.replace(f"{DEFINITIONS}/noxus.{group}", found)

        def again():
            assert cluster.patch(path + "/n", {"data": {"second": "no"}})["data"]["second"] == "yes"

        eventually("it is changed in its new version", again)
    finally:
        cluster.delete(f"{DEFINITIONS}/noxus.{group}")
