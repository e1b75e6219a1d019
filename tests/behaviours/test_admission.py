"""Rules that a cluster's owner adds: policies in CEL, and webhooks as far as their configuration says."""

import json

import pytest

from cluster import Refused, at, container, eventually

conformance = pytest.mark.conformance
ADMISSION = "admissionregistration.k8s.io/v1"
POLICY = "[sig-api-machinery] {}AdmissionPolicy [Privileged:ClusterAdmin] should "
WEBHOOK = "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] "
DEPLOYMENTS = {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}


def deployment(name, replicas, **annotations):
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container("c", "sleep", "3600")]}}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return {"metadata": {"name": name, "annotations": annotations}, "spec": spec}


@pytest.fixture
def policy(cluster, ns):
    """Makes a policy and its binding to the test's namespace, and takes them away."""
    made = []

    def create(resource, spec):
        body = {"metadata": {"name": f"policy-{ns.name}"}, "spec": spec}
        made.append(at(ADMISSION, resource, name=cluster.create(at(ADMISSION, resource), body)["metadata"]["name"]))
        return made[-1]

    def make(kind, **spec):
        """`kind` is `validating` or `mutating`."""
        rules = {"matchConstraints": {"resourceRules": [DEPLOYMENTS]}, "failurePolicy": "Fail"}
        path = create(f"{kind}admissionpolicies", {**rules, **spec})
        own = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": ns.name}}}
        actions = {"validationActions": ["Deny"]} if kind == "validating" else {}
        create(f"{kind}admissionpolicybindings", {"policyName": f"policy-{ns.name}", "matchResources": own, **actions})
        return path

    yield make
    for path in reversed(made):
        cluster.delete(path)


def tried(cluster, ns, body):
    return cluster.create(ns.at("apps/v1", "deployments"), body, dryRun="All")


@conformance(
    POLICY.format("Validating") + "validate against a Deployment",
    POLICY.format("Validating") + "allow expressions to refer variables.",
)
@pytest.mark.parametrize(
    "spec",
    [
        {
            "validations": [
                {
                    "expression": "object.spec.replicas > 1",
                    "messageExpression": "'too few: ' + string(object.spec.replicas)",
                }
            ]
        },
        {
            "variables": [
                {"name": "replicas", "expression": "object.spec.replicas"},
                {"name": "oddReplicas", "expression": "variables.replicas % 2 == 1"},
            ],
            "validations": [
                {
                    "expression": "variables.replicas > 1",
                    "messageExpression": "'too few: ' + string(variables.replicas)",
                },
                {"expression": "variables.oddReplicas"},
            ],
        },
    ],
    ids=["plain", "variables"],
)
def test_policies_refuse(cluster, ns, policy, spec):
    path = policy("validating", **spec)

    def checked():
        status = cluster.get(path)["status"]
        assert status["observedGeneration"] == 1 and "expressionWarnings" not in status["typeChecking"]

    eventually("the policy's types are checked", checked)

    def refused():
        with pytest.raises(Refused) as caught:
            tried(cluster, ns, deployment("d", 1))
        return caught.value

    error = eventually("a refusal", refused)
    assert (error.code, error.reason) == (422, "Invalid")
    name = f"policy-{ns.name}"
    assert error.message == (
        f"deployments.apps \"d\" is forbidden: ValidatingAdmissionPolicy '{name}' with binding '{name}' denied request: too few: 1"
    )
    tried(cluster, ns, deployment("d", 3))


@conformance(
    POLICY.format("Mutating") + "mutate a Deployment",
    POLICY.format("Mutating") + "mutate a Deployment with annotations",
)
@pytest.mark.parametrize(
    ("mutation", "changed"),
    [
        (
            {
                "patchType": "ApplyConfiguration",
                "applyConfiguration": {"expression": "Object{spec: Object.spec{replicas: object.spec.replicas + 1}}"},
            },
            lambda found: found["spec"]["replicas"] == 3,
        ),
        (
            {
                "patchType": "JSONPatch",
                "jsonPatch": {
                    "expression": '[JSONPatch{op: "add", path: "/metadata/annotations/" + jsonpatch.escapeKey("a/b"), value: "c"}]'
                },
            },
            lambda found: found["metadata"]["annotations"].get("a/b") == "c",
        ),
    ],
    ids=["apply", "patch"],
)
def test_policies_change(cluster, ns, policy, mutation, changed):
    policy("mutating", reinvocationPolicy="Never", mutations=[mutation])

    def has_changed():
        assert changed(tried(cluster, ns, deployment("d", 2, seen="yes")))

    eventually("a change", has_changed)


