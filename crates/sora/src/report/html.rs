//! The report of a compression as one HTML page.

use std::fmt::Write;

use sora_compress::Corrupted;

use super::page::{Escaped, page, percent};
use super::{Choice, Layer, Report, Rung, Side, Tried};

/// The page. All text of the report is escaped; the figures stand in it a second time as JSON for programs.
pub fn html(report: &Report) -> String {
    let parts = [header, cards, choices, robustness, errors, times, layers, search, method];
    let body: String = parts.iter().map(|part| part(report)).collect();
    page(&format!("{} compressed", report.model), &body, &report.producer, "report", report)
}

fn header(report: &Report) -> String {
    let smaller = report.before.bytes as f64 / report.after.bytes.max(1) as f64;
    let faster = report.before.median_ms / report.after.median_ms.max(1e-12);
    let size = if smaller >= 1.0 {
        format!("{smaller:.1}× smaller")
    } else {
        format!("{:.1}× larger", 1.0 / smaller)
    };
    let speed =
        if faster >= 1.0 { format!("{faster:.1}× faster") } else { format!("{:.1}× slower", 1.0 / faster) };
    let (class, verdict) = match report.met {
        true => ("", "inside the budget"),
        false => (" missed", "outside the budget: the nearest result"),
    };
    let note =
        report.note.as_ref().map(|n| format!("<p class=\"note\">{}</p>\n", Escaped(n))).unwrap_or_default();
    format!(
        "<header>\n<p class=\"eyebrow\">{} → {}</p>\n<h1><em>{size}</em> and <em>{speed}</em>, {}</h1>\n\
         <span class=\"verdict{class}\">{verdict} of {}</span>\n{note}</header>\n",
        Escaped(&report.model),
        Escaped(&report.outputs.join(", ")),
        change(report),
        Escaped(&report.budget),
    )
}

/// The change of the metric in words, which claim no difference that chance explains as well.
fn change(report: &Report) -> String {
    let metric = Escaped(&report.metric);
    let points = report.change();
    match report.drop_ci95 {
        [low, high] if low <= 0.0 && high >= 0.0 => {
            format!("{metric} unchanged within chance ({points:+.2} points)")
        }
        _ => format!("{metric} {points:+.2} points"),
    }
}

/// A name that may break behind its slashes.
fn name(name: &str) -> String {
    Escaped(name).to_string().replace('/', "/<wbr>")
}

fn cards(report: &Report) -> String {
    let (before, after) = (&report.before, &report.after);
    let bytes = |side: &Side| bytes(side.bytes);
    let ms = |side: &Side| milliseconds(side.median_ms);
    let size_ratio = after.bytes as f64 / before.bytes.max(1) as f64;
    let time_ratio = after.median_ms / before.median_ms.max(1e-12);
    let mut text = String::from("<section class=\"cards\">\n");
    let _ = writeln!(
        text,
        "<div class=\"card\"><h3>{}</h3><p class=\"big\">{} <small>was {}</small></p>{}</div>",
        Escaped(&capital(&report.metric)),
        percent(after.accuracy),
        percent(before.accuracy),
        intervals(before, after)
    );
    for (name, ratio, was, is) in [
        ("File size", size_ratio, bytes(before), bytes(after)),
        ("Latency of one sample", time_ratio, ms(before), ms(after)),
    ] {
        let widest = ratio.max(1.0);
        let _ = writeln!(
            text,
            "<div class=\"card\"><h3>{name}</h3><p class=\"big\">{is} <small>{ratio:.2} of before</small></p>\
             <div class=\"pair\"><span>before</span><div class=\"bar\" style=\"width:{:.1}%\"></div><b>{was}</b>\
             <span>after</span><div class=\"bar after\" style=\"width:{:.1}%\"></div><b>{is}</b></div></div>",
            100.0 / widest,
            100.0 * ratio / widest,
        );
    }
    text + "</section>\n"
}

