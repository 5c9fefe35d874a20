//! Words as numbers.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{DataError, ErrorKind};

/// The token behind the end of a text.
pub const PADDING: u32 = 0;
/// The token of a word that the vocabulary lacks.
pub const UNKNOWN: u32 = 1;

const PADDING_WORD: &str = "[PAD]";
const UNKNOWN_WORD: &str = "[UNK]";
const MAX_FILE: u64 = 1 << 28;

/// What makes tokens of a text.
///
/// A vocabulary of words: a text becomes lower case; words are stretches of letters, digits and apostrophes, and every
/// other character that is no space is a word of its own. Or what a `tokenizer.json` of Hugging Face's `tokenizers` describes, special
/// tokens included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Tokenizer(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Words { words: Vec<String>, tokens: HashMap<String, u32> },
    Json(Json),
}

/// A `tokenizer.json`, read.
#[derive(Clone, Debug)]
struct Json {
    text: Arc<str>,
    read: Arc<tokenizers::Tokenizer>,
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Json {}

/// A tokenizer as it travels with a model: its words in the order of their tokens, or the text of its file.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Stored {
    Words(Vec<String>),
    Json(String),
}

impl TryFrom<Stored> for Tokenizer {
    type Error = String;

    fn try_from(stored: Stored) -> Result<Self, String> {
        match stored {
            Stored::Words(words) => Ok(Tokenizer::of(words)),
            Stored::Json(text) => Tokenizer::from_json(&text),
        }
    }
}

impl From<Tokenizer> for Stored {
    fn from(tokenizer: Tokenizer) -> Self {
        match tokenizer.0 {
            Kind::Words { words, .. } => Stored::Words(words),
            Kind::Json(json) => Stored::Json(json.text.to_string()),
        }
    }
}

impl Tokenizer {
    fn of(words: Vec<String>) -> Self {
        let tokens = (0u32..).zip(&words).map(|(token, word)| (word.clone(), token)).collect();
        Tokenizer(Kind::Words { words, tokens })
    }

    /// What the text of a `tokenizer.json` describes.
    fn from_json(text: &str) -> Result<Self, String> {
        let mut read = tokenizers::Tokenizer::from_bytes(text.as_bytes()).map_err(|e| e.to_string())?;
        // Batches are padded and texts cut off as a model's input says.
        read.with_padding(None);
        read.with_truncation(None).map_err(|e| e.to_string())?;
        Ok(Tokenizer(Kind::Json(Json { text: text.into(), read: Arc::new(read) })))
    }

    /// The `size` most frequent words of `texts`, [`PADDING`] and [`UNKNOWN`] among them; of equally frequent ones, the
    /// first in the alphabet.
    pub fn words<'a>(texts: impl IntoIterator<Item = &'a str>, size: usize) -> Self {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for text in texts {
            split(text, |word| *counts.entry(word.to_owned()).or_default() += 1);
        }
        let mut by_count: Vec<(String, usize)> = counts.into_iter().collect();
        by_count.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let special = [PADDING_WORD, UNKNOWN_WORD].map(str::to_owned);
        let words = special.into_iter().chain(by_count.into_iter().map(|(word, _)| word));
        Self::of(words.take(size.max(2)).collect())
    }

    /// Reads a `tokenizer.json`, or a text file of one word a line that begins with the words `[PAD]` and `[UNK]`.
    ///
    /// # Errors
    /// A [`DataError`] when the file cannot be read or is neither.
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let io = |e: std::io::Error| DataError::io(path, &e);
        let place = path.display().to_string();
        if fs::metadata(path).map_err(io)?.len() > MAX_FILE {
            let what = "this vocabulary is too long";
            return Err(DataError::new(ErrorKind::TooLarge, what, place, "give one word a line"));
        }
        let text = fs::read_to_string(path).map_err(io)?;
        if path.extension().is_some_and(|ending| ending == "json") {
            let broken = |why| DataError::malformed(format!("this is no tokenizer: {why}"), &place);
            return Self::from_json(&text).map_err(broken);
        }
        let words: Vec<String> = text.lines().map(str::to_owned).collect();
        match words.as_slice() {
            [padding, unknown, ..] if padding == PADDING_WORD && unknown == UNKNOWN_WORD => {
                Ok(Self::of(words))
            }
            _ => {
                let what = format!("this vocabulary does not start with {PADDING_WORD} and {UNKNOWN_WORD}");
                Err(DataError::malformed(what, &place))
            }
        }
    }

    /// The first `most` tokens of a text; one [`UNKNOWN`] when it has none.
    pub fn encode(&self, text: &str, most: usize) -> Vec<u32> {
        let mut tokens = Vec::new();
        match &self.0 {
            Kind::Words { tokens: known, .. } => split(text, |word| {
                if tokens.len() < most {
                    tokens.push(known.get(word).copied().unwrap_or(UNKNOWN));
                }
            }),
            Kind::Json(json) => {
                let found = json.read.encode(text, true);
                tokens.extend(found.iter().flat_map(|found| found.get_ids()).take(most));
            }
        }
        if tokens.is_empty() {
            tokens.push(UNKNOWN);
        }
        tokens
    }

    /// The number of tokens, special ones included: the rows of an embedding.
    pub fn len(&self) -> usize {
        match &self.0 {
            Kind::Words { words, .. } => words.len(),
            Kind::Json(json) => json.read.get_vocab_size(true),
        }
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a token stands for.
    pub fn word(&self, token: u32) -> Option<String> {
        match &self.0 {
            Kind::Words { words, .. } => words.get(usize::try_from(token).ok()?).cloned(),
            Kind::Json(json) => json.read.id_to_token(token),
        }
    }
}

