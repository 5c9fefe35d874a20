//! How many pictures of 32×32 a second the data pipeline decodes and augments: flip, crop with padding, and jitter of
//! brightness, contrast and saturation. `pipeline.py` measures the same with `tf.data`.
//!
//! ```text
//! cargo run --release -p sora-data --example pipeline -- write FOLDER
//! cargo run --release -p sora-data --example pipeline -- run FOLDER WORKERS
//! python crates/sora-data/examples/pipeline.py FOLDER WORKERS
//! ```

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use sora_data::{Augmentation, Dataset, Loader, LoaderOptions, OpenOptions, Preprocess};

const PICTURES: u64 = 10_000;
const EPOCHS: u32 = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", folder] => write(Path::new(folder)),
        ["run", folder, workers] => run(folder, workers.parse()?),
        _ => Err("give `write FOLDER` or `run FOLDER WORKERS`".into()),
    }
}

/// Writes pictures of soft colours with grain, as photographs have, in ten classes.
fn write(folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut random = fastrand::Rng::with_seed(1);
    for number in 0..PICTURES {
        let class = folder.join(format!("class{}", number % 10));
        std::fs::create_dir_all(&class)?;
        let waves: [[f32; 4]; 3] = std::array::from_fn(|_| std::array::from_fn(|_| random.f32()));
        let picture = image::RgbImage::from_fn(32, 32, |x, y| {
            image::Rgb(waves.map(|[level, right, down, start]| {
                let wave = (x as f32 * right * 0.4 + y as f32 * down * 0.4 + start * 6.0).sin();
                (level * 255.0 + wave * 50.0 + random.f32() * 8.0).clamp(0.0, 255.0) as u8
            }))
        });
        picture.save(class.join(format!("{number:05}.png")))?;
    }
    Ok(())
}

fn run(folder: &str, workers: usize) -> Result<(), Box<dyn Error>> {
    let data = Dataset::open(folder, &OpenOptions::default())?;
    let augment =
        ["horizontal_flip", "random_crop", "color_jitter"].map(|name| Augmentation::new(name, &[].into()));
    let augment = augment.into_iter().collect::<Result<Vec<_>, _>>()?;
    let preprocess: Preprocess = "layout=nhwc,scale=1/255,mean=0.5,std=0.25".parse()?;
    let indices: Vec<usize> = (0..data.len()).collect();
    let options = LoaderOptions { workers, augment, prefetch: 2 * workers, ..LoaderOptions::default() };
    let loader = Loader::new(&data, &indices, None, &preprocess, options)?;
    let mut best = 0f64;
    for epoch in 0..EPOCHS {
        let begun = Instant::now();
        let mut samples = 0;
        for batch in loader.epoch(epoch, 0) {
            samples += batch?.len;
        }
        best = best.max(samples as f64 / begun.elapsed().as_secs_f64());
    }
    println!("{best:.0}");
    Ok(())
}
