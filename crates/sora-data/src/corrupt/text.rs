//! Typos: each letter or digit is hit with a probability.

use crate::random::Random;

/// Rows of keys as they lie beside each other.
const KEYS: [&str; 3] = ["qwertyuiop", "asdfghjkl", "zxcvbnm"];

/// A letter and the one behind it change places, inside of a word.
pub(super) fn swap(text: &str, rate: f64, random: &mut Random) -> String {
    let mut letters: Vec<char> = text.chars().collect();
    let mut at = 0;
    while at + 1 < letters.len() {
        let pair = letters[at].is_alphanumeric() && letters[at + 1].is_alphanumeric();
        let hit = random.chance(rate);
        if pair && hit {
            letters.swap(at, at + 1);
            // Else the same letter could wander on.
            at += 1;
        }
        at += 1;
    }
    letters.into_iter().collect()
}

/// A letter is missing.
pub(super) fn drop(text: &str, rate: f64, random: &mut Random) -> String {
    each(text, rate, random, |_, _| [None, None])
}

/// A letter stands twice.
pub(super) fn repeat(text: &str, rate: f64, random: &mut Random) -> String {
    each(text, rate, random, |letter, _| [Some(letter), Some(letter)])
}

/// The key beside that of an English letter, on a keyboard of the order QWERTY.
pub(super) fn neighbour(text: &str, rate: f64, random: &mut Random) -> String {
    each(text, rate, random, |letter, left| {
        let lower = letter.to_ascii_lowercase();
        let found = KEYS.iter().find_map(|row| Some((row.as_bytes(), row.find(lower)?)));
        let Some((row, at)) = found else { return [Some(letter), None] };
        let beside = if left && at > 0 || at + 1 == row.len() { at - 1 } else { at + 1 };
        let key = char::from(row[beside]);
        [Some(if letter.is_ascii_uppercase() { key.to_ascii_uppercase() } else { key }), None]
    })
}

/// A capital in place of a small letter, or the other way round.
pub(super) fn case(text: &str, rate: f64, random: &mut Random) -> String {
    let other = |letter: char| match letter.is_uppercase() {
        true => letter.to_lowercase().next(),
        false => letter.to_uppercase().next(),
    };
    each(text, rate, random, |letter, _| [other(letter), None])
}

/// The text with what `change` makes of each letter that is hit; it is also told one of two directions.
fn each(
    text: &str,
    rate: f64,
    random: &mut Random,
    change: impl Fn(char, bool) -> [Option<char>; 2],
) -> String {
    let one = |letter: char| {
        let (hit, left) = (random.chance(rate), random.chance(0.5));
        let changed =
            if hit && letter.is_alphanumeric() { change(letter, left) } else { [Some(letter), None] };
        changed.into_iter().flatten()
    };
    text.chars().flat_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Apply, CORRUPTIONS, Corruption};
    use super::*;

    const TEXT: &str = "The quick brown fox, aged 7, jumps over the lazy dog; größer ist besser. ";

    #[test]
    fn typos_grow_with_their_rate_and_repeat() {
        let text = TEXT.repeat(200);
        for row in CORRUPTIONS.iter().filter(|row| matches!(row.apply, Apply::Text(..))) {
            let mut last = 0.0;
            for (severity, rate) in (1..=5).zip([0.02, 0.05, 0.1, 0.15, 0.2]) {
                let corruption = Corruption::new(row, severity, 4);
                let after = corruption.text(&text, 9);
                assert!(after == corruption.text(&text, 9) && after != corruption.text(&text, 8));
                // What is left of the words, as words stay apart.
                assert_eq!(after.matches(' ').count(), text.matches(' ').count(), "{}", row.name);
                let letters = text.chars().filter(|c| c.is_alphanumeric()).count() as f64;
                let (now, then) = (after.chars().count() as f64, text.chars().count() as f64);
                let hits = match row.name {
                    "typo_drop" => (then - now) / letters,
                    "typo_repeat" => (now - then) / letters,
                    name => {
                        let changed = after.chars().zip(text.chars()).filter(|(a, b)| a != b).count() as f64;
                        changed / letters / if name == "typo_swap" { 2.0 } else { 1.0 }
                    }
                };
                assert!(hits > last && hits < 1.3 * rate && hits > 0.5 * rate, "{} {rate}: {hits}", row.name);
                last = hits;
            }
            assert_eq!(Corruption::new(row, 5, 1).text("", 0), "");
            assert_eq!(Corruption::new(row, 5, 1).text("… — !", 0), "… — !");
        }
    }

    #[test]
    fn every_letter_can_be_hit_in_its_way() {
        let mut random = Random::of(&[1]);
        assert_eq!(swap("abcd ef", 1.0, &mut random), "badc fe");
        assert_eq!(drop("ab, c", 1.0, &mut random), ", ");
        assert_eq!(repeat("ab, c", 1.0, &mut random), "aabb, cc");
        assert_eq!(case("aB ß", 1.0, &mut random), "Ab S");
        for (letter, near) in [('q', "w"), ('m', "n"), ('s', "ad"), ('P', "O"), ('7', "7"), ('ö', "ö")] {
            for _ in 0..20 {
                let typed = neighbour(&letter.to_string(), 1.0, &mut random);
                assert!(
                    typed.len() == near.chars().next().unwrap().len_utf8() && near.contains(&typed),
                    "{letter} {typed}"
                );
            }
        }
    }
}
