//! A training in the middle, as bytes.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sora_data::npz;
use sora_tensor::Tensor;

use crate::schedule::Plateau;
use crate::{Epoch, TrainError};

/// All that decides how a training goes on: the same checkpoint continues bit for bit.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// What [`crate::Trainer::state`] gives.
    pub state: Vec<(String, Tensor)>,
    /// The state of the best epoch so far, where one is looked for; else none.
    pub best: Vec<(String, Tensor)>,
    /// The mean of the weights of epochs, where it is taken.
    pub mean: Vec<(String, Tensor)>,
    /// How far the training is.
    pub progress: Progress,
}

/// How far a training is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// What the training was asked to do; another training refuses to continue from here.
    pub plan: String,
    /// Epochs that are complete.
    pub epoch: u32,
    /// Batches of the next epoch that are done.
    pub batch: u64,
    /// Sums over these batches.
    pub(crate) sums: Vec<u64>,
    /// What the complete epochs came to.
    pub history: Vec<Epoch>,
    /// The epoch, from 0, whose validation was best.
    pub best: Option<u32>,
    /// What a schedule that follows validation has seen.
    #[serde(default)]
    pub(crate) plateau: Plateau,
    /// Seconds spent.
    pub seconds: f64,
}

const PROGRESS: &str = "progress.json";
const STATE: &str = "state:";
const BEST: &str = "best:";
const MEAN: &str = "mean:";

impl Checkpoint {
    /// The checkpoint as a `.npz` file.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] when the state is larger than such files may be.
    pub fn to_bytes(&self) -> Result<Vec<u8>, TrainError> {
        let failed = |why: String| TrainError::Checkpoint(why);
        let progress = serde_json::to_vec(&self.progress).map_err(|e| failed(e.to_string()))?;
        let progress = Tensor::vector(&progress);
        let named = |prefix: &str, state: &[(String, Tensor)]| -> Vec<(String, Tensor)> {
            state.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())).collect()
        };
        let mut arrays = vec![(PROGRESS.to_owned(), progress)];
        arrays.extend(named(STATE, &self.state));
        arrays.extend(named(BEST, &self.best));
        arrays.extend(named(MEAN, &self.mean));
        let arrays: Vec<(&str, &Tensor)> = arrays.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let mut bytes = Vec::new();
        npz::write(&mut bytes, &arrays).map_err(|e| failed(e.to_string()))?;
        Ok(bytes)
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// [`TrainError::Data`] for a damaged file, [`TrainError::Checkpoint`] for one that holds something else.
    pub fn load(path: &Path) -> Result<Self, TrainError> {
        let mut arrays = npz::read(path, 8 << 30)?;
        let at = arrays.iter().position(|(name, _)| name == PROGRESS);
        let at = at.ok_or_else(|| TrainError::Checkpoint("the file is none".to_owned()))?;
        let progress = serde_json::from_slice(arrays.remove(at).1.bytes());
        let progress = progress.map_err(|e| TrainError::Checkpoint(e.to_string()))?;
        let below = |prefix: &str| -> Vec<(String, Tensor)> {
            let strip = |(name, tensor): &(String, Tensor)| {
                Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
            };
            arrays.iter().filter_map(strip).collect()
        };
        Ok(Checkpoint { state: below(STATE), best: below(BEST), mean: below(MEAN), progress })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_comes_back() {
        let state = vec![
            ("a.weight".to_owned(), Tensor::from_slice(&[2, 1], &[1.5f32, -0.0]).unwrap()),
            ("train/step".to_owned(), Tensor::scalar(7i64)),
        ];
        let epoch = Epoch { loss: 0.1 + 0.2, validation_loss: Some(1e-300), ..Epoch::default() };
        let sums = [0.1f64, f64::MIN_POSITIVE, 3.0].map(f64::to_bits).to_vec();
        let progress = Progress {
            plan: "p".into(),
            epoch: 1,
            batch: 3,
            sums,
            history: vec![epoch],
            best: Some(0),
            plateau: Plateau::default(),
            seconds: 2.5,
        };
        let checkpoint = Checkpoint { best: state.clone(), mean: state[..1].to_vec(), state, progress };
        let folder = std::env::temp_dir().join(format!("sora-checkpoint-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("c.npz");
        let bytes = checkpoint.to_bytes().unwrap();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), checkpoint);
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(matches!(Checkpoint::load(&path), Err(TrainError::Data(_))));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
