//! Bad input: one clear paragraph, status 1, nothing left behind, no panic.

mod common;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use common::{check_failure, example, fail, files, sora, succeed};
use serde_json::Value;
use sora::data::npz;
use sora::tensor::Tensor;

fn compress<'a>(model: &'a str, data: &'a str, out: &'a str) -> [&'a str; 6] {
    ["compress", model, "--data", data, "-o", out]
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Writes `x` and `y` as an .npz file.
fn write_npz(path: &Path, x: &Tensor, y: &Tensor) {
    let mut bytes = std::io::Cursor::new(Vec::new());
    npz::write(&mut bytes, &[("x", x), ("y", y)]).unwrap();
    std::fs::write(path, bytes.into_inner()).unwrap();
}

#[test]
fn truncated_and_hostile_models() {
    let folder = tempfile::tempdir().unwrap();
    let model = std::fs::read(example("model.onnx")).unwrap();
    let path = folder.path().join("broken.onnx");
    let mut rng = fastrand::Rng::with_seed(5);
    let noise: Vec<u8> = (0..5000).map(|_| rng.u8(..)).collect();
    for bytes in [&[][..], &model[..100], &model[..model.len() / 2], &model[..model.len() - 1], &noise] {
        std::fs::write(&path, bytes).unwrap();
        assert!(fail(&["inspect", text(&path)]).contains("broken.onnx"));
        fail(&compress(text(&path), &example("test"), text(&folder.path().join("out.sora"))));
    }
    // Each flipped byte gives a model that works or an error that says why.
    for _ in 0..40 {
        let mut damaged = model.clone();
        for _ in 0..8 {
            let at = rng.usize(0..damaged.len());
            damaged[at] = rng.u8(..);
        }
        std::fs::write(&path, &damaged).unwrap();
        let output = sora(&["inspect", text(&path)]).output().unwrap();
        if !output.status.success() {
            check_failure(&output, "flipped bytes");
        }
    }
    assert_eq!(files(folder.path()), ["broken.onnx"]);
}

#[test]
fn truncated_sora_files() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (folder.path().join("good.sora"), folder.path().join("bad.sora"));
    succeed(&["convert", &example("model.onnx"), text(&good)]);
    let bytes = std::fs::read(&good).unwrap();
    for end in [0, 7, 23, 123, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&bad, &bytes[..end]).unwrap();
        assert!(fail(&["inspect", text(&bad)]).contains("bad.sora"));
    }
}

#[test]
fn missing_files_and_unknown_endings() {
    assert!(fail(&["inspect", "nowhere.onnx"]).contains("Check the path"));
    assert!(fail(&["inspect", "Cargo.toml"]).contains(".onnx"));
    assert!(fail(&compress(&example("model.onnx"), "nowhere", "out.sora")).contains("nowhere"));
}

#[test]
fn weights_that_are_not_finite() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (folder.path().join("good.txt"), folder.path().join("bad.txt"));
    succeed(&["convert", &example("model.onnx"), text(&good)]);
    let model = std::fs::read_to_string(&good).unwrap();
    // The first element of the first list of more than a hundred numbers: a layer's weights.
    let mut lines: Vec<String> = model.lines().map(str::to_owned).collect();
    let line = lines.iter_mut().find(|l| l.starts_with("const") && l.matches(',').count() > 100).unwrap();
    let (head, list) = line.split_once(" = [").unwrap();
    let mut bytes: Vec<u8> = Vec::new();
    for (i, v) in list.trim_end_matches(']').split(',').enumerate() {
        let value = if i == 0 { f32::NAN } else { v.parse().unwrap() };
        bytes.extend(value.to_le_bytes());
    }
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    *line = format!("{head} = 0x{hex}");
    std::fs::write(&bad, lines.join("\n")).unwrap();
    let errors = fail(&compress(text(&bad), &example("test"), text(&folder.path().join("out.sora"))));
    assert!(errors.contains("NaN") && errors.contains("node `"), "{errors}");
}

#[test]
fn data_that_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data.npz"), folder.path().join("out.sora"));
    let labels = |n: usize, of: usize| Tensor::vector(&(0..n).map(|i| (i % of) as i64).collect::<Vec<_>>());
    let pictures = |n: usize, side: usize| {
        let values: Vec<f32> = (0..n * side * side).map(|i| (i % 7) as f32).collect();
        Tensor::from_slice(&[n, side, side, 1], &values).unwrap()
    };
    let model = example("model.onnx");
    let run = || fail(&compress(&model, text(&data), text(&out)));

    // Nothing at all, and too few to divide.
    write_npz(&data, &pictures(0, 28), &labels(0, 10));
    run();
    write_npz(&data, &pictures(3, 28), &labels(3, 10));
    run();
    // A label that the model has no output for.
    write_npz(&data, &pictures(50, 28), &labels(50, 12));
    let errors = run();
    assert!(errors.contains("label") && errors.contains("10"), "{errors}");
    // Samples that are no pictures of any size.
    let flat = Tensor::from_slice(&[50, 5], &[0.5f32; 250]).unwrap();
    write_npz(&data, &flat, &labels(50, 10));
    run();
    // Not a number.
    let mut values = vec![0.5f32; 50 * 28 * 28];
    values[12345] = f32::NAN;
    write_npz(&data, &Tensor::from_slice(&[50, 28, 28, 1], &values).unwrap(), &labels(50, 10));
    let errors = run();
    assert!(errors.contains("NaN"), "{errors}");
    // Cut short.
    write_npz(&data, &pictures(50, 28), &labels(50, 10));
    let whole = std::fs::read(&data).unwrap();
    std::fs::write(&data, &whole[..whole.len() / 2]).unwrap();
    run();
    // An empty folder.
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    fail(&compress(&model, text(&empty), text(&out)));
    assert_eq!(files(folder.path()), ["data.npz", "empty"]);
}

