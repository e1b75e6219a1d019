"""Pods and their containers."""

import pytest

from cluster import container

conformance = pytest.mark.conformance


@conformance(
    "[sig-node] Containers should be able to override the image's default command (container entrypoint) [NodeConformance]",
)
def test_a_command_replaces_the_image_s_entrypoint(ns):
    ns.run("own-command", "echo", "its own")
    ns.pod_is("own-command", "Succeeded")
    assert ns.log("own-command") == "its own\n"
