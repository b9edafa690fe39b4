use std::io::Write as _;

use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

fn unpack(bytes: &[u8], limits: Limits, is_strict: bool) -> io::Result<Vec<u8>> {
    let compression = Compression::of(bytes).expect("compressed");
    let mut unpacked = Unpacked::new(bytes, compression, limits)?;
    if is_strict {
        unpacked = unpacked.strict();
    }
    let mut all = Vec::new();
    unpacked.read_to_end(&mut all).map(|_| all)
}

fn refused(bytes: &[u8], is_strict: bool) -> String {
    unpack(bytes, Limits::FILES, is_strict).unwrap_err().to_string()
}

#[test]
fn members_and_frames_are_one_stream() {
    let two = [gzip(b"one "), gzip(b""), gzip(b"two")].concat();
    assert_eq!(unpack(&two, Limits::FILES, true).unwrap(), b"one two");
    // pzstd begins with a skippable frame; zstd:chunked ends with one.
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"note"].concat();
    let frames = [skippable.clone(), zstd(b"one "), zstd(b"two"), skippable].concat();
    assert_eq!(unpack(&frames, Limits::FILES, true).unwrap(), b"one two");
}

#[test]
fn what_stands_behind_the_end_is_refused() {
    let with = |behind: &[u8]| [gzip(b"content").as_slice(), behind].concat();
    assert_eq!(unpack(&with(&[0; 9000]), Limits::FILES, false).unwrap(), b"content");
    assert!(refused(&with(&[0; 9000]), true).contains("stand behind the end of its gzip stream"));
    for behind in [&b"x"[..], &[0, 0, 7], &[0, 0x1f, 0x8b]] {
        assert!(
            refused(&with(behind), false).contains("stand behind the end"),
            "{behind:?}"
        );
    }
    let behind = [zstd(b"content").as_slice(), b"garbage"].concat();
    assert!(refused(&behind, true).contains("stand behind the end of its zstd stream"));
}

#[test]
fn what_is_cut_off_or_damaged_says_so() {
    let noise: Vec<u8> = (0..200_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    for whole in [gzip(&noise), zstd(&noise)] {
        for len in [7, 20, whole.len() / 2, whole.len() - 1] {
            assert!(refused(&whole[..len], false).contains("breaks off"), "{len}");
        }
    }
    // zstd has a checksum only where its writer made one.
    let mut wrong = gzip(&noise);
    let at = wrong.len() / 2;
    wrong[at] ^= 0x55;
    let error = refused(&wrong, false);
    assert!(error.contains("is damaged") || error.contains("breaks off"), "{error}");
}

/// A reader's own error stays what it is: the time-out of a sender is not the archive's damage.
#[test]
fn whose_fault_it_is() {
    struct Gives(Vec<u8>);
    impl Read for Gives {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(io::Error::new(ErrorKind::TimedOut, "nobody sends"));
            }
            let count = buffer.len().min(self.0.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0.drain(..count);
            Ok(count)
        }
    }
    for bytes in [gzip(b"content"), zstd(b"content")] {
        let compression = Compression::of(&bytes).unwrap();
        let mut unpacked = Unpacked::new(Gives(bytes[..10].to_vec()), compression, Limits::FILES).unwrap();
        let error = unpacked.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::TimedOut, "nobody sends")
        );
    }
}

#[test]
fn bombs_do_not_go_off() {
    let limits = Limits {
        free: 1 << 20,
        ratio: 100,
        ..Limits::FILES
    };
    let zeros = vec![0; 16 << 20];
    for bytes in [gzip(&zeros), zstd(&zeros)] {
        let compression = Compression::of(&bytes).unwrap();
        let mut unpacked = Unpacked::new(bytes.as_slice(), compression, limits).unwrap();
        let mut buffer = vec![0; 64 << 10];
        let (mut out, error) = (
            0,
            loop {
                match unpacked.read(&mut buffer) {
                    Ok(count) => assert!(count > 0),
                    Err(error) => break error.to_string(),
                }
            },
        );
        out += unpacked.out;
        assert!(error.contains("decompression bomb"), "{error}");
        assert!(out <= (1 << 20) + 100 * bytes.len() as u64 + (64 << 10), "{out}");
        // It does not end well afterwards.
        assert!(unpacked.read(&mut buffer).is_err());
    }
    // With the limits that are in force, whatever gzip makes is taken.
    assert_eq!(
        unpack(
            &gzip(&zeros),
            Limits {
                free: 0,
                ..Limits::FILES
            },
            true
        )
        .unwrap()
        .len(),
        16 << 20
    );
}

#[test]
fn a_window_takes_no_more_memory_than_is_allowed() {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(25).unwrap();
    encoder.long_distance_matching(true).unwrap();
    encoder.write_all(&[7; 100_000]).unwrap();
    let bytes = encoder.finish().unwrap();
    assert_eq!(unpack(&bytes, Limits::FILES, true).unwrap().len(), 100_000);
    let error = unpack(&bytes, Limits::STREAMS, true).unwrap_err().to_string();
    assert!(error.contains("8 MiB"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Any bytes come back, in any pieces; and with any byte changed it ends, with or without an error.
    #[test]
    fn any_bytes_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..5000), cuts in proptest::collection::vec(0usize..5000, 0..3), changed in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        for pack in [gzip, zstd] {
            let mut packed: Vec<u8> = cuts.windows(2).flat_map(|cut| pack(&bytes[cut[0]..cut[1]])).collect();
            prop_assert_eq!(&unpack(&packed, Limits::FILES, true).unwrap(), &bytes);
            let at = changed.index(packed.len());
            packed[at] = to;
            if Compression::of(&packed).is_some_and(|format| matches!(format, Compression::Gzip | Compression::Zstd)) {
                let _ = unpack(&packed, Limits::STREAMS, false);
            }
        }
    }
}
