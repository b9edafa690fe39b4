//! Every harness under proptest: its seeds, its words repeated without end, then made-up inputs until the time is up.
//!
//! `FUZZ_SECONDS` says how long each takes; without it 2 s, or 60 s where `LARDER_LONG=1`. libFuzzer, which sees what
//! an input reaches, finds more: `fuzz/README.md`.

use std::path::Path;
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, TestRunner};

use super::inputs::{Input, inputs};
use super::{Harness, harnesses, meter};

const USUAL: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(60);
/// Inputs between two looks at the clock.
const BATCH: u32 = 8;
/// How far a word is repeated.
const FLOOD: usize = 64 << 10;
/// Of the processor, for one input of at most [`FLOOD`] bytes or not much more: what is quadratic takes a multiple.
const MOST_CPU: Duration = Duration::from_secs(2);
/// JSON as a tree takes some 100 bytes for one of text, and a parser may keep both.
const MOST_BYTES_PER_BYTE: usize = 300;
const MOST_BYTES: usize = 16 << 20;

fn budget() -> Duration {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let is_long = std::env::var("LARDER_LONG").is_ok_and(|text| text == "1");
    match seconds {
        Some(seconds) => Duration::from_secs(seconds),
        None if is_long => LONG,
        None => USUAL,
    }
}

fn check(harness: &Harness, input: &[u8]) {
    let cost = meter::measure(|| (harness.run)(input));
    if cost.cpu > MOST_CPU / 4 {
        println!(
            "slow: {:?} for {:?}",
            cost.cpu,
            Input(input[..input.len().min(120)].to_vec())
        );
    }
    let most = input.len() * MOST_BYTES_PER_BYTE + MOST_BYTES;
    assert!(
        cost.peak_bytes <= most,
        "{} bytes of memory for {} bytes, at most {most}",
        cost.peak_bytes,
        input.len()
    );
    assert!(
        cost.cpu <= MOST_CPU,
        "{:?} of the processor for {} bytes",
        cost.cpu,
        input.len()
    );
}

/// Each word again and again, alone, behind the beginning of a seed and in turns with the next word.
fn floods(harness: &Harness) -> Vec<Vec<u8>> {
    let seeds = (harness.seeds)();
    let first = seeds.first().cloned().unwrap_or_default();
    let line = first.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut all = Vec::new();
    for (at, word) in harness.words.iter().enumerate().filter(|(_, word)| !word.is_empty()) {
        let next = harness.words[(at + 1) % harness.words.len()];
        let both = format!("{word}{next}");
        for piece in [*word, &both] {
            let flood = piece.repeat(FLOOD / piece.len()).into_bytes();
            all.push([&first[..line], &flood].concat());
            all.push(flood);
        }
        // In the middle of something that is read that far.
        let middle = first.len() / 2;
        let flood = word.repeat(FLOOD / word.len());
        all.push([&first[..middle], flood.as_bytes(), &first[middle..]].concat());
    }
    for seed in seeds.iter().filter(|seed| !seed.is_empty()) {
        all.push(seed.repeat(FLOOD / seed.len().min(FLOOD)));
    }
    all
}

fn run(name: &str) {
    let all = harnesses();
    let harness = all
        .iter()
        .find(|harness| harness.name == name)
        .expect("a harness of that name");
    let (started, budget) = (Instant::now(), budget());
    let (seeds, floods) = ((harness.seeds)(), floods(harness));
    let mut count = seeds.len() + floods.len();
    for input in seeds.iter().chain(&floods) {
        let shown = Input(input[..input.len().min(300)].to_vec());
        let outcome = std::panic::catch_unwind(|| check(harness, input));
        assert!(
            outcome.is_ok(),
            "{name} fails with {} bytes, beginning with {shown:?}",
            input.len()
        );
    }
    let strategy = inputs(seeds, harness.words);
    // Where the words take most of the time, there is some left for everything else.
    let ends = (started + budget).max(Instant::now() + budget / 2);
    while Instant::now() < ends {
        let config = Config {
            cases: BATCH,
            failure_persistence: None,
            max_shrink_iters: 20_000,
            max_shrink_time: 20_000,
            ..Config::default()
        };
        count += BATCH as usize;
        TestRunner::new(config)
            .run(&strategy, |input| {
                check(harness, &input.0);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    println!("{name}: {count} inputs in {:.1} s", started.elapsed().as_secs_f64());
}

/// A test for each, so that they run side by side.
macro_rules! harness_tests {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*

        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

harness_tests! {
    acme_answers
    acme_records
    answer_head
    archive
    archive_names
    auth_file
    catalog
    challenge
    client_files
    cloud_answers
    config_file
    digest
    error_body
    file_names
    foreign_archive
    forwarded
    helper_answer
    image_files
    image_list
    image_names
    index_records
    issuer_keys
    link
    logins
    manifest
    media_type
    name
    operator_names
    pages
    platform
    proxy_header
    queue_lines
    range
    receipt
    redirect
    reference
    route
    schedule
    signature
    signed_token
    tag_choice
    token_answer
    trace_context
    units
    unpack
    variables
}

/// A harness that nobody runs finds nothing.
#[test]
fn every_harness_is_a_test_and_a_target() {
    let names: Vec<&str> = harnesses().iter().map(|harness| harness.name).collect();
    let mut tested = TESTED.to_vec();
    tested.sort_unstable();
    assert_eq!(names, tested);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest: toml::Table = toml::from_str(&std::fs::read_to_string(folder.join("Cargo.toml")).unwrap()).unwrap();
    let bins = manifest["bin"].as_array().unwrap().iter();
    let mut bins: Vec<&str> = bins.map(|bin| bin["name"].as_str().unwrap()).collect();
    bins.sort_unstable();
    assert_eq!(names, bins, "[[bin]] of fuzz/Cargo.toml");
    for name in names {
        let text = std::fs::read_to_string(folder.join(format!("targets/{name}.rs"))).unwrap();
        assert!(
            text.contains(&format!("larder::fuzzing::run({name:?}, data)")),
            "{name}"
        );
    }
}

/// Seeds and words as files, for libFuzzer: `cargo test --lib fuzzing::runs::write_seeds -- --ignored`.
#[test]
#[ignore = "writes below fuzz/; fuzz/run does it"]
fn write_seeds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for harness in harnesses() {
        let seeds = folder.join("seeds").join(harness.name);
        std::fs::create_dir_all(&seeds).unwrap();
        for (at, seed) in (harness.seeds)().into_iter().enumerate() {
            std::fs::write(seeds.join(format!("seed-{at:02}")), seed).unwrap();
        }
        let escape = |word: &&str| -> String { word.bytes().map(|byte| format!("\\x{byte:02x}")).collect() };
        let words = harness.words.iter().filter(|word| !word.is_empty()).map(escape);
        let lines: String = words.map(|word| format!("\"{word}\"\n")).collect();
        std::fs::write(folder.join("seeds").join(format!("{}.dict", harness.name)), lines).unwrap();
    }
}
