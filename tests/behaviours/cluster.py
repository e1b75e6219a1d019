"""The cluster under test, spoken to as it speaks: paths, JSON objects, `Status` errors, watch frames."""

import atexit
import base64
import json
import os
import queue
import subprocess
import tempfile
import threading
import time

import pytest
import requests
import yaml

PATCHES = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}
SOON = 60


class Refused(Exception):
    """An answer other than success; `status` is the `Status` object."""

    def __init__(self, response):
        self.code = response.status_code
        try:
            self.status = response.json()
        except ValueError:
            self.status = {"message": response.text}
        self.reason = self.status.get("reason")
        self.message = self.status.get("message", "")
        super().__init__(f"{self.code} {self.reason}: {self.message}")


def at(api, resource, namespace=None, name=None, sub=None):
    """The path of a resource: `at("apps/v1", "deployments", "default", "web", "scale")`."""
    parts = ["/api" if api == "v1" else "/apis", api]
    if namespace:
        parts += ["namespaces", namespace]
    return "/".join(parts + [part for part in (resource, name, sub) if part])


class Cluster:
    def __init__(self, kubeconfig):
        self.kubeconfig = kubeconfig
        with open(kubeconfig) as file:
            config = yaml.safe_load(file)
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server = cluster["server"]
        self.http = requests.Session()
        self.http.trust_env = False
        self.http.verify = self._file(cluster["certificate-authority-data"])
        if "token" in user:
            self.http.headers["Authorization"] = "Bearer " + user["token"]
        else:
            self.http.cert = tuple(self._file(user[f"client-{part}-data"]) for part in ("certificate", "key"))
        self.http.headers["User-Agent"] = "behaviours"

    @staticmethod
    def _file(data):
        file = tempfile.NamedTemporaryFile(delete=False)
        file.write(base64.b64decode(data))
        file.close()
        atexit.register(os.unlink, file.name)
        return file.name

    def as_bearer(self, token):
        """The same cluster as the token's owner."""
        other = Cluster(self.kubeconfig)
        other.http.cert = None
        other.http.headers["Authorization"] = "Bearer " + token
        return other

    def response(self, method, path, body=None, headers=None, stream=False, timeout=SOON, **query):
        data = body if isinstance(body, (str, bytes, type(None))) else json.dumps(body)
        all_headers = {"Content-Type": "application/json", **(headers or {})}
        return self.http.request(
            method, self.server + path, data=data, headers=all_headers, params=query, stream=stream, timeout=timeout
        )

    def request(self, method, path, body=None, **options):
        response = self.response(method, path, body, **options)
        if not response.ok:
            raise Refused(response)
        return response.json() if "json" in response.headers.get("Content-Type", "") else response.text

    def get(self, path, **query):
        return self.request("GET", path, **query)

    def items(self, path, **query):
        return self.get(path, **query)["items"]

    def create(self, path, body, **query):
        return self.request("POST", path, body, **query)

    def replace(self, path, body, **query):
        return self.request("PUT", path, body, **query)

    def patch(self, path, body, kind="merge", **query):
        return self.request("PATCH", path, body, headers={"Content-Type": PATCHES[kind]}, **query)

    def apply(self, path, body, manager="behaviours", **query):
        return self.patch(path, body, "apply", fieldManager=manager, **query)

    def delete(self, path, options=None, **query):
        return self.request("DELETE", path, options, **query)

    def update(self, path, change):
        """Reads, changes and replaces until nobody else came between."""
        while True:
            found = self.get(path)
            change(found)
            try:
                return self.replace(path, found)
            except Refused as refused:
                if refused.reason != "Conflict":
                    raise

    def exists(self, path):
        try:
            return self.get(path)
        except Refused as refused:
            if refused.code == 404:
                return None
            raise

    def watch(self, path, **query):
        return Watch(self, path, query)

    def kubectl(self, *args, stdin=None, ok=True):
        """Its standard output; with `ok=False` both outputs, whatever it ended with."""
        done = subprocess.run(
            ["kubectl", "--kubeconfig", self.kubeconfig, *args],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if not ok:
            return done.stdout + done.stderr
        assert done.returncode == 0, f"kubectl {args}: {done.stdout}{done.stderr}"
        return done.stdout


class Watch:
    """Events as they come, in the background: `with cluster.watch(path) as watch: ... watch.until(...)`."""

    def __init__(self, cluster, path, query):
        self.events = queue.Queue()
        self.seen = []
        self.response = cluster.response("GET", path, stream=True, timeout=600, watch="true", **query)
        if not self.response.ok:
            raise Refused(self.response)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self):
        try:
            for line in self.response.iter_lines():
                self.events.put(json.loads(line))
        except Exception:  # closed by the test
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # The reader holds the connection's lock until something comes; this ends its wait.
        self.response.raw.shutdown()
        self.response.close()

    def until(self, kind, wanted=lambda _: True, limit=SOON):
        """The object of the next event of this kind (None: any) that satisfies `wanted`."""
        end = time.monotonic() + limit
        while True:
            try:
                event = self.events.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                seen = [(event["type"], event["object"].get("metadata", {}).get("name")) for event in self.seen]
                raise AssertionError(f"no {kind} event within {limit} s; seen: {seen}") from None
            self.seen.append(event)
            if kind in (None, event["type"]) and wanted(event["object"]):
                return event["object"]


