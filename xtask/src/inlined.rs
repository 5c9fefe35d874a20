//! No SIMD intrinsic may be left as a function of its own: where a closure or a helper without the features of its
//! caller is not inlined, every intrinsic in it becomes a call, and a kernel ten times slower.

use crate::shell::{Outcome, cargo, program, root, text};

/// Looks for intrinsics among the symbols of the released kernels.
pub(crate) fn check() -> Outcome {
    cargo(&["build", "--release", "--locked", "-p", "sora-kernels"]).run()?;
    let library = text(&root().join("target/release/libsora_kernels.rlib"));
    let symbols = program("nm", &["--demangle", &library]).output()?;
    let is_function = |line: &&str| line.contains(" t ") || line.contains(" T ");
    let left: Vec<&str> =
        symbols.lines().filter(|line| line.contains("core_arch::")).filter(is_function).collect();
    match left.is_empty() {
        true => Ok(()),
        false => Err(format!("these intrinsics are called, not inlined:\n{}", left.join("\n"))),
    }
}
