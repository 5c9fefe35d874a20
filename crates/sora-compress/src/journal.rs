//! What an interrupted compression has done, so that the same one need not do it again: its trainings, and the times it decided by.
//!
//! A folder holds a file for each training and for each measurement, under a name that follows from all that decides it. Everything else
//! follows from the arguments, so what goes on is bit for bit what would not have been interrupted.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sora_data::{Dataset, Preprocess};
use sora_ir::Graph;
use sora_train::Checkpoint;

use crate::{CompressError, Options, Training};

/// The file that says which compression a folder belongs to.
const OWNER: &str = "compression.txt";

/// Samples of each data set by which it is recognized.
const SAMPLES: usize = 16;

/// The folder of a compression.
#[derive(Debug)]
pub(crate) struct Journal {
    folder: PathBuf,
}

impl Journal {
    /// Opens the folder of this compression, which is made if there is none.
    ///
    /// # Errors
    /// [`CompressError::Journal`] when it belongs to another one, or cannot be written.
    pub(crate) fn open(
        folder: &Path,
        graph: &Graph,
        data: (&Dataset, &Preprocess),
        options: &Options,
    ) -> Result<Self, CompressError> {
        let journal = Journal { folder: folder.to_owned() };
        let owner = owner(graph, data, options)?;
        let path = folder.join(OWNER);
        let known = match std::fs::read_to_string(&path) {
            Ok(known) => Some(known),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(journal.refused(format!("`{}` cannot be read: {error}", path.display())));
            }
        };
        let Some(known) = known else {
            let entries = std::fs::read_dir(folder).map_or(0, Iterator::count);
            if entries > 0 {
                return Err(journal.refused("the folder holds something else".to_owned()));
            }
            let made = std::fs::create_dir_all(folder).map_err(|e| e.to_string());
            made.and_then(|()| journal.write(OWNER, owner.as_bytes())).map_err(|why| journal.refused(why))?;
            return Ok(journal);
        };
        let kind = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
        let differs: Vec<String> =
            owner.lines().filter(|line| !known.lines().any(|known| known == *line)).map(kind).collect();
        match differs.is_empty() {
            true => Ok(journal),
            false => {
                let what = differs.join(", ");
                Err(journal.refused(format!("it belongs to a compression that differs in: {what}")))
            }
        }
    }

    /// How far a training is.
    pub(crate) fn training(&self, name: &str) -> Result<Option<Checkpoint>, CompressError> {
        let path = self.folder.join(format!("{name}.npz"));
        Ok(if path.exists() { Some(Checkpoint::load(&path)?) } else { None })
    }

    pub(crate) fn keep(&self, name: &str, checkpoint: &Checkpoint) -> Result<(), String> {
        let bytes = checkpoint.to_bytes().map_err(|e| e.to_string())?;
        self.write(&format!("{name}.npz"), &bytes)
    }

    /// What was measured of a network before, or is measured now; `what` tells measurements of one network apart. Without a journal
    /// nothing is kept.
    pub(crate) fn measured<T: Serialize + DeserializeOwned>(
        journal: Option<&Journal>,
        graph: &Graph,
        what: &str,
        measure: impl FnOnce() -> Result<T, CompressError>,
    ) -> Result<T, CompressError> {
        let Some(journal) = journal else { return measure() };
        let file = format!("{}.json", fingerprint(graph, what));
        let known = std::fs::read(journal.folder.join(&file)).ok();
        if let Some(known) = known.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            return Ok(known);
        }
        let found = measure()?;
        let bytes = serde_json::to_vec(&found).map_err(|error| error.to_string());
        bytes.and_then(|bytes| journal.write(&file, &bytes)).map_err(|why| journal.refused(why))?;
        Ok(found)
    }

    /// Writes a file whole or not at all.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let (partial, path) = (self.folder.join(format!("{name}.partial")), self.folder.join(name));
        let written = std::fs::File::create(&partial).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        let placed = written.and_then(|()| std::fs::rename(&partial, &path));
        placed.map_err(|error| format!("`{}` cannot be written: {error}", path.display()))
    }

    fn refused(&self, why: String) -> CompressError {
        CompressError::Journal { folder: self.folder.display().to_string(), why }
    }
}

/// Removes the folder of a compression that is complete; what else lies there stays.
///
/// # Errors
/// What the file system gives.
pub fn forget(folder: &Path) -> std::io::Result<()> {
    if !folder.join(OWNER).exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let ours = path
            .extension()
            .is_some_and(|e| ["npz", "json", "txt", "partial"].iter().any(|known| e == *known));
        if ours {
            std::fs::remove_file(path)?;
        }
    }
    // Fails where something else lies there.
    let _ = std::fs::remove_dir(folder);
    Ok(())
}

/// What decides a compression, a line each.
fn owner(
    graph: &Graph,
    (data, preprocess): (&Dataset, &Preprocess),
    options: &Options,
) -> Result<String, CompressError> {
    // Each option is named, so that a new one is thought of here.
    let Options {
        max_drop,
        max_latency,
        max_bytes,
        file_size: _,
        table,
        prefer,
        threads,
        seed,
        batch,
        isa,
        fewer_bits,
        recipe,
        training,
        checkpoint: _,
        robust,
    } = options;
    let mut text = format!(
        "version: {}\nmodel: {}\ndata: {}\n",
        env!("CARGO_PKG_VERSION"),
        fingerprint(graph, ""),
        of_samples(data, preprocess)?
    );
    if let Some(training) = training {
        let Training { data, epochs, batch, rate, features, average, swa, augment } = training;
        text += &format!("samples to train on: {}\n", of_samples(data, preprocess)?);
        text += &format!("training: {epochs} {batch} {rate} {features} {average} {swa} {augment:?}\n");
    }
    text += &format!(
        "budget: {max_drop} {robust:?}\nbounds: {max_latency:?} {max_bytes:?}\npreference: {prefer:?} {fewer_bits}\nseed: {seed}\n\
         threads and batch: {threads} {batch} {isa:?}\n\
         recipe: {}\ntimes: {}\n",
        hash(&format!("{recipe:?}")),
        hash(&format!("{table:?}"))
    );
    Ok(text)
}

