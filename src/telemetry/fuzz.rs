//! Harness for trace contexts, which come with every request.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::trace::context::Context;
use crate::fuzzing::{Harness, fields, texts};

pub(crate) const HARNESSES: &[Harness] = &[Harness {
    name: "trace_context",
    run: trace_context,
    seeds: || {
        texts(&[
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\nrojo=00f067aa0ba902b7,congo=t61rcWkgMzE\na@b=c",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-more\n",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        ])
    },
    words: &[
        "00-",
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "-",
        "a=b,",
        ",",
        "=",
        "@",
        "0",
    ],
}];

/// A `traceparent`, then lines of `tracestate`.
fn trace_context(data: &[u8]) {
    let ([parent], state) = fields(data);
    let Some(context) = Context::read(parent, state.split(|byte| *byte == b'\n')) else {
        return;
    };
    let written = context.traceparent();
    assert_eq!(written.len(), 55);
    let again = Context::read(written.as_bytes(), context.state.iter().map(|state| state.as_bytes())).expect("our own");
    assert_eq!((again.trace, again.span), (context.trace, context.span));
    assert_eq!(again.is_sampled(), context.is_sampled());
    assert_eq!(again.state, context.state);
    if let Some(state) = &context.state {
        assert!((1..=512).contains(&state.len()) && state.split(',').count() <= 32);
        assert!(state.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    }
    let child = context.child();
    assert_eq!((child.trace, child.is_sampled()), (context.trace, context.is_sampled()));
}
