"""The official Python client against one API server: typed, dynamic and custom objects, watches and patches."""

import queue
import sys
import threading

from kubernetes import client, config, dynamic, watch

NAMESPACE = "default"
LABELLED = "suite=python"


def config_maps(core):
    """Every way of writing an object, as a watch sees it."""
    events = queue.Queue()
    version = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version

    def follow():
        stream = watch.Watch().stream(
            core.list_namespaced_config_map,
            NAMESPACE,
            label_selector=LABELLED,
            resource_version=version,
            timeout_seconds=20,
        )
        for event in stream:
            events.put((event["type"], event["object"].data))
            if event["type"] == "DELETED":
                return

    follower = threading.Thread(target=follow)
    follower.start()
    meta = client.V1ObjectMeta(name="python", labels={"suite": "python"})
    made = core.create_namespaced_config_map(NAMESPACE, client.V1ConfigMap(metadata=meta, data={"a": "1"}))
    made.data["b"] = "2"
    core.replace_namespaced_config_map("python", NAMESPACE, made)
    core.patch_namespaced_config_map("python", NAMESPACE, {"data": {"c": "3"}})
    core.patch_namespaced_config_map("python", NAMESPACE, [{"op": "remove", "path": "/data/a"}])
    core.delete_namespaced_config_map("python", NAMESPACE)
    follower.join()
    seen = [events.get_nowait() for _ in range(events.qsize())]
    assert seen == [
        ("ADDED", {"a": "1"}),
        ("MODIFIED", {"a": "1", "b": "2"}),
        ("MODIFIED", {"a": "1", "b": "2", "c": "3"}),
        ("MODIFIED", {"b": "2", "c": "3"}),
        ("DELETED", {"b": "2", "c": "3"}),
    ], seen
    try:
        core.read_namespaced_config_map("python", NAMESPACE)
        raise AssertionError("a deleted object was read")
    except client.ApiException as error:
        assert (error.status, error.reason) == (404, "Not Found"), error


def deployments(apps):
    labels = {"app": "python"}
    container = client.V1Container(name="c", image="i", resources=client.V1ResourceRequirements(requests={"cpu": "100m"}))
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels), spec=client.V1PodSpec(containers=[container])
    )
    spec = client.V1DeploymentSpec(replicas=2, selector=client.V1LabelSelector(match_labels=labels), template=template)
    apps.create_namespaced_deployment(NAMESPACE, client.V1Deployment(metadata=client.V1ObjectMeta(name="python"), spec=spec))
    scale = apps.read_namespaced_deployment_scale("python", NAMESPACE)
    assert (scale.spec.replicas, scale.status.selector) == (2, "app=python"), scale
    apps.patch_namespaced_deployment_scale("python", NAMESPACE, {"spec": {"replicas": 0}})
    stored = apps.read_namespaced_deployment("python", NAMESPACE)
    assert stored.spec.replicas == 0 and stored.spec.strategy.rolling_update.max_surge == "25%", stored
    apps.delete_collection_namespaced_deployment(NAMESPACE, label_selector="app=python")


def dynamic_objects(dynamic_client):
    """Discovery, server-side apply and its conflicts."""
    api = dynamic_client.resources.get(api_version="v1", kind="ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "dynamic"}, "data": {"k": "v"}}
    applied = api.server_side_apply(namespace=NAMESPACE, name="dynamic", body=body, field_manager="one")
    entry = applied.metadata.managedFields[0]
    assert (entry.manager, entry.operation) == ("one", "Apply"), entry
    body["data"]["k"] = "w"
    try:
        api.server_side_apply(namespace=NAMESPACE, name="dynamic", body=body, field_manager="two")
        raise AssertionError("a conflict was overruled")
    except dynamic.exceptions.ConflictError as error:
        assert ".data.k" in str(error.body), error
    api.delete(name="dynamic", namespace=NAMESPACE)


def custom_objects(extensions, custom, core):
    names = client.V1CustomResourceDefinitionNames(plural="pies", kind="Pie")
    schema = client.V1CustomResourceValidation(
        open_apiv3_schema=client.V1JSONSchemaProps(
            type="object", properties={"size": client.V1JSONSchemaProps(type="integer", minimum=1)}
        )
    )
    version = client.V1CustomResourceDefinitionVersion(name="v1", served=True, storage=True, schema=schema)
    spec = client.V1CustomResourceDefinitionSpec(group="py.example.com", scope="Namespaced", names=names, versions=[version])
    extensions.create_custom_resource_definition(
        client.V1CustomResourceDefinition(metadata=client.V1ObjectMeta(name="pies.py.example.com"), spec=spec)
    )
    for event in watch.Watch().stream(extensions.list_custom_resource_definition, timeout_seconds=20):
        conditions = event["object"].status.conditions or [] if event["object"].status else []
        if any(c.type == "Established" and c.status == "True" for c in conditions):
            break
    where = ("py.example.com", "v1", NAMESPACE, "pies")
    pie = {"apiVersion": "py.example.com/v1", "kind": "Pie", "metadata": {"name": "apple"}, "size": 1}
    custom.create_namespaced_custom_object(*where, pie)
    assert custom.patch_namespaced_custom_object(*where, "apple", {"size": 2})["size"] == 2
    try:
        custom.patch_namespaced_custom_object(*where, "apple", {"size": 0})
        raise AssertionError("the schema was not enforced")
    except client.ApiException as error:
        assert error.status == 422 and "should be greater than or equal to 1" in error.body, error
    extensions.delete_custom_resource_definition("pies.py.example.com")


def tokens(core):
    wanted = client.V1TokenRequestSpec(audiences=["a"], expiration_seconds=600)
    made = core.create_namespaced_service_account_token(
        "default", NAMESPACE, client.AuthenticationV1TokenRequest(spec=wanted)
    )
    review = client.V1TokenReview(spec=client.V1TokenReviewSpec(token=made.status.token, audiences=["a"]))
    status = client.AuthenticationV1Api().create_token_review(review).status
    assert status.authenticated and status.user.username == "system:serviceaccount:default:default", status


def main():
    config.load_kube_config(sys.argv[1])
    core = client.CoreV1Api()
    config_maps(core)
    deployments(client.AppsV1Api())
    dynamic_objects(dynamic.DynamicClient(client.ApiClient()))
    custom_objects(client.ApiextensionsV1Api(), client.CustomObjectsApi(), core)
    tokens(core)
    print("all of it works")


main()
