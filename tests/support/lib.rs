//! What the tests of whole programs share: where the binaries are, a real kubectl, a control plane
//! on loopback, virtual machines. Everything it starts ends with the value that stands for it.

mod control_plane;
mod kubectl;
mod machines;
mod namespaces;
mod programs;

pub use control_plane::{ControlPlane, Etcd};
pub use kubectl::Kubectl;
pub use machines::{BOOT, Machines};
pub use namespaces::in_own_namespaces;
pub use programs::{Program, TempDir, binary, command, eventually, output};
