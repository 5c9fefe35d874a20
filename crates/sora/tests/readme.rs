//! Every command of the README works, and the figures beside them are what they print.

mod common;

use common::{fast_bytes, root, sora, succeed_json};

/// The commands in the README's indented or fenced blocks.
fn commands() -> Vec<String> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let blocks = readme.split("```").skip(1).step_by(2);
    let lines = blocks.flat_map(|block| block.lines().skip(1).map(str::trim).collect::<Vec<_>>());
    lines.filter(|line| line.starts_with("cargo ")).map(str::to_owned).collect()
}

#[test]
fn every_command_works() {
    let commands = commands();
    assert!(commands.len() >= 4, "{commands:?}");
    let folder = tempfile::tempdir().unwrap();
    let mut tested = 0;
    for command in &commands {
        let Some(arguments) = command.strip_prefix("cargo run --release -- ") else {
            // The test command is the one that runs this test; the tasks are those that CI runs.
            let ci = std::fs::read_to_string(root().join(".ci/run")).unwrap();
            assert!(
                command == "cargo test --workspace" || ci.contains(command.as_str()),
                "{command} is not run by CI"
            );
            continue;
        };
        // Outputs go to a folder of their own, so that testing leaves nothing in the checkout.
        let arguments: Vec<String> = arguments
            .split_whitespace()
            .map(|a| match a.starts_with("fashion.") {
                true => folder.path().join(a).display().to_string(),
                false => a.to_owned(),
            })
            .collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = sora(&arguments).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!output.stdout.is_empty(), "{command} printed nothing");
        tested += 1;
    }
    assert!(tested >= 3, "{commands:?}");
}

/// The README's table says what its command prints on a machine whose 8-bit kernels are the faster ones in all layers; a table of
/// times says that this is one. Sums of floats may differ in the last bit between machines and turn a picture or two; times are
/// not judged.
#[test]
fn the_results_table_is_true() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("fashion.sora").display().to_string();
    let model = "examples/fashion-mnist/model.onnx";
    let table = fast_bytes(model, folder.path());
    let budget = [
        "compress",
        model,
        "--data",
        "examples/fashion-mnist/test",
        "--max-drop",
        "0.005",
        "--prefer",
        "size",
        "--for",
        &table,
    ];
    let result = succeed_json(&[&budget[..], &["-o", &out, "--json"]].concat());
    let printed = |side: &str, key: &str| result[side][key].as_f64().unwrap();
    for (side, column) in [("before", 2), ("after", 3)] {
        let accuracy = 100.0 * printed(side, "accuracy");
        assert!((cell("accuracy with", column) - accuracy).abs() < 0.1, "accuracy {side} is {accuracy}");
        let size = printed(side, "bytes") / 1e3;
        assert!((cell("file size with", column) / size - 1.0).abs() < 0.02, "file size {side} is {size} kB");
    }
}

/// The number that a cell of the README's table begins with.
fn cell(row: &str, column: usize) -> f64 {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let line =
        readme.lines().find(|l| l.starts_with(&format!("| {row}"))).unwrap_or_else(|| panic!("no row {row}"));
    let cell = line.split('|').nth(column).unwrap().trim();
    cell.split_whitespace().next().unwrap().parse().unwrap_or_else(|_| panic!("`{cell}` is no number"))
}
