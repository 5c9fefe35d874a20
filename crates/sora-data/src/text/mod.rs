//! Texts with labels, and what makes numbers of them.

mod read;
mod tokenizer;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::dataset::{Tokens, integer_label};
use crate::{DataError, Dataset, ErrorKind, OpenOptions};

pub use tokenizer::{PADDING, Tokenizer, UNKNOWN};

/// What a file of texts does not say itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextOptions {
    /// The column or key of the text, `text` by default.
    pub text: String,
    /// The column or key of the label, `label` by default; `None` leaves the texts unlabelled.
    pub label: Option<String>,
    /// Names of the classes by number, as another set of the same texts has them; by default integers are class numbers,
    /// and words are numbered in alphabetical order.
    pub classes: Option<Vec<String>>,
    /// The most bytes that the texts may take in memory; 8 GiB by default.
    pub max_bytes: u64,
}

/// How texts become the input of a model: what travels with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextInput {
    /// What makes tokens of them.
    pub tokenizer: Tokenizer,
    /// Tokens of a text that are kept.
    pub length: usize,
    /// The column or key of the text.
    pub column: String,
    /// The column or key of the label.
    pub label: String,
}

impl TextInput {
    /// A dataset of the tokens of a file of texts.
    pub(crate) fn open(&self, path: &Path, options: &OpenOptions) -> Result<Dataset, DataError> {
        let options = TextOptions {
            text: self.column.clone(),
            label: Some(self.label.clone()),
            classes: options.classes.clone(),
            max_bytes: options.max_bytes,
        };
        Texts::open(path, &options)?.tokenize(&self.tokenizer, self.length)
    }
}

impl Default for TextOptions {
    fn default() -> Self {
        TextOptions {
            text: "text".to_owned(),
            label: Some("label".to_owned()),
            classes: None,
            max_bytes: 8 << 30,
        }
    }
}

/// Texts in memory, with their classes if known.
#[derive(Clone, Debug, PartialEq)]
pub struct Texts {
    place: String,
    texts: Arc<[String]>,
    labels: Option<Vec<usize>>,
    classes: Option<Vec<String>>,
}

impl Texts {
    /// Reads `.jsonl` (an object a line) or `.csv` with a header, also compressed as `.gz`.
    ///
    /// # Errors
    /// A [`DataError`] naming the line that is broken, or lacks the text or the label.
    pub fn open(path: impl AsRef<Path>, options: &TextOptions) -> Result<Self, DataError> {
        let path = path.as_ref();
        let place = path.display().to_string();
        let rows = read::rows(path, options)?;
        if rows.is_empty() {
            let hint = "give a file with at least one text";
            return Err(DataError::new(ErrorKind::Empty, "there are no texts", place, hint));
        }
        let (texts, words): (Vec<String>, Vec<Option<String>>) = rows.into_iter().unzip();
        let (mut labels, mut classes) = (None, None);
        if options.label.is_some() {
            let words: Vec<String> = words.into_iter().flatten().collect();
            let (numbers, names) = number(&words, options.classes.as_deref(), &place)?;
            (labels, classes) = (Some(numbers), names);
        }
        Ok(Texts { place, texts: texts.into(), labels, classes })
    }

    /// The texts.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// The class of every text, unless they are unlabelled.
    pub fn labels(&self) -> Option<&[usize]> {
        self.labels.as_deref()
    }

    /// The names of the classes, where labels are words.
    pub fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    /// A dataset of the tokens of each text, the first `most` of them.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when `most` is 0.
    pub fn tokenize(&self, tokenizer: &Tokenizer, most: usize) -> Result<Dataset, DataError> {
        if most == 0 {
            let hint = "keep at least one token of a text";
            return Err(DataError::new(ErrorKind::Usage, "texts of no token", self.place.clone(), hint));
        }
        let tokens = Tokens::new(Arc::clone(&self.texts), tokenizer, most);
        Dataset::from_tokens(self.place.clone(), tokens, self.labels.clone(), self.classes.clone())
    }
}

