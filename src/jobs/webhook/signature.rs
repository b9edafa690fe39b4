//! How a receiver knows that a delivery is from here, and not an old one sent again.
//!
//! `X-Larder-Timestamp` is the time of sending, Unix seconds; `X-Larder-Signature` is `sha256=` and, in hexadecimal, the
//! HMAC-SHA256 of that time, a full stop and the body. GitHub signs the body alone, which can be sent again by whoever has seen it;
//! the time in front is what Stripe and Slack sign too.

use std::fmt::Write as _;

use ring::hmac;

pub(super) const TIMESTAMP: &str = "x-larder-timestamp";
pub(super) const SIGNATURE: &str = "x-larder-signature";

/// The value of the header.
pub(super) fn signature(secret: &str, timestamp: u64, body: &[u8]) -> String {
    let time = format!("{timestamp}.");
    format!("sha256={}", hmac_hex(secret.as_bytes(), &[time.as_bytes(), body]))
}

fn hmac_hex(key: &[u8], parts: &[&[u8]]) -> String {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    context.sign().as_ref().iter().fold(String::new(), |mut hex, byte| {
        // A String takes everything.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test case 2.
    #[test]
    fn the_vector() {
        assert_eq!(
            hmac_hex(b"Jefe", &[b"what do ya want ", b"for nothing?"]),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn time_and_body_are_signed() {
        let signed = signature("Jefe", 7, b"{}");
        assert_eq!(signed, format!("sha256={}", hmac_hex(b"Jefe", &[b"7.{}"])));
        assert_ne!(signed, signature("Jefe", 8, b"{}"));
        assert_ne!(signed, signature("Jefe", 7, b"{ }"));
    }
}
