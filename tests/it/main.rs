//! The integration tests: Larder over real sockets, between a scripted upstream and a raw client.
//!
//! One binary, so that it links once. The modules mirror the API; `laws` holds what the product promises.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod acme;
mod acme_failures;
mod addresses;
mod admin;
mod admin_access;
mod audit;
mod bandwidth;
mod blobs;
mod broken_config;
mod budget;
mod bundle;
mod bundle_foreign;
mod bundle_hostile;
mod canary;
mod circle;
mod claims;
mod client_files;
mod clients_containerd;
mod clients_docker;
mod clients_others;
mod commands;
mod config;
mod demo;
mod disk;
mod distrust;
mod doctor;
mod emptied;
mod enemies;
mod far;
mod flights;
mod heads;
mod late;
mod laws;
mod lists;
mod live;
mod logins;
mod manifests;
mod naming;
mod offline;
mod passwords;
mod prefetch;
mod prefetch_commands;
mod pressure;
mod privacy;
mod proxies;
mod questions;
mod reasons;
mod recovery;
mod referrers;
mod refused_ranges;
mod reload;
mod restarts;
mod rot;
mod sending;
mod serving;
mod stalled;
mod support_works;
mod systemd;
mod tags;
mod timing;
mod tokens;
mod traces;
mod unreadable;
mod upstreams;
mod users;
mod webhooks;
mod wrong_logins;
