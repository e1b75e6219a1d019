//! The kernel facilities that neither std nor rustix wraps, one module each; all `unsafe` is here.

pub mod block;
pub mod clock;
pub mod entropy;
pub mod loop_device;
pub mod packet_socket;
pub mod process;
pub mod screen;
pub mod signals;
pub mod watchdog;
