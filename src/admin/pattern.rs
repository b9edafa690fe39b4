//! Which names an operator means: `alpine`, `docker.io/library/*`, `*:latest`.

/// Whether `pattern` fits `text`. With a `*`, which stands for any run of characters, it has to fit from end to end;
/// without one it fits wherever it occurs. Linear in the length of both.
pub fn fits(pattern: &str, text: &str) -> bool {
    if !pattern.contains('*') {
        return text.contains(pattern);
    }
    let mut pieces = pattern.split('*');
    let head = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(head) else {
        return false;
    };
    let Some(tail) = pieces.next_back() else { return true };
    // The earliest place is never worse than a later one.
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns() {
        let name = "docker.io/library/alpine:3.22";
        for yes in [
            "",
            "alpine",
            "*",
            "docker.io/*",
            "*:3.22",
            "*/library/*",
            "docker.io*3.22",
            "**",
        ] {
            assert!(fits(yes, name), "{yes}");
        }
        for no in ["Alpine", "ghcr.io/*", "*:latest", "alpine*", "*2*22*2"] {
            assert!(!fits(no, name), "{no}");
        }
        // Head and tail may not overlap.
        assert!(!fits("aba*aba", "aba"));
        assert!(fits("a*a", "aa"));
    }

    proptest! {
        #[test]
        fn never_panics(pattern in "[a*é]{0,12}", text in "[aé]{0,12}") {
            let _ = fits(&pattern, &text);
        }
    }
}
