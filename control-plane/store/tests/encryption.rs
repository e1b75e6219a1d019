//! Values are unreadable in the engine, readable through the store, and found stale after a rotation.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use store::{
    EmbeddedStore, EncryptedStore, EncryptionConfiguration, Event, Range, Store, StoreError, Txn,
    WatchMessage, Write,
};

const SECRET: &str = "/registry/secrets/ns/a";
const OTHER: &str = "/registry/configmaps/ns/a";

fn config(keys: &[(&str, &str)]) -> EncryptionConfiguration {
    let keys: Vec<_> = keys
        .iter()
        .map(|(name, secret)| json!({"name": name, "secret": secret}))
        .collect();
    serde_json::from_value(json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "EncryptionConfiguration",
        "resources": [{"resources": ["secrets"], "providers": [{"secretbox": {"keys": keys}}, {"identity": {}}]}],
    }))
    .unwrap()
}

async fn put(store: &dyn Store, key: &'static str, value: &'static str) {
    let write = Write::Put {
        key: key.into(),
        value: value.into(),
        lease: 0,
    };
    let txn = Txn {
        compares: vec![],
        writes: vec![write],
    };
    store.txn(txn).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_without_losing_a_value() {
    let directory = tempfile::tempdir().unwrap();
    let engine: Arc<dyn Store> = EmbeddedStore::open(directory.path()).unwrap();
    let first = ("first", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let second = ("second", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=");
    put(engine.as_ref(), SECRET, "plain").await;

    let store = EncryptedStore::new(engine.clone(), &config(&[first])).unwrap();
    let read =
        async |store: &EncryptedStore, key: &'static str| store.get(key.into()).await.unwrap().0.unwrap();
    let before = read(&store, SECRET).await;
    assert_eq!((before.value.as_ref(), before.stale), (b"plain".as_ref(), true));
    let mut watch = store.watch("/registry/".into(), 0).await.unwrap();
    put(store.as_ref(), SECRET, "sealed").await;
    put(store.as_ref(), OTHER, "open").await;
    let raw = engine.range(Range::prefix("/registry/")).await.unwrap().kvs;
    assert_eq!(raw[0].value, Bytes::from_static(b"open"));
    assert!(raw[1].value.starts_with(b"k8s:enc:secretbox:v1:first:"));
    let Some(WatchMessage::Events(events)) = watch.next().await else {
        panic!("the change is told")
    };
    let Event::Put { kv, prev } = &events[0] else {
        panic!("{events:?}")
    };
    assert_eq!((kv.value.as_ref(), kv.stale), (b"sealed".as_ref(), false));
    assert_eq!(
        prev.as_ref().map(|prev| prev.value.as_ref()),
        Some(b"plain".as_ref())
    );

    let rotated = EncryptedStore::new(engine.clone(), &config(&[second, first])).unwrap();
    let old = read(&rotated, SECRET).await;
    assert_eq!((old.value.as_ref(), old.stale), (b"sealed".as_ref(), true));
    put(rotated.as_ref(), SECRET, "sealed").await;

    let done = EncryptedStore::new(engine.clone(), &config(&[second])).unwrap();
    assert!(!read(&done, SECRET).await.stale);
    let lost = EncryptedStore::new(engine, &config(&[first])).unwrap();
    let told = lost.get(SECRET.into()).await;
    assert!(matches!(told, Err(StoreError::Engine { .. })), "{told:?}");
}
