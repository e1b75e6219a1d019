//! What every engine must do, as tests over `Arc<dyn Store>`. Each test uses its own key prefix.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use store::{Compare, Event, Range, Store, StoreError, Txn, TxnResult, Watch, WatchMessage, Write};

/// Only a hang makes it this long.
const PATIENCE: Duration = Duration::from_secs(30);

type Engine = Arc<dyn Store>;

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(name: &str, value: &str) -> Write {
    Write::Put {
        key: key(name),
        value: key(value),
        lease: 0,
    }
}

fn delete(name: &str) -> Write {
    Write::Delete { key: key(name) }
}

fn unless(name: &str, mod_revision: i64) -> Compare {
    Compare {
        key: key(name),
        mod_revision,
    }
}

async fn write(store: &Engine, writes: Vec<Write>) -> i64 {
    match store
        .txn(Txn {
            compares: vec![],
            writes,
        })
        .await
        .unwrap()
    {
        TxnResult::Committed { revision } => revision,
        TxnResult::Conflict { .. } => panic!("a transaction without compares cannot conflict"),
    }
}

async fn next(watch: &mut Watch) -> WatchMessage {
    tokio::time::timeout(PATIENCE, watch.next())
        .await
        .expect("a message")
        .expect("a running watch")
}

/// The next `count` changes as (key, value or "-", previous value or "-").
async fn changes(watch: &mut Watch, count: usize) -> Vec<(String, String, String)> {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let mut seen = Vec::new();
    while seen.len() < count {
        if let WatchMessage::Events(events) = next(watch).await {
            seen.extend(events.into_iter().map(|event| {
                let name = text(event.key());
                let (now, prev) = match event {
                    Event::Put { kv, prev } => (text(&kv.value), prev),
                    Event::Delete { prev, .. } => ("-".into(), prev),
                };
                (name, now, prev.map_or("-".into(), |kv| text(&kv.value)))
            }));
        }
    }
    seen
}

fn triples(expected: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
    expected
        .iter()
        .map(|(a, b, c)| ((*a).into(), (*b).into(), (*c).into()))
        .collect()
}

async fn names(store: &Engine, prefix: &str, revision: i64, limit: usize) -> (Vec<String>, bool, u64) {
    let range = Range {
        revision,
        limit,
        ..Range::prefix(key(prefix))
    };
    let result = store.range(range).await.unwrap();
    let names = result
        .kvs
        .iter()
        .map(|kv| String::from_utf8(kv.key.to_vec()).unwrap())
        .collect();
    (names, result.more, result.count)
}

pub async fn create_only_once(store: Engine) {
    let create = Txn {
        compares: vec![unless("/once/a", 0)],
        writes: vec![put("/once/a", "1")],
    };
    let TxnResult::Committed { revision } = store.txn(create.clone()).await.unwrap() else {
        panic!("the first creation must win");
    };
    let TxnResult::Conflict { current, .. } = store.txn(create).await.unwrap() else {
        panic!("the second creation must lose");
    };
    let current = current[0].clone().expect("what is there");
    assert_eq!(
        (current.mod_revision, current.create_revision),
        (revision, revision)
    );
    assert_eq!(current.value, "1");
}

pub async fn compare_and_swap(store: Engine) {
    let first = write(&store, vec![put("/cas/a", "1")]).await;
    let swap = |at| Txn {
        compares: vec![unless("/cas/a", at)],
        writes: vec![put("/cas/a", "2")],
    };
    let TxnResult::Committed { revision: second } = store.txn(swap(first)).await.unwrap() else {
        panic!("the swap must win");
    };
    assert!(second > first);
    assert!(matches!(
        store.txn(swap(first)).await.unwrap(),
        TxnResult::Conflict { .. }
    ));
    let (kv, revision) = store.get(key("/cas/a")).await.unwrap();
    let kv = kv.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision), (first, second));
    assert!(revision >= second);
}

