use super::{Reader, Writer};

/// A header that says more about the next one counts for some readers only with its magic: read by others, the file would have
/// another name.
#[test]
fn extended_headers_have_their_magic() {
    let mut writer = Writer::new(Vec::new());
    writer.file(&"a".repeat(120), b"content").unwrap();
    writer.end().unwrap();
    let mut bytes = writer.into_sink();
    let name = |mut bytes: &[u8]| Reader::new(&mut bytes).entry().map(|entry| entry.unwrap().name);
    assert_eq!(name(&bytes).unwrap().len(), 120);
    assert_eq!(&bytes[257..262], b"ustar");
    bytes[257] = b't';
    let mut header = tar::Header::from_byte_slice(&bytes[..512]).clone();
    header.set_cksum();
    bytes[..512].copy_from_slice(header.as_bytes());
    let error = name(&bytes).unwrap_err().to_string();
    assert!(error.contains("magic"), "{error}");
}
