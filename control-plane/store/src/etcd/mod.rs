//! The etcd engine: a client of a real etcd cluster (v3.4 or later).

mod watch;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Certificate, Client, Compare as EtcdCompare, CompareOp, ConnectOptions, Error, GetOptions, Identity,
    PutOptions, TlsOptions, Txn as EtcdTxn, TxnOp, TxnOpResponse,
};
use tokio::sync::broadcast;

use crate::{
    KeyValue, LeaseId, Range, RangeResult, Result, Revision, Store, StoreError, Txn, TxnResult, Watch, Write,
    embedded,
};

/// A list of everything in a big cluster comes in one message.
const MESSAGE_LIMIT: usize = 1 << 30;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A read of one key that takes longer is asked again: the connection may be dead and not know it yet.
const READ_ATTEMPT: Duration = Duration::from_secs(5);
/// Requests for progress a watch may lag behind by; what it misses is asked again.
const PROGRESS_QUEUE: usize = 256;
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Where etcd is and how to prove who we are.
#[derive(Clone)]
pub struct EtcdConfig {
    pub endpoints: Vec<String>,
    /// PEM; all three for TLS, none for plain text.
    pub ca: Option<String>,
    pub certificate: Option<String>,
    pub key: Option<String>,
}

/// See the module documentation. The channel reconnects by itself.
pub struct EtcdStore {
    client: Client,
    /// A connection of their own, so that a burst of changes never delays requests.
    watches: Client,
    /// Asks the watches of a prefix for their progress.
    progress: broadcast::Sender<Bytes>,
}

impl EtcdStore {
    /// Returns once etcd has answered a linearizable read.
    pub async fn connect(config: &EtcdConfig) -> Result<Arc<Self>> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(KEEP_ALIVE, CONNECT_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(ca) = &config.ca {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
            if let (Some(certificate), Some(key)) = (&config.certificate, &config.key) {
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(tls);
        }
        let connect = async || {
            Client::connect(&config.endpoints, Some(options.clone()))
                .await
                .map_err(|e| failure("connect", &e))
        };
        let (progress, _) = broadcast::channel(PROGRESS_QUEUE);
        let store = Arc::new(Self {
            client: connect().await?,
            watches: connect().await?,
            progress,
        });
        store.revision().await?;
        Ok(store)
    }

    fn kv(&self) -> etcd_client::KvClient {
        self.client.kv_client().max_decoding_message_size(MESSAGE_LIMIT)
    }
}

/// What went wrong, in the trait's terms; etcd tells the cases apart by text only.
fn failure(operation: &'static str, error: &Error) -> StoreError {
    let message = match error {
        Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    };
    if message.contains("required revision has been compacted") {
        StoreError::Compacted
    } else if message.contains("requested lease not found") {
        StoreError::LeaseNotFound(0)
    } else if message.contains("duplicate key given in txn") {
        StoreError::DuplicateKey
    } else if matches!(error, Error::TransportError(_) | Error::IoError(_)) {
        StoreError::Unavailable(format!("{operation}: {message}"))
    } else {
        StoreError::Engine { operation, message }
    }
}

/// Runs one request; a silent etcd is an error, not a hang.
async fn bounded<T>(operation: &'static str, request: impl Future<Output = Result<T, Error>>) -> Result<T> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => answer.map_err(|error| failure(operation, &error)),
        Err(_) => Err(StoreError::Unavailable(format!(
            "{operation}: etcd did not answer in time"
        ))),
    }
}

