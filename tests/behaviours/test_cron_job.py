"""CronJobs: when they start jobs. A minute is the finest that their schedules know."""

import pytest

from cluster import container, eventually

conformance = pytest.mark.conformance

EVERY_MINUTE = "*/1 * * * ?"
TWO_MINUTES = 150


def cron_job(name, script, **spec):
    pod = {
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": 0,
        "containers": [container("c", "sh", "-c", script)],
    }
    template = {"spec": {"template": {"spec": pod}}}
    body = {"schedule": EVERY_MINUTE, "concurrencyPolicy": "Allow", **spec, "jobTemplate": template}
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name}, "spec": body}


def create(ns, body):
    return ns.cluster.create(ns.at("batch/v1", "cronjobs"), body)


def active(ns, name, count):
    """The names of its active jobs, once they are as many."""

    def reached():
        found = ns.cluster.get(ns.at("batch/v1", "cronjobs", name))["status"].get("active", [])
        assert len(found) == count, found
        return sorted(job["name"] for job in found)

    return eventually(f"{count} jobs of {name} are active", reached, TWO_MINUTES)


@conformance("[sig-apps] CronJob should schedule multiple jobs concurrently")
def test_jobs_pile_up_where_they_may(ns):
    create(ns, cron_job("allow", "sleep 1000000"))
    active(ns, "allow", 2)
    assert len(ns.cluster.items(ns.at("batch/v1", "jobs"))) >= 2


@conformance("[sig-apps] CronJob should replace jobs when ReplaceConcurrent")
def test_a_new_job_replaces_the_old_one(ns):
    create(ns, cron_job("replace", "sleep 1000000", concurrencyPolicy="Replace"))
    [first] = active(ns, "replace", 1)

    def replaced():
        assert active(ns, "replace", 1) != [first]

    eventually("another job has taken its place", replaced, TWO_MINUTES)
    ns.gone(ns.at("batch/v1", "jobs", first))


@conformance(
    "[sig-apps] CronJob should not schedule new jobs when ForbidConcurrent [Slow]",
    "[sig-apps] CronJob should not schedule jobs when suspended [Slow]",
)
def test_no_job_starts_while_another_runs_or_when_suspended(ns):
    create(ns, cron_job("suspended", "sleep 1000000", suspend=True))
    create(ns, cron_job("forbid", "sleep 1000000", concurrencyPolicy="Forbid"))
    # What would have come a minute later has come where it may.
    create(ns, cron_job("allow", "sleep 1000000"))
    first = active(ns, "forbid", 1)
    active(ns, "allow", 2)
    assert active(ns, "forbid", 1) == first
    owners = [job["metadata"]["ownerReferences"][0]["name"] for job in ns.cluster.items(ns.at("batch/v1", "jobs"))]
    assert owners.count("forbid") == 1 and "suspended" not in owners


@conformance("[sig-apps] CronJob should support CronJob API operations")
def test_cron_jobs_are_written_watched_and_deleted(ns):
    cluster = ns.cluster
    resources = {found["name"]: found for found in cluster.get("/apis/batch/v1")["resources"]}
    assert resources["cronjobs"]["verbs"] == sorted(resources["cronjobs"]["verbs"])
    assert "cronjobs/status" in resources
    labels = {"special-label": ns.name}
    made = []
    for _ in range(3):
        body = cron_job("", "true", schedule="0 0 29 2 1")
        body["metadata"] = {"generateName": "cron-", "labels": labels}
        made.append(create(ns, body)["metadata"]["name"])
    name = made[0]
    path = ns.at("batch/v1", "cronjobs", name)
    selector = f"special-label={ns.name}"
    assert len(cluster.items("/apis/batch/v1/cronjobs", labelSelector=selector)) == 3
    with cluster.watch(ns.at("batch/v1", "cronjobs"), labelSelector=selector) as watch:
        patched = cluster.patch(path, {"metadata": {"annotations": {"patched": "true"}}})
        assert patched["metadata"]["annotations"] == {"patched": "true"}
        watch.until("MODIFIED", lambda found: found["metadata"].get("annotations", {}).get("patched"))

        def annotate(found):
            found["metadata"]["annotations"]["updated"] = "true"

        cluster.update(path, annotate)
        watch.until("MODIFIED", lambda found: found["metadata"].get("annotations", {}).get("updated"))
        when = "2026-01-02T03:04:05Z"
        body = {"metadata": {"annotations": {"patchedstatus": "true"}}, "status": {"lastScheduleTime": when}}
        patched = cluster.patch(path + "/status", body)
        assert patched["status"]["lastScheduleTime"] == when
        assert patched["metadata"]["annotations"]["patchedstatus"] == "true"

        def later(found):
            found["status"]["lastScheduleTime"] = "2026-01-02T03:05:05Z"

        assert cluster.update(path + "/status", later)["status"]["lastScheduleTime"] == "2026-01-02T03:05:05Z"
        cluster.delete(path)
        watch.until("DELETED", lambda found: found["metadata"]["name"] == name)
    assert cluster.exists(path) is None
    cluster.delete(ns.at("batch/v1", "cronjobs"), labelSelector=selector)
    assert cluster.items(ns.at("batch/v1", "cronjobs"), labelSelector=selector) == []
