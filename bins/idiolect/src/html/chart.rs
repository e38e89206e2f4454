//! Pictures of reports.

use std::ops::Range;

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::{
    AreaSeries, ChartBuilder, Circle, DashedLineSeries, DrawingArea, IntoDrawingArea as _, LineSeries, PathElement,
    Polygon, Rectangle, SVGBackend, SeriesLabelPosition, Text,
};
use plotters::style::{BLACK, Color as _, IntoFont as _, RGBColor, WHITE};

use super::Drawing;

const SIZE: (u32, u32) = (900, 380);
const FONT: &str = "sans-serif";
/// A palette that people with any colour vision tell apart (Okabe and Ito 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x55, 0x55, 0x55),
];
/// A line of more points than this is thinned: nobody sees them.
const MOST_POINTS: usize = 600;

fn colour(nth: usize) -> RGBColor {
    COLOURS[nth % COLOURS.len()]
}

/// What drawing needs: an area, and what is written where there is nothing to draw.
fn drawn(
    size: (u32, u32),
    is_empty: bool,
    draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Box<dyn std::error::Error>>,
) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let all = || -> Result<(), Box<dyn std::error::Error>> {
            root.fill(&WHITE)?;
            if is_empty {
                root.draw(&Text::new("no data", (20, 30), (FONT, 18).into_font()))?;
            } else {
                draw(&root)?;
            }
            root.present()?;
            Ok(())
        };
        all().map_err(|problem| anyhow!("{problem}"))?;
    }
    Ok(svg)
}

/// The span of finite values, wider where it is none.
fn span(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if !low.is_finite() {
        return 0.0..1.0;
    }
    let room = if high > low { (high - low) * 0.05 } else { low.abs().max(1.0) * 0.5 };
    low - room..high + room
}

fn number(value: &f64) -> String {
    let size = value.abs();
    if size >= 100.0 || (size > 0.0 && value.fract() == 0.0) || size < 1e-12 {
        format!("{value:.0}")
    } else if size >= 1.0 {
        format!("{value:.1}")
    } else if size >= 0.01 {
        format!("{value:.3}")
    } else {
        format!("{value:.5}")
    }
}

/// Place, height, and where the band begins and ends there.
pub(crate) type Point = (f64, f64, Option<(f64, f64)>);

/// One line, with a band around it where there is one.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    /// Place, height, and where the band begins and ends there.
    pub(crate) points: Vec<Point>,
}

/// Figures over steps.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    /// Whether less is above more, as with places.
    pub(crate) down: bool,
    pub(crate) lines: Vec<Line>,
}

impl Drawing for Lines {
    fn title(&self) -> &str {
        &self.title
    }

    fn svg(&self) -> anyhow::Result<String> {
        let finite = |line: &Line| -> Vec<Point> {
            let all: Vec<_> = line.points.iter().copied().filter(|(x, y, _)| x.is_finite() && y.is_finite()).collect();
            let each = all.len().div_ceil(MOST_POINTS).max(1);
            let last = all.len().saturating_sub(1);
            all.into_iter()
                .enumerate()
                .filter(|(nth, _)| nth % each == 0 || *nth == last)
                .map(|(_, point)| point)
                .collect()
        };
        let lines: Vec<(&str, Vec<_>)> = self.lines.iter().map(|line| (line.name.as_str(), finite(line))).collect();
        let points = || lines.iter().flat_map(|(_, points)| points);
        let x = span(points().map(|(x, _, _)| *x));
        let ends = |(_, y, band): &Point| band.map_or([*y, *y], |(low, high)| [low, high]);
        let y = span(points().flat_map(ends));
        let y = if self.down { y.end..y.start } else { y };
        drawn(SIZE, points().next().is_none(), |root| {
            let mut chart = ChartBuilder::on(root)
                .margin(12)
                .x_label_area_size(44)
                .y_label_area_size(64)
                .build_cartesian_2d(x.clone(), y.clone())?;
            chart
                .configure_mesh()
                .x_desc(self.x.as_str())
                .y_desc(self.y.as_str())
                .x_label_formatter(&number)
                .y_label_formatter(&number)
                .light_line_style(WHITE)
                .label_style((FONT, 14))
                .draw()?;
            for (nth, (name, points)) in lines.iter().enumerate() {
                let own = colour(nth);
                let band: Vec<(f64, f64)> =
                    points.iter().filter_map(|(x, _, band)| Some((*x, band.as_ref()?.0))).collect();
                let back = points.iter().rev().filter_map(|(x, _, band)| Some((*x, band.as_ref()?.1)));
                let outline: Vec<(f64, f64)> = band.iter().copied().chain(back).collect();
                if outline.len() > 3 {
                    chart.draw_series(std::iter::once(Polygon::new(outline, own.mix(0.15))))?;
                }
                let path: Vec<(f64, f64)> = points.iter().map(|(x, y, _)| (*x, *y)).collect();
                let style = own.stroke_width(2);
                let legend = move |(x, y): (i32, i32)| PathElement::new(vec![(x, y), (x + 22, y)], style);
                // Dashes tell lines apart where colours do not.
                let dashes = [(1, 0), (8, 4), (2, 3), (12, 3)][nth % 4];
                if path.len() == 1 {
                    chart
                        .draw_series(path.iter().map(|&at| Circle::new(at, 4, own.filled())))?
                        .label(*name)
                        .legend(legend);
                } else if dashes.1 == 0 {
                    chart.draw_series(LineSeries::new(path, style))?.label(*name).legend(legend);
                } else {
                    let dashed = DashedLineSeries::new(path, dashes.0, dashes.1, style);
                    chart.draw_series(dashed)?.label(*name).legend(legend);
                }
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .background_style(WHITE.mix(0.85))
                .border_style(BLACK.mix(0.3))
                .label_font((FONT, 14))
                .draw()?;
            Ok(())
        })
    }
}

/// How often values come, with a line where something begins.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    pub(crate) title: String,
    pub(crate) x: String,
    /// Values by name.
    pub(crate) groups: Vec<(String, Vec<f64>)>,
    pub(crate) bins: usize,
    pub(crate) mark: Option<(f64, String)>,
}

