"""Where pods go, who has to make room, and who has to leave."""

import pytest

from cluster import at, condition, container, eventually, pod

conformance = pytest.mark.conformance
FOREVER = ("sleep", "3600")
PREDICATES = "[sig-scheduling] SchedulerPredicates [Serial] validates "
PREEMPTION = "[sig-scheduling] SchedulerPreemption [Serial] "
TAINTS = "[sig-node] NoExecuteTaintManager "


@pytest.fixture
def node(cluster):
    """The name of a node that takes pods."""
    fit = [one for one in cluster.items(at("v1", "nodes")) if not one["spec"].get("taints")]
    return fit[-1]["metadata"]["name"]


@pytest.fixture
def resource(cluster, ns, node):
    """Five of an extended resource, on one node alone."""
    name = f"example.com/{ns.name}"
    path = at("v1", "nodes", name=node, sub="status")
    pointer = "/status/capacity/" + name.replace("/", "~1")
    cluster.patch(path, [{"op": "add", "path": pointer, "value": "5"}], "json")

    def known():
        assert cluster.get(at("v1", "nodes", name=node))["status"]["allocatable"].get(name) == "5"

    eventually("the resource is allocatable", known)
    yield name
    cluster.patch(path, [{"op": "remove", "path": pointer}], "json")


@pytest.fixture
def priority(cluster, ns):
    """Makes priority classes of the test's own."""
    path = at("scheduling.k8s.io/v1", "priorityclasses")
    made = []

    def make(value):
        name = f"p{value}-{ns.name}"
        cluster.create(path, {"metadata": {"name": name}, "value": value})
        made.append(name)
        return name

    yield make
    for name in made:
        cluster.delete(f"{path}/{name}")


def wanting(name, resource, amount, **spec):
    resources = {"requests": {resource: amount}, "limits": {resource: amount}}
    return pod(name, *FOREVER, container={"resources": resources}, **spec)


def unschedulable(ns, name):
    """What the scheduler says of a pod that fits nowhere."""

    def said():
        conditions = ns.cluster.get(ns.pods(name))["status"].get("conditions", [])
        [found] = [one for one in conditions if one["type"] == "PodScheduled"] or [{}]
        assert (found.get("status"), found.get("reason")) == ("False", "Unschedulable")
        return found["message"]

    return eventually(f"pod {name} is unschedulable", said)


@conformance(PREDICATES + "resource limits of pods that are allowed to run")
def test_resources_run_out(cluster, ns, resource, node):
    cluster.create(ns.pods(), wanting("first", resource, "3"))
    assert ns.pod_is("first", "Ready")["spec"]["nodeName"] == node
    cluster.create(ns.pods(), wanting("second", resource, "3"))
    assert f"Insufficient {resource}" in unschedulable(ns, "second")
    cluster.delete(ns.pods("first"))
    ns.pod_is("second", "Ready")


@conformance(
    PREDICATES + "that NodeSelector is respected if matching",
    PREDICATES + "that NodeSelector is respected if not matching",
)
def test_node_selectors_are_respected(cluster, ns, node):
    label = f"behaviours.ironlet.dev/{ns.name}"
    ns.run("p", *FOREVER, nodeSelector={label: "42"})
    assert "node(s) didn't match Pod's node affinity/selector" in unschedulable(ns, "p")
    path = at("v1", "nodes", name=node)
    cluster.patch(path, {"metadata": {"labels": {label: "42"}}})
    try:
        assert ns.pod_is("p", "Ready")["spec"]["nodeName"] == node
    finally:
        cluster.patch(path, {"metadata": {"labels": {label: None}}})


@conformance(
    PREDICATES + "that there exists conflict between pods with same hostPort and protocol but one using 0.0.0.0 hostIP"
)
def test_host_ports_are_had_once(cluster, ns, node):
    def holding(name, address):
        ports = [{"containerPort": 54322, "hostPort": 54322, "hostIP": address, "protocol": "TCP"}]
        selector = {"kubernetes.io/hostname": node}
        cluster.create(ns.pods(), pod(name, *FOREVER, container={"ports": ports}, nodeSelector=selector))

    holding("all", "0.0.0.0")
    ns.pod_is("all", "Ready")
    holding("one", "127.0.0.1")
    assert "1 node(s) didn't have free ports for the requested pod ports" in unschedulable(ns, "one")


