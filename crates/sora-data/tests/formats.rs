//! Every format, written to a folder and opened again; and what happens when it is broken.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::{Compression, write::GzEncoder};
use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use sora_data::{DataError, Dataset, ErrorKind, OpenOptions, Preprocess, SampleKind, npz};
use sora_tensor::{DType, Tensor};

fn open(path: impl AsRef<Path>) -> Result<Dataset, DataError> {
    Dataset::open(path, &OpenOptions::default())
}

fn kind(path: impl AsRef<Path>) -> ErrorKind {
    open(path).unwrap_err().kind
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn idx(shape: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, u8::try_from(shape.len()).unwrap()];
    shape.iter().for_each(|d| bytes.extend(d.to_be_bytes()));
    bytes.extend(data);
    bytes
}

fn write_idx(folder: &Path, name: &str, pictures: u32, labels: &[u8]) -> PathBuf {
    let pixels: Vec<u8> = (0..pictures * 6).map(|v| (v % 256) as u8).collect();
    let images = folder.join(format!("{name}-images-idx3-ubyte.gz"));
    fs::write(&images, gzip(&idx(&[pictures, 2, 3], &pixels))).unwrap();
    let count = u32::try_from(labels.len()).unwrap();
    fs::write(folder.join(format!("{name}-labels-idx1-ubyte")), idx(&[count], labels)).unwrap();
    images
}

#[test]
fn idx_pairs_open_by_folder_and_by_file() {
    let dir = folder();
    let images = write_idx(dir.path(), "t10k", 3, &[2, 0, 1]);
    for path in [dir.path(), &images] {
        let data = open(path).unwrap();
        assert_eq!((data.len(), data.labels()), (3, Some(&[2, 0, 1][..])));
        assert_eq!(data.sample_kind(), SampleKind::Array { dtype: DType::U8, shape: vec![2, 3] });
    }
    write_idx(dir.path(), "train", 1, &[0]);
    let error = open(dir.path()).unwrap_err();
    assert!(error.what.contains("2 IDX pairs") && error.hint.contains("t10k-images"), "{error}");

    fs::remove_file(dir.path().join("t10k-labels-idx1-ubyte")).unwrap();
    assert_eq!(kind(&images), ErrorKind::Label);
    write_idx(dir.path(), "t10k", 3, &[2, 0]);
    assert_eq!(kind(&images), ErrorKind::Label);
}

#[test]
fn idx_truncated_anywhere_is_an_error() {
    let dir = folder();
    let images = write_idx(dir.path(), "a", 3, &[2, 0, 1]);
    let whole = fs::read(&images).unwrap();
    for cut in 0..whole.len() {
        fs::write(&images, &whole[..cut]).unwrap();
        assert_eq!(kind(&images), ErrorKind::Malformed, "{cut} bytes");
    }
    // A small file that unpacks to far more than its header promises.
    let bomb = [idx(&[1, 2, 3], &[0; 6]), vec![0; 1 << 24]].concat();
    fs::write(&images, gzip(&bomb)).unwrap();
    assert!(open(&images).unwrap_err().what.contains("more than the 6 bytes"));
    // A header that promises far more than there is.
    fs::write(&images, gzip(&idx(&[1 << 16, 1 << 8, 1 << 8], &[0; 6]))).unwrap();
    assert_eq!(kind(&images), ErrorKind::Malformed);
    fs::write(&images, gzip(&idx(&[u32::MAX, u32::MAX, u32::MAX], &[0; 6]))).unwrap();
    assert_eq!(kind(&images), ErrorKind::TooLarge);
}

#[test]
fn class_names_come_from_labels_txt() {
    let dir = folder();
    write_idx(dir.path(), "a", 2, &[1, 0]);
    fs::write(dir.path().join("labels.txt"), "shirt\nshoe\n").unwrap();
    let data = open(dir.path()).unwrap();
    assert_eq!(data.classes().unwrap(), ["shirt", "shoe"]);
    fs::write(dir.path().join("labels.txt"), "shirt\n").unwrap();
    let error = open(dir.path()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Label);
    assert!(error.where_.contains("sample 0") && error.what.contains("labels.txt"), "{error}");
}

fn write_npz(path: &Path, arrays: &[(&str, &Tensor)]) {
    npz::write(File::create(path).unwrap(), arrays).unwrap();
}

