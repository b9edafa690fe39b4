//! Spans as collectors take them: the messages of OTLP 1.x, as far as Larder has something to put into them.
//!
//! Fields and their numbers are those of `opentelemetry/proto/{collector/trace,trace,common,resource}/v1`, which are
//! declared stable.

use bytes::Bytes;
use prost::{Message, Oneof};

use super::context::Context;
use super::span::{Kind, Record, Value};

#[derive(Clone, PartialEq, Message)]
pub struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    pub resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    pub scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    pub spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Scope {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub version: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    pub trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    pub parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub name: String,
    #[prost(int32, tag = "6")]
    pub kind: i32,
    #[prost(fixed64, tag = "7")]
    pub start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    pub end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    pub attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "13")]
    pub links: Vec<Link>,
    #[prost(message, optional, tag = "15")]
    pub status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    pub flags: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Link {
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    pub trace_state: String,
    #[prost(fixed32, tag = "6")]
    pub flags: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Status {
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(int32, tag = "3")]
    pub code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AnyValue {
    #[prost(oneof = "Any", tags = "1, 2, 3")]
    pub value: Option<Any>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum Any {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Flag(bool),
    #[prost(int64, tag = "3")]
    Number(i64),
}

/// What a collector answers.
#[derive(Clone, PartialEq, Message)]
pub struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    pub partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PartialSuccess {
    #[prost(int64, tag = "1")]
    pub rejected_spans: i64,
    #[prost(string, tag = "2")]
    pub error_message: String,
}

/// `STATUS_CODE_ERROR`.
pub const ERROR: i32 = 2;
/// Behind the eight flags of the trace: the next bit says whether the parent is another process's, and this one that it is known.
const HAS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// One batch, as it is sent. `resource` is who tells it.
pub fn encoded(resource: &[(String, String)], batch: &[Record]) -> Bytes {
    request(resource, batch).encode_to_vec().into()
}

fn request(resource: &[(String, String)], batch: &[Record]) -> ExportRequest {
    let attribute = |(key, value): &(String, String)| pair(key, Any::Text(value.clone()));
    ExportRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: resource.iter().map(attribute).collect(),
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(Scope {
                    name: "larder".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                }),
                spans: batch.iter().map(span).collect(),
            }],
        }],
    }
}

fn span(record: &Record) -> Span {
    let context = &record.context;
    let remote = if record.is_joined { IS_REMOTE } else { 0 };
    Span {
        trace_id: context.trace.bytes().to_vec(),
        span_id: context.span.bytes().to_vec(),
        trace_state: context.state.as_deref().unwrap_or_default().to_owned(),
        parent_span_id: record.parent.map_or_else(Vec::new, |parent| parent.bytes().to_vec()),
        name: record.name.clone().into_owned(),
        kind: match record.kind {
            Kind::Internal => 1,
            Kind::Server => 2,
            Kind::Client => 3,
        },
        start_time_unix_nano: record.start,
        end_time_unix_nano: record.end,
        attributes: record
            .attributes
            .iter()
            .map(|(key, value)| attribute(key, value))
            .collect(),
        links: record.links.iter().map(link).collect(),
        status: record.error.as_ref().map(|what| Status {
            message: what.clone(),
            code: ERROR,
        }),
        flags: u32::from(context.flags) | HAS_REMOTE | remote,
    }
}

fn link(to: &Context) -> Link {
    Link {
        trace_id: to.trace.bytes().to_vec(),
        span_id: to.span.bytes().to_vec(),
        trace_state: to.state.as_deref().unwrap_or_default().to_owned(),
        flags: u32::from(to.flags) | HAS_REMOTE,
    }
}

fn attribute(key: &str, value: &Value) -> KeyValue {
    pair(
        key,
        match value {
            Value::Text(text) => Any::Text(text.clone().into_owned()),
            Value::Number(number) => Any::Number(*number),
            Value::Flag(flag) => Any::Flag(*flag),
        },
    )
}

fn pair(key: &str, value: Any) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(text: &str, state: &'static [u8]) -> Context {
        Context::read(text.as_bytes(), std::iter::once(state)).unwrap()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The bytes that another implementation, made from the specification's own files, writes for the same span.
    #[test]
    fn a_span_as_others_write_it() {
        let record = Record {
            context: context("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", b"a=b"),
            parent: Some(context("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b8-01", b"").span),
            is_joined: true,
            name: "GET".into(),
            kind: Kind::Server,
            start: 1000,
            end: 2000,
            attributes: vec![
                ("http.response.status_code", Value::from(206_u16)),
                ("larder.cache", Value::from("hit")),
                ("flag", Value::from(true)),
            ],
            links: vec![context("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"")],
            error: Some("cut".to_owned()),
        };
        let theirs = "\
            0a104bf92f3577b34da6a3ce929d0e0e4736120800f067aa0ba902b71a03613d62220800f067aa0ba902b82a03474554\
            300239e80300000000000041d0070000000000004a200a19687474702e726573706f6e73652e7374617475735f636f64\
            65120318ce014a150a0c6c61726465722e636163686512050a036869744a0a0a04666c6167120210016a210a100af765\
            1916cd43dd8448eb211c80319c1208b7ad6b716920333135010100007a0712036375741802850101030000";
        assert_eq!(hex(&span(&record).encode_to_vec()), theirs);
    }

    #[test]
    fn an_answer_as_others_write_it() {
        let theirs: &[u8] = b"\x0a\x0b\x08\x03\x12\x07too old";
        let partly = ExportResponse::decode(theirs).unwrap().partial_success.unwrap();
        assert_eq!((partly.rejected_spans, partly.error_message.as_str()), (3, "too old"));
    }
}
