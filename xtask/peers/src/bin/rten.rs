//! Times a model in rten.

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;

use peers::{Args, Start, floats, integers, serve};
use rten::{DataType, Dimension, ModelOptions, RunOptions, ThreadPool, Value, ValueOrView, ValueType};
use rten_tensor::Tensor;

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse()?;
    let start = Start::now();
    let model = ModelOptions::with_all_ops().prepack_weights(true).load_file(&args.model)?;
    let pool = ThreadPool::with_num_threads(args.threads);
    let options = RunOptions::default().with_thread_pool(Some(Arc::new(pool)));
    let mut inputs: Vec<_> = Vec::new();
    for &id in model.input_ids() {
        let info = model.node_info(id).ok_or("an input without a description")?;
        let shape: Vec<usize> = info
            .shape()
            .ok_or("an input without a shape")?
            .iter()
            .map(|extent| if let Dimension::Fixed(n) = extent { *n as usize } else { 1 })
            .collect();
        let count = shape.iter().product();
        let value: Value = match info.dtype() {
            // It narrows 64-bit integers to 32 when it loads a model.
            Some(ValueType::Tensor(DataType::Int32)) => {
                let values = integers(info.name().unwrap_or_default(), count);
                Tensor::from_data(&shape[..], values.iter().map(|&v| v as i32).collect::<Vec<_>>()).into()
            }
            _ => Tensor::from_data(&shape[..], floats(count)).into(),
        };
        inputs.push((id, value));
    }
    let views: Vec<(_, ValueOrView)> = inputs.iter().map(|(id, value)| (*id, value.as_view().into())).collect();
    serve(&start, || {
        black_box(model.run(views.clone(), model.output_ids(), Some(options.clone()))?);
        Ok(())
    })
}
