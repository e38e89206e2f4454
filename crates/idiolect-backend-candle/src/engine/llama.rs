//! Llama-shaped transformers on the CPU: one pass over the prompt, then all continuations in one batch a step.
//!
//! The keys and values of the prompt are kept once and shared; each continuation owns only its own. A row's numbers
//! do not depend on what else is in its batch.

use rayon::prelude::*;

use super::params::{Pairs, Params};
use super::{Engine, EngineError, Session, pool};
use crate::error::LoadError;
use crate::kernels::{Activations, Matrix, Wide, wide};
use crate::loader::Gguf;
use crate::math;

/// Prompt tokens that are computed at once, between two looks at the clock.
const PREFILL: usize = 32;

/// Positions that a continuation gets memory for at first; it doubles when they are full.
const FIRST_ROOM: usize = 32;

/// A loaded model.
pub(crate) struct Llama {
    params: Params,
    embeddings: Matrix,
    /// `None` where the embeddings serve as output, too.
    output: Option<Matrix>,
    norm: Vec<f32>,
    layers: Vec<Layer>,
    pool: rayon::ThreadPool,
}

struct Layer {
    attention_norm: Vec<f32>,
    /// Queries, keys and values, one below the other.
    qkv: Matrix,
    qkv_bias: Option<Vec<f32>>,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    attention_output: Matrix,
    feed_forward_norm: Vec<f32>,
    /// Gate and up, one below the other.
    gate_up: Matrix,
    down: Matrix,
}

impl std::fmt::Debug for Llama {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Llama").field("params", &self.params).finish_non_exhaustive()
    }
}

impl Llama {
    /// Loads all weights. `context` is the longest sequence wanted.
    pub(crate) fn load(gguf: &mut Gguf, context: usize, threads: usize) -> Result<Self, LoadError> {
        let pool = pool(threads)?;
        let (params, embeddings, output, norm, layers) = pool.install(|| {
            let params = Params::read(gguf, context)?;
            if let Some(what) = params.beyond_llama() {
                return Err(LoadError::unsupported(gguf.path(), what, "models of Llama's own shape"));
            }
            let embeddings = gguf.matrix("token_embd.weight", params.vocabulary, params.width)?;
            let output = gguf
                .has("output.weight")
                .then(|| gguf.matrix("output.weight", params.vocabulary, params.width))
                .transpose()?;
            let norm = gguf.vector("output_norm.weight", params.width)?;
            let layers = (0..params.layers.len()).map(|i| Layer::load(gguf, &params, i)).collect::<Result<_, _>>()?;
            Ok::<_, LoadError>((params, embeddings, output, norm, layers))
        })?;
        Ok(Self { params, embeddings, output, norm, layers, pool })
    }
}

impl Layer {
    fn load(gguf: &mut Gguf, p: &Params, index: usize) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let (q, k, v) = (name("attn_q.weight"), name("attn_k.weight"), name("attn_v.weight"));
        let qkv = gguf.stacked(&[(&q, p.q_width()), (&k, p.kv_width()), (&v, p.kv_width())], p.width)?;
        let qkv_bias = if gguf.has(&name("attn_q.bias")) {
            let mut bias = gguf.vector(&name("attn_q.bias"), p.q_width())?;
            bias.extend(gguf.vector(&name("attn_k.bias"), p.kv_width())?);
            bias.extend(gguf.vector(&name("attn_v.bias"), p.kv_width())?);
            Some(bias)
        } else {
            None
        };
        let mut head_norm = |part: &str| {
            let name = name(part);
            gguf.has(&name).then(|| gguf.vector(&name, p.head_width)).transpose()
        };
        let (q_norm, k_norm) = (head_norm("attn_q_norm.weight")?, head_norm("attn_k_norm.weight")?);
        let (gate, up) = (name("ffn_gate.weight"), name("ffn_up.weight"));
        Ok(Self {
            attention_norm: gguf.vector(&name("attn_norm.weight"), p.width)?,
            qkv,
            qkv_bias,
            q_norm,
            k_norm,
            attention_output: gguf.matrix(&name("attn_output.weight"), p.width, p.q_width())?,
            feed_forward_norm: gguf.vector(&name("ffn_norm.weight"), p.width)?,
            gate_up: gguf.stacked(&[(&gate, p.feed_forward), (&up, p.feed_forward)], p.width)?,
            down: gguf.matrix(&name("ffn_down.weight"), p.width, p.feed_forward)?,
        })
    }
}

