"""Jobs: how they count, when they give up, when they have had enough."""

import pytest

from cluster import condition, container, eventually

conformance = pytest.mark.conformance

EXIT_AS_INDEX_SAYS = "case $JOB_COMPLETION_INDEX in {}) exit {};; esac"


def job(name, script, **spec):
    """A Job of one container that runs `script`; `labels` go to its template."""
    template = {
        "metadata": {"labels": spec.pop("labels", {})},
        "spec": {
            "restartPolicy": spec.pop("restartPolicy", "Never"),
            "terminationGracePeriodSeconds": 0,
            "containers": [container("c", "sh", "-c", script)],
        },
    }
    body = {"parallelism": 2, "completions": 2, "backoffLimit": 6, **spec, "template": template}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": body}


def indexed(name, script, completions, **spec):
    return job(name, script, completionMode="Indexed", completions=completions, parallelism=completions, **spec)


def create(ns, body):
    return ns.cluster.create(ns.at("batch/v1", "jobs"), body)


def ended(ns, name, kind, reason=None, **status):
    """Waits for the condition; then what its status counts must be as said."""

    def reached():
        found = ns.cluster.get(ns.at("batch/v1", "jobs", name))
        assert condition(found, kind) == "True", found["status"]
        return found

    found = eventually(f"job {name} is {kind}", reached, 120)
    reasons = [each.get("reason") for each in found["status"]["conditions"] if each["type"] == kind]
    assert reason in (None, *reasons), reasons
    said = {name: found["status"].get(name) for name in status}
    assert said == status
    return found


def pods_of(ns, name):
    return ns.cluster.items(ns.pods(), labelSelector=f"batch.kubernetes.io/job-name={name}")


@conformance("[sig-apps] Job should create pods for an Indexed job with completion indexes and specified hostname")
def test_indexed_pods_know_their_index(ns):
    create(ns, indexed("indexed", "hostname; echo $JOB_COMPLETION_INDEX", 4))
    ended(ns, "indexed", "Complete", succeeded=4, completedIndexes="0-3")
    pods = pods_of(ns, "indexed")
    by_index = {pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]: pod for pod in pods}
    assert sorted(by_index) == ["0", "1", "2", "3"]
    for index, pod in by_index.items():
        assert pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == index
        assert pod["spec"]["hostname"] == f"indexed-{index}"
        assert ns.log(pod["metadata"]["name"]) == f"indexed-{index}\n{index}\n"


@conformance("[sig-apps] Job should allow to use the pod failure policy on exit code to fail the job early")
def test_an_exit_code_fails_the_job_at_once(ns):
    rule = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}
    create(ns, job("early", "exit 42", completions=4, podFailurePolicy={"rules": [rule]}))
    ended(ns, "early", "Failed", "PodFailurePolicy")


@conformance(
    "[sig-apps] Job should allow to use a pod failure policy to ignore failure matching on DisruptionTarget condition"
)
def test_evicted_pods_do_not_count(ns):
    rule = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    hold = "while [ ! -e /tmp/go ]; do sleep 0.1; done"
    create(ns, job("spared", hold, parallelism=1, completions=1, backoffLimit=0, podFailurePolicy={"rules": [rule]}))

    def running(other_than=None):
        pods = [pod for pod in pods_of(ns, "spared") if pod["status"].get("phase") == "Running"]
        names = [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        assert len(names) == 1 and names != [other_than]
        return names[0]

    first = eventually("its pod runs", running)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": first}}
    ns.cluster.create(ns.pods(first, "eviction"), eviction)
    second = eventually("another pod runs", lambda: running(first))
    ns.exec(second, "touch", "/tmp/go")
    found = ended(ns, "spared", "Complete", succeeded=1)
    assert not found["status"].get("failed")


@conformance("[sig-apps] Job should execute all indexes despite some failing when using backoffLimitPerIndex")
def test_every_index_is_tried_though_some_fail(ns):
    script = EXIT_AS_INDEX_SAYS.format("1|3", 1)
    create(ns, indexed("all", script, 4, backoffLimitPerIndex=1))
    ended(ns, "all", "Failed", "FailedIndexes", failedIndexes="1,3", completedIndexes="0,2", failed=4, succeeded=2)


@conformance("[sig-apps] Job should mark indexes as failed when the FailIndex action is matched in podFailurePolicy")
def test_an_exit_code_fails_its_index_at_once(ns):
    rule = {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [42]}}
    script = EXIT_AS_INDEX_SAYS.format("0", 42)
    create(ns, indexed("fail-index", script, 2, backoffLimitPerIndex=6, podFailurePolicy={"rules": [rule]}))
    ended(ns, "fail-index", "Failed", "FailedIndexes", failedIndexes="0", completedIndexes="1", failed=1, succeeded=1)


@conformance("[sig-apps] Job should terminate job execution when the number of failed indexes exceeds maxFailedIndexes")
def test_too_many_failed_indexes_end_the_job(ns):
    script = EXIT_AS_INDEX_SAYS.format("0|2", 1) + "; sleep 1000000"
    create(ns, indexed("enough", script, 4, backoffLimitPerIndex=0, maxFailedIndexes=1))
    ended(ns, "enough", "Failed", "MaxFailedIndexesExceeded", failedIndexes="0,2")


SUCCESS = "[sig-apps] Job with successPolicy "
SOME_PEND = " rule should succeeded even when some indexes remain pending"


