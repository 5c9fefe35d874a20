//! `docs/OPERATORS.md` says what the tables say. `SORA_BLESS=1` writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use sora_exec::{Isa, Options, Session};
use sora_ir::case::Gen;
use sora_ir::{Op, QuantRule};

/// The kernels that an operator's random cases run in, and whether some run on the reference evaluator.
fn kernels(name: &str) -> (BTreeSet<String>, bool) {
    let options = Options { isa: Some(Isa::Portable), ..Options::default() };
    let (mut found, mut reference) = (BTreeSet::new(), false);
    for case in (0..4).flat_map(|seed| Op::cases(name, &mut Gen::new(seed))) {
        let (graph, given) = case.graph().unwrap();
        let session = Session::new(graph, options.clone()).unwrap();
        let shapes: Vec<(&str, Vec<usize>)> =
            given.iter().map(|(name, tensor)| (name.as_str(), tensor.shape().to_vec())).collect();
        for step in session.program(&shapes).unwrap().steps() {
            match step.kernel.starts_with("reference:") {
                true => reference = true,
                // Without the type behind the dot.
                false if !step.nodes.is_empty() => {
                    found.insert(step.kernel.split('.').next().unwrap_or_default().to_owned());
                }
                false => {}
            }
        }
    }
    (found, reference)
}

fn rule(name: &str) -> &'static str {
    let rules = (0..4).flat_map(|seed| Op::cases(name, &mut Gen::new(seed))).map(|case| case.op.quant());
    let words = |rule| match rule {
        QuantRule::Float => "–",
        QuantRule::Linear { .. } => "weights per channel",
        QuantRule::Recurrent => "weights per channel, state by rows",
        QuantRule::Passthrough => "moves values",
        QuantRule::Unify => "moves values of one scale",
        QuantRule::Arithmetic => "operands rescaled",
        QuantRule::Lut => "table",
    };
    rules.map(words).find(|words| *words != "–").unwrap_or("–")
}

fn page() -> String {
    let mut domains: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (domain, op) in sora_onnx::operators() {
        domains.entry(domain).or_default().insert(op);
    }
    let mut text = String::from(
        "# Operators\n\nGenerated from the tables: `SORA_BLESS=1 cargo test -p sora-conformance --test operators` \
         writes this page, and the test checks it.\n\n## What is read from ONNX files\n",
    );
    for (domain, ops) in &domains {
        let domain = if domain.is_empty() { "ai.onnx" } else { domain };
        let list = ops.iter().copied().collect::<Vec<_>>().join(", ");
        write!(text, "\n**{domain}** ({}): {list}.\n", ops.len()).unwrap();
    }
    write!(
        text,
        "\n## Core operators ({})\n\nWhat the graph language has; everything else is composed of these at import. Kernels are \
         those that the operator's random cases run in, on its own and not fused with others; *reference* is the slow \
         evaluator, which takes the rest.\n\n| operator | kernels | 8 bits |\n| --- | --- | --- |\n",
        Op::NAMES.len()
    )
    .unwrap();
    for name in Op::NAMES {
        let (mut found, reference) = kernels(name);
        if reference {
            found.insert("*reference*".to_owned());
        }
        let kernels = found.into_iter().collect::<Vec<_>>().join(", ");
        writeln!(text, "| {name} | {kernels} | {} |", rule(name)).unwrap();
    }
    text
}

#[test]
fn the_page_says_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/OPERATORS.md");
    let page = page();
    if std::env::var("SORA_BLESS").is_ok_and(|v| v == "1") {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "{} is out of date: run the test with SORA_BLESS=1", path.display());
}
