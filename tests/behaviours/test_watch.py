"""Changes as they happen, and what goes with a namespace."""

import pytest

from cluster import at, eventually

conformance = pytest.mark.conformance
WATCHERS = "[sig-api-machinery] Watchers should "
NAMESPACES = "[sig-api-machinery] Namespaces [Serial] should "


def labelled(name, label):
    return {"metadata": {"name": name, "labels": {"watch": label}}}


def kinds(watch):
    return [event["type"] for event in watch.seen]


@conformance(WATCHERS + "observe add, update, and delete watch notifications on configmaps")
def test_watches_see_what_they_select(cluster, ns):
    path = ns.at("v1", "configmaps")
    with (
        cluster.watch(path, labelSelector="watch=a") as a,
        cluster.watch(path, labelSelector="watch=b") as b,
        cluster.watch(path, labelSelector="watch in (a, b)") as both,
    ):
        cluster.create(path, labelled("one", "a"))
        for count in ("1", "2"):
            cluster.patch(path + "/one", {"data": {"mutation": count}})
        cluster.delete(path + "/one")
        cluster.create(path, labelled("two", "b"))
        cluster.delete(path + "/two")
        assert a.until("DELETED")["data"] == {"mutation": "2"}
        b.until("DELETED")
        both.until("DELETED"), both.until("DELETED")
        assert kinds(a) == ["ADDED", "MODIFIED", "MODIFIED", "DELETED"]
        assert kinds(b) == ["ADDED", "DELETED"]
        assert kinds(both) == kinds(a) + kinds(b)


@conformance(
    WATCHERS + "be able to start watching from a specific resource version",
    WATCHERS + "be able to restart watching from the last resource version observed by the previous watch",
)
def test_watches_go_on_where_others_ended(cluster, ns):
    path = ns.at("v1", "configmaps")
    cluster.create(path, labelled("one", "a"))
    first = cluster.patch(path + "/one", {"data": {"mutation": "1"}})
    second = cluster.patch(path + "/one", {"data": {"mutation": "2"}})
    cluster.delete(path + "/one")
    for start, expected in [(first, ["MODIFIED", "DELETED"]), (second, ["DELETED"])]:
        version = start["metadata"]["resourceVersion"]
        with cluster.watch(path, labelSelector="watch=a", resourceVersion=version) as watch:
            assert watch.until("DELETED")["data"] == {"mutation": "2"}
            assert kinds(watch) == expected


@conformance(WATCHERS + "observe an object deletion if it stops meeting the requirements of the selector")
def test_what_is_selected_no_longer_is_deleted_to_the_watch(cluster, ns):
    path = ns.at("v1", "configmaps")
    with cluster.watch(path, labelSelector="watch=a") as watch:
        cluster.create(path, labelled("one", "a"))
        for label in ("other", "a"):
            cluster.patch(path + "/one", {"metadata": {"labels": {"watch": label}}, "data": {"label": label}})
        cluster.patch(path + "/one", {"data": {"third": "time"}})
        cluster.delete(path + "/one")
        watch.until("DELETED"), watch.until("DELETED")
        assert kinds(watch) == ["ADDED", "DELETED", "ADDED", "MODIFIED", "DELETED"]


@conformance(WATCHERS + "receive events on concurrent watches in same order")
def test_watches_agree_on_the_order(cluster, ns):
    path = ns.at("v1", "configmaps")
    versions = []
    for i in range(10):
        versions.append(cluster.create(path, labelled(f"c{i}", "a"))["metadata"]["resourceVersion"])
    for i in range(10):
        cluster.patch(f"{path}/c{i}", {"data": {"i": str(i)}})
    cluster.delete(path, labelSelector="watch=a")
    orders = []
    for version in versions[:5]:
        with cluster.watch(path, labelSelector="watch=a", resourceVersion=version) as watch:
            for _ in range(10):
                watch.until("DELETED")
            orders.append([event["object"]["metadata"]["resourceVersion"] for event in watch.seen])
    for order in orders:
        assert order == orders[0][-len(order) :] and order == sorted(order, key=int)


@conformance(
    NAMESPACES + "ensure that all pods are removed when a namespace is deleted",
    NAMESPACES + "ensure that all services are removed when a namespace is deleted",
    NAMESPACES + "patch a Namespace",
)
def test_namespaces_take_all_along(cluster, ns):
    path = at("v1", "namespaces", name=f"{ns.name}-own")
    for round in range(2):
        cluster.create(at("v1", "namespaces"), {"metadata": {"name": f"{ns.name}-own"}})
        changed = cluster.patch(path, {"metadata": {"labels": {"testLabel": "testValue"}}}, "strategic")
        assert changed["metadata"]["labels"]["testLabel"] == "testValue"
        for resource in ("pods", "services"):
            inside = at("v1", resource, f"{ns.name}-own")
            assert not cluster.items(inside)
        if round:
            continue
        eventually("its account", lambda: cluster.get(at("v1", "serviceaccounts", f"{ns.name}-own", "default")))
        spec = {"containers": [{"name": "c", "image": "busybox"}], "schedulingGates": [{"name": "example.com/never"}]}
        cluster.create(at("v1", "pods", f"{ns.name}-own"), {"metadata": {"name": "p"}, "spec": spec})
        body = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}
        cluster.create(at("v1", "services", f"{ns.name}-own"), body)
        cluster.delete(path)
        ns.gone(path)
    cluster.delete(path)


@conformance("[sig-api-machinery] server version should find the server version")
def test_the_server_has_a_version(cluster):
    found = cluster.get("/version")
    assert found["major"] == "1" and found["minor"].isdigit()
