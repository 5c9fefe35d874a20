//! What compression may be asked for beside a greatest drop: bounds on time and size, and what each layer would do otherwise.

mod common;

use std::path::Path;

use common::{example, fail, sora, succeed_json};
use serde_json::Value;
use sora::data::{Dataset, OpenOptions, Preprocess, npz};
use sora::tensor::Tensor;

/// A part of the example's pictures, which suffices here, in a file of this folder.
fn pictures(folder: &tempfile::TempDir) -> String {
    const COUNT: usize = 2000;
    let data = Dataset::open(Path::new(&example("test")), &OpenOptions::default()).unwrap();
    let indices: Vec<usize> = (0..COUNT).collect();
    let x = data.batch(&indices, &Preprocess::default()).unwrap().inputs.remove(0).1;
    let labels: Vec<i64> = data.labels().unwrap()[..COUNT].iter().map(|&label| label as i64).collect();
    let mut bytes = std::io::Cursor::new(Vec::new());
    npz::write(&mut bytes, &[("x", &x), ("y", &Tensor::vector(&labels))]).unwrap();
    let path = folder.path().join("pictures.npz");
    std::fs::write(&path, bytes.into_inner()).unwrap();
    path.display().to_string()
}

/// Compresses the example within these goals.
fn compress(folder: &tempfile::TempDir, ending: &str, goals: &[&str]) -> Value {
    let out = folder.path().join(format!("out.{ending}")).display().to_string();
    let (model, data) = (example("model.onnx"), pictures(folder));
    let result =
        succeed_json(&[&["compress", &model, "--data", &data, "-o", &out, "--json"], goals].concat());
    assert!(number(&result["before"]["accuracy"]) > 0.85, "{result}");
    assert_eq!(result["after"]["bytes"], std::fs::metadata(&out).unwrap().len());
    result
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The layers that have weights: those of which something was tried.
fn tried(result: &Value) -> Vec<&Value> {
    let layers = result["layers"].as_array().unwrap().iter();
    layers.filter(|layer| !layer["tried"].as_array().unwrap().is_empty()).collect()
}

#[test]
fn a_bound_on_size_is_met_with_fewer_bits_and_the_least_drop() {
    let folder = tempfile::tempdir().unwrap();
    let before = std::fs::metadata(example("model.onnx")).unwrap().len();
    let mut last = (0.0, 0.0);
    for share in [0.3, 0.13] {
        let result = compress(&folder, "sora", &["--max-size", &format!("{share}x"), "--prefer", "size"]);
        assert_eq!(result["met"], true, "{result}");
        let bytes = number(&result["after"]["bytes"]);
        // The bound is made use of.
        assert!(bytes <= share * before as f64 && bytes > 0.6 * share * before as f64, "{bytes} of {before}");
        let layers = tried(&result);
        assert!(layers.len() >= 4, "{result}");
        for layer in layers {
            let in_format = |name: &str| {
                let all = layer["tried"].as_array().unwrap().iter();
                all.filter(|tried| tried["format"] == name).collect::<Vec<_>>()
            };
            let found = ["f32", "int8", "int8, 4-bit weights"].map(in_format);
            let [[real], [int8], [coarse]] = found.each_ref().map(Vec::as_slice) else { panic!("{layer}") };
            assert!(real["output_sqnr_db"].is_null() && number(&real["drop"]) == 0.0, "{layer}");
            let db = |of: &Value| number(&of["output_sqnr_db"]);
            assert!(db(int8) > db(coarse) && db(coarse) > 5.0, "{layer}");
            assert!(number(&real["bytes"]) > 2.0 * number(&int8["bytes"]), "{layer}");
            assert!(number(&int8["bytes"]) > number(&coarse["bytes"]), "{layer}");
            assert!(number(&real["ms"]) > 0.0 && number(&int8["ms"]) > 0.0, "{layer}");
        }
        // In single precision, weights have 32 bits.
        let bits = |layer: &&Value| layer["weight_bits"].as_f64().unwrap_or(32.0);
        let sum: f64 = tried(&result).iter().map(bits).sum();
        assert!(last.0 == 0.0 || sum < last.0, "{sum} bits, before {last:?}");
        last = (sum, bytes);
    }
}

#[test]
fn a_bound_on_time_costs_no_accuracy_where_it_is_met_already() {
    let folder = tempfile::tempdir().unwrap();
    // As fast as before is what every result must be; nothing has to change for twice the time.
    let result = compress(&folder, "onnx", &["--max-latency", "2x"]);
    assert_eq!((&result["met"], &result["drop"]), (&true.into(), &0.0.into()), "{result}");
    assert!(tried(&result).iter().all(|layer| layer["precision"] == "f32"), "{result}");
    assert!(tried(&result).iter().all(|layer| layer["reason_code"] == "not-needed"), "{result}");
}

#[test]
fn bounds_that_cannot_be_met_are_admitted_with_those_to_blame() {
    let folder = tempfile::tempdir().unwrap();
    for goals in [["--max-latency", "0.01x"], ["--max-size", "900B"]] {
        let result = compress(&folder, "sora", &goals);
        assert_eq!(result["met"], false, "{result}");
        let note = result["note"].as_str().unwrap();
        let heaviest = tried(&result)
            .into_iter()
            .max_by(|a, b| number(&a["before_bytes"]).total_cmp(&number(&b["before_bytes"])));
        assert!(note.contains("cannot be met") && note.contains("points on the decision samples"), "{note}");
        let name = heaviest.unwrap()["name"].as_str().unwrap();
        assert!(goals[0] == "--max-latency" || note.contains(name), "{note}");
    }
}

/// Everything that scripts need of a front, and that its recipes make the same networks.
#[test]
fn a_front_holds_networks_that_do_not_beat_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (model, data) = (example("model.onnx"), pictures(&folder));
    let start = ["compress", model.as_str(), "--data", data.as_str(), "--json"];
    let [sora, txt, page] = ["net.sora", "net.txt", "net.html"].map(path);
    let goals = ["--pareto", "3", "--prefer", "size", "-o", &sora, "-o", &txt, "--report", &page];
    let found = succeed_json(&[&start[..], &goals].concat());
    let front = found["pareto"].as_array().unwrap();
    assert!((2..=3).contains(&front.len()), "{found}");
    let figures = |one: &Value| [&one["decision_drop"], &one["after"]["bytes"]].map(number);
    for (i, one) in front.iter().enumerate() {
        let own = path(&format!("net-{}.sora", i + 1));
        assert_eq!(
            (one["output"].as_str().unwrap(), number(&one["after"]["bytes"])),
            (own.as_str(), std::fs::metadata(&own).unwrap().len() as f64)
        );
        let page = std::fs::read_to_string(path(&format!("net-{}.html", i + 1))).unwrap();
        assert!(
            page.contains(&format!("<b>net-{}.sora</b>", i + 1)) && page.contains("Networks to pick from")
        );
        // By drop; whoever drops more is smaller, or faster.
        for other in &front[i + 1..] {
            let ([drop, bytes], [more, fewer]) = (figures(one), figures(other));
            let faster = number(&other["after"]["median_ms"]) < number(&one["after"]["median_ms"]);
            assert!(drop <= more && (fewer < bytes || faster), "{one} {other}");
        }
    }
    let last = front.len();
    assert!(figures(&front[last - 1])[1] < 0.5 * figures(&front[0])[1], "{found}");
    let (recipe, again) = (path(&format!("net-{last}.toml")), path("again.txt"));
    assert_eq!(front[last - 1]["recipe"], recipe);
    succeed_json(&[&start[..], &["--recipe", &recipe, "-o", &again]].concat());
    assert_eq!(std::fs::read(again).unwrap(), std::fs::read(path(&format!("net-{last}.txt"))).unwrap());
}