#[test]
fn npz_has_one_input_or_several_named_ones() {
    let dir = folder();
    let path = dir.path().join("data.npz");
    let x = Tensor::from_slice(&[3, 2], &[1f32, 2., 3., 4., 5., 6.]).unwrap();
    let ids = Tensor::from_slice(&[3, 2], &[7i64, 8, 9, 10, 11, 12]).unwrap();
    let y = Tensor::vector(&[0i32, 1, 1]);
    write_npz(&path, &[("x", &x), ("y", &y)]);
    let data = open(&path).unwrap();
    let batch = data.batch(&[2, 0], &Preprocess::default()).unwrap();
    assert_eq!((batch.inputs[0].0.as_deref(), batch.labels), (None, vec![1, 0]));
    assert_eq!(batch.inputs[0].1.to_f32s(), [5., 6., 1., 2.]);

    write_npz(&path, &[("input_ids", &ids), ("mask", &x), ("y", &y)]);
    let data = open(&path).unwrap();
    let batch = data.batch(&[1], &Preprocess::default()).unwrap();
    assert_eq!(
        batch.inputs[0],
        (Some("input_ids".into()), Tensor::from_slice(&[1, 2], &[9i64, 10]).unwrap())
    );
    assert_eq!(batch.inputs[1].0.as_deref(), Some("mask"));
    assert_eq!(data.batch(&[1], &"scale=2".parse().unwrap()).unwrap_err().kind, ErrorKind::Usage);
    assert_eq!(data.batch(&[3], &Preprocess::default()).unwrap_err().kind, ErrorKind::Usage);

    write_npz(&path, &[("x", &x)]);
    assert_eq!(open(&path).unwrap().labels(), None);
}

