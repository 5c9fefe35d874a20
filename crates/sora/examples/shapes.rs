//! What new input shapes cost a model that is loaded already: `shapes MODEL [SHAPES]…`.
//!
//! SHAPES are those of one run, `NAME=1x3x224x224` for each input, joined by commas; by default the batches 1 to 8. Prints
//! the time to load the model and to make the program for the first of them, with all weights packed, then the time to
//! make programs for the others.

use std::time::Instant;

use sora::Model;
use sora::exec::Options;

type Shapes = Vec<(String, Vec<usize>)>;

/// The shapes that an argument says.
fn parse(text: &str) -> Result<Shapes, Box<dyn std::error::Error>> {
    let one = |part: &str| {
        let (name, extents) = part.split_once('=').ok_or("a shape is written as NAME=1x3x224x224")?;
        Ok((name.to_owned(), extents.split('x').map(str::parse).collect::<Result<_, _>>()?))
    };
    text.split(',').map(one).collect()
}

/// The shapes of the model's inputs for a batch, with 1 for every other open extent.
fn of_batch(model: &Model, batch: usize) -> Shapes {
    let first = |(i, n)| if i == 0 { batch } else { n };
    let with = |shape: Vec<usize>| shape.into_iter().enumerate().map(first).collect();
    model.shapes_at_one().into_iter().map(|(name, shape)| (name.to_owned(), with(shape))).collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (path, rest) = arguments.split_first().ok_or("usage: shapes MODEL [SHAPES]…")?;
    let start = Instant::now();
    let model = Model::load(path)?;
    let read = start.elapsed();
    let shapes = match rest {
        [] => (1..9).map(|batch| of_batch(&model, batch)).collect(),
        rest => rest.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?,
    };
    let session = model.session(Options::default())?;
    let optimized = start.elapsed();
    let mut loaded = None;
    for shapes in &shapes {
        let begun = Instant::now();
        let named: Vec<_> = shapes.iter().map(|(name, shape)| (name.as_str(), shape.clone())).collect();
        session.program(&named)?;
        let took = begun.elapsed();
        let Some(loaded) = loaded else {
            let total = start.elapsed();
            println!(
                "load {total:.1?}: read {read:.1?}, optimized {:.1?}, planned and packed {took:.1?}",
                optimized - read
            );
            loaded = Some(total);
            continue;
        };
        let share = 100.0 * took.as_secs_f64() / loaded.as_secs_f64();
        println!(
            "{}: {took:.2?}, {share:.1} % of loading",
            named.iter().map(|(n, s)| format!("{n} {s:?}")).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(())
}
