//! Gives every controller the same life: keys come from its queue, plans go to the executor.

use crate::action::Action;
use crate::executor::{Error, Executor};
use crate::key::Key;
use crate::queue::Queue;
use k8s_openapi::jiff::Timestamp;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Decides what to do about one key.
pub trait Controller: Send + Sync + 'static {
    const NAME: &'static str;
    /// The name its events carry.
    const SOURCE: &'static str = Self::NAME;
    /// Keys worked on together.
    const WORKERS: usize = 5;

    /// Observes, then reconciles. Most observe caches only; some ask the API server.
    fn plan(&self, key: &Key, now: Timestamp) -> impl Future<Output = Result<Vec<Action>, Error>> + Send;

    /// The plan was carried out, or not.
    fn finished(&self, _key: &Key, _result: Result<(), &Error>) {}
}

/// Runs until the task is dropped.
pub async fn run<C: Controller>(controller: Arc<C>, queue: Arc<Queue>, executor: Arc<Executor>) {
    let workers = Arc::new(Semaphore::new(C::WORKERS));
    let mut tasks = JoinSet::new();
    loop {
        let Ok(permit) = workers.clone().acquire_owned().await else {
            return;
        };
        let key = queue.next().await;
        while tasks.try_join_next().is_some() {}
        let (controller, queue, executor) = (controller.clone(), queue.clone(), executor.clone());
        tasks.spawn(async move {
            let _permit = permit;
            work(&*controller, &queue, &executor, &key).await;
        });
    }
}

async fn work<C: Controller>(controller: &C, queue: &Queue, executor: &Executor, key: &Key) {
    let result = match controller.plan(key, Timestamp::now()).await {
        Ok(plan) => executor.run(plan, C::SOURCE).await,
        Err(error) => Err(error),
    };
    controller.finished(key, result.as_ref().map(|_| ()));
    match &result {
        Ok(again) => {
            queue.done(key, true);
            if let Some(delay) = again {
                queue.add_after(key.clone(), *delay);
            }
        }
        Err(error) => {
            if error.is_conflict() {
                tracing::debug!(controller = C::NAME, %key, %error, "the object changed meanwhile, trying again");
            } else {
                tracing::warn!(controller = C::NAME, %key, %error, "reconciliation failed, trying again");
            }
            queue.done(key, false);
        }
    }
}