/// Calls `each` with every word of a text.
fn split(text: &str, mut each: impl FnMut(&str)) {
    let lower = text.to_lowercase();
    let inside = |c: char| c.is_alphanumeric() || c == '\'';
    for part in lower.split_whitespace() {
        let mut rest = part;
        while let Some(first) = rest.chars().next() {
            let end = match inside(first) {
                true => rest.find(|c| !inside(c)).unwrap_or(rest.len()),
                false => first.len_utf8(),
            };
            let (word, behind) = rest.split_at(end);
            each(word);
            rest = behind;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_numbered_by_frequency() {
        let texts = ["The cat's mat!", "the  MAT, the end", "Größe: 3 € the"];
        let tokenizer = Tokenizer::words(texts, 5);
        let words: Vec<String> = (0..5).map(|token| tokenizer.word(token).unwrap()).collect();
        assert_eq!(words, ["[PAD]", "[UNK]", "the", "mat", "!"]);
        assert_eq!(tokenizer.encode("THE mat; zebra!", 10), [2, 3, UNKNOWN, UNKNOWN, 4]);
        assert_eq!(tokenizer.encode("the the the", 2), [2, 2]);
        assert_eq!(tokenizer.encode(" \t", 4), [UNKNOWN]);
        let all = Tokenizer::words(texts, 100);
        assert_eq!(all.len(), 12);
        for word in ["cat's", "größe", "€", "3", ":", ","] {
            assert_ne!(all.encode(word, 9), [UNKNOWN], "{word}");
        }
    }

    #[test]
    fn vocabularies_are_read_from_files_and_travel_as_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vocabulary.txt");
        fs::write(&path, "[PAD]\n[UNK]\na\nb\n").unwrap();
        let tokenizer = Tokenizer::load(&path).unwrap();
        assert_eq!((tokenizer.encode("b A c", 9), tokenizer.len()), (vec![3, 2, UNKNOWN], 4));
        let text = serde_json::to_string(&tokenizer).unwrap();
        assert_eq!(serde_json::from_str::<Tokenizer>(&text).unwrap(), tokenizer);
        fs::write(&path, "a\nb\n").unwrap();
        assert_eq!(Tokenizer::load(&path).unwrap_err().kind, ErrorKind::Malformed);
    }

    /// WordPiece as BERT has it: lower case, punctuation apart, special tokens around.
    const JSON: &str = r###"{
        "version": "1.0", "truncation": null,
        "padding": {"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [
            {"id": 2, "content": "[CLS]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            {"id": 3, "content": "[SEP]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}
        ],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "play": 4, "##ing": 5, "!": 6}}
    }"###;

    #[test]
    fn tokenizers_of_others_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        fs::write(&path, JSON).unwrap();
        let tokenizer = Tokenizer::load(&path).unwrap();
        assert_eq!(tokenizer.encode("Playing, play!", 9), [2, 4, 5, UNKNOWN, 4, 6, 3]);
        assert_eq!(tokenizer.encode("Playing, play!", 3), [2, 4, 5]);
        assert_eq!((tokenizer.len(), tokenizer.word(5).as_deref()), (7, Some("##ing")));
        let text = serde_json::to_string(&tokenizer).unwrap();
        assert_eq!(serde_json::from_str::<Tokenizer>(&text).unwrap(), tokenizer);
        fs::write(&path, &JSON[..JSON.len() / 2]).unwrap();
        let error = Tokenizer::load(&path).unwrap_err();
        assert!(error.kind == ErrorKind::Malformed && error.what.contains("no tokenizer"), "{error}");
    }
}
