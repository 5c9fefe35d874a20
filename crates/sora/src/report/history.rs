//! The course of a training as one HTML page.

use std::fmt::Write;

use sora_train::Epoch;

use super::page::{Escaped, page, percent};

/// The page: curves of loss, accuracy and learning rate over the epochs of `name`. The figures stand in it a second time
/// as JSON for programs.
pub fn history(name: &str, epochs: &[Epoch], producer: &str) -> String {
    let of = |figure: fn(&Epoch) -> Option<f64>| epochs.iter().map(figure).collect::<Vec<_>>();
    let mut body = header(name, epochs);
    body += &chart("Loss", &[of(|e| Some(e.loss)), of(|e| e.validation_loss)], number);
    body += &chart("Accuracy", &[of(|e| e.accuracy), of(|e| e.validation_accuracy)], percent);
    for output in epochs.first().iter().flat_map(|epoch| epoch.heads.keys()) {
        let of = |figure: fn(&sora_train::HeadEpoch) -> Option<f64>| {
            epochs.iter().map(|epoch| epoch.heads.get(output).and_then(figure)).collect::<Vec<_>>()
        };
        let title = |what: &str| format!("{what} of {output}");
        body += &chart(&title("Loss"), &[of(|h| Some(h.loss)), of(|h| h.validation_loss)], number);
        body += &chart(&title("Accuracy"), &[of(|h| h.accuracy), of(|h| h.validation_accuracy)], percent);
    }
    body += &chart("Learning rate", &[of(|e| Some(e.rate))], number);
    page(&format!("Training of {name}"), &body, producer, "history", &epochs)
}

fn header(name: &str, epochs: &[Epoch]) -> String {
    let seconds: f64 = epochs.iter().map(|epoch| epoch.seconds).sum();
    let mut text = format!(
        "<header>\n<p class=\"eyebrow\">{}</p>\n<h1><em>{} epochs</em> in {}</h1>\n</header>\n",
        Escaped(name),
        epochs.len(),
        duration(seconds)
    );
    let Some(last) = epochs.last() else { return text };
    text += "<section class=\"cards\">\n";
    for (title, training, validation) in [
        ("Loss", Some(number(last.loss)), last.validation_loss.map(number)),
        ("Accuracy", last.accuracy.map(percent), last.validation_accuracy.map(percent)),
    ] {
        let Some(training) = training else { continue };
        let validation = validation.map(|v| format!(" <small>validation {v}</small>")).unwrap_or_default();
        let _ = writeln!(
            text,
            "<div class=\"card\"><h3>{title} of the last epoch</h3><p class=\"big\">{training}{validation}</p></div>"
        );
    }
    text + "</section>\n"
}

/// Extents of a chart, and of the part that curves are drawn in.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 630.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 210.0;

/// Curves of training and validation over the epochs; nothing without a figure.
fn chart(title: &str, series: &[Vec<Option<f64>>], show: fn(f64) -> String) -> String {
    let drawn = |value: &Option<f64>| value.filter(|value| value.is_finite());
    let values: Vec<f64> = series.iter().flatten().filter_map(drawn).collect();
    if values.is_empty() {
        return String::new();
    }
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), &v| (low.min(v), high.max(v)));
    let step = tick(high - low);
    let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
    let span = if high > low { high - low } else { step };
    let epochs = series.first().map_or(0, Vec::len);
    let x = |epoch: usize| LEFT + (RIGHT - LEFT) * (epoch as f64 + 0.5) / epochs.max(1) as f64;
    let y = |value: f64| BOTTOM - (BOTTOM - TOP) * (value - low) / span;
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", Escaped(title));
    for i in 0..=(span / step).round() as usize {
        let (value, at) = (low + step * i as f64, y(low + step * i as f64));
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"var(--line)\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            at + 4.0,
            show(value)
        );
    }
    for epoch in (0..epochs).step_by(tick(epochs as f64).max(1.0) as usize) {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            x(epoch),
            BOTTOM + 20.0,
            epoch + 1
        );
    }
    let colors = ["--before", "--after"].into_iter().skip(usize::from(series.len() == 1));
    for (curve, color) in series.iter().zip(colors) {
        let points = || curve.iter().enumerate().filter_map(|(i, value)| Some((i, drawn(value)?)));
        let line: Vec<String> = points().map(|(i, v)| format!("{:.1},{:.1}", x(i), y(v))).collect();
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"var({color})\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        for (i, v) in points() {
            let _ = write!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" fill=\"var({color})\"><title>epoch {}: {}</title></circle>",
                x(i),
                y(v),
                i + 1,
                show(v)
            );
        }
    }
    let legend = match series {
        [_, validation] if validation.iter().any(Option::is_some) => {
            "<p class=\"legend\"><span><i></i>training</span><span><i class=\"after\"></i>validation</span></p>"
        }
        _ => "",
    };
    format!("<h2>{}</h2>\n<div class=\"chart\">{legend}{svg}</svg></div>\n", Escaped(title))
}

