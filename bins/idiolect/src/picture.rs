//! What pictures of this tool have in common: files of two kinds, and letters.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use font8x8::UnicodeFonts as _;
use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea as _};
use plotters::element::Text;
use plotters::style::{BLACK, IntoFont as _, WHITE};

/// Side of a letter, in pixels.
pub(crate) const LETTER: i32 = 8;
/// Around everything.
pub(crate) const MARGIN: i32 = 20;
/// Between the parts of a picture.
pub(crate) const GAP: i32 = 8;
/// Where the title ends.
pub(crate) const TOP: i32 = MARGIN + LETTER + GAP;

pub(crate) type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

type Write<B> = fn(&DrawingArea<B, Shift>, &str, (i32, i32)) -> Drawn<B>;

/// Where a picture is drawn.
pub(crate) struct Canvas<B: DrawingBackend> {
    pub(crate) root: DrawingArea<B, Shift>,
    write: Write<B>,
}

impl<B: DrawingBackend> Canvas<B> {
    /// Writes a line, of which the place is the upper left corner.
    pub(crate) fn text(&self, text: &str, at: (i32, i32)) -> Drawn<B> {
        (self.write)(&self.root, text, at)
    }
}

/// Something that can be drawn, below a title.
pub(crate) trait Picture {
    /// What stands above it.
    fn title(&self) -> &str;

    /// Width and height with the title, in pixels.
    fn size(&self) -> (u32, u32);

    /// Draws all but the title, which takes what is above [`TOP`].
    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<B>) -> Drawn<B>;

    /// Draws it into a file whose name ends in `.png` or `.svg`.
    ///
    /// # Errors
    /// When the name ends otherwise, or the file cannot be written.
    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let size = self.size();
        let drawn = match extension(path).as_deref() {
            Some("png") => {
                let root = BitMapBackend::new(path, size).into_drawing_area();
                finish(self, &Canvas { root, write: bitmap_text }).map_err(|error| anyhow!("{error}"))
            }
            Some("svg") => {
                let root = SVGBackend::new(path, size).into_drawing_area();
                finish(self, &Canvas { root, write: vector_text }).map_err(|error| anyhow!("{error}"))
            }
            _ => Err(anyhow!("the name must end in .png or .svg")),
        };
        drawn.with_context(|| format!("cannot draw {}", path.display()))
    }
}

fn finish<B: DrawingBackend>(picture: &(impl Picture + ?Sized), canvas: &Canvas<B>) -> Drawn<B> {
    canvas.root.fill(&WHITE)?;
    canvas.text(picture.title(), (MARGIN, MARGIN))?;
    picture.draw(canvas)?;
    canvas.root.present()
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
