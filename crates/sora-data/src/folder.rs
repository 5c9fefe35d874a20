//! Folders of picture or sound files, one sub-folder a class.
#![cfg_attr(not(test), deny(clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used))]

use std::fs::{self, File};
use std::io::{BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::picture::Picture;
use crate::preprocess::Size;
use crate::{DataError, ErrorKind};

const PICTURES: &[&str] = &["png", "jpg", "jpeg"];
const SOUNDS: &[&str] = &["wav"];
/// Folders below a class folder: deeper ones are ignored, and cyclic links end.
const MAX_DEPTH: usize = 8;
/// The largest compressed picture in bytes.
const MAX_FILE: u64 = 1 << 28;

/// The files of a folder in the order of their paths, and the class of each.
pub(crate) struct Files {
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) labels: Option<Vec<usize>>,
    /// Names of the classes; empty when there are no sub-folders.
    pub(crate) classes: Vec<String>,
    /// Whether they are sounds, not pictures.
    pub(crate) sounds: bool,
}

/// Lists the pictures below `folder`, or the sounds when there is one before any picture. Class numbers follow `order`, which must name every sub-folder; without it
/// `known` if it does, else the sorted names. Pictures that lie directly in `folder` are the samples only when no
/// sub-folder is a class.
pub(crate) fn list(
    folder: &Path,
    order: Option<&[String]>,
    known: Option<&[String]>,
) -> Result<Files, DataError> {
    let entries = entries(folder)?;
    let endings = endings(&entries);
    let sounds = endings == SOUNDS;
    let mut names = Vec::new();
    for path in entries.iter().filter(|p| p.is_dir()) {
        let name = path.file_name().unwrap_or_default();
        if sounds && name.as_encoded_bytes().starts_with(b"_") {
            continue;
        }
        names.push(name.to_str().map(str::to_owned).ok_or_else(|| {
            let what = "the name of this class folder is not valid UTF-8";
            let hint = "rename the folder";
            DataError::new(ErrorKind::Malformed, what, path.display().to_string(), hint)
        })?);
    }
    if names.is_empty() {
        let paths: Vec<PathBuf> = entries.into_iter().filter(|p| is_one(p, endings)).collect();
        return Ok(Files { paths, labels: None, classes: Vec::new(), sounds });
    }
    let known = known.filter(|known| names.iter().all(|n| known.contains(n)));
    let classes = match order.or(known) {
        Some(order) if names.iter().all(|n| order.contains(n)) => order.to_vec(),
        Some(order) => {
            let odd = names.iter().find(|n| !order.contains(n)).map_or("", String::as_str);
            let what = format!("the class folder `{odd}` is not a line of labels.txt");
            let hint = "make labels.txt list every class folder, or give the path of the folder that holds the data itself";
            return Err(DataError::new(ErrorKind::Label, what, folder.display().to_string(), hint));
        }
        None => names.clone(),
    };
    let (mut paths, mut labels) = (Vec::new(), Vec::new());
    for name in &names {
        let label = classes.iter().position(|c| c == name).unwrap_or(0);
        let before = paths.len();
        let class = folder.join(name);
        collect(&class, endings, MAX_DEPTH, &mut paths)?;
        if paths.len() == before {
            let what = format!(
                "this class folder holds no {}",
                if sounds { "WAV file" } else { "PNG or JPEG picture" }
            );
            let hint =
                "add some, remove the folder, or give the path of the folder that holds the data itself";
            return Err(DataError::new(ErrorKind::Empty, what, class.display().to_string(), hint));
        }
        labels.resize(paths.len(), label);
    }
    Ok(Files { paths, labels: Some(labels), classes, sounds })
}

/// The endings of what lies in a folder with these entries, or one below it.
fn endings(folder: &[PathBuf]) -> &'static [&'static str] {
    let below = folder.iter().filter(|path| path.is_dir()).flat_map(|path| entries(path).unwrap_or_default());
    let known = |path: PathBuf| [PICTURES, SOUNDS].into_iter().find(|endings| is_one(&path, endings));
    folder.iter().cloned().chain(below).find_map(known).unwrap_or(PICTURES)
}

fn collect(folder: &Path, endings: &[&str], depth: usize, paths: &mut Vec<PathBuf>) -> Result<(), DataError> {
    for path in entries(folder)? {
        if is_one(&path, endings) {
            paths.push(path);
        } else if path.is_dir() {
            match depth.checked_sub(1) {
                Some(depth) => collect(&path, endings, depth, paths)?,
                None => continue,
            }
        }
    }
    Ok(())
}

