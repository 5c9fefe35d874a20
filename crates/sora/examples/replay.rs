//! Holds one model ready and runs it on stored inputs: what `cargo xtask models` compares with onnxruntime.
//!
//! `replay MODEL` prints one JSON object about loading. Then it reads one JSON object a line,
//! `{"inputs": FILE.npz, "outputs": FILE.npz, "threads": N, "seconds": S}`, runs the model on the arrays of `inputs`, writes
//! its results to `outputs`, and prints the time of the first run and the median of runs over `seconds`. With
//! `"profile": true` it also prints the time of each kernel in one more run. What fails is printed as `{"error": …}`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::error::Error;
use std::fs::File;
use std::io::{BufRead, Cursor, Write};
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use sora::exec::{Options, Session};
use sora::tensor::Tensor;
use sora::{Model, data};

/// Inputs are written by the caller; larger files are refused.
const MOST_BYTES: u64 = 1 << 31;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: replay MODEL")?;
    let start = Instant::now();
    let model = match Model::load(&path) {
        Ok(model) => model,
        Err(e) => return say(&json!({"error": e.to_string()})),
    };
    say(&json!({"load_ms": milliseconds(start), "nodes": model.graph.nodes().count()}))?;
    let mut sessions: BTreeMap<usize, Session> = BTreeMap::new();
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let answer = answer(&model, &mut sessions, &request);
        say(&answer.unwrap_or_else(|e| json!({"error": e.to_string()})))?;
    }
    Ok(())
}

fn answer(
    model: &Model,
    sessions: &mut BTreeMap<usize, Session>,
    request: &Value,
) -> Result<Value, Box<dyn Error>> {
    let text = |key: &str| request[key].as_str().ok_or(format!("`{key}` is missing"));
    let threads = usize::try_from(request["threads"].as_u64().unwrap_or(1))?;
    if let Entry::Vacant(entry) = sessions.entry(threads) {
        let options = Options { threads, ..Options::default() };
        entry.insert(model.clone().session(options)?);
    }
    let session = &sessions[&threads];
    let inputs = data::npz::read(Path::new(text("inputs")?), MOST_BYTES)?;
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();

    let start = Instant::now();
    let outputs = session.run(&given)?;
    let first_ms = milliseconds(start);
    let named: Vec<(&str, &Tensor)> = outputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut bytes = Cursor::new(Vec::new());
    data::npz::write(&mut bytes, &named)?;
    File::create(text("outputs")?)?.write_all(&bytes.into_inner())?;

    let (mut times, begun) = (Vec::new(), Instant::now());
    let seconds = request["seconds"].as_f64().unwrap_or(0.0);
    while begun.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        session.run(&given)?;
        times.push(milliseconds(start));
    }
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().unwrap_or(first_ms);
    let mut answer = json!({"first_ms": first_ms, "ms": median});
    if request["profile"] == true {
        let mut kernels: BTreeMap<String, f64> = BTreeMap::new();
        for step in session.run_profiled(&given)?.1.steps {
            *kernels.entry(step.step.kernel).or_default() += step.nanoseconds as f64 / 1e6;
        }
        answer["kernels"] = json!(kernels);
    }
    Ok(answer)
}

fn say(object: &Value) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{object}")?;
    Ok(out.flush()?)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
