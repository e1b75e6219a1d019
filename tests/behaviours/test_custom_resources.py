"""Kinds that a cluster's owner adds, and how clients learn of them."""

import json

import pytest

from cluster import at, condition, eventually
from test_api_machinery import definition

conformance = pytest.mark.conformance
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
RESOURCES = "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] "
SIMPLE = RESOURCES + "Simple CustomResourceDefinition "
OPENAPI = "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] "
SCHEMA = {
    "type": "object",
    "description": "Foo CRD for Testing",
    "properties": {
        "spec": {
            "type": "object",
            "description": "Specification of Foo",
            "properties": {
                "bars": {
                    "type": "array",
                    "description": "List of Bars and their specs.",
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {
                            "name": {"type": "string", "description": "Name of Bar."},
                            "age": {"type": "string"},
                        },
                    },
                }
            },
        },
        "status": {"type": "object"},
    },
}


@pytest.fixture
def defined(cluster, ns):
    """`defined(kind, ...)` is the group in which the kind is served; all definitions go behind the test."""
    made = []

    def define(kind, group="", **fields):
        group = f"{ns.name}{group}.example.com"
        body = definition(group, kind, **fields)
        body["metadata"]["labels"] = {"of": ns.name}
        made.append(f"{DEFINITIONS}/{cluster.create(DEFINITIONS, body)['metadata']['name']}")

        def served():
            for version in body["spec"]["versions"]:
                cluster.get(at(f"{group}/{version['name']}", body["spec"]["names"]["plural"], ns.name))

        eventually("the kind is served", served)
        return group

    yield define
    for path in made:
        if cluster.exists(path):
            cluster.delete(path)


@conformance(
    SIMPLE + "creating/deleting custom resource definition objects works",
    SIMPLE + "listing custom resource definition objects works",
)
def test_definitions_come_and_go(cluster, ns, defined):
    groups = [defined("Foo", suffix) for suffix in ("a", "b", "c")]
    found = cluster.items(DEFINITIONS, labelSelector=f"of={ns.name}")
    assert {one["spec"]["group"] for one in found} == set(groups)
    assert all(condition(one, "Established") == "True" and condition(one, "NamesAccepted") == "True" for one in found)
    cluster.delete(DEFINITIONS, labelSelector=f"of={ns.name}")

    def gone():
        assert not cluster.items(DEFINITIONS, labelSelector=f"of={ns.name}")
        assert not {one["name"] for one in cluster.get("/apis")["groups"]} & set(groups)

    eventually("definitions and groups go", gone)


@conformance(SIMPLE + "getting/updating/patching custom resource definition status sub-resource works")
def test_definitions_have_a_status(cluster, ns, defined):
    path = f"{DEFINITIONS}/foos.{defined('Foo')}"
    seen = {"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "Set by a test"}

    def change(found):
        found["status"]["conditions"].append(seen)

    cluster.update(path + "/status", change)
    assert condition(cluster.get(path + "/status"), "StatusUpdate") == "True"
    patched = cluster.patch(path + "/status", {"metadata": {"labels": {"x": "y"}}, "status": {"conditions": [seen]}})
    assert condition(patched, "StatusUpdate") == "True" and "x" not in patched["metadata"]["labels"]


@conformance(RESOURCES + "should include custom resource definition resources in discovery documents")
def test_definitions_are_discovered(cluster):
    group = "apiextensions.k8s.io"
    [found] = [one for one in cluster.get("/apis")["groups"] if one["name"] == group]
    assert {"groupVersion": group + "/v1", "version": "v1"} in found["versions"]
    assert {"groupVersion": group + "/v1", "version": "v1"} in cluster.get("/apis/" + group)["versions"]
    names = [one["name"] for one in cluster.get(f"/apis/{group}/v1")["resources"]]
    assert "customresourcedefinitions" in names


@conformance(RESOURCES + "custom resource defaulting for requests and from storage works")
def test_defaults_come_from_the_schema(cluster, ns, defined):
    properties = {"a": {"type": "string"}, "b": {"type": "string"}}
    schema = {"type": "object", "properties": properties}
    group = defined("Foo", schema={"openAPIV3Schema": schema})
    path, name = at(f"{group}/v1", "foos", ns.name), f"{DEFINITIONS}/foos.{group}"
    body = {"apiVersion": f"{group}/v1", "kind": "Foo", "metadata": {"name": "one"}}
    assert "a" not in cluster.create(path, body)

    def default(field, value):
        def change(found):
            found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][field]["default"] = value

        cluster.update(name, change)

    default("a", "A")

    def from_storage():
        assert cluster.get(path + "/one")["a"] == "A"

    eventually("the default of what is stored", from_storage)
    body["metadata"]["name"] = "two"
    assert cluster.create(path, body)["a"] == "A"
    default("b", "B")

    def both():
        assert [(one["a"], one["b"]) for one in cluster.items(path)] == [("A", "B")] * 2

    eventually("both defaults in a list", both)


@conformance(
    "[sig-api-machinery] CustomResourceDefinition Watch [Privileged:ClusterAdmin] CustomResourceDefinition Watch watch on custom resource definition objects"
)
def test_custom_objects_are_watched(cluster, ns, defined):
    group = defined("Foo")
    path = at(f"{group}/v1", "foos", ns.name)
    with cluster.watch(path) as watch:
        for name in ("one", "two"):
            cluster.create(path, {"apiVersion": f"{group}/v1", "kind": "Foo", "metadata": {"name": name}, "x": 1})
            watch.until("ADDED", lambda found: found["metadata"]["name"] == name)
            cluster.patch(f"{path}/{name}", {"x": 2})
            watch.until("MODIFIED", lambda found: found["x"] == 2)
        for name in ("one", "two"):
            cluster.delete(f"{path}/{name}")
            watch.until("DELETED", lambda found: found["metadata"]["name"] == name)