/// The networks that this one was picked from.
fn choices(report: &Report) -> String {
    if report.choices.is_empty() {
        return String::new();
    }
    let row = |choice: &Choice| {
        let this = report.outputs.contains(&choice.output);
        let (open, close) = if this { ("<b>", "</b>") } else { ("", "") };
        format!(
            "<tr><td>{open}{}{close}</td><td>{:+.2} points</td><td>{}</td><td>{}</td><td>{} of {}</td></tr>
",
            Escaped(&choice.output),
            0.0 - 100.0 * choice.drop,
            bytes(choice.bytes),
            milliseconds(choice.median_ms),
            choice.int8,
            choice.layers
        )
    };
    let rows: String = report.choices.iter().map(row).collect();
    format!(
        "<h2>Networks to pick from</h2>
<p>None beats another in drop, size and time on the samples for decisions; changes are those \
         on unseen samples.</p>
<table><tr><th>network</th><th>{}</th><th>file size</th><th>latency</th><th>layers in int8</th></tr>
{rows}</table>
",
        Escaped(&report.metric)
    )
}

/// Both accuracies with their intervals on one axis.
fn intervals(before: &Side, after: &Side) -> String {
    let low = before.ci95[0].min(after.ci95[0]);
    let high = before.ci95[1].max(after.ci95[1]);
    let span = (high - low).max(1e-6);
    let x = |v: f64| 50.0 + 210.0 * (v - low) / span;
    let mut svg = String::from(
        "<svg viewBox=\"0 0 280 62\" role=\"img\" aria-label=\"accuracy with 95 % intervals, before and after\">",
    );
    for (side, y, name, color) in [(before, 12.0, "before", "--before"), (after, 32.0, "after", "--after")] {
        let (a, b, at) = (x(side.ci95[0]), x(side.ci95[1]), x(side.accuracy));
        let _ = write!(
            svg,
            "<text x=\"0\" y=\"{:.1}\">{name}</text>\
             <line x1=\"{a:.1}\" x2=\"{b:.1}\" y1=\"{y}\" y2=\"{y}\" stroke=\"var({color})\" stroke-width=\"3\" stroke-linecap=\"round\"/>\
             <circle cx=\"{at:.1}\" cy=\"{y}\" r=\"5\" fill=\"var({color})\"/>",
            y + 4.0
        );
    }
    let _ = write!(
        svg,
        "<text x=\"50\" y=\"58\">{}</text><text x=\"260\" y=\"58\" text-anchor=\"end\">{}</text></svg>",
        percent(low),
        percent(high)
    );
    svg
}

/// Accuracy under each corruption, as a mean over its severities with all of them in words.
fn robustness(report: &Report) -> String {
    let Some(robustness) = &report.robustness else { return String::new() };
    let mean = |shares: &[f64]| shares.iter().sum::<f64>() / shares.len().max(1) as f64;
    let row = |corrupted: &Corrupted| {
        let bar = |shares: &[f64], class: &str| {
            format!("<div class=\"bar {class}\" style=\"width:{:.1}%\"></div>", 100.0 * mean(shares))
        };
        let levels = |shares: &[f64]| {
            shares.iter().map(|share| format!("{:.1}", 100.0 * share)).collect::<Vec<_>>().join(", ")
        };
        let original = corrupted.original.as_deref().unwrap_or_default();
        format!(
            "<div class=\"row\"><div class=\"name\">{}<small>{} → {}</small></div><div class=\"bars\">{}{}</div>\
             <div class=\"value\">{}<small>{}</small></div></div>\n",
            Escaped(&capital(&corrupted.name.replace('_', " "))),
            levels(original),
            levels(&corrupted.accuracy),
            bar(original, ""),
            bar(&corrupted.accuracy, "after"),
            percent(mean(original)),
            percent(mean(&corrupted.accuracy)),
        )
    };
    let rows: String = robustness.corruptions.iter().map(row).collect();
    let [drop, low, high] = {
        let [low, high] = robustness.drop_ci95.unwrap_or_default();
        [robustness.drop.unwrap_or_default(), high, low].map(|drop| 0.0 - 100.0 * drop)
    };
    let budget = match robustness.max_drop {
        Some(most) if robustness.met() => format!(" The budget of {:.2} points is met.", 100.0 * most),
        Some(most) => format!(" The budget of {:.2} points is not met.", 100.0 * most),
        None => String::new(),
    };
    format!(
        "<h2>On corrupted samples</h2>\n<p>{} of {} samples under each corruption, at severities 1 to 5, and their mean. Over all of them {} became \
         {}: {drop:+.2} points, 95 % interval {low:+.2} to {high:+.2}.{budget}</p>\n\
         <div class=\"chart\"><p class=\"legend\"><span><i></i>before</span><span><i class=\"after\"></i>after</span></p>{rows}</div>\n",
        Escaped(&capital(&report.metric)),
        robustness.samples,
        percent(robustness.original.unwrap_or_default()),
        percent(robustness.accuracy),
    )
}

