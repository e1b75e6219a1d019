"""The API server's machinery: discovery, field validation, chunks, namespaces, quotas."""

import json
import re

import pytest

from cluster import Refused, at, condition, container, eventually, pod

conformance = pytest.mark.conformance

AGGREGATED = "application/json;v=v2;g=apidiscovery.k8s.io;as=APIGroupDiscoveryList"
AGGREGATED_BETA = AGGREGATED.replace("v=v2;", "v=v2beta1;")
DISCOVERY = "[sig-api-machinery] AggregatedDiscovery "


def definition(group, kind, versions=("v1",), **version):
    """A CustomResourceDefinition of one kind; `version` are fields of each of its versions."""
    plural = kind.lower() + "s"
    fields = {
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
        **version,
    }
    listed = [{"name": name, "served": True, "storage": name == versions[-1], **fields} for name in versions]
    names = {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": kind + "List"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {"group": group, "names": names, "scope": "Namespaced", "versions": listed},
    }


@pytest.fixture
def defined(cluster, ns):
    """Makes definitions in a group of the test's own and takes them away again."""
    made = []
    group = f"{ns.name}.example.com"

    def define(kind="Noxu", **more):
        body = cluster.create(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition(group, kind, **more)
        )
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/" + body["metadata"]["name"]
        made.append(path)

        def served():
            assert condition(cluster.get(path), "Established") == "True"
            for version in body["spec"]["versions"]:
                cluster.get(at(f"{group}/{version['name']}", body["spec"]["names"]["plural"], ns.name))

        eventually("the kind is served", served)
        return group

    yield define
    for path in made:
        cluster.delete(path)


def discovery(cluster, root, accept):
    response = cluster.response("GET", root, headers={"Accept": accept})
    assert response.ok
    return response.headers["Content-Type"].replace(" ", ""), response.json()


@conformance(
    DISCOVERY + "should support aggregated discovery interface",
    DISCOVERY + "should support raw aggregated discovery endpoint Accept headers",
)
@pytest.mark.parametrize("root", ["/api", "/apis"])
def test_one_document_tells_of_all_groups(cluster, root):
    for accept in (AGGREGATED, AGGREGATED_BETA + "," + AGGREGATED + ",application/json"):
        kind, found = discovery(cluster, root, accept)
        assert kind.startswith("application/json;") and "as=APIGroupDiscoveryList" in kind
        assert found["kind"] == "APIGroupDiscoveryList"
        groups = {group["metadata"].get("name", ""): group for group in found["items"]}
        expected = {"/api": {"": "v1"}, "/apis": {"apps": "v1", "batch": "v1", "rbac.authorization.k8s.io": "v1"}}[root]
        for group, version in expected.items():
            versions = {each["version"]: each for each in groups[group]["versions"]}
            assert versions[version]["freshness"] == "Current"
    if root == "/api":
        [core] = found["items"]
        pods = next(each for each in core["versions"][0]["resources"] if each["resource"] == "pods")
        assert (
            pods["responseKind"] == {"group": "", "version": "v1", "kind": "Pod"}
            or pods["responseKind"]["kind"] == "Pod"
        )
        assert {"status", "log", "exec"} <= {each["subresource"] for each in pods["subresources"]}
    kind, plain = discovery(cluster, root, "application/json")
    assert kind.startswith("application/json") and "as=" not in kind
    assert plain["kind"] == {"/api": "APIVersions", "/apis": "APIGroupList"}[root]


@conformance(
    DISCOVERY + "should support aggregated discovery interface for CRDs",
    DISCOVERY + "should support raw aggregated discovery request for CRDs",
)
def test_custom_kinds_are_in_the_document(cluster, defined):
    group = defined(versions=("v1beta1", "v1"))

    def listed():
        _, found = discovery(cluster, "/apis", AGGREGATED)
        [ours] = [each for each in found["items"] if each["metadata"]["name"] == group] or [None]
        assert ours
        assert [each["version"] for each in ours["versions"]] == ["v1", "v1beta1"]
        assert {each["resource"] for version in ours["versions"] for each in version["resources"]} == {"noxus"}

    eventually("its group is listed", listed)


