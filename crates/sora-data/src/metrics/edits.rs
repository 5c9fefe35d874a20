//! How far sequences are apart.

/// The fewest insertions, deletions and exchanges that make one sequence of the other. Source: Levenshtein 1966.
pub fn edits<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut before = i;
        let mut left = i + 1;
        for (at, y) in row.iter_mut().skip(1).zip(b) {
            let new = (before + usize::from(x != y)).min(*at + 1).min(left + 1);
            (before, left) = (*at, new);
            *at = new;
        }
        row.iter_mut().take(1).for_each(|first| *first = i + 1);
    }
    row.last().copied().unwrap_or(0)
}

/// The edits that turn what was read into what is right, as a share of the elements that are right: of characters the
/// character error rate, of words the word error rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorRate {
    wrong: usize,
    elements: usize,
}

impl ErrorRate {
    /// Adds a sequence.
    pub fn add<T: PartialEq>(&mut self, right: &[T], read: &[T]) {
        self.wrong += edits(right, read);
        self.elements += right.len();
    }

    /// Adds the characters of a text.
    pub fn add_characters(&mut self, right: &str, read: &str) {
        let characters = |text: &str| text.chars().collect::<Vec<_>>();
        self.add(&characters(right), &characters(read));
    }

    /// Adds the words of a text, which white space separates.
    pub fn add_words(&mut self, right: &str, read: &str) {
        let words = |text: &'_ str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        self.add(&words(right), &words(read));
    }

    /// The share so far; above 1 where more was read than there is.
    pub fn value(&self) -> f64 {
        self.wrong as f64 / self.elements.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_edits_over_what_is_right() {
        let (mut characters, mut words) = (ErrorRate::default(), ErrorRate::default());
        for (right, read) in [("the cat sat", "the  hat sat on"), ("día", "dia")] {
            characters.add_characters(right, read);
            words.add_words(right, read);
        }
        // "the cat sat" to "the  hat sat on": one space, one exchange, three more characters; "día": one exchange.
        assert_eq!(characters.value(), 6.0 / 14.0);
        // One word exchanged, one more; one exchanged.
        assert_eq!(words.value(), 3.0 / 4.0);
        assert_eq!(ErrorRate::default().value(), 0.0);
    }

    #[test]
    fn edits_are_counted() {
        let count = |a: &str, b: &str| edits(a.as_bytes(), b.as_bytes());
        for (a, b, expected) in
            [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("flaw", "lawn", 2)]
        {
            assert_eq!((count(a, b), count(b, a)), (expected, expected), "{a} {b}");
        }
    }
}