impl Drawing for Histogram {
    fn title(&self) -> &str {
        &self.title
    }

    fn svg(&self) -> anyhow::Result<String> {
        let values = || self.groups.iter().flat_map(|(_, values)| values).copied().filter(|value| value.is_finite());
        let x = span(values().chain(self.mark.iter().map(|(at, _)| *at)));
        let width = (x.end - x.start) / self.bins.max(1) as f64;
        let shares = |of: &[f64]| -> Vec<f64> {
            let mut counts = vec![0.0; self.bins.max(1)];
            let finite = of.iter().filter(|value| value.is_finite());
            let n = finite.clone().count().max(1) as f64;
            for value in finite {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bin")]
                let bin = ((value - x.start) / width) as usize;
                counts[bin.min(self.bins.max(1) - 1)] += 1.0 / n;
            }
            counts
        };
        let bars: Vec<(&str, Vec<f64>)> = self.groups.iter().map(|(name, of)| (name.as_str(), shares(of))).collect();
        let most = bars.iter().flat_map(|(_, shares)| shares).copied().fold(0.0, f64::max).max(1e-9);
        drawn(SIZE, values().next().is_none(), |root| {
            let mut chart = ChartBuilder::on(root)
                .margin(12)
                .x_label_area_size(44)
                .y_label_area_size(64)
                .build_cartesian_2d(x.clone(), 0.0..most * 1.1)?;
            chart
                .configure_mesh()
                .x_desc(self.x.as_str())
                .y_desc("share of the steps")
                .x_label_formatter(&number)
                .y_label_formatter(&number)
                .light_line_style(WHITE)
                .label_style((FONT, 14))
                .draw()?;
            for (nth, (name, shares)) in bars.iter().enumerate() {
                let own = colour(nth);
                let steps = shares.iter().enumerate().flat_map(|(bin, share)| {
                    let from = x.start + bin as f64 * width;
                    [(from, *share), (from + width, *share)]
                });
                let legend =
                    move |(x, y): (i32, i32)| Rectangle::new([(x, y - 5), (x + 22, y + 5)], own.mix(0.5).filled());
                chart
                    .draw_series(AreaSeries::new(steps, 0.0, own.mix(0.3)).border_style(own.stroke_width(2)))?
                    .label(*name)
                    .legend(legend);
            }
            if let Some((at, name)) = &self.mark {
                let line = vec![(*at, 0.0), (*at, most * 1.1)];
                let legend = |(x, y): (i32, i32)| PathElement::new(vec![(x, y), (x + 22, y)], BLACK.stroke_width(2));
                chart
                    .draw_series(DashedLineSeries::new(line, 6, 4, BLACK.stroke_width(2)))?
                    .label(name.as_str())
                    .legend(legend);
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .background_style(WHITE.mix(0.85))
                .border_style(BLACK.mix(0.3))
                .label_font((FONT, 14))
                .draw()?;
            Ok(())
        })
    }
}

/// A probability that was given, and how often it came true.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) predicted: f64,
    /// 0 to 1: a share where there were several occasions.
    pub(crate) happened: f64,
}

/// Whether what was predicted with a probability came about as often.
#[derive(Clone, Debug)]
pub(crate) struct Reliability {
    pub(crate) title: String,
    pub(crate) groups: Vec<(String, Vec<Pair>)>,
}

/// Bins of a reliability diagram.
const BINS: usize = 10;

