//! Larder: a pull-through caching proxy registry.

pub mod app;
pub mod cli;
pub mod config;
pub mod http;
pub mod oci;
pub mod pull;
pub mod store;
pub mod telemetry;
pub mod upstream;
