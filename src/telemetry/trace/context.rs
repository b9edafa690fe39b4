//! Who a span is and whose child: ids, and the two headers that carry them (W3C Trace Context, level 2).
//!
//! What does not keep the rules is as if it had not been sent; a bad `tracestate` does not spoil a good `traceparent`.

use std::fmt;
use std::sync::Arc;

pub const TRACEPARENT: &str = "traceparent";
pub const TRACESTATE: &str = "tracestate";

/// Sampled; the other flag that exists says that the trace id is random.
const SAMPLED: u8 = 1;
const RANDOM: u8 = 2;
/// Of version 00, and the beginning of every later one.
const LENGTH: usize = 55;
/// Of `tracestate`, together. What is longer than a server has to pass on is left out as a whole.
const MOST_MEMBERS: usize = 32;
const MOST_STATE: usize = 512;

/// Not all zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// Not all zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

/// One span's place in the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    pub trace: TraceId,
    pub span: SpanId,
    /// As it came, or as a new trace has them.
    pub flags: u8,
    /// What others wrote for themselves.
    pub state: Option<Arc<str>>,
}

impl TraceId {
    pub fn random() -> TraceId {
        TraceId(fastrand::u128(1..).to_be_bytes())
    }

    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Whether a trace without a parent is among so many, by its last 56 bits, as other tools decide it too: who keeps fewer
    /// of them keeps none that another drops.
    pub fn is_among(&self, share: f64) -> bool {
        let [.., a, b, c, d, e, f, g] = self.0;
        let low = u64::from_be_bytes([0, a, b, c, d, e, f, g]);
        low as f64 >= (1.0 - share) * (1_u64 << 56) as f64
    }
}

impl SpanId {
    pub fn random() -> SpanId {
        SpanId(fastrand::u64(1..).to_be_bytes())
    }

    pub fn bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl Context {
    /// The beginning of a trace.
    pub fn root() -> Context {
        Context {
            trace: TraceId::random(),
            span: SpanId::random(),
            flags: SAMPLED | RANDOM,
            state: None,
        }
    }

    /// Another span of the same trace.
    pub fn child(&self) -> Context {
        Context {
            span: SpanId::random(),
            ..self.clone()
        }
    }

    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The same, to be recorded whatever was said before.
    pub fn sampled(mut self) -> Context {
        self.flags |= SAMPLED;
        self
    }

    /// Reads a `traceparent` and the lines of `tracestate` that came with it.
    pub fn read<'a>(traceparent: &[u8], tracestate: impl Iterator<Item = &'a [u8]>) -> Option<Context> {
        let mut context = parse(traceparent.trim_ascii())?;
        context.state = state(tracestate);
        Some(context)
    }

    /// As the value of a `traceparent`.
    pub fn traceparent(&self) -> String {
        let known = self.flags & (SAMPLED | RANDOM);
        format!("00-{}-{}-{known:02x}", self.trace, self.span)
    }
}

fn parse(text: &[u8]) -> Option<Context> {
    let (head, rest) = text.split_at_checked(LENGTH)?;
    let dashes = [2, 35, 52].iter().all(|at| head[*at] == b'-');
    let [version] = hex(&head[..2])?;
    // A later version may have more behind another dash; what stands before means the same.
    let ends_well = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.is_empty() || rest[0] == b'-',
    };
    let trace = TraceId(hex(&head[3..35])?);
    let span = SpanId(hex(&head[36..52])?);
    let [flags] = hex(&head[53..])?;
    let is_real = trace.0 != [0; 16] && span.0 != [0; 8];
    (dashes && ends_well && is_real).then_some(Context {
        trace,
        span,
        flags,
        state: None,
    })
}

/// Small letters only, as the specification wants.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// The lines as one list; `None` for one that breaks a rule.
fn state<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<Arc<str>> {
    let mut members: Vec<&str> = Vec::new();
    for line in lines {
        for member in std::str::from_utf8(line).ok()?.split(',') {
            let member = member.trim_matches([' ', '\t']);
            if member.is_empty() {
                continue;
            }
            let (key, value) = member.split_once('=')?;
            let is_new = members.iter().all(|other| other.split('=').next() != Some(key));
            if !is_key(key) || !is_value(value) || !is_new || members.len() == MOST_MEMBERS {
                return None;
            }
            members.push(member);
        }
    }
    let all = members.join(",");
    (!all.is_empty() && all.len() <= MOST_STATE).then(|| all.into())
}

/// Small letters, digits and `_-*/`, with an `@` before a vendor's name; it begins with a letter or digit.
fn is_key(key: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(&byte);
    let first = key.bytes().next();
    key.len() <= 256
        && first.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        && key.bytes().all(fits)
        && key.bytes().filter(|byte| *byte == b'@').count() <= 1
        && !key.ends_with('@')
}

