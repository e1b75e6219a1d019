"""Who asks, what they may, and what is told about it: accounts, tokens, certificates, reviews, events."""

import base64
import json
import subprocess

import pytest

from cluster import at, condition, eventually

conformance = pytest.mark.conformance
FOREVER = ("sleep", "3600")
ACCOUNTS = "[sig-auth] ServiceAccounts "
MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


@conformance(
    ACCOUNTS + "should mount an API token into pods", ACCOUNTS + "should mount projected service account token"
)
def test_pods_have_a_token_of_their_account(cluster, ns):
    projected = [{"serviceAccountToken": {"path": "own", "audience": "vault", "expirationSeconds": 600}}]
    mounts = [{"name": "more", "mountPath": "/more"}]
    volumes = [{"name": "more", "projected": {"sources": projected}}]
    cluster.create(ns.at("v1", "serviceaccounts"), {"metadata": {"name": "robot"}})
    ns.run("p", *FOREVER, serviceAccountName="robot", volumes=volumes, container={"volumeMounts": mounts})
    ns.pod_is("p", "Ready")
    token = ns.exec("p", "cat", MOUNT + "/token")
    assert ns.exec("p", "cat", MOUNT + "/namespace") == ns.name
    assert ns.exec("p", "cat", MOUNT + "/ca.crt").startswith("-----BEGIN CERTIFICATE-----")
    review = cluster.create(at("authentication.k8s.io/v1", "tokenreviews"), {"spec": {"token": token}})["status"]
    assert review["authenticated"] and review["user"]["username"] == f"system:serviceaccount:{ns.name}:robot"
    assert review["user"]["groups"] == [
        "system:serviceaccounts",
        f"system:serviceaccounts:{ns.name}",
        "system:authenticated",
    ]
    assert review["user"]["extra"]["authentication.kubernetes.io/pod-name"] == ["p"]
    own = claims(ns.exec("p", "cat", "/more/own"))
    assert own["aud"] == ["vault"] and own["exp"] - own["iat"] == 600


def claims(token):
    body = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))


@conformance(ACCOUNTS + "should allow opting out of API token automount")
@pytest.mark.parametrize("of_account", [None, True, False])
@pytest.mark.parametrize("of_pod", [None, True, False])
def test_tokens_are_mounted_unless_declined(cluster, ns, of_account, of_pod):
    account = {"metadata": {"name": "robot"}, "automountServiceAccountToken": of_account}
    cluster.create(ns.at("v1", "serviceaccounts"), account)
    made = ns.run("p", *FOREVER, serviceAccountName="robot", automountServiceAccountToken=of_pod)
    mounts = [one["mountPath"] for one in made["spec"]["containers"][0].get("volumeMounts", [])]
    expected = of_pod if of_pod is not None else of_account is not False
    assert (MOUNT in mounts) == expected


@conformance(ACCOUNTS + "should create a serviceAccountToken and ensure a successful TokenReview")
def test_tokens_are_given_on_request(cluster, ns):
    path = ns.at("v1", "serviceaccounts", "default", "token")
    made = cluster.create(path, {"spec": {"expirationSeconds": 600}})
    assert made["status"]["expirationTimestamp"]
    review = cluster.create(
        at("authentication.k8s.io/v1", "tokenreviews"), {"spec": {"token": made["status"]["token"]}}
    )
    assert review["status"]["authenticated"] and review["status"]["user"]["uid"]
    own = cluster.as_bearer(made["status"]["token"])
    asked = own.create(at("authentication.k8s.io/v1", "selfsubjectreviews"), {})
    assert asked["status"]["userInfo"]["username"] == f"system:serviceaccount:{ns.name}:default"


@conformance(ACCOUNTS + "should guarantee kube-root-ca.crt exist in any namespace")
def test_every_namespace_has_the_authority(cluster, ns):
    path = ns.at("v1", "configmaps", "kube-root-ca.crt")
    first = eventually("the ConfigMap", lambda: cluster.get(path))
    for spoil in (lambda: cluster.delete(path), lambda: cluster.patch(path, {"data": {"ca.crt": "none"}})):
        spoil()

        def restored():
            assert cluster.get(path)["data"] == first["data"]

        eventually("the ConfigMap is as before", restored)


@conformance(ACCOUNTS + "ServiceAccountIssuerDiscovery should support OIDC discovery of service account issuer")
def test_others_can_check_tokens(cluster, ns):
    token = cluster.create(ns.at("v1", "serviceaccounts", "default", "token"), {"spec": {}})["status"]["token"]
    own = cluster.as_bearer(token)
    document = own.get("/.well-known/openid-configuration")
    assert document["issuer"] == claims(token)["iss"]
    assert document["response_types_supported"] == ["id_token"] and document["subject_types_supported"] == ["public"]
    header = token.split(".")[0]
    key = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    assert key["alg"] in document["id_token_signing_alg_values_supported"]
    assert document["jwks_uri"].endswith("/openid/v1/jwks")
    assert key["kid"] in [one["kid"] for one in own.get("/openid/v1/jwks")["keys"]]


