"""What keeps pods as many as wanted: their status and scale sub-resources, collections, and budgets for disruptions."""

import pytest

from cluster import condition, container, eventually, pod

conformance = pytest.mark.conformance

APPS = "apps/v1"
NEVER = {"type": "StatusUpdate", "status": "True", "reason": "Test", "message": "by hand"}
WHEN = "2026-01-01T00:00:00Z"


def workload(kind, name, replicas=1, **spec):
    labels = {"app": name}
    template = {
        "metadata": {"labels": labels},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container("c", "sleep", "1000000")]},
    }
    body = {"selector": {"matchLabels": labels}, "template": template, **spec}
    if kind != "DaemonSet":
        body["replicas"] = replicas
    return {
        "apiVersion": APPS,
        "kind": kind,
        "metadata": {"name": name, "labels": {**labels, "e2e": name}},
        "spec": body,
    }


STATUS = [
    pytest.param("Deployment", marks=conformance("[sig-apps] Deployment should validate Deployment Status endpoints")),
    pytest.param("ReplicaSet", marks=conformance("[sig-apps] ReplicaSet should validate Replicaset Status endpoints")),
    pytest.param(
        "StatefulSet",
        marks=conformance(
            "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should validate Statefulset Status endpoints"
        ),
    ),
    pytest.param(
        "DaemonSet", marks=conformance("[sig-apps] Daemon set [Serial] should verify changes to a daemon set status")
    ),
]


def plural(kind):
    return kind.lower() + "s"


@pytest.mark.parametrize("kind", STATUS)
def test_status_is_replaced_and_patched_by_itself(ns, kind):
    cluster = ns.cluster
    made = cluster.create(ns.at(APPS, plural(kind)), workload(kind, "told"))
    path = ns.at(APPS, plural(kind), "told")
    status = path + "/status"

    def observed():
        assert cluster.get(path)["status"].get("observedGeneration") == made["metadata"]["generation"]

    eventually("the controller has seen it", observed)
    with cluster.watch(ns.at(APPS, plural(kind)), fieldSelector="metadata.name=told") as watch:

        def add(found):
            found["status"].setdefault("conditions", []).append({**NEVER, "lastTransitionTime": WHEN})
            found["spec"]["template"]["spec"]["hostNetwork"] = True

        updated = cluster.update(status, add)
        assert condition(updated, "StatusUpdate") == "True"
        assert "hostNetwork" not in updated["spec"]["template"]["spec"], "the specification is not theirs to change"
        assert updated["metadata"]["generation"] == made["metadata"]["generation"]
        watch.until("MODIFIED", lambda found: condition(found, "StatusUpdate") == "True")
        patch = {"status": {"conditions": [{**NEVER, "type": "StatusPatched"}]}}
        cluster.patch(status, patch)
        watch.until("MODIFIED", lambda found: condition(found, "StatusPatched") == "True")


SCALE = [
    pytest.param(
        "Deployment", marks=conformance("[sig-apps] Deployment Deployment should have a working scale subresource")
    ),
    pytest.param(
        "ReplicaSet", marks=conformance("[sig-apps] ReplicaSet Replicaset should have a working scale subresource")
    ),
    pytest.param(
        "StatefulSet",
        marks=conformance(
            "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should have a working scale subresource"
        ),
    ),
]


@pytest.mark.parametrize("kind", SCALE)
def test_scale_changes_the_replicas_only(ns, kind):
    cluster = ns.cluster
    cluster.create(ns.at(APPS, plural(kind)), workload(kind, "scaled"))
    path = ns.at(APPS, plural(kind), "scaled")
    scale = cluster.get(path + "/scale")
    assert (scale["kind"], scale["apiVersion"], scale["spec"]["replicas"]) == ("Scale", "autoscaling/v1", 1)
    assert scale["status"]["selector"] == "app=scaled"

    def two(found):
        found["spec"]["replicas"] = 2

    assert cluster.update(path + "/scale", two)["spec"]["replicas"] == 2
    assert cluster.get(path)["spec"]["replicas"] == 2
    assert cluster.patch(path + "/scale", {"spec": {"replicas": 4}})["spec"]["replicas"] == 4
    assert cluster.get(path)["spec"]["replicas"] == 4


def old_workload(name, replicas=1):
    """A ReplicationController: the same but for its selector."""
    made = workload("ReplicaSet", name, replicas)
    made["spec"]["selector"] = made["spec"]["selector"]["matchLabels"]
    return {**made, "apiVersion": "v1", "kind": "ReplicationController"}


