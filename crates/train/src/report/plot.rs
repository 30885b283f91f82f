//! Line charts as SVG text: axes with round numbers, a legend, tooltips without scripts, colours from the page's CSS.

use std::fmt::Write;

use crate::goal::short;

/// A line in a chart.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// The CSS class that gives its colour: "train", "validation", "accent".
    pub class: &'static str,
    /// x ascending. A y that is not finite leaves a gap.
    pub points: Vec<(f64, f64)>,
    /// Marks every point with a dot and a tooltip; for few points.
    pub dots: bool,
    /// Drawn thin and pale: the raw values under a smoothed line.
    pub faint: bool,
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What the y axis shows.
    pub title: String,
    /// What the x axis shows.
    pub x_label: String,
    /// The lines; those that come later are drawn over the earlier.
    pub series: Vec<Series>,
    /// A horizontal line: the value and its label.
    pub goal: Option<(f64, String)>,
    /// Whether the y axis begins at 0.
    pub from_zero: bool,
    /// Whether it takes the width of the page; else half of it. The text has one size in both.
    pub wide: bool,
}

const LEFT: f64 = 52.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 36.0;

/// Above this ratio of the largest to the smallest value, the y axis is logarithmic.
const LOG_RATIO: f64 = 8.0;

/// An axis: data values to a share of the chart, 0 to 1.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
    ticks: Vec<f64>,
}

impl Axis {
    fn linear(low: f64, high: f64, count: usize) -> Axis {
        let pad = if high > low { 0.0 } else { 0.5 * if low == 0.0 { 1.0 } else { low.abs() } };
        let (low, high) = (low - pad, high + pad);
        let step = round_step((high - low) / count as f64);
        let first = (low / step).ceil() as i64;
        let last = (high / step).floor() as i64;
        let ticks = (first..=last).map(|index| index as f64 * step).collect();
        Axis { low, high, log: false, ticks }
    }

    /// `low` is above 0.
    fn logarithmic(low: f64, high: f64) -> Axis {
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let wide = high / low > 1e4;
        let mantissas: &[f64] = if wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let ticks = decades.flat_map(|decade| mantissas.iter().map(move |mantissa| mantissa * 10f64.powi(decade)));
        let ticks = ticks.filter(|tick| (low..=high).contains(tick)).collect();
        Axis { low, high, log: true, ticks }
    }

    fn share(&self, value: f64) -> f64 {
        if self.log {
            (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }
}

/// The round number (1, 2 or 5 times a power of ten) that is not below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let mantissa = step / power;
    power * [1.0, 2.0, 5.0].into_iter().find(|round| mantissa <= *round + 1e-9).unwrap_or(10.0)
}

impl Chart {
    /// The chart as an `<svg>` element; empty text if no line has a point.
    pub fn svg(&self) -> String {
        let finite = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
            points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
        };
        let all: Vec<(f64, f64)> = self.series.iter().flat_map(|series| finite(&series.points)).collect();
        if all.is_empty() {
            return String::new();
        }
        let goal = self.goal.iter().map(|(value, _)| *value);
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
        };
        let (x_low, x_high) = range(&mut all.iter().map(|(x, _)| *x));
        let (y_low, y_high) = range(&mut all.iter().map(|(_, y)| *y).chain(goal));
        let x = Axis::linear(x_low.min(0.0), x_high, if self.wide { 10 } else { 5 });
        let y = if self.from_zero {
            Axis::linear(0f64.min(y_low), y_high * 1.08 + f64::from(y_high == 0.0), 5)
        } else if y_low > 0.0 && y_high / y_low > LOG_RATIO {
            Axis::logarithmic(y_low / 1.1, y_high * 1.1)
        } else {
            let pad = (y_high - y_low) * 0.06;
            Axis::linear(y_low - pad, y_high + pad, 5)
        };
        let (width, height) = if self.wide { (1040.0, 330.0) } else { (500.0, 240.0) };
        let px = |value: f64| LEFT + x.share(value) * (width - LEFT - RIGHT);
        let py = |value: f64| height - BOTTOM - y.share(value) * (height - TOP - BOTTOM);

