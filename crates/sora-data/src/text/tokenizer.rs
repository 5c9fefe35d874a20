//! Words as numbers.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{DataError, ErrorKind};

/// The token behind the end of a text.
pub const PADDING: u32 = 0;
/// The token of a word that the vocabulary lacks.
pub const UNKNOWN: u32 = 1;

const PADDING_WORD: &str = "[PAD]";
const UNKNOWN_WORD: &str = "[UNK]";
const MAX_FILE: u64 = 1 << 28;

/// A vocabulary of words. A text becomes lower case; words are stretches of letters, digits and apostrophes, and every
/// other character that is no space is a word of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
pub struct Tokenizer {
    words: Vec<String>,
    tokens: HashMap<String, u32>,
}

impl From<Vec<String>> for Tokenizer {
    fn from(words: Vec<String>) -> Self {
        let tokens = (0u32..).zip(&words).map(|(token, word)| (word.clone(), token)).collect();
        Tokenizer { words, tokens }
    }
}

impl From<Tokenizer> for Vec<String> {
    fn from(tokenizer: Tokenizer) -> Self {
        tokenizer.words
    }
}

impl Tokenizer {
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
        Self::from(words.take(size.max(2)).collect::<Vec<_>>())
    }

    /// Reads what [`Tokenizer::save`] wrote.
    ///
    /// # Errors
    /// A [`DataError`] when the file cannot be read, or does not start with the two special words.
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let io = |e: std::io::Error| DataError::io(path, &e);
        let place = path.display().to_string();
        if fs::metadata(path).map_err(io)?.len() > MAX_FILE {
            let what = "this vocabulary is too long";
            return Err(DataError::new(ErrorKind::TooLarge, what, place, "give one word a line"));
        }
        let words: Vec<String> = fs::read_to_string(path).map_err(io)?.lines().map(str::to_owned).collect();
        match words.as_slice() {
            [padding, unknown, ..] if padding == PADDING_WORD && unknown == UNKNOWN_WORD => {
                Ok(Self::from(words))
            }
            _ => {
                let what = format!("this vocabulary does not start with {PADDING_WORD} and {UNKNOWN_WORD}");
                Err(DataError::malformed(what, &place))
            }
        }
    }

    /// Writes the words, one a line in the order of their tokens; the file appears whole or not at all.
    ///
    /// # Errors
    /// A [`DataError`] when it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), DataError> {
        let draft = path.with_extension("draft");
        let text = self.words.join("\n") + "\n";
        let written = fs::write(&draft, text).and_then(|()| fs::rename(&draft, path));
        written.map_err(|e| DataError::io(path, &e))
    }

    /// The first `most` tokens of a text; one [`UNKNOWN`] when it has no word.
    pub fn encode(&self, text: &str, most: usize) -> Vec<u32> {
        let mut tokens = Vec::new();
        split(text, |word| {
            if tokens.len() < most {
                tokens.push(self.tokens.get(word).copied().unwrap_or(UNKNOWN));
            }
        });
        if tokens.is_empty() {
            tokens.push(UNKNOWN);
        }
        tokens
    }

    /// The number of words, special ones included: the rows of an embedding.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there are no words: always false.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The word of a token.
    pub fn word(&self, token: u32) -> Option<&str> {
        self.words.get(usize::try_from(token).ok()?).map(String::as_str)
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
        let words: Vec<&str> = (0..5).map(|token| tokenizer.word(token).unwrap()).collect();
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
    fn vocabularies_come_back_from_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vocabulary.txt");
        let tokenizer = Tokenizer::words(["a b c a"], 10);
        tokenizer.save(&path).unwrap();
        assert_eq!(Tokenizer::load(&path).unwrap(), tokenizer);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(&path, "a\nb\n").unwrap();
        assert_eq!(Tokenizer::load(&path).unwrap_err().kind, ErrorKind::Malformed);
    }
}
