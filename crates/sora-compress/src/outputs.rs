//! What a network says about every sample of a dataset.

use sora_data::{Dataset, Preprocess};
use sora_exec::{Options, Session};
use sora_ir::Graph;
use sora_tensor::{Buffer, Tensor};

use crate::feed::Feed;
use crate::{CompressError, Progress};

/// Samples that run at once where the network leaves its batch open.
const BATCH: usize = 64;

/// The outputs of `graph` for all samples of `data`, in order, joined along the first axis.
///
/// # Errors
/// A [`CompressError`] when the data does not fit the network, an output has no axis of samples, or the caller
/// cancels.
pub fn outputs(
    graph: &Graph,
    data: &Dataset,
    preprocess: &Preprocess,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Vec<(String, Tensor)>, CompressError> {
    let feed = Feed::new(graph, data, preprocess)?;
    let session = Session::new(graph.clone(), options.clone())?;
    let all: Vec<usize> = (0..data.len()).collect();
    progress.stage("Running", Some(all.len() as u64));
    let mut joined: Vec<(Tensor, Vec<u8>)> = Vec::new();
    let names: Vec<String> = graph.outputs().iter().map(|o| o.name.clone()).collect();
    for fed in feed.batches(&all, BATCH) {
        if progress.cancelled() {
            return Err(CompressError::Cancelled);
        }
        let fed = fed?;
        for (i, (name, tensor)) in session.run(&fed.refs())?.into_iter().enumerate() {
            let batch = tensor.shape().first().copied().filter(|&n| n >= fed.len && n > 0);
            let row = batch.map(|n| tensor.byte_len() / n).ok_or_else(|| {
                let found = sora_ir::TensorType::of(&tensor).to_string();
                CompressError::Output { output: name, found }
            })?;
            if joined.len() <= i {
                joined.push((tensor.clone(), Vec::new()));
            }
            joined[i].1.extend_from_slice(&tensor.bytes()[..fed.len * row]);
        }
        progress.advance(fed.len as u64);
    }
    let join = |(name, (like, bytes)): (String, (Tensor, Vec<u8>))| {
        let shape = [&[data.len()], &like.shape()[1..]].concat();
        let tensor = Tensor::new(like.dtype(), &shape, Buffer::copy_of(&bytes));
        let found = format!("{} bytes in batches of changing shape", bytes.len());
        let tensor = tensor.map_err(|_| CompressError::Output { output: name.clone(), found })?;
        Ok((name, tensor))
    };
    names.into_iter().zip(joined).map(join).collect()
}