@conformance(
    PREEMPTION + "validates basic preemption works",
    PREEMPTION + "validates pod disruption condition is added to the preempted pod",
)
def test_the_less_important_make_room(cluster, ns, resource, priority):
    low, middle, high = priority(1), priority(100), priority(1000)
    finalizers = {"finalizers": ["behaviours.ironlet.dev/seen"]}
    for name, class_name in [("low", low), ("middle", middle)]:
        body = wanting(name, resource, "2", priorityClassName=class_name)
        body["metadata"].update(finalizers)
        cluster.create(ns.pods(), body)
        ns.pod_is(name, "Ready")
    cluster.create(ns.pods(), wanting("high", resource, "3", priorityClassName=high))

    def preempted():
        found = cluster.get(ns.pods("low"))
        assert "deletionTimestamp" in found["metadata"]
        [disrupted] = [one for one in found["status"]["conditions"] if one["type"] == "DisruptionTarget"]
        assert (disrupted["status"], disrupted["reason"]) == ("True", "PreemptionByScheduler")

    eventually("the least important goes", preempted)
    assert "deletionTimestamp" not in cluster.get(ns.pods("middle"))["metadata"]
    for name in ("low", "middle"):
        cluster.patch(ns.pods(name), {"metadata": {"finalizers": None}})
    ns.gone(ns.pods("low"))
    ns.pod_is("high", "Ready")
    ns.pod_is("middle", "Ready")


@conformance(PREEMPTION + "validates lower priority pod preemption by critical pod")
def test_critical_pods_find_room(cluster, ns, resource, priority):
    cluster.create(ns.pods(), wanting("low", resource, "5", priorityClassName=priority(1)))
    ns.pod_is("low", "Ready")
    system = at("v1", "pods", "kube-system")
    name = f"critical-{ns.name}"
    cluster.create(system, wanting(name, resource, "3", priorityClassName="system-cluster-critical"))
    try:
        ns.gone(ns.pods("low"))

        def runs():
            assert condition(cluster.get(f"{system}/{name}"), "Ready") == "True"

        eventually("the critical pod runs", runs)
    finally:
        cluster.delete(f"{system}/{name}", {"gracePeriodSeconds": 0})


@conformance(PREEMPTION + "PreemptionExecutionPath runs ReplicaSets to verify preemption running path")
def test_replicas_make_room_by_importance(cluster, ns, resource, priority):
    for value, replicas in [(1, 5), (2, 4), (3, 3), (4, 1)]:
        name = f"rs-{value}"
        template = wanting(name, resource, "1", priorityClassName=priority(value))
        template["spec"].update(restartPolicy="Always")
        template["metadata"] = {"labels": {"of": name}}
        spec = {"replicas": replicas, "selector": {"matchLabels": {"of": name}}, "template": template}
        cluster.create(ns.at("apps/v1", "replicasets"), {"metadata": {"name": name}, "spec": spec})

        def placed():
            found = cluster.items(ns.pods(), labelSelector=f"of={name}")
            assert sum("nodeName" in one["spec"] for one in found) == replicas

        eventually(f"{name} has its nodes", placed)

    def shared():
        found = cluster.items(ns.pods(), fieldSelector="spec.nodeName!=")
        living = [one for one in found if "deletionTimestamp" not in one["metadata"]]
        counts = {}
        for one in living:
            counts[one["spec"]["priority"]] = counts.get(one["spec"]["priority"], 0) + 1
        assert counts == {4: 1, 3: 3, 2: 1}

    eventually("the important have theirs", shared)


@pytest.fixture
def pretended(cluster, ns):
    """A node that is none, so that nobody else's pods suffer its taints."""
    name = f"pretended-{ns.name}"
    body = {"metadata": {"name": name}, "spec": {"unschedulable": True}}
    cluster.create(at("v1", "nodes"), body)
    yield name
    cluster.delete(at("v1", "nodes", name=name))
    for one in cluster.items(ns.pods()):
        cluster.delete(ns.pods(one["metadata"]["name"]), {"gracePeriodSeconds": 0})


EVIL = {"key": "behaviours.ironlet.dev/evil", "value": "very", "effect": "NoExecute"}