def ready(cluster, path, count):
    def reached():
        found = cluster.get(path)
        assert found["status"].get("readyReplicas", 0) == count
        return found

    return eventually(f"{count} of {path} are ready", reached)


@conformance("[sig-apps] ReplicationController should get and update a ReplicationController scale")
def test_a_replication_controller_s_scale(ns):
    cluster = ns.cluster
    cluster.create(ns.at("v1", "replicationcontrollers"), old_workload("old"))
    path = ns.at("v1", "replicationcontrollers", "old")
    ready(cluster, path, 1)

    def two(found):
        found["spec"]["replicas"] = 2

    assert cluster.get(path + "/scale")["spec"]["replicas"] == 1
    cluster.update(path + "/scale", two)
    ready(cluster, path, 2)


LIVES = [
    pytest.param(
        APPS,
        "deployments",
        lambda name: workload("Deployment", name),
        marks=conformance("[sig-apps] Deployment should run the lifecycle of a Deployment"),
    ),
    pytest.param(
        "v1",
        "replicationcontrollers",
        old_workload,
        marks=conformance("[sig-apps] ReplicationController should test the lifecycle of a ReplicationController"),
    ),
]


@pytest.mark.parametrize(("api", "resource", "body"), LIVES)
def test_a_workload_s_life_as_its_watchers_see_it(ns, api, resource, body):
    cluster = ns.cluster
    name = f"life-{ns.name}"
    path, labelled = ns.at(api, resource, name), {"labelSelector": f"e2e={name}"}
    with cluster.watch(ns.at(api, resource), **labelled) as watch:
        cluster.create(ns.at(api, resource), body(name))
        watch.until("ADDED")
        watch.until("MODIFIED", lambda found: found["status"].get("readyReplicas") == 1)
        grace = {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}}
        cluster.patch(path, {"metadata": {"labels": {"patched": "true"}}, **grace}, "strategic")
        watch.until("MODIFIED", lambda found: found["metadata"]["labels"].get("patched") == "true")
        cluster.patch(path + "/scale", {"spec": {"replicas": 2}})
        watch.until("MODIFIED", lambda found: found["status"].get("readyReplicas") == 2)

        def relabel(found):
            found["metadata"]["labels"]["updated"] = "true"

        cluster.update(path, relabel)
        watch.until("MODIFIED", lambda found: found["metadata"]["labels"].get("updated") == "true")
        assert cluster.get(path + "/status")["status"]["readyReplicas"] == 2
        told = {**NEVER, "lastTransitionTime": WHEN}
        cluster.patch(path + "/status", {"status": {"conditions": [told]}})
        watch.until("MODIFIED", lambda found: condition(found, "StatusUpdate") == "True")
        everywhere = path.replace(f"/namespaces/{ns.name}", "").rsplit("/", 1)[0]
        assert [found["metadata"]["name"] for found in cluster.items(everywhere, **labelled)] == [name]
        cluster.delete(ns.at(api, resource), {"propagationPolicy": "Background"}, **labelled)
        watch.until("DELETED")


SERVING = [
    pytest.param(
        APPS,
        "replicasets",
        lambda name: workload("ReplicaSet", name, 2),
        marks=conformance("[sig-apps] ReplicaSet should serve a basic image on each replica with a public image"),
    ),
    pytest.param(
        "v1",
        "replicationcontrollers",
        lambda name: old_workload(name, 2),
        marks=conformance(
            "[sig-apps] ReplicationController should serve a basic image on each replica with a public image"
        ),
    ),
]


@pytest.mark.parametrize(("api", "resource", "body"), SERVING)
def test_each_replica_serves(ns, api, resource, body):
    cluster = ns.cluster
    made = body("web")
    serve = "mkdir /www && hostname > /www/index.html && exec httpd -f -p 8080 -h /www"
    made["spec"]["template"]["spec"]["containers"] = [container("c", "sh", "-c", serve)]
    cluster.create(ns.at(api, resource), made)
    ready(cluster, ns.at(api, resource, "web"), 2)
    replicas = [found["metadata"]["name"] for found in cluster.items(ns.pods())]
    assert len(replicas) == 2
    for name in replicas:

        def answers(name=name):
            assert cluster.get(ns.pods(f"{name}:8080", "proxy") + "/") == name + "\n"

        eventually(f"{name} says who it is", answers)


