//! Asks the API server who somebody is and what they may do, for servers that guard their own doors; its answers are
//! believed for a while.

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// More remembered answers than this are forgotten all at once.
const REMEMBERED: usize = 1000;

/// How long answers are believed.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub token: Duration,
    pub allowed: Duration,
    pub denied: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub allowed: bool,
    pub reason: String,
}

pub struct Reviews {
    client: Client,
    patience: Patience,
    users: Memory<Option<UserInfo>>,
    verdicts: Memory<Verdict>,
}

impl Reviews {
    pub fn new(client: Client, patience: Patience) -> Self {
        Self {
            client,
            patience,
            users: Memory::default(),
            verdicts: Memory::default(),
        }
    }

    /// The user of a bearer token; none for one that isn't valid.
    pub async fn user(&self, token: &str) -> kube::Result<Option<UserInfo>> {
        if let Some(user) = self.users.recall(token, |_| self.patience.token) {
            return Ok(user);
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: None,
            },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let review = reviews.create(&PostParams::default(), &review).await?;
        let status = review.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true));
        self.users.keep(token.to_owned(), user.clone());
        Ok(user)
    }

    /// Whether somebody may do something.
    pub async fn verdict(&self, question: SubjectAccessReviewSpec) -> kube::Result<Verdict> {
        let key = key(&question)?;
        let patience = |verdict: &Verdict| match verdict.allowed {
            true => self.patience.allowed,
            false => self.patience.denied,
        };
        if let Some(verdict) = self.verdicts.recall(&key, patience) {
            return Ok(verdict);
        }
        let review = SubjectAccessReview {
            spec: question,
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let status = reviews.create(&PostParams::default(), &review).await?.status;
        let verdict = status.map_or(
            Verdict {
                allowed: false,
                reason: String::new(),
            },
            |status| Verdict {
                allowed: status.allowed,
                reason: status.reason.unwrap_or_default(),
            },
        );
        self.verdicts.keep(key, verdict.clone());
        Ok(verdict)
    }

    /// What the last answer was, however old: for when nobody can be asked.
    pub fn last_verdict(&self, question: &SubjectAccessReviewSpec) -> Option<Verdict> {
        self.verdicts.recall(&key(question).ok()?, |_| Duration::MAX)
    }
}

fn key(question: &SubjectAccessReviewSpec) -> kube::Result<String> {
    serde_json::to_string(question).map_err(kube::Error::SerdeError)
}

struct Memory<V>(Mutex<HashMap<String, (V, Instant)>>);

impl<V> Default for Memory<V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<V: Clone> Memory<V> {
    fn recall(&self, key: &str, patience: impl Fn(&V) -> Duration) -> Option<V> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, since) = known.get(key)?;
        (since.elapsed() < patience(value)).then(|| value.clone())
    }

    fn keep(&self, key: String, value: V) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(key, (value, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_believed_for_their_time_and_memory_is_bounded() {
        let memory = Memory::default();
        memory.keep("a".into(), 1);
        assert_eq!(memory.recall("a", |_| Duration::MAX), Some(1));
        assert_eq!(memory.recall("a", |_| Duration::ZERO), None);
        assert_eq!(memory.recall("b", |_| Duration::MAX), None);
        for n in 0..REMEMBERED {
            memory.keep(n.to_string(), 2);
        }
        assert_eq!(memory.recall("a", |_| Duration::MAX), None);
        assert_eq!(memory.recall("999", |_| Duration::MAX), Some(2));
    }
}