def hooks(kind, conditions):
    hook = {
        "name": "hook.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/none"},
        "rules": [{**DEPLOYMENTS, "apiGroups": ["none.example.com"]}],
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "matchConditions": conditions,
    }
    return {"webhooks": [hook]}


@conformance(
    *(
        WEBHOOK + f"should be able to create and update {kind} webhook configurations with match conditions"
        for kind in ("mutating", "validating")
    ),
    *(
        WEBHOOK + f"should reject {kind} webhook configurations with invalid match conditions"
        for kind in ("mutating", "validating")
    ),
)
@pytest.mark.parametrize("kind", ["mutating", "validating"])
def test_conditions_are_compiled(cluster, ns, refused, kind):
    path = at(ADMISSION, f"{kind}webhookconfigurations")
    first = [{"name": "expression-1", "expression": "object.metadata.namespace == 'production'"}]
    more = [*first, {"name": "expression-2", "expression": "request.userInfo.username != 'nobody'"}]
    body = {"metadata": {"name": ns.name}, **hooks(kind, first)}
    made = cluster.create(path, body)
    try:
        assert made["webhooks"][0]["matchConditions"] == first
        made["webhooks"][0]["matchConditions"] = more
        assert cluster.replace(f"{path}/{ns.name}", made)["webhooks"][0]["matchConditions"] == more
    finally:
        cluster.delete(f"{path}/{ns.name}")
    for wrong, field in [("... [] bad expression", "expression"), ("", "expression")]:
        body["webhooks"][0]["matchConditions"] = [{"name": "bad", "expression": wrong}]
        with refused(422, "Invalid") as error:
            cluster.create(path, body)
        [cause] = error.error.status["details"]["causes"]
        assert cause["field"] == f"webhooks[0].matchConditions[0].{field}"


@conformance(WEBHOOK + "should include webhook resources in discovery documents")
def test_webhooks_are_discovered(cluster):
    groups = {one["name"]: one for one in cluster.get("/apis")["groups"]}
    assert ADMISSION in [one["groupVersion"] for one in groups["admissionregistration.k8s.io"]["versions"]]
    found = {one["name"] for one in cluster.get(f"/apis/{ADMISSION}")["resources"]}
    assert {"mutatingwebhookconfigurations", "validatingwebhookconfigurations"} <= found


@conformance("[sig-api-machinery] Discovery should validate PreferredVersion for each APIGroup")
def test_groups_prefer_a_version_they_have(cluster):
    for group in cluster.get("/apis")["groups"]:
        own = cluster.get("/apis/" + group["name"])
        assert own["preferredVersion"] == group["preferredVersion"]
        assert own["preferredVersion"] in own["versions"]


@conformance(
    "[sig-api-machinery] Servers with support for Table transformation should return a 406 for a backend which does not implement metadata"
)
def test_answers_without_metadata_are_no_tables(cluster):
    body = {"spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}}
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io", "Content-Type": "application/json"}
    path = at("authorization.k8s.io/v1", "selfsubjectaccessreviews")
    response = cluster.response("POST", path, json.dumps(body), headers=accept)
    assert (response.status_code, response.json()["reason"]) == (406, "NotAcceptable")


@conformance("[sig-storage] CSIInlineVolumes should support CSIVolumeSource in Pod API")
def test_pods_may_have_volumes_of_drivers(cluster, ns):
    volumes = [{"name": "v", "csi": {"driver": "none.example.com", "volumeAttributes": {"a": "b"}}}]
    gates = [{"name": "example.com/never"}]
    body = {
        "metadata": {"name": "p", "labels": {"of": "test"}},
        "spec": {"containers": [container("c")], "volumes": volumes, "schedulingGates": gates},
    }
    cluster.create(ns.pods(), body)
    [found] = cluster.items(ns.pods(), labelSelector="of=test")
    assert found["spec"]["volumes"][0] == volumes[0]
    changed = cluster.patch(ns.pods("p"), {"metadata": {"labels": {"seen": "yes"}}})
    assert changed["metadata"]["labels"] == {"of": "test", "seen": "yes"}
    cluster.delete(ns.pods("p"), {"gracePeriodSeconds": 0})
    ns.gone(ns.pods("p"))