/// Class numbers of `words`, and the names of the classes unless all are integers.
fn number(
    words: &[String],
    known: Option<&[String]>,
    place: &str,
) -> Result<(Vec<usize>, Option<Vec<String>>), DataError> {
    let integers = |words: &[String]| -> Option<Vec<usize>> {
        words.iter().map(|word| integer_label(word.trim().parse().ok()?).ok()).collect()
    };
    if let (None, Some(labels)) = (known, integers(words)) {
        return Ok((labels, None));
    }
    let names: Vec<String> = match known {
        Some(known) => known.to_vec(),
        None => words.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect(),
    };
    let label = |(at, word): (usize, &String)| {
        names.iter().position(|name| name == word).ok_or_else(|| {
            let what = format!("the label `{word}` is none of {}", names.join(", "));
            let hint = "correct the label, or the list of classes";
            DataError::new(ErrorKind::Label, what, format!("{place}, text {at}"), hint)
        })
    };
    let labels = words.iter().enumerate().map(label).collect::<Result<_, _>>()?;
    Ok((labels, Some(names)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{Loader, LoaderOptions, Preprocess, SampleKind};

    fn open(name: &str, content: &str, options: &TextOptions) -> Result<Texts, DataError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        Texts::open(path, options)
    }

    #[test]
    fn lines_of_json_and_csv_are_the_same_texts() {
        let json = "{\"text\": \"A \\\"fine\\\" film\\nindeed\", \"label\": \"good\", \"id\": 7}\n\n{\"label\":\"bad\",\"text\":\"No.\"}\n";
        let csv = "id,label,text\n7,good,\"A \"\"fine\"\" film\nindeed\"\n8,bad,No.\n";
        let options = TextOptions::default();
        let [a, b] =
            [("a.jsonl", json), ("b.csv", csv)].map(|(name, text)| open(name, text, &options).unwrap());
        assert_eq!(a.texts(), ["A \"fine\" film\nindeed", "No."]);
        assert_eq!((a.texts(), a.labels(), a.classes()), (b.texts(), b.labels(), b.classes()));
        assert_eq!(
            (a.labels(), a.classes().unwrap()),
            (Some(&[1, 0][..]), &["bad".to_owned(), "good".to_owned()][..])
        );
        let numbered = open("c.csv", "text,label\nx,2\ny,0\n", &options).unwrap();
        assert_eq!((numbered.labels(), numbered.classes()), (Some(&[2, 0][..]), None));
        let named = TextOptions { text: "Body".into(), label: None, ..options.clone() };
        assert_eq!(open("d.csv", "Body,spam\nx,1\n", &named).unwrap().labels(), None);
        let classes = Some(vec!["good".to_owned(), "fair".to_owned(), "bad".to_owned()]);
        let given = TextOptions { classes, ..options };
        assert_eq!(open("e.jsonl", json, &given).unwrap().labels(), Some(&[0, 2][..]));
    }

    #[test]
    fn tokens_of_others_are_read_as_arrays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.npz");
        let x = sora_tensor::Tensor::from_slice(&[2, 3], &[2i64, 3, 0, 4, 0, 0]).unwrap();
        crate::npz::write(fs::File::create(&path).unwrap(), &[("x", &x)]).unwrap();
        let tokenizer = Tokenizer::words(["a b"], 9);
        let input = TextInput { tokenizer, length: 3, column: "text".into(), label: "label".into() };
        let options = OpenOptions { text: Some(input), ..OpenOptions::default() };
        let data = Dataset::open(&path, &options).unwrap();
        let (dtype, shape) = (sora_tensor::DType::I64, vec![3]);
        assert_eq!(data.sample_kind(), SampleKind::Array { dtype, shape });
    }

    #[test]
    fn errors_name_the_line_and_what_is_near() {
        let options = TextOptions::default();
        for (name, content, parts) in [
            (
                "a.jsonl",
                "{\"text\": \"x\", \"label\": 1}\n{\"text\": 3, \"label\": 1}\n",
                ["line 2", "no text"],
            ),
            ("a.jsonl", "{\"text\": \"x\"}\n", ["line 1", "`label`"]),
            ("a.jsonl", "{\"text\": \"x\", \"label\": 1}\nnonsense\n", ["line 2", "JSON"]),
            ("a.csv", "txt,label\nx,1\n", ["no column `text`", "did you mean `txt`?"]),
            ("a.csv", "text,label\nx,1\ny\n", ["line 3", "2 fields"]),
            ("a.csv", "text,label\n", ["no texts", "at least one"]),
            ("a.txt", "x", ["a.txt", ".jsonl"]),
        ] {
            let error = open(name, content, &options).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
        let given = TextOptions { classes: Some(vec!["a".into()]), ..options };
        assert_eq!(open("a.csv", "text,label\nx,b\n", &given).unwrap_err().kind, ErrorKind::Label);
    }

    #[test]
    fn batches_are_padded_to_their_longest_text_and_buckets_pad_little() {
        // Text `i` has 1 + i % 50 words, its number first.
        let lines: Vec<String> =
            (0..200).map(|i| format!("{{\"text\": \"{i}{}\"}}", " w".repeat(i % 50))).collect();
        let texts =
            open("a.jsonl", &lines.join("\n"), &TextOptions { label: None, ..TextOptions::default() })
                .unwrap();
        let tokenizer = Tokenizer::words(texts.texts().iter().map(String::as_str), 1000);
        let data = texts.tokenize(&tokenizer, 40).unwrap();
        assert_eq!((data.len(), data.sample_kind()), (200, SampleKind::Tokens));
        let batch = data.batch(&[2, 0, 45], &Preprocess::default()).unwrap();
        let ids = &batch.inputs[0].1;
        assert_eq!((ids.shape(), batch.lengths.as_deref()), (&[3, 40][..], Some(&[3, 1, 40][..])));
        let w = i64::from(tokenizer.encode("w", 1)[0]);
        let number = |i: u32| i64::from(tokenizer.encode(&i.to_string(), 1)[0]);
        assert_eq!(ids.to_i64s()[..5], [number(2), w, w, i64::from(PADDING), i64::from(PADDING)]);
        assert_eq!(ids.to_i64s()[40..42], [number(0), i64::from(PADDING)]);
        // A model of a fixed length gets it.
        let fixed = Preprocess::default().infer(&[None, Some(8)], &data.sample_kind()).unwrap();
        let batch = data.batch(&[2, 45], &fixed).unwrap();
        assert_eq!((batch.inputs[0].1.shape(), batch.lengths.as_deref()), (&[2, 8][..], Some(&[3, 8][..])));

        let indices: Vec<usize> = (0..200).collect();
        let padded = |bucket| {
            let options = LoaderOptions { batch: 10, bucket, ..LoaderOptions::default() };
            let loader = Loader::new(&data, &indices, None, &Preprocess::default(), options).unwrap();
            loader.epoch(0, 0).map(|batch| batch.unwrap().inputs[0].1.len()).sum::<usize>()
        };
        let content: usize = (0..200).map(|i| (1 + i % 50).min(40)).sum();
        assert!(padded(20) - content < (padded(0) - content) / 4, "{} {} {content}", padded(20), padded(0));
    }
}
