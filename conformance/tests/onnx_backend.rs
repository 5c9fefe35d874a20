//! The official test cases of ONNX: models with stored inputs and outputs.
//!
//! `SORA_ONNX_CASES` names folders, separated by `:`, each with one folder a case: `model.onnx`, and
//! `test_data_set_N/input_N.pb` and `output_N.pb`; or with one file a case, `NAME.onnx`, beside `NAME_output_N.pb`: large
//! networks with constant weights, whose input counts from 0 to 1 and which run on the engine only.
//!
//! `SORA_ONNX_LIST` names the list that says of each case `pass` or `skip: reason`. A case listed as `pass` that fails is
//! an error, and so is one listed as `skip` that passes, or one that is not listed. With `SORA_BLESS=1` the list is written
//! anew: reasons stay, and what passes is listed so.
//!
//! Where the structure of the graph depends on inputs that are lists of integers or flags, such as the axes of a
//! reduction, the case is imported with those inputs fixed; the list then says `pass with fixed inputs`.
//!
//! ONNX corrects definitions and data without a new opset. Where a person finds that a case fails because of that, the
//! list says `pass with corrected data: what was wrong`, or `corrected model` where that is corrected too. It is checked
//! with the namesake among the cases of a later release, which `SORA_ONNX_CORRECTED` names the folder of.
//!
//! What is within ONNX's bounds only when these allow for rounding is `pass up to rounding`.
//!
//! Random numbers are not those that the case stores: of such graphs only the outputs' dtypes and shapes are compared
//! where the values differ, and the list says `pass up to random values`.
//!
//! Each case runs on the reference evaluator as imported, and on the engine, unoptimized and optimized.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sora_conformance::named;
use sora_exec::{Options, Session};
use sora_ir::{Graph, Op, TensorType, evaluate};
use sora_onnx::{ImportOptions, Interface, Stored, StoredKind, read_stored};
use sora_tensor::{DType, Tensor, bf16};

/// The bounds of ONNX's own runner.
const RELATIVE: f64 = 1e-3;
const ABSOLUTE: f64 = 1e-7;

/// How far a value of a dtype may be from an expected one.
///
/// Where operators inside of one round is no part of its definition. So `What::Near` allows short floats two units in the
/// last place, as ONNX's runner allows bfloat16, and what is left where large terms cancel: a unit of f32 in the largest
/// element.
fn bound(what: What, dtype: DType, expected: f64, largest: f64) -> f64 {
    let two_units = match dtype {
        DType::F16 => 2f64.powi(-9),
        DType::BF16 => 2f64.powi(-6),
        _ => 0.0,
    };
    let (relative, absolute) = match what {
        What::Near => (RELATIVE.max(two_units), ABSOLUTE.max(largest * f64::from(f32::EPSILON))),
        _ => (RELATIVE, ABSOLUTE),
    };
    absolute + relative * expected.abs()
}

fn cases() -> BTreeMap<String, PathBuf> {
    let folders = std::env::var("SORA_ONNX_CASES").expect("SORA_ONNX_CASES names the folders of the cases");
    let mut cases = BTreeMap::new();
    for folder in folders.split(':') {
        let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("SORA_ONNX_CASES: {folder}: {e}"));
        let is_case = |path: &PathBuf| {
            path.join("model.onnx").exists() || path.extension().is_some_and(|e| e == "onnx")
        };
        let paths = entries.map(|entry| entry.unwrap().path()).filter(is_case);
        cases.extend(paths.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path)));
    }
    assert!(!cases.is_empty(), "SORA_ONNX_CASES={folders} holds no cases");
    cases
}

/// The stored values `PREFIX_0.pb`, `PREFIX_1.pb`, … in a folder, with the names that an interface gives them.
fn stored(folder: &Path, prefix: &str, interface: &Interface) -> Result<Vec<(String, Stored)>, String> {
    let mut values = Vec::new();
    for (number, (name, kind)) in interface.iter().enumerate() {
        let path = folder.join(format!("{prefix}_{number}.pb"));
        let Ok(bytes) = std::fs::read(&path) else { break };
        let read = read_stored(bytes, *kind).map_err(|e| format!("{prefix} {number}: {e}"))?;
        values.push((name.clone(), read));
    }
    Ok(values)
}

