//! Larder: a pull-through caching proxy registry.

pub mod cli;
pub mod config;
pub mod oci;
pub mod upstream;