/// The distance of marks on an axis of this length: 1, 2 or 5 times a power of ten, for two to six of them.
fn tick(length: f64) -> f64 {
    if length <= 0.0 || !length.is_finite() {
        return 1.0;
    }
    let power = 10f64.powf((length / 5.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    steps.into_iter().find(|step| length / step <= 5.0 + 1e-9).unwrap_or(10.0 * power)
}

/// Four digits.
fn number(value: f64) -> String {
    match value.abs() {
        size if size == 0.0 || (1e-3..1e4).contains(&size) => {
            let text = format!("{value:.4}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{value:.2e}"),
    }
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 3600.0 => format!("{:.1} hours", s / 3600.0),
        s if s >= 60.0 => format!("{:.1} minutes", s / 60.0),
        s => format!("{s:.1} seconds"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs() -> Vec<Epoch> {
        let epoch = |loss: f64, validation: Option<f64>| Epoch {
            loss,
            accuracy: Some(1.0 - loss / 4.0),
            validation_loss: validation,
            rate: 1e-4,
            seconds: 40.0,
            ..Epoch::default()
        };
        vec![epoch(2.0, Some(2.5)), epoch(1.0, Some(f64::NAN)), epoch(0.5, Some(1.5))]
    }

    #[test]
    fn the_page_is_self_contained_and_escapes_what_it_shows() {
        let page = history("<b>evil & \"co\"</b>.onnx", &epochs(), "sora");
        for absent in ["http://", "https://", "src=", "href=", "url(", "@import", "<b>evil", "NaN,", ",NaN"] {
            assert!(!page.contains(absent), "{absent}");
        }
        for present in
            ["3 epochs", "2.0 minutes", "<h2>Loss</h2>", "<h2>Accuracy</h2>", "<h2>Learning rate</h2>"]
        {
            assert!(page.contains(present), "{present}");
        }
        for tag in ["div", "svg", "p", "section", "span"] {
            let open = page.matches(&format!("<{tag} ")).count() + page.matches(&format!("<{tag}>")).count();
            assert_eq!(open, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    /// Losses from 0.5 to 2.5 lie on marks 0.5 apart over the height of the chart.
    #[test]
    fn curves_go_through_their_values() {
        let page = history("m.onnx", &epochs(), "sora");
        let x = [0.5, 1.5, 2.5].map(|at| format!("{:.1}", LEFT + (RIGHT - LEFT) * at / 3.0));
        let y = |value: f64| format!("{:.1}", BOTTOM - (BOTTOM - TOP) * (value - 0.5) / 2.0);
        let training = format!("{},{} {},{} {},{}", x[0], y(2.0), x[1], y(1.0), x[2], y(0.5));
        let validation = format!("{},{} {},{}", x[0], y(2.5), x[2], y(1.5));
        assert!(page.contains(&training), "{training}");
        assert!(page.contains(&validation), "{validation}");
        assert!(page.contains("<title>epoch 3: 1.5</title>"));
        assert!(page.contains("<title>epoch 1: 50.00 %</title>"));
    }

    #[test]
    fn marks_are_round_and_few() {
        for (length, expected) in [(2.0, 0.5), (10.0, 2.0), (0.31, 0.1), (22.0, 5.0), (1.0, 0.2), (0.0, 1.0)]
        {
            assert!((tick(length) - expected).abs() < 1e-12, "{length}: {}", tick(length));
        }
        assert_eq!([number(0.0), number(0.25), number(1e-4), number(12.0)], ["0", "0.25", "1.00e-4", "12"]);
    }
}
