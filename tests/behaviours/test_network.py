"""Services, their endpoints, names and ports, as pods and nodes reach them."""

import concurrent.futures
import time

import pytest

from cluster import at, condition, container, eventually

conformance = pytest.mark.conformance
FOREVER = ("sleep", "3600")
SERVICES = "[sig-network] Services should "
SLICES = "[sig-network] EndpointSlice should "
CONTROLLER = "[sig-network] EndpointsController should "
NO_PODS = "for a Service with a selector that matches no pods"
SLICE = "discovery.k8s.io/v1"
NAME = "kubernetes.default.svc.cluster.local"


def web(port=80):
    """Says the pod's name to whoever asks."""
    return ("sh", "-c", f"mkdir /www; hostname > /www/index.html; exec httpd -f -p {port} -h /www")


def server(ns, name, *command, **spec):
    ns.run(name, *(command or web()), labels={"app": "web", "name": name}, **spec)


def address(ns, name):
    return ns.pod_is(name, "Ready")["status"]["podIP"]


def service(ns, name="web", **spec):
    body = {"selector": {"app": "web"}, "ports": [{"port": 80}], **spec}
    return ns.cluster.create(ns.at("v1", "services"), {"metadata": {"name": name}, "spec": body})


@pytest.fixture
def client(ns):
    """A pod that asks others: `client(host)` is what a web server says, `client.names(...)` what a name server does."""
    ns.run("client", *FOREVER)
    ns.pod_is("client", "Ready")

    class Client:
        def __call__(self, host, port=80, pod_name="client"):
            return ns.exec(pod_name, "wget", "-q", "-T", "2", "-O", "-", f"http://{host}:{port}/").strip()

        def names(self, *query, pod_name="client"):
            return ns.exec(pod_name, "nslookup", *query)

    return Client()


def node_addresses(cluster):
    found = [one["status"]["addresses"] for one in cluster.items(at("v1", "nodes")) if "addresses" in one["status"]]
    return [one["address"] for addresses in found for one in addresses if one["type"] == "InternalIP"]


def endpoints_of(ns, name="web"):
    """Sets of (address, port) in the service's Endpoints and in its slices."""
    old = ns.cluster.get(ns.at("v1", "endpoints", name))
    ports = [(subset, port["port"]) for subset in old.get("subsets", []) for port in subset["ports"]]
    listed = {(one["ip"], port) for subset, port in ports for one in subset.get("addresses", [])}
    slices = ns.cluster.items(ns.at(SLICE, "endpointslices"), labelSelector=f"kubernetes.io/service-name={name}")
    sliced = {
        (ip, port["port"])
        for one in slices
        for port in one.get("ports") or []
        for endpoint in one.get("endpoints") or []
        for ip in endpoint["addresses"]
        if endpoint["conditions"]["ready"]
    }
    return listed, sliced


def has_endpoints(ns, *wanted, name="web"):
    def known():
        assert endpoints_of(ns, name) == (set(wanted), set(wanted))

    eventually(f"endpoints {wanted}", known)


def says(question, expected):
    def answered():
        assert question() == expected

    eventually(f"the answer {expected}", answered)


@conformance(
    SERVICES + "serve a basic endpoint from pods",
    SERVICES + "serve multiport endpoints from pods",
    SLICES + "create Endpoints and EndpointSlices for Pods matching a Service",
    CONTROLLER + "create Endpoints for Pods matching a Service",
)
def test_services_lead_to_their_ready_pods(cluster, ns, client):
    ports = [{"name": "a", "port": 80, "targetPort": "first"}, {"name": "b", "port": 81, "targetPort": 8081}]
    made = service(ns, ports=ports)["spec"]["clusterIP"]
    has_endpoints(ns)
    named = {"ports": [{"containerPort": 80, "name": "first"}]}
    server(ns, "one", container=named)
    one = address(ns, "one")
    has_endpoints(ns, (one, 80), (one, 8081))
    says(lambda: client(made), "one")
    server(ns, "two", *web(8081))
    two = address(ns, "two")
    has_endpoints(ns, (one, 80), (one, 8081), (two, 8081))
    cluster.delete(ns.pods("one"))
    has_endpoints(ns, (two, 8081))
    says(lambda: client(made, 81), "two")
    cluster.delete(ns.pods("two"))
    has_endpoints(ns)


