//! Larder: a pull-through caching proxy registry.

pub mod config;
pub mod http;
pub mod oci;
pub mod telemetry;
pub mod upstream;