impl Engine for Llama {
    fn vocabulary(&self) -> usize {
        self.params.vocabulary
    }

    fn context(&self) -> usize {
        self.params.context
    }

    fn kv_bytes_per_token(&self) -> u64 {
        self.params.kv_bytes_per_token()
    }

    fn within(&self, work: &mut (dyn FnMut() + Send)) {
        self.pool.install(work);
    }

    fn start(
        &self,
        prompt: &[u32],
        slots: usize,
        room: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Box<dyn Session + '_>, EngineError> {
        let mut run = Run::new(self, prompt.len(), slots, room)?;
        for chunk in prompt.chunks(PREFILL) {
            if !go_on() {
                return Err(EngineError::Interrupted);
            }
            run.prefill(chunk)?;
        }
        let last = run.hidden.len() - self.params.width..run.hidden.len();
        run.hidden.copy_within(last, 0);
        run.hidden.truncate(self.params.width);
        run.project()?;
        Ok(Box::new(run))
    }

    fn rows(
        &self,
        tokens: &[u32],
        from: usize,
        go_on: &mut dyn FnMut() -> bool,
        sink: &mut dyn FnMut(&[f32]),
    ) -> Result<(), EngineError> {
        let mut run = Run::new(self, tokens.len(), 0, 0)?;
        let mut start = 0;
        for chunk in tokens.chunks(PREFILL) {
            if !go_on() {
                return Err(EngineError::Interrupted);
            }
            run.prefill(chunk)?;
            let end = start + chunk.len();
            if end > from {
                let skipped = from.saturating_sub(start);
                run.hidden.drain(..skipped * self.params.width);
                run.project()?;
                run.logits.chunks_exact(self.params.vocabulary).for_each(&mut *sink);
            }
            start = end;
        }
        Ok(())
    }
}

/// Keys and values of a stretch of tokens: for each layer, for each key head, position after position.
struct Cache {
    /// Positions that it may come to hold.
    most: usize,
    /// Positions that it has memory for.
    capacity: usize,
    len: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cache {
    /// Makes a cache with memory for the first `capacity` of `most` positions.
    fn new(p: &Params, capacity: usize, most: usize) -> Self {
        let capacity = capacity.min(most);
        let size = p.layers.len() * p.kv_width() * capacity;
        Self { most, capacity, len: 0, keys: vec![0.0; size], values: vec![0.0; size] }
    }

    /// Makes sure of memory for one more position, up to the most.
    fn reserve(&mut self, p: &Params) -> Result<(), EngineError> {
        if self.len == self.most {
            return Err(EngineError::Misuse("a continuation is longer than its room"));
        }
        if self.len == self.capacity {
            let mut larger = Self::new(p, (2 * self.capacity).max(FIRST_ROOM), self.most);
            let (old, new) = (self.capacity * p.head_width, larger.capacity * p.head_width);
            for (from, to) in [(&self.keys, &mut larger.keys), (&self.values, &mut larger.values)] {
                for (from, to) in from.chunks_exact(old.max(1)).zip(to.chunks_exact_mut(new)) {
                    to[..old].copy_from_slice(from);
                }
            }
            larger.len = self.len;
            *self = larger;
        }
        Ok(())
    }

    /// Where the positions of one head begin.
    const fn head(&self, p: &Params, layer: usize, head: usize) -> usize {
        (layer * p.kv_heads + head) * self.capacity * p.head_width
    }

    fn store(&mut self, p: &Params, layer: usize, position: usize, keys: &[f32], values: &[f32]) {
        let width = p.head_width;
        for head in 0..p.kv_heads {
            let at = self.head(p, layer, head) + position * width;
            self.keys[at..at + width].copy_from_slice(&keys[head * width..(head + 1) * width]);
            self.values[at..at + width].copy_from_slice(&values[head * width..(head + 1) * width]);
        }
    }

    /// Returns the first `len` keys and values of one head.
    fn stretch(&self, p: &Params, layer: usize, head: usize, len: usize) -> (&[f32], &[f32]) {
        let at = self.head(p, layer, head);
        (&self.keys[at..at + len * p.head_width], &self.values[at..at + len * p.head_width])
    }
}

/// One row of a batch.
#[derive(Clone, Copy)]
struct Row {
    token: u32,
    position: usize,
    /// The continuation that the token belongs to; `None` for the prompt.
    slot: Option<usize>,
}

/// The state of one request.
struct Run<'a> {
    model: &'a Llama,
    prompt: Cache,
    slots: Vec<Cache>,
    logits: Vec<f32>,
    rows: Vec<Row>,
    /// The residual stream, and after a pass the final states.
    hidden: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    wide: Vec<f32>,
    delta: Vec<f32>,
    rotation: Vec<(f32, f32)>,
    activations: Activations,
    scratch: Vec<f32>,
}

