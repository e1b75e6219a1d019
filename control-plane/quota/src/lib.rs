//! What objects cost and whether a ResourceQuota can pay: asked by admission before a write, and by the quota
//! controller when it counts anew. Pure, over JSON objects. Semantics and texts: upstream's `pkg/quota/v1` and
//! `admission/plugin/resourcequota`.

mod charge;
pub mod resources;
mod scope;
mod total;
mod usage;

pub use charge::{Charge, charge};
pub use total::{Counted, counted, status};
