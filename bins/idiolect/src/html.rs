//! Reports as one HTML file that opens without a network: text, tables, and pictures drawn into it.

mod chart;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;

pub(crate) use chart::{Bar, Bars, Histogram, Line, Lines, Pair, Reliability};

/// What all pages look like; in the dark, too, and on paper.
const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c1c1c;--paper:#fff;--soft:#f2f2ee;--line:#cfcfc8;--ours:#fff3d6}
@media (prefers-color-scheme:dark){:root{--ink:#e8e8e4;--paper:#161616;--soft:#242422;--line:#4a4a46;--ours:#4a3d17}}
body{margin:0 auto;max-width:64rem;padding:1rem;font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
h1{font-size:1.6rem;margin:.5rem 0}h2{font-size:1.2rem;margin:2rem 0 .5rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:1rem 0}dt{opacity:.75}dd{margin:0;overflow-wrap:anywhere}
.answer{padding:.75rem 1rem;border-left:.3rem solid #0072b2;background:var(--soft);font-weight:600}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
caption{text-align:left;padding:.3rem 0;opacity:.75}th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{border-bottom:2px solid var(--line)}tr.ours{background:var(--ours)}
figure{margin:1rem 0;padding:.5rem;background:#fff;border:1px solid var(--line);border-radius:.3rem}
figure svg{display:block;width:100%;height:auto}figcaption{color:#333;font-size:.9rem;padding:.3rem}
@media print{body{max-width:none}figure{break-inside:avoid}}";

/// A page, built from the top down.
#[derive(Debug)]
pub(crate) struct Page {
    title: String,
    body: String,
}

/// A row of a table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) cells: Vec<String>,
    /// Whether it is about us.
    pub(crate) ours: bool,
}

impl Page {
    pub(crate) fn new(title: &str) -> Self {
        Self { title: title.to_owned(), body: format!("<h1>{}</h1>\n", escaped(title)) }
    }

    /// Adds a sentence that stands out.
    pub(crate) fn answer(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p class=\"answer\">{}</p>", escaped(text));
    }

    /// Adds a paragraph.
    pub(crate) fn text(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escaped(text));
    }

    /// Adds what the report is of, by name.
    pub(crate) fn facts(&mut self, facts: &[(&str, String)]) {
        self.body.push_str("<dl>\n");
        for (name, value) in facts {
            let _ = writeln!(self.body, "<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(value));
        }
        self.body.push_str("</dl>\n");
    }

    pub(crate) fn heading(&mut self, text: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>", escaped(text));
    }

    /// Adds a table. Rows have as many cells as the head; what is missing stays empty.
    pub(crate) fn table(&mut self, caption: &str, head: &[&str], rows: &[Row]) {
        let _ = write!(self.body, "<div class=\"wide\"><table><caption>{}</caption><thead><tr>", escaped(caption));
        for cell in head {
            let _ = write!(self.body, "<th scope=\"col\">{}</th>", escaped(cell));
        }
        self.body.push_str("</tr></thead><tbody>\n");
        for row in rows {
            self.body.push_str(if row.ours { "<tr class=\"ours\">" } else { "<tr>" });
            for (nth, _) in head.iter().enumerate() {
                let cell = escaped(row.cells.get(nth).map_or("", String::as_str));
                let _ = if nth == 0 {
                    write!(self.body, "<th scope=\"row\">{cell}</th>")
                } else {
                    write!(self.body, "<td>{cell}</td>")
                };
            }
            self.body.push_str("</tr>\n");
        }
        self.body.push_str("</tbody></table></div>\n");
    }

    /// Adds a picture, and what it shows in words.
    ///
    /// # Errors
    /// Where it cannot be drawn.
    pub(crate) fn picture(&mut self, picture: &impl Drawing, caption: &str) -> anyhow::Result<()> {
        let svg = picture.svg().with_context(|| format!("cannot draw {}", picture.title()))?;
        // Drawn for a page of its own: here it is named for those who do not see it, and gives way to the page's width.
        let open = svg.find("<svg").map_or(0, |at| at + 4);
        let (title, caption) = (escaped(picture.title()), escaped(caption));
        let _ = writeln!(
            self.body,
            "<figure><svg role=\"img\" aria-label=\"{title}\"{}<figcaption><strong>{title}.</strong> {caption}</figcaption></figure>",
            &svg[open..]
        );
        Ok(())
    }

    /// Returns the whole file.
    pub(crate) fn finish(&self) -> String {
        let title = escaped(&self.title);
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <title>{title}</title><style>\n{STYLE}\n</style></head><body>\n{}</body></html>\n",
            self.body
        )
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, self.finish()).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A picture that can be part of a page.
pub(crate) trait Drawing {
    fn title(&self) -> &str;

    /// Draws it as SVG.
    fn svg(&self) -> anyhow::Result<String>;
}

/// Returns a text as it stands in HTML; control characters, which it may not have, are left out.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() && c != '\n' && c != '\t' => {}
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
