"""What a namespace may use, and what it uses."""

import pytest

from cluster import container, eventually, pod

conformance = pytest.mark.conformance
QUOTA = "[sig-api-machinery] ResourceQuota should "
LIFE = QUOTA + "create a ResourceQuota and capture the life of a "
FOREVER = ("sleep", "3600")


def quota(ns, name="q", hard=None, **spec):
    """Made, and its status known."""
    body = {"metadata": {"name": name}, "spec": {"hard": hard, **spec}}
    ns.cluster.create(ns.at("v1", "resourcequotas"), body)

    def known():
        assert ns.cluster.get(ns.at("v1", "resourcequotas", name))["status"]["hard"] == hard

    eventually("the quota counts", known)


def used(ns, name="q"):
    return ns.cluster.get(ns.at("v1", "resourcequotas", name))["status"]["used"]


def uses(ns, expected, name="q"):
    def so():
        found = used(ns, name)
        assert {key: found[key] for key in expected} == expected

    eventually(f"{name} uses {expected}", so)


def workload(replicas, selector):
    template = {"metadata": {"labels": {"app": "w"}}, "spec": {"containers": [container("c", *FOREVER)]}}
    return {"replicas": replicas, "selector": selector, "template": template}


@conformance(
    LIFE + "configMap.",
    LIFE + "secret.",
    LIFE + "service.",
    LIFE + "replica set.",
    LIFE + "replication controller.",
)
@pytest.mark.parametrize(
    ("api", "resource", "counted", "body"),
    [
        ("v1", "configmaps", "configmaps", {"data": {"a": "b"}}),
        ("v1", "secrets", "secrets", {"stringData": {"a": "b"}}),
        ("v1", "services", "services", {"spec": {"ports": [{"port": 80}]}}),
        ("apps/v1", "replicasets", "count/replicasets.apps", {"spec": workload(0, {"matchLabels": {"app": "w"}})}),
        ("v1", "replicationcontrollers", "replicationcontrollers", {"spec": workload(0, {"app": "w"})}),
    ],
)
def test_objects_are_counted(cluster, ns, refused, api, resource, counted, body):
    if resource == "configmaps":
        eventually("the namespace's own", lambda: cluster.get(ns.at(api, resource, "kube-root-ca.crt")))
    before = len(cluster.items(ns.at(api, resource)))
    quota(ns, hard={counted: str(before + 1)})
    uses(ns, {counted: str(before)})
    cluster.create(ns.at(api, resource), {"metadata": {"name": "one"}, **body})
    uses(ns, {counted: str(before + 1)})
    with refused(403, "Forbidden") as error:
        cluster.create(ns.at(api, resource), {"metadata": {"name": "two"}, **body})
    words = f"exceeded quota: q, requested: {counted}=1, used: {counted}={before + 1}, limited: {counted}={before + 1}"
    assert error.error.message.endswith(words)
    cluster.delete(ns.at(api, resource, "one"))
    uses(ns, {counted: str(before)})


@conformance(LIFE + "service.")
def test_kinds_of_services_are_counted(cluster, ns, refused):
    quota(ns, hard={"services": "5", "services.nodeports": "1", "services.loadbalancers": "1"})

    def make(name, kind, **spec):
        cluster.create(
            ns.at("v1", "services"),
            {"metadata": {"name": name}, "spec": {"type": kind, "ports": [{"port": 80}], **spec}},
        )

    make("a", "ClusterIP")
    make("b", "NodePort")
    uses(ns, {"services": "2", "services.nodeports": "1", "services.loadbalancers": "0"})
    with refused(403, "Forbidden"):
        make("c", "LoadBalancer")
    make("c", "LoadBalancer", allocateLoadBalancerNodePorts=False)
    uses(ns, {"services": "3", "services.nodeports": "1", "services.loadbalancers": "1"})


@conformance(LIFE + "pod.", QUOTA + "create a ResourceQuota and ensure its status is promptly calculated.")
def test_what_pods_ask_for_is_counted(cluster, ns, refused):
    hard = {"pods": "5", "cpu": "1", "memory": "500Mi", "ephemeral-storage": "50Gi", "requests.example.com/dongle": "3"}
    quota(ns, hard=hard)
    uses(ns, dict.fromkeys(hard, "0"))

    def asking(name, **more):
        requests = {"cpu": "500m", "memory": "252Mi", "ephemeral-storage": "30Gi", "example.com/dongle": "2", **more}
        resources = {"requests": requests, "limits": {"example.com/dongle": requests["example.com/dongle"]}}
        body = pod(name, *FOREVER, container={"resources": resources}, schedulingGates=[{"name": "example.com/never"}])
        return cluster.create(ns.pods(), body)

    asking("one")
    taken = {
        "pods": "1",
        "cpu": "500m",
        "memory": "252Mi",
        "ephemeral-storage": "30Gi",
        "requests.example.com/dongle": "2",
    }
    uses(ns, taken)
    with refused(403, "Forbidden") as error:
        asking("two", cpu="600m", **{"example.com/dongle": "1", "ephemeral-storage": "1Gi", "memory": "1Mi"})
    assert "exceeded quota: q, requested: cpu=600m, used: cpu=500m, limited: cpu=1" in error.error.message
    with refused(403, "Forbidden"):
        asking("two", cpu="1m", **{"ephemeral-storage": "1Gi", "memory": "1Mi"})
    with refused(403, "Forbidden") as error:
        cluster.create(ns.pods(), pod("bare", *FOREVER))
    assert "must specify cpu for: c" in error.error.message
    uses(ns, taken)
    cluster.delete(ns.pods("one"), {"gracePeriodSeconds": 0})
    uses(ns, dict.fromkeys(hard, "0"))


@conformance(
    QUOTA + "verify ResourceQuota with best effort scope.", QUOTA + "verify ResourceQuota with terminating scopes."
)
@pytest.mark.parametrize(
    ("scope", "inside", "outside"),
    [
        ("BestEffort", {}, {"container": {"resources": {"requests": {"cpu": "1m"}}}}),
        ("Terminating", {"activeDeadlineSeconds": 3600}, {}),
    ],
)
def test_scopes_tell_pods_apart(cluster, ns, scope, inside, outside):
    quota(ns, "in", {"pods": "5"}, scopes=[scope])
    quota(ns, "out", {"pods": "5"}, scopes=["Not" + scope])
    gates = [{"name": "example.com/never"}]
    for spec, counts in [(inside, ("1", "0")), (outside, ("0", "1"))]:
        ns.run("p", *FOREVER, schedulingGates=gates, **spec)
        uses(ns, {"pods": counts[0]}, "in")
        uses(ns, {"pods": counts[1]}, "out")
        cluster.delete(ns.pods("p"), {"gracePeriodSeconds": 0})
        uses(ns, {"pods": "0"}, "in")
        uses(ns, {"pods": "0"}, "out")