#[test]
fn truncated_example_data() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"] {
        let bytes = std::fs::read(example(&format!("test/{name}"))).unwrap();
        let end = if name.contains("images") { bytes.len() / 3 } else { bytes.len() };
        std::fs::write(folder.path().join(name), &bytes[..end]).unwrap();
    }
    let errors = fail(&["evaluate", &example("model.onnx"), "--data", text(folder.path())]);
    assert!(errors.contains("t10k-images"), "{errors}");
}

#[test]
fn paths_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let model = example("model.onnx");
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for out in ["missing/out.sora", "file/out.sora"] {
        let path = folder.path().join(out);
        fail(&["convert", &model, text(&path)]);
        // Refused before the work starts, not after.
        let start = std::time::Instant::now();
        fail(&compress(&model, &example("test"), text(&path)));
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    std::fs::create_dir(folder.path().join("folder.sora")).unwrap();
    fail(&["convert", &model, text(&folder.path().join("folder.sora"))]);
    assert_eq!(files(folder.path()), ["file", "folder.sora"]);
}

#[test]
fn the_original_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("model.onnx");
    std::fs::copy(example("model.onnx"), &copy).unwrap();
    let before = std::fs::read(&copy).unwrap();
    fail(&compress(text(&copy), &example("test"), text(&copy)));
    assert_eq!(std::fs::read(&copy).unwrap(), before);
}

/// The shell limits file sizes, so that writing fails in the middle as it does on a full disk.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_up() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.sora");
    std::fs::write(&out, "what was there before").unwrap();
    let script = format!(
        "trap '' XFSZ; ulimit -f 8; exec '{}' convert '{}' '{}'",
        env!("CARGO_BIN_EXE_sora"),
        example("model.onnx"),
        text(&out)
    );
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(check_failure(&output, "full disk").contains("out.sora"));
    assert_eq!(files(folder.path()), ["out.sora"]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "what was there before");
}

#[cfg(unix)]
#[test]
fn ctrl_c_in_the_middle() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data, out) = (example("model.onnx"), example("test"), folder.path().join("out.sora"));
    let child = sora(&compress(&model, &data, text(&out)))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(400));
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let errors = check_failure(&child.wait_with_output().unwrap(), "Ctrl-C");
    assert!(errors.contains("Interrupted"), "{errors}");
    assert!(files(folder.path()).is_empty());
}

#[test]
fn wrong_usage_is_status_2() {
    let wrong: [&[&str]; 4] = [
        &["compress"],
        &["dance"],
        &["bench", "m.onnx", "--batch", "0"],
        &["compress", "m", "--max-drop", "7"],
    ];
    for arguments in wrong {
        assert_eq!(sora(arguments).output().unwrap().status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn errors_as_json_have_the_three_parts() {
    let output = sora(&["evaluate", "nowhere.onnx", "--data", "nowhere", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    for part in ["what", "where", "hint"] {
        assert!(!object["error"][part].as_str().unwrap().is_empty(), "{object}");
    }
}

#[test]
fn an_unknown_isa_lists_those_of_this_machine() {
    let model = example("model.onnx");
    let output = sora(&["bench", &model]).env("SORA_ISA", "avx9000").output().unwrap();
    let errors = check_failure(&output, "SORA_ISA");
    assert!(errors.contains("portable"), "{errors}");
}

#[test]
fn unsupported_nodes_are_listed_all_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.onnx");
    // Two operators that do not exist, as protobuf: ir_version, opset_import, graph { node { output, name, op_type } … }.
    let node = |name: &str| {
        let mut node = vec![0x12, 1, b'o', 0x1a, name.len() as u8];
        node.extend(name.as_bytes());
        node.extend([0x22, 3]);
        node.extend(b"Odd");
        node
    };
    let mut graph = Vec::new();
    for name in ["first", "second"] {
        let node = node(name);
        graph.extend([0x0a, node.len() as u8]);
        graph.extend(node);
    }
    let mut model = vec![0x08, 8, 0x42, 2, 0x10, 17, 0x3a, graph.len() as u8];
    model.extend(graph);
    std::fs::File::create(&path).unwrap().write_all(&model).unwrap();
    let object: Value = serde_json::from_str(&succeed(&["inspect", text(&path), "--json"])).unwrap();
    let nodes: Vec<&str> =
        object["unsupported"].as_array().unwrap().iter().map(|i| i["node"].as_str().unwrap()).collect();
    assert!(nodes.contains(&"first") && nodes.contains(&"second"), "{object}");
    for part in ["op", "why", "hint"] {
        assert!(!object["unsupported"][0][part].as_str().unwrap().is_empty(), "{object}");
    }
    let errors = fail(&["bench", text(&path)]);
    assert!(errors.contains("first") && errors.contains("second"), "{errors}");
}