def v2_name(group, version, kind):
    return ".".join([*reversed(group.split(".")), version, kind])


def published(cluster, group, version, kind):
    """The kind's schemas in the documents of OpenAPI v2 and v3, None where it has none."""
    name = v2_name(group, version, kind)
    old = cluster.get("/openapi/v2")["definitions"].get(name)
    paths = cluster.get("/openapi/v3")["paths"]
    entry = paths.get(f"apis/{group}/{version}")
    new = cluster.get(entry["serverRelativeURL"])["components"]["schemas"].get(name) if entry else None
    return old, new


def has(cluster, group, version, kind, check):
    def so():
        for found in published(cluster, group, version, kind):
            check(found)

    eventually(f"{kind} of {version} is published so", so)


def is_there(found):
    assert found is not None


def is_not_there(found):
    assert found is None


def explained(cluster, *words):
    return cluster.kubectl("explain", *words)


@conformance(OPENAPI + "works for CRD with validation schema")
def test_schemas_are_published(cluster, ns, defined):
    group = defined("Foo", schema={"openAPIV3Schema": SCHEMA})

    def whole(found):
        assert found["description"] == "Foo CRD for Testing"
        bars = found["properties"]["spec"]["properties"]["bars"]
        assert bars["items"]["required"] == ["name"]
        assert found["x-kubernetes-group-version-kind"] == [{"group": group, "version": "v1", "kind": "Foo"}]

    has(cluster, group, "v1", "Foo", whole)
    body = {
        "apiVersion": f"{group}/v1",
        "kind": "Foo",
        "metadata": {"name": "one"},
        "spec": {"bars": [{"name": "a", "age": "1"}]},
    }
    for verb in (["create"], ["apply"], ["delete"]):
        cluster.kubectl("-n", ns.name, *verb, "-f", "-", stdin=json.dumps(body))
    body["spec"]["bars"][0] = {"age": "1"}
    assert "name" in cluster.kubectl("-n", ns.name, "create", "-f", "-", stdin=json.dumps(body), ok=False)
    assert cluster.exists(at(f"{group}/v1", "foos", ns.name, "one")) is None
    assert "List of Bars and their specs." in explained(cluster, f"foos.{group}.spec")
    assert "Name of Bar." in explained(cluster, f"foos.{group}.spec.bars")


@conformance(
    OPENAPI + "works for CRD without validation schema",
    OPENAPI + "works for CRD preserving unknown fields at the schema root",
    OPENAPI + "works for CRD preserving unknown fields in an embedded object",
)
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {"spec": {"type": "object"}}},
        {
            "type": "object",
            "properties": {
                "spec": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": True,
                    "x-kubernetes-embedded-resource": True,
                }
            },
        },
    ],
    ids=["none", "root", "embedded"],
)
def test_unknown_fields_pass_where_preserved(cluster, ns, defined, schema):
    group = defined("Foo", schema={"openAPIV3Schema": schema})
    has(cluster, group, "v1", "Foo", is_there)
    anything = {"apiVersion": "v1", "kind": "Any", "metadata": {"name": "x"}, "a": [{"b": "c"}]}
    field = "unknown" if "x-kubernetes-preserve-unknown-fields" in schema else "spec"
    body = {"apiVersion": f"{group}/v1", "kind": "Foo", "metadata": {"name": "one"}, field: anything}
    for verb in ("create", "apply"):
        cluster.kubectl("-n", ns.name, verb, "-f", "-", stdin=json.dumps(body))
    assert cluster.get(at(f"{group}/v1", "foos", ns.name, "one"))[field] == anything
    assert "KIND:" in explained(cluster, f"foos.{group}")


@conformance(
    OPENAPI + "works for multiple CRDs of different groups",
    OPENAPI + "works for multiple CRDs of same group and version but different kinds",
    OPENAPI + "works for multiple CRDs of same group but different versions",
)
@pytest.mark.parametrize(
    "kinds",
    [
        [("Foo", "a", ("v1",)), ("Foo", "b", ("v1",))],
        [("Foo", "", ("v1",)), ("Bar", "", ("v1",))],
        [("Foo", "", ("v2", "v3"))],
    ],
    ids=["groups", "kinds", "versions"],
)
def test_all_kinds_are_published(cluster, defined, kinds):
    for kind, suffix, versions in kinds:
        group = defined(kind, suffix, versions=versions, schema={"openAPIV3Schema": SCHEMA})
        for version in versions:
            has(cluster, group, version, kind, is_there)


@conformance(
    OPENAPI + "updates the published spec when one version gets renamed",
    OPENAPI + "removes definition from spec when one version gets changed to not be served",
)
def test_what_is_published_follows_the_definition(cluster, ns, defined):
    group = defined("Foo", versions=("v2", "v3"), schema={"openAPIV3Schema": SCHEMA})
    path = f"{DEFINITIONS}/foos.{group}"
    for version in ("v2", "v3"):
        has(cluster, group, version, "Foo", is_there)
    cluster.patch(path, [{"op": "replace", "path": "/spec/versions/0/name", "value": "v4"}], "json")
    for version, check in [("v4", is_there), ("v2", is_not_there), ("v3", is_there)]:
        has(cluster, group, version, "Foo", check)
    cluster.patch(path, [{"op": "replace", "path": "/spec/versions/0/served", "value": False}], "json")
    for version, check in [("v4", is_not_there), ("v3", is_there)]:
        has(cluster, group, version, "Foo", check)
