"""Names that pods can ask for, and the files that say whom to ask."""

import pytest

from cluster import at, eventually

conformance = pytest.mark.conformance
DNS = "[sig-network] DNS should "
FOREVER = ("sleep", "3600")
DOMAIN = "svc.cluster.local"


@pytest.fixture
def resolves(ns):
    """`resolves(name, "A")` waits for addresses, or for the rest of the lines that tell of a name."""
    ns.run("client", *FOREVER)
    ns.pod_is("client", "Ready")

    def resolve(name, kind="A", *expected):
        def answered():
            lines = ns.exec("client", "nslookup", f"-type={kind}", name).splitlines()
            answers = [line for line in lines[2:] if line.strip()]
            for one in expected:
                assert any(one in line for line in answers), answers

        eventually(f"{kind} of {name}", answered)

    return resolve


def service(ns, name, **spec):
    body = {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80}], **spec}
    return ns.cluster.create(ns.at("v1", "services"), {"metadata": {"name": name}, "spec": body})["spec"]


@conformance(DNS + "provide DNS for the cluster")
def test_the_cluster_has_a_name(cluster, resolves):
    ip = cluster.get(at("v1", "services", "default", "kubernetes"))["spec"]["clusterIP"]
    resolves(f"kubernetes.default.{DOMAIN}", "A", ip)


@conformance(DNS + "provide DNS for services", DNS + "resolve DNS of partial qualified names for services [LinuxOnly]")
def test_services_have_names(ns, resolves):
    ns.run("one", *FOREVER, labels={"app": "web"})
    ip = ns.pod_is("one", "Ready")["status"]["podIP"]
    cluster_ip = service(ns, "web")["clusterIP"]
    service(ns, "headless", clusterIP="None")
    resolves(f"web.{ns.name}.{DOMAIN}", "A", cluster_ip)
    resolves(f"headless.{ns.name}.{DOMAIN}", "A", ip)
    resolves(f"_http._tcp.web.{ns.name}.{DOMAIN}", "SRV", f"0 100 80 web.{ns.name}.{DOMAIN}")
    resolves(f"_http._tcp.headless.{ns.name}.{DOMAIN}", "SRV", f"80 {ip.replace('.', '-')}.headless.{ns.name}.{DOMAIN}")
    reverse = ".".join(reversed(cluster_ip.split("."))) + ".in-addr.arpa"
    resolves(reverse, "PTR", f"web.{ns.name}.{DOMAIN}")
    for partial in ("web", f"web.{ns.name}", f"web.{ns.name}.svc"):
        address = ns.exec("client", "sh", "-c", f"ping -c 1 -W 1 {partial} | head -n 1")
        assert f"({cluster_ip})" in address


@conformance(DNS + "provide DNS for pods for Hostname", DNS + "provide DNS for pods for Subdomain")
def test_pods_have_names(ns, resolves):
    service(ns, "sub", clusterIP="None")
    ns.run("one", *FOREVER, labels={"app": "web"}, hostname="querier", subdomain="sub")
    ip = ns.pod_is("one", "Ready")["status"]["podIP"]
    name = f"querier.sub.{ns.name}.{DOMAIN}"
    resolves(name, "A", ip)
    assert ns.exec("one", "hostname", "-f").strip() == name
    assert f"{ip}\t{name}\tquerier" in ns.exec("one", "cat", "/etc/hosts")


@conformance(DNS + "provide /etc/hosts entries for the cluster")
def test_hosts_files_name_the_pod(ns):
    aliases = [{"ip": "198.51.100.1", "hostnames": ["foo", "bar"]}]
    ns.run("one", *FOREVER, hostAliases=aliases)
    ip = ns.pod_is("one", "Ready")["status"]["podIP"]
    hosts = ns.exec("one", "cat", "/etc/hosts")
    assert hosts.startswith("# Kubernetes-managed hosts file.\n")
    assert f"{ip}\tone\n" in hosts
    assert "198.51.100.1\tfoo\tbar\n" in hosts


@conformance(DNS + "provide DNS for ExternalName services")
def test_external_names_are_aliases(cluster, ns, resolves):
    service(ns, "outside", type="ExternalName", externalName="foo.example.com", ports=None, selector=None)
    name = f"outside.{ns.name}.{DOMAIN}"
    resolves(name, "CNAME", "foo.example.com")
    path = ns.at("v1", "services", "outside")
    cluster.patch(path, {"spec": {"externalName": "bar.example.com"}})
    resolves(name, "CNAME", "bar.example.com")
    spec = {"type": "ClusterIP", "externalName": None, "ports": [{"name": "http", "port": 80}]}
    resolves(name, "A", cluster.patch(path, {"spec": spec})["spec"]["clusterIP"])


@conformance(DNS + "support configurable pod DNS nameservers")
def test_pods_may_ask_others(ns):
    config = {
        "nameservers": ["198.51.100.53"],
        "searches": ["example.com"],
        "options": [{"name": "ndots", "value": "2"}],
    }
    found = ns.says("cat", "/etc/resolv.conf", dnsPolicy="None", dnsConfig=config)
    assert found == "nameserver 198.51.100.53\nsearch example.com\noptions ndots:2\n" or sorted(
        found.splitlines()
    ) == sorted(["search example.com", "nameserver 198.51.100.53", "options ndots:2"])
