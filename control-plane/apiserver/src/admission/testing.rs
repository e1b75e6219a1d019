//! A small world for the plug-ins' tests: objects to read, and a request to judge.

use std::collections::BTreeMap;

use async_trait::async_trait;
use auth::UserInfo;
use serde_json::Value;

use crate::pipeline::{Admission, AdmissionContext, ObjectReader, Operation};
use crate::request_info::RequestInfo;
use crate::status::ApiError;

/// (resource, namespace, name) → object
#[derive(Default)]
pub struct Objects(BTreeMap<(String, String, String), Value>);

impl Objects {
    pub fn new(objects: &[(&str, Value)]) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let keyed = objects.iter().map(|(resource, object)| {
            let metadata = &object["metadata"];
            (
                (
                    (*resource).to_owned(),
                    text(&metadata["namespace"]),
                    text(&metadata["name"]),
                ),
                object.clone(),
            )
        });
        Self(keyed.collect())
    }
}

#[async_trait]
impl ObjectReader for Objects {
    async fn get(
        &self,
        _group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, ApiError> {
        Ok(self
            .0
            .get(&(resource.into(), namespace.into(), name.into()))
            .cloned())
    }

    async fn list(&self, _group: &str, resource: &str, namespace: &str) -> Result<Vec<Value>, ApiError> {
        let wanted = |key: &(String, String, String)| {
            key.0 == resource && (namespace.is_empty() || key.1 == namespace)
        };
        Ok(self
            .0
            .iter()
            .filter(|(key, _)| wanted(key))
            .map(|(_, object)| object.clone())
            .collect())
    }

    fn revision(&self, _group: &str, _resource: &str) -> store::Revision {
        1
    }

    fn catalog(&self) -> std::sync::Arc<schema::Catalog> {
        std::sync::Arc::new(schema::Catalog::builtin())
    }
}

pub struct Request {
    pub operation: Operation,
    pub path: &'static str,
    pub kind: &'static str,
    pub user: UserInfo,
    pub old: Option<Value>,
}

impl Request {
    pub fn create(path: &'static str, kind: &'static str) -> Self {
        Self {
            operation: Operation::Create,
            path,
            kind,
            user: UserInfo::new("bob", &[]),
            old: None,
        }
    }

    pub fn update(path: &'static str, kind: &'static str, old: Value) -> Self {
        Self {
            operation: Operation::Update,
            old: Some(old),
            ..Self::create(path, kind)
        }
    }

    pub fn delete(path: &'static str, kind: &'static str, old: Value) -> Self {
        Self {
            operation: Operation::Delete,
            old: Some(old),
            ..Self::create(path, kind)
        }
    }

    pub fn by(mut self, user: UserInfo) -> Self {
        self.user = user;
        self
    }

    /// Runs both phases; the object as admitted, or the refusal's message.
    pub fn run(
        &self,
        plugin: &dyn Admission,
        objects: &Objects,
        object: Option<Value>,
    ) -> Result<Option<Value>, String> {
        let method = match self.operation {
            Operation::Create | Operation::Connect => "POST",
            Operation::Update => "PUT",
            Operation::Delete => "DELETE",
        };
        let info = RequestInfo::parse(&method.parse().expect("a method"), self.path, "");
        let context = context(
            self.operation,
            &info,
            self.kind,
            &self.user,
            self.old.as_ref(),
            objects,
        );
        let run = async {
            let mut object = object;
            if let Some(object) = &mut object {
                plugin.mutate(&context, object).await?;
            }
            plugin.validate(&context, object.as_ref()).await?;
            Ok(object)
        };
        futures::executor::block_on(run).map_err(|error: ApiError| error.message)
    }
}

pub fn context<'a>(
    operation: Operation,
    info: &'a RequestInfo,
    kind: &'a str,
    user: &'a UserInfo,
    old: Option<&'a Value>,
    reader: &'a Objects,
) -> AdmissionContext<'a> {
    AdmissionContext {
        operation,
        info,
        kind,
        user,
        old,
        dry_run: false,
        query: "",
        reader,
        reinvocation: std::sync::Mutex::default(),
    }
}