pub async fn all_or_nothing(store: Engine) {
    let revision = write(&store, vec![put("/all/a", "1"), put("/all/b", "1")]).await;
    let a = store.get(key("/all/a")).await.unwrap().0.unwrap();
    let b = store.get(key("/all/b")).await.unwrap().0.unwrap();
    assert_eq!((a.mod_revision, b.mod_revision), (revision, revision));
    let txn = Txn {
        compares: vec![unless("/all/a", revision), unless("/all/b", 1)],
        writes: vec![put("/all/a", "2"), delete("/all/b")],
    };
    assert!(matches!(
        store.txn(txn).await.unwrap(),
        TxnResult::Conflict { .. }
    ));
    assert_eq!(store.get(key("/all/a")).await.unwrap().0.unwrap().value, "1");
    let twice = Txn {
        compares: vec![],
        writes: vec![put("/all/a", "1"), delete("/all/a")],
    };
    assert!(matches!(store.txn(twice).await, Err(StoreError::DuplicateKey)));
}

pub async fn deleting_nothing_makes_no_revision(store: Engine) {
    let before = store.revision().await.unwrap();
    let after = write(&store, vec![delete("/nothing/here")]).await;
    assert_eq!(after, before);
}

pub async fn ranges_see_the_past(store: Engine) {
    let r1 = write(&store, vec![put("/past/a", "1")]).await;
    let r2 = write(&store, vec![put("/past/b", "1")]).await;
    let r3 = write(&store, vec![delete("/past/a"), put("/past/c", "1")]).await;
    let r4 = write(&store, vec![put("/past/b", "2")]).await;
    for (revision, expected) in [
        (r1, vec!["/past/a"]),
        (r2, vec!["/past/a", "/past/b"]),
        (r3, vec!["/past/b", "/past/c"]),
        (r4, vec!["/past/b", "/past/c"]),
        (0, vec!["/past/b", "/past/c"]),
    ] {
        assert_eq!(
            names(&store, "/past/", revision, 0).await.0,
            expected,
            "at {revision}"
        );
    }
    let old = store
        .range(Range {
            revision: r3,
            ..Range::prefix(key("/past/b"))
        })
        .await
        .unwrap();
    assert_eq!(
        (old.kvs[0].value.as_ref(), old.kvs[0].mod_revision),
        (b"1".as_slice(), r2)
    );
    let future = store
        .range(Range {
            revision: r4 + 1000,
            ..Range::prefix(key("/past/"))
        })
        .await;
    assert!(matches!(future, Err(StoreError::FutureRevision(_))), "{future:?}");
}

pub async fn pages_of_one_revision(store: Engine) {
    let all: Vec<String> = (0..7).map(|n| format!("/page/{n}")).collect();
    let revision = write(&store, all.iter().map(|name| put(name, "x")).collect()).await;
    write(&store, vec![delete("/page/5"), put("/page/9", "x")]).await;
    assert_eq!(
        names(&store, "/page/", revision, 3).await,
        (all[..3].to_vec(), true, 7)
    );
    let rest = Range {
        start: key("/page/2\0"),
        revision,
        ..Range::prefix(key("/page/"))
    };
    let rest = store.range(rest).await.unwrap();
    assert_eq!(rest.kvs.len(), 4);
    assert!(!rest.more);
}

pub async fn watches_tell_old_and_new(store: Engine) {
    let start = write(&store, vec![put("/watch/a", "1")]).await;
    write(&store, vec![put("/watch/a", "2"), put("/other/a", "1")]).await;
    let mut past = store.watch(key("/watch/"), start).await.unwrap();
    let mut now = store.watch(key("/watch/"), 0).await.unwrap();
    write(&store, vec![delete("/watch/a")]).await;
    let deletion = ("/watch/a", "-", "2");
    assert_eq!(changes(&mut now, 1).await, triples(&[deletion]));
    let all = [("/watch/a", "1", "-"), ("/watch/a", "2", "1"), deletion];
    assert_eq!(changes(&mut past, 3).await, triples(&all));
}

pub async fn one_revision_is_one_message(store: Engine) {
    let mut watch = store.watch(key("/group/"), 0).await.unwrap();
    let revision = write(&store, vec![put("/group/a", "1"), put("/group/b", "1")]).await;
    let WatchMessage::Events(events) = next(&mut watch).await else {
        panic!("events first")
    };
    assert_eq!(
        events.iter().map(Event::revision).collect::<Vec<_>>(),
        [revision, revision]
    );
}

