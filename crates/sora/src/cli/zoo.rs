//! `sora zoo`.

use serde_json::{Value, json};
use sora::layers::Samples;
use sora::zoo::{ENTRIES, Entry};
use sora::{Failure, Kind, Metadata, Model, check_writable};

use super::args::Zoo;
use super::{Printed, human_bytes, human_count, one_line, progress};

pub(super) fn zoo(args: &Zoo) -> Printed {
    match (&args.name, &args.output) {
        (Some(name), Some(output)) => write(args, name, output),
        // The grammar lets neither stand alone.
        _ => Ok(list(args)),
    }
}

fn list(args: &Zoo) -> String {
    if args.json {
        let networks: Vec<Value> =
            ENTRIES.iter().map(|entry| json!({"name": entry.name, "about": entry.about})).collect();
        return one_line(&json!({ "networks": networks }));
    }
    ENTRIES.iter().map(|entry| format!("{:16} {}\n", entry.name, entry.about)).collect()
}

/// An input with the distribution that the network's statistics were made for.
fn input_json((name, samples): &(String, Samples)) -> Value {
    match samples {
        Samples::Normal { mean, std } => json!({"name": name, "mean": mean, "std": std}),
        Samples::Index { below } => json!({"name": name, "below": below}),
    }
}

fn write(args: &Zoo, name: &str, output: &std::path::Path) -> Printed {
    let entry = Entry::find(name).ok_or_else(|| {
        let names: Vec<&str> = ENTRIES.iter().map(|entry| entry.name).collect();
        Failure::new("The zoo has no such network.", name, format!("Choose one of {}.", names.join(", ")))
    })?;
    Kind::of(output)?;
    check_writable(output)?;
    let failed = |error: sora::layers::LayerError| {
        Failure::new(format!("Cannot build the network: {error}"), name, "Free some memory.")
    };
    let net = entry.network(args.seed).map_err(failed)?;
    progress::check()?;
    let (parameters, trainable) = (net.count(false), net.count(true));
    let inputs: Vec<Value> = net.inputs().iter().map(input_json).collect();
    let graph = match args.batch {
        Some(batch) => net.into_graph_of_batch(batch as usize).map_err(failed)?,
        None => net.into_graph(),
    };
    let model = Model { graph, metadata: Metadata::default(), bytes: 0, warnings: Vec::new(), packed: None };
    let bytes = model.save(output)?;
    Ok(match args.json {
        true => one_line(&json!({
            "name": name, "seed": args.seed, "batch": args.batch, "parameters": parameters,
            "trainable": trainable, "inputs": inputs, "bytes": bytes, "output": output.display().to_string(),
        })),
        false => format!(
            "wrote {} ({} parameters, {})",
            output.display(),
            human_count(parameters as u64),
            human_bytes(bytes)
        ),
    })
}
