//! Every command of the README works, and the figures beside them are what they print.

mod common;

use common::{root, sora, succeed_json};

/// The commands in the README's indented or fenced blocks.
fn commands() -> Vec<String> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let blocks = readme.split("```").skip(1).step_by(2);
    let lines = blocks.flat_map(|block| block.lines().skip(1).map(str::trim).collect::<Vec<_>>());
    lines.filter(|line| line.starts_with("cargo ") || line.starts_with("sora ")).map(str::to_owned).collect()
}

#[test]
fn every_command_works() {
    let commands = commands();
    assert!(commands.len() >= 4, "{commands:?}");
    let folder = tempfile::tempdir().unwrap();
    let mut tested = 0;
    for command in &commands {
        let arguments = command
            .strip_prefix("cargo run --release -- ")
            .or_else(|| command.strip_prefix("sora "))
            .map(|rest| rest.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let Some(arguments) = arguments else {
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
            .iter()
            .map(|a| match a.starts_with("fashion.") {
                true => folder.path().join(a).display().to_string(),
                false => a.clone(),
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

/// Accuracy and size depend on nothing but the files in the repository, so the table must have them exactly.
#[test]
fn the_results_table_is_true() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("fashion.sora");
    let result = succeed_json(&[
        "compress",
        "examples/fashion-mnist/model.onnx",
        "--data",
        "examples/fashion-mnist/test",
        "--max-drop",
        "0.005",
        "-o",
        out.to_str().unwrap(),
        "--json",
    ]);
    let percent = |v: &serde_json::Value| format!("{:.2} %", 100.0 * v.as_f64().unwrap());
    let table: String = readme.lines().filter(|l| l.starts_with('|')).collect();
    for side in ["before", "after"] {
        let accuracy = percent(&result[side]["accuracy"]);
        assert!(table.contains(&accuracy), "the README's table lacks the accuracy {side}, {accuracy}");
        let size = format!("{:.1} kB", result[side]["bytes"].as_f64().unwrap() / 1e3);
        assert!(table.contains(&size), "the README's table lacks the size {side}, {size}");
    }
}
