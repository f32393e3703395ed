//! Runs the target that `VERVE_FUZZ_TARGET` names.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use verve_fuzz::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("VERVE_FUZZ_TARGET").expect("VERVE_FUZZ_TARGET");
    let found = TARGETS.iter().find(|(target, _)| *target == name);
    found.expect("a target").1
});

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        TARGET(text);
    }
});
