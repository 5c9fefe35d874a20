//! Tests under emulated AArch64, so that the NEON kernels are compiled and run on an x86-64 Debian machine.

use std::path::{Path, PathBuf};

use crate::shell::{Outcome, cargo, program, root, text};

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// Crates whose results depend on the processor.
const CRATES: [&str; 5] = ["sora-tensor", "sora-ir", "sora-kernels", "sora-exec", "sora-conformance"];

/// Emulated processors, with and without byte products, and the best instruction set that each must have.
const PROCESSORS: [(&str, &str); 2] = [("max", "neoni8mm"), ("cortex-a53", "neon")];

/// Debian's compiler, which has a standard library for AArch64 without rustup; a linker; the emulator.
const PACKAGES: [&str; 4] =
    ["rustc-web", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user-static"];
const RUSTC: &str = "/usr/bin/rustc";
const LINKER: &str = "aarch64-linux-gnu-gcc";
/// Where Debian keeps the C library that the tests load.
const C_LIBRARY: &str = "/usr/aarch64-linux-gnu";
const STANDARD_LIBRARY: &str = "libstd-rust-web-dev";

/// Runs the tests of [`CRATES`] on every processor.
pub(crate) fn test() -> Outcome {
    let sysroot = format!("--sysroot={}", text(&sysroot(&compiler()?)?));
    let crates = CRATES.iter().flat_map(|name| ["-p", name]);
    // Documentation tests would need Debian's rustdoc too, and have nothing to add here.
    let arguments = ["test", "--locked", "--target", TARGET, "--lib", "--tests"].into_iter().chain(crates);
    let arguments: Vec<_> = arguments.collect();
    for (processor, isa) in PROCESSORS {
        eprintln!("== AArch64, processor {processor}, instruction set {isa} ==");
        let emulator = format!("qemu-aarch64-static -cpu {processor} -L {C_LIBRARY}");
        // Every instruction set up to the best is tested anyway; naming it makes the tests fail where it is not detected.
        cargo(&arguments)
            .env("RUSTC", RUSTC)
            .env("CARGO_TARGET_DIR", root().join("target/aarch64"))
            .env("CARGO_ENCODED_RUSTFLAGS", &sysroot)
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", emulator)
            .env("SORA_ISA", isa)
            .run()?;
    }
    Ok(())
}

/// Installs [`PACKAGES`] unless they are, and returns the compiler's version.
fn compiler() -> Outcome<String> {
    if PACKAGES.iter().any(|package| version(package).is_err()) {
        let needed = |why| format!("this task needs Debian's packages {}: {why}", PACKAGES.join(", "));
        program("apt-get", &["update"]).run().map_err(needed)?;
        // Debian's own rustc conflicts with this one; it is not removed behind anyone's back.
        let install =
            ["install", "--yes", "--no-remove", "--no-install-recommends"].into_iter().chain(PACKAGES);
        program("apt-get", &install.collect::<Vec<_>>()).run().map_err(needed)?;
    }
    version(PACKAGES[0])
}

/// The version of an installed package.
fn version(package: &str) -> Outcome<String> {
    let found = program("dpkg-query", &["-W", "-f", "${db:Status-Status} ${Version}", package]).output()?;
    match found.strip_prefix("installed ") {
        Some(version) => Ok(version.to_owned()),
        None => Err(format!("package {package} is not installed: {found}")),
    }
}

/// A folder below `target/` with the AArch64 standard library of this version of the compiler.
fn sysroot(version: &str) -> Outcome<PathBuf> {
    let home = root().join("target/aarch64-sysroot");
    let sysroot = home.join("usr");
    let stamp = home.join("installed.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == version) {
        return Ok(sysroot);
    }
    let _ = std::fs::remove_dir_all(&home);
    std::fs::create_dir_all(home.join("lists/partial")).map_err(|e| at(&home, e))?;

    // Package lists of its own, so that the machine itself needs no second architecture.
    let lists = format!("Dir::State::Lists={}", text(&home.join("lists")));
    let settings = [
        &lists,
        "APT::Architecture=arm64",
        "APT::Architectures=arm64",
        "APT::Sandbox::User=root",
        "Dir::State::status=/dev/null",
        "Dir::Cache::pkgcache=",
        "Dir::Cache::srcpkgcache=",
    ];
    let folder = text(&home);
    let apt = |arguments: &[&str]| {
        // It downloads into its working folder.
        let start = ["--chdir", &folder, "apt-get"].into_iter();
        let words =
            start.chain(settings.iter().flat_map(|setting| ["-o", setting])).chain(arguments.iter().copied());
        program("env", &words.collect::<Vec<_>>()).run()
    };
    apt(&["update"])?;
    apt(&["download", &format!("{STANDARD_LIBRARY}={version}")])?;
    program("dpkg-deb", &["--extract", &text(&package(&home)?), &folder]).run()?;
    let library = sysroot.join("lib/rustlib").join(TARGET);
    if !library.is_dir() {
        return Err(format!("{STANDARD_LIBRARY} {version} has no {}", library.display()));
    }
    std::fs::write(&stamp, version).map_err(|e| at(&stamp, e))?;
    Ok(sysroot)
}

/// The package file in `folder`.
fn package(folder: &Path) -> Outcome<PathBuf> {
    let entries = std::fs::read_dir(folder).map_err(|e| at(folder, e))?;
    let mut files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    files
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .ok_or(format!("no package in {}", folder.display()))
}

fn at(path: &Path, error: std::io::Error) -> String {
    format!("{}: {error}", path.display())
}
