//! Coverage-guided fuzzing of whatever reads files.

use crate::shell::{Outcome, cargo, program, root, text};

/// Coverage for libFuzzer, which a stable compiler can make.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                        -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Runs one target, or all in turn, for some minutes each: `[TARGET] [MINUTES]`.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let minutes =
        |text: &String| text.parse::<u32>().map_err(|_| format!("`{text}` is no number of minutes"));
    let (wanted, minutes) = match arguments {
        [] => (None, 20),
        [target] => (Some(target.as_str()), 20),
        [target, time] => (Some(target.as_str()).filter(|t| *t != "all"), minutes(time)?),
        other => return Err(format!("takes a target and minutes, found {other:?}")),
    };
    let manifest = root().join("fuzz/driver/Cargo.toml");
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let host = host.as_str();
    // Naming the target keeps coverage out of build scripts.
    cargo(&["build", "--release", "--locked", "--target", host, "--manifest-path", &text(&manifest)])
        .env("RUSTFLAGS", COVERAGE)
        .env("CARGO_TARGET_DIR", root().join("target/fuzz"))
        .run()?;
    let driver = root().join(format!("target/fuzz/{host}/release/sora-fuzz-driver"));
    let mut names: Vec<String> = std::fs::read_dir(root().join("fuzz/corpus"))
        .map_err(|e| format!("fuzz/corpus: {e}"))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.to_owned()))
        .filter(|name| wanted.is_none_or(|wanted| wanted == name))
        .collect();
    names.sort();
    if names.is_empty() {
        return Err(format!("there is no target {wanted:?}"));
    }
    for name in names {
        // What is found goes to the first folder; crashes beside it.
        let found = root().join(format!("target/fuzz/found/{name}"));
        std::fs::create_dir_all(&found).map_err(|e| format!("{}: {e}", found.display()))?;
        let options = [
            text(&found),
            text(&root().join(format!("fuzz/corpus/{name}"))),
            format!("-max_total_time={}", 60 * minutes),
            format!("-artifact_prefix={}/crash-", text(&root().join("target/fuzz"))),
            "-max_len=16384".to_owned(),
            "-timeout=20".to_owned(),
            "-rss_limit_mb=3072".to_owned(),
            "-malloc_limit_mb=2048".to_owned(),
            "-print_final_stats=1".to_owned(),
        ];
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        program(&driver, &options).env("SORA_FUZZ", &name).run()?;
    }
    Ok(())
}
