"""What every kind's API can do: one life of an object, for each kind that conformance tests name."""

import copy
import itertools
import zlib

import pytest

from cluster import PATCHES, Refused, at, eventually

conformance = pytest.mark.conformance
LABEL = "behaviours.ironlet.dev/life"
RULES = {
    "matchConstraints": {
        "resourceRules": [
            {
                "apiGroups": ["none.example.com"],
                "apiVersions": ["v1"],
                "operations": ["CREATE"],
                "resources": ["things"],
            }
        ]
    }
}
TEMPLATE = {"spec": {"containers": [{"name": "c", "image": "busybox"}]}}
CLAIM = {"devices": {"requests": [{"name": "one", "exactly": {"deviceClassName": "none.example.com"}}]}}
ALLOCATION = {
    "allocation": {"devices": {"results": [{"request": "one", "driver": "d.example.com", "pool": "p", "device": "d"}]}}
}
CONDITION = {
    "type": "Proven",
    "status": "True",
    "reason": "Lived",
    "message": "by hand",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}
CONDITIONS = {"conditions": [CONDITION]}
LABELLED = {"metadata": {"labels": {"changed": "true"}}}
ADMISSION = "admissionregistration.k8s.io/v1"
FLOW = "[sig-api-machinery] API priority and fairness should support {} API operations"
POLICY = "[sig-api-machinery] {} [Privileged:ClusterAdmin] should support {} API operations"
DRA = "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 "


def address(ns):
    """One of 198.18.0.0/15 (RFC 2544), the test's own."""
    number = zlib.crc32(ns.name.encode()) % 2**17
    return f"198.{18 + number // 2**16}.{number // 256 % 256}.{number % 256}"


def mutation():
    expression = 'Object{metadata: Object.metadata{labels: {"mutated": "true"}}}'
    return {
        **RULES,
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}],
    }


class Kind:
    """`fields` make an object, `change` is merged into it, `status` is what its subresource takes (None: has none)."""

    def __init__(self, api, resource, kind, fields, change=None, status=None, *, names=(), namespaced=False, **more):
        self.api, self.resource, self.kind = api, resource, kind
        self.fields, self.change, self.status = fields, change or LABELLED, status
        self.names, self.namespaced = names, namespaced
        self.named = more.get("named")  # its name, if not any name will do
        self.phase = more.get("phase")  # what a controller says of it first

    def path(self, ns, name=None, sub=None):
        return at(self.api, self.resource, ns.name if self.namespaced else None, name, sub)

    def object(self, ns):
        name = self.named(ns) if self.named else "life" if self.namespaced else f"life-{ns.name}"
        meta = {"name": name, "labels": {LABEL: ns.name}}
        return {"apiVersion": self.api, "kind": self.kind, "metadata": meta, **copy.deepcopy(self.fields)}