/// The stored values with the element types that the model declares: NumPy has no bfloat16, so that some releases
/// store its bits as `uint16`.
fn as_declared(stored: &Tensor, declared: DType) -> Tensor {
    match (stored.dtype(), declared) {
        (DType::U16, DType::BF16) => {
            let bits = stored.as_slice::<u16>().unwrap().iter().map(|&bits| bf16::from_bits(bits));
            Tensor::from_slice(stored.shape(), &bits.collect::<Vec<_>>()).unwrap()
        }
        _ => stored.clone(),
    }
}

/// The tensors of stored values: element `i` of a sequence as `NAME.i`.
fn tensors(values: Vec<(String, Stored)>) -> Vec<(String, Tensor)> {
    let flat = values.into_iter().flat_map(|(name, value)| match value {
        Stored::Tensor(tensor) => vec![(name, tensor)],
        Stored::Sequence(list) => {
            list.into_iter().enumerate().map(|(i, tensor)| (format!("{name}.{i}"), tensor)).collect()
        }
        Stored::Absent => Vec::new(),
    });
    flat.collect()
}

/// What is said to the importer of inputs that are no tensors.
fn structure(values: &[(String, Stored)]) -> ImportOptions {
    let mut options = ImportOptions::default();
    for (name, value) in values {
        match value {
            Stored::Tensor(_) => {}
            Stored::Sequence(list) => {
                options.sequences.push((name.clone(), list.iter().map(TensorType::of).collect()));
            }
            Stored::Absent => options.absent.push(name.clone()),
        }
    }
    options
}

/// How a case passed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Passed {
    AsIs,
    /// With parameters of the graph that are inputs made constants.
    Fixed,
    /// With bounds that allow for rounding.
    Rounded,
    /// But for the values, which are random.
    Random,
}

/// What of the outputs is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Values,
    /// The values, allowing for rounding.
    Near,
    Types,
}

/// Whether a graph draws random numbers.
fn is_random(graph: &Graph) -> bool {
    let random =
        |op: &Op| matches!(op, Op::Random(_)) || op.bodies().into_iter().any(|body| is_random(body.graph()));
    graph.nodes().any(|(_, node)| random(&node.op))
}

/// The graph's inputs that lists of integers, sizes or flags can be, with what the data set gives them.
fn parameters(inputs: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    let small = |t: &Tensor| !t.dtype().is_float() && t.rank() <= 1 && t.len() <= 64;
    inputs.iter().filter(|(_, tensor)| small(tensor)).cloned().collect()
}

/// A large network on the engine.
fn check_large(path: &Path) -> Result<Passed, String> {
    let graph = sora_onnx::load(path).map_err(|e| e.to_string())?.graph;
    let prefix = format!("{}_output", path.file_stem().unwrap().to_str().unwrap());
    let outputs = graph.outputs().iter().map(|o| (o.name.clone(), StoredKind::Tensor)).collect();
    let expected = tensors(stored(path.parent().unwrap(), &prefix, &outputs)?);
    let counting = |shape: Vec<usize>| {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| i as f32 / n as f32).collect();
        Tensor::vector(&values).reshape(&shape).map_err(|e| e.to_string())
    };
    let mut given = Vec::new();
    for value in graph.inputs().iter().map(|&id| graph.value(id)) {
        let shape = value.ty.known_shape().ok_or(format!("the shape of {} is not known", value.name))?;
        given.push((value.name.clone(), counting(shape)?));
    }
    check_engine(&graph, &given, true, &expected, What::Values)?;
    Ok(Passed::AsIs)
}

/// One case on every way to run it.
fn check(case: &Path) -> Result<Passed, String> {
    match case.is_file() {
        true => check_large(case),
        false => check_data(&case.join("model.onnx"), case),
    }
}

/// Whether a case that is listed as corrected is so: its namesake of a later release passes, under the model of either.
fn is_corrected(case: &Path, listed: &str) -> bool {
    let later = std::env::var("SORA_ONNX_CORRECTED").map(PathBuf::from);
    let Ok(later) = later.map(|folder| folder.join(case.file_name().unwrap())) else { return false };
    let model = match listed.split_once(':').map(|(kind, _)| kind) {
        Some("pass with corrected data") => case,
        Some("pass with corrected model") => &later,
        _ => return false,
    };
    matches!(check_data(&model.join("model.onnx"), &later), Ok(Passed::AsIs | Passed::Fixed))
}

