//! What the API server knows about kinds: one catalog of facts, and pure functions over it.
//!
//! | module | question it answers |
//! |---|---|
//! | [`catalog`] | which resources and kinds exist, and how they are served |
//! | [`types`] | which fields a type has, and how each is encoded, merged, defaulted |
//! | [`custom`] | how CustomResourceDefinitions enter the catalog |
//! | [`codec`] | bytes (JSON, YAML, protobuf) ⇄ `serde_json::Value` |
//! | [`fields`] | strict field checking, pruning, canonical form |
//! | [`defaults`] | what upstream fills in |
//! | [`validate`] | what upstream refuses, with its texts |
//! | [`advice`] | what it accepts and advises against |
//! | [`cel`] | what an admission expression says about an object |
//! | [`apply`] | server-side apply: who owns which field |
//! | [`patch`] | JSON, merge and strategic merge patches |
//! | [`table`] | server-side tables |
//! | [`discovery`], [`openapi`] | the documents clients learn the API from |

pub mod advice;
pub mod apply;
pub mod catalog;
pub mod cel;
pub mod codec;
pub mod custom;
pub mod defaults;
pub mod discovery;
mod facts;
pub mod fields;
mod json;
pub mod openapi;
pub mod patch;
mod protobuf;
pub mod quantity;
pub mod table;
mod time;
pub mod types;
pub mod validate;
mod wire;

pub use catalog::{Catalog, GroupVersionKind, Kind, Resource, Scope, Subresource};
pub use codec::MediaType;
