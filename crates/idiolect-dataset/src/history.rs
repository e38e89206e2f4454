//! Files of rows.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use parquet::file::reader::SerializedFileReader;
use parquet::record::Field;
use parquet::record::reader::RowIter;

use crate::cell::{Cell, Record};
use crate::literal::python_literal;
use crate::step::{Row, State, Step, read};

/// A row with more than this on one line is none.
const MOST_LINE: u64 = 256 << 20;
/// Broken rows that are described; all are counted.
const MOST_DESCRIBED: usize = 10;

/// Why a file cannot be read on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// The file is not there, or breaks off.
    #[error("cannot read {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its name says nothing.
    #[error(
        "{path} is no history by its name, expected .jsonl, .ndjson, .json, .csv (each also .zst or .gz) or .parquet"
    )]
    Kind {
        /// Which.
        path: PathBuf,
    },
    /// The table has no head, or a row that cannot be told from the next.
    #[error("{path} is no CSV")]
    Csv {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: csv::Error,
    },
    /// It is no Parquet, or is damaged.
    #[error("{path} is no Parquet")]
    Parquet {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: parquet::errors::ParquetError,
    },
}

/// What was read so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows, blank lines apart.
    pub rows: u64,
    /// Steps: a row of 1.0 has two.
    pub steps: u64,
    /// State rows.
    pub states: u64,
    /// Rows of other software.
    pub unknown: u64,
    /// Rows that cannot be read.
    pub broken: u64,
    /// What is wrong with the first ten of them, with their numbers.
    pub described: Vec<String>,
}

/// One thing that a history has.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Entry {
    /// A prompt with everybody's replies.
    Step(Step),
    /// The moving averages.
    State(State),
}

/// The rows of a file, one after the other: memory is needed for one row, of Parquet for one group of rows.
///
/// What a file is, is told by its name. Rows that are neither steps nor states are passed over and counted; so are broken ones, which stop nothing.
///
/// # Examples
/// ```
/// use idiolect_dataset::{Entry, History};
///
/// let file = r#"{"task_type": "summarization", "name": "augment", "prompt": "Summarize.", "completions": ["So."], "uids": [7], "rewards": [0.5]}
/// {"loss": 1}
/// {"task_type": "summarization", "#;
/// let mut history = History::of_json_lines("a name for messages", file.as_bytes());
/// let Some(Ok(Entry::Step(step))) = history.next() else { panic!("a step comes first") };
/// assert_eq!((step.name.as_str(), step.calls[0].uid, step.calls[0].reward), ("augment", Some(7), Some(0.5)));
/// assert!(history.next().is_none());
/// let counts = history.counts();
/// assert_eq!((counts.rows, counts.steps, counts.unknown, counts.broken), (3, 1, 1, 1));
/// assert!(counts.described[0].starts_with("line 3: "));
/// ```
pub struct History<'a> {
    path: PathBuf,
    records: Records<'a>,
    counts: Counts,
    waiting: VecDeque<Entry>,
    is_over: bool,
}

impl fmt::Debug for History<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").field("path", &self.path).field("counts", &self.counts).finish_non_exhaustive()
    }
}