@conformance("[sig-auth] SubjectReview should support SubjectReview API operations")
def test_reviews_say_what_somebody_may(cluster, ns):
    api = "authorization.k8s.io/v1"
    name = f"system:serviceaccount:{ns.name}:default"
    wanted = {"verb": "list", "resource": "configmaps", "version": "v1", "namespace": ns.name}
    body = {"spec": {"resourceAttributes": wanted, "user": name}}
    local = ns.at(api, "localsubjectaccessreviews")
    told = {"metadata": {"namespace": ns.name}, **body}
    for allowed in (False, True):
        if allowed:
            cluster.kubectl(
                "-n",
                ns.name,
                "create",
                "rolebinding",
                "viewer",
                "--clusterrole=view",
                f"--serviceaccount={ns.name}:default",
            )

        def answered():
            assert cluster.create(at(api, "subjectaccessreviews"), body)["status"]["allowed"] == allowed
            assert cluster.create(local, told)["status"]["allowed"] == allowed

        eventually(f"allowed: {allowed}", answered)


@conformance("[sig-auth] Certificates API [Privileged:ClusterAdmin] should support CSR API operations")
def test_certificates_are_asked_for(cluster, ns, tmp_path):
    key, request = tmp_path / "key", tmp_path / "csr"
    command = f"openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {key} -out {request} -subj /CN={ns.name}"
    subprocess.run(command.split(), check=True, capture_output=True)
    path = at("certificates.k8s.io/v1", "certificatesigningrequests")
    labels = {"of": ns.name}
    body = {
        "metadata": {"name": ns.name, "labels": labels},
        "spec": {
            "request": base64.b64encode(request.read_bytes()).decode(),
            "signerName": "kubernetes.io/kube-apiserver-client",
            "usages": ["client auth"],
            "expirationSeconds": 3600,
        },
    }
    made = cluster.create(path, body)
    one = f"{path}/{ns.name}"
    assert made["spec"]["username"] and made["spec"]["groups"]
    with cluster.watch(
        path, labelSelector=f"of={ns.name}", resourceVersion=made["metadata"]["resourceVersion"]
    ) as watch:
        cluster.patch(one, {"metadata": {"annotations": {"patched": "true"}}})
        watch.until("MODIFIED", lambda found: "patched" in found["metadata"].get("annotations", {}))
        approved = {"type": "Approved", "status": "True", "reason": "Behaviour", "message": "by hand"}
        found = cluster.get(one + "/approval")
        found["status"]["conditions"] = [approved]
        cluster.replace(one + "/approval", found)
        signed = watch.until("MODIFIED", lambda found: found["status"].get("certificate"))
    certificate = base64.b64decode(signed["status"]["certificate"])
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-subject"], input=certificate, check=True, capture_output=True
    )
    assert ns.name in shown.stdout.decode()
    assert condition(cluster.get(one + "/status"), "Approved") == "True"
    by_hand = cluster.patch(one + "/status", {"status": {"conditions": [approved, {**approved, "type": "Seen"}]}})
    assert condition(by_hand, "Seen") == "True"
    cluster.delete(path, labelSelector=f"of={ns.name}")
    assert cluster.exists(one) is None


def event(api, ns, name, note):
    about = {"kind": "Pod", "namespace": ns.name, "name": "none", "apiVersion": "v1"}
    words = {"metadata": {"name": name, "labels": {"of": "test"}}, "reason": "Test", "type": "Normal"}
    if api == "v1":
        return {**words, "involvedObject": about, "message": note, "count": 1}
    fresh = {"eventTime": "2026-01-01T00:00:00.000001Z", "action": "Do", "note": note, "regarding": about}
    return {**words, **fresh, "reportingController": "test", "reportingInstance": "test-1"}


@conformance(
    "[sig-instrumentation] Events API should delete a collection of events",
    "[sig-instrumentation] Events API should ensure that an event can be fetched, patched, deleted, and listed",
    "[sig-instrumentation] Events should delete a collection of events",
    "[sig-instrumentation] Events should manage the lifecycle of an event",
)
@pytest.mark.parametrize(("api", "words"), [("v1", "message"), ("events.k8s.io/v1", "note")])
def test_events_are_objects(cluster, ns, api, words):
    path = ns.at(api, "events")
    mine = {"labelSelector": "of=test"}
    for name in ("a", "b", "c"):
        assert cluster.create(path, event(api, ns, name, "first"))[words] == "first"
    assert cluster.patch(path + "/a", {words: "patched"}, "strategic")[words] == "patched"
    found = cluster.get(path + "/a")
    found["series"] = {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000001Z"}
    assert cluster.replace(path + "/a", found)["series"]["count"] == 2
    everywhere = [one["metadata"] for one in cluster.items(at(api, "events"), **mine)]
    assert {one["name"] for one in everywhere if one["namespace"] == ns.name} == {"a", "b", "c"}
    field = "type=Normal" if api == "v1" else "reportingController=test"
    assert len(cluster.items(path, fieldSelector=field, **mine)) == 3
    cluster.delete(path + "/a")
    assert cluster.exists(path + "/a") is None
    cluster.delete(path, **mine)
    assert not cluster.items(path, **mine)
