"""Helm 4 (its own library) against one API server: a chart's whole life."""

import json
import sys
import tempfile
from pathlib import Path

import helm_python as helm

CHART = {
    "Chart.yaml": "apiVersion: v2\nname: shop\nversion: 1.2.3\nappVersion: v9\n",
    "values.yaml": "replicas: 0\ncolour: red\nport: 80\n",
    "values.schema.json": '{"type": "object", "properties": {"replicas": {"type": "integer", "minimum": 0}}}',
    "crds/pies.yaml": """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: pies.helm.example.com}
spec:
  group: helm.example.com
  scope: Namespaced
  names: {plural: pies, singular: pie, kind: Pie}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {size: {type: integer}}}}}}
""",
    "templates/pie.yaml": """
apiVersion: helm.example.com/v1
kind: Pie
metadata: {name: {{ .Release.Name }}}
spec: {size: {{ add .Values.replicas 1 }}}
""",
    "templates/settings.yaml": """
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}-settings, labels: {app: {{ .Chart.Name }}}}
data:
  colour: {{ .Values.colour }}
  revision: "{{ .Release.Revision }}"
  minor: "{{ .Capabilities.KubeVersion.Minor }}"
  hasJobs: "{{ .Capabilities.APIVersions.Has "batch/v1/Job" }}"
  account: "{{ (lookup "v1" "ServiceAccount" .Release.Namespace "default").metadata.name }}"
  spaces: "{{ gt (len (lookup "v1" "Namespace" "" "").items) 3 }}"
""",
    "templates/deployment.yaml": """
apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata: {labels: {app: {{ .Release.Name }}}}
    spec: {containers: [{name: c, image: "busybox:{{ .Values.colour }}", ports: [{containerPort: 80}]}]}
""",
    "templates/service.yaml": """
apiVersion: v1
kind: Service
metadata: {name: {{ .Release.Name }}}
spec: {selector: {app: {{ .Release.Name }}}, ports: [{port: {{ .Values.port }}}]}
""",
    "templates/hook.yaml": """
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .Release.Name }}-before
  annotations: {helm.sh/hook: "pre-install,pre-upgrade", helm.sh/hook-delete-policy: before-hook-creation}
data: {revision: "{{ .Release.Revision }}"}
""",
    "templates/tests/check.yaml": """
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}-check, annotations: {helm.sh/hook: test}}
""",
}


def text(release):
    return json.dumps(release)


def fails(wanted, call):
    try:
        call()
    except helm.HelmError as error:
        assert wanted in str(error), error
    else:
        raise AssertionError(f"{wanted}: nothing was refused")


def life(cluster, chart):
    cluster.check_reachable()
    fails('no matches for kind "Pie"', lambda: cluster.install(chart, "shop", dry_run="server"))
    # Server-side apply, and what was applied is watched until it is there.
    first = cluster.install(chart, "shop", wait="watcher", timeout=60, labels={"team": "a"})
    assert (first["status"], first["revision"]) == ("deployed", 1), first
    for line in ("colour: red", "account: \\\"default", "spaces: \\\"true", "minor: \\\"36"):
        assert line in text(first), (line, first)
    dry = cluster.install(chart, "dry", dry_run="server")
    assert 'hasJobs: \\"true' in text(dry) and 'account: \\"default' in text(dry), dry
    fails("cannot reuse a name", lambda: cluster.install(chart, "shop"))
    fails("replicas", lambda: cluster.upgrade(chart, "shop", {"replicas": -1}))
    second = cluster.upgrade(chart, "shop", {"colour": "blue"}, wait="watcher", timeout=60)
    assert second["revision"] == 2 and "busybox:blue" in text(second), second
    # Refused by the server in the middle of it, and taken back.
    bad = {"colour": "green", "port": 70000}
    fails(
        "must be between 1 and 65535",
        lambda: cluster.upgrade(chart, "shop", bad, rollback_on_failure=True, wait="watcher", timeout=20),
    )
    assert "colour: blue" in text(cluster.get_all("shop"))
    cluster.rollback("shop", version=1, wait="watcher", timeout=60)
    history = [(entry["revision"], entry["status"]) for entry in cluster.history("shop")]
    assert history[-1][1] == "deployed" and (2, "superseded") in history, history
    assert "colour: red" in text(cluster.get_all("shop"))
    assert cluster.test("shop", timeout=60)["release"]["status"] == "deployed"
    assert [release["name"] for release in cluster.list()] == ["shop"]
    cluster.uninstall("shop", wait="watcher", timeout=60)
    assert cluster.list() == []
    fails("not found", lambda: cluster.status("shop"))


def main():
    with tempfile.TemporaryDirectory() as directory:
        for name, content in CHART.items():
            path = Path(directory, "shop", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        chart = str(Path(directory, "shop"))
        assert not [f for f in helm.lint(chart)["messages"] if f["severity"] == "ERROR"]
        with helm.Config(kubeconfig_path=sys.argv[1], namespace="default") as cluster:
            life(cluster, chart)
    print("all of it works")


main()