@conformance("[sig-api-machinery] Discovery should locate the groupVersion and a resource within each APIGroup")
def test_every_group_version_lists_its_resources(cluster):
    groups = cluster.get("/apis")["groups"]
    assert {"apps", "batch", "policy", "networking.k8s.io"} <= {group["name"] for group in groups}
    # Groups of other tests come and go.
    for group in [group for group in groups if not group["name"].endswith("example.com")]:
        preferred = group["preferredVersion"]["groupVersion"]
        assert preferred in [version["groupVersion"] for version in group["versions"]]
        for version in group["versions"]:

            def lists(version=version["groupVersion"]):
                found = cluster.get("/apis/" + version)
                assert found["groupVersion"] == version and found["resources"]

            # The metrics API comes with its pod.
            eventually(f"the resources of {version['groupVersion']}", lists, 240)


CHUNKS = "[sig-api-machinery] Servers with support for API chunking "


def templates(ns, count):
    """Makes so many PodTemplates: their names, and the path to list."""
    path = ns.at("v1", "podtemplates")
    names = [f"template-{index:03}" for index in range(count)]
    for name in names:
        ns.cluster.create(path, {"metadata": {"name": name}, "template": {"spec": {"containers": [container("c")]}}})
    return names, path


@conformance(CHUNKS + "should return chunks of results for list calls")
def test_lists_come_in_chunks(ns):
    names, path = templates(ns, 40)
    seen, token, version = [], "", None
    while True:
        chunk = ns.cluster.get(path, limit=17, **({"continue": token} if token else {}))
        version = version or chunk["metadata"]["resourceVersion"]
        assert chunk["metadata"]["resourceVersion"] == version, "all chunks are of one moment"
        seen += [each["metadata"]["name"] for each in chunk["items"]]
        token = chunk["metadata"].get("continue")
        if not token:
            assert "remainingItemCount" not in chunk["metadata"]
            break
        assert chunk["metadata"]["remainingItemCount"] == len(names) - len(seen)
    assert seen == names
    assert [each["metadata"]["name"] for each in ns.cluster.items(path)] == names


@conformance(
    CHUNKS
    + "should support continue listing from the last key if the original version has been compacted away, though the list is inconsistent [Slow]"
)
def test_lists_go_on_after_their_version_is_gone(ns, refused):
    names, path = templates(ns, 9)
    first = ns.cluster.get(path, limit=4)
    token = first["metadata"]["continue"]
    assert [each["metadata"]["name"] for each in first["items"]] == names[:4]
    ns.cluster.delete(ns.at("v1", "podtemplates", names[5]))

    def compacted():
        with refused(410, "Expired") as expired:
            assert [each["metadata"]["name"] for each in ns.cluster.items(path, **{"continue": token})] == names[4:]
        return expired.error

    # The API server forgets twice within ten minutes where nobody told it otherwise.
    error = eventually("the version is compacted away", compacted, 660)
    assert "inconsistent" in error.message
    rest = ns.cluster.get(path, limit=3, **{"continue": error.status["metadata"]["continue"]})
    assert rest["metadata"]["resourceVersion"] != first["metadata"]["resourceVersion"]
    assert [each["metadata"]["name"] for each in rest["items"]] == [names[4], *names[6:8]]
    assert rest["metadata"]["remainingItemCount"] == 1
    last = ns.cluster.get(path, limit=3, **{"continue": rest["metadata"]["continue"]})
    assert last["metadata"]["resourceVersion"] == rest["metadata"]["resourceVersion"]
    assert [each["metadata"]["name"] for each in last["items"]] == names[8:]


FIELDS = "[sig-api-machinery] FieldValidation "
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "strict"},
    "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    },
}


def strictly(ns, path, text, code, *says):
    """What is refused under Strict and only warned of under Warn; Ignore takes it silently."""
    url = ns.cluster.server + path + "?dryRun=All&fieldManager=f&fieldValidation="
    answers = {
        mode: ns.cluster.http.post(url + mode, data=text, headers={"Content-Type": "application/json"})
        for mode in ("Strict", "Warn", "Ignore")
    }
    assert answers["Strict"].status_code == code, answers["Strict"].text
    for words in says:
        assert words in answers["Strict"].json()["message"]
        assert words in answers["Warn"].headers.get("Warning", "").replace('\\"', '"')
    assert answers["Warn"].ok and answers["Ignore"].ok and "Warning" not in answers["Ignore"].headers


