"""Pods as objects: how they come, change, are told of and go."""

import json
import ssl
import urllib.parse

import pytest
import websocket

from cluster import at, condition, container, eventually, pod

conformance = pytest.mark.conformance
GENERATION = "[sig-node] Pods Extended (pod generation) Pod Generation "
FOREVER = ("sleep", "3600")


def observed(ns, name, generation):
    def caught_up():
        assert ns.cluster.get(ns.pods(name))["status"]["observedGeneration"] == generation

    eventually(f"the kubelet has seen generation {generation}", caught_up)


@conformance(GENERATION + "pod generation should start at 1 and increment per update [MinimumKubeletVersion:1.34]")
def test_each_change_of_what_is_wanted_is_a_generation(ns):
    made = ns.run("counted", *FOREVER, initContainers=[container("init", "true")])
    assert made["metadata"]["generation"] == 1
    ns.pod_is("counted", "Running")
    image = made["spec"]["containers"][0]["image"]
    toleration = {"key": "foo", "operator": "Equal", "value": "bar", "effect": "NoSchedule"}
    expected = 1
    for raises, change in [
        (False, lambda found: None),
        (True, lambda found: found["spec"]["tolerations"].append(toleration)),
        (True, lambda found: found["spec"].update(activeDeadlineSeconds=5000)),
        (True, lambda found: found["spec"]["containers"][0].update(image="docker.io/library/" + image)),
        (True, lambda found: found["spec"]["initContainers"][0].update(image="docker.io/library/" + image)),
        (False, lambda found: found["metadata"].update(annotations={"key": "value"})),
        (False, lambda found: found["metadata"].update(generation=1)),
    ]:
        expected += raises
        assert ns.cluster.update(ns.pods("counted"), change)["metadata"]["generation"] == expected
        observed(ns, "counted", expected)
    for found in ns.cluster.get(ns.pods("counted"))["status"]["conditions"]:
        if found["type"] != "PodScheduled":
            assert found["observedGeneration"] == expected, found


@conformance(GENERATION + "custom-set generation on new pods and graceful delete")
def test_generations_are_the_servers_and_deletion_is_one(ns):
    body = pod("own", *FOREVER)
    body["metadata"]["generation"] = 100
    assert ns.cluster.create(ns.pods(), body)["metadata"]["generation"] == 1
    ns.pod_is("own", "Running")
    going = ns.cluster.delete(ns.pods("own"), gracePeriodSeconds="60")
    assert going["metadata"]["generation"] == 2
    assert going["metadata"]["deletionGracePeriodSeconds"] == 60
    assert ns.cluster.get(ns.pods("own"))["metadata"]["generation"] == 2
    ns.cluster.delete(ns.pods("own"), gracePeriodSeconds="0")


@conformance(
    GENERATION
    + "issue 500 podspec updates and verify generation and observedGeneration eventually converge [MinimumKubeletVersion:1.34]"
)
def test_the_kubelet_keeps_up_with_500_updates(ns):
    found = ns.run("busy", *FOREVER, activeDeadlineSeconds=5000)
    ns.pod_is("busy", "Running")

    def sooner(found):
        found["spec"]["activeDeadlineSeconds"] -= 1

    for _ in range(499):
        found = ns.cluster.update(ns.pods("busy"), sooner)
    assert found["metadata"]["generation"] == 500
    observed(ns, "busy", 500)


@conformance(
    "[sig-node] Pods should be submitted and removed [NodeConformance]",
    "[sig-node] Pods should get a host IP [NodeConformance]",
)
def test_a_watch_sees_a_pod_come_and_go(ns):
    selector = {"labelSelector": "name=watched"}
    listed = ns.cluster.get(ns.pods(), **selector)
    assert listed["items"] == []
    with ns.cluster.watch(ns.pods(), resourceVersion=listed["metadata"]["resourceVersion"], **selector) as watch:
        command = ("sh", "-c", "trap exit TERM; sleep 3600 & wait")
        ns.cluster.create(ns.pods(), pod("watched", *command, labels={"name": "watched"}))
        assert len(ns.cluster.items(ns.pods(), **selector)) == 1
        watch.until("ADDED")
        running = watch.until("MODIFIED", lambda found: found["status"]["phase"] == "Running")
        node = ns.cluster.get(at("v1", "nodes", name=running["spec"]["nodeName"]))
        addresses = {address["address"] for address in node["status"]["addresses"]}
        assert running["status"]["hostIP"] in addresses
        ns.cluster.delete(ns.pods("watched"), {"gracePeriodSeconds": 30})
        gone = watch.until("DELETED")
    assert gone["metadata"]["deletionTimestamp"]
    assert gone["spec"]["terminationGracePeriodSeconds"] != 0
    assert ns.cluster.items(ns.pods(), **selector) == []


