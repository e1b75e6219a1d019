"""Pods whose resources change while they run: what the API says, and what the containers' cgroups have."""

import json
import math
import re

import pytest

from cluster import condition, container, eventually, pod

pytestmark = pytest.mark.cgroups
conformance = pytest.mark.conformance

UNITS = {"": 1, "m": 0.001, "Mi": 2**20}
CHANGED = {"cpu": {"-": "15m", "=": "20m", "+": "25m"}, "memory": {"-": "30Mi", "=": "35Mi", "+": "40Mi"}}


def amount(text):
    number, unit = re.fullmatch(r"(\d+)(\w*)", text).groups()
    return int(number) * UNITS[unit]


def resources(cpu=None, memory=None, cpu_limit=None, memory_limit=None):
    """Requests and limits of a container; what is not said is not there."""
    said = {"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu_limit, "memory": memory_limit}}
    found = {kind: {name: value for name, value in values.items() if value} for kind, values in said.items()}
    return {kind: values for kind, values in found.items() if values}


def guaranteed(cpu, memory):
    return resources(cpu, memory, cpu, memory)


def files(wanted):
    """`cpu.weight`, `cpu.max` and `memory.max` of a container: weights as runc has them since 1.3.2, a quota each 100 ms."""
    limits = wanted.get("limits", {})
    shares = max(2, int(amount(wanted.get("requests", {}).get("cpu", limits.get("cpu", "0"))) * 1024 + 1e-6))
    quota = int(max(1000, round(amount(limits["cpu"]) * 100_000))) if "cpu" in limits else "max"
    memory = amount(limits["memory"]) if "memory" in limits else "max"
    scale = math.log2(shares)
    weight = 1 if shares == 2 else math.ceil(10 ** ((scale * scale + 125 * scale) / 612 - 7 / 34))
    return [str(weight), f"{quota} 100000", str(memory)]


def start(ns, wanted):
    containers = [container(name, "sleep", "1000000", resources=found) for name, found in wanted.items()]
    created = ns.cluster.create(ns.pods(), pod("resized", restartPolicy="OnFailure", containers=containers))
    assert created["metadata"]["generation"] == 1
    ns.pod_is("resized", "Ready")
    actuated(ns, wanted)


def actuated(ns, wanted):
    """The kubelet has done what was asked, without a restart, and the cgroups say so."""

    def reached():
        found = ns.cluster.get(ns.pods("resized"))
        status = {each["name"]: each for each in found["status"]["containerStatuses"]}
        assert {name: each.get("resources", {}) for name, each in status.items()} == wanted
        assert not condition(found, "PodResizePending") and not condition(found, "PodResizeInProgress")
        assert condition(found, "Ready") == "True"
        assert all(each["restartCount"] == 0 for each in status.values())

    eventually("the resize is actuated", reached, 120)
    for name, found in wanted.items():
        read = "cd /sys/fs/cgroup; head -n 1 cpu.weight cpu.max memory.max | grep -v '^$' | grep -v =="
        said = ns.cluster.kubectl("-n", ns.name, "exec", "resized", "-c", name, "--", "sh", "-c", read)
        assert said.split("\n")[:3] == files(found), name


def resize(ns, wanted):
    body = {"spec": {"containers": [{"name": name, "resources": found} for name, found in wanted.items()]}}
    before = ns.cluster.get(ns.pods("resized"))["metadata"]["generation"]
    patched = ns.cluster.patch(ns.pods("resized", "resize"), body, "strategic")
    assert {each["name"]: each["resources"] for each in patched["spec"]["containers"]} == wanted
    assert patched["metadata"]["generation"] == before + 1
    actuated(ns, wanted)


GUARANTEED = "[sig-node] Pod InPlace Resize Container guaranteed pods with multiple containers 3 containers - "


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(change, marks=conformance(GUARANTEED + name + " [MinimumKubeletVersion:1.34]"))
        for change, name in [
            ("++ ++ --", "increase cpu & mem on c1, c2, decrease cpu & mem on c3 - net increase"),
            ("++ -- --", "increase cpu & mem on c1, decrease cpu & mem on c2, c3 - net decrease"),
            ("+= -+ ++", "increase: CPU (c1,c3), memory (c2, c3) ; decrease: CPU (c2)"),
        ]
    ],
)
def test_guaranteed_pods_change_and_change_back(ns, change):
    names = ["c1", "c2", "c3"]
    before = {name: guaranteed(CHANGED["cpu"]["="], CHANGED["memory"]["="]) for name in names}
    after = {
        name: guaranteed(CHANGED["cpu"][cpu], CHANGED["memory"][memory])
        for name, (cpu, memory) in zip(names, change.split())
    }
    start(ns, before)
    resize(ns, after)
    resize(ns, before)


BURSTABLE = "[sig-node] Pod InPlace Resize Container burstable pods - extended "


@conformance(
    BURSTABLE
    + "6 containers - various operations performed (including adding limits and requests) [MinimumKubeletVersion:1.34]"
)
def test_burstable_pods_gain_requests_and_limits(ns):
    start(
        ns,
        {
            "c1": resources(cpu="20m"),
            "c2": resources(memory="35Mi"),
            "c3": resources(cpu="20m", memory="35Mi"),
            "c4": resources(cpu="20m"),
            "c5": resources(memory="35Mi"),
        },
    )
    resize(
        ns,
        {
            "c1": resources(cpu="25m", cpu_limit="35m"),
            "c2": resources(memory="30Mi", memory_limit="50Mi"),
            "c3": resources(cpu="20m", memory="30Mi"),
            "c4": resources(cpu="15m", memory="35Mi"),
            "c5": resources(cpu="20m", memory="40Mi"),
        },
    )


@conformance(BURSTABLE + "resize with equivalents [MinimumKubeletVersion:1.34]")
def test_values_that_the_kernel_holds_equal_are_shown_as_said(ns):
    start(ns, {"c1": resources(cpu="2m", cpu_limit="10m")})
    resize(ns, {"c1": resources(cpu="1m", cpu_limit="5m")})
    resize(ns, {"c1": resources(cpu="2m", cpu_limit="10m")})


@conformance("[sig-node] Pod InPlace Resize Container resize pod via the replace endpoint [MinimumKubeletVersion:1.34]")
def test_a_pod_is_replaced_through_its_sub_resource(ns):
    start(ns, {"c1": resources(cpu="20m", memory="35Mi")})
    wanted = resources(cpu="25m", memory="40Mi")

    def change(found):
        found["spec"]["containers"][0]["resources"] = wanted

    path = ns.pods("resized", "resize")
    assert ns.cluster.update(path, change)["metadata"]["generation"] == 2
    actuated(ns, {"c1": wanted})

    def same():
        assert json.dumps(ns.cluster.get(path)) == json.dumps(ns.cluster.get(ns.pods("resized")))

    eventually("both end points show one pod", same)
