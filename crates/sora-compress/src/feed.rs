//! Carrying samples of a dataset to the inputs of a graph.

use sora_data::{Batches, Dataset, Preprocess, SampleKind};
use sora_exec::Session;
use sora_ir::{Graph, TensorType, ValueId};
use sora_tensor::{DType, Tensor};

use crate::{CompressError, Progress};

/// A dataset prepared for the inputs of one graph.
pub(crate) struct Feed {
    data: Dataset,
    preprocess: Preprocess,
    inputs: Vec<(String, TensorType)>,
    /// The graph's own batch size, where it has one.
    fixed: Option<usize>,
}

/// Inputs by name, whose first `len` samples count: the rest only fills a fixed batch.
pub(crate) struct Fed {
    /// Tensors by name.
    pub inputs: Vec<(String, Tensor)>,
    /// Samples that count.
    pub len: usize,
}

impl Fed {
    /// The inputs as sessions take them.
    pub(crate) fn refs(&self) -> Vec<(&str, &Tensor)> {
        self.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
    }
}

impl Feed {
    /// Prepares `data` for `graph`; what `preprocess` leaves open is inferred from the input's shape. The first
    /// sample is loaded, so that data that does not fit is refused here.
    ///
    /// # Errors
    /// [`CompressError::Data`], [`CompressError::MissingInput`] or [`CompressError::Input`] naming both sides.
    pub(crate) fn new(graph: &Graph, data: &Dataset, preprocess: &Preprocess) -> Result<Self, CompressError> {
        let input = |&id| (graph.value(id).name.clone(), graph.ty(id).clone());
        let inputs: Vec<(String, TensorType)> = graph.inputs().iter().map(input).collect();
        let preprocess = match (inputs.as_slice(), data.sample_kind()) {
            ([(_, ty)], kind @ (SampleKind::Files | SampleKind::Array { .. })) => {
                let model: Vec<Option<usize>> = ty.shape.iter().map(sora_ir::Dim::known).collect();
                preprocess.infer(&model, &kind)?
            }
            _ => preprocess.clone(),
        };
        let fixed = inputs.iter().find_map(|(_, ty)| ty.shape.first()?.known());
        let feed = Feed { data: data.clone(), preprocess, inputs, fixed };
        feed.batches(&[0], 1).next().transpose()?;
        Ok(feed)
    }

    /// The dataset.
    pub(crate) fn data(&self) -> &Dataset {
        &self.data
    }

    /// How its samples become inputs, with what was inferred.
    pub(crate) fn preprocess(&self) -> &Preprocess {
        &self.preprocess
    }

    /// The graph's own batch size, or `wanted` when it takes any.
    pub(crate) fn batch_size(&self, wanted: usize) -> usize {
        self.fixed.unwrap_or(wanted).max(1)
    }

    /// Batches of the samples `indices`, of `size` samples unless the graph's batch is fixed.
    pub(crate) fn batches(
        &self,
        indices: &[usize],
        size: usize,
    ) -> impl Iterator<Item = Result<Fed, CompressError>> {
        let size = self.batch_size(size);
        let mut padded = indices.to_vec();
        if let (Some(_), Some(&last)) = (self.fixed, indices.last()) {
            padded.resize(indices.len().next_multiple_of(size), last);
        }
        Feeding {
            feed: self,
            batches: self.data.batches(&padded, size, &self.preprocess),
            left: indices.len(),
        }
    }

    /// Runs `session` over the samples `indices`, and calls `visit` with each value that it watches and the number of samples that
    /// count in it.
    ///
    /// # Errors
    /// [`CompressError::Cancelled`], the first error of `visit`, and whatever running the network gives.
    pub(crate) fn observe(
        &self,
        session: &Session,
        indices: &[usize],
        size: usize,
        progress: &dyn Progress,
        mut visit: impl FnMut(ValueId, &Tensor, usize) -> Result<(), CompressError>,
    ) -> Result<(), CompressError> {
        for fed in self.batches(indices, size) {
            if progress.cancelled() {
                return Err(CompressError::Cancelled);
            }
            let fed = fed?;
            let mut visited = Ok(());
            session.run_observed(&fed.refs(), &mut |value, tensor| {
                if visited.is_ok() {
                    visited = visit(value, tensor, fed.len);
                }
            })?;
            visited?;
            progress.advance(fed.len as u64);
        }
        Ok(())
    }

