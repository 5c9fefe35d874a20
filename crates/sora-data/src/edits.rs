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

#[cfg(test)]
mod tests {
    use super::*;

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