/// A model with the data sets in a folder.
fn check_data(path: &Path, data: &Path) -> Result<Passed, String> {
    let (inputs, outputs) = sora_onnx::interface(path).map_err(|e| e.to_string())?;
    let sets = (0..).map(|n| data.join(format!("test_data_set_{n}"))).take_while(|set| set.exists());
    let mut passed = Err("it has no data".to_owned());
    for set in sets {
        let given = stored(&set, "input", &inputs)?;
        let plain = structure(&given);
        let given = tensors(given);
        let fixed = ImportOptions { fixed: parameters(&given), ..plain.clone() };
        let expected = tensors(stored(&set, "output", &outputs)?);
        let check = |options: &ImportOptions, what| check_graph(path, &given, options, &expected, what);
        let check_fixed =
            |what| if fixed.fixed.is_empty() { Err(String::new()) } else { check(&fixed, what) };
        passed = match check(&plain, What::Values) {
            Ok(()) => Ok(Passed::AsIs),
            Err(_) if check_fixed(What::Values).is_ok() => Ok(Passed::Fixed),
            Err(_) if check(&plain, What::Near).is_ok() => Ok(Passed::Rounded),
            Err(_) if check_fixed(What::Near).is_ok() => Ok(Passed::Rounded),
            Err(_) if check(&plain, What::Types).is_ok() => Ok(Passed::Random),
            Err(why) => return Err(why),
        };
    }
    passed
}

fn check_graph(
    path: &Path,
    given: &[(String, Tensor)],
    options: &ImportOptions,
    expected: &[(String, Tensor)],
    what: What,
) -> Result<(), String> {
    let graph = sora_onnx::load_with(path, options).map_err(|e| e.to_string())?.graph;
    sora_ir::verify(&graph).map_err(|e| e.to_string())?;
    if what == What::Types && !is_random(&graph) {
        return Err("its values are not random".to_owned());
    }
    let free = |(name, _): &&(String, Tensor)| !options.fixed.iter().any(|(other, _)| other == name);
    let declared = |name: &str| graph.inputs().iter().map(|&id| graph.value(id)).find(|v| v.name == name);
    let typed = |(name, tensor): &(String, Tensor)| {
        let tensor = declared(name).map_or_else(|| tensor.clone(), |v| as_declared(tensor, v.ty.dtype));
        (name.clone(), tensor)
    };
    let given: Vec<(String, Tensor)> = given.iter().filter(free).map(typed).collect();
    let declared = |i: usize| graph.outputs().get(i).map(|output| graph.ty(output.value).dtype);
    let typed = |(i, (name, t)): (usize, &(String, Tensor))| {
        (name.clone(), declared(i).map_or_else(|| t.clone(), |d| as_declared(t, d)))
    };
    let expected: Vec<(String, Tensor)> = expected.iter().enumerate().map(typed).collect();
    let expected = &expected[..];
    let found = evaluate(&graph, &named(&given)).map_err(|e| e.to_string())?;
    compare(&graph, &found, expected, what).map_err(|e| format!("reference: {e}"))?;
    [false, true].into_iter().try_for_each(|optimize| check_engine(&graph, &given, optimize, expected, what))
}

fn check_engine(
    graph: &Graph,
    given: &[(String, Tensor)],
    optimize: bool,
    expected: &[(String, Tensor)],
    what: What,
) -> Result<(), String> {
    let options = Options { optimize, ..Options::default() };
    let session = Session::new(graph.clone(), options).map_err(|e| e.to_string())?;
    let found = session.run(&named(given)).map_err(|e| format!("engine, optimize={optimize}: {e}"))?;
    let found: Vec<Tensor> = found.into_iter().map(|(_, tensor)| tensor).collect();
    compare(graph, &found, expected, what).map_err(|e| format!("engine, optimize={optimize}: {e}"))
}

