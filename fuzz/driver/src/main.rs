//! Runs the target that `SORA_FUZZ` names under libFuzzer.
#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<sora_fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("SORA_FUZZ").expect("SORA_FUZZ names the target");
    sora_fuzz::find(&name).unwrap_or_else(|| panic!("there is no target {name}"))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.1)(bytes));