fn errors(report: &Report) -> String {
    let measured: Vec<&Layer> = report.layers.iter().filter(|l| l.sqnr_db.is_some()).collect();
    if measured.is_empty() {
        return String::new();
    }
    let most = measured.iter().filter_map(|l| l.sqnr_db).fold(1.0f64, f64::max);
    let rows: String = measured
        .iter()
        .map(|layer| {
            let db = layer.sqnr_db.unwrap_or(0.0);
            let class = if db < 15.0 { "warn" } else { "after" };
            let bar = format!(
                "<div class=\"bar {class}\" style=\"width:{:.1}%\"></div>",
                (100.0 * db / most).clamp(0.0, 100.0)
            );
            row(layer, &bar, &format!("{db:.1} dB"), "")
        })
        .collect();
    format!(
        "<h2>What quantization does to each layer</h2>\n<p>Signal-to-quantization-noise ratio of the layer's output against \
         the original: every 6 dB are one more bit of precision, below 15 dB a layer deserves a look.</p>\n\
         <div class=\"chart\">{rows}</div>\n"
    )
}

fn times(report: &Report) -> String {
    let timed: Vec<&Layer> =
        report.layers.iter().filter(|l| l.before_ms.is_some() || l.after_ms.is_some()).collect();
    if timed.is_empty() {
        return String::new();
    }
    let most = timed.iter().flat_map(|l| [l.before_ms, l.after_ms]).flatten().fold(1e-9f64, f64::max);
    let rows: String = timed
        .iter()
        .map(|layer| {
            let bar = |ms: Option<f64>, class: &str| {
                format!(
                    "<div class=\"bar {class}\" style=\"width:{:.1}%\"></div>",
                    100.0 * ms.unwrap_or(0.0) / most
                )
            };
            let show = |ms: Option<f64>| ms.map_or("–".to_owned(), milliseconds);
            let bars = bar(layer.before_ms, "") + &bar(layer.after_ms, "after");
            row(layer, &bars, &show(layer.before_ms), &show(layer.after_ms))
        })
        .collect();
    format!(
        "<h2>Where the time goes</h2>\n<p>Time of each layer for one sample, with what was fused into it; {}.</p>\n\
         <div class=\"chart\"><p class=\"legend\"><span><i></i>before</span><span><i class=\"after\"></i>after</span></p>{rows}</div>\n",
        Escaped(&report.machine())
    )
}

fn row(layer: &Layer, bars: &str, first: &str, second: &str) -> String {
    let second = if second.is_empty() { String::new() } else { format!("<small>{second}</small>") };
    format!(
        "<div class=\"row\"><div class=\"name\">{}<small>{}, {}</small></div><div class=\"bars\">{bars}</div>\
         <div class=\"value\">{first}{second}</div></div>\n",
        name(&layer.name),
        Escaped(&layer.op),
        Escaped(&layer.precision)
    )
}