fn compare(graph: &Graph, found: &[Tensor], expected: &[(String, Tensor)], what: What) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("{} outputs instead of {}", found.len(), expected.len()));
    }
    for ((output, found), (name, expected)) in graph.outputs().iter().zip(found).zip(expected) {
        if output.name != *name {
            return Err(format!("an output is called {} instead of {name}", output.name));
        }
        if (found.dtype(), found.shape()) != (expected.dtype(), expected.shape()) {
            let of = |t: &Tensor| format!("{}{:?}", t.dtype(), t.shape());
            return Err(format!("{name} is {} instead of {}", of(found), of(expected)));
        }
        if what == What::Types {
            continue;
        }
        let (dtype, values) = (expected.dtype(), expected.to_f64s());
        let largest = values.iter().filter(|e| e.is_finite()).fold(0f64, |most, e| most.max(e.abs()));
        for (at, (f, e)) in found.to_f64s().into_iter().zip(values).enumerate() {
            let near = dtype.is_float() && (f - e).abs() <= bound(what, dtype, e, largest);
            if !(f == e || near || (f.is_nan() && e.is_nan())) {
                return Err(format!("{name}[{at}] is {f} instead of {e}"));
            }
        }
    }
    Ok(())
}

/// The beginning of a reason: enough for a list.
fn brief(why: &str) -> String {
    let line = why.lines().find(|line| !line.ends_with("cannot be imported:")).unwrap_or(why);
    line.trim().chars().take(120).collect()
}

/// Name to verdict, as the list writes both.
type List = BTreeMap<String, String>;

const SKIP: &str = "skip: ";

fn read_list(path: &Path) -> List {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let parse = |line: &str| {
        let (name, verdict) = line.split_once(' ').unwrap_or_else(|| panic!("{line}: no verdict"));
        (name.to_owned(), verdict.to_owned())
    };
    text.lines().map(parse).collect()
}

fn write_list(path: &Path, list: &List) {
    let lines = list.iter().map(|(name, verdict)| format!("{name} {verdict}\n"));
    std::fs::write(path, lines.collect::<String>()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Prints how many cases of each folder pass, and in which ways.
fn report(cases: &BTreeMap<String, PathBuf>, seen: &List) {
    let mut folders: BTreeMap<&Path, BTreeMap<&str, usize>> = BTreeMap::new();
    for (name, verdict) in seen {
        let kind = verdict.split(':').next().unwrap_or_default();
        *folders.entry(cases[name].parent().unwrap()).or_default().entry(kind).or_default() += 1;
    }
    for (folder, kinds) in folders {
        let all: usize = kinds.values().sum();
        let passed = all - kinds.get("skip").unwrap_or(&0);
        let share = 100.0 * passed as f64 / all as f64;
        println!("{}: {passed} of {all} cases pass ({share:.1} %): {kinds:?}", folder.display());
    }
}

/// What a case does, as the list writes it; `listed` is what it says.
fn verdict(path: &Path, listed: &str) -> String {
    let outcome = catch_unwind(AssertUnwindSafe(|| check(path))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(format!("PANIC {}", text.unwrap_or_default()))
    });
    match outcome {
        Ok(Passed::AsIs) => "pass".to_owned(),
        Ok(Passed::Fixed) => "pass with fixed inputs".to_owned(),
        Err(_) | Ok(Passed::Rounded) if is_corrected(path, listed) => listed.to_owned(),
        Ok(Passed::Rounded) => "pass up to rounding".to_owned(),
        Ok(Passed::Random) => "pass up to random values".to_owned(),
        Err(_) if listed.starts_with(SKIP) => listed.to_owned(),
        Err(why) => format!("{SKIP}{}", brief(&why)),
    }
}

#[test]
fn official_cases_do_what_the_list_says() {
    let list_path = PathBuf::from(std::env::var("SORA_ONNX_LIST").expect("SORA_ONNX_LIST names the list"));
    let list = read_list(&list_path);
    let cases = cases();
    std::panic::set_hook(Box::new(|_| {}));
    let listed = |name: &String| list.get(name).map_or("not listed", String::as_str);
    let seen: List =
        cases.par_iter().map(|(name, path)| (name.clone(), verdict(path, listed(name)))).collect();
    let _ = std::panic::take_hook();
    let changed = seen.iter().filter(|(name, verdict)| *verdict != listed(name));
    let told = |(name, verdict): (&String, &String)| {
        format!("{name} is listed as `{}`, found `{verdict}`", listed(name))
    };
    let mut wrong: Vec<String> = changed.map(told).collect();
    let gone = list.keys().filter(|name| !cases.contains_key(*name));
    wrong.extend(gone.map(|name| format!("{name} is listed and does not exist")));
    report(&cases, &seen);
    match std::env::var("SORA_BLESS").is_ok_and(|v| v == "1") {
        true => write_list(&list_path, &seen),
        false => assert!(wrong.is_empty(), "{}", wrong.join("\n")),
    }
}
