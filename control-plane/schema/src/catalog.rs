//! The table of kinds: lookup by path and by GVK, and iteration for discovery.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::custom::Custom;
use crate::facts;
use crate::types::{TypeId, Types};

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionKind {
    pub group: String,
    pub version: String,
    pub kind: String,
}

impl GroupVersionKind {
    pub fn new(group: &str, version: &str, kind: &str) -> Self {
        Self {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
        }
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
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
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
    /// Set for custom kinds, whose types serve server-side apply only.
    pub custom: Option<Arc<Custom>>,
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
        self.subresources
            .iter()
            .find(|subresource| subresource.name == name)
    }

    /// `pods` or `deployments.apps`, as messages name it.
    pub fn qualified_name(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
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
pub struct Catalog(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    types: Arc<Types>,
    /// In discovery order.
    resources: Vec<Arc<Resource>>,
    /// By group, version, plural; an index into `resources`.
    paths: HashMap<[String; 3], usize>,
    kinds: HashMap<GroupVersionKind, Arc<Kind>>,
    /// DeleteOptions, WatchEvent and the like, which every group version accepts.
    shared_kinds: HashMap<String, Arc<Kind>>,
}

impl Catalog {
    /// Every kind of Kubernetes v1.36 that is served by default.
    pub fn builtin() -> Self {
        let types = Types::builtin();
        let mut inner = Inner {
            types: types.clone(),
            resources: Vec::new(),
            paths: HashMap::new(),
            kinds: HashMap::new(),
            shared_kinds: HashMap::new(),
        };
        for (name, source) in facts::type_sources() {
            let Some(gvk) = source.lines().next().and_then(|head| head.split(" g=").nth(1)) else {
                continue;
            };
            let gvk = gvk.split(' ').next().unwrap_or_default();
            let Some(root) = types.by_name(&facts::full_name(name)) else {
                continue;
            };
            match gvk.split('/').collect::<Vec<_>>()[..] {
                [group, version, kind] => inner.add_kind(GroupVersionKind::new(group, version, kind), root),
                _ => {
                    let kind = name.rsplit('.').next().unwrap_or_default();
                    let gvk = GroupVersionKind::new("meta.k8s.io", "v1", kind);
                    inner.shared_kinds.insert(
                        kind.to_owned(),
                        Arc::new(Kind {
                            gvk,
                            types: types.clone(),
                            root,
                            custom: None,
                        }),
                    );
                }
            }
        }
        for (name, gvk) in UNLISTED_KINDS {
            if let Some(root) = types.by_name(&facts::full_name(name)) {
                let kind = name.rsplit('.').next().unwrap_or_default();
                inner.add_kind(GroupVersionKind::from_api_version(gvk, kind), root);
            }
        }
        inner.read_resources();
        Self(Arc::new(inner))
    }

    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.0
            .paths
            .get(&path_key(group, version, plural))
            .map(|index| &self.0.resources[*index])
    }

    /// Any registered kind, also those without a resource: lists, Status, DeleteOptions, Scale.
    pub fn kind(&self, gvk: &GroupVersionKind) -> Option<&Arc<Kind>> {
        self.0
            .kinds
            .get(gvk)
            .or_else(|| self.0.shared_kinds.get(&gvk.kind))
    }

    pub fn resource_for_kind(&self, gvk: &GroupVersionKind) -> Option<&Arc<Resource>> {
        self.0.resources.iter().find(|resource| resource.kind.gvk == *gvk)
    }

    /// In discovery order.
    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.0.resources.iter()
    }

    /// In discovery order, the core group (named "") first.
    pub fn groups(&self) -> Vec<ApiGroup> {
        let mut groups: Vec<ApiGroup> = Vec::new();
        for resource in self.resources() {
            match groups.iter_mut().find(|group| group.name == resource.group) {
                None => groups.push(ApiGroup {
                    name: resource.group.clone(),
                    versions: vec![resource.version.clone()],
                }),
                Some(group) if !group.versions.contains(&resource.version) => {
                    group.versions.push(resource.version.clone())
                }
                Some(_) => {}
            }
        }
        groups
    }

