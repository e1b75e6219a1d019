"""New templates for old: Deployments, DaemonSets, StatefulSets; and who belongs to whom."""

import pytest

from cluster import at, container, eventually

conformance = pytest.mark.conformance
FOREVER = ("sleep", "3600")
APPS = "apps/v1"
DEPLOYMENT = "[sig-apps] Deployment "
DAEMONS = "[sig-apps] Daemon set [Serial] should "
STATEFUL = "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] "
GC = "[sig-api-machinery] Garbage collector should "


def template(labels, image="busybox", **spec):
    body = {"terminationGracePeriodSeconds": 1, "containers": [{**container("c", *FOREVER), "image": image}]}
    return {"metadata": {"labels": labels}, "spec": {**body, **spec}}


def workload(name, **spec):
    """Of pods with the label app=NAME."""
    labels = {"app": name}
    return {
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": labels}, "template": template(labels), **spec},
    }


def living(ns, app):
    found = ns.cluster.items(ns.pods(), labelSelector=f"app={app}")
    return [one for one in found if "deletionTimestamp" not in one["metadata"]]


def is_ready(pod):
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", []))


def marked(ns, app, count, mark=None):
    """Waits until exactly so many pods live, ready, each with the mark in its environment."""

    def all_are():
        found = living(ns, app)
        assert len(found) == count and all(map(is_ready, found))
        marks = [one["spec"]["containers"][0].get("env", [{}])[0].get("value") for one in found]
        assert marks == [mark] * count
        return found

    return eventually(f"{count} pods of {app} with {mark}", all_are)


def remark(ns, resource, name, mark, **spec):
    env = [{"name": "MARK", "value": mark}]
    changed = {"template": {"spec": {"containers": [{"name": "c", "env": env}]}}, **spec}
    return ns.cluster.patch(ns.at(APPS, resource, name), {"spec": changed}, "strategic")


@conformance(
    DEPLOYMENT + "RecreateDeployment should delete old pods and create new ones",
    DEPLOYMENT + "RollingUpdateDeployment should delete old pods and create new ones",
    DEPLOYMENT + "deployment should delete old replica sets",
)
@pytest.mark.parametrize("kind", ["Recreate", "RollingUpdate"])
def test_deployments_roll_out(cluster, ns, kind):
    body = workload("d", replicas=2, strategy={"type": kind}, revisionHistoryLimit=0)
    cluster.create(ns.at(APPS, "deployments"), body)
    first = {one["metadata"]["uid"] for one in marked(ns, "d", 2)}
    with cluster.watch(ns.pods(), labelSelector="app=d") as watch:
        remark(ns, "deployments", "d", "new")
        second = {one["metadata"]["uid"] for one in marked(ns, "d", 2, "new")}
        gone = next_ready = None
        for _ in first:
            gone = watch.until("DELETED")
        if kind == "Recreate":
            ready = [event["object"] for event in watch.seen if event["object"]["metadata"]["uid"] in second]
            assert not any(is_ready(one) for one in ready)
    assert not first & second and gone["metadata"]["uid"] in first

    def one_set():
        [found] = cluster.items(ns.at(APPS, "replicasets"), labelSelector="app=d")
        assert found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2"

    eventually("the old set goes", one_set)


@conformance(DEPLOYMENT + "deployment should support rollover")
def test_a_newer_template_overtakes(cluster, ns):
    cluster.create(ns.at(APPS, "deployments"), workload("d", replicas=1))
    marked(ns, "d", 1)
    cluster.patch(
        ns.at(APPS, "deployments", "d"), {"spec": {"template": template({"app": "d"}, "none.example.com/none")}}
    )

    def tried():
        assert len(living(ns, "d")) == 2

    eventually("a pod that cannot start", tried)
    cluster.patch(ns.at(APPS, "deployments", "d"), {"spec": {"template": template({"app": "d"})}})
    remark(ns, "deployments", "d", "newest")
    marked(ns, "d", 1, "newest")