        let title = escape(&self.title);
        let mut svg = format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\">\n");
        let mut line = |text: String| {
            svg.push_str(&text);
            svg.push('\n');
        };
        for tick in &y.ticks {
            let at = py(*tick);
            line(format!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
                width - RIGHT
            ));
            line(format!(
                "<text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                at + 4.0,
                label(*tick, &y)
            ));
        }
        let base = height - BOTTOM;
        line(format!("<line class=\"axis\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{base}\" y2=\"{base}\"/>", width - RIGHT));
        for tick in &x.ticks {
            let text = label(*tick, &x);
            line(format!(
                "<text class=\"tick\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>",
                px(*tick),
                base + 17.0
            ));
        }
        let x_label = escape(&self.x_label);
        line(format!(
            "<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{x_label}</text>",
            width - RIGHT,
            height - 4.0
        ));
        if let Some((value, text)) = &self.goal {
            let at = py(*value);
            line(format!(
                "<line class=\"goal\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
                width - RIGHT
            ));
            let text_at = if at < TOP + 14.0 { at + 14.0 } else { at - 6.0 };
            let text = escape(text);
            line(format!("<text class=\"goal-label\" x=\"{}\" y=\"{text_at:.1}\">{text}</text>", LEFT + 6.0));
        }
        for series in &self.series {
            let faint = if series.faint { " faint" } else { "" };
            let class = series.class;
            for run in runs(&thinned(&series.points)) {
                let path =
                    run.iter().map(|(x, y)| format!("{:.1},{:.1}", px(*x), py(*y))).collect::<Vec<_>>().join(" ");
                line(format!("<polyline class=\"line {class}{faint}\" points=\"{path}\"/>"));
            }
            for (x, y) in finite(&series.points).iter().filter(|_| series.dots) {
                let tip = format!("{} {}, {} {}", escape(&series.name), short(*y), x_label, short_count(*x));
                line(format!(
                    "<circle class=\"dot {class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>{tip}</title></circle>",
                    px(*x),
                    py(*y)
                ));
            }
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// The legend as HTML, if there is more than one line.
    pub fn legend(&self) -> String {
        let named: Vec<&Series> =
            self.series.iter().filter(|series| !series.faint && !series.points.is_empty()).collect();
        let mut html = String::new();
        for series in named.iter().filter(|_| named.len() > 1) {
            let _ =
                write!(html, "<span class=\"key\"><i class=\"{}\"></i>{}</span>", series.class, escape(&series.name));
        }
        html
    }
}

/// At most two points a pixel column, the lowest and the highest: the picture of all points at a fraction of the size.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    const COLUMNS: usize = 500;
    if points.len() <= 2 * COLUMNS {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(2 * COLUMNS);
    for chunk in points.chunks(points.len().div_ceil(COLUMNS)) {
        let by_y = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (low, high) = (chunk.iter().min_by(by_y), chunk.iter().max_by(by_y));
        let mut ends: Vec<(f64, f64)> = low.into_iter().chain(high).copied().collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        ends.dedup();
        kept.extend(ends);
    }
    kept
}

/// The stretches of finite points.
fn runs(points: &[(f64, f64)]) -> Vec<&[(f64, f64)]> {
    points.split(|(x, y)| !x.is_finite() || !y.is_finite()).filter(|run| !run.is_empty()).collect()
}

fn label(tick: f64, axis: &Axis) -> String {
    let size = if axis.log { tick.abs() } else { axis.low.abs().max(axis.high.abs()) };
    let step = if axis.log { tick } else { axis.ticks.get(1).map_or(tick, |second| second - axis.ticks[0]) };
    if tick.abs() <= step.abs() * 1e-6 {
        return "0".into();
    }
    if !(1e-2..1e12).contains(&size) {
        return format!("{tick:.1e}").replace(".0e", "e");
    }
    if (1e4..1e6).contains(&size) && step >= 100.0 {
        return format!("{}k", tick / 1e3);
    }
    if size >= 1e6 && step >= 1.0 {
        return short_count(tick);
    }
    let digits = (-step.abs().log10().floor()).max(0.0) as usize;
    format!("{tick:.digits$}")
}

/// A count in at most four digits: 950, 12.5k, 3.4M.
pub(super) fn short_count(value: f64) -> String {
    let (divided, unit) = match value.abs() {
        size if size >= 1e9 => (value / 1e9, "G"),
        size if size >= 1e6 => (value / 1e6, "M"),
        size if size >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = if divided.fract() == 0.0 || (unit.is_empty() && divided.abs() >= 100.0) {
        format!("{divided:.0}")
    } else if unit.is_empty() {
        short(divided)
    } else {
        format!("{divided:.1}")
    };
    text + unit
}

/// Text for HTML and SVG.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML has no other control characters.
            c if c.is_control() && !matches!(c, '\n' | '\t') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}
