//! Tries the texts of the corpus, and random texts that resemble valid ones.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use verve_fuzz::TARGETS;

#[test]
fn the_corpus_passes() {
    let corpus = Path::new("corpus");
    for (name, target) in TARGETS {
        let files = fs::read_dir(corpus.join(name)).expect("a folder");
        let mut tried = 0;
        for file in files {
            let bytes = fs::read(file.expect("a file").path()).expect("a file");
            target(&String::from_utf8_lossy(&bytes));
            tried += 1;
        }
        assert!(tried > 0, "{name}");
    }
}

/// Generates texts from pieces of all kinds of input, in any order.
fn text() -> impl Strategy<Value = String> {
    let pieces = [
        "/api/verve/accept?id=",
        "&endpoint=",
        "&method=get",
        "http://",
        "https%3A%2F%2F",
        "redis://",
        "rediss://:p@",
        "127.0.0.1",
        "[::1]",
        "[::ffff:10.0.0.1]",
        "0x7f.1",
        "e.com",
        ":6379",
        "/0",
        ",",
        "?",
        "#",
        "@",
        "%",
        "\n",
        "60",
        "-1",
        "9223372036854775807",
        "{\"count\":",
        "\"revision\":0",
        "}",
        "[[trigger.http]]\n",
        "[component.a]\n",
        "route = \"/...\"\n",
        "spin_manifest_version = 2\n",
        "component = \"a\"\n",
        "source = \"a.wasm\"\n",
        "=",
        "\"",
        "ⓛ",
        "\0",
    ];
    let piece = prop_oneof![4 => prop::sample::select(pieces.to_vec()).prop_map(str::to_owned), 1 => "\\PC{0,6}", 1 => "[0-9a-f:.]{0,12}"];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_is_written(text in text()) {
        for (_, target) in TARGETS {
            target(&text);
        }
    }
}