/// The table decides, not this machine: with half of the time in 8 bits for all layers but one, it is the one that keeps f32.
#[test]
fn a_table_from_another_machine_decides_what_is_faster() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.toml").display().to_string();
    let (model, data) = (example("model.onnx"), pictures(&folder));
    succeed_json(&["bench", &model, "--table", "-o", &file, "--json"]);
    let mut table: toml::Table = std::fs::read_to_string(&file).unwrap().parse().unwrap();
    let halves: Vec<(String, f64)> = table["f32"]
        .as_table()
        .unwrap()
        .iter()
        .map(|(k, v)| (k.clone(), v.as_float().unwrap() / 2.0))
        .collect();
    let int8 = table["int8"].as_table_mut().unwrap();
    assert_eq!(int8.len(), halves.len());
    let slow = halves
        .iter()
        .filter(|(shape, _)| shape.starts_with("Conv"))
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap();
    for (shape, half) in &halves {
        let time = if *shape == slow.0 { 6.0 * half } else { *half };
        int8.insert(shape.clone(), time.into());
    }
    std::fs::write(&file, table.to_string()).unwrap();
    let out = folder.path().join("out.onnx").display().to_string();
    let arguments =
        ["compress", &model, "--data", &data, "--max-drop", "0.05", "--for", &file, "-o", &out, "--json"];
    let result = succeed_json(&arguments);
    let layers = tried(&result);
    let kept: Vec<&&Value> = layers.iter().filter(|layer| layer["precision"] == "int8-weights").collect();
    let [kept] = kept[..] else { panic!("{result}") };
    assert_eq!(kept["reason_code"], "weights-only", "{kept}");
    assert!(kept["reason"].as_str().unwrap().contains("not faster"), "{kept}");
    assert!((number(&kept["before_ms"]) - 2.0 * slow.1).abs() < 1e-9, "{kept}");
    let sum: f64 = halves.iter().map(|(_, half)| 2.0 * half).sum();
    assert!((number(&result["before"]["median_ms"]) / sum - 1.0).abs() < 0.5, "{sum} {result}");

    // Bounds by the same table: what was found meets one that is hardly wider, and nothing one that is much tighter.
    let share = number(&result["after"]["median_ms"]) / number(&result["before"]["median_ms"]);
    let within = |share: f64| {
        let bound = format!("{share}x");
        let goals = ["--max-latency", &bound, "--for", &file, "-o", &out, "--json"];
        succeed_json(&[&["compress", &model, "--data", &data], &goals[..]].concat())
    };
    let result = within(1.01 * share);
    assert_eq!(result["met"], true, "{share} {result}");
    let ms = |side: &str| number(&result[side]["median_ms"]);
    assert!(ms("after") <= 1.01 * share * ms("before"), "{share} {result}");
    let half_way = within(0.5 + 0.5 * share);
    let int8 = |of: &Value| tried(of).iter().filter(|layer| layer["precision"] == "int8").count();
    assert!(half_way["met"] == true && (1..int8(&result)).contains(&int8(&half_way)), "{half_way}");
    let missed = within(0.5 * share);
    let note = missed["note"].as_str().unwrap();
    assert!(missed["met"] == false && note.contains(kept["name"].as_str().unwrap()), "{missed}");

    table["int8"].as_table_mut().unwrap().remove(&slow.0);
    std::fs::write(&file, table.to_string()).unwrap();
    let error = fail(&arguments[..arguments.len() - 1]);
    assert!(error.contains(kept["name"].as_str().unwrap()) && error.contains(&slow.0), "{error}");
}

#[test]
fn goals_without_a_sense_are_wrong_usage() {
    for goals in [
        ["--max-latency", "0"],
        ["--max-latency", "-1ms"],
        ["--max-size", "12parsecs"],
        ["--max-size", "NaNx"],
    ] {
        let output = sora(&[&["compress", "a.onnx", "--data", "b", "-o", "c.sora"], &goals[..]].concat())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{goals:?}");
    }
}