class Namespace:
    """One of a test's own; `ns.pods("web")` is the path of a pod, `ns.at("apps/v1", "deployments")` of a list."""

    def __init__(self, cluster, name):
        self.cluster = cluster
        self.name = name

    def at(self, api, resource, name=None, sub=None):
        return at(api, resource, self.name, name, sub)

    def pods(self, name=None, sub=None):
        return self.at("v1", "pods", name, sub)

    def pod_is(self, name, phase, limit=SOON * 2):
        """Waits for the pod's phase; `Ready` is the condition."""

        def reached():
            pod = self.cluster.get(self.pods(name))
            if phase == "Ready":
                assert condition(pod, "Ready") == "True", pod["status"]
            else:
                assert pod["status"].get("phase") == phase, pod["status"]
            return pod

        return eventually(f"pod {name} is {phase}", reached, limit)

    def gone(self, path, limit=SOON * 2):
        def absent():
            assert self.cluster.exists(path) is None, "still there"

        eventually(f"{path} is gone", absent, limit)

    def run(self, name, *command, **spec):
        """A pod of one container, created; what it says is read with `log`."""
        return self.cluster.create(self.pods(), pod(name, *command, **spec))

    def says(self, *command, name="says", **spec):
        """What a pod of one container wrote by the time it succeeded."""
        self.run(name, *command, **spec)
        self.pod_is(name, "Succeeded")
        return self.log(name)

    def log(self, name, **query):
        return self.cluster.request("GET", self.pods(name, "log"), **query)

    def exec(self, name, *command):
        return self.cluster.kubectl("-n", self.name, "exec", name, "--", *command)


def container(name, *command, **fields):
    """A container of the tests' only image: busybox."""
    found = {"name": name, "image": os.environ.get("IRONLET_TEST_IMAGE", "busybox"), "imagePullPolicy": "IfNotPresent"}
    if command:
        found["command"] = list(command)
    return {**found, **fields}


def pod(name, *command, labels=None, annotations=None, **spec):
    """Fields of the container go into `container={...}`, all others into the pod's spec."""
    fields = spec.pop("container", {})
    body = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "containers": [container("c", *command, **fields)],
    }
    meta = {"name": name, "labels": labels or {}, "annotations": annotations or {}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {**body, **spec}}


def condition(thing, kind):
    """The status of one of an object's conditions, or None."""
    conditions = thing.get("status", {}).get("conditions", [])
    return next((found["status"] for found in conditions if found["type"] == kind), None)


def eventually(what, probe, limit=SOON):
    """What `probe` returns once it neither fails an assertion nor is refused."""
    end = time.monotonic() + limit
    while True:
        try:
            return probe()
        except (AssertionError, Refused, LookupError, ValueError, pytest.fail.Exception) as error:
            if time.monotonic() > end:
                raise AssertionError(f"{what}: not within {limit} s: {error!r}") from error
        time.sleep(0.1)