/// Like [`bounded`], in several attempts: for small reads, which are as good the second time.
async fn insistent<T, F>(operation: &'static str, read: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T, Error>>,
{
    let attempts = async {
        loop {
            if let Ok(answer) = tokio::time::timeout(READ_ATTEMPT, read()).await {
                return answer;
            }
            tracing::warn!(operation, "etcd is slow, asking again");
        }
    };
    bounded(operation, attempts).await
}

pub(crate) fn key_value(kv: &etcd_client::KeyValue) -> KeyValue {
    KeyValue {
        key: Bytes::copy_from_slice(kv.key()),
        value: Bytes::copy_from_slice(kv.value()),
        create_revision: kv.create_revision(),
        mod_revision: kv.mod_revision(),
        lease: kv.lease(),
        stale: false,
    }
}

fn revision_of(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    header.map_or(0, etcd_client::ResponseHeader::revision)
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: Bytes) -> Result<(Option<KeyValue>, Revision)> {
        let response = insistent("get", || {
            let (mut kv, key) = (self.kv(), key.clone());
            async move { kv.get(key, None).await }
        })
        .await?;
        let revision = revision_of(response.header());
        Ok((response.kvs().first().map(key_value), revision))
    }

    async fn range(&self, range: Range) -> Result<RangeResult> {
        let limit = i64::try_from(range.limit).unwrap_or(i64::MAX);
        let options = GetOptions::new()
            .with_range(range.end.to_vec())
            .with_revision(range.revision)
            .with_limit(limit);
        let mut kv = self.kv();
        let response = bounded("range", kv.get(range.start, Some(options)))
            .await
            .map_err(|error| match error {
                StoreError::Engine { message, .. }
                    if message.contains("required revision is a future revision") =>
                {
                    StoreError::FutureRevision(range.revision)
                }
                other => other,
            })?;
        Ok(RangeResult {
            more: response.more(),
            count: u64::try_from(response.count()).unwrap_or(0),
            revision: revision_of(response.header()),
            kvs: response.kvs().iter().map(key_value).collect(),
        })
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult> {
        embedded::reject_duplicates(&txn)?;
        let compares: Vec<_> = txn
            .compares
            .iter()
            .map(|c| EtcdCompare::mod_revision(c.key.clone(), CompareOp::Equal, c.mod_revision))
            .collect();
        let reads: Vec<_> = txn
            .compares
            .iter()
            .map(|c| TxnOp::get(c.key.clone(), None))
            .collect();
        let mut lease_used = 0;
        let writes: Vec<_> = txn
            .writes
            .into_iter()
            .map(|write| match write {
                Write::Put { key, value, lease } => {
                    lease_used = lease_used.max(lease);
                    TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)))
                }
                Write::Delete { key } => TxnOp::delete(key, None),
            })
            .collect();
        let request = EtcdTxn::new().when(compares).and_then(writes).or_else(reads);
        let mut kv = self.kv();
        let response = bounded("txn", kv.txn(request))
            .await
            .map_err(|error| match error {
                StoreError::LeaseNotFound(_) => StoreError::LeaseNotFound(lease_used),
                other => other,
            })?;
        let revision = revision_of(response.header());
        if response.succeeded() {
            return Ok(TxnResult::Committed { revision });
        }
        let current = response
            .op_responses()
            .into_iter()
            .map(|answer| match answer {
                TxnOpResponse::Get(get) => get.kvs().first().map(key_value),
                _ => None,
            })
            .collect();
        Ok(TxnResult::Conflict { current, revision })
    }

    async fn watch(&self, prefix: Bytes, from: Revision) -> Result<Watch> {
        let client = self
            .watches
            .watch_client()
            .max_decoding_message_size(MESSAGE_LIMIT);
        watch::start(client, prefix, from, self.progress.subscribe()).await
    }

    async fn request_progress(&self, prefix: Bytes) -> Result<()> {
        // No receiver means no watch, which is fine.
        let _ = self.progress.send(prefix);
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        let mut kv = self.kv();
        bounded("compact", kv.compact(revision, None))
            .await
            .map(drop)
            .map_err(|error| match error {
                StoreError::Engine { message, .. }
                    if message.contains("required revision is a future revision") =>
                {
                    StoreError::FutureRevision(revision)
                }
                other => other,
            })
    }

    async fn grant_lease(&self, ttl_seconds: i64) -> Result<LeaseId> {
        let mut leases = self.client.lease_client();
        Ok(bounded("grant lease", leases.grant(ttl_seconds, None))
            .await?
            .id())
    }

    async fn revision(&self) -> Result<Revision> {
        let response = insistent("revision", || {
            let mut kv = self.kv();
            async move { kv.get("/", Some(GetOptions::new().with_count_only())).await }
        })
        .await?;
        Ok(revision_of(response.header()))
    }

    async fn size(&self) -> Result<u64> {
        let mut maintenance = self.client.maintenance_client();
        let status = bounded("status", maintenance.status()).await?;
        Ok(u64::try_from(status.db_size()).unwrap_or(0))
    }
}