fn layers(report: &Report) -> String {
    let items: String = report
        .layers
        .iter()
        .map(|layer| {
            let weights = match (layer.before_bytes, layer.after_bytes) {
                (0, 0) => String::new(),
                (before, after) => format!(", {} → {}", bytes(before), bytes(after)),
            };
            let zeros = layer.zeros.filter(|&share| share > 0.0);
            let zeros = zeros.map_or(String::new(), |share| format!(", {:.1} % zeros", 100.0 * share));
            let mut more = String::new();
            for line in layer.not_pruned.iter().map(|why| format!("not pruned: {why}")) {
                let _ = write!(more, "<br>{}", Escaped(&capital(&line)));
            }
            let tried = layer.tried.iter().map(Tried::words);
            for words in tried.chain(layer.rungs.iter().map(Rung::words)) {
                let _ = write!(more, "<br><small>{}</small>", Escaped(&words));
            }
            format!(
                "<div class=\"layer\"><div class=\"name\">{} <small>{}{weights}{zeros}</small></div>\
                 <span class=\"tag {precision}\">{}</span><p>{}{more}</p></div>\n",
                name(&layer.name),
                Escaped(&layer.op),
                Escaped(&layer.format()),
                Escaped(&capital(&layer.reason)),
                precision = Escaped(&layer.precision),
            )
        })
        .collect();
    let tried = match report.tried_samples {
        0 => String::new(),
        samples => format!(
            " Below: what each layer would do in other formats, alone in an otherwise unchanged network, on {samples} samples."
        ),
    };
    format!(
        "<h2>Why each layer is what it is</h2>\n<p>In order of execution.{tried}</p>\n<div class=\"layers\">{items}</div>\n"
    )
}

fn search(report: &Report) -> String {
    let list = |items: Vec<String>, tag: &str| {
        let items: String = items.iter().map(|item| format!("<li>{}</li>\n", Escaped(item))).collect();
        format!("<{tag}>{items}</{tag}>\n")
    };
    let mut text = String::new();
    if !report.steps.is_empty() {
        text += "<h2>How the result was found</h2>\n<p>Every decision was taken on samples that the figures above do not use.</p>\n";
        text += &list(report.steps.clone(), "ol");
    }
    if !report.rewrites.is_empty() {
        text += "<h2>What graph optimization did first</h2>\n<p>Rewrites that keep the function, applied to both sides.</p>\n";
        text += &list(report.rewrites.iter().map(|(rule, n)| format!("{rule}: {n}×")).collect(), "ul");
    }
    text
}

fn method(report: &Report) -> String {
    let [calibration, decision, unseen] = report.split;
    let rows = [
        ("Data", report.data.clone()),
        ("Preprocessing", report.preprocess.clone()),
        (
            "Samples",
            format!(
                "{calibration} to calibrate ranges, {decision} for decisions, {unseen} unseen ones for every reported figure"
            ),
        ),
        (
            "Change",
            format!(
                "{:+.2} points, 95 % interval {:+.2} to {:+.2} (paired on the same samples)",
                report.change(),
                -100.0 * report.drop_ci95[1],
                -100.0 * report.drop_ci95[0]
            ),
        ),
        ("Intervals", "95 % Wilson score intervals of a proportion".to_owned()),
        (
            "Latency",
            match report.times_from {
                Some(_) => report.machine(),
                None => format!("median of interleaved runs of one sample, {}", report.machine()),
            },
        ),
    ];
    let items: String =
        rows.iter().map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>\n", Escaped(value))).collect();
    format!(
        "<h2>How it was measured</h2>\n<p>Both models ran in Sora, on this machine, in the same run.</p>\n<dl>{items}</dl>\n"
    )
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().to_string() + chars.as_str()).unwrap_or_default()
}

fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms >= 10.0 => format!("{ms:.1} ms"),
        ms if ms >= 1.0 => format!("{ms:.2} ms"),
        ms => format!("{:.1} µs", ms * 1e3),
    }
}

fn bytes(n: u64) -> String {
    match n as f64 {
        b if b >= 1e6 => format!("{:.2} MB", b / 1e6),
        b if b >= 1e3 => format!("{:.1} kB", b / 1e3),
        _ => format!("{n} B"),
    }
}

#[cfg(test)]
mod tests {
    use sora_compress::Robustness;

    use super::*;

