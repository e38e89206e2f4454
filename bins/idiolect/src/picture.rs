//! What pictures of this tool have in common: files of two kinds, and letters.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use font8x8::UnicodeFonts as _;
use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea as _};
use plotters::element::Text;
use plotters::style::{BLACK, IntoFont as _};

/// Side of a letter, in pixels.
pub(crate) const LETTER: i32 = 8;
/// Around everything.
pub(crate) const MARGIN: i32 = 20;
/// Between the parts of a picture.
pub(crate) const GAP: i32 = 8;

pub(crate) type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// Something that can be drawn.
pub(crate) trait Picture {
    /// Width and height, in pixels.
    fn size(&self) -> (u32, u32);

    /// Draws it; `text` writes a line, of which the place is the upper left corner.
    fn draw<B: DrawingBackend>(
        &self,
        root: &DrawingArea<B, Shift>,
        text: impl Fn(&DrawingArea<B, Shift>, &str, (i32, i32)) -> Drawn<B>,
    ) -> Drawn<B>;

    /// Draws it into a file whose name ends in `.png` or `.svg`.
    ///
    /// # Errors
    /// When the name ends otherwise, or the file cannot be written.
    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let size = self.size();
        let drawn = match extension(path).as_deref() {
            Some("png") => {
                let root = BitMapBackend::new(path, size).into_drawing_area();
                self.draw(&root, bitmap_text).map_err(|error| anyhow!("{error}"))
            }
            Some("svg") => {
                let root = SVGBackend::new(path, size).into_drawing_area();
                self.draw(&root, vector_text).map_err(|error| anyhow!("{error}"))
            }
            _ => Err(anyhow!("the name must end in .png or .svg")),
        };
        drawn.with_context(|| format!("cannot draw {}", path.display()))
    }
}

/// Returns what the file's name ends in, in lower case.
pub(crate) fn extension(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

/// Draws text dot by dot.
fn bitmap_text<B: DrawingBackend>(root: &DrawingArea<B, Shift>, text: &str, (mut x, y): (i32, i32)) -> Drawn<B> {
    for letter in text.chars() {
        let glyph = font8x8::BASIC_FONTS.get(letter).or_else(|| font8x8::LATIN_FONTS.get(letter));
        let rows = glyph.or_else(|| font8x8::BASIC_FONTS.get('?')).unwrap_or_default();
        for (row, dy) in rows.into_iter().zip(0..) {
            for dx in (0..LETTER).filter(|dx| row & (1 << dx) != 0) {
                root.draw_pixel((x + dx, y + dy), &BLACK)?;
            }
        }
        x += LETTER;
    }
    Ok(())
}

/// Draws text as text.
fn vector_text<B: DrawingBackend>(root: &DrawingArea<B, Shift>, text: &str, at: (i32, i32)) -> Drawn<B> {
    root.draw(&Text::new(text, at, ("monospace", f64::from(LETTER) * 1.5).into_font()))
}