KINDS = [
    Kind(
        "flowcontrol.apiserver.k8s.io/v1",
        "flowschemas",
        "FlowSchema",
        {"spec": {"matchingPrecedence": 9000, "priorityLevelConfiguration": {"name": "global-default"}}},
        {"spec": {"matchingPrecedence": 9001}},
        CONDITIONS,
        names=[FLOW.format("FlowSchema")],
    ),
    Kind(
        "flowcontrol.apiserver.k8s.io/v1",
        "prioritylevelconfigurations",
        "PriorityLevelConfiguration",
        {"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 2, "limitResponse": {"type": "Reject"}}}},
        {"spec": {"limited": {"nominalConcurrencyShares": 4}}},
        CONDITIONS,
        names=[FLOW.format("PriorityLevelConfiguration")],
    ),
    Kind(
        ADMISSION,
        "validatingadmissionpolicies",
        "ValidatingAdmissionPolicy",
        {"spec": {**RULES, "failurePolicy": "Fail", "validations": [{"expression": "object.spec.replicas <= 100"}]}},
        {"spec": {"failurePolicy": "Ignore"}},
        CONDITIONS,
        names=[POLICY.format(*["ValidatingAdmissionPolicy"] * 2)],
    ),
    Kind(
        ADMISSION,
        "validatingadmissionpolicybindings",
        "ValidatingAdmissionPolicyBinding",
        {"spec": {"policyName": "none.example.com", "validationActions": ["Deny"]}},
        {"spec": {"validationActions": ["Deny", "Audit"]}},
        names=[POLICY.format("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")],
    ),
    Kind(
        ADMISSION,
        "mutatingadmissionpolicies",
        "MutatingAdmissionPolicy",
        {"spec": mutation()},
        {"spec": {"failurePolicy": "Ignore"}},
        names=[POLICY.format(*["MutatingAdmissionPolicy"] * 2)],
    ),
    Kind(
        ADMISSION,
        "mutatingadmissionpolicybindings",
        "MutatingAdmissionPolicyBinding",
        {"spec": {"policyName": "none.example.com"}},
        names=[POLICY.format("MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding")],
    ),
    Kind(
        "networking.k8s.io/v1",
        "ingresses",
        "Ingress",
        {"spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}},
        {"spec": {"ingressClassName": "none"}},
        {"loadBalancer": {"ingress": [{"ip": "169.1.1.1"}]}},
        names=["[sig-network] Ingress API should support creating Ingress API operations"],
        namespaced=True,
    ),
    Kind(
        "networking.k8s.io/v1",
        "ingressclasses",
        "IngressClass",
        {"spec": {"controller": "example.com/controller"}},
        names=["[sig-network] IngressClass API should support creating IngressClass API operations"],
    ),
    Kind(
        "networking.k8s.io/v1",
        "ipaddresses",
        "IPAddress",
        {"spec": {"parentRef": {"group": "example.com", "resource": "things", "namespace": "none", "name": "thing"}}},
        names=["[sig-network] ServiceCIDR and IPAddress API should support IPAddress API operations"],
        named=address,
    ),
    Kind(
        "networking.k8s.io/v1",
        "servicecidrs",
        "ServiceCIDR",
        {"spec": {"cidrs": ["198.51.100.0/24"]}},
        status=CONDITIONS,
        names=["[sig-network] ServiceCIDR and IPAddress API should support ServiceCIDR API operations"],
    ),
    Kind(
        "discovery.k8s.io/v1",
        "endpointslices",
        "EndpointSlice",
        {"addressType": "IPv4", "endpoints": [{"addresses": ["198.51.100.1"]}], "ports": [{"name": "", "port": 80}]},
        {"endpoints": [{"addresses": ["198.51.100.2"]}]},
        names=["[sig-network] EndpointSlice should support creating EndpointSlice API operations"],
        namespaced=True,
    ),
    Kind(
        "v1",
        "endpoints",
        "Endpoints",
        {"subsets": [{"addresses": [{"ip": "198.51.100.1"}], "ports": [{"port": 80}]}]},
        {"subsets": [{"addresses": [{"ip": "198.51.100.2"}], "ports": [{"port": 81}]}]},
        names=["[sig-network] Endpoints should test the lifecycle of an Endpoint"],
        namespaced=True,
    ),
    Kind(
        "v1",
        "services",
        "Service",
        {"spec": {"ports": [{"port": 80}]}},
        {"spec": {"externalTrafficPolicy": "Local", "type": "NodePort"}},
        {"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}, **CONDITIONS},
        names=[
            "[sig-network] Services should complete a service status lifecycle",
            "[sig-network] Services should delete a collection of services",
            "[sig-network] Services should find a service from listing all namespaces",
        ],
        namespaced=True,
    ),
    Kind(
        "node.k8s.io/v1",
        "runtimeclasses",
        "RuntimeClass",
        {"handler": "none"},
        names=["[sig-node] RuntimeClass should support RuntimeClasses API operations"],
    ),
    Kind(
        "resource.k8s.io/v1",
        "deviceclasses",
        "DeviceClass",
        {"spec": {"selectors": [{"cel": {"expression": "true"}}]}},
        {"spec": {"selectors": [{"cel": {"expression": "false"}}]}},
        names=[DRA + "DeviceClass"],
    ),
    Kind(
        "resource.k8s.io/v1",
        "resourceclaims",
        "ResourceClaim",
        {"spec": CLAIM},
        status=ALLOCATION,
        names=[DRA + "ResourceClaim"],
        namespaced=True,
    ),
    Kind(
        "resource.k8s.io/v1",
        "resourceclaimtemplates",
        "ResourceClaimTemplate",
        {"spec": {"spec": CLAIM}},
        names=[DRA + "ResourceClaimTemplate"],
        namespaced=True,
    ),
    Kind(
        "resource.k8s.io/v1",
        "resourceslices",
        "ResourceSlice",
        {
            "spec": {
                "driver": "d.example.com",
                "allNodes": True,
                "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
                "devices": [{"name": "d"}],
            }
        },
        {"spec": {"pool": {"generation": 2}}},
        names=[DRA + "ResourceSlice"],
    ),
    Kind(
        "storage.k8s.io/v1",
        "csidrivers",
        "CSIDriver",
        {"spec": {"attachRequired": False, "volumeLifecycleModes": ["Ephemeral"]}},
        {"spec": {"requiresRepublish": True}},
        names=["[sig-storage] CSIInlineVolumes should run through the lifecycle of a CSIDriver"],
    ),
    Kind(
        "storage.k8s.io/v1",
        "csinodes",
        "CSINode",
        {"spec": {"drivers": []}},
        names=["[sig-storage] CSINodes CSI Conformance should run through the lifecycle of a csinode"],
    ),
    Kind(
        "storage.k8s.io/v1",
        "csistoragecapacities",
        "CSIStorageCapacity",
        {"storageClassName": "none", "nodeTopology": {}, "capacity": "1Gi"},
        {"capacity": "2Gi"},
        names=["[sig-storage] CSIStorageCapacity should support CSIStorageCapacities API operations"],
        namespaced=True,
    ),
    Kind(
        "storage.k8s.io/v1",
        "volumeattachments",
        "VolumeAttachment",
        {"spec": {"attacher": "none.example.com", "nodeName": "none", "source": {"persistentVolumeName": "none"}}},
        status={"attached": True},
        names=[
            "[sig-storage] VolumeAttachment Conformance should apply changes to a volumeattachment status",
            "[sig-storage] VolumeAttachment Conformance should run through the lifecycle of a VolumeAttachment",
        ],
    ),
    Kind(
        "storage.k8s.io/v1",
        "storageclasses",
        "StorageClass",
        {"provisioner": "none.example.com"},
        {"allowVolumeExpansion": True},
        names=["[sig-storage] StorageClasses CSI Conformance should run through the lifecycle of a StorageClass"],
    ),
    Kind(
        "storage.k8s.io/v1",
        "volumeattributesclasses",
        "VolumeAttributesClass",
        {"driverName": "none.example.com", "parameters": {"speed": "high"}},
        names=[
            "[sig-storage] VolumeAttributesClass [FeatureGate:VolumeAttributesClass] should run through the lifecycle of a VolumeAttributesClass"
        ],
    ),
    Kind(
        "v1",
        "persistentvolumes",
        "PersistentVolume",
        {
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "unclaimed",
                "csi": {"driver": "none.example.com", "volumeHandle": "none"},
            }
        },
        {"spec": {"persistentVolumeReclaimPolicy": "Delete"}},
        {"reason": "Proven", "message": "by hand"},
        names=[
            "[sig-storage] PersistentVolumes CSI Conformance should apply changes to a pv/pvc status",
            "[sig-storage] PersistentVolumes CSI Conformance should run through the lifecycle of a PV and a PVC",
        ],
        phase="Available",
    ),
    Kind(
        "v1",
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        {
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "unprovided",
                "resources": {"requests": {"storage": "1Gi"}},
            }
        },
        status=CONDITIONS,
        namespaced=True,
        phase="Pending",
    ),
    Kind(
        "v1",
        "podtemplates",
        "PodTemplate",
        {"template": TEMPLATE},
        {"template": {"spec": {"terminationGracePeriodSeconds": 5}}},
        names=[
            f"[sig-node] PodTemplates should {promise}"
            for promise in (
                "delete a collection of pod templates",
                "replace a pod template",
                "run the lifecycle of PodTemplates",
            )
        ],
        namespaced=True,
    ),
    Kind(
        "v1",
        "nodes",
        "Node",
        {"spec": {"unschedulable": True}},
        {"spec": {"podCIDR": "198.51.100.0/25"}},
        {"conditions": [{**CONDITION, "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]},
        names=["[sig-node] Node Lifecycle should run through the lifecycle of a node"],
    ),
    Kind(
        "v1",
        "limitranges",
        "LimitRange",
        {"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}}]}},
        {"spec": {"limits": [{"type": "Container", "max": {"cpu": "3"}}]}},
        names=["[sig-scheduling] LimitRange should list, patch and delete a LimitRange by collection"],
        namespaced=True,
    ),
    Kind(
        "v1",
        "resourcequotas",
        "ResourceQuota",
        {"spec": {"hard": {"pods": "5"}}},
        {"spec": {"hard": {"pods": "6"}}},
        {"used": {"example.com/thing": "1"}},
        names=[
            "[sig-api-machinery] ResourceQuota should manage the lifecycle of a ResourceQuota",
            "[sig-api-machinery] ResourceQuota should be able to update and delete ResourceQuota.",
        ],
        namespaced=True,
    ),
    Kind(
        "v1",
        "serviceaccounts",
        "ServiceAccount",
        {},
        {"automountServiceAccountToken": False},
        names=[
            "[sig-auth] ServiceAccounts should run through the lifecycle of a ServiceAccount",
            "[sig-auth] ServiceAccounts should update a ServiceAccount",
        ],
        namespaced=True,
    ),
    Kind(
        "v1",
        "configmaps",
        "ConfigMap",
        {"data": {"a": "1"}},
        {"data": {"a": "2"}},
        names=[
            "[sig-node] ConfigMap should run through a ConfigMap lifecycle",
            "[sig-node] ConfigMap should update ConfigMap successfully [NodeConformance]",
        ],
        namespaced=True,
    ),
    Kind(
        "v1",
        "secrets",
        "Secret",
        {"data": {"a": "MQ=="}},
        {"data": {"a": "Mg=="}},
        names=["[sig-node] Secrets should patch a secret"],
        namespaced=True,
    ),
    Kind(
        "scheduling.k8s.io/v1",
        "priorityclasses",
        "PriorityClass",
        {"value": 1000},
        {"description": "changed"},
        names=[
            "[sig-scheduling] SchedulerPreemption [Serial] PriorityClass endpoints verify PriorityClass endpoints can be operated with different HTTP methods"
        ],
    ),
]


def merged(old, change):
    """RFC 7386, for what has no nulls."""
    if not isinstance(change, dict) or not isinstance(old, dict):
        return change
    return {**old, **{key: merged(old.get(key), value) for key, value in change.items()}}


def holds(found, wanted):
    """Whether all that is wanted is there; there may be more."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(holds(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(found, list) and all(any(holds(one, item) for one in found) for item in wanted)
    return found == wanted


def additions(found, change, path=""):
    """The change as a JSON patch (RFC 6902)."""
    for key, value in change.items():
        pointer = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
        if isinstance(value, dict) and found.get(key):
            yield from additions(found[key], value, pointer)
        else:
            yield {"op": "add", "path": pointer, "value": value}


def patch_body(kind, found, change):
    """The change as clients send it: it names its object, and its UID as a precondition."""
    if kind == "json":
        return list(additions(found, change))
    meta = {key: found["metadata"][key] for key in ("name", "namespace", "uid") if key in found["metadata"]}
    return merged({"apiVersion": found["apiVersion"], "kind": found["kind"], "metadata": meta}, change)


class Life:
    def __init__(self, cluster, ns, kind):
        self.cluster, self.ns, self.kind = cluster, ns, kind
        self.wanted = kind.object(ns)
        self.name = self.wanted["metadata"]["name"]
        self.selector = {"labelSelector": f"{LABEL}={ns.name}"}

    def path(self, sub=None):
        return self.kind.path(self.ns, self.name, sub)

    def create(self):
        made = self.cluster.create(self.kind.path(self.ns), self.wanted, fieldValidation="Strict")
        assert holds(made, self.wanted)
        if self.kind.phase:
            eventually("its phase", self.in_phase)
        return made

    def in_phase(self):
        assert self.cluster.get(self.path())["status"].get("phase") == self.kind.phase

    def update(self, change, sub=None):
        """Replaces what is there; who comes between is read again."""
        while True:
            found = self.cluster.get(self.path(sub))
            try:
                return self.cluster.replace(self.path(sub), merged(found, change))
            except Refused as refused:
                if refused.reason != "Conflict":
                    raise

    def patch(self, kind, change, sub=None):
        body = patch_body(kind, self.cluster.get(self.path(sub)), change)
        forced = {"fieldManager": "test-apply", "force": "true"} if kind == "apply" else {}
        found = self.cluster.patch(self.path(sub), body, kind, fieldValidation="Strict", **forced)
        assert holds(found, change), (kind, sub, found)
        return found

    def gone(self):
        self.ns.gone(self.path(), limit=30)

    def watched(self, watch, *expected):
        """Exactly these kinds of events come in this order, and others' updates; versions only rise."""
        for kind in expected:
            watch.until(kind)
        seen = [kind for kind, _ in itertools.groupby(event["type"] for event in watch.seen)]
        assert seen[-len(expected) :] == list(expected) and seen[: -len(expected)] in ([], ["MODIFIED"])
        versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in watch.seen]
        assert versions == sorted(versions)
        watch.seen.clear()


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, id=kind.resource, marks=conformance(*kind.names)) for kind in KINDS]
)
def test_life(cluster, ns, kind):
    life = Life(cluster, ns, kind)
    served = next(r for r in cluster.get(at(kind.api, ""))["resources"] if r["name"] == kind.resource)
    assert served["kind"] == kind.kind and served["namespaced"] == kind.namespaced
    everything = at(kind.api, kind.resource)
    with cluster.watch(everything, **life.selector) as watch:
        made = life.create()
        assert cluster.get(life.path())["metadata"]["uid"] == made["metadata"]["uid"]
        life.watched(watch, "ADDED")
        updated = life.update(kind.change)
        assert holds(updated, kind.change)
        assert int(updated["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
        life.watched(watch, "MODIFIED")
        if kind.status:
            assert holds(life.update({"status": kind.status}, "status"), {"status": kind.status})
            assert holds(cluster.get(life.path("status")), {"status": kind.status})
            life.watched(watch, "MODIFIED")
        for patch in PATCHES:
            cluster.delete(life.path())
            life.gone()
            life.create()
            life.patch(patch, kind.change)
            life.watched(watch, "DELETED", "ADDED", "MODIFIED")
            if kind.status:
                life.patch(patch, {"status": kind.status}, "status")
        for path in {everything, kind.path(ns)}:
            assert [found["metadata"]["name"] for found in cluster.items(path, **life.selector)] == [life.name]
        cluster.delete(kind.path(ns), **life.selector)
        life.gone()
        watch.until("DELETED")
    assert not cluster.items(everything, **life.selector)


@conformance(
    "[sig-node] ConfigMap should fail to create ConfigMap with empty key",
    "[sig-node] Secrets should fail to create secret due to empty secret key",
)
@pytest.mark.parametrize(("resource", "value"), [("configmaps", "1"), ("secrets", "MQ==")])
def test_keys_have_names(cluster, ns, refused, resource, value):
    with refused(422, "Invalid") as error:
        cluster.create(ns.at("v1", resource), {"metadata": {"name": "empty"}, "data": {"": value}})
    [cause] = error.error.status["details"]["causes"]
    assert (cause["field"], cause["reason"]) == ("data[]", "FieldValueInvalid")


@conformance(
    "[sig-storage] ConfigMap should be immutable if `immutable` field is set",
    "[sig-storage] Secrets should be immutable if `immutable` field is set",
)
@pytest.mark.parametrize(("resource", "values"), [("configmaps", ["1", "2"]), ("secrets", ["MQ==", "Mg=="])])
def test_what_is_immutable_stays(cluster, ns, refused, resource, values):
    path = ns.at("v1", resource, "fixed")
    cluster.create(ns.at("v1", resource), {"metadata": {"name": "fixed"}, "data": {"a": values[0]}})
    cluster.patch(path, {"data": {"a": values[1]}})
    cluster.patch(path, {"immutable": True})
    for change, field in [({"data": {"a": values[0]}}, "data"), ({"immutable": False}, "immutable")]:
        with refused(422, "Invalid") as error:
            cluster.patch(path, change)
        assert [cause["field"] for cause in error.error.status["details"]["causes"]] == [field]
    assert cluster.patch(path, LABELLED)["metadata"]["labels"] == {"changed": "true"}
    cluster.delete(path)