pub async fn progress_follows_the_events(store: Engine) {
    let mut watch = store.watch(key("/progress/"), 0).await.unwrap();
    let written = write(&store, vec![put("/progress/a", "1")]).await;
    let elsewhere = write(&store, vec![put("/elsewhere/a", "1")]).await;
    let mut seen = false;
    loop {
        store.request_progress(key("/progress/")).await.unwrap();
        match next(&mut watch).await {
            WatchMessage::Events(events) => seen |= events[0].revision() == written,
            WatchMessage::Progress(revision) if revision >= elsewhere => break,
            WatchMessage::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(seen, "the event comes before the progress that covers it");
}

pub async fn compaction_ends_the_past(store: Engine) {
    let old = write(&store, vec![put("/compact/a", "1")]).await;
    let kept = write(&store, vec![put("/compact/a", "2")]).await;
    let last = write(&store, vec![put("/compact/b", "1")]).await;
    store.compact(kept).await.unwrap();
    let read = |revision| Range {
        revision,
        ..Range::prefix(key("/compact/"))
    };
    assert!(matches!(store.range(read(old)).await, Err(StoreError::Compacted)));
    assert_eq!(store.range(read(kept)).await.unwrap().kvs.len(), 1);
    assert_eq!(store.range(read(last)).await.unwrap().kvs.len(), 2);
    let mut watch = store.watch(key("/compact/"), old).await.unwrap();
    assert_eq!(
        next(&mut watch).await,
        WatchMessage::Compacted {
            compact_revision: kept
        }
    );
    assert!(matches!(store.compact(old).await, Err(StoreError::Compacted)));
    let future = store.compact(last + 1000).await;
    assert!(matches!(future, Err(StoreError::FutureRevision(_))), "{future:?}");
    let mut watch = store.watch(key("/compact/"), kept + 1).await.unwrap();
    assert_eq!(changes(&mut watch, 1).await, triples(&[("/compact/b", "1", "-")]));
}

pub async fn leases_end(store: Engine) {
    let lease = store.grant_lease(1).await.unwrap();
    let mut watch = store.watch(key("/lease/"), 0).await.unwrap();
    write(
        &store,
        vec![Write::Put {
            key: key("/lease/a"),
            value: key("1"),
            lease,
        }],
    )
    .await;
    write(
        &store,
        vec![Write::Put {
            key: key("/lease/b"),
            value: key("1"),
            lease,
        }],
    )
    .await;
    // Written again without the lease, it stays.
    write(&store, vec![put("/lease/b", "2")]).await;
    let expected = [
        ("/lease/a", "1", "-"),
        ("/lease/b", "1", "-"),
        ("/lease/b", "2", "1"),
        ("/lease/a", "-", "1"),
    ];
    assert_eq!(changes(&mut watch, 4).await, triples(&expected));
    assert_eq!(names(&store, "/lease/", 0, 0).await.0, ["/lease/b"]);
    let gone = Write::Put {
        key: key("/lease/c"),
        value: key("1"),
        lease: lease + 77,
    };
    let refused = store
        .txn(Txn {
            compares: vec![],
            writes: vec![gone],
        })
        .await;
    assert!(
        matches!(refused, Err(StoreError::LeaseNotFound(id)) if id == lease + 77),
        "{refused:?}"
    );
}

pub async fn many_writers_one_order(store: Engine) {
    let mut watch = store.watch(key("/many/"), 0).await.unwrap();
    let writers = (0..8).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..20 {
                write(&store, vec![put(&format!("/many/{writer}-{n}"), "1")]).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let mut revisions = Vec::new();
    while revisions.len() < 160 {
        if let WatchMessage::Events(events) = next(&mut watch).await {
            revisions.extend(events.iter().map(Event::revision));
        }
    }
    assert!(
        revisions.windows(2).all(|pair| pair[0] < pair[1]),
        "{revisions:?}"
    );
    assert!(store.size().await.unwrap() > 0);
}

/// Declares one `#[tokio::test]` per promise; `$open` gives a fresh engine and what keeps it alive.
#[macro_export]
macro_rules! suite {
    ($open:expr) => {
        $crate::suite!(@each $open,
            create_only_once, compare_and_swap, all_or_nothing, deleting_nothing_makes_no_revision,
            ranges_see_the_past, pages_of_one_revision, watches_tell_old_and_new, one_revision_is_one_message,
            progress_follows_the_events, compaction_ends_the_past, leases_end, many_writers_one_order);
    };
    (@each $open:expr, $($name:ident),*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let (store, _alive) = $open.await;
                suite::$name(store).await;
            }
        )*
    };
}
