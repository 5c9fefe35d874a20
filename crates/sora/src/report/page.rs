//! What the HTML pages share: no script, no font, no picture from anywhere else.

use std::fmt::{self, Display, Write};

use serde::Serialize;

/// A page of this title, which is escaped, and `body`, which is not. `figures` stand in it as JSON, under this id, for programs.
pub(super) fn page(title: &str, body: &str, producer: &str, id: &str, figures: &impl Serialize) -> String {
    let style = include_str!("style.css");
    let json = serde_json::to_string(figures).unwrap_or_default().replace('<', "\\u003c");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\
         <footer>Written by {}. Works offline.</footer>\n</main>\n\
         <script type=\"application/json\" id=\"{id}\">{json}</script>\n</body>\n</html>\n",
        Escaped(title),
        Escaped(producer)
    )
}

/// Text with the characters that HTML gives a meaning to replaced.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}