@conformance(DEPLOYMENT + "deployment should support proportional scaling")
def test_scaling_is_shared_while_rolling_out(cluster, ns):
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}
    cluster.create(ns.at(APPS, "deployments"), workload("d", replicas=10, strategy=strategy))
    marked(ns, "d", 10)
    path = ns.at(APPS, "deployments", "d")
    cluster.patch(path, {"spec": {"template": template({"app": "d"}, "none.example.com/none")}})

    def sets():
        found = cluster.items(ns.at(APPS, "replicasets"), labelSelector="app=d")
        revision = "deployment.kubernetes.io/revision"
        found.sort(key=lambda one: int(one["metadata"]["annotations"][revision]))
        return [one["spec"]["replicas"] for one in found]

    def are(expected):
        def so():
            assert sets() == expected

        eventually(f"replicas {expected}", so)

    are([8, 5])
    cluster.patch(path, {"spec": {"replicas": 30}})
    are([20, 13])


@conformance(
    DAEMONS + "run and stop simple daemon",
    DAEMONS + "retry creating failed daemon pods",
    DAEMONS + "update pod when spec was updated and update strategy is RollingUpdate",
)
def test_daemons_run_everywhere(cluster, ns):
    nodes = [one["metadata"]["name"] for one in cluster.items(at("v1", "nodes")) if "addresses" in one["status"]]
    body = workload("d")
    body["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/os": "linux"}
    cluster.create(ns.at(APPS, "daemonsets"), body)
    found = marked(ns, "d", len(nodes))
    assert {one["spec"]["nodeName"] for one in found} == set(nodes)
    victim, failed = found[0]["metadata"], found[-1]["metadata"]
    cluster.delete(ns.pods(victim["name"]))
    ns.gone(ns.pods(victim["name"]))
    marked(ns, "d", len(nodes))
    cluster.patch(ns.pods(failed["name"], "status"), {"status": {"phase": "Failed"}})
    ns.gone(ns.pods(failed["name"]))
    marked(ns, "d", len(nodes))
    remark(ns, "daemonsets", "d", "new")
    marked(ns, "d", len(nodes), "new")
    revisions = cluster.items(ns.at(APPS, "controllerrevisions"), labelSelector="app=d")
    assert sorted(one["revision"] for one in revisions) == [1, 2]


@conformance(DAEMONS + "run and stop complex daemon")
def test_daemons_follow_labels(cluster, ns):
    node = next(one["metadata"]["name"] for one in cluster.items(at("v1", "nodes")) if "addresses" in one["status"])
    label, path = f"behaviours.ironlet.dev/{ns.name}", at("v1", "nodes", name=node)
    body = workload("d")
    body["spec"]["template"]["spec"]["nodeSelector"] = {label: "blue"}
    cluster.create(ns.at(APPS, "daemonsets"), body)
    try:
        for color, count in [("none", 0), ("blue", 1), ("green", 0)]:
            cluster.patch(path, {"metadata": {"labels": {label: color}}})
            marked(ns, "d", count)
        changed = {"template": {"spec": {"nodeSelector": {label: "green"}}}}
        cluster.patch(ns.at(APPS, "daemonsets", "d"), {"spec": changed})
        [found] = marked(ns, "d", 1)
        assert found["spec"]["nodeName"] == node
    finally:
        cluster.patch(path, {"metadata": {"labels": {label: None}}})


