#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lightpipe_testkit::fuzz::run("mix", bytes));
