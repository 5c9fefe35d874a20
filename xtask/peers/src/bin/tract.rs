//! Times a model in tract.

use std::error::Error;
use std::hint::black_box;

use peers::{Args, Start, floats, integers, serve};
use tract_linalg::multithread::{Executor, set_default_executor};
use tract_onnx::prelude::*;

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse()?;
    if args.threads > 1 {
        set_default_executor(Executor::multithread(args.threads));
    }
    let start = Start::now();
    let model = tract_onnx::onnx().model_for_path(&args.model)?.into_optimized()?;
    let mut inputs: TVec<TValue> = tvec!();
    for (i, outlet) in model.inputs.iter().enumerate() {
        let fact = model.input_fact(i)?;
        let shape = fact.shape.as_concrete().ok_or("an input with an open extent")?.to_vec();
        let count = shape.iter().product();
        let tensor: Tensor = if fact.datum_type == i64::datum_type() {
            let values = integers(&model.node(outlet.node).name, count);
            tract_ndarray::ArrayD::from_shape_vec(shape, values)?.into()
        } else {
            tract_ndarray::ArrayD::from_shape_vec(shape, floats(count))?.into()
        };
        inputs.push(tensor.into());
    }
    let model = model.into_runnable()?;
    serve(&start, || {
        black_box(model.run(inputs.clone())?);
        Ok(())
    })
}