@conformance("[sig-node] Pods should be updated [NodeConformance]")
def test_a_running_pods_labels_change(ns):
    ns.run("labelled", *FOREVER)
    ns.pod_is("labelled", "Running")
    ns.cluster.update(ns.pods("labelled"), lambda found: found["metadata"].update(labels={"time": "now"}))
    assert [found["metadata"]["name"] for found in ns.cluster.items(ns.pods(), labelSelector="time=now")] == [
        "labelled"
    ]
    ns.pod_is("labelled", "Running")


@conformance("[sig-node] Pods should allow activeDeadlineSeconds to be updated [NodeConformance]")
def test_a_deadline_can_come_later(ns):
    ns.run("timed", *FOREVER)
    ns.pod_is("timed", "Running")
    ns.cluster.update(ns.pods("timed"), lambda found: found["spec"].update(activeDeadlineSeconds=2))
    status = ns.pod_is("timed", "Failed")["status"]
    assert (status["reason"], status["message"]) == (
        "DeadlineExceeded",
        "Pod was active on the node longer than the specified deadline",
    )


@conformance("[sig-node] Pods should contain environment variables for services [NodeConformance]")
def test_services_are_in_the_environment(ns):
    port = {"port": 8765, "targetPort": 8080}
    service = {"metadata": {"name": "fooservice"}, "spec": {"selector": {"name": "server"}, "ports": [port]}}
    ip = ns.cluster.create(ns.at("v1", "services"), service)["spec"]["clusterIP"]
    listing = eventually("the node knows the service", lambda: has_service(ns))
    for line in [
        f"FOOSERVICE_SERVICE_HOST={ip}",
        "FOOSERVICE_SERVICE_PORT=8765",
        f"FOOSERVICE_PORT=tcp://{ip}:8765",
        "FOOSERVICE_PORT_8765_TCP_PORT=8765",
        "FOOSERVICE_PORT_8765_TCP_PROTO=tcp",
        f"FOOSERVICE_PORT_8765_TCP=tcp://{ip}:8765",
        f"FOOSERVICE_PORT_8765_TCP_ADDR={ip}",
    ]:
        assert line in listing


def has_service(ns):
    """A pod's environment is of the moment it starts, when its node may not have heard of the service."""
    made = ns.cluster.create(ns.pods(), {**pod("x", "env"), "metadata": {"generateName": "env-"}})["metadata"]["name"]
    ns.pod_is(made, "Succeeded")
    listing = ns.log(made).splitlines()
    assert any(line.startswith("FOOSERVICE") for line in listing), listing
    return listing


@conformance("[sig-node] Pods should delete a collection of pods")
def test_a_collection_of_pods_goes_at_once(ns):
    for name in ("one", "two", "three"):
        ns.cluster.create(ns.pods(), pod(name, *FOREVER, labels={"type": "Testing"}))
    ns.run("other", *FOREVER)
    assert len(ns.cluster.items(ns.pods(), labelSelector="type=Testing")) == 3
    ns.cluster.delete(ns.pods(), {"gracePeriodSeconds": 1}, labelSelector="type=Testing")

    def gone():
        assert [found["metadata"]["name"] for found in ns.cluster.items(ns.pods())] == ["other"]

    eventually("only the other pod is left", gone)


@conformance("[sig-node] Pods should run through the lifecycle of Pods and PodStatus")
def test_a_pod_and_its_status_through_their_life(ns):
    selector = {"labelSelector": "test-pod-static=true"}
    with ns.cluster.watch(ns.pods(), **selector) as watch:
        ns.cluster.create(ns.pods(), pod("life", *FOREVER, labels={"test-pod-static": "true"}))
        ready = watch.until(None, lambda found: condition(found, "Ready") == "True")
        image = "docker.io/library/" + ready["spec"]["containers"][0]["image"]
        change = {
            "metadata": {"labels": {"test-pod": "patched"}},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": image}]},
        }
        ns.cluster.patch(ns.pods("life"), change, "strategic")
        patched = watch.until("MODIFIED", lambda found: found["metadata"]["labels"].get("test-pod") == "patched")
        assert patched["spec"]["containers"][0]["image"] == image

        def unready(found):
            next(one for one in found["status"]["conditions"] if one["type"] == "Ready")["status"] = "False"

        assert condition(ns.cluster.update(ns.pods("life", "status"), unready), "Ready") == "False"
        ns.cluster.delete(ns.pods(), {"gracePeriodSeconds": 1}, **selector)
        watch.until("DELETED")


