//! `--robust`: accuracy on corrupted samples, alone, beside the original's, and as a budget.

mod common;

use common::{example, fail, succeed, succeed_json};
use serde_json::Value;

/// The shares of one corruption, by severity.
fn levels(corruption: &Value, of: &str) -> Vec<f64> {
    corruption[of].as_array().unwrap().iter().map(|share| share.as_f64().unwrap()).collect()
}

#[test]
fn evaluate_measures_all_corruptions_and_gives_the_same_again() {
    let [model, data] = ["model.onnx", "test"].map(example);
    let arguments = ["evaluate", &model, "--data", &data, "--robust", "--robust-samples", "12"];
    let json = succeed_json(&[&arguments[..], &["--json"]].concat());
    let corruptions = json["robustness"]["corruptions"].as_array().unwrap();
    assert_eq!((corruptions.len(), json["robustness"]["samples"].as_u64()), (15, Some(12)));
    let shares: Vec<f64> = corruptions.iter().flat_map(|corruption| levels(corruption, "accuracy")).collect();
    assert_eq!(shares.len(), 75);
    let mean = json["robustness"]["accuracy"].as_f64().unwrap();
    assert!((shares.iter().sum::<f64>() / 75.0 - mean).abs() < 1e-9);
    assert!(mean > 0.3 && mean < json["metrics"]["accuracy"].as_f64().unwrap(), "{mean}");
    let text = succeed(&arguments);
    assert_eq!(text, succeed(&arguments));
    assert!(
        text.contains("jpeg compression") && text.contains(&format!("mean {:.1} %", 100.0 * mean)),
        "{text}"
    );
}

#[test]
fn compress_compares_with_the_original_and_keeps_a_budget() {
    let dir = tempfile::tempdir().unwrap();
    let [out, report] = ["o.onnx", "r.html"].map(|name| dir.path().join(name).display().to_string());
    let compress = |more: &[&str]| {
        let arguments = ["compress", &example("model.onnx"), "--data", &example("test"), "-o", &out];
        succeed_json(&[&arguments[..], more, &["--robust", "--robust-samples", "10", "--json"]].concat())
    };
    let json = compress(&["--max-robust-drop", "0.2", "--report", &report]);
    let found = &json["robustness"];
    let [mut before, mut after] = [0.0, 0.0];
    for corruption in found["corruptions"].as_array().unwrap() {
        before += levels(corruption, "original").iter().sum::<f64>() / 75.0;
        after += levels(corruption, "accuracy").iter().sum::<f64>() / 75.0;
    }
    let drop = found["drop"].as_f64().unwrap();
    assert!((before - after - drop).abs() < 1e-9 && drop.abs() < 0.1, "{before} {after} {drop}");
    let ends = levels(found, "drop_ci95");
    assert!(ends[0] <= drop && drop <= ends[1] && json["met"] == true, "{found}");
    assert!(std::fs::read_to_string(&report).unwrap().contains("On corrupted samples"));
}

/// Weights of 3 bits lose little on samples as they are, and more on corrupted ones: which budget is missed is theirs alone.
#[test]
fn a_missed_budget_for_corrupted_samples_is_admitted() {
    let dir = tempfile::tempdir().unwrap();
    let [out, recipe] = ["o.onnx", "r.toml"].map(|name| dir.path().join(name).display().to_string());
    std::fs::write(&recipe, "weight_bits = 3\n").unwrap();
    let [model, data] = ["model.onnx", "test"].map(example);
    let within = |most: &str| {
        let start =
            ["compress", &model, "--data", &data, "-o", &out, "--recipe", &recipe, "--max-drop", "0.2"];
        let robust = ["--robust", "--robust-samples", "10", "--max-robust-drop", most, "--json"];
        succeed_json(&[&start[..], &robust].concat())
    };
    let number = |value: &Value| value.as_f64().unwrap();
    let [missed, met] = ["0.005", "0.5"].map(within);
    // The same network, and the budget that both meet.
    assert_eq!((&missed["drop"], &missed["after"]["accuracy"]), (&met["drop"], &met["after"]["accuracy"]));
    assert!(number(&missed["drop"]) < 0.2, "{}", missed["drop"]);
    assert_eq!((&met["met"], &missed["met"]), (&true.into(), &false.into()), "{missed}");
    // What is beyond their budget is told as beyond the other one.
    let decision = number(&missed["decision_drop"]);
    assert!(decision > 0.2 && number(&met["decision_drop"]) < 0.2, "{missed}");
    let note = missed["note"].as_str().unwrap();
    let told = [
        "of 20.00 points and of 0.50 on corrupted samples cannot be met",
        &format!("by {:.2} points", 100.0 * decision - 20.0),
    ];
    assert!(told.iter().all(|part| note.contains(part)), "{note}");
}

#[test]
fn what_cannot_be_corrupted_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("d.csv");
    let row = |label: usize| format!("{}{label}\n", "0.5,".repeat(784));
    std::fs::write(&data, (0..20).map(|i| row(i % 10)).collect::<String>()).unwrap();
    let data = data.display().to_string();
    let error = fail(&["evaluate", &example("model.onnx"), "--data", &data, "--robust"]);
    assert!(error.contains("pictures of 8 bits"), "{error}");
}