impl<'a> Run<'a> {
    fn new(model: &'a Llama, prompt: usize, slots: usize, room: usize) -> Result<Self, EngineError> {
        let p = &model.params;
        p.check_lengths(prompt, room)?;
        Ok(Self {
            model,
            prompt: Cache::new(p, prompt, prompt),
            slots: (0..slots).map(|_| Cache::new(p, FIRST_ROOM, room)).collect(),
            logits: Vec::new(),
            rows: Vec::new(),
            hidden: Vec::new(),
            normed: Vec::new(),
            qkv: Vec::new(),
            attended: Vec::new(),
            gate_up: Vec::new(),
            wide: Vec::new(),
            delta: Vec::new(),
            rotation: Vec::new(),
            activations: Activations::default(),
            scratch: Vec::new(),
        })
    }

    /// Computes the next tokens of the prompt.
    fn prefill(&mut self, tokens: &[u32]) -> Result<(), EngineError> {
        let first = self.prompt.len;
        let rows = tokens.iter().enumerate().map(|(i, token)| Row { token: *token, position: first + i, slot: None });
        self.rows = rows.collect();
        self.forward()?;
        self.prompt.len += tokens.len();
        Ok(())
    }

    /// Runs `self.rows` through all layers; the final states are left in `self.hidden`, normalised.
    fn forward(&mut self) -> Result<(), EngineError> {
        let model = self.model;
        let p = &model.params;
        let n = self.rows.len();
        self.hidden.resize(n * p.width, 0.0);
        for (row, hidden) in self.rows.iter().zip(self.hidden.chunks_exact_mut(p.width)) {
            if row.token as usize >= p.vocabulary {
                return Err(EngineError::Misuse("a token is beyond the vocabulary"));
            }
            model.embeddings.decode_row(row.token as usize, hidden);
        }
        self.rotation.clear();
        for row in &self.rows {
            self.rotation.extend(p.ropes[0].rotation(row.position));
        }
        for (index, layer) in model.layers.iter().enumerate() {
            self.attention(index, layer)?;
            self.feed_forward(layer)?;
        }
        self.normed.resize(n * p.width, 0.0);
        rms_norm(&self.hidden, &model.norm, p.epsilon, &mut self.normed)?;
        std::mem::swap(&mut self.hidden, &mut self.normed);
        Ok(())
    }