/// A data set by its size, its labels and some of its samples.
fn of_samples(data: &Dataset, preprocess: &Preprocess) -> Result<String, CompressError> {
    let stride = (data.len() / SAMPLES).max(1);
    let some: Vec<usize> = (0..data.len()).step_by(stride).take(SAMPLES).collect();
    let mut hasher = DefaultHasher::new();
    data.labels().hash(&mut hasher);
    format!("{preprocess:?}").hash(&mut hasher);
    for (name, tensor) in data.batch(&some, preprocess)?.inputs {
        name.hash(&mut hasher);
        tensor.bytes().hash(&mut hasher);
    }
    Ok(format!("{} {:016x}", data.len(), hasher.finish()))
}

fn hash(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// A name that follows from a graph and more.
pub(crate) fn fingerprint(graph: &Graph, more: &str) -> String {
    let mut hasher = DefaultHasher::new();
    more.hash(&mut hasher);
    for (id, value) in graph.values() {
        (&value.name, value.ty.to_string()).hash(&mut hasher);
        if let Some(tensor) = graph.const_value(id) {
            tensor.bytes().hash(&mut hasher);
        }
    }
    for (_, node) in graph.nodes() {
        format!("{node:?}").hash(&mut hasher);
    }
    format!("{:?}", graph.outputs()).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::measure::LayerProfile;
    use crate::testing::Silent;
    use crate::tests::{cnn, dataset};
    use crate::{Bound, Outcome, Progress, compress};

    /// Stops when so many parts of the work have begun.
    struct Until(AtomicUsize);

    impl Progress for Until {
        fn stage(&self, _: &str, _: Option<u64>) {
            let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        }
        fn advance(&self, _: u64) {}
        fn cancelled(&self) -> bool {
            self.0.load(Ordering::Relaxed) == 0
        }
    }

    /// What lies in a folder, by name.
    fn kept(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        paths.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
    }

    fn told(outcome: &Outcome) -> (String, String) {
        (sora_ir::text::print(&outcome.graph), format!("{:?}", outcome.steps))
    }

    #[test]
    fn what_was_measured_before_an_interruption_decides_behind_it() {
        let (graph, data) = (cnn(), dataset(300, 1.0, true));
        for max_latency in [None, Some(Bound::Share(0.9))] {
            let run = |folder: &Path, progress: &dyn Progress| {
                let checkpoint = Some(folder.to_owned());
                let options = Options { max_latency, checkpoint, ..Options::default() };
                compress(&graph, &data, &Preprocess::default(), &options, progress)
            };
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path();
            let (mut known, mut stages) = (BTreeMap::new(), 5);
            // Interrupted again and again, each time a little later.
            let whole = loop {
                stages += 2;
                let found = run(folder, &Until(stages.into()));
                let now = kept(folder);
                assert!(known.iter().all(|(path, bytes)| now.get(path) == Some(bytes)));
                known = now;
                match found {
                    Ok(whole) => break whole,
                    Err(error) => assert!(matches!(error, CompressError::Cancelled), "{error}"),
                }
            };
            // Everything that was decided by time is known, so nothing is measured again.
            assert!(told(&run(folder, &Silent).unwrap()) == told(&whole));
            assert!(kept(folder) == known && known.len() > 2, "{:?}", known.keys());
        }
    }

    #[test]
    fn times_in_the_journal_are_those_that_decide() {
        let (graph, data, folder) = (cnn(), dataset(300, 1.0, true), tempfile::tempdir().unwrap());
        let run = || {
            let checkpoint = Some(folder.path().to_owned());
            let options = Options { max_drop: 1.0, checkpoint, ..Options::default() };
            compress(&graph, &data, &Preprocess::default(), &options, &Silent).unwrap()
        };
        // Whatever this machine says: every layer is told to take a hundredth of its time in 8 bits, or a hundred times as much.
        for (factor, faster) in [(0.01, true), (100.0, false)] {
            forget(folder.path()).unwrap();
            run();
            for (path, bytes) in kept(folder.path()) {
                if serde_json::from_slice::<f64>(&bytes).is_ok() {
                    std::fs::write(&path, format!("{factor}")).unwrap();
                }
                let Ok(mut profile) = serde_json::from_slice::<LayerProfile>(&bytes) else { continue };
                for (times, excess) in profile.times.iter_mut().zip(&mut profile.excess) {
                    let before = times.before.unwrap_or(0.0).max(0.01);
                    times.after = times.before.map(|_| factor * before);
                    *excess = (factor - 1.0) * before;
                }
                std::fs::write(path, serde_json::to_vec(&profile).unwrap()).unwrap();
            }
            let integers = run().graph.nodes().any(|(_, node)| node.op.name() == "QuantizeLinear");
            assert_eq!(integers, faster);
        }
    }
}