def tolerating(ns, name, node, seconds):
    """Endures the taint for so long."""
    toleration = {"key": EVIL["key"], "operator": "Equal", "value": EVIL["value"], "effect": "NoExecute"}
    unready = {"operator": "Exists", "key": "node.kubernetes.io/unreachable"}
    ns.run(name, *FOREVER, nodeName=node, tolerations=[{**toleration, "tolerationSeconds": seconds}, unready])


def taint(cluster, node, *taints):
    own = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    cluster.patch(at("v1", "nodes", name=node), {"spec": {"taints": [own, *taints]}})


def evicted(ns, name):
    def leaving():
        found = ns.cluster.exists(ns.pods(name))
        assert found is None or "deletionTimestamp" in found["metadata"]

    eventually(f"pod {name} is evicted", leaving)


def stays(ns, name):
    return "deletionTimestamp" not in ns.cluster.get(ns.pods(name))["metadata"]


@conformance(TAINTS + "Multiple Pods [Serial] evicts pods with minTolerationSeconds [Disruptive]")
def test_taints_are_endured_as_long_as_tolerated(cluster, ns, pretended):
    tolerating(ns, "short", pretended, 1)
    tolerating(ns, "long", pretended, 6)
    taint(cluster, pretended, EVIL)
    evicted(ns, "short")
    assert stays(ns, "long")
    evicted(ns, "long")


@conformance(TAINTS + "Single Pod [Serial] removing taint cancels eviction [Disruptive]")
def test_a_taint_that_goes_evicts_nobody(cluster, ns, pretended):
    tolerating(ns, "saved", pretended, 12)
    taint(cluster, pretended, EVIL)
    tolerating(ns, "first", pretended, 1)
    evicted(ns, "first")
    taint(cluster, pretended)
    # Another taint, endured as long from now on, tells when the first would have been too long.
    other = {**EVIL, "value": "other"}
    toleration = {"key": EVIL["key"], "value": "other", "effect": "NoExecute", "tolerationSeconds": 13}
    ns.run("clock", *FOREVER, nodeName=pretended, tolerations=[toleration])
    cluster.patch(
        ns.pods("saved"),
        [{"op": "add", "path": "/spec/tolerations/-", "value": {**toleration, "tolerationSeconds": None}}],
        "json",
    )
    taint(cluster, pretended, other)
    evicted(ns, "clock")
    assert stays(ns, "saved")


@conformance(
    "[sig-scheduling] LimitRange should create a LimitRange with defaults and ensure pod has those defaults applied."
)
def test_limit_ranges_fill_in_and_refuse(cluster, ns, refused):
    amounts = {
        "min": {"cpu": "50m", "memory": "100Mi"},
        "max": {"cpu": "500m", "memory": "500Mi"},
        "defaultRequest": {"cpu": "100m", "memory": "200Mi"},
        "default": {"cpu": "500m", "memory": "500Mi"},
    }
    cluster.create(
        ns.at("v1", "limitranges"), {"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", **amounts}]}}
    )

    def filled():
        made = cluster.create(ns.pods(), pod("p", *FOREVER), dryRun="All")
        resources = made["spec"]["containers"][0].get("resources")
        assert resources == {"requests": amounts["defaultRequest"], "limits": amounts["default"]}

    eventually("the range counts", filled)
    own = {"resources": {"requests": {"cpu": "300m"}, "limits": {"memory": "300Mi"}}}
    made = cluster.create(ns.pods(), pod("p", *FOREVER, container=own), dryRun="All")
    expected = {
        "requests": {"cpu": "300m", "memory": "300Mi"},
        "limits": {"cpu": "500m", "memory": "300Mi"},
    }
    assert made["spec"]["containers"][0]["resources"] == expected
    for resources, why in [
        ({"requests": {"cpu": "10m"}}, "minimum cpu usage per Container is 50m, but request is 10m"),
        ({"limits": {"cpu": "600m"}}, "maximum cpu usage per Container is 500m, but limit is 600m"),
    ]:
        with refused(403, "Forbidden") as error:
            cluster.create(ns.pods(), pod("p", *FOREVER, container={"resources": resources}))
        assert why in error.error.message
    cluster.patch(ns.at("v1", "limitranges", "l"), {"spec": {"limits": [{"type": "Container", "min": {"cpu": "1m"}}]}})

    def small():
        cluster.create(
            ns.pods(), pod("p", *FOREVER, container={"resources": {"requests": {"cpu": "10m"}}}), dryRun="All"
        )

    eventually("the changed range counts", small)