COLLECTIONS = [
    pytest.param(
        "ReplicaSet", marks=conformance("[sig-apps] ReplicaSet should list and delete a collection of ReplicaSets")
    ),
    pytest.param(
        "StatefulSet",
        marks=conformance(
            "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should list, patch and delete a collection of StatefulSets"
        ),
    ),
    pytest.param(
        "DaemonSet",
        marks=conformance("[sig-apps] Daemon set [Serial] should list and delete a collection of DaemonSets"),
    ),
]


@pytest.mark.parametrize("kind", COLLECTIONS)
def test_collections_are_listed_patched_and_deleted(ns, kind):
    cluster = ns.cluster
    name = f"all-{ns.name}"
    cluster.create(ns.at(APPS, plural(kind)), workload(kind, name))
    everywhere = f"/apis/{APPS}/{plural(kind)}"
    assert [found["metadata"]["name"] for found in cluster.items(everywhere, labelSelector=f"e2e={name}")] == [name]
    patch = {
        "metadata": {"labels": {"patched": "true"}},
        "spec": {"template": {"spec": {"terminationGracePeriodSeconds": 10}}},
    }
    patched = cluster.patch(ns.at(APPS, plural(kind), name), patch, "strategic")
    assert patched["metadata"]["labels"]["patched"] == "true"
    assert patched["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 10
    cluster.delete(ns.at(APPS, plural(kind)), labelSelector=f"e2e={name}")
    assert cluster.items(everywhere, labelSelector=f"e2e={name}") == []

    def no_pods():
        assert cluster.items(ns.pods()) == []

    eventually("its pods are gone, too", no_pods)


@conformance("[sig-apps] ReplicaSet Replace and Patch tests")
def test_a_replica_set_is_patched_and_scaled(ns):
    cluster = ns.cluster
    cluster.create(ns.at(APPS, "replicasets"), workload("ReplicaSet", "rs"))
    path = ns.at(APPS, "replicasets", "rs")
    with cluster.watch(ns.at(APPS, "replicasets"), fieldSelector="metadata.name=rs") as watch:
        watch.until(None, lambda found: found["status"].get("readyReplicas") == 1)
        assert cluster.patch(path + "/scale", {"spec": {"replicas": 3}})["spec"]["replicas"] == 3
        watch.until("MODIFIED", lambda found: found["status"].get("readyReplicas") == 3)
        template = {"metadata": {"labels": {"patched": "true"}}, "spec": {"terminationGracePeriodSeconds": 1}}
        cluster.patch(
            path, {"metadata": {"labels": {"test-rs": "patched"}}, "spec": {"template": template}}, "strategic"
        )
        found = watch.until("MODIFIED", lambda found: found["metadata"]["labels"].get("test-rs") == "patched")
        assert found["spec"]["template"]["metadata"]["labels"] == {"app": "rs", "patched": "true"}


@conformance("[sig-apps] ControllerRevision [Serial] should manage the lifecycle of a ControllerRevision")
def test_revisions_of_a_daemon_set(ns):
    cluster = ns.cluster
    cluster.create(ns.at(APPS, "daemonsets"), workload("DaemonSet", "revised"))
    revisions = ns.at(APPS, "controllerrevisions")

    def one():
        [found] = cluster.items(revisions, labelSelector="app=revised") or [None]
        assert found
        return found

    first = eventually("its first revision", one)
    assert first["revision"] == 1
    path = f"{revisions}/{first['metadata']['name']}"
    label = {"metadata": {"labels": {"patched": "true"}}}
    assert cluster.patch(path, label, "strategic")["metadata"]["labels"]["patched"] == "true"
    second = {
        **first,
        "metadata": {
            "name": "made-by-hand",
            "labels": first["metadata"]["labels"],
            "ownerReferences": first["metadata"]["ownerReferences"],
        },
        "revision": 2,
    }
    cluster.create(revisions, second)
    cluster.delete(path)

    def again():
        found = cluster.items(revisions, labelSelector="app=revised")
        names = [each["metadata"]["name"] for each in found]
        assert names == ["made-by-hand"] and found[0]["revision"] == 2, found

    eventually("the other revision has taken its place", again)

    def changed(found):
        found["metadata"]["labels"]["updated"] = "true"

    assert cluster.update(f"{revisions}/made-by-hand", changed)["metadata"]["labels"]["updated"] == "true"
    listed = cluster.items(f"/apis/{APPS}/controllerrevisions", labelSelector="updated=true")
    assert ns.name in {found["metadata"]["namespace"] for found in listed}
    cluster.delete(revisions, labelSelector="updated=true")

    def made_anew():
        [found] = cluster.items(revisions, labelSelector="app=revised") or [None]
        assert found and found["metadata"]["name"] != "made-by-hand"

    eventually("the controller makes its revision anew", made_anew)


def budget(name, **spec):
    body = {"selector": {"matchLabels": {"foo": "bar"}}, **spec}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name}, "spec": body}


