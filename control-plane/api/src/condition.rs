//! Conditions: the same five fields in a dozen types, read and set one way.

use k8s_openapi::api::{
    apps::v1 as apps, batch::v1 as batch, certificates::v1 as certificates, core::v1 as core,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What all condition types share.
pub trait Condition: Clone {
    fn new(kind: &str, status: &str, reason: &str, message: &str, now: &Time) -> Self;
    fn kind(&self) -> &str;
    fn status(&self) -> &str;
    fn reason(&self) -> &str;
    fn message(&self) -> &str;
    fn transition_time(&self) -> Option<&Time>;
    fn set_transition_time(&mut self, time: Option<Time>);
}

macro_rules! condition {
    ($type:ty, $($extra:ident),*) => {
        impl Condition for $type {
            #[allow(clippy::needless_update)] // some of the types have these five fields only
            fn new(kind: &str, status: &str, reason: &str, message: &str, now: &Time) -> Self {
                Self {
                    type_: kind.into(),
                    status: status.into(),
                    reason: (!reason.is_empty()).then(|| reason.into()),
                    message: (!message.is_empty()).then(|| message.into()),
                    last_transition_time: Some(now.clone()),
                    $($extra: Some(now.clone()),)*
                    ..Default::default()
                }
            }
            fn kind(&self) -> &str {
                &self.type_
            }
            fn status(&self) -> &str {
                &self.status
            }
            fn reason(&self) -> &str {
                self.reason.as_deref().unwrap_or_default()
            }
            fn message(&self) -> &str {
                self.message.as_deref().unwrap_or_default()
            }
            fn transition_time(&self) -> Option<&Time> {
                self.last_transition_time.as_ref()
            }
            fn set_transition_time(&mut self, time: Option<Time>) {
                self.last_transition_time = time;
            }
        }
    };
}
condition!(core::PodCondition,);
condition!(core::NamespaceCondition,);
condition!(core::NodeCondition, last_heartbeat_time);
condition!(apps::DeploymentCondition, last_update_time);
condition!(apps::ReplicaSetCondition,);
condition!(apps::DaemonSetCondition,);
condition!(batch::JobCondition, last_probe_time);
condition!(certificates::CertificateSigningRequestCondition, last_update_time);

pub fn find<'a, C: Condition>(conditions: Option<&'a Vec<C>>, kind: &str) -> Option<&'a C> {
    conditions?.iter().find(|c| c.kind() == kind)
}

pub fn is_true<C: Condition>(conditions: Option<&Vec<C>>, kind: &str) -> bool {
    find(conditions, kind).is_some_and(|c| c.status() == "True")
}

/// Upstream's `SetDeploymentCondition` and its siblings: nothing changes when status and reason stay, and the
/// transition time moves only with the status. True when the list changed.
pub fn set<C: Condition>(conditions: &mut Vec<C>, mut new: C) -> bool {
    match conditions.iter_mut().find(|c| c.kind() == new.kind()) {
        Some(old) if old.status() == new.status() && old.reason() == new.reason() => return false,
        Some(old) => {
            if old.status() == new.status() {
                new.set_transition_time(old.transition_time().cloned());
            }
            let kind = new.kind().to_owned();
            conditions.retain(|c| c.kind() != kind);
            conditions.push(new);
        }
        None => conditions.push(new),
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let at = |s| Time(Timestamp::from_second(s).unwrap());
        let mut list = vec![];
        assert!(set(
            &mut list,
            core::PodCondition::new("Ready", "False", "A", "", &at(1))
        ));
        assert!(!set(
            &mut list,
            core::PodCondition::new("Ready", "False", "A", "", &at(2))
        ));
        assert!(set(
            &mut list,
            core::PodCondition::new("Ready", "False", "B", "", &at(3))
        ));
        assert_eq!(list[0].last_transition_time, Some(at(1)));
        assert!(set(
            &mut list,
            core::PodCondition::new("Ready", "True", "B", "", &at(4))
        ));
        assert_eq!((list.len(), &list[0].last_transition_time), (1, &Some(at(4))));
    }
}
