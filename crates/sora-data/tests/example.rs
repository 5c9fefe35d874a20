//! The example's test pictures, when they are there.

use std::path::Path;

use sora_data::{Dataset, OpenOptions, Preprocess, SplitOptions, split};

#[test]
fn fashion_mnist_opens_and_divides() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/fashion-mnist/test");
    if !folder.exists() {
        return;
    }
    let data = Dataset::open(&folder, &OpenOptions::default()).unwrap();
    assert_eq!(data.len(), 10_000);
    data.check_labels(10).unwrap();
    let model = [None, Some(28), Some(28), Some(1)];
    let pre = Preprocess::default().infer(&model, &data.sample_kind()).unwrap();
    let parts = split(data.len(), data.labels(), &SplitOptions::default()).unwrap();
    assert_eq!([parts.calibration.len(), parts.decision.len(), parts.report.len()], [1000, 4000, 5000]);
    let mut seen = 0;
    for batch in data.batches(&parts.report, 256, &pre) {
        let batch = batch.unwrap();
        let input = &batch.inputs[0].1;
        assert_eq!(input.shape(), [batch.len, 28, 28, 1]);
        assert!(input.as_slice::<f32>().unwrap().iter().all(|v| (0.0..=1.0).contains(v)));
        seen += batch.len;
    }
    assert_eq!(seen, 5000);
}
