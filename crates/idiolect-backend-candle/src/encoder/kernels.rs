//! Encoders on the processor: texts of any lengths in one pass, without padding.
//!
//! The tokens of all texts lie one after the other in one matrix; only attention looks at texts apart.

use std::sync::Mutex;

use idiolect_kernels::{Epilogue, LayerNorm, PackedF32, PositionBias, Rows, Team, attend_within_texts};

use super::plan::{Plan, plan};
use super::weights::{self, Shape, Weights};
use super::{Fault, pool};
use crate::error::LoadError;

struct Layer {
    qkv: PackedF32,
    attended: PackedF32,
    attention_norm: LayerNorm,
    up: PackedF32,
    down: PackedF32,
    output_norm: LayerNorm,
}

/// A loaded model.
pub(super) struct Model {
    shape: Shape,
    words: Vec<f32>,
    positions: Vec<f32>,
    norm: LayerNorm,
    bias: Option<PositionBias>,
    layers: Vec<Layer>,
}

fn packed(linear: &weights::Linear) -> PackedF32 {
    PackedF32::pack(linear.rows, linear.cols, &linear.weight, &linear.bias)
}

/// What a pass works on.
struct Scratch {
    hidden: Rows,
    qkv: Rows,
    attended: Rows,
    inner: Rows,
}

impl Scratch {
    const fn new(shape: &Shape) -> Self {
        Self {
            hidden: Rows::new(shape.width),
            qkv: Rows::new(3 * shape.width),
            attended: Rows::new(shape.width),
            inner: Rows::new(shape.inner),
        }
    }
}

type Outcome = Result<Option<Vec<Vec<f32>>>, Fault>;

impl Model {
    /// Loads all weights.
    pub(super) fn load(weights: &mut Weights, shape: Shape) -> Result<Self, LoadError> {
        let norm = |norm: weights::Norm| LayerNorm::new(norm.weight, norm.bias, shape.epsilon);
        let words = weights.words()?;
        let positions = weights.positions()?;
        let bias = weights.position_bias()?.map(|table| {
            let of = |head: usize, distance: isize| table[shape.bucket(distance) * shape.heads + head];
            PositionBias::new(shape.heads, shape.max_tokens(), of)
        });
        let embedding_norm = norm(weights.norm()?);
        let layers = (0..shape.layers)
            .map(|i| {
                let layer = weights.layer(i)?;
                Ok(Layer {
                    qkv: packed(&layer.qkv),
                    attended: packed(&layer.attended),
                    attention_norm: norm(layer.attention_norm),
                    up: packed(&layer.up),
                    down: packed(&layer.down),
                    output_norm: norm(layer.output_norm),
                })
            })
            .collect::<Result<_, LoadError>>()?;
        Ok(Self { words, positions, norm: embedding_norm, bias, layers, shape })
    }

    /// Returns the number of values of an embedding.
    pub(super) const fn dimensions(&self) -> usize {
        self.shape.width
    }

    /// Returns each text's embedding, or nothing when `go_on` says no. No text may be empty.
    pub(super) fn embed(&self, texts: &[&[u32]], team: &Team, go_on: &(dyn Fn() -> bool + Sync)) -> Outcome {
        let lens: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        let scratches = Mutex::new(Vec::new());
        let pass = |group: &Vec<usize>| {
            let lock = || scratches.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let mut scratch = lock().pop().unwrap_or_else(|| Scratch::new(&self.shape));
            let texts: Vec<&[u32]> = group.iter().map(|i| texts[*i]).collect();
            let outcome = self.pass(&texts, team, &mut scratch, go_on);
            lock().push(scratch);
            outcome
        };
        let (groups, outcomes) = match plan(&lens, team.threads()) {
            Plan::Together(groups) => {
                let outcomes: Vec<Outcome> = groups.iter().map(pass).collect();
                (groups, outcomes)
            }
            Plan::Apart(groups) => {
                let mut outcomes: Vec<Outcome> = groups.iter().map(|_| Ok(None)).collect();
                team.chunks_mut(&mut outcomes, 1, |i, outcome| outcome[0] = pass(&groups[i]));
                (groups, outcomes)
            }
        };
        let mut embeddings = vec![Vec::new(); texts.len()];
        for (group, outcome) in groups.iter().zip(outcomes) {
            let Some(outcome) = outcome? else { return Ok(None) };
            for (i, embedding) in group.iter().zip(outcome) {
                embeddings[*i] = embedding;
            }
        }
        Ok(Some(embeddings))
    }

    fn pass(&self, texts: &[&[u32]], team: &Team, scratch: &mut Scratch, go_on: &(dyn Fn() -> bool + Sync)) -> Outcome {
        let Scratch { hidden, qkv, attended, inner } = scratch;
        let lens: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        let n = lens.iter().sum();
        for rows in [&mut *hidden, qkv, attended, inner] {
            rows.reset(n);
        }
        self.begin(texts, hidden)?;
        self.norm.apply(team, hidden);
        for layer in &self.layers {
            if !go_on() {
                return Ok(None);
            }
            layer.qkv.multiply(team, hidden, qkv, Epilogue::Store);
            attend_within_texts(team, qkv, &lens, self.shape.heads, self.bias.as_ref(), attended);
            layer.attended.multiply(team, attended, hidden, Epilogue::Add);
            layer.attention_norm.apply(team, hidden);
            layer.up.multiply(team, hidden, inner, Epilogue::Gelu);
            layer.down.multiply(team, inner, hidden, Epilogue::Add);
            layer.output_norm.apply(team, hidden);
        }
        let mut first = 0;
        let pooled = lens.iter().map(|len| {
            let rows = (first..first + len).map(|i| hidden.row(i));
            first += len;
            pool(rows, self.shape.width)
        });
        pooled.collect::<Result<_, Fault>>().map(Some)
    }

    /// Writes the embeddings of all tokens.
    fn begin(&self, texts: &[&[u32]], hidden: &mut Rows) -> Result<(), Fault> {
        let width = self.shape.width;
        let mut row = 0;
        for text in texts {
            if text.len() > self.shape.max_tokens() {
                return Err(Fault::TooLong(text.len()));
            }
            for (token, position) in text.iter().zip(self.shape.positions(text)) {
                let word = self.words.get(*token as usize * width..(*token as usize + 1) * width);
                let word = word.ok_or(Fault::UnknownToken(*token))?;
                let position = &self.positions[position * width..(position + 1) * width];
                let values = hidden.row_mut(row).iter_mut().zip(word.iter().zip(position));
                values.for_each(|(value, (word, position))| *value = word + position);
                row += 1;
            }
        }
        Ok(())
    }
}