@conformance(
    SLICES + "create and delete EndpointSlices " + NO_PODS, CONTROLLER + "create and delete Endpoints " + NO_PODS
)
def test_endpoints_live_as_long_as_their_service(cluster, ns):
    service(ns, selector={"does": "not-match"})
    has_endpoints(ns)
    slices = dict(labelSelector="kubernetes.io/service-name=web")

    def sliced():
        [found] = cluster.items(ns.at(SLICE, "endpointslices"), **slices)
        assert (
            found["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] == "endpointslice-controller.k8s.io"
        )
        assert found["metadata"]["ownerReferences"][0]["name"] == "web"

    eventually("an empty slice", sliced)
    cluster.delete(ns.at("v1", "services", "web"))
    ns.gone(ns.at("v1", "endpoints", "web"))

    def gone():
        assert not cluster.items(ns.at(SLICE, "endpointslices"), **slices)

    eventually("no slice", gone)


def slice_of(ns, name, port, *addresses):
    labels = {"kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "behaviours"}
    body = {
        "metadata": {"name": name, "labels": labels},
        "addressType": "IPv4",
        "ports": [{"protocol": "TCP", **port}],
        "endpoints": [{"addresses": [one]} for one in addresses],
    }
    ns.cluster.create(ns.at(SLICE, "endpointslices"), body)


@conformance(SLICES + "support a Service with multiple ports specified in multiple EndpointSlices")
def test_slices_may_have_a_port_each(ns, client):
    ports = [{"name": "p80", "port": 80}, {"name": "p81", "port": 81}]
    made = service(ns, selector=None, ports=ports)["spec"]["clusterIP"]
    containers = [
        container(f"c{port}", "sh", "-c", f"mkdir /www; echo {port} > /www/index.html; exec httpd -f -p {port} -h /www")
        for port in (8090, 9090)
    ]
    ns.run("both", containers=containers)
    ip = address(ns, "both")
    slice_of(ns, "s80", {"name": "p80", "port": 8090}, ip)
    slice_of(ns, "s81", {"name": "p81", "port": 9090}, ip)
    says(lambda: client(made, 80), "8090")
    says(lambda: client(made, 81), "9090")


@conformance(SLICES + "support a Service with multiple endpoint IPs specified in multiple EndpointSlices")
def test_slices_may_have_an_address_each(ns, client):
    ports = [{"name": "p80", "port": 80}, {"name": "p81", "port": 81}]
    made = service(ns, selector=None, ports=ports)["spec"]["clusterIP"]
    for name, port, target in [("one", "p80", 80), ("two", "p81", 8081)]:
        server(ns, name, *web(target))
        slice_of(ns, name, {"name": port, "port": target}, address(ns, name))
    says(lambda: client(made, 80), "one")
    says(lambda: client(made, 81), "two")
    server(ns, "three")
    slice_of(ns, "three", {"name": "p80", "port": 80}, address(ns, "three"))
    seen = set()

    def both():
        seen.add(client(made, 80))
        assert seen == {"one", "three"}

    eventually("both endpoints answer", both)


@conformance(
    "[sig-network] EndpointSliceMirroring should mirror a custom Endpoints resource through create update and delete"
)
def test_custom_endpoints_are_mirrored(cluster, ns):
    service(ns, selector=None)
    path = ns.at("v1", "endpoints")
    subset = {"addresses": [{"ip": "198.51.100.1"}], "ports": [{"name": "p", "port": 80, "protocol": "TCP"}]}
    cluster.create(path, {"metadata": {"name": "web"}, "subsets": [subset]})
    has_endpoints(ns, ("198.51.100.1", 80))
    subset["addresses"] = [{"ip": "198.51.100.2"}]
    subset["ports"] = [{"name": "p", "port": 81, "protocol": "TCP"}]
    cluster.patch(path + "/web", {"subsets": [subset]})
    has_endpoints(ns, ("198.51.100.2", 81))
    [mirror] = cluster.items(ns.at(SLICE, "endpointslices"))
    manager = "endpointslice.kubernetes.io/managed-by"
    assert mirror["metadata"]["labels"][manager] == "endpointslicemirroring-controller.k8s.io"
    cluster.delete(path + "/web")
    ns.gone(ns.at(SLICE, "endpointslices", mirror["metadata"]["name"]))


@conformance(
    SERVICES + "be able to change the type from ClusterIP to ExternalName",
    SERVICES + "be able to change the type from ExternalName to ClusterIP",
    SERVICES + "be able to change the type from ExternalName to NodePort",
    SERVICES + "be able to change the type from NodePort to ExternalName",
)
@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort"])
def test_types_change_there_and_back(cluster, ns, client, kind):
    server(ns, "one")
    ns.pod_is("one", "Ready")
    path = ns.at("v1", "services", "web")
    service(ns, type="ExternalName", externalName=NAME, selector=None, ports=None)
    says(lambda: NAME in client.names(f"web.{ns.name}.svc.cluster.local"), True)
    spec = {"type": kind, "externalName": None, "selector": {"app": "web"}, "ports": [{"port": 80}]}
    changed = cluster.patch(path, {"spec": spec})["spec"]
    says(lambda: client("web"), "one")
    if kind == "NodePort":
        says(lambda: client(node_addresses(cluster)[0], changed["ports"][0]["nodePort"]), "one")
    spec = {"type": "ExternalName", "externalName": NAME, "clusterIP": None, "clusterIPs": None, "ports": None}
    changed = cluster.patch(path, {"spec": spec})["spec"]
    assert "clusterIP" not in changed and "ports" not in changed
    says(lambda: NAME in client.names(f"web.{ns.name}.svc.cluster.local"), True)


@conformance(SERVICES + "be able to create a functioning NodePort service")
def test_node_ports_lead_in_at_every_node(cluster, ns, client):
    server(ns, "one")
    made = service(ns, type="NodePort")["spec"]
    for host, port in [("web", 80), *((one, made["ports"][0]["nodePort"]) for one in node_addresses(cluster))]:
        says(lambda: client(host, port), "one")


@conformance(
    SERVICES + "have session affinity work for service with type clusterIP [LinuxOnly]",
    SERVICES + "have session affinity work for NodePort service [LinuxOnly]",
    SERVICES + "be able to switch session affinity for service with type clusterIP [LinuxOnly]",
    SERVICES + "be able to switch session affinity for NodePort service [LinuxOnly]",
)
@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort"])
def test_clients_stay_with_their_pod(cluster, ns, client, kind):
    for name in ("one", "two", "three"):
        server(ns, name)
    made = service(ns, type=kind, sessionAffinity="ClientIP")["spec"]
    assert made["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}
    addresses = {(address(ns, name), 80) for name in ("one", "two", "three")}
    has_endpoints(ns, *addresses)
    host, port = (made["clusterIP"], 80)
    if kind == "NodePort":
        host, port = node_addresses(cluster)[0], made["ports"][0]["nodePort"]

    def asked(times):
        return {client(host, port) for _ in range(times)}

    def faithful():
        assert len(asked(8)) == 1

    def fickle():
        assert len(asked(12)) > 1

    eventually("one pod answers all", faithful)
    path = ns.at("v1", "services", "web")
    changed = cluster.patch(path, {"spec": {"sessionAffinity": "None"}})["spec"]
    assert "sessionAffinityConfig" not in changed
    eventually("several pods answer", fickle)
    cluster.patch(path, {"spec": {"sessionAffinity": "ClientIP"}})
    eventually("one pod answers all again", faithful)


@conformance(SERVICES + "serve endpoints on same port and different protocols")
def test_a_port_serves_two_protocols(cluster, ns, client):
    selector = {"k8s-app": "kube-dns"}
    path = at("v1", "services", "kube-system", ns.name)
    ports = [
        {"name": protocol.lower(), "port": 54, "targetPort": 53, "protocol": protocol} for protocol in ("TCP", "UDP")
    ]
    body = {"metadata": {"name": ns.name}, "spec": {"selector": selector, "ports": ports}}
    made = cluster.create(at("v1", "services", "kube-system"), body)["spec"]["clusterIP"]

    def protocols():
        slices = at(SLICE, "endpointslices", "kube-system")
        found = cluster.items(slices, labelSelector=f"kubernetes.io/service-name={ns.name}")
        return {(port["protocol"], port["port"]) for one in found for port in one["ports"] or []}

    def over_udp():
        return NAME in client.names(NAME, f"{made}:54")

    try:
        says(protocols, {("TCP", 53), ("UDP", 53)})
        says(over_udp, True)
        assert ns.exec("client", "nc", "-w", "2", made, "54", "-e", "true") == ""
        cluster.patch(path, [{"op": "replace", "path": "/spec/ports", "value": ports[1:]}], "json")
        says(protocols, {("UDP", 53)})
        says(over_udp, True)
        assert "command terminated with exit code" in cluster.kubectl(
            "-n", ns.name, "exec", "client", "--", "nc", "-w", "2", made, "54", ok=False
        )
    finally:
        cluster.delete(path)


@conformance(
    "[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: http [NodeConformance]",
    "[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: udp [NodeConformance]",
    "[sig-network] Networking Granular Checks: Pods should function for node-pod communication: http [LinuxOnly] [NodeConformance]",
    "[sig-network] Networking Granular Checks: Pods should function for node-pod communication: udp [LinuxOnly] [NodeConformance]",
)
def test_pods_and_nodes_reach_pods(cluster, ns, client):
    nodes = [one["metadata"]["name"] for one in cluster.items(at("v1", "nodes")) if "addresses" in one["status"]]
    askers = ["client", *(f"host-{i}" for i in range(len(nodes)))]
    for i, node in enumerate(nodes):
        ns.run(f"server-{i}", *web(8080), nodeName=node)
        ns.run(f"host-{i}", *FOREVER, nodeName=node, hostNetwork=True)
    servers = {f"server-{i}": address(ns, f"server-{i}") for i in range(len(nodes))}
    datagrams = cluster.items(at("v1", "pods", "kube-system"), labelSelector="k8s-app=kube-dns")
    for asker in askers:
        ns.pod_is(asker, "Ready")
        for name, ip in servers.items():
            says(lambda: client(ip, 8080, asker), name)
        for one in datagrams:
            says(lambda: NAME in client.names(NAME, one["status"]["podIP"], pod_name=asker), True)


@conformance(
    "[sig-network] HostPort validates that there is no conflict between pods with same hostPort but different hostIP and protocol [LinuxOnly]"
)
def test_host_ports_differ_by_address_and_protocol(cluster, ns):
    [node] = [one for one in cluster.items(at("v1", "nodes")) if "addresses" in one["status"]][-1:]
    own = next(one["address"] for one in node["status"]["addresses"] if one["type"] == "InternalIP")
    place = {
        "nodeSelector": {"kubernetes.io/hostname": node["metadata"]["name"]},
        "tolerations": [{"operator": "Exists"}],
    }
    for name, ip, protocol, command in [
        ("one", "127.0.0.1", "TCP", web(8080)),
        ("two", own, "TCP", web(8080)),
        ("three", own, "UDP", FOREVER),
    ]:
        ports = [{"containerPort": 8080, "hostPort": 54323, "hostIP": ip, "protocol": protocol}]
        ns.run(name, *command, container={"ports": ports}, **place)
    ns.run("host", *FOREVER, hostNetwork=True, **place)
    for name in ("one", "two", "three", "host"):
        ns.pod_is(name, "Ready")

    def asked(host):
        return ns.exec("host", "wget", "-q", "-T", "2", "-O", "-", f"http://{host}:54323/").strip()

    says(lambda: asked("127.0.0.1"), "one")
    says(lambda: asked(own), "two")


@conformance(
    "[sig-network] API Server should provide secure master service",
    "[sig-network] API Server should have Endpoints and EndpointSlices pointing to API Server",
)
def test_the_api_server_is_a_service(cluster):
    made = cluster.get(at("v1", "services", "default", "kubernetes"))["spec"]
    assert [(port["name"], port["port"], port["protocol"]) for port in made["ports"]] == [("https", 443, "TCP")]
    [subset] = cluster.get(at("v1", "endpoints", "default", "kubernetes"))["subsets"]
    sliced = cluster.get(at(SLICE, "endpointslices", "default", "kubernetes"))
    assert sliced["metadata"]["labels"]["kubernetes.io/service-name"] == "kubernetes"
    assert [one["ip"] for one in subset["addresses"]] == [one for e in sliced["endpoints"] for one in e["addresses"]]
    assert [(port["name"], port["port"]) for port in sliced["ports"]] == [
        (port["name"], port["port"]) for port in subset["ports"]
    ]


def echo(port):
    """Answers with what was asked; the body of a POST must be read before."""
    head = "read -r method path version; length=0"
    rest = "while read -r key value && [ ${#key} -gt 1 ]; do case $key in [Cc]ontent-[Ll]ength:) length=${value%?};; esac; done"
    answer = "dd bs=1 count=$length 2>/dev/null >/dev/null; printf 'HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n'"
    script = f'{head}; {rest}; {answer}; [ $method = HEAD ] || printf "%s %s" "$method" "$path"'
    return ("nc", "-ll", "-p", str(port), "-e", "sh", "-c", script)


PROXY = "[sig-network] Proxy version v1 "


@conformance(
    PROXY + "A set of valid responses are returned for both pod and service Proxy",
    PROXY + "A set of valid responses are returned for both pod and service ProxyWithPath",
    PROXY + "should proxy through a service and a pod",
)
def test_the_api_server_is_a_proxy(cluster, ns, refused):
    ns.run("one", *echo(8080), labels={"app": "web"}, container={"ports": [{"containerPort": 8080, "name": "web"}]})
    ip = address(ns, "one")
    service(ns, ports=[{"name": "front", "port": 80, "targetPort": "web"}])
    has_endpoints(ns, (ip, 8080))
    paths = [ns.pods("one:8080", "proxy"), ns.pods("http:one:8080", "proxy")]
    paths += [ns.at("v1", "services", name, "proxy") for name in ("web:front", "web:80", "http:web:front")]
    for path in paths:
        for method in ("DELETE", "OPTIONS", "PATCH", "POST", "PUT", "GET"):
            answer = cluster.response(method, f"{path}/some/path/with/{method}", "{}" if method != "GET" else None)
            assert (answer.status_code, answer.text) == (200, f"{method} /some/path/with/{method}")
        assert cluster.response("HEAD", path + "/").status_code == 200
        moved = cluster.http.get(cluster.server + path, allow_redirects=False)
        assert moved.status_code == 301 and moved.headers["Location"].endswith(path + "/")
    with refused(503, "ServiceUnavailable"):
        cluster.get(ns.at("v1", "services", "web:none", "proxy") + "/")


@conformance(PROXY + "should proxy through a service and a pod")
def test_the_api_server_is_a_proxy_to_servers_with_certificates(cluster):
    def running():
        found = cluster.items(at("v1", "pods", "kube-system"), labelSelector="k8s-app=metrics-server")
        return next(one["metadata"]["name"] for one in found if condition(one, "Ready") == "True")

    pod = eventually("a server with a certificate is ready", running, 240)
    paths = [at("v1", "pods", "kube-system", f"https:{pod}:10250", "proxy")]
    paths += [
        at("v1", "services", "kube-system", f"https:metrics-server:{port}", "proxy") for port in ("https", "443", "")
    ]
    for path in paths:
        assert cluster.get(path + "/readyz") == "ok"


@conformance("[sig-network] Service endpoints latency should not be very high")
def test_endpoints_follow_services_soon(cluster, ns):
    server(ns, "one")
    ip = address(ns, "one")

    def once(i):
        name = f"latency-{i}"
        started = time.monotonic()
        service(ns, name)
        has_endpoints(ns, (ip, 80), name=name)
        return time.monotonic() - started

    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        taken = sorted(pool.map(once, range(30)))
    assert taken[15] < 20 and taken[-1] < 50