/// Printable, without `,` and `=`.
fn is_value(value: &str) -> bool {
    let fits = |byte: u8| matches!(byte, b' '..=b'~') && byte != b',' && byte != b'=';
    !value.is_empty() && value.len() <= 256 && value.bytes().all(fits)
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn read(traceparent: &str, tracestate: &[&str]) -> Option<Context> {
        Context::read(traceparent.as_bytes(), tracestate.iter().map(|line| line.as_bytes()))
    }

    #[test]
    fn what_clients_send() {
        let context = read(GOOD, &["rojo=00f067aa0ba902b7 , congo=t61rcWkgMzE", "a@b=c"]).unwrap();
        assert_eq!(context.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.span.to_string(), "00f067aa0ba902b7");
        assert!(context.is_sampled());
        assert_eq!(
            context.state.as_deref(),
            Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE,a@b=c")
        );
        assert_eq!(context.traceparent(), GOOD);
        let later = GOOD.replacen("00", "cc", 1);
        for good in [
            GOOD.to_owned(),
            format!(" {GOOD}\t"),
            later.clone(),
            format!("{later}-more"),
        ] {
            assert_eq!(read(&good, &[]).unwrap().trace, context.trace, "{good}");
        }
        let not = read(&GOOD.replace("-01", "-02"), &[]).unwrap();
        assert!(!not.is_sampled() && not.sampled().is_sampled());
    }

    #[test]
    fn what_breaks_the_rules_was_not_sent() {
        for bad in [
            String::new(),
            GOOD.to_uppercase(),
            format!("{GOOD}-more"),
            format!("{}x", GOOD.replacen("00", "01", 1)),
            GOOD.replacen("00", "ff", 1),
            GOOD.replace('-', "_"),
            GOOD[..54].to_owned(),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01".to_owned(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01".to_owned(),
            GOOD.replace("4bf", "4bg"),
            GOOD.replace("4bf", "4b+"),
        ] {
            assert_eq!(read(&bad, &[]), None, "{bad}");
        }
    }

    #[test]
    fn a_bad_tracestate_is_left_out_alone() {
        let many: Vec<String> = (0..33).map(|n| format!("k{n}=v")).collect();
        let long = format!("k={}", "v".repeat(256));
        let twice = [long.as_str(), long.as_str()];
        for bad in [
            &["A=b"][..],
            &["a"],
            &["a="],
            &["a=b=c"],
            &["a=b,a=c"],
            &["a@=b"],
            &["a@b@c=d"],
            &["é=b"],
            &["a=\u{1}"],
            &[&many.join(",")],
            &twice,
            &[],
            &[" , "],
        ] {
            assert_eq!(read(GOOD, bad).unwrap().state, None, "{bad:?}");
        }
        assert!(read(GOOD, &[&many[..32].join(",")]).unwrap().state.is_some());
    }

    #[test]
    fn ids_are_chosen_by_their_share() {
        assert!(!(0..1000).any(|_| TraceId::random().is_among(0.0)));
        assert!((0..1000).all(|_| TraceId::random().is_among(1.0)));
        let half = (0..1000).filter(|_| TraceId::random().is_among(0.5)).count();
        assert!((300..700).contains(&half), "{half}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace in 1..u128::MAX, span in 1..u64::MAX, flags in 0..4u8) {
            let context = Context {
                trace: TraceId(trace.to_be_bytes()),
                span: SpanId(span.to_be_bytes()),
                flags,
                state: None,
            };
            prop_assert_eq!(read(&context.traceparent(), &[]), Some(context));
        }

        /// Whatever is read has the form that the specification gives, checked by other means.
        #[test]
        fn nothing_else_is_read(text in "[0-9a-gA-F-]{50,60}|[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-?x?)") {
            let parts: Vec<&str> = text.split('-').collect();
            let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
            let small = |part: &&str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            let is_form = lengths.starts_with(&[2, 32, 16, 2])
                && parts[..4].iter().all(small)
                && parts[0] != "ff"
                && (parts.len() == 4 || parts[0] != "00")
                && [parts[1], parts[2]].iter().all(|part| part.bytes().any(|b| b != b'0'));
            prop_assert_eq!(read(&text, &[]).is_some(), is_form, "{}", text);
        }

        #[test]
        fn no_bytes_are_too_strange(one in any::<Vec<u8>>(), two in any::<Vec<u8>>()) {
            let _ = Context::read(&one, std::iter::once(two.as_slice()));
            let read = Context::read(GOOD.as_bytes(), std::iter::once(two.as_slice()));
            let state = read.unwrap().state;
            prop_assert!(state.is_none_or(|state| state.len() <= MOST_STATE && state.bytes().all(|b| (b' '..=b'~').contains(&b))));
        }
    }
}