@conformance(
    FIELDS + "should detect unknown and duplicate fields of a typed object",
    FIELDS + "should detect unknown metadata fields of a typed object",
)
def test_typed_objects_are_checked_field_by_field(ns):
    path = ns.at("apps/v1", "deployments")
    unknown = json.loads(json.dumps(DEPLOYMENT))
    unknown["spec"]["unknownField"] = "x"
    unknown["metadata"]["unknownMeta"] = "y"
    text = json.dumps(unknown)
    text = text.replace('"matchLabels"', '"matchLabels": {}, "matchLabels"', 1)
    strictly(
        ns,
        path,
        text,
        400,
        'unknown field "spec.unknownField"',
        'unknown field "metadata.unknownMeta"',
        'duplicate field "spec.selector.matchLabels"',
    )
    with pytest.raises(Refused) as refused:
        ns.cluster.apply(f"{path}/strict", unknown, fieldValidation="Strict")
    assert refused.value.code in (400, 500), refused.value


SCHEMA = {
    "schema": {
        "openAPIV3Schema": {
            "type": "object",
            "properties": {
                "spec": {
                    "type": "object",
                    "properties": {
                        "foo": {"type": "string"},
                        "embedded": {
                            "type": "object",
                            "x-kubernetes-embedded-resource": True,
                            "x-kubernetes-preserve-unknown-fields": True,
                        },
                    },
                }
            },
        }
    }
}


@conformance(
    FIELDS + "should create/apply a valid CR for CRD with validation schema",
    FIELDS + "should create/apply an invalid CR with extra properties for CRD with validation schema",
    FIELDS + "should detect unknown metadata fields in both the root and embedded object of a CR",
)
def test_custom_objects_are_checked_against_their_schema(ns, defined):
    group = defined(**SCHEMA)
    path = at(f"{group}/v1", "noxus", ns.name)
    good = {"apiVersion": f"{group}/v1", "kind": "Noxu", "metadata": {"name": "good"}, "spec": {"foo": "bar"}}
    assert ns.cluster.create(path, good, fieldValidation="Strict")["spec"] == {"foo": "bar"}
    assert ns.cluster.apply(f"{path}/good", good, fieldValidation="Strict", force="true")["spec"] == {"foo": "bar"}
    extra = {**good, "metadata": {"name": "extra"}, "spec": {"foo": "bar", "extra": 1}}
    strictly(ns, path, json.dumps(extra), 400, 'unknown field "spec.extra"')
    assert ns.cluster.create(path, extra, fieldValidation="Ignore")["spec"] == {"foo": "bar"}, "it is pruned"
    embedded = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "unknownSub": "y"}}
    meta = {**good, "metadata": {"name": "meta", "unknownMeta": "x"}, "spec": {"embedded": embedded}}
    says = ['unknown field "metadata.unknownMeta"', 'unknown field "spec.embedded.metadata.unknownSub"']
    strictly(ns, path, json.dumps(meta), 400, *says)


@conformance(
    FIELDS + "should create/apply a CR with unknown fields for CRD with no validation schema",
    FIELDS + "should detect duplicates in a CR when preserving unknown fields",
)
def test_without_a_schema_only_duplicates_are_wrong(ns, defined):
    group = defined()
    path = at(f"{group}/v1", "noxus", ns.name)
    free = {"apiVersion": f"{group}/v1", "kind": "Noxu", "metadata": {"name": "free"}, "spec": {"any": {"thing": 1}}}
    assert ns.cluster.create(path, free, fieldValidation="Strict")["spec"] == free["spec"]
    assert ns.cluster.apply(f"{path}/free", free, fieldValidation="Strict", force="true")["spec"] == free["spec"]
    twice = json.dumps({**free, "metadata": {"name": "twice"}}).replace('"any"', '"any": 1, "any"')
    strictly(ns, path, twice, 400, 'duplicate field "spec.any"')