#[test]
fn npz_with_bad_contents_is_an_error() {
    let dir = folder();
    let path = dir.path().join("data.npz");
    let x = Tensor::from_slice(&[2, 1], &[1f32, 2.]).unwrap();
    let y = Tensor::vector(&[0i64, 1]);
    let check = |arrays: &[(&str, &Tensor)], expected, part: &str| {
        write_npz(&path, arrays);
        let error = open(&path).unwrap_err();
        assert_eq!(error.kind, expected, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    let nan = Tensor::from_slice(&[2, 1], &[1f64, f64::INFINITY]).unwrap();
    check(&[("x", &nan), ("y", &y)], ErrorKind::NotFinite, "sample 1");
    check(&[("x", &x), ("y", &Tensor::vector(&[0.5f32, 1.0]))], ErrorKind::Label, "0.5 is not an integer");
    check(&[("x", &x), ("y", &Tensor::vector(&[0i8, -1]))], ErrorKind::Label, "sample 1");
    check(&[("x", &x), ("y", &Tensor::vector(&[0u8; 3]))], ErrorKind::Label, "2 samples, but 3 labels");
    check(&[("x", &x), ("y", &nan.reshape(&[1, 2]).unwrap())], ErrorKind::Label, "argmax");
    check(&[("y", &y)], ErrorKind::Empty, "no input");
    check(&[("x", &Tensor::zeros(DType::F32, &[0, 4]).unwrap())], ErrorKind::Empty, "no samples");
    check(&[("a", &x), ("b", &Tensor::vector(&[1f32]))], ErrorKind::Mismatch, "a[2, 1], b[1]");
    check(&[("x", &Tensor::scalar(1f32))], ErrorKind::Mismatch, "x[]");
    let options = OpenOptions { max_bytes: 10, ..OpenOptions::default() };
    assert_eq!(Dataset::open(&path, &options).unwrap_err().kind, ErrorKind::TooLarge);
}

#[test]
fn csv_opens_plain_and_compressed() {
    let dir = folder();
    let text = "label,a,b\n1,0.5,2\n0,3,4\n";
    let (plain, packed) = (dir.path().join("t.csv"), dir.path().join("t.csv.gz"));
    fs::write(&plain, text).unwrap();
    fs::write(&packed, gzip(text.as_bytes())).unwrap();
    for path in [&plain, &packed] {
        let data = open(path).unwrap();
        assert_eq!(data.labels(), Some(&[1, 0][..]));
        let batch = data.batch(&[0, 1], &Preprocess::default()).unwrap();
        assert_eq!(batch.inputs[0].1, Tensor::from_slice(&[2, 2], &[0.5f32, 2., 3., 4.]).unwrap());
    }
    let whole = gzip(text.as_bytes());
    for cut in 0..whole.len() {
        fs::write(&packed, &whole[..cut]).unwrap();
        assert!(open(&packed).is_err(), "{cut} bytes");
    }
    let options = OpenOptions { max_bytes: 12, ..OpenOptions::default() };
    assert_eq!(Dataset::open(&plain, &options).unwrap_err().kind, ErrorKind::TooLarge);
    fs::write(&packed, gzip(&vec![b'1'; 1 << 26])).unwrap();
    assert_eq!(kind(&packed), ErrorKind::Malformed);
}

fn write_pictures(root: &Path) {
    for (class, level) in [("cat", 10u8), ("ant", 200)] {
        fs::create_dir_all(root.join(class)).unwrap();
        let rgb = RgbImage::from_fn(6, 4, |x, _| Rgb([level, x as u8, 0]));
        rgb.save(root.join(class).join("b.png")).unwrap();
        let gray = GrayImage::from_pixel(8, 5, Luma([level]));
        gray.save_with_format(root.join(class).join("a.JPG"), ImageFormat::Jpeg).unwrap();
    }
    fs::write(root.join("cat").join("notes.txt"), "no picture").unwrap();
}

#[test]
fn picture_folders_are_numbered_by_sorted_name() {
    let dir = folder();
    write_pictures(dir.path());
    let data = open(dir.path()).unwrap();
    assert_eq!(data.classes().unwrap(), ["ant", "cat"]);
    assert_eq!(data.labels(), Some(&[0, 0, 1, 1][..]));
    assert_eq!(data.to_string(), "4 samples of picture files in 2 classes");

    let model = [None, Some(3), Some(4), Some(6)];
    let pre = Preprocess::default().infer(&model, &data.sample_kind()).unwrap();
    let pre = Preprocess { scale: "1".parse().ok(), ..pre };
    let batch = data.batch(&[1, 3, 0], &pre).unwrap();
    assert_eq!(batch.labels, [0, 1, 0]);
    let values = batch.inputs[0].1.to_f32s();
    assert_eq!(batch.inputs[0].1.shape(), [3, 3, 4, 6]);
    assert_eq!(values[..24], [200.0; 24]);
    assert_eq!(values[24..30], [0., 1., 2., 3., 4., 5.]);
    assert_eq!(values[72..96], [10.0; 24]);

    let error = data.batch(&[0, 1], &Preprocess::default()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Mismatch);
    assert!(error.where_.contains("b.png") && error.hint.contains("resize"), "{error}");

    fs::write(dir.path().join("labels.txt"), "cat\ndog\nant").unwrap();
    assert_eq!(open(dir.path()).unwrap().labels(), Some(&[2, 2, 0, 0][..]));
    fs::write(dir.path().join("labels.txt"), "dog\nant").unwrap();
    assert!(open(dir.path()).unwrap_err().what.contains("`cat`"));
}

#[test]
fn batches_cover_all_indices_and_end_at_an_error() {
    let dir = folder();
    write_pictures(dir.path());
    let data = open(dir.path()).unwrap();
    let pre: Preprocess = "resize=3x3,color=gray,layout=nchw".parse().unwrap();
    let labels = |indices: &[usize], size| {
        let batches = data.batches(indices, size, &pre);
        batches.map(|b| b.map(|b| b.labels)).collect::<Result<Vec<_>, _>>()
    };
    assert_eq!(labels(&[3, 2, 1, 0, 3], 2).unwrap(), [vec![1, 1], vec![0, 0], vec![1]]);
    assert_eq!(labels(&[], 2).unwrap(), Vec::<Vec<usize>>::new());
    let mut dropped = data.batches(&[0; 100], 1, &pre);
    assert!(dropped.next().unwrap().is_ok());
    drop(dropped);

    fs::write(dir.path().join("ant").join("b.png"), "broken").unwrap();
    let mut batches = data.batches(&[0, 1, 2, 3], 1, &pre);
    assert!(batches.next().unwrap().is_ok());
    let error = batches.next().unwrap().unwrap_err();
    assert!(error.where_.ends_with("b.png"), "{error}");
    assert!(batches.next().is_none());
}

#[test]
fn what_is_no_data_is_an_error() {
    let dir = folder();
    assert_eq!(kind(dir.path().join("missing")), ErrorKind::Missing);
    assert_eq!(kind(dir.path()), ErrorKind::Empty);
    fs::create_dir(dir.path().join("class")).unwrap();
    assert_eq!(kind(dir.path()), ErrorKind::Empty);
    for (name, expected) in [
        ("a.txt", ErrorKind::Usage),
        ("a.npz", ErrorKind::Malformed),
        ("a.csv", ErrorKind::Empty),
        ("a.csv.gz", ErrorKind::Malformed),
        ("a-images-idx3-ubyte", ErrorKind::Label),
    ] {
        fs::write(dir.path().join(name), "").unwrap();
        assert_eq!(kind(dir.path().join(name)), expected, "{name}");
    }
}

#[test]
fn preprocessing_files_are_read() {
    let dir = folder();
    let path = dir.path().join("pre.toml");
    fs::write(
        &path,
        "resize = 256\ncrop = \"224x224\"\nscale = \"1/255\"\nmean = [0.5]\nlayout = \"nchw\"\n",
    )
    .unwrap();
    let read = Preprocess::from_argument(path.to_str().unwrap()).unwrap();
    assert_eq!(read, "resize=256,crop=224,scale=1/255,mean=0.5,layout=nchw".parse().unwrap());
    fs::write(&path, "size = 256\n").unwrap();
    let error = Preprocess::load(&path).unwrap_err();
    assert!(error.what.contains("size") && error.hint.contains("resize"), "{error}");
    fs::write(&path, "resize = 0\n").unwrap();
    assert!(Preprocess::load(&path).is_err());
    assert_eq!(Preprocess::load(&dir.path().join("no.toml")).unwrap_err().kind, ErrorKind::Missing);
}