def processed(ns, name, **status):
    """The budget once its status has these figures."""

    def reached():
        found = ns.cluster.get(ns.at("policy/v1", "poddisruptionbudgets", name))
        assert found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]
        assert {key: found["status"][key] for key in status} == status
        return found

    return eventually(f"the budget {name} is processed", reached)


@conformance("[sig-apps] DisruptionController should create a PodDisruptionBudget")
def test_a_budget_is_made_changed_and_deleted(ns):
    cluster = ns.cluster
    budgets = ns.at("policy/v1", "poddisruptionbudgets")
    cluster.create(budgets, budget("one", minAvailable="1%"))
    processed(ns, "one")

    def two_percent(found):
        found["spec"]["minAvailable"] = "2%"

    cluster.update(f"{budgets}/one", two_percent)
    found = processed(ns, "one")
    assert (found["spec"]["minAvailable"], found["metadata"]["generation"]) == ("2%", 2)
    cluster.patch(f"{budgets}/one", {"spec": {"minAvailable": "3%"}}, "strategic")
    assert processed(ns, "one")["spec"]["minAvailable"] == "3%"
    cluster.delete(f"{budgets}/one")
    assert cluster.exists(f"{budgets}/one") is None


@conformance(
    "[sig-apps] DisruptionController should observe PodDisruptionBudget status updated",
    "[sig-apps] DisruptionController should update/patch PodDisruptionBudget status",
)
def test_a_budget_s_status(ns):
    cluster = ns.cluster
    budgets = ns.at("policy/v1", "poddisruptionbudgets")
    cluster.create(budgets, budget("told", minAvailable=1))
    for name in ("a", "b", "c"):
        ns.run(name, "sleep", "1000000", labels={"foo": "bar"})
    for name in ("a", "b", "c"):
        ns.pod_is(name, "Ready")
    processed(ns, "told", currentHealthy=3, desiredHealthy=1, disruptionsAllowed=2, expectedPods=3)
    when = "2026-01-01T00:00:00Z"

    def disrupted(found):
        found["status"]["disruptedPods"] = {"a": when}

    assert cluster.update(f"{budgets}/told/status", disrupted)["status"]["disruptedPods"] == {"a": when}
    patched = cluster.patch(f"{budgets}/told/status", {"status": {"disruptedPods": {"b": when}}})
    assert patched["status"]["disruptedPods"].get("b") == when


@conformance(
    "[sig-apps] DisruptionController Listing PodDisruptionBudgets for all namespaces should list and delete a collection of PodDisruptionBudgets"
)
def test_budgets_of_all_namespaces_and_a_collection(ns):
    cluster = ns.cluster
    budgets = ns.at("policy/v1", "poddisruptionbudgets")
    for name in ("one", "two", "three"):
        body = budget(name, minAvailable=1)
        body["metadata"]["labels"] = {"suite": ns.name}
        cluster.create(budgets, body)
    assert len(cluster.items("/apis/policy/v1/poddisruptionbudgets", labelSelector=f"suite={ns.name}")) == 3
    cluster.delete(budgets, labelSelector=f"suite={ns.name}")
    assert cluster.items(budgets) == []


@conformance("[sig-apps] DisruptionController should block an eviction until the PDB is updated to allow it")
def test_an_eviction_waits_for_the_budget(ns, refused):
    cluster = ns.cluster
    budgets = ns.at("policy/v1", "poddisruptionbudgets")
    cluster.create(budgets, budget("closed", minAvailable=1))
    cluster.create(ns.pods(), pod("held", "sleep", "1000000", labels={"foo": "bar"}))
    ns.pod_is("held", "Ready")
    processed(ns, "closed", currentHealthy=1, disruptionsAllowed=0)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "held"}}
    with refused(429, "TooManyRequests") as answer:
        cluster.create(ns.pods("held", "eviction"), eviction)
    assert answer.error.status["details"]["causes"][0]["reason"] == "DisruptionBudget"
    cluster.patch(f"{budgets}/closed", {"spec": {"minAvailable": 0}})
    processed(ns, "closed", disruptionsAllowed=1)
    cluster.create(ns.pods("held", "eviction"), eviction)
    ns.gone(ns.pods("held"))
