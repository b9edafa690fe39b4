//! Larder: a pull-through caching proxy registry.

pub mod config;
pub mod oci;
pub mod pull;
pub mod store;
pub mod upstream;
