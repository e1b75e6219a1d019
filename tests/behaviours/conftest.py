"""Behaviours that Kubernetes' conformance tests name, against the cluster of $KUBECONFIG; `run` brings one up.

A test says with `@conformance` which names it proves; that names exist and how many have a test is checked here.
"""

import os
import pathlib

import pytest

from cluster import Cluster, Namespace, Refused, eventually

NAMES = set((pathlib.Path(__file__).parent / "names.txt").read_text().splitlines())


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "conformance(*names): names of upstream's conformance tests that this one proves"
    )
    config.addinivalue_line("markers", "cgroups: needs nodes with the controllers of cgroup v2, as booted machines are")


def pytest_collection_modifyitems(config, items):
    proven = {name for item in items for mark in item.iter_markers("conformance") for name in mark.args}
    unknown = proven - NAMES
    assert not unknown, f"not names of conformance tests: {sorted(unknown)}"
    if hasattr(config, "workeroutput"):
        config.workeroutput["proven"] = len(proven)


def pytest_testnodedown(node):
    node.config.proven = node.workeroutput["proven"]


def pytest_terminal_summary(terminalreporter, config):
    if hasattr(config, "proven"):
        terminalreporter.write_line(f"names of conformance tests with a test here: {config.proven} of {len(NAMES)}")


@pytest.fixture(scope="session")
def cluster():
    return Cluster(os.environ["KUBECONFIG"])


@pytest.fixture
def ns(cluster):
    """A namespace of the test's own, with its default service account; deleted behind the test."""
    made = cluster.create("/api/v1/namespaces", {"metadata": {"generateName": "behaviour-"}})
    name = made["metadata"]["name"]
    found = Namespace(cluster, name)
    eventually("the default service account", lambda: cluster.get(found.at("v1", "serviceaccounts", "default")))
    yield found
    cluster.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def refused():
    """`with refused(409, "AlreadyExists") as error: ...`"""

    class Expectation:
        def __init__(self, code, reason=None):
            self.code, self.reason = code, reason

        def __enter__(self):
            self.raises = pytest.raises(Refused)
            self.info = self.raises.__enter__()
            return self

        def __exit__(self, *exception):
            caught = self.raises.__exit__(*exception)
            self.error = self.info.value
            assert self.error.code == self.code, self.error
            assert self.reason in (None, self.error.reason), self.error
            return caught

    return Expectation