impl Reliability {
    /// Returns, by bin, the mean of what was predicted and of what happened, and how many there are.
    pub(crate) fn bins(pairs: &[Pair]) -> Vec<(f64, f64, usize)> {
        let mut sums = [(0.0, 0.0, 0_usize); BINS];
        for pair in pairs.iter().filter(|pair| (0.0..=1.0).contains(&pair.predicted)) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bin")]
            let bin = ((pair.predicted * BINS as f64) as usize).min(BINS - 1);
            let (predicted, happened, n) = &mut sums[bin];
            *predicted += pair.predicted;
            *happened += pair.happened;
            *n += 1;
        }
        let mean = |(predicted, happened, n): (f64, f64, usize)| (predicted / n as f64, happened / n as f64, n);
        sums.into_iter().filter(|(_, _, n)| *n > 0).map(mean).collect()
    }

    /// Returns the Brier score: the mean square of what was predicted less what happened.
    pub(crate) fn brier(pairs: &[Pair]) -> Option<f64> {
        let squares = pairs.iter().map(|pair| (pair.predicted - pair.happened).powi(2));
        (!pairs.is_empty()).then(|| squares.sum::<f64>() / pairs.len() as f64)
    }
}

impl Drawing for Reliability {
    fn title(&self) -> &str {
        &self.title
    }

    fn svg(&self) -> anyhow::Result<String> {
        let is_empty = self.groups.iter().all(|(_, pairs)| pairs.is_empty());
        drawn((480, 420), is_empty, |root| {
            let mut chart = ChartBuilder::on(root)
                .margin(12)
                .x_label_area_size(44)
                .y_label_area_size(64)
                .build_cartesian_2d(-0.02..1.02, -0.02..1.02)?;
            chart
                .configure_mesh()
                .x_desc("predicted chance to be masked")
                .y_desc("share that was masked")
                .x_label_formatter(&number)
                .y_label_formatter(&number)
                .light_line_style(WHITE)
                .label_style((FONT, 14))
                .draw()?;
            chart.draw_series(DashedLineSeries::new([(0.0, 0.0), (1.0, 1.0)], 5, 4, BLACK.mix(0.5).stroke_width(1)))?;
            for (nth, (name, pairs)) in self.groups.iter().enumerate() {
                let own = colour(nth);
                let bins = Self::bins(pairs);
                chart.draw_series(LineSeries::new(bins.iter().map(|(x, y, _)| (*x, *y)), own.stroke_width(2)))?;
                // Larger where there are more.
                let dot = |(x, y, n): &(f64, f64, usize)| {
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number")]
                    let size = (3.0 + (*n as f64).sqrt()).min(14.0) as u32;
                    Circle::new((*x, *y), size, own.mix(0.7).filled())
                };
                let legend = move |(x, y): (i32, i32)| Circle::new((x + 10, y), 5, own.filled());
                chart.draw_series(bins.iter().map(dot))?.label(name.as_str()).legend(legend);
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .background_style(WHITE.mix(0.85))
                .border_style(BLACK.mix(0.3))
                .label_font((FONT, 14))
                .draw()?;
            Ok(())
        })
    }
}

/// A figure with its interval.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) interval: Option<(f64, f64)>,
}

/// Figures side by side.
#[derive(Clone, Debug)]
pub(crate) struct Bars {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) bars: Vec<Bar>,
}

impl Drawing for Bars {
    fn title(&self) -> &str {
        &self.title
    }

    fn svg(&self) -> anyhow::Result<String> {
        let bars: Vec<&Bar> = self.bars.iter().filter(|bar| bar.value.is_finite()).collect();
        let ends = |bar: &&Bar| [bar.value, bar.interval.map_or(bar.value, |(_, high)| high)];
        let most = bars.iter().flat_map(ends).filter(|value| value.is_finite()).fold(0.0, f64::max).max(1e-9);
        // A row is 30 pixels high.
        let height = u32::try_from(bars.len().max(1)).unwrap_or(100) * 30 + 80;
        drawn((SIZE.0, height), bars.is_empty(), |root| {
            let longest = bars.iter().map(|bar| bar.name.chars().count()).max().unwrap_or(0).min(40);
            let n = bars.len() as f64;
            let mut chart = ChartBuilder::on(root)
                .margin(12)
                .margin_left(u32::try_from(longest).unwrap_or(40) * 8 + 16)
                .x_label_area_size(44)
                .build_cartesian_2d(0.0..most * 1.08, n..0.0)?;
            chart
                .configure_mesh()
                .disable_y_mesh()
                .x_desc(self.x.as_str())
                .x_label_formatter(&number)
                .light_line_style(WHITE)
                .label_style((FONT, 14))
                .draw()?;
            for (nth, bar) in bars.iter().enumerate() {
                let at = nth as f64;
                let own = colour(nth);
                chart
                    .draw_series([Rectangle::new([(0.0, at + 0.15), (bar.value, at + 0.85)], own.mix(0.6).filled())])?;
                if let Some((low, high)) = bar.interval {
                    let line = vec![(low.max(0.0), at + 0.5), (high, at + 0.5)];
                    chart.draw_series([PathElement::new(line, BLACK.stroke_width(2))])?;
                }
                let mut name: String = bar.name.chars().take(40).collect();
                if bar.name.chars().count() > 40 {
                    name.replace_range(name.char_indices().nth(39).map_or(0, |(at, _)| at).., "…");
                }
                let (_, y) = chart.backend_coord(&(0.0, at + 0.5));
                root.draw(&Text::new(name, (12, y - 8), (FONT, 14).into_font()))?;
            }
            Ok(())
        })
    }
}
