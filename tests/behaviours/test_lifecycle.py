"""What happens around a container's main process: init containers, hooks, probes, runtime classes."""

import pytest

from cluster import at, condition, container, eventually, pod

conformance = pytest.mark.conformance
FOREVER = ("sleep", "3600")
PORT = 8080
INIT = "[sig-node] InitContainer [NodeConformance] should "
HOOK = "[sig-node] Container Lifecycle Hook when create a pod with lifecycle hook should execute {} hook properly [NodeConformance]"
PROBE = "[sig-node] Probing container "
# A request is heard before it is answered: lines until an empty one; of HTTP/2 what opens the first stream at least.
REQUEST = "while read -r line && [ ${#line} -gt 1 ]; do :; done"
CALL = "dd bs=1 count=90 > /dev/null 2>&1"


def inits(*scripts):
    return [container(f"init-{i}", "sh", "-c", script) for i, script in enumerate(scripts)]


@conformance(
    INIT + "invoke init containers on a RestartNever pod", INIT + "invoke init containers on a RestartAlways pod"
)
@pytest.mark.parametrize("policy", ["Never", "Always"])
def test_init_containers_run_one_after_the_other(ns, policy):
    ns.run("p", *FOREVER, restartPolicy=policy, initContainers=inits("true", "true"))
    status = ns.pod_is("p", "Ready")["status"]
    first, second = (one["state"]["terminated"] for one in status["initContainerStatuses"])
    assert first["exitCode"] == second["exitCode"] == 0
    assert first["finishedAt"] <= second["startedAt"] <= status["containerStatuses"][0]["state"]["running"]["startedAt"]
    assert all(one["ready"] and one["restartCount"] == 0 for one in status["initContainerStatuses"])
    assert condition({"status": status}, "Initialized") == "True"