enum Records<'a> {
    Lines { lines: Box<dyn BufRead + 'a>, n: u64, buffer: Vec<u8> },
    Csv { rows: Box<csv::Reader<Box<dyn BufRead + 'a>>>, head: Vec<String>, record: csv::StringRecord },
    Parquet { rows: Box<RowIter<'a>>, n: u64 },
}

/// A row, or what is wrong with it.
type Readable = Result<Record, String>;

impl<'a> History<'a> {
    /// Opens a file.
    ///
    /// # Errors
    /// [`HistoryError`] where there is none, or it is none of a kind that is known.
    pub fn open(path: &Path) -> Result<History<'static>, HistoryError> {
        let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let failed = |source| HistoryError::Io { path: path.to_owned(), source };
        let plain = name.trim_end_matches(".zst").trim_end_matches(".gz");
        let ends = |ends: &[&str]| ends.iter().any(|end| plain.ends_with(end));
        if !ends(&[".jsonl", ".ndjson", ".json", ".csv"]) && !name.ends_with(".parquet") {
            return Err(HistoryError::Kind { path: path.to_owned() });
        }
        let file = File::open(path).map_err(failed)?;
        if name.ends_with(".parquet") {
            let wrong = |source| HistoryError::Parquet { path: path.to_owned(), source };
            let reader = SerializedFileReader::new(file).map_err(wrong)?;
            let rows = Box::new(RowIter::from_file_into(Box::new(reader)));
            return Ok(History::new(path, Records::Parquet { rows, n: 0 }));
        }
        let raw: Box<dyn Read> = if name.ends_with(".zst") {
            Box::new(zstd::stream::read::Decoder::new(file).map_err(failed)?)
        } else if name.ends_with(".gz") {
            Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file)))
        } else {
            Box::new(file)
        };
        let lines: Box<dyn BufRead> = Box::new(BufReader::with_capacity(1 << 16, raw));
        if ends(&[".csv"]) { History::of_csv(path, lines) } else { Ok(History::of_json_lines(path, lines)) }
    }

    /// Reads JSON objects, one a line. The path is for messages.
    pub fn of_json_lines(path: impl AsRef<Path>, lines: impl BufRead + 'a) -> Self {
        Self::new(path.as_ref(), Records::Lines { lines: Box::new(lines), n: 0, buffer: Vec::new() })
    }

    /// Reads a table whose lists are Python literals, as the validators' export script wrote them; JSON lists will do, too. The path is for
    /// messages.
    ///
    /// # Errors
    /// [`HistoryError::Csv`] where there is no head.
    pub fn of_csv(path: impl AsRef<Path>, lines: impl BufRead + 'a) -> Result<Self, HistoryError> {
        let lines: Box<dyn BufRead + 'a> = Box::new(lines);
        let mut rows = csv::ReaderBuilder::new().flexible(true).from_reader(lines);
        let wrong = |source| HistoryError::Csv { path: path.as_ref().to_owned(), source };
        let head = rows.headers().map_err(wrong)?.iter().map(str::to_owned).collect();
        Ok(Self::new(path.as_ref(), Records::Csv { rows: Box::new(rows), head, record: csv::StringRecord::new() }))
    }

    fn new(path: &Path, records: Records<'a>) -> Self {
        Self { path: path.to_owned(), records, counts: Counts::default(), waiting: VecDeque::new(), is_over: false }
    }

    /// Returns what was read so far.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    fn take(&mut self, row: Result<Row, String>, place: &str) {
        self.counts.rows += 1;
        match row {
            Ok(Row::Steps(steps)) => {
                self.counts.steps += steps.len() as u64;
                self.waiting.extend(steps.into_iter().map(Entry::Step));
            }
            Ok(Row::State(state)) => {
                self.counts.states += 1;
                self.waiting.push_back(Entry::State(state));
            }
            Ok(Row::Unknown) => self.counts.unknown += 1,
            Err(problem) => {
                self.counts.broken += 1;
                if self.counts.described.len() < MOST_DESCRIBED {
                    self.counts.described.push(format!("{place}: {problem}"));
                }
            }
        }
    }
}