    fn attention(&mut self, index: usize, layer: &Layer) -> Result<(), EngineError> {
        let p = &self.model.params;
        let n = self.rows.len();
        let (q_width, kv_width) = (p.q_width(), p.kv_width());
        let row_width = q_width + 2 * kv_width;

        self.normed.resize(n * p.width, 0.0);
        rms_norm(&self.hidden, &layer.attention_norm, p.epsilon, &mut self.normed)?;
        self.activations.encode(&self.normed, p.width);
        self.qkv.resize(n * row_width, 0.0);
        layer.qkv.multiply(&self.activations, &mut self.qkv, &mut self.scratch);

        let half = p.rotated() / 2;
        let rotations = self.rotation.chunks_exact(half);
        for ((row, qkv), rotation) in self.rows.iter().zip(self.qkv.chunks_exact_mut(row_width)).zip(rotations) {
            if let Some(bias) = &layer.qkv_bias {
                math::add_scaled(qkv, 1.0, bias);
            }
            for (head, values) in qkv[..q_width + kv_width].chunks_exact_mut(p.head_width).enumerate() {
                let norm = if head < p.heads { &layer.q_norm } else { &layer.k_norm };
                if let Some(norm) = norm {
                    rms_norm_in_place(values, norm, p.epsilon);
                }
                rotate(values, rotation, p.pairs);
            }
            let (keys, values) = qkv[q_width..].split_at(kv_width);
            match row.slot {
                None => self.prompt.store(p, index, row.position, keys, values),
                Some(slot) => {
                    let cache = &mut self.slots[slot];
                    cache.store(p, index, row.position - self.prompt.len, keys, values);
                }
            }
        }

        self.attended.resize(n * q_width, 0.0);
        let group = p.heads / p.kv_heads * p.head_width;
        let (rows, qkv, prompt, slots) = (&self.rows, &self.qkv, &self.prompt, &self.slots);
        self.attended.par_chunks_exact_mut(group).enumerate().for_each_init(Vec::new, |scores, (task, out)| {
            let (row, head) = (task / p.kv_heads, task % p.kv_heads);
            let queries = &qkv[row * row_width + head * group..][..group];
            let Row { position, slot, .. } = rows[row];
            let seen = slot.map_or(position + 1, |_| prompt.len);
            let shared = prompt.stretch(p, index, head, seen);
            let own =
                slot.map_or((&[][..], &[][..]), |slot| slots[slot].stretch(p, index, head, position + 1 - prompt.len));
            wide(Attend { queries, stretches: [shared, own], width: p.head_width, scores, out });
        });

        self.activations.encode(&self.attended, q_width);
        self.delta.resize(n * p.width, 0.0);
        layer.attention_output.multiply(&self.activations, &mut self.delta, &mut self.scratch);
        math::add_scaled(&mut self.hidden, 1.0, &self.delta);
        Ok(())
    }

    fn feed_forward(&mut self, layer: &Layer) -> Result<(), EngineError> {
        let p = &self.model.params;
        let n = self.rows.len();
        rms_norm(&self.hidden, &layer.feed_forward_norm, p.epsilon, &mut self.normed)?;
        self.activations.encode(&self.normed, p.width);
        self.gate_up.resize(n * 2 * p.feed_forward, 0.0);
        layer.gate_up.multiply(&self.activations, &mut self.gate_up, &mut self.scratch);
        self.wide.resize(n * p.feed_forward, 0.0);
        let rows = self.gate_up.chunks_exact(2 * p.feed_forward).zip(self.wide.chunks_exact_mut(p.feed_forward));
        for (gate_up, wide) in rows {
            let (gate, up) = gate_up.split_at(p.feed_forward);
            for ((wide, gate), up) in wide.iter_mut().zip(gate).zip(up) {
                *wide = gate / (1.0 + math::exp(-gate)) * up;
            }
        }
        self.activations.encode(&self.wide, p.feed_forward);
        self.delta.resize(n * p.width, 0.0);
        layer.down.multiply(&self.activations, &mut self.delta, &mut self.scratch);
        math::add_scaled(&mut self.hidden, 1.0, &self.delta);
        Ok(())
    }

    /// Computes the logits of every row of `self.hidden`.
    fn project(&mut self) -> Result<(), EngineError> {
        let p = &self.model.params;
        let output = self.model.output.as_ref().unwrap_or(&self.model.embeddings);
        self.activations.encode(&self.hidden, p.width);
        self.logits.resize(self.hidden.len() / p.width * output.rows(), 0.0);
        output.multiply(&self.activations, &mut self.logits, &mut self.scratch);
        Ok(())
    }
}

impl Session for Run<'_> {
    fn logits(&self) -> &[f32] {
        &self.logits
    }

    fn step(&mut self, batch: &[(usize, u32)]) -> Result<(), EngineError> {
        self.rows.clear();
        for (slot, token) in batch {
            let Some(cache) = self.slots.get_mut(*slot) else {
                return Err(EngineError::Misuse("there is no such slot"));
            };
            cache.reserve(&self.model.params)?;
            self.rows.push(Row { token: *token, position: self.prompt.len + cache.len, slot: Some(*slot) });
        }
        self.forward()?;
        for (slot, _) in batch {
            self.slots[*slot].len += 1;
        }
        self.project()
    }
}

