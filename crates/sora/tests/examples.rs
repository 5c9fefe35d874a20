//! The configurations of the examples are ones that `sora train` takes, though their data is not here.

use std::path::{Path, PathBuf};

use sora::data::Preprocess;
use sora::train::{Loss, Optimizer, Schedule};
use sora::training::Config;

/// All configurations `examples/FOLDER/*.toml`.
fn configurations() -> Vec<PathBuf> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let files = |folder: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let folders = files(&examples).into_iter().filter(|path| path.is_dir());
    let all = folders.flat_map(|folder| files(&folder));
    all.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect()
}

#[test]
fn configurations_are_read_and_their_networks_built() {
    let all = configurations();
    assert!(all.len() >= 12, "{all:?}");
    for path in all {
        let place = path.display();
        let config = Config::load(&path).unwrap_or_else(|error| panic!("{place}: {error}"));
        let outputs: Vec<&str> = config.outputs.iter().map(|output| output.part.as_str()).collect();
        let network = config.network.unwrap();
        if let Err(error) = network.build(config.seed, &outputs) {
            panic!("{place}: {error:?}");
        }
        for loss in config.outputs.iter().filter_map(|output| output.loss.as_ref()).chain([&config.loss]) {
            Loss::new(&loss.name, &loss.numbers).unwrap_or_else(|error| panic!("{place}: {error}"));
        }
        Optimizer::new(&config.optimizer.name, &config.optimizer.numbers).unwrap();
        Schedule::new(&config.schedule.name, &config.schedule.numbers).unwrap();
        if let Some(preprocess) = &config.data.preprocess {
            Preprocess::from_argument(preprocess).unwrap();
        }
        let read_me = std::fs::read_to_string(path.with_file_name("README.md")).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(read_me.contains(name), "the README.md beside {place} does not name it");
    }
}