@conformance(DAEMONS + "rollback without unnecessary restarts")
def test_daemons_that_did_not_change_are_not_restarted(cluster, ns):
    body = workload("d", updateStrategy={"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}})
    cluster.create(ns.at(APPS, "daemonsets"), body)
    count = len([one for one in cluster.items(at("v1", "nodes")) if "addresses" in one["status"]])
    before = {one["metadata"]["uid"] for one in marked(ns, "d", count)}
    path = ns.at(APPS, "daemonsets", "d")
    cluster.patch(path, {"spec": {"template": template({"app": "d"}, "none.example.com/none")}})

    def stuck():
        found = living(ns, "d")
        assert any(one["spec"]["containers"][0]["image"].startswith("none.") for one in found)

    eventually("a daemon that cannot start", stuck)
    kept = before & {one["metadata"]["uid"] for one in living(ns, "d")}
    cluster.patch(path, {"spec": {"template": template({"app": "d"})}})
    after = {one["metadata"]["uid"] for one in marked(ns, "d", count)}
    assert kept and kept <= after


def stateful(ns, replicas, **spec):
    ns.cluster.create(
        ns.at("v1", "services"),
        {"metadata": {"name": "s"}, "spec": {"clusterIP": "None", "selector": {"app": "s"}, "ports": [{"port": 80}]}},
    )
    body = workload("s", replicas=replicas, serviceName="s", **spec)
    probe = {"exec": {"command": ["test", "!", "-e", "/tmp/sick"]}, "periodSeconds": 1}
    body["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = probe
    return ns.cluster.create(ns.at(APPS, "statefulsets"), body)


@conformance(STATEFUL + "Scaling should happen in predictable order and halt if any stateful pod is unhealthy [Slow]")
def test_members_come_and_go_in_order(cluster, ns):
    stateful(ns, 1)
    marked(ns, "s", 1)
    with cluster.watch(ns.pods(), labelSelector="app=s") as watch:
        ns.exec("s-0", "touch", "/tmp/sick")
        watch.until("MODIFIED", lambda found: not is_ready(found))
        path = ns.at(APPS, "statefulsets", "s")
        cluster.patch(path, {"spec": {"replicas": 3}})

        def observed():
            assert cluster.get(path)["status"]["observedGeneration"] == 2

        eventually("the controller has seen it", observed)
        assert len(living(ns, "s")) == 1
        ns.exec("s-0", "rm", "/tmp/sick")
        for name in ("s-1", "s-2"):
            watch.until("ADDED", lambda found: found["metadata"]["name"] == name)
        marked(ns, "s", 3)
        cluster.patch(path, {"spec": {"replicas": 0}})
        for name in ("s-2", "s-1", "s-0"):
            assert watch.until("DELETED")["metadata"]["name"] == name


@conformance(STATEFUL + "Burst scaling should run to completion even with unhealthy pods [Slow]")
def test_members_may_come_at_once(cluster, ns):
    stateful(ns, 1, podManagementPolicy="Parallel")
    marked(ns, "s", 1)
    ns.exec("s-0", "touch", "/tmp/sick")

    def sick():
        assert not is_ready(cluster.get(ns.pods("s-0")))

    eventually("an unhealthy member", sick)
    path = ns.at(APPS, "statefulsets", "s")
    for replicas in (3, 0):
        cluster.patch(path, {"spec": {"replicas": replicas}})

        def reached():
            assert len(living(ns, "s")) == replicas

        eventually(f"{replicas} members", reached)


@conformance(
    STATEFUL + "should perform rolling updates and roll backs of template modifications",
    STATEFUL + "should perform canary updates and phased rolling updates of template modifications",
)
def test_members_are_updated_from_the_last(cluster, ns):
    stateful(ns, 3)
    marked(ns, "s", 3)
    path = ns.at(APPS, "statefulsets", "s")

    def phased(partition):
        return {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}}}

    def marks(*expected):
        def so():
            found = sorted(living(ns, "s"), key=lambda one: one["metadata"]["name"])
            assert all(map(is_ready, found))
            assert [one["spec"]["containers"][0].get("env", [{}])[0].get("value") for one in found] == list(expected)
            return [one["metadata"]["labels"]["controller-revision-hash"] for one in found]

        return eventually(f"marks {expected}", so)

    with cluster.watch(ns.pods(), labelSelector="app=s") as watch:
        remark(ns, "statefulsets", "s", "new", **phased(2))
        hashes = marks(None, None, "new")
        assert watch.until("DELETED")["metadata"]["name"] == "s-2"
        cluster.delete(ns.pods("s-0")), cluster.delete(ns.pods("s-2"))
        assert {watch.until("DELETED")["metadata"]["name"] for _ in range(2)} == {"s-0", "s-2"}
        assert marks(None, None, "new") == hashes
        cluster.patch(path, {"spec": phased(0)})
        marks("new", "new", "new")
        assert [watch.until("DELETED")["metadata"]["name"] for _ in range(2)] == ["s-1", "s-0"]
        remark(ns, "statefulsets", "s", None)
        marks(None, None, None)
        assert [watch.until("DELETED")["metadata"]["name"] for _ in range(3)] == ["s-2", "s-1", "s-0"]

    def settled():
        status = cluster.get(path)["status"]
        assert status["currentRevision"] == status["updateRevision"]

    eventually("one revision", settled)


@conformance(STATEFUL + "Should recreate evicted statefulset")
def test_a_member_that_cannot_run_is_made_anew(cluster, ns):
    node = next(one["metadata"]["name"] for one in cluster.items(at("v1", "nodes")) if "addresses" in one["status"])
    ports = [{"containerPort": 54324, "hostPort": 54324}]
    holder = template({"app": "holder"})["spec"]
    holder["containers"][0]["ports"] = ports
    cluster.create(ns.pods(), {"metadata": {"name": "holder"}, "spec": {**holder, "nodeName": node}})
    ns.pod_is("holder", "Ready")
    body = workload("s", replicas=1, serviceName="s")
    body["spec"]["template"]["spec"]["nodeName"] = node
    body["spec"]["template"]["spec"]["containers"][0]["ports"] = ports
    with cluster.watch(ns.pods(), labelSelector="app=s") as watch:
        cluster.create(ns.at(APPS, "statefulsets"), body)
        watch.until("MODIFIED", lambda found: found["status"].get("phase") == "Failed")
        watch.until("DELETED")
        cluster.delete(ns.pods("holder"))
        watch.until("MODIFIED", is_ready)


def controller(name, api="v1", replicas=2):
    body = workload(name, replicas=replicas)
    if api == "v1":
        body["spec"]["selector"] = {"app": name}
    return body


@conformance(
    "[sig-apps] ReplicationController should adopt matching pods on creation",
    "[sig-apps] ReplicationController should release no longer matching pods",
    "[sig-apps] ReplicaSet should adopt matching pods on creation and release no longer matching pods",
)
@pytest.mark.parametrize(("api", "resource"), [("v1", "replicationcontrollers"), (APPS, "replicasets")])
def test_pods_are_adopted_and_released(cluster, ns, api, resource):
    orphan = {"metadata": {"name": "orphan", "labels": {"app": "c"}}, "spec": template({})["spec"]}
    cluster.create(ns.pods(), orphan)
    made = cluster.create(ns.at(api, resource), controller("c", api, 1))

    def owned(wanted):
        def so():
            owners = cluster.get(ns.pods("orphan"))["metadata"].get("ownerReferences", [])
            assert [one["uid"] for one in owners if one["controller"]] == ([made["metadata"]["uid"]] if wanted else [])

        eventually(f"adopted: {wanted}", so)

    owned(True)
    cluster.patch(ns.pods("orphan"), {"metadata": {"labels": {"app": "other"}}})
    owned(False)
    assert marked(ns, "c", 1)[0]["metadata"]["name"] != "orphan"


@conformance(
    "[sig-apps] ReplicationController should surface a failure condition on a common issue like exceeded quota"
)
def test_what_a_quota_forbids_is_a_condition(cluster, ns):
    cluster.create(ns.at("v1", "resourcequotas"), {"metadata": {"name": "q"}, "spec": {"hard": {"pods": "2"}}})

    def counted():
        assert "pods" in cluster.get(ns.at("v1", "resourcequotas", "q"))["status"]["hard"]

    eventually("the quota counts", counted)
    path = ns.at("v1", "replicationcontrollers", "c")
    cluster.create(ns.at("v1", "replicationcontrollers"), controller("c", replicas=3))

    def failing(wanted):
        def so():
            conditions = cluster.get(path)["status"].get("conditions", [])
            found = [one for one in conditions if one["type"] == "ReplicaFailure"]
            assert [one["reason"] for one in found] == (["FailedCreate"] if wanted else [])

        eventually(f"ReplicaFailure: {wanted}", so)

    failing(True)
    cluster.patch(path, {"spec": {"replicas": 2}})
    failing(False)


@conformance(
    GC + "delete pods created by rc when not orphaning",
    GC + "orphan pods created by rc if delete options say so [Serial]",
    GC + "keep the rc around until all its pods are deleted if the deleteOptions says so [Serial]",
)
@pytest.mark.parametrize("policy", ["Background", "Orphan", "Foreground"])
def test_dependents_go_as_told(cluster, ns, policy):
    path = ns.at("v1", "replicationcontrollers")
    cluster.create(path, controller("c"))
    pods = marked(ns, "c", 2)
    with cluster.watch(path) as watch:
        cluster.delete(path + "/c", {"propagationPolicy": policy})
        watch.until("DELETED")
    left = [one for one in pods if cluster.exists(ns.pods(one["metadata"]["name"]))]
    if policy == "Foreground":
        assert not left
    elif policy == "Orphan":
        assert len(left) == 2
        assert not any("ownerReferences" in one["metadata"] for one in cluster.items(ns.pods()))
    else:
        for one in pods:
            ns.gone(ns.pods(one["metadata"]["name"]))


@conformance(
    GC + "delete RS created by deployment when not orphaning",
    GC + "orphan RS created by deployment when deleteOptions.PropagationPolicy is Orphan",
)
@pytest.mark.parametrize("policy", ["Background", "Orphan"])
def test_sets_go_with_their_deployment_unless_orphaned(cluster, ns, policy):
    cluster.create(ns.at(APPS, "deployments"), workload("d", replicas=1))

    def made():
        [found] = cluster.items(ns.at(APPS, "replicasets"))
        return found["metadata"]["name"]

    name = eventually("a replica set", made)
    cluster.delete(ns.at(APPS, "deployments", "d"), {"propagationPolicy": policy})
    path = ns.at(APPS, "replicasets", name)
    if policy == "Background":
        ns.gone(path)
    else:
        ns.gone(ns.at(APPS, "deployments", "d"))
        assert "ownerReferences" not in cluster.get(path)["metadata"]


def owning(pod, *owners):
    found = [
        {
            "apiVersion": "v1",
            "kind": kind,
            "name": one["metadata"]["name"],
            "uid": one["metadata"]["uid"],
            "blockOwnerDeletion": True,
        }
        for kind, one in owners
    ]
    return {"metadata": {"name": pod["metadata"]["name"], "ownerReferences": found}}


@conformance(GC + "not be blocked by dependency circle")
def test_circles_of_owners_end(cluster, ns):
    path = ns.at("v1", "configmaps")
    made = [cluster.create(path, {"metadata": {"name": name}}) for name in ("a", "b", "c")]
    for one, owner in zip(made, [made[2], made[0], made[1]]):
        cluster.patch(f"{path}/{one['metadata']['name']}", owning(one, ("ConfigMap", owner)))
    cluster.delete(path + "/a", {"propagationPolicy": "Foreground"})
    for name in ("a", "b", "c"):
        ns.gone(f"{path}/{name}")


@conformance(
    GC
    + "not delete dependents that have both valid owner and owner that's waiting for dependents to be deleted [Serial]"
)
def test_one_owner_left_is_enough(cluster, ns):
    path = ns.at("v1", "configmaps")
    going, staying, shared, own = (
        cluster.create(path, {"metadata": {"name": name}}) for name in ("going", "staying", "shared", "own")
    )
    cluster.patch(path + "/shared", owning(shared, ("ConfigMap", going), ("ConfigMap", staying)))
    cluster.patch(path + "/own", owning(own, ("ConfigMap", going)))
    cluster.delete(path + "/going", {"propagationPolicy": "Foreground"})
    ns.gone(path + "/going")
    assert cluster.exists(path + "/own") is None
    [left] = cluster.get(path + "/shared")["metadata"]["ownerReferences"]
    assert left["name"] == "staying"


@conformance("[sig-architecture] Conformance Tests should have at least two untainted nodes")
def test_two_nodes_take_pods(cluster):
    fit = [one for one in cluster.items(at("v1", "nodes")) if not one["spec"].get("taints")]
    assert len(fit) >= 2