/// Normalises each row of `input` by its root mean square.
fn rms_norm(input: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) -> Result<(), EngineError> {
    for (input, output) in input.chunks_exact(weight.len()).zip(output.chunks_exact_mut(weight.len())) {
        let scale = inverse_rms(input, epsilon);
        // One bad number anywhere in the row shows here, and every layer passes here.
        if !scale.is_finite() || scale == 0.0 {
            return Err(EngineError::NotFinite);
        }
        for ((output, input), weight) in output.iter_mut().zip(input).zip(weight) {
            *output = input * scale * weight;
        }
    }
    Ok(())
}

fn rms_norm_in_place(values: &mut [f32], weight: &[f32], epsilon: f32) {
    let scale = inverse_rms(values, epsilon);
    for (value, weight) in values.iter_mut().zip(weight) {
        *value *= scale * weight;
    }
}

fn inverse_rms(values: &[f32], epsilon: f32) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "a width is far below 2^24")]
    let mean = math::dot(values, values) / values.len() as f32;
    1.0 / (mean + epsilon).sqrt()
}

/// Turns the pairs of one head; `rotation` holds sine and cosine of each.
fn rotate(values: &mut [f32], rotation: &[(f32, f32)], pairs: Pairs) {
    match pairs {
        Pairs::Neighbours => {
            for (pair, (sin, cos)) in values.as_chunks_mut::<2>().0.iter_mut().zip(rotation) {
                let [a, b] = *pair;
                *pair = [a * cos - b * sin, a * sin + b * cos];
            }
        }
        Pairs::Halves => {
            let (first, second) = values[..2 * rotation.len()].split_at_mut(rotation.len());
            for ((a, b), (sin, cos)) in first.iter_mut().zip(second).zip(rotation) {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
        }
    }
}

/// Attends from the queries that share one key head to stretches of keys and values.
struct Attend<'a> {
    queries: &'a [f32],
    stretches: [(&'a [f32], &'a [f32]); 2],
    width: usize,
    scores: &'a mut Vec<f32>,
    out: &'a mut [f32],
}