@conformance(
    "[sig-api-machinery] CustomResourceFieldSelectors [Privileged:ClusterAdmin] CustomResourceFieldSelectors MUST list and watch custom resources matching the field selector"
)
def test_custom_objects_are_selected_by_their_fields(ns, defined):
    text = {"type": "object", "properties": {"host": {"type": "string"}, "port": {"type": "string"}}}
    group = defined(
        schema={"openAPIV3Schema": {"type": "object", "properties": {"spec": text}}},
        selectableFields=[{"jsonPath": ".spec.host"}, {"jsonPath": ".spec.port"}],
    )
    path = at(f"{group}/v1", "noxus", ns.name)

    def put(name, host, port):
        ns.cluster.create(
            path,
            {
                "apiVersion": f"{group}/v1",
                "kind": "Noxu",
                "metadata": {"name": name},
                "spec": {"host": host, "port": port},
            },
        )

    put("one", "host1", "80")
    put("two", "host1", "8080")
    put("three", "host2", "80")

    def names(selector):
        return [found["metadata"]["name"] for found in ns.cluster.items(path, fieldSelector=selector)]

    assert names("spec.host=host1") == ["one", "two"]
    assert names("spec.host=host1,spec.port=80") == ["one"]
    assert names("spec.host!=host1") == ["three"]
    with ns.cluster.watch(path, fieldSelector="spec.host=host1") as watch:
        ns.cluster.patch(f"{path}/three", {"spec": {"host": "host1"}})
        watch.until("ADDED", lambda found: found["metadata"]["name"] == "three")
        ns.cluster.patch(f"{path}/one", {"spec": {"host": "host2"}})
        watch.until("DELETED", lambda found: found["metadata"]["name"] == "one")
    with pytest.raises(Refused) as refused:
        names("spec.other=x")
    assert refused.value.code == 400


@conformance(
    "[sig-api-machinery] Namespaces [Serial] should apply a finalizer to a Namespace",
    "[sig-api-machinery] Namespaces [Serial] should apply an update to a Namespace",
    "[sig-api-machinery] Namespaces [Serial] should apply changes to a namespace status",
)
def test_namespaces_are_updated_finalized_and_told(cluster, ns):
    path = f"/api/v1/namespaces/{ns.name}"

    def label(found):
        found["metadata"]["labels"][ns.name] = "updated"

    assert cluster.update(path, label)["metadata"]["labels"][ns.name] == "updated"

    def hold(found):
        found["spec"]["finalizers"].append("e2e.example.com/fakeFinalizer")

    def finalize(change):
        found = cluster.get(path)
        change(found)
        return cluster.replace(path + "/finalize", found)["spec"]["finalizers"]

    assert finalize(hold) == ["kubernetes", "e2e.example.com/fakeFinalizer"]

    def let_go(found):
        found["spec"]["finalizers"].remove("e2e.example.com/fakeFinalizer")

    assert finalize(let_go) == ["kubernetes"]
    told = {"type": "StatusPatch", "status": "True", "reason": "Test", "message": "by hand"}
    patched = cluster.patch(
        path + "/status", {"metadata": {"annotations": {"patched": "true"}}, "status": {"conditions": [told]}}
    )
    assert patched["metadata"]["annotations"]["patched"] == "true" and condition(patched, "StatusPatch") == "True"

    def more(found):
        found["status"]["conditions"].append({**told, "type": "StatusUpdate"})

    assert condition(cluster.update(path + "/status", more), "StatusUpdate") == "True"