    /// The types of the built-in kinds.
    pub fn types(&self) -> &Arc<Types> {
        &self.0.types
    }

    /// With one more resource (a custom one), or a changed one in its old place.
    pub fn with(&self, resource: Resource) -> Self {
        let mut inner = Inner::clone(&self.0);
        inner.add_resource(Arc::new(resource));
        Self(Arc::new(inner))
    }

    /// With more resources, in their order.
    pub fn with_all(&self, resources: impl IntoIterator<Item = Resource>) -> Self {
        let mut inner = Inner::clone(&self.0);
        for resource in resources {
            inner.add_resource(Arc::new(resource));
        }
        Self(Arc::new(inner))
    }

    pub fn without(&self, group: &str, version: &str, plural: &str) -> Self {
        let mut inner = Inner::clone(&self.0);
        if let Some(index) = inner.paths.remove(&path_key(group, version, plural)) {
            let gone = inner.resources.remove(index);
            inner.kinds.remove(&gone.kind.gvk);
            inner
                .paths
                .values_mut()
                .filter(|position| **position > index)
                .for_each(|position| *position -= 1);
        }
        Self(Arc::new(inner))
    }
}

/// Kinds that clients send or ask for although no OpenAPI document names them.
const UNLISTED_KINDS: &[(&str, &str)] = &[
    ("meta.v1.List", "v1"),
    ("meta.v1.PartialObjectMetadata", "meta.k8s.io/v1"),
    ("meta.v1.PartialObjectMetadataList", "meta.k8s.io/v1"),
    ("core.v1.RangeAllocation", "v1"),
    ("core.v1.PodExecOptions", "v1"),
    ("core.v1.PodAttachOptions", "v1"),
    ("core.v1.PodLogOptions", "v1"),
    ("core.v1.PodPortForwardOptions", "v1"),
    ("core.v1.PodProxyOptions", "v1"),
    ("core.v1.NodeProxyOptions", "v1"),
    ("core.v1.ServiceProxyOptions", "v1"),
];

fn path_key(group: &str, version: &str, plural: &str) -> [String; 3] {
    [group.to_owned(), version.to_owned(), plural.to_owned()]
}

impl Inner {
    fn add_kind(&mut self, gvk: GroupVersionKind, root: TypeId) {
        self.kinds.insert(
            gvk.clone(),
            Arc::new(Kind {
                gvk,
                types: self.types.clone(),
                root,
                custom: None,
            }),
        );
    }

    fn add_resource(&mut self, resource: Arc<Resource>) {
        self.kinds
            .insert(resource.kind.gvk.clone(), resource.kind.clone());
        let key = path_key(&resource.group, &resource.version, &resource.plural);
        match self.paths.get(&key) {
            Some(index) => self.resources[*index] = resource,
            None => {
                self.paths.insert(key, self.resources.len());
                self.resources.push(resource);
            }
        }
    }

    fn read_resources(&mut self) {
        for block in facts::RESOURCES.split("\nR\t").skip(1) {
            if let Some(resource) = self.read_resource(block) {
                self.add_resource(Arc::new(resource));
            }
        }
    }

