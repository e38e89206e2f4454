//! Shares with their intervals, as PNG or SVG.

use plotters::backend::DrawingBackend;
use plotters::element::{Circle, PathElement};
use plotters::style::{Color as _, RGBColor};

use crate::picture::{Canvas, Drawn, GAP, LETTER, MARGIN, Picture, TOP};

/// Width of the axis from 0 to 1, and height of a row.
const AXIS: i32 = 500;
const ROW: i32 = 18;
/// Steps of the axis that are labelled.
const STEPS: i32 = 5;
const GREY: RGBColor = RGBColor(0xd0, 0xd0, 0xd0);
/// A palette that people with any colour vision tell apart (Okabe and Ito 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x00, 0x00),
    RGBColor(0x80, 0x80, 0x80),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xd5, 0x5e, 0x00),
];

/// A share in [0, 1] with the ends of its interval.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) label: String,
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// Rows that belong together, under a heading. The same place has the same colour in all groups.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    pub(crate) heading: String,
    pub(crate) rows: Vec<Row>,
}

/// A picture of shares: a dot each, and a line from one end of its interval to the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IntervalPlot<'a> {
    /// What stands above it.
    pub(crate) title: &'a str,
    pub(crate) groups: &'a [Rows],
}

impl IntervalPlot<'_> {
    fn labels(&self) -> i32 {
        let labels = self.groups.iter().flat_map(|group| &group.rows).map(|row| width(&row.label));
        labels.max().unwrap_or(0) + GAP
    }

    fn lines(&self) -> i32 {
        // A heading and an empty line with each group.
        let lines: usize = self.groups.iter().map(|group| group.rows.len() + 2).sum();
        i32::try_from(lines).unwrap_or(i32::MAX / ROW / 2)
    }
}

impl Picture for IntervalPlot<'_> {
    fn title(&self) -> &str {
        self.title
    }

    fn size(&self) -> (u32, u32) {
        let headings = self.groups.iter().map(|group| width(&group.heading)).max().unwrap_or(0);
        let plot = self.labels() + AXIS + 5 * LETTER;
        let across = plot.max(headings).max(width(self.title)) + 2 * MARGIN;
        let down = 2 * MARGIN + LETTER + GAP + self.lines() * ROW + LETTER + GAP;
        (across.unsigned_abs(), down.unsigned_abs())
    }

    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Drawn<B> {
        let (left, top) = (MARGIN + self.labels(), TOP);
        let bottom = top + self.lines() * ROW;
        for step in 0..=STEPS {
            let x = left + AXIS * step / STEPS;
            canvas.root.draw(&PathElement::new(vec![(x, top), (x, bottom)], GREY))?;
            canvas.text(&format!("{:.1}", f64::from(step) / f64::from(STEPS)), (x - LETTER, bottom + GAP / 2))?;
        }
        let mut y = top;
        for group in self.groups {
            canvas.text(&group.heading, (MARGIN, y + (ROW - LETTER) / 2))?;
            y += ROW;
            for (row, colour) in group.rows.iter().zip(COLOURS.iter().cycle()) {
                let middle = y + ROW / 2;
                canvas.text(&row.label, (MARGIN, middle - LETTER / 2))?;
                let ends = vec![(left + across(row.low), middle), (left + across(row.high), middle)];
                canvas.root.draw(&PathElement::new(ends, colour.stroke_width(2)))?;
                canvas.root.draw(&Circle::new((left + across(row.value), middle), 4, colour.filled()))?;
                y += ROW;
            }
            y += ROW;
        }
        Ok(())
    }
}

/// Returns how far along the axis a share lies.
fn across(share: f64) -> i32 {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    #[expect(clippy::cast_possible_truncation, reason = "at most the axis")]
    let pixels = (share * f64::from(AXIS)).round() as i32;
    pixels
}

fn width(text: &str) -> i32 {
    i32::try_from(text.chars().count()).unwrap_or(i32::MAX / LETTER / 2) * LETTER
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups() -> Vec<Rows> {
        let row = |label: &str, value: f64| Row { label: label.to_owned(), value, low: value - 0.1, high: value + 0.2 };
        let rows = vec![row("first", 0.75), row("a <b>", 0.25), row("beyond", 0.95)];
        vec![Rows { heading: "own".to_owned(), rows }, Rows { heading: "none".to_owned(), rows: Vec::new() }]
    }

    #[test]
    fn dots_stand_where_the_shares_are_in_both_formats() {
        let dir = tempfile::tempdir().unwrap();
        let groups = groups();
        let plot = IntervalPlot { title: "masked", groups: &groups };
        let png = dir.path().join("plot.png");
        plot.save(&png).unwrap();
        let picture = image::open(&png).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), plot.size());
        let (left, top) = (MARGIN + plot.labels(), TOP);
        for (nth, (row, colour)) in groups[0].rows.iter().zip(COLOURS).enumerate() {
            let y = top + ROW * (1 + i32::try_from(nth).unwrap()) + ROW / 2;
            let at = |share: f64| picture.get_pixel((left + across(share)).unsigned_abs(), y.unsigned_abs()).0;
            let wanted = [colour.0, colour.1, colour.2];
            assert_eq!((at(row.value), at(row.low + 0.01)), (wanted, wanted), "{row:?}");
            assert_ne!(at(row.low - 0.05), wanted, "{row:?}");
        }
        let svg = dir.path().join("plot.svg");
        plot.save(&svg).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        assert_eq!(text.matches("<circle").count(), 3);
        assert!(text.contains("a &lt;b&gt;") && text.contains("own") && text.contains("masked"), "{text}");
    }

    #[test]
    fn nothing_and_what_is_no_number_can_be_drawn() {
        let dir = tempfile::tempdir().unwrap();
        let rows = vec![Row { label: "none".to_owned(), value: f64::NAN, low: f64::NAN, high: f64::INFINITY }];
        for groups in [Vec::new(), vec![Rows { heading: String::new(), rows }]] {
            IntervalPlot { title: "", groups: &groups }.save(&dir.path().join("plot.png")).unwrap();
        }
    }
}