@conformance("[sig-api-machinery] OrderedNamespaceDeletion namespace deletion should delete pod first")
def test_a_namespace_loses_its_pods_first(cluster):
    made = cluster.create("/api/v1/namespaces", {"metadata": {"generateName": "ordered-"}})["metadata"]["name"]
    maps, pods = at("v1", "configmaps", made), at("v1", "pods", made)
    eventually("its account", lambda: cluster.get(at("v1", "serviceaccounts", made, "default")))
    cluster.create(maps, {"metadata": {"name": "kept"}, "data": {"a": "b"}})
    held = {"name": "held", "finalizers": ["e2e.example.com/held"]}
    cluster.create(
        pods,
        {
            "metadata": held,
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [container("c", "sleep", "1000000")]},
        },
    )
    cluster.delete(f"/api/v1/namespaces/{made}")

    def waits():
        found = cluster.get(f"/api/v1/namespaces/{made}")
        assert condition(found, "NamespaceFinalizersRemaining") == "True"
        assert "deletionTimestamp" in cluster.get(f"{pods}/held")["metadata"]

    eventually("the pod holds the namespace", waits)
    assert "deletionTimestamp" not in cluster.get(f"{maps}/kept")["metadata"]
    cluster.patch(f"{pods}/held", {"metadata": {"finalizers": None}})

    def gone():
        assert cluster.exists(f"/api/v1/namespaces/{made}") is None

    eventually("the namespace is gone", gone)


QUOTA = "[sig-api-machinery] ResourceQuota "


@conformance(
    QUOTA + "should manage the lifecycle of a ResourceQuota", QUOTA + "should apply changes to a resourcequota status"
)
def test_a_quota_s_life_and_status(ns):
    cluster = ns.cluster
    quotas = ns.at("v1", "resourcequotas")
    hard = {"cpu": "1", "memory": "500Mi"}
    body = {"metadata": {"name": "quota", "labels": {"e2e": ns.name}}, "spec": {"hard": hard}}
    cluster.create(quotas, body)
    path = f"{quotas}/quota"

    def counted(wanted):
        def reached():
            assert cluster.get(path).get("status", {}).get("hard") == wanted

        eventually("its status has its limits", reached)

    counted(hard)
    selector = f"e2e={ns.name}"
    assert len(cluster.items("/api/v1/resourcequotas", labelSelector=selector)) == 1
    cluster.patch(
        path, {"metadata": {"labels": {"patched": "true"}}, "spec": {"hard": {"memory": "750Mi"}}}, "strategic"
    )
    counted({"cpu": "1", "memory": "750Mi"})
    with cluster.watch(quotas, labelSelector=selector) as watch:

        def raise_limits(found):
            found["status"]["hard"]["cpu"] = "7"

        cluster.update(path + "/status", raise_limits)
        watch.until("MODIFIED", lambda found: found["status"]["hard"]["cpu"] == "7")
        cluster.delete(quotas, labelSelector=selector)
        watch.until("DELETED")
    assert cluster.items(quotas) == []


def advice(response):
    """The texts of the `Warning` headers (RFC 9110 has several in one line)."""
    assert response.ok, response.text
    found = response.headers.get("Warning", "")
    return [json.loads(f'"{text}"') for text in re.findall(r'299 - "((?:[^"\\]|\\.)*)"', found)]


def test_what_is_accepted_may_be_advised_against(cluster, ns):
    twice = [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]
    body = json.dumps(pod("a.b", container={"env": twice}))
    assert advice(cluster.response("POST", ns.pods(), body, dryRun="All")) == [
        "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; "
        "a DNS label is recommended: [must not contain dots]",
        'spec.containers[0].env[1]: hides previous definition of "A", which may be dropped when using apply',
    ]
    assert not advice(cluster.response("POST", ns.pods(), json.dumps(pod("ab")), dryRun="All"))
    assert advice(cluster.response("GET", ns.at("v1", "endpoints"))) == [
        "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"
    ]


def test_old_versions_of_a_kind_say_so(cluster, ns, defined):
    group = defined("Dusty", versions=("v1", "v2"), deprecated=True)
    response = cluster.response("GET", at(f"{group}/v1", "dustys", ns.name))
    assert advice(response) == [f"{group}/v1 Dusty is deprecated"]


def test_components_say_how_they_are(cluster):
    path = "/api/v1/componentstatuses"
    found = {one["metadata"]["name"]: one["conditions"] for one in cluster.items(path)}
    healthy = [{"type": "Healthy", "status": "True", "message": "ok"}]
    assert found == dict.fromkeys(["controller-manager", "etcd-0", "scheduler"], healthy)
    assert cluster.get(path + "/scheduler")["conditions"] == healthy
    assert cluster.kubectl("get", "cs", "etcd-0", "--no-headers").split() == ["etcd-0", "Healthy", "ok"]
