//! What an interrupted compression has done, so that the same one need not do it again: its trainings, and what it decided by time.
//!
//! A folder holds a file for each training, under a name that follows from all that decides it: where a decision by time comes out
//! otherwise than before, what was trained behind it is simply not found.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};

use sora_data::{Dataset, Preprocess};
use sora_ir::Graph;
use sora_train::Checkpoint;

use crate::{CompressError, Options};

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

    /// A number that was measured before under this name, or is measured now.
    pub(crate) fn measured(
        &self,
        name: &str,
        measure: impl FnOnce() -> Result<f64, CompressError>,
    ) -> Result<f64, CompressError> {
        let file = format!("{name}.txt");
        let known = std::fs::read_to_string(self.folder.join(&file)).ok();
        if let Some(number) = known.and_then(|text| text.trim().parse().ok()) {
            return Ok(number);
        }
        let number = measure()?;
        self.write(&file, format!("{number}\n").as_bytes()).map_err(|why| self.refused(why))?;
        Ok(number)
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
        let ours = path.extension().is_some_and(|e| e == "npz" || e == "txt" || e == "partial");
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
        text += &format!("samples to train on: {}\n", of_samples(&training.data, preprocess)?);
        text += &format!("training: {} {} {}\n", training.epochs, training.batch, training.rate);
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