    fn fit(&self, given: Vec<(Option<String>, Tensor)>) -> Result<Vec<(String, Tensor)>, CompressError> {
        let single = given.len() == 1 && self.inputs.len() == 1;
        let take = |(name, ty): &(String, TensorType)| {
            let found = given.iter().find(|(n, _)| single || n.as_ref() == Some(name));
            let Some((_, tensor)) = found else {
                let describe = |(name, t): &(Option<String>, Tensor)| {
                    let name = name.as_ref().map_or("an unnamed input".to_owned(), |n| format!("`{n}`"));
                    format!("{name} ({})", TensorType::of(t))
                };
                let (input, expected) = (name.clone(), ty.to_string());
                return Err(CompressError::MissingInput {
                    input,
                    expected,
                    found: given.iter().map(describe).collect(),
                });
            };
            let convertible = ty.dtype != DType::Bool && tensor.dtype() != DType::Bool;
            let tensor = if convertible { tensor.cast(ty.dtype) } else { tensor.clone() };
            let found = TensorType::of(&tensor);
            if !ty.accepts(&found) {
                let (expected, found) = (ty.to_string(), found.to_string());
                return Err(CompressError::Input { input: name.clone(), expected, found });
            }
            Ok((name.clone(), tensor))
        };
        self.inputs.iter().map(take).collect()
    }
}

struct Feeding<'a> {
    feed: &'a Feed,
    batches: Batches,
    left: usize,
}

impl Iterator for Feeding<'_> {
    type Item = Result<Fed, CompressError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = match self.batches.next()? {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error.into())),
        };
        let len = batch.len.min(self.left);
        self.left -= len;
        Some(self.feed.fit(batch.inputs).map(|inputs| Fed { inputs, len }))
    }
}

/// The first `len` entries along the first axis.
pub(crate) fn head(tensor: &Tensor, len: usize) -> Result<Tensor, CompressError> {
    let Some((&first, rest)) = tensor.shape().split_first() else { return Ok(tensor.clone()) };
    if len >= first {
        return Ok(tensor.clone());
    }
    let bytes = tensor.byte_len() / first * len;
    let shape = [&[len], rest].concat();
    let data = sora_tensor::Buffer::copy_of(&tensor.bytes()[..bytes]);
    Ok(Tensor::new(tensor.dtype(), &shape, data)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(batch: impl Into<sora_ir::Dim>) -> Graph {
        let mut graph = Graph::new("g");
        let x = graph.input("x", TensorType::new(DType::F32, [batch.into(), 3usize.into()]));
        graph.output("y", x);
        graph
    }

    fn data(samples: usize) -> Dataset {
        let values: Vec<f32> = (0..samples * 3).map(|v| v as f32).collect();
        let x = Tensor::from_slice(&[samples, 3], &values).unwrap();
        Dataset::from_arrays(vec![(None, x)], None).unwrap()
    }

    #[test]
    fn every_sample_comes_once_whatever_the_batch() {
        for batch in [sora_ir::Dim::symbol("n"), 4usize.into(), 1usize.into()] {
            let feed = Feed::new(&graph(batch.clone()), &data(11), &Preprocess::default()).unwrap();
            let indices = [2, 3, 5, 7, 9, 10];
            let mut seen = Vec::new();
            for fed in feed.batches(&indices, 5) {
                let fed = fed.unwrap();
                let x = head(&fed.inputs[0].1, fed.len).unwrap();
                assert!(batch.known().is_none_or(|b| fed.inputs[0].1.shape()[0] == b));
                seen.extend(x.to_f32s().chunks(3).map(|s| s[0] as usize / 3));
            }
            assert_eq!(seen, indices);
        }
    }

    #[test]
    fn misfits_name_both_sides() {
        let x = Tensor::from_slice(&[2, 5], &[0f32; 10]).unwrap();
        let data =
            Dataset::from_arrays(vec![(Some("a".into()), x.clone()), (Some("b".into()), x)], None).unwrap();
        let error = Feed::new(&graph(1usize), &data, &Preprocess::default()).err().unwrap();
        assert!(
            matches!(&error, CompressError::MissingInput { input, found, .. } if input == "x" && found.len() == 2)
        );
        let x = Tensor::from_slice(&[2, 5], &[0f32; 10]).unwrap();
        let data = Dataset::from_arrays(vec![(None, x)], None).unwrap();
        let error = Feed::new(&graph(1usize), &data, &Preprocess::default()).err().unwrap();
        let text = error.to_string();
        assert!(text.contains('3') && text.contains('5'), "{text}");
    }
}