/// The entries of `folder` sorted by name; names that start with a dot are left out.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |e: &std::io::Error| DataError::io(folder, e);
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| failed(&e))? {
        let entry = entry.map_err(|e| failed(&e))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

fn is_one(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().and_then(|e| e.to_str());
    ending.is_some_and(|e| endings.iter().any(|known| e.eq_ignore_ascii_case(known))) && !path.is_dir()
}

/// Decodes one PNG or JPEG to 8-bit grey or RGB: palettes are expanded, 16 bits narrowed, transparency
/// dropped. An orientation in the metadata is not applied. `max_pixels` bounds height times width.
///
/// PNG is exact. JPEG decoders round differently: against libjpeg-turbo (Pillow), pictures of quality 50 to 95
/// differed by at most 4 levels and by 0.4 on average.
pub(crate) fn decode(path: &Path, max_pixels: u64) -> Result<Picture<u8>, DataError> {
    let file = File::open(path).map_err(|e| DataError::io(path, &e))?;
    let mut bytes = Vec::new();
    let mut limited = BufReader::new(file).take(MAX_FILE);
    limited.read_to_end(&mut bytes).map_err(|e| DataError::io(path, &e))?;
    decode_bytes(&bytes, max_pixels, &path.display().to_string())
}

pub(crate) fn decode_bytes(bytes: &[u8], max_pixels: u64, where_: &str) -> Result<Picture<u8>, DataError> {
    let broken = |e: image::ImageError| {
        DataError::malformed(format!("the picture cannot be decoded: {e}"), where_)
            .with_hint("replace or remove the picture")
    };
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| DataError::stream(where_, &e))?;
    if !matches!(reader.format(), Some(ImageFormat::Png | ImageFormat::Jpeg)) {
        return Err(DataError::malformed("this is neither PNG nor JPEG, whatever its name says", where_)
            .with_hint("convert or remove the picture"));
    }
    if reader.format() == Some(ImageFormat::Jpeg) && !is_complete_jpeg(bytes) {
        return Err(DataError::malformed("the picture ends too early", where_)
            .with_hint("replace or remove the picture"));
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(max_pixels.saturating_mul(8).saturating_add(1 << 20));
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > max_pixels {
        let what = format!("the picture of {height}x{width} is larger than the limit of {max_pixels} pixels");
        return Err(DataError::new(ErrorKind::TooLarge, what, where_, "shrink or remove the picture"));
    }
    let image = DynamicImage::from_decoder(decoder).map_err(broken)?;
    let extent = |n: u32| usize::try_from(n).map_err(|e| DataError::malformed(e.to_string(), where_));
    let size = Size { height: extent(image.height())?, width: extent(image.width())? };
    if size.height == 0 || size.width == 0 {
        return Err(DataError::malformed("the picture has no pixels", where_));
    }
    Ok(match image.color().has_color() {
        true => Picture { size, channels: 3, data: image.into_rgb8().into_raw() },
        false => Picture { size, channels: 1, data: image.into_luma8().into_raw() },
    })
}

/// Whether an end-of-image marker follows the last start of a scan: decoders make up what is missing.
fn is_complete_jpeg(bytes: &[u8]) -> bool {
    let scan = bytes.windows(2).rposition(|w| w == [0xff, 0xda]);
    let tail = scan.and_then(|start| bytes.get(start..)).unwrap_or_default();
    tail.windows(2).any(|w| w == [0xff, 0xd9])
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1 << 20;

    fn encode(format: ImageFormat) -> Vec<u8> {
        let data: Vec<u8> = (0..6 * 5 * 3).map(|v: u32| (v * 7 % 256) as u8).collect();
        let picture = image::RgbImage::from_raw(6, 5, data).unwrap();
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn png_is_lossless_and_jpeg_is_close() {
        let png = decode_bytes(&encode(ImageFormat::Png), LIMIT, "t").unwrap();
        assert_eq!((png.size, png.channels), (Size { height: 5, width: 6 }, 3));
        assert_eq!(png.data, (0..90).map(|v: u32| (v * 7 % 256) as u8).collect::<Vec<_>>());
        let jpeg = decode_bytes(&encode(ImageFormat::Jpeg), LIMIT, "t").unwrap();
        assert_eq!((jpeg.size, jpeg.channels), (png.size, 3));
    }

    #[test]
    fn the_models_names_number_the_classes_unless_a_file_does() {
        let folder = tempfile::tempdir().unwrap();
        for class in ["cat", "dog"] {
            fs::create_dir(folder.path().join(class)).unwrap();
            fs::write(folder.path().join(class).join("1.png"), encode(ImageFormat::Png)).unwrap();
        }
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect::<Vec<String>>();
        let labels = |order: Option<&[String]>, known: &[&str]| {
            list(folder.path(), order, Some(&names(known))).unwrap().labels.unwrap()
        };
        assert_eq!(labels(None, &["dog", "bird", "cat"]), [2, 0]);
        assert_eq!(labels(None, &["dog", "bird"]), [0, 1]);
        assert_eq!(labels(Some(&names(&["cat", "dog"])), &["dog", "cat"]), [0, 1]);
    }

    #[test]
    fn truncation_and_damage_never_panic() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg] {
            let whole = encode(format);
            for cut in 0..whole.len() {
                // A PNG's pixels are complete before its last chunk.
                let complete = format == ImageFormat::Png && cut + 16 > whole.len();
                assert!(complete || decode_bytes(&whole[..cut], LIMIT, "t").is_err(), "{cut} bytes");
            }
            for at in 0..whole.len() {
                for value in [0u8, 0x7f, 0xff] {
                    let mut damaged = whole.clone();
                    damaged[at] = value;
                    let _ = decode_bytes(&damaged, LIMIT, "t");
                }
            }
        }
    }

    #[test]
    fn large_pictures_are_refused_before_they_are_decoded() {
        assert_eq!(decode_bytes(&encode(ImageFormat::Png), 29, "t").unwrap_err().kind, ErrorKind::TooLarge);
        assert_eq!(decode_bytes(b"not a picture", LIMIT, "t").unwrap_err().kind, ErrorKind::Malformed);
    }
}
