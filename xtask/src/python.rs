//! Python environments with exactly the packages that a task pins, made below `target/`.

use std::path::PathBuf;

use crate::shell::{Outcome, program, read, root, text};

/// A list of packages, below `.ci/python`.
pub(crate) enum Packages {
    /// With what they depend on, which the list names too.
    Whole(&'static str),
    /// Without what they ask for.
    Alone(&'static str),
}

/// The Python of an environment with these packages, made anew whenever the lists change.
pub(crate) fn environment(name: &str, packages: &[Packages]) -> Outcome<PathBuf> {
    let home = root().join("target").join(name);
    let python = home.join("bin/python");
    let lists: Vec<(String, &[&str])> = packages
        .iter()
        .map(|list| match list {
            Packages::Whole(file) => (format!(".ci/python/{file}"), &[][..]),
            Packages::Alone(file) => (format!(".ci/python/{file}"), &["--no-deps"][..]),
        })
        .collect();
    let wanted = lists.iter().map(|(file, _)| read(&root().join(file))).collect::<Outcome<String>>()?;
    let stamp = home.join("installed.txt");
    if python.exists() && std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    let _ = std::fs::remove_dir_all(&home);
    let make = || program("python3", &["-m", "venv", &text(&home)]).run();
    if make().is_err() {
        program("apt-get", &["update"]).run()?;
        program("apt-get", &["install", "--yes", "python3", "python3-venv"]).run()?;
        make()?;
    }
    for (file, options) in &lists {
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", file.as_str()];
        program(&python, &[&install[..], options].concat()).run()?;
    }
    std::fs::write(&stamp, wanted).map_err(|e| format!("{}: {e}", stamp.display()))?;
    Ok(python)
}