    fn sample() -> Report {
        let side = |accuracy: f64, bytes, median_ms| Side {
            accuracy,
            ci95: [accuracy - 0.01, accuracy + 0.01],
            top5: None,
            bytes,
            median_ms,
        };
        Report {
            model: "<b>evil & \"co\"</b>.onnx".into(),
            outputs: vec!["out.sora".into()],
            data: "pictures".into(),
            preprocess: "scale=1/255".into(),
            max_drop: 0.005,
            budget: "0.50 points".into(),
            met: false,
            note: Some("layer </script> is to blame".into()),
            metric: "accuracy".into(),
            before: side(0.9, 1000, 1.0),
            after: side(0.89, 250, 0.4),
            drop: 0.01,
            drop_ci95: [0.0, 0.02],
            split: [10, 40, 50],
            tried_samples: 32,
            decision_drop: 0.01,
            choices: Vec::new(),
            times_from: None,
            isa: "avx2".into(),
            threads: 1,
            layers: vec![Layer {
                name: "conv<1>".into(),
                op: "Conv".into(),
                precision: "int8".into(),
                sqnr_db: Some(31.2),
                before_ms: Some(0.2),
                after_ms: None,
                before_bytes: 400,
                after_bytes: 100,
                zeros: Some(0.5),
                weight_bits: Some(5),
                reason: "int8 keeps the accuracy".into(),
                reason_code: "within-budget".into(),
                tried: vec![Tried {
                    format: "int8".into(),
                    output_sqnr_db: Some(27.5),
                    drop: 0.002,
                    ms: Some(0.1),
                    bytes: 100,
                }],
                rungs: vec![Rung { name: "GPTQ".into(), sqnr_db: [20.0, 24.0], kept: true }],
                not_pruned: Some("`y<1>` is an output of the network".into()),
            }],
            steps: vec!["quantized everything".into()],
            robustness: Some(Robustness {
                samples: 40,
                corruptions: vec![Corrupted {
                    name: "shot_noise",
                    accuracy: vec![0.8, 0.7, 0.6, 0.5, 0.4],
                    original: Some(vec![0.85, 0.75, 0.65, 0.55, 0.45]),
                }],
                accuracy: 0.6,
                original: Some(0.65),
                drop: Some(0.05),
                drop_ci95: Some([0.04, 0.06]),
                max_drop: Some(0.03),
            }),
            rewrites: vec![("fold batch norm".into(), 2)],
            producer: "sora".into(),
        }
    }

    #[test]
    fn the_page_is_self_contained_and_escapes_what_it_shows() {
        let page = html(&sample());
        for absent in [
            "http://",
            "https://",
            "src=",
            "href=",
            "url(",
            "@import",
            "<b>evil",
            "conv<1>",
            "layer </script>",
        ] {
            assert!(!page.contains(absent), "{absent}");
        }
        for present in [
            "4.0× smaller",
            "2.5× faster",
            "accuracy unchanged within chance (-1.00 points)",
            "outside the budget",
            "31.2 dB",
            "27.5 dB at the output",
            "GPTQ: from 20.0 to 24.0 dB at its output, kept",
            "Not pruned: `y&lt;1&gt;` is an output",
            "Shot noise<small>85.0, 75.0, 65.0, 55.0, 45.0 → 80.0, 70.0, 60.0, 50.0, 40.0",
            "-5.00 points, 95 % interval -6.00 to -4.00. The budget of 3.00 points is not met",
        ] {
            assert!(page.contains(present), "{present}");
        }
        assert_eq!(page.matches("<div").count(), page.matches("</div>").count());
    }

    #[test]
    fn networks_to_pick_from_are_listed_with_this_one_marked() {
        let mut report = sample();
        report.choices =
            vec![Choice::of(&report), Choice { output: "o<2>.sora".into(), ..Choice::of(&report) }];
        let page = html(&report);
        assert!(
            page.contains("<b>out.sora</b>")
                && page.contains("<td>o&lt;2&gt;.sora</td>")
                && page.contains("<td>1 of 1</td>")
        );
        assert!(!html(&sample()).contains("Networks to pick from"));
    }

    #[test]
    fn the_figures_are_in_the_page_as_json() {
        let page = html(&sample());
        let start = page.find("id=\"report\">").unwrap() + "id=\"report\">".len();
        let json: serde_json::Value =
            serde_json::from_str(page[start..].split("</script>").next().unwrap()).unwrap();
        assert_eq!(json["drop"], 0.01);
    }
}