@pytest.mark.parametrize(
    ("rule", "done"),
    [
        pytest.param({"succeededIndexes": "0-1"}, "0|1", marks=conformance(SUCCESS + "succeededIndexes" + SOME_PEND)),
        pytest.param({"succeededCount": 1}, "2", marks=conformance(SUCCESS + "succeededCount" + SOME_PEND)),
        pytest.param(
            {"succeededCount": 3},
            "0|1|2",
            marks=conformance(SUCCESS + "should succeeded when all indexes succeeded"),
        ),
    ],
)
def test_a_job_succeeds_as_its_policy_says(ns, rule, done):
    script = f"case $JOB_COMPLETION_INDEX in {done}) exit 0;; esac; sleep 1000000"
    create(ns, indexed("policy", script, 3, successPolicy={"rules": [rule]}))
    found = ended(ns, "policy", "Complete", "SuccessPolicy")
    assert condition(found, "SuccessCriteriaMet") == "True"
    wanted = {"0|1": "0,1", "2": "2", "0|1|2": "0-2"}[done]
    assert found["status"]["completedIndexes"] == wanted

    def no_pod_runs():
        assert not [pod for pod in pods_of(ns, "policy") if pod["status"]["phase"] == "Running"]

    eventually("what still ran has ended", no_pod_runs)


@conformance("[sig-apps] Job should run a job to completion when tasks sometimes fail and are locally restarted")
def test_containers_are_restarted_in_place(ns):
    script = "[ -e /once/tried ] && exit 0; touch /once/tried; exit 1"
    body = job("restarted", script, parallelism=2, completions=3, restartPolicy="OnFailure")
    spec = body["spec"]["template"]["spec"]
    spec["volumes"] = [{"name": "once", "emptyDir": {}}]
    spec["containers"][0]["volumeMounts"] = [{"name": "once", "mountPath": "/once"}]
    create(ns, body)
    ended(ns, "restarted", "Complete", succeeded=3)
    assert {pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods_of(ns, "restarted")} == {1}


@conformance("[sig-apps] Job should delete a job")
def test_a_deleted_job_takes_its_pods_along(ns):
    create(ns, job("gone", "sleep 1000000"))

    def active():
        assert ns.cluster.get(ns.at("batch/v1", "jobs", "gone"))["status"].get("active") == 2

    eventually("its pods are active", active)
    ns.cluster.delete(ns.at("batch/v1", "jobs", "gone"), {"propagationPolicy": "Foreground"})
    ns.gone(ns.at("batch/v1", "jobs", "gone"))
    assert pods_of(ns, "gone") == []


@conformance("[sig-apps] Job should adopt matching orphans and release non-matching pods")
def test_orphans_are_adopted_and_strangers_released(ns):
    made = create(ns, job("keeper", "sleep 1000000"))

    def owned():
        pods = [pod for pod in pods_of(ns, "keeper") if pod["status"].get("phase") == "Running"]
        assert len(pods) == 2
        return [pod["metadata"]["name"] for pod in pods]

    first, _ = eventually("its pods run", owned)

    def owners():
        return ns.cluster.get(ns.pods(first))["metadata"].get("ownerReferences")

    ns.cluster.patch(ns.pods(first), {"metadata": {"ownerReferences": None}})

    def adopted():
        [owner] = owners() or [{}]
        assert owner.get("uid") == made["metadata"]["uid"] and owner["controller"]

    eventually("the orphan is adopted", adopted)
    ns.cluster.patch(ns.pods(first), {"metadata": {"labels": None}})

    def released():
        assert not owners()

    eventually("the stranger is released", released)


@conformance("[sig-apps] Job should apply changes to a job status")
def test_a_job_s_status_can_be_patched_and_replaced(ns):
    create(ns, job("told", "sleep 1000000"))
    path = ns.at("batch/v1", "jobs", "told")
    eventually("it has begun", lambda: ns.cluster.get(path)["status"]["startTime"])
    status = path + "/status"
    added = {"type": "StatusPatched", "status": "True", "reason": "Test", "message": "by hand"}

    def add(found):
        found["status"].setdefault("conditions", []).append({**added, "lastTransitionTime": "2026-01-01T00:00:00Z"})

    assert condition(ns.cluster.update(status, add), "StatusPatched") == "True"
    patched = ns.cluster.patch(status, {"metadata": {"annotations": {"patchedstatus": "true"}}})
    assert patched["metadata"]["annotations"]["patchedstatus"] == "true"
    assert condition(ns.cluster.get(status), "StatusPatched") == "True"


@conformance("[sig-apps] Job should manage the lifecycle of a job")
def test_a_job_is_suspended_changed_listed_and_deleted(ns):
    labels = {"e2e-job-label": ns.name}
    body = job("life", "sleep 1000000", suspend=True, parallelism=1, completions=1, labels=labels)
    body["metadata"]["labels"] = labels
    create(ns, body)
    path = ns.at("batch/v1", "jobs", "life")
    ended(ns, "life", "Suspended", "JobSuspended")
    patched = ns.cluster.patch(path, {"metadata": {"labels": {"patched": "true"}}}, "strategic")
    assert patched["metadata"]["labels"] == {**labels, "patched": "true"}

    def resume(found):
        found["spec"]["suspend"] = False

    with ns.cluster.watch(ns.at("batch/v1", "jobs"), labelSelector="patched=true") as watch:
        ns.cluster.update(path, resume)
        watch.until("MODIFIED", lambda found: found["status"].get("active") == 1)
        listed = ns.cluster.items("/apis/batch/v1/jobs", labelSelector=f"e2e-job-label={ns.name}")
        assert [found["metadata"]["name"] for found in listed] == ["life"]
        options = {"propagationPolicy": "Background"}
        ns.cluster.delete(ns.at("batch/v1", "jobs"), options, labelSelector="patched=true")
        watch.until("DELETED")