impl Iterator for History<'_> {
    type Item = Result<Entry, HistoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.waiting.pop_front() {
                return Some(Ok(entry));
            }
            if self.is_over {
                return None;
            }
            match self.records.next(&self.path) {
                None => self.is_over = true,
                Some(Ok((record, place))) => self.take(record.and_then(read), &place),
                Some(Err(error)) => {
                    self.is_over = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl Records<'_> {
    fn next(&mut self, path: &Path) -> Option<Result<(Readable, String), HistoryError>> {
        match self {
            Self::Lines { lines, n, buffer } => loop {
                buffer.clear();
                *n += 1;
                match lines.by_ref().take(MOST_LINE).read_until(b'\n', buffer) {
                    Ok(0) => return None,
                    Ok(_) => {}
                    Err(source) => return Some(Err(HistoryError::Io { path: path.to_owned(), source })),
                }
                let line = buffer.trim_ascii();
                if !line.is_empty() {
                    return Some(Ok((of_json(line), format!("line {n}"))));
                }
            },
            Self::Csv { rows, head, record } => {
                let place = |record: &csv::StringRecord| {
                    record.position().map_or_else(String::new, |position| format!("line {}", position.line()))
                };
                match rows.read_record(record) {
                    Ok(false) => None,
                    Ok(true) => Some(Ok((of_fields(head, record), place(record)))),
                    Err(error) => match error.kind() {
                        // Only this row is lost.
                        csv::ErrorKind::Utf8 { err, .. } => Some(Ok((Err(err.to_string()), place(record)))),
                        _ => Some(Err(HistoryError::Csv { path: path.to_owned(), source: error })),
                    },
                }
            }
            Self::Parquet { rows, n } => {
                *n += 1;
                match rows.next()? {
                    Ok(row) => {
                        let columns = row.into_columns().into_iter();
                        let record = columns.map(|(name, field)| (name, of_field(field))).collect();
                        Some(Ok((Ok(record), format!("row {n}"))))
                    }
                    Err(source) => Some(Err(HistoryError::Parquet { path: path.to_owned(), source })),
                }
            }
        }
    }
}

fn of_json(line: &[u8]) -> Readable {
    serde_json::from_slice(line).map_err(|error| {
        // The line is known, and always the first.
        let column = error.column();
        let says = error.to_string();
        let says = says.split(" at line ").next().unwrap_or_default().to_owned();
        format!("{says}, at column {column}")
    })
}

/// Columns whose values are texts, whatever they look like.
const TEXTS: [&str; 8] =
    ["prompt", "best", "name", "task_type", "base_prompt", "answer_prompt", "best_followup", "best_answer"];

fn of_fields(head: &[String], record: &csv::StringRecord) -> Readable {
    if record.len() != head.len() {
        return Err(format!("{} fields, expected {}", record.len(), head.len()));
    }
    let mut cells = Record::with_capacity(head.len());
    for (name, field) in head.iter().zip(record) {
        let trimmed = field.trim();
        let is_list = trimmed.starts_with('[') || trimmed.starts_with('(');
        let cell = if TEXTS.contains(&name.as_str()) {
            Cell::Text(field.to_owned())
        } else if trimmed.is_empty() || trimmed == "None" {
            Cell::Null
        } else if is_list {
            let python = python_literal(trimmed);
            // Of a list that is neither, Python's complaint is told.
            match (python, serde_json::from_str(trimmed)) {
                (Ok(list), _) | (Err(_), Ok(list)) => list,
                (Err(problem), Err(_)) => return Err(format!("{name}: {problem}")),
            }
        } else {
            trimmed.parse().map_or_else(|_| Cell::Text(field.to_owned()), Cell::Number)
        };
        cells.insert(name.clone(), cell);
    }
    Ok(cells)
}

fn of_field(field: Field) -> Cell {
    match field {
        Field::Bool(is) => Cell::Bool(is),
        Field::Byte(n) => Cell::Number(n.into()),
        Field::Short(n) => Cell::Number(n.into()),
        Field::Int(n) => Cell::Number(n.into()),
        Field::Long(n) => Cell::Number(n as f64),
        Field::UByte(n) => Cell::Number(n.into()),
        Field::UShort(n) => Cell::Number(n.into()),
        Field::UInt(n) => Cell::Number(n.into()),
        Field::ULong(n) => Cell::Number(n as f64),
        Field::Float16(n) => Cell::Number(n.to_f64()),
        Field::Float(n) => Cell::Number(n.into()),
        Field::Double(n) => Cell::Number(n),
        Field::Str(text) => Cell::Text(text),
        Field::Bytes(bytes) => Cell::Text(String::from_utf8_lossy(bytes.data()).into_owned()),
        Field::ListInternal(list) => Cell::List(list.elements().iter().cloned().map(of_field).collect()),
        _ => Cell::Null,
    }
}
