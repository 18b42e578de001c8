//! The check `request` on bytes that libFuzzer makes up.

#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code, reason = "each target runs one check of them")]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::request(bytes));