impl Wide for Attend<'_> {
    type Output = ();

    #[expect(clippy::inline_always, reason = "Wide asks for it")]
    #[inline(always)]
    fn run(self) {
        let Self { queries, stretches, width, scores, out } = self;
        #[expect(clippy::cast_precision_loss, reason = "a head has a few hundred elements")]
        let scale = 1.0 / (width as f32).sqrt();
        let seen: usize = stretches.iter().map(|(keys, _)| keys.len() / width).sum();
        scores.resize(seen, 0.0);
        for (query, out) in queries.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let mut position = 0;
            for (keys, _) in stretches {
                for key in keys.chunks_exact(width) {
                    scores[position] = math::dot(query, key) * scale;
                    position += 1;
                }
            }
            math::softmax(scores);
            out.fill(0.0);
            let mut position = 0;
            for (_, values) in stretches {
                for value in values.chunks_exact(width) {
                    math::add_scaled(out, scores[position], value);
                    position += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_core::quantized::GgmlDType;
    use candle_core::quantized::gguf_file::Value;

    use super::*;
    use crate::engine::checks::{check_near, cosine, go, prompt, reference, reference_of};
    use crate::testing::{self, TinyGguf};

    fn load(tiny: &TinyGguf) -> Result<Llama, LoadError> {
        let (_dir, mut gguf) = tiny.open();
        Llama::load(&mut gguf, 4096, 2)
    }

    #[test]
    fn logits_are_those_of_candles_own_models() {
        for architecture in ["llama", "qwen2", "qwen3"] {
            let tiny = TinyGguf::model(architecture);
            let model = load(&tiny).unwrap();
            let then = [5, 6, 7];
            let expected = reference(architecture, &tiny, &prompt(), &then);
            let mut session = model.start(&prompt(), 1, 3, &mut go()).unwrap();
            check_near(session.logits(), &expected[0], 0.05, architecture);
            for (token, expected) in then.iter().zip(&expected[1..]) {
                session.step(&[(0, *token)]).unwrap();
                check_near(session.logits(), expected, 0.05, architecture);
            }
        }
    }

    #[test]
    fn the_default_model_computes_what_candle_computes() {
        let path = testing::smollm2();
        let mut gguf = Gguf::open(&path).unwrap();
        let model = Llama::load(&mut gguf, 256, 2).unwrap();
        let tokens = [1, 4093, 198, 504, 3575, 282, 4649, 314];
        let session = model.start(&tokens, 1, 1, &mut go()).unwrap();
        let expected = reference_of("llama", std::fs::File::open(&path).unwrap(), &tokens, &[]);
        let cosine = cosine(session.logits(), &expected[0]);
        assert!(cosine > 0.998, "cosine of {cosine}");
    }

    #[test]
    fn a_continuation_does_not_depend_on_its_batch() {
        let model = load(&TinyGguf::model("llama")).unwrap();
        let texts: [[u32; 3]; 5] = std::array::from_fn(|i| [1, 2, 3].map(|j| (i as u32 + 1) * 10 + j));
        let mut together = model.start(&prompt(), 5, 3, &mut go()).unwrap();
        let mut rows = Vec::new();
        for step in 0..3 {
            let batch: Vec<(usize, u32)> = texts.iter().enumerate().map(|(slot, text)| (slot, text[step])).collect();
            together.step(&batch).unwrap();
            rows.push(together.logits().to_vec());
        }
        for (slot, text) in texts.iter().enumerate() {
            let mut alone = model.start(&prompt(), 1, 3, &mut go()).unwrap();
            for (token, rows) in text.iter().zip(&rows) {
                alone.step(&[(0, *token)]).unwrap();
                let own = &rows[slot * testing::VOCABULARY..(slot + 1) * testing::VOCABULARY];
                assert_eq!(alone.logits(), own, "slot {slot}");
            }
        }
    }

    #[test]
    fn rows_of_a_text_are_those_of_its_steps() {
        let model = load(&TinyGguf::model("qwen3")).unwrap();
        let tokens = prompt();
        for from in [0, 31, 32, 33, 69] {
            let mut rows = Vec::new();
            model.rows(&tokens, from, &mut go(), &mut |row| rows.push(row.to_vec())).unwrap();
            assert_eq!(rows.len(), tokens.len() - from);
            let start = model.start(&tokens[..=from], 1, tokens.len() - from, &mut go()).unwrap();
            assert_eq!(start.logits(), rows[0]);
            let last = model.start(&tokens, 1, 1, &mut go()).unwrap();
            assert_eq!(last.logits(), *rows.last().unwrap());
        }
    }

    #[test]
    fn slots_may_leave_and_grow_apart() {
        let model = load(&TinyGguf::model("llama")).unwrap();
        let mut session = model.start(&prompt(), 3, 4, &mut go()).unwrap();
        session.step(&[(0, 1), (1, 2), (2, 3)]).unwrap();
        session.step(&[(2, 4)]).unwrap();
        session.step(&[(0, 5), (2, 6)]).unwrap();
        let mut alone = model.start(&prompt(), 1, 4, &mut go()).unwrap();
        for token in [3, 4, 6] {
            alone.step(&[(0, token)]).unwrap();
        }
        assert_eq!(alone.logits(), &session.logits()[testing::VOCABULARY..]);
    }

    #[test]
    fn continuations_grow_beyond_their_first_memory() {
        let model = load(&TinyGguf::model("llama")).unwrap();
        let text: Vec<u32> = (0..2 * FIRST_ROOM as u32 + 3).map(|i| i * 31 % 256).collect();
        let mut session = model.start(&[1, 2], 2, text.len(), &mut go()).unwrap();
        for token in &text {
            session.step(&[(0, *token), (1, 255 - token)]).unwrap();
        }
        let whole = [&[1, 2], &text[..]].concat();
        let expected = model.start(&whole, 1, 0, &mut go()).unwrap();
        assert_eq!(&session.logits()[..testing::VOCABULARY], expected.logits());
        assert!(session.step(&[(0, 1)]).is_err(), "no more than its room");
    }

    #[test]
    fn misuse_is_an_error() {
        let model = load(&TinyGguf::model("llama")).unwrap();
        assert!(model.start(&[], 1, 1, &mut go()).is_err());
        assert!(model.start(&[999], 1, 1, &mut go()).is_err());
        assert!(model.start(&[1; 128], 1, 1, &mut go()).is_err(), "no room in the context");
        assert!(matches!(model.start(&prompt(), 1, 1, &mut || false), Err(EngineError::Interrupted)));
        let mut session = model.start(&[1], 1, 1, &mut go()).unwrap();
        assert!(session.step(&[(1, 1)]).is_err(), "no such slot");
        session.step(&[(0, 1)]).unwrap();
        assert!(session.step(&[(0, 1)]).is_err(), "no room");
    }

    #[test]
    fn weights_of_every_format_give_nearly_the_same() {
        let mut tiny = TinyGguf::model("llama");
        let exact = load(&tiny).unwrap();
        let exact = exact.start(&prompt(), 1, 1, &mut go()).unwrap().logits().to_vec();
        let values = tiny.tensors.iter().find(|(name, _)| name == "blk.0.ffn_up.weight").unwrap();
        let values = values.1.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let formats = [
            (GgmlDType::F32, 0.0001),
            (GgmlDType::F16, 0.03),
            (GgmlDType::BF16, 0.1),
            (GgmlDType::Q8_0, 0.0001),
            (GgmlDType::Q5_1, 0.2),
            (GgmlDType::Q5_0, 0.2),
            (GgmlDType::Q4_1, 0.4),
            (GgmlDType::Q4_0, 0.4),
        ];
        for (format, tolerance) in formats {
            tiny.tensor("blk.0.ffn_up.weight", values.clone(), &[96, testing::WIDTH], format);
            let model = load(&tiny).unwrap();
            let session = model.start(&prompt(), 1, 1, &mut go()).unwrap();
            check_near(session.logits(), &exact, tolerance, &format!("{format:?}"));
        }
    }

    fn refused(change: impl FnOnce(&mut TinyGguf)) -> String {
        let mut tiny = TinyGguf::model("llama");
        change(&mut tiny);
        load(&tiny).unwrap_err().to_string()
    }

    #[test]
    fn models_that_cannot_run_are_refused_with_the_reason() {
        let text = |text: &str| Value::String(text.to_owned());
        let unknown = refused(|g| g.set("general.architecture", text("mamba")));
        assert!(
            unknown.contains("architecture \"mamba\" is not supported; supported: llama, qwen2, qwen3, phi3, gemma"),
            "{unknown}"
        );
        assert!(refused(|g| g.set("llama.expert_count", Value::U32(8))).contains("mixture of experts"));
        assert!(refused(|g| g.set("llama.rope.scaling.type", text("dynamic"))).contains("\"dynamic\""));
        for key in ["llama.attention.head_count", "llama.block_count", "llama.embedding_length", "llama.context_length"]
        {
            assert!(refused(|g| g.unset(key)).contains(key), "{key}");
            refused(|g| g.set(key, Value::U32(0)));
            refused(|g| g.set(key, Value::I32(-1)));
            refused(|g| g.set(key, text("many")));
        }
        assert!(refused(|g| g.set("llama.attention.head_count_kv", Value::U32(3))).contains("3 key heads"));
        refused(|g| g.set("llama.embedding_length", Value::U64(u64::MAX)));
        refused(|g| g.set("llama.feed_forward_length", Value::U64(u64::MAX)));
        refused(|g| g.set("llama.rope.dimension_count", Value::U32(17)));
        refused(|g| g.set("llama.rope.freq_base", Value::F32(0.0)));
        assert!(refused(|g| g.tensors.retain(|(n, _)| n != "blk.1.attn_k.weight")).contains("blk.1.attn_k.weight"));
        let ones = vec![1.0; 32];
        assert!(refused(|g| g.tensor("output_norm.weight", ones, &[32], GgmlDType::F32)).contains("expected [64]"));
        let nan = vec![f32::NAN; 64];
        assert!(refused(|g| g.tensor("output_norm.weight", nan, &[64], GgmlDType::F32)).contains("no number"));
        let mut weights = vec![0.1; 96 * 64];
        weights[700] = f32::INFINITY;
        let infinite = refused(|g| g.tensor("blk.0.ffn_up.weight", weights, &[96, 64], GgmlDType::F32));
        assert!(infinite.contains("no number"), "{infinite}");
    }

    #[test]
    fn overflow_in_the_model_is_an_error() {
        let mut tiny = TinyGguf::model("llama");
        tiny.tensor("blk.0.ffn_norm.weight", vec![3e38; 64], &[64], GgmlDType::F32);
        let model = load(&tiny).unwrap();
        assert!(matches!(model.start(&prompt(), 1, 1, &mut go()), Err(EngineError::NotFinite)));
    }
}