    fn read_resource(&self, block: &str) -> Option<Resource> {
        let mut lines = block.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        let head = lines.next()?;
        let [
            group_version,
            plural,
            kind,
            scope,
            verbs,
            short_names,
            categories,
            singular,
        ] = head[..]
        else {
            return None;
        };
        let gvk = GroupVersionKind::from_api_version(group_version, kind);
        let mut resource = Resource {
            group: gvk.group.clone(),
            version: gvk.version.clone(),
            plural: plural.to_owned(),
            singular: singular.to_owned(),
            list_kind: format!("{kind}List"),
            kind: self.kinds.get(&gvk)?.clone(),
            scope: if scope == "Namespaced" {
                Scope::Namespaced
            } else {
                Scope::Cluster
            },
            verbs: words(verbs),
            short_names: words(short_names),
            categories: words(categories),
            subresources: Vec::new(),
            columns: Vec::new(),
        };
        for line in lines {
            match line[..] {
                ["S", name, kind, verbs] => {
                    let gvk = match kind.split_once(' ') {
                        Some((api_version, kind)) => GroupVersionKind::from_api_version(api_version, kind),
                        None => GroupVersionKind::new(&gvk.group, &gvk.version, kind),
                    };
                    resource.subresources.push(Subresource {
                        name: name.to_owned(),
                        kind: self.kinds.get(&gvk)?.clone(),
                        verbs: words(verbs),
                    });
                }
                ["C", name, ty, format, priority] => resource.columns.push(Column {
                    name: name.to_owned(),
                    ty: ty.to_owned(),
                    format: format.to_owned(),
                    priority: priority.parse().ok()?,
                }),
                _ => {}
            }
        }
        Some(resource)
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(',')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_line_becomes_a_resource() {
        let catalog = Catalog::builtin();
        let expected = facts::RESOURCES
            .lines()
            .filter(|line| line.starts_with("R\t"))
            .count();
        assert_eq!(catalog.resources().count(), expected);
        let subresources = facts::RESOURCES
            .lines()
            .filter(|line| line.starts_with("S\t"))
            .count();
        assert_eq!(
            catalog
                .resources()
                .map(|resource| resource.subresources.len())
                .sum::<usize>(),
            subresources
        );
    }

    #[test]
    fn looks_up_by_path_and_kind() {
        let catalog = Catalog::builtin();
        let pods = catalog.resource("", "v1", "pods").expect("pods");
        assert_eq!(
            (pods.list_kind.as_str(), pods.scope, pods.short_names.as_slice()),
            ("PodList", Scope::Namespaced, &["po".to_owned()][..])
        );
        assert_eq!(
            pods.subresource("eviction").expect("eviction").kind.gvk,
            GroupVersionKind::new("policy", "v1", "Eviction")
        );
        assert_eq!(
            catalog.resource_for_kind(&pods.kind.gvk).expect("by kind").plural,
            "pods"
        );
        for kind in ["PodList", "Status", "DeleteOptions", "List"] {
            assert!(
                catalog.kind(&GroupVersionKind::new("", "v1", kind)).is_some(),
                "{kind}"
            );
        }
        assert!(
            catalog
                .kind(&GroupVersionKind::new("policy", "v1", "DeleteOptions"))
                .is_some()
        );
        assert!(
            catalog
                .kind(&GroupVersionKind::new("", "v1", "Nothing"))
                .is_none()
        );
        let groups = catalog.groups();
        assert_eq!((groups[0].name.as_str(), groups.len()), ("", 21));
    }

    #[test]
    fn a_resource_can_come_and_go() {
        let builtin = Catalog::builtin();
        let mut widget = Resource::clone(builtin.resource("", "v1", "configmaps").expect("configmaps"));
        widget.group = "example.com".into();
        widget.plural = "widgets".into();
        widget.kind = Arc::new(Kind {
            gvk: GroupVersionKind::new("example.com", "v1", "Widget"),
            ..Kind::clone(&widget.kind)
        });
        let with = builtin.with(widget);
        assert!(with.resource("example.com", "v1", "widgets").is_some());
        assert!(builtin.resource("example.com", "v1", "widgets").is_none());
        let without = with
            .without("example.com", "v1", "widgets")
            .without("", "v1", "configmaps");
        assert!(without.resource("example.com", "v1", "widgets").is_none());
        assert_eq!(
            without
                .resource("apps", "v1", "deployments")
                .expect("still there")
                .plural,
            "deployments"
        );
    }
}
