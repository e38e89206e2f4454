//! Heat maps of distances, as PNG or SVG.

use plotters::backend::DrawingBackend;
use plotters::element::Rectangle;
use plotters::style::colors::colormaps::{ColorMap as _, ViridisRGB};
use plotters::style::{Color as _, RED, RGBColor};

use crate::picture::{Canvas, Drawn, GAP, LETTER, MARGIN, Picture, TOP};

/// What side of the map is aimed at, and the least and greatest of a cell, in pixels.
const SIDE: usize = 800;
const CELL: (usize, usize) = (2, 32);
/// Cells must have more than a letter's height for ids to stand beside them.
const LABELLED: i32 = LETTER + 2;
/// Letters of an id that are shown.
const LETTERS: usize = 20;
/// The scale's width, and its steps.
const SCALE: i32 = 16;
const STEPS: i32 = 64;

/// A picture of how far texts are from each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeatMap<'a> {
    /// What stands above it.
    pub title: &'a str,
    /// The texts' names.
    pub ids: &'a [String],
    /// Distances in [0, 1], row by row, as many rows and columns as there are names.
    pub distances: &'a [Vec<f32>],
    /// Distances below this are red.
    pub bound: f32,
}

impl HeatMap<'_> {
    fn cell(&self) -> i32 {
        let side = (SIDE / self.ids.len().max(1)).clamp(CELL.0, CELL.1);
        i32::try_from(side).unwrap_or(i32::MAX)
    }

    fn side(&self) -> i32 {
        self.cell() * i32::try_from(self.ids.len()).unwrap_or(i32::MAX / CELL.1 as i32)
    }

    /// Width of the names beside the rows.
    fn labels(&self) -> i32 {
        let longest = self.ids.iter().map(|id| shortened(id).chars().count()).max().unwrap_or(0);
        if self.cell() >= LABELLED { i32::try_from(longest).unwrap_or(0) * LETTER + GAP } else { 0 }
    }

    /// The scale's end: the greatest distance, but not so little that the bound is beyond it.
    fn farthest(&self) -> f32 {
        let distances = self.distances.iter().flatten().copied();
        distances.fold(0.1_f32.max(2.0 * self.bound.clamp(0.0, 0.5)), f32::max)
    }

    fn colour(&self, distance: f32, farthest: f32) -> RGBColor {
        if distance < self.bound { RED } else { ViridisRGB.get_color(distance / farthest) }
    }
}

impl Picture for HeatMap<'_> {
    fn title(&self) -> &str {
        self.title
    }

    fn size(&self) -> (u32, u32) {
        let scale = GAP + SCALE + GAP + 5 * LETTER;
        let title = i32::try_from(self.title.chars().count()).unwrap_or(0) * LETTER;
        let width = (self.labels() + self.side() + scale).max(title) + 2 * MARGIN;
        let height = self.side().max(10 * LETTER) + LETTER + GAP + 2 * MARGIN;
        (width.unsigned_abs(), height.unsigned_abs())
    }

    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Drawn<B> {
        let (cell, side) = (self.cell(), self.side());
        let (left, top) = (MARGIN + self.labels(), TOP);
        let far = self.farthest();
        let mut y = top;
        for (id, row) in self.ids.iter().zip(self.distances) {
            if cell >= LABELLED {
                canvas.text(&shortened(id), (MARGIN, y + (cell - LETTER) / 2))?;
            }
            let mut x = left;
            for &distance in row {
                canvas
                    .root
                    .draw(&Rectangle::new([(x, y), (x + cell, y + cell)], self.colour(distance, far).filled()))?;
                x += cell;
            }
            y += cell;
        }
        let (left, height) = (left + side + GAP, side.max(10 * LETTER));
        for step in 0..STEPS {
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let colour = self.colour(far * (step as f32 + 0.5) / STEPS as f32, far);
            let (above, below) = (top + height * step / STEPS, top + height * (step + 1) / STEPS);
            canvas.root.draw(&Rectangle::new([(left, above), (left + SCALE, below)], colour.filled()))?;
        }
        canvas.text("0", (left + SCALE + GAP, top))?;
        canvas.text(&format!("{far:.2}"), (left + SCALE + GAP, top + height - LETTER))?;
        Ok(())
    }
}

fn shortened(id: &str) -> String {
    if id.chars().count() <= LETTERS { id.to_owned() } else { id.chars().take(LETTERS - 1).chain(['~']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<'a>(ids: &'a [String], distances: &'a [Vec<f32>]) -> HeatMap<'a> {
        HeatMap { title: "distances", ids, distances, bound: 0.0653 }
    }

    #[test]
    fn near_pairs_are_red_in_both_formats() {
        let dir = tempfile::tempdir().unwrap();
        let ids = ["a <b>", "ünïcode 名前", "a very long name of a reply"].map(str::to_owned);
        let distances = [vec![0.0, 0.01, 0.9], vec![0.01, 0.0, 0.5], vec![0.9, 0.5, 0.0]];
        let map = map(&ids, &distances);

        let png = dir.path().join("map.PNG");
        map.save(&png).unwrap();
        let picture = image::open(&png).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), map.size());
        let at = |row: i32, column: i32| {
            let (left, top) = (MARGIN + map.labels(), TOP);
            let middle = |i: i32| i * map.cell() + map.cell() / 2;
            picture.get_pixel((left + middle(column)).unsigned_abs(), (top + middle(row)).unsigned_abs()).0
        };
        for (i, row) in distances.iter().enumerate() {
            for (j, &distance) in row.iter().enumerate() {
                let found = at(i32::try_from(i).unwrap(), i32::try_from(j).unwrap());
                assert_eq!(found == [255, 0, 0], distance < map.bound, "{i} {j} {found:?}");
            }
        }
        assert_ne!(at(0, 2), at(1, 2));

        let svg = dir.path().join("map.svg");
        map.save(&svg).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        assert_eq!(text.matches("#FF0000").count(), 5 + 5, "cells and steps of the scale: {text}");
        assert!(text.contains("a &lt;b&gt;") && text.contains("ünïcode 名前") && text.contains("a very long name o"));
    }

    #[test]
    fn any_number_of_texts_fits() {
        let dir = tempfile::tempdir().unwrap();
        for n in [0, 1, 1000] {
            let ids: Vec<String> = (0..n).map(|i| format!("reply {i}")).collect();
            let distances = vec![vec![0.5; n]; n];
            let path = dir.path().join(format!("{n}.png"));
            map(&ids, &distances).save(&path).unwrap();
            let (width, height) = image::image_dimensions(&path).unwrap();
            assert!(width < 2200 && height < 2200, "{n}: {width} {height}");
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = map(&[], &[]).save(&dir.path().join("map.jpg")).unwrap_err();
        assert!(format!("{error:#}").contains("map.jpg: the name must end in .png or .svg"), "{error:#}");
        for name in ["none/map.png", "none/map.svg"] {
            let error = map(&[], &[]).save(&dir.path().join(name)).unwrap_err();
            assert!(format!("{error:#}").contains("No such file"), "{error:#}");
        }
    }
}
