"""API servers in pods behind the cluster's own: the metrics API, and APIServices as objects."""

import pytest

from cluster import at, condition, eventually

REGISTRATION = "apiregistration.k8s.io/v1"
METRICS = "v1beta1.metrics.k8s.io"


def services(name=None, sub=None):
    return at(REGISTRATION, "apiservices", name=name, sub=sub)


@pytest.mark.conformance(
    "[sig-api-machinery] Aggregator Should be able to support the 1.17 Sample API Server using the current Aggregator [LinuxOnly]"
)
def test_a_pod_serves_a_part_of_the_api(cluster, ns, refused):
    def available():
        found = cluster.get(services(METRICS))
        assert condition(found, "Available") == "True", found["status"]
        return found

    service = eventually("the metrics API is available", available, 240)["spec"]
    group = next(found for found in cluster.get("/apis")["groups"] if found["name"] == "metrics.k8s.io")
    assert group["preferredVersion"]["groupVersion"] == "metrics.k8s.io/v1beta1"

    def discovered():
        resources = {found["name"] for found in cluster.get("/apis/metrics.k8s.io/v1beta1")["resources"]}
        assert resources >= {"nodes", "pods"}

    eventually("its resources are listed", discovered)

    def measured():
        nodes = cluster.items(at("metrics.k8s.io/v1beta1", "nodes"))
        assert {found["metadata"]["name"] for found in nodes} == {
            found["metadata"]["name"] for found in cluster.items(at("v1", "nodes"))
        }

    eventually("all nodes are measured", measured, 240)

    # The pod is told who asks, and asks back what they may.
    token = cluster.create(ns.at("v1", "serviceaccounts", "default", "token"), {"spec": {}})["status"]["token"]
    nobody = cluster.as_bearer(token)
    pods = ns.at("metrics.k8s.io/v1beta1", "pods")
    with refused(403, "Forbidden"):
        nobody.get(pods)
    rule = {"apiGroups": ["metrics.k8s.io"], "resources": ["pods"], "verbs": ["list"]}
    cluster.create(ns.at("rbac.authorization.k8s.io/v1", "roles"), {"metadata": {"name": "r"}, "rules": [rule]})
    binding = {
        "metadata": {"name": "r"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": ns.name}],
    }
    cluster.create(ns.at("rbac.authorization.k8s.io/v1", "rolebindings"), binding)
    eventually("the grant is seen", lambda: nobody.get(pods))

    # Another group at the same pod, that it does not serve.
    name = "v1alpha1.metrics.example.com"
    spec = {**service, "group": "metrics.example.com", "version": "v1alpha1", "versionPriority": 10}
    labels = {"e2e": ns.name}
    try:
        made = cluster.create(services(), {"metadata": {"name": name, "labels": labels}, "spec": spec})
        assert made["spec"]["service"]["port"] == 443

        def unavailable():
            found = cluster.get(services(name))
            reason = [each["reason"] for each in found["status"]["conditions"] if each["type"] == "Available"]
            assert reason == ["FailedDiscoveryCheck"], found["status"]

        eventually("what the pod does not serve is unavailable", unavailable)
        with refused(503):
            cluster.get("/apis/metrics.example.com/v1alpha1/nodes")
        told = {"type": "StatusPatched", "status": "True", "reason": "Test", "message": "by hand"}
        patched = cluster.patch(services(name, "status"), {"status": {"conditions": [told]}})
        assert condition(patched, "StatusPatched") == "True"
        cluster.patch(services(name), {"spec": {"versionPriority": 20}})
        replaced = cluster.update(services(name), lambda found: found["metadata"]["labels"].update(updated="true"))
        assert (replaced["metadata"]["labels"]["updated"], replaced["spec"]["versionPriority"]) == ("true", 20)
    finally:
        cluster.delete(services(), labelSelector=f"e2e={ns.name}")
    assert cluster.exists(services(name)) is None
    assert condition(cluster.get(services(METRICS)), "Available") == "True"