@conformance(INIT + "not start app containers and fail the pod if init containers fail on a RestartNever pod")
def test_a_failing_init_container_fails_the_pod(ns):
    ns.run("p", *FOREVER, initContainers=inits("true", "false", "true"))
    found = ns.pod_is("p", "Failed")
    states = [one["state"] for one in found["status"]["initContainerStatuses"]]
    assert states[1]["terminated"]["exitCode"] == 1
    assert states[2]["waiting"]["reason"] == "PodInitializing"
    assert found["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "PodInitializing"
    assert not found["status"]["containerStatuses"][0]["started"]
    assert condition(found, "Initialized") == "False"
    reasons = [one["reason"] for one in found["status"]["conditions"] if one["type"] == "Initialized"]
    assert reasons == ["ContainersNotInitialized"]


@conformance(INIT + "not start app containers if init containers fail on a RestartAlways pod")
def test_a_failing_init_container_is_tried_again(cluster, ns):
    ns.run("p", *FOREVER, restartPolicy="Always", initContainers=inits("false", "true"))

    def tried():
        found = cluster.get(ns.pods("p"))
        assert found["status"]["initContainerStatuses"][0]["restartCount"] >= 2
        return found

    found = eventually("init containers start again", tried)
    assert found["status"]["phase"] == "Pending"
    assert found["status"]["initContainerStatuses"][1]["state"]["waiting"]["reason"] == "PodInitializing"
    assert found["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "PodInitializing"
    message = next(one["message"] for one in found["status"]["conditions"] if one["type"] == "Initialized")
    assert message == "containers with incomplete status: [init-0 init-1]"


@pytest.fixture
def listener(ns):
    """A pod that answers every request, and the paths that it was asked for."""
    answer = f"read -r method path version; {REQUEST}; echo $path >> /tmp/asked; printf 'HTTP/1.0 200 OK\\r\\n\\r\\n'"
    ns.run("listener", "nc", "-ll", "-p", str(PORT), "-e", "sh", "-c", answer)
    address = ns.pod_is("listener", "Ready")["status"]["podIP"]

    class Listener:
        host = address

        @staticmethod
        def was_asked_for(path):
            def asked():
                assert path in ns.exec("listener", "cat", "/tmp/asked").split()

            eventually(f"a request for {path}", asked)

    return Listener


@conformance(
    *(HOOK.format(f"{when} {how}") for when in ("poststart", "prestop") for how in ("exec", "http")),
    "[sig-node] PreStop should call prestop when killing a pod",
)
@pytest.mark.parametrize("how", ["exec", "http"])
@pytest.mark.parametrize("when", ["postStart", "preStop"])
def test_hooks_run(cluster, ns, listener, when, how):
    if how == "exec":
        hook = {"exec": {"command": ["wget", "-q", "-O", "-", f"http://{listener.host}:{PORT}/told"]}}
    else:
        hook = {"httpGet": {"path": "/told", "host": listener.host, "port": PORT}}
    ns.run("p", *FOREVER, container={"lifecycle": {when: hook}}, terminationGracePeriodSeconds=20)
    ns.pod_is("p", "Ready")
    if when == "preStop":
        cluster.delete(ns.pods("p"), {"gracePeriodSeconds": 20})
    listener.was_asked_for("/told")


def http(status):
    return f"HTTP/1.1 {status} Any\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


def grpc(health):
    """How a server of grpc.health.v1 answers the first call on a connection (RFC 9113, RFC 7541)."""

    def frame(kind, flags, stream, payload=b""):
        return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload

    headers = b"\x88\x5f\x10application/grpc"
    message = b"\0\0\0\0\x02\x08" + bytes([health])
    settings = frame(4, 0, 0) + frame(4, 1, 0)
    return settings + frame(1, 4, 1, headers) + frame(0, 0, 1, message) + frame(1, 5, 1, b"\0\x0bgrpc-status\x010")


def server(hear, healthy, sick=None, after=3):
    """Answers every connection, differently after so many if it is to fall sick, and counts them in /tmp/probes."""

    def say(answer):
        return "printf '" + "".join(f"\\{byte:03o}" for byte in answer) + "'"

    count = "echo >> /tmp/probes; n=$(wc -l < /tmp/probes)"
    script = f"{count}; {hear}; if [ $n -gt {after} ]; then {say(sick or healthy)}; else {say(healthy)}; fi; sleep 5"
    return ["nc", "-ll", "-p", str(PORT), "-e", "sh", "-c", script]


COUNTED = ["sh", "-c", "echo >> /tmp/probes; cat /tmp/health"]
KEPT = ("sh", "-c", "touch /tmp/health; exec sleep 3600")
LOST = ("sh", "-c", "touch /tmp/health; sleep 2; rm /tmp/health; exec sleep 3600")
EXEC = {"exec": {"command": COUNTED}}
HTTP = {"httpGet": {"path": "/healthz", "port": PORT}}
GRPC = {"grpc": {"port": PORT}}
TCP = {"tcpSocket": {"port": PORT}}


def probed(ns, command, **probes):
    often = {"periodSeconds": 1, "timeoutSeconds": 5}
    fields = {name: {**often, **probe} for name, probe in probes.items()}
    ns.run("p", *command, restartPolicy="Always", container=fields)


def restarts(ns):
    statuses = ns.cluster.get(ns.pods("p"))["status"].get("containerStatuses", [])
    return sum(one["restartCount"] for one in statuses)


@conformance(
    PROBE + 'should *not* be restarted with a exec "cat /tmp/health" liveness probe [NodeConformance]',
    PROBE + "should *not* be restarted with a /healthz http liveness probe [NodeConformance]",
    PROBE + "should *not* be restarted with a tcp:8080 liveness probe [NodeConformance]",
    PROBE + "should *not* be restarted with a GRPC liveness probe [NodeConformance]",
)
@pytest.mark.parametrize(
    ("command", "probe"),
    [(KEPT, EXEC), (server(REQUEST, http(200)), HTTP), (server("true", b""), TCP), (server(CALL, grpc(1)), GRPC)],
    ids=["exec", "http", "tcp", "grpc"],
)
def test_the_healthy_live(ns, command, probe):
    probed(ns, command, livenessProbe={**probe, "initialDelaySeconds": 1, "failureThreshold": 1})
    ns.pod_is("p", "Ready")

    def often():
        assert len(ns.exec("p", "cat", "/tmp/probes")) >= 8

    eventually("many probes", often)
    complaints = [one["message"] for one in ns.cluster.items(ns.at("v1", "events")) if one["reason"] == "Unhealthy"]
    assert (restarts(ns), complaints) == (0, [])


@conformance(
    PROBE + 'should be restarted with a exec "cat /tmp/health" liveness probe [NodeConformance]',
    PROBE + "should be restarted with a /healthz http liveness probe [NodeConformance]",
    PROBE + "should be restarted with a GRPC liveness probe [NodeConformance]",
)
@pytest.mark.parametrize(
    ("command", "probe"),
    [(LOST, EXEC), (server(REQUEST, http(200), http(500)), HTTP), (server(CALL, grpc(1), grpc(2)), GRPC)],
    ids=["exec", "http", "grpc"],
)
def test_the_sick_are_restarted(cluster, ns, command, probe):
    probed(ns, command, livenessProbe={**probe, "initialDelaySeconds": 1, "failureThreshold": 1})
    ns.pod_is("p", "Ready")

    def restarted():
        assert restarts(ns) == 1
        reasons = {event["reason"] for event in cluster.items(ns.at("v1", "events"))}
        assert {"Unhealthy", "Killing"} <= reasons

    eventually("a restart", restarted)


@conformance(PROBE + "should have monotonically increasing restart count [NodeConformance]")
def test_restarts_only_grow(cluster, ns):
    probed(ns, FOREVER, livenessProbe={"exec": {"command": ["false"]}, "failureThreshold": 1})
    seen = []
    with cluster.watch(ns.pods(), fieldSelector="metadata.name=p") as watch:

        def counted(found):
            statuses = found["status"].get("containerStatuses", [])
            seen.extend(one["restartCount"] for one in statuses)
            return seen and seen[-1] == 2

        watch.until("MODIFIED", counted, limit=120)
    assert seen == sorted(seen) and set(seen) == {0, 1, 2}


@conformance(
    PROBE + "with readiness probe should not be ready before initial delay and never restart [NodeConformance]"
)
def test_readiness_waits_for_its_delay(cluster, ns):
    probed(ns, FOREVER, readinessProbe={"exec": {"command": ["true"]}, "initialDelaySeconds": 5})
    found = ns.pod_is("p", "Ready")
    ready = next(one["lastTransitionTime"] for one in found["status"]["conditions"] if one["type"] == "Ready")
    started = found["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
    assert seconds(ready) - seconds(started) >= 5
    assert restarts(ns) == 0


def seconds(time):
    hours, minutes, rest = time.split("T")[1].rstrip("Z").split(":")
    return (int(hours) * 60 + int(minutes)) * 60 + int(rest)


@conformance(PROBE + "with readiness probe that fails should never be ready and never restart [NodeConformance]")
def test_the_unready_stay_so(cluster, ns):
    script = "echo >> /tmp/probes; false"
    probed(ns, FOREVER, readinessProbe={"exec": {"command": ["sh", "-c", script]}})
    ns.pod_is("p", "Running")
    with cluster.watch(ns.pods(), fieldSelector="metadata.name=p") as watch:

        def often():
            assert len(ns.exec("p", "cat", "/tmp/probes")) >= 6

        eventually("many probes", often)
        cluster.delete(ns.pods("p"))
        watch.until("DELETED")
        assert all(condition(event["object"], "Ready") == "False" for event in watch.seen[1:])
        counts = [
            one["restartCount"]
            for event in watch.seen
            for one in event["object"]["status"].get("containerStatuses", [])
        ]
        assert set(counts) == {0}


RUNTIME_CLASS = "[sig-node] RuntimeClass should "


@pytest.fixture
def runtime_class(cluster, ns):
    path = at("node.k8s.io/v1", "runtimeclasses")
    made = []

    def make(**fields):
        body = cluster.create(path, {"metadata": {"name": f"class-{ns.name}"}, "handler": "runc", **fields})
        made.append(f"{path}/{body['metadata']['name']}")
        return body["metadata"]["name"]

    yield make
    for one in made:
        if cluster.exists(one):
            cluster.delete(one)


@conformance(
    RUNTIME_CLASS + "reject a Pod requesting a non-existent RuntimeClass [NodeConformance]",
    RUNTIME_CLASS + "reject a Pod requesting a deleted RuntimeClass [NodeConformance]",
)
def test_pods_need_a_runtime_class_that_is_there(cluster, ns, refused, runtime_class):
    def pod_is_refused(name):
        def attempt():
            with refused(403, "Forbidden") as error:
                cluster.create(ns.pods(), pod("p", runtimeClassName=name), dryRun="All")
            expected = f'pods "p" is forbidden: pod rejected: RuntimeClass "{name}" not found'
            assert error.error.message == expected

        eventually("a refusal", attempt)

    pod_is_refused("none")
    name = runtime_class()
    cluster.create(ns.pods(), pod("q", *FOREVER, runtimeClassName=name))
    cluster.delete(at("node.k8s.io/v1", "runtimeclasses", name=name))
    pod_is_refused(name)


@conformance(
    RUNTIME_CLASS + "schedule a Pod requesting a RuntimeClass and initialize its Overhead [NodeConformance]",
    RUNTIME_CLASS + "schedule a Pod requesting a RuntimeClass without PodOverhead [NodeConformance]",
)
@pytest.mark.parametrize("overhead", [{"cpu": "10m", "memory": "1Mi"}, None])
def test_runtime_classes_bring_their_overhead(ns, runtime_class, overhead):
    name = runtime_class(**({"overhead": {"podFixed": overhead}} if overhead else {}))
    made = ns.run("p", *FOREVER, runtimeClassName=name)
    assert made["spec"].get("overhead") == overhead

    def placed():
        assert condition(ns.cluster.get(ns.pods("p")), "PodScheduled") == "True"

    eventually("a node for the pod", placed)