@conformance("[sig-node] Pods should patch a pod status")
def test_a_pods_status_is_patched(ns):
    ns.run("patched", *FOREVER)
    ns.pod_is("patched", "Ready")
    status = {"message": "Patched by a test", "reason": "Behaviour"}
    found = ns.cluster.patch(ns.pods("patched", "status"), {"status": status}, "strategic")["status"]
    assert {key: found[key] for key in status} == status
    assert found["phase"] == "Running"


@conformance(
    "[sig-node] Pods Extended Pods Set QOS Class should be set on Pods with matching resource requests and limits for memory and cpu"
)
@pytest.mark.parametrize(
    ("requests", "limits", "expected"),
    [
        ({"cpu": "100m", "memory": "100Mi"}, {"cpu": "100m", "memory": "100Mi"}, "Guaranteed"),
        ({"cpu": "100m"}, {}, "Burstable"),
        ({}, {}, "BestEffort"),
    ],
)
def test_requests_and_limits_make_the_qos_class(ns, requests, limits, expected):
    made = ns.run("class", *FOREVER, container={"resources": {"requests": requests, "limits": limits}})
    assert made["status"]["qosClass"] == expected
    assert ns.cluster.get(ns.pods("class"))["status"]["qosClass"] == expected


def frames(ns, path, protocol, **query):
    """Messages of a WebSocket until the server closes it."""
    cluster = ns.cluster
    url = cluster.server.replace("https", "wss") + path + "?" + urllib.parse.urlencode(query, doseq=True)
    tls = {"ca_certs": cluster.http.verify, "certfile": cluster.http.cert[0], "keyfile": cluster.http.cert[1]}
    link = websocket.create_connection(
        url, sslopt={**tls, "cert_reqs": ssl.CERT_REQUIRED}, subprotocols=[protocol], timeout=30
    )
    assert link.getsubprotocol() == protocol
    try:
        while True:
            opcode, data = link.recv_data()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                return
            yield data
    except websocket.WebSocketConnectionClosedException:
        return
    finally:
        link.close()


@conformance("[sig-node] Pods should support remote command execution over websockets [NodeConformance]")
def test_commands_run_over_websockets(ns):
    ns.run("server", *FOREVER)
    ns.pod_is("server", "Running")
    query = {"container": "c", "stdout": 1, "stderr": 1, "command": ["echo", "remote execution test"]}
    found = list(frames(ns, ns.pods("server", "exec"), "channel.k8s.io", **query))
    assert all(frame[0] == 1 or len(frame) == 1 for frame in found), found
    assert b"".join(frame[1:] for frame in found) == b"remote execution test\n"


@conformance("[sig-node] Pods should support retrieving logs from the container over websockets [NodeConformance]")
def test_logs_come_over_websockets(ns):
    ns.run("alive", "sh", "-c", "echo container is alive; sleep 3600")
    ns.pod_is("alive", "Running")
    eventually("it wrote", lambda: json.dumps(ns.log("alive")).index("alive"))
    assert b"".join(frames(ns, ns.pods("alive", "log"), "binary.k8s.io", container="c")) == b"container is alive\n"


def test_what_cannot_be_created_is_not_tried_again_for_every_event(ns):
    """Upstream's pod workers wait ten seconds and more after a failure."""
    secret = {"secretKeyRef": {"name": "none", "key": "k"}}
    ns.run("broken", *FOREVER, container={"env": [{"name": "A", "valueFrom": secret}]})

    def failures():
        query = "involvedObject.name=broken,reason=Failed"
        found = ns.cluster.items(ns.at("v1", "events"), fieldSelector=query)
        assert found
        return sum(event["count"] for event in found)

    assert eventually("it fails", failures) == 1
    for number in range(50):
        ns.cluster.patch(ns.pods("broken", "status"), {"status": {"message": str(number)}})
    assert failures() == 1
    ns.cluster.create(ns.at("v1", "secrets"), {"metadata": {"name": "none"}, "stringData": {"k": "v"}})
    ns.pod_is("broken", "Running")
