//! The embedded engine keeps the trait's promises, also across a restart and a crash.

mod suite;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use store::{EmbeddedStore, Range, Store, Txn, TxnResult, Write};

async fn open() -> (Arc<dyn Store>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path()).unwrap();
    (store, directory)
}

suite!(open());

fn put(key: String, value: Vec<u8>) -> Txn {
    Txn {
        compares: vec![],
        writes: vec![Write::Put {
            key: key.into(),
            value: value.into(),
            lease: 0,
        }],
    }
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path()).unwrap();
    let lease = store.grant_lease(1000).await.unwrap();
    store.txn(put("/a".into(), b"1".to_vec())).await.unwrap();
    store.txn(put("/a".into(), b"2".to_vec())).await.unwrap();
    let before = store.range(Range::prefix("/")).await.unwrap();
    drop(store);
    let store = EmbeddedStore::open(directory.path()).unwrap();
    assert_eq!(store.range(Range::prefix("/")).await.unwrap(), before);
    let past = Range {
        revision: before.revision - 1,
        ..Range::prefix("/")
    };
    assert_eq!(store.range(past).await.unwrap().kvs[0].value, "1");
    assert_eq!(store.grant_lease(1000).await.unwrap(), lease + 1);
}

/// Not a test by itself: the child that [`nothing_acknowledged_is_lost`] kills. It writes with
/// several clients and prints each key when its write is acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_child() {
    let Ok(directory) = std::env::var("IRONLET_STORE_CRASH_DIRECTORY") else {
        return;
    };
    let store = EmbeddedStore::open(directory.as_ref()).unwrap();
    let start = store.revision().await.unwrap();
    let clients = (0..8).map(|client| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0.. {
                let key = format!("/{start}/{client}/{n}");
                let TxnResult::Committed { revision } =
                    store.txn(put(key.clone(), vec![b'x'; 700])).await.unwrap()
                else {
                    panic!("no compares, no conflict");
                };
                println!("acknowledged {key} {revision}");
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged: Vec<(String, i64)> = Vec::new();
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash_child", "--nocapture"])
            .env("IRONLET_STORE_CRASH_DIRECTORY", directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = 40 + round * 173;
        let mut seen = 0;
        for line in lines {
            let Ok(line) = line else { break };
            let Some((_, rest)) = line.split_once("acknowledged ") else {
                continue;
            };
            let Some((key, revision)) = rest.split_once(' ') else {
                continue;
            };
            let Ok(revision) = revision.parse() else { continue };
            acknowledged.push((key.to_owned(), revision));
            seen += 1;
            if seen == wanted {
                // What the pipe still holds was acknowledged too, and is read on.
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(seen >= wanted, "the child died early: {seen} of {wanted}");
        let store = EmbeddedStore::open(directory.path()).unwrap();
        for (key, revision) in &acknowledged {
            let (kv, _) = store.get(Bytes::from(key.clone())).await.unwrap();
            let kv = kv.unwrap_or_else(|| panic!("{key} is lost"));
            assert_eq!((kv.mod_revision, kv.value.len()), (*revision, 700));
        }
    }
}
