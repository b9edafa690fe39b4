#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| larder::fuzzing::run("acme_answers", data));
