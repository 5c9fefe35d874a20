//! The same pictures in every kind of data file give the same result.

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use common::{example, fail, succeed_json};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use image::GrayImage;
use serde_json::Value;
use sora::data::npz;
use sora::tensor::Tensor;

const SIDE: usize = 28;
const PIXELS: usize = SIDE * SIDE;
const COUNT: usize = 200;

/// The first pictures of the example with their classes.
fn pictures() -> (Vec<u8>, Vec<u8>) {
    let read = |name: &str, header: usize, size: usize| {
        let mut bytes = Vec::new();
        let file = fs::File::open(example(&format!("test/{name}"))).unwrap();
        std::io::Read::read_to_end(&mut GzDecoder::new(file), &mut bytes).unwrap();
        bytes[header..header + COUNT * size].to_vec()
    };
    (read("t10k-images-idx3-ubyte.gz", 16, PIXELS), read("t10k-labels-idx1-ubyte.gz", 8, 1))
}

fn write_npz(path: &Path, x: &Tensor, labels: &[u8]) {
    let mut bytes = std::io::Cursor::new(Vec::new());
    npz::write(&mut bytes, &[("x", x), ("y", &Tensor::vector(labels))]).unwrap();
    fs::write(path, bytes.into_inner()).unwrap();
}

fn write_idx(folder: &Path, x: &[u8], labels: &[u8]) {
    fs::create_dir(folder).unwrap();
    let extents = |list: &[usize]| list.iter().flat_map(|&n| (n as u32).to_be_bytes()).collect::<Vec<u8>>();
    let images = [&[0, 0, 8, 3][..], &extents(&[COUNT, SIDE, SIDE]), x].concat();
    fs::write(folder.join("some-images-idx3-ubyte"), images).unwrap();
    let classes = [&[0, 0, 8, 1][..], &extents(&[COUNT]), labels].concat();
    fs::write(folder.join("some-labels-idx1-ubyte"), classes).unwrap();
}

fn write_csv(path: &Path, x: &[u8], labels: &[u8]) {
    let mut file = GzEncoder::new(fs::File::create(path).unwrap(), Compression::fast());
    let names: Vec<String> = (0..PIXELS).map(|i| format!("p{i}")).collect();
    writeln!(file, "label,{}", names.join(",")).unwrap();
    for (picture, label) in x.chunks(PIXELS).zip(labels) {
        let cells: Vec<String> = picture.iter().map(u8::to_string).collect();
        writeln!(file, "{label},{}", cells.join(",")).unwrap();
    }
    file.finish().unwrap();
}

/// The names of the classes, which as file names need their slashes replaced.
fn class_names() -> Vec<String> {
    let names = fs::read_to_string(example("labels.txt")).unwrap();
    names.lines().map(|n| n.replace('/', " or ")).collect()
}

fn write_folder(folder: &Path, x: &[u8], labels: &[u8]) {
    let names = class_names();
    for (i, (picture, &label)) in x.chunks(PIXELS).zip(labels).enumerate() {
        let class = folder.join(&names[usize::from(label)]);
        fs::create_dir_all(&class).unwrap();
        let image = GrayImage::from_raw(SIDE as u32, SIDE as u32, picture.to_vec()).unwrap();
        image.save(class.join(format!("{i:04}.png"))).unwrap();
    }
}

fn evaluate(data: &Path, more: &[&str]) -> Value {
    let (model, data) = (example("model.onnx"), data.display().to_string());
    let mut result = succeed_json(&[&["evaluate", &model, "--data", &data, "--json"], more].concat());
    result.as_object_mut().unwrap().remove("preprocess");
    result
}

#[test]
fn every_kind_of_data_gives_the_same_result() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (x, labels) = pictures();
    write_idx(&path("idx"), &x, &labels);
    let expected = evaluate(&path("idx"), &[]);
    assert_eq!(expected["samples"], COUNT);
    assert!(expected["metrics"]["accuracy"].as_f64().unwrap() > 0.85, "{expected}");

    let shapes: [&[usize]; 4] =
        [&[COUNT, SIDE, SIDE, 1], &[COUNT, 1, SIDE, SIDE], &[COUNT, SIDE, SIDE], &[COUNT, PIXELS]];
    for shape in shapes {
        let bytes = path("bytes.npz");
        write_npz(&bytes, &Tensor::from_slice(shape, &x).unwrap(), &labels);
        assert_eq!(evaluate(&bytes, &[]), expected, "u8{shape:?}");
        // Floats are taken as they are: whoever stores them has scaled them, or says so.
        let floats = path("floats.npz");
        let values: Vec<f32> = x.iter().map(|&v| f32::from(v)).collect();
        write_npz(&floats, &Tensor::from_slice(shape, &values).unwrap(), &labels);
        assert_eq!(evaluate(&floats, &["--preprocess", "scale=1/255"]), expected, "f32{shape:?}");
    }
    write_csv(&path("data.csv.gz"), &x, &labels);
    assert_eq!(evaluate(&path("data.csv.gz"), &["--preprocess", "scale=1/255"]), expected);

    let pictures = path("pictures");
    write_folder(&pictures, &x, &labels);
    fs::write(pictures.join("labels.txt"), class_names().join("\n")).unwrap();
    assert_eq!(evaluate(&pictures, &[]), expected);
}

#[test]
fn folders_without_labels_txt_are_classes_by_sorted_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (x, labels) = pictures();
    write_folder(&path("pictures"), &x, &labels);
    let mut sorted = class_names();
    sorted.sort();
    let names = class_names();
    let renumber = |&label: &u8| sorted.iter().position(|n| *n == names[usize::from(label)]).unwrap() as u8;
    let renumbered: Vec<u8> = labels.iter().map(renumber).collect();
    assert_ne!(renumbered, labels);
    write_idx(&path("idx"), &x, &renumbered);
    assert_eq!(evaluate(&path("pictures"), &[]), evaluate(&path("idx"), &[]));
}

#[test]
fn one_of_several_idx_pairs_is_chosen_by_its_images() {
    let folder = tempfile::tempdir().unwrap();
    let (x, labels) = pictures();
    let home = folder.path().join("idx");
    write_idx(&home, &x, &labels);
    let expected = evaluate(&home, &[]);
    for part in ["images-idx3", "labels-idx1"] {
        let from = home.join(format!("some-{part}-ubyte"));
        fs::copy(from, home.join(format!("other-{part}-ubyte"))).unwrap();
    }
    let images: PathBuf = home.join("some-images-idx3-ubyte");
    assert_eq!(evaluate(&images, &[]), expected);
    let errors = fail(&["evaluate", &example("model.onnx"), "--data", home.to_str().unwrap()]);
    assert!(errors.contains("2 IDX pairs") && errors.contains("images-idx3-ubyte"), "{errors}");
}
