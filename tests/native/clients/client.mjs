// The official JavaScript client against one API server: typed and generic objects, patches, a watch and an informer.
import assert from 'node:assert/strict';
import * as k8s from '@kubernetes/client-node';

const config = new k8s.KubeConfig();
config.loadFromFile(process.argv[2]);
const core = config.makeApiClient(k8s.CoreV1Api);
const objects = k8s.KubernetesObjectApi.makeApiClient(config);
const namespace = 'default';
const labelSelector = 'suite=javascript';

/** Resolves when `found` has seen what it wants among the events of an informer or watch. */
function until(register) {
  return new Promise((resolve, reject) => {
    setTimeout(() => reject(new Error('nothing came')), 20_000).unref();
    register(resolve);
  });
}

const start = await core.listNamespacedConfigMap({ namespace });
const seen = [];
const watch = new k8s.Watch(config);
let request;
const deleted = until((resolve) => {
  const path = `/api/v1/namespaces/${namespace}/configmaps`;
  const query = { labelSelector, resourceVersion: start.metadata.resourceVersion };
  const step = (type, object) => {
    seen.push([type, object.data]);
    if (type === 'DELETED') resolve();
  };
  request = watch.watch(path, query, step, () => {});
});

const body = { metadata: { name: 'javascript', labels: { suite: 'javascript' } }, data: { a: '1' } };
const made = await core.createNamespacedConfigMap({ namespace, body });
made.data.b = '2';
await core.replaceNamespacedConfigMap({ namespace, name: 'javascript', body: made });
const patch = [{ op: 'remove', path: '/data/a' }];
await core.patchNamespacedConfigMap({ namespace, name: 'javascript', body: patch });
const listed = await core.listNamespacedConfigMap({ namespace, labelSelector });
assert.deepEqual(listed.items.map((item) => item.data), [{ b: '2' }]);
await core.deleteNamespacedConfigMap({ namespace, name: 'javascript' });
await deleted;
(await request).abort();
assert.deepEqual(seen, [
  ['ADDED', { a: '1' }],
  ['MODIFIED', { a: '1', b: '2' }],
  ['MODIFIED', { b: '2' }],
  ['DELETED', { b: '2' }],
]);

const informer = k8s.makeInformer(config, '/api/v1/namespaces', () => core.listNamespace());
await until((resolve) => {
  informer.on('add', (found) => found.metadata.name === 'kube-system' && resolve());
  informer.start();
});
await informer.stop();

const object = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'generic', namespace }, data: { a: '1' } };
await objects.create(object);
object.data.a = '2';
await objects.patch(object, undefined, undefined, 'javascript', true, k8s.PatchStrategy.ServerSideApply);
const read = await objects.read(object);
assert.equal(read.data.a, '2');
assert.ok(read.metadata.managedFields.some((entry) => entry.manager === 'javascript' && entry.operation === 'Apply'));
await objects.delete(object);
await assert.rejects(objects.read(object), (error) => error.code === 404);

console.log('all of it works');
process.exit(0);
