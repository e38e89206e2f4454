//! Llama-shaped transformers on the processor: rows of any number of sequences in one batch.
//!
//! A batch's rows are tokens: the next ones of prompts, and one each of all that grows. Weights are read once for all of
//! them. Keys and values lie in blocks that sequences share, so that a prompt is computed once for all its continuations,
//! and what prompts begin with alike once for all of them. A row's numbers do not depend on what else is in its batch.

use idiolect_kernels::{
    Activations, BLOCK_TOKENS, Delta, Gate, KvCache, KvShape, KvType, Matrix, Rotation, Span, Team, Tier, Turn, View,
    Write, add_and_normalise, gated, soft_cap,
};

use super::blocks::Blocks;
use super::params::{Activation, Pairs, Params};
use super::slots::Slots;
use super::{Engine, EngineError, Feed, Portion, Seq, Wants};
use crate::error::LoadError;
use crate::weights::{Part, Role, Weights};

/// How the engine runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) threads: usize,
    pub(crate) tier: Tier,
    pub(crate) kv_type: KvType,
    /// Most bytes of keys and values.
    pub(crate) max_kv_bytes: u64,
    /// Most of them that are kept for later prompts.
    pub(crate) max_kept_bytes: u64,
}

#[cfg(test)]
impl Settings {
    pub(crate) fn for_tests() -> Self {
        Self { threads: 2, tier: Tier::detect(), kv_type: KvType::F32, max_kv_bytes: 1 << 30, max_kept_bytes: 1 << 20 }
    }
}

/// A loaded model with its sequences.
pub(crate) struct Transformer {
    model: Model,
    team: Team,
    cache: KvCache,
    blocks: Blocks,
    sequences: Slots<Sequence>,
    board: Board,
}

struct Model {
    params: Params,
    tier: Tier,
    embeddings: Matrix,
    /// `None` where the embeddings serve as output, too.
    output: Option<Matrix>,
    norm: Vec<f32>,
    layers: Vec<Layer>,
}

struct Layer {
    attention_norm: Vec<f32>,
    /// Queries, keys and values, one below the other.
    qkv: Matrix,
    qkv_bias: Option<Vec<f32>>,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    attention_output: Matrix,
    post_attention_norm: Option<Vec<f32>>,
    feed_forward_norm: Vec<f32>,
    /// Gate and up, one below the other.
    gate_up: Matrix,
    down: Matrix,
    post_feed_forward_norm: Option<Vec<f32>>,
}

/// What a sequence holds.
#[derive(Debug, Default)]
struct Sequence {
    blocks: Vec<u32>,
    len: usize,
    /// The prompt, as far as its blocks may be kept.
    prompt: Vec<u32>,
    /// How many of its blocks are kept, and the node of the last.
    kept: usize,
    node: Option<u32>,
}

/// What a pass writes on.
#[derive(Default)]
struct Board {
    logits: Vec<f32>,
    /// The residual stream.
    hidden: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    wide: Vec<f32>,
    delta: Vec<f32>,
    activations: Activations,
    /// One for each of the model's rotations.
    rotations: Vec<Rotation>,
}

impl std::fmt::Debug for Transformer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transformer")
            .field("params", &self.model.params)
            .field("team", &self.team)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

impl Transformer {
    /// Loads all weights.
    pub(crate) fn load(weights: &mut Weights, settings: &Settings) -> Result<Self, LoadError> {
        let team = Team::new(settings.threads).map_err(LoadError::Thread)?;
        let params = weights.params().clone();
        let tier = settings.tier;
        let layers =
            (0..params.layers.len()).map(|i| Layer::load(weights, &params, i, tier)).collect::<Result<_, _>>()?;
        let embeddings = weights.matrix(&[Role::Embeddings], tier)?;
        let output = if params.tied { None } else { Some(weights.matrix(&[Role::Output], tier)?) };
        let norm = weights.vector(Role::OutputNorm)?;
        let shape = KvShape {
            layers: params.layers.len(),
            kv_heads: params.kv_heads,
            head_width: params.head_width,
            kv_type: settings.kv_type,
        };
        let blocks = |bytes: u64| usize::try_from(bytes / shape.block_bytes() as u64).unwrap_or(usize::MAX);
        let most = blocks(settings.max_kv_bytes).min(u32::MAX as usize);
        Ok(Self {
            model: Model { params, tier, embeddings, output, norm, layers },
            team,
            cache: KvCache::new(shape, tier),
            blocks: Blocks::new(most, blocks(settings.max_kept_bytes).min(most)),
            sequences: Slots::default(),
            board: Board::default(),
        })
    }

    fn take_block(&mut self) -> Result<u32, EngineError> {
        let full = EngineError::Misuse("the memory for keys and values is full");
        let block = self.blocks.take().ok_or(full)?;
        while self.cache.len() <= block as usize {
            if !self.cache.grow() {
                self.blocks.drop_hold(block);
                return Err(EngineError::Device("there is no memory for keys and values".to_owned()));
            }
        }
        Ok(block)
    }

    /// Makes sure that a sequence has blocks of its own for its next `n` positions.
    fn make_room(&mut self, seq: Seq, n: usize) -> Result<(), EngineError> {
        let context = self.model.params.context;
        let sequence = self.sequences.get(seq)?;
        let (len, held, last) = (sequence.len, sequence.blocks.len(), sequence.blocks.last().copied());
        if len + n > context {
            return Err(EngineError::Misuse("a sequence is longer than the context"));
        }
        if let Some(last) = last
            && len < held * BLOCK_TOKENS
            && !self.blocks.is_sole(last)
        {
            let own = self.take_block()?;
            self.cache.copy(last, own);
            self.blocks.drop_hold(last);
            self.sequences.get_mut(seq)?.blocks[held - 1] = own;
        }
        for _ in held..(len + n).div_ceil(BLOCK_TOKENS) {
            let block = self.take_block()?;
            self.sequences.get_mut(seq)?.blocks.push(block);
        }
        Ok(())
    }

    /// Keeps those blocks of a prompt that are full now.
    fn keep(&mut self, seq: Seq) -> Result<(), EngineError> {
        let Self { sequences, blocks, .. } = self;
        let sequence = sequences.get_mut(seq)?;
        let full = sequence.prompt.len().min(sequence.len) / BLOCK_TOKENS;
        while sequence.kept < full {
            let at = sequence.kept;
            let tokens = &sequence.prompt[at * BLOCK_TOKENS..(at + 1) * BLOCK_TOKENS];
            let Some((node, block)) = blocks.keep(sequence.node, tokens, sequence.blocks[at]) else {
                // No room: what follows could not be found without this.
                sequence.prompt.clear();
                return Ok(());
            };
            sequence.node = Some(node);
            sequence.blocks[at] = block;
            sequence.kept += 1;
        }
        Ok(())
    }
}

impl Layer {
    fn load(weights: &mut Weights, p: &Params, index: usize, tier: Tier) -> Result<Self, LoadError> {
        let role = |part| Role::Layer(index, part);
        let qkv = weights.matrix(&[role(Part::Query), role(Part::Key), role(Part::Value)], tier)?;
        let qkv_bias = if p.qkv_bias {
            let mut bias = weights.vector(role(Part::QueryBias))?;
            bias.extend(weights.vector(role(Part::KeyBias))?);
            bias.extend(weights.vector(role(Part::ValueBias))?);
            Some(bias)
        } else {
            None
        };
        let mut vector_if = |there: bool, part| there.then(|| weights.vector(role(part))).transpose();
        Ok(Self {
            qkv_bias,
            q_norm: vector_if(p.qk_norm, Part::QueryNorm)?,
            k_norm: vector_if(p.qk_norm, Part::KeyNorm)?,
            post_attention_norm: vector_if(p.post_norms, Part::PostAttentionNorm)?,
            post_feed_forward_norm: vector_if(p.post_norms, Part::PostFeedForwardNorm)?,
            attention_norm: weights.vector(role(Part::AttentionNorm))?,
            feed_forward_norm: weights.vector(role(Part::FeedForwardNorm))?,
            qkv,
            attention_output: weights.matrix(&[role(Part::AttentionOutput)], tier)?,
            gate_up: weights.matrix(&[role(Part::Gate), role(Part::Up)], tier)?,
            down: weights.matrix(&[role(Part::Down)], tier)?,
        })
    }
}

/// The rows of a pass.
struct Rows<'a> {
    spans: Vec<Span<'a>>,
    writes: Vec<Write>,
    /// The rows that logits are wanted of, in order, and what they are in attention.
    wanted: Vec<usize>,
    wanted_spans: Vec<Span<'a>>,
    n: usize,
}

impl<'a> Rows<'a> {
    fn new(sequences: &'a Slots<Sequence>, feeds: &[Feed<'_>]) -> Self {
        let mut rows =
            Self { spans: Vec::new(), writes: Vec::new(), wanted: Vec::new(), wanted_spans: Vec::new(), n: 0 };
        for feed in feeds {
            let Ok(sequence) = sequences.get(feed.seq) else { continue };
            let (blocks, n) = (&sequence.blocks[..], feed.tokens.len());
            rows.spans.push(Span { blocks, row: rows.n, n, position: sequence.len });
            let mut done = 0;
            while done < n {
                let position = sequence.len + done;
                let slot = position % BLOCK_TOKENS;
                let fits = (BLOCK_TOKENS - slot).min(n - done);
                let block = blocks[position / BLOCK_TOKENS];
                rows.writes.push(Write { block, slot, row: rows.n + done, n: fits });
                done += fits;
            }
            let wanted = match feed.wants {
                Wants::Nothing => n..n,
                Wants::Last => n - 1..n,
                Wants::All => 0..n,
            };
            if !wanted.is_empty() {
                let (row, position) = (rows.wanted.len(), sequence.len + wanted.start);
                rows.wanted_spans.push(Span { blocks, row, n: wanted.len(), position });
                rows.wanted.extend(wanted.map(|i| rows.n + i));
            }
            rows.n += n;
        }
        rows
    }
}

/// Moves some rows to the front, in order, and forgets the rest.
fn select(values: &mut Vec<f32>, width: usize, rows: &[usize]) {
    for (to, from) in rows.iter().enumerate() {
        if to != *from {
            values.copy_within(from * width..(from + 1) * width, to * width);
        }
    }
    values.truncate(rows.len() * width);
}

impl Model {
    /// Computes the rows through all layers, and the logits that are wanted.
    fn forward(&self, team: &Team, cache: &mut KvCache, board: &mut Board, feeds: &[Feed<'_>], rows: &Rows<'_>) {
        let p = &self.params;
        let tokens: Vec<u32> = feeds.iter().flat_map(|feed| feed.tokens.iter().copied()).collect();
        board.hidden.resize(rows.n * p.width, 0.0);
        let each = rows.n.div_ceil(4 * team.threads()).max(4);
        team.chunks_mut(&mut board.hidden, each * p.width, |task, hidden| {
            for (token, hidden) in tokens[task * each..].iter().zip(hidden.chunks_exact_mut(p.width)) {
                self.embeddings.decode_row(*token as usize, hidden);
                if p.embedding_scale != 1.0 {
                    hidden.iter_mut().for_each(|value| *value *= p.embedding_scale);
                }
            }
        });
        self.rotations(board, rows);

        let mut delta_norm = None;
        let n_layers = self.layers.len();
        for (index, layer) in self.layers.iter().enumerate() {
            self.normalise(team, board, index > 0, delta_norm, &layer.attention_norm);
            let last = index + 1 == n_layers;
            self.attention(team, cache, board, rows, index, last);
            if rows.wanted.is_empty() && last {
                // Keys and values are all that was wanted.
                board.logits.clear();
                return;
            }
            self.normalise(team, board, true, layer.post_attention_norm.as_deref(), &layer.feed_forward_norm);
            self.feed_forward(team, board, layer);
            delta_norm = layer.post_feed_forward_norm.as_deref();
        }
        self.normalise(team, board, true, delta_norm, &self.norm);
        let output = self.output.as_ref().unwrap_or(&self.embeddings);
        fine_product(team, output, &mut board.activations, &board.normed, &mut board.logits);
        if let Some(cap) = p.logit_softcap {
            soft_cap(team, self.tier, cap, &mut board.logits);
        }
    }

    fn rotations(&self, board: &mut Board, rows: &Rows<'_>) {
        let p = &self.params;
        board.rotations.resize_with(p.ropes.len(), Rotation::default);
        for (rope, rotation) in p.ropes.iter().zip(&mut board.rotations) {
            rotation.begin(p.pairs == Pairs::Neighbours);
            for position in rows.spans.iter().flat_map(|span| span.position..span.position + span.n) {
                rotation.push(rope.rotation(position));
            }
        }
    }

    /// Adds what the last half of a layer gave to the stream, and normalises that.
    fn normalise(&self, team: &Team, board: &mut Board, add: bool, delta_norm: Option<&[f32]>, weight: &[f32]) {
        let Board { hidden, delta, normed, .. } = board;
        normed.resize(hidden.len(), 0.0);
        let delta = add.then_some(Delta { rows: delta, norm: delta_norm });
        add_and_normalise(team, self.tier, hidden, delta, weight, self.params.epsilon, normed);
    }

    /// Attends. In the last layer only rows whose logits are wanted go on.
    fn attention(
        &self,
        team: &Team,
        cache: &mut KvCache,
        board: &mut Board,
        rows: &Rows<'_>,
        index: usize,
        last: bool,
    ) {
        let (p, layer) = (&self.params, &self.layers[index]);
        fine_product(team, &layer.qkv, &mut board.activations, &board.normed, &mut board.qkv);
        let about = p.layers[index];
        let turn = Turn {
            heads: p.heads,
            bias: layer.qkv_bias.as_deref(),
            q_norm: layer.q_norm.as_deref(),
            k_norm: layer.k_norm.as_deref(),
            epsilon: p.epsilon,
            rotation: &board.rotations[about.rope],
            query_scale: p.query_scale,
        };
        cache.append(team, index, &turn, &mut board.qkv, &rows.writes);
        let mut spans = &rows.spans;
        let mut n = rows.n;
        if last && rows.wanted.len() < rows.n {
            if rows.wanted.is_empty() {
                return;
            }
            select(&mut board.qkv, p.q_width() + 2 * p.kv_width(), &rows.wanted);
            select(&mut board.hidden, p.width, &rows.wanted);
            (spans, n) = (&rows.wanted_spans, rows.wanted.len());
        }
        board.attended.resize(n * p.q_width(), 0.0);
        let view = View { heads: p.heads, window: about.window, softcap: p.attention_softcap };
        cache.attend(team, index, &view, &board.qkv, spans, &mut board.attended);
        product(team, &layer.attention_output, &mut board.activations, &board.attended, &mut board.delta);
    }

    fn feed_forward(&self, team: &Team, board: &mut Board, layer: &Layer) {
        let p = &self.params;
        fine_product(team, &layer.gate_up, &mut board.activations, &board.normed, &mut board.gate_up);
        board.wide.resize(board.gate_up.len() / 2, 0.0);
        let gate = match p.activation {
            Activation::Silu => Gate::Silu,
            Activation::GeluTanh => Gate::GeluTanh,
        };
        gated(team, self.tier, gate, p.feed_forward, &board.gate_up, &mut board.wide);
        product(team, &layer.down, &mut board.activations, &board.wide, &mut board.delta);
    }
}

/// Multiplies rows that come from a normalisation with a matrix.
fn fine_product(team: &Team, matrix: &Matrix, activations: &mut Activations, rows: &[f32], out: &mut Vec<f32>) {
    activations.encode_finely_for(matrix, team, rows);
    out.resize(rows.len() / matrix.cols() * matrix.rows(), 0.0);
    matrix.multiply(team, activations, out);
}

/// Multiplies rows with a matrix.
fn product(team: &Team, matrix: &Matrix, activations: &mut Activations, rows: &[f32], out: &mut Vec<f32>) {
    activations.encode_for(matrix, team, rows);
    out.resize(rows.len() / matrix.cols() * matrix.rows(), 0.0);
    matrix.multiply(team, activations, out);
}

impl Engine for Transformer {
    fn vocabulary(&self) -> usize {
        self.model.params.vocabulary
    }

    fn context(&self) -> usize {
        self.model.params.context
    }

    fn portion(&self) -> Portion {
        Portion { tokens: BLOCK_TOKENS, bytes: self.cache.shape().block_bytes() as u64 }
    }

    fn team(&self) -> &Team {
        &self.team
    }

    fn begin(&mut self, prompt: &[u32], known: usize, room: usize) -> Result<(Seq, usize), EngineError> {
        self.model.params.check_lengths(prompt.len(), room)?;
        let mut sequence = Sequence { prompt: prompt.to_vec(), ..Sequence::default() };
        for tokens in prompt[..known.min(prompt.len())].as_chunks::<BLOCK_TOKENS>().0 {
            let Some((node, block)) = self.blocks.find(sequence.node, tokens) else { break };
            sequence.blocks.push(block);
            sequence.node = Some(node);
        }
        sequence.kept = sequence.blocks.len();
        sequence.len = sequence.kept * BLOCK_TOKENS;
        let found = sequence.len;
        Ok((self.sequences.add(sequence)?, found))
    }

    fn fork(&mut self, seq: Seq) -> Result<Seq, EngineError> {
        let sequence = self.sequences.get(seq)?;
        let (blocks, len) = (sequence.blocks.clone(), sequence.len);
        blocks.iter().for_each(|block| self.blocks.hold(*block));
        self.sequences.add(Sequence { blocks, len, ..Sequence::default() })
    }

    fn allow(&mut self, seq: Seq, _room: usize) -> Result<(), EngineError> {
        // Blocks are taken one by one, and the context is the only bound.
        self.sequences.get(seq).map(drop)
    }

    fn release(&mut self, seq: Seq) {
        if let Some(sequence) = self.sequences.remove(seq) {
            sequence.blocks.iter().for_each(|block| self.blocks.drop_hold(*block));
        }
    }

    fn forward(&mut self, feeds: &[Feed<'_>]) -> Result<(), EngineError> {
        for (i, feed) in feeds.iter().enumerate() {
            if feeds[..i].iter().any(|other| other.seq == feed.seq) {
                return Err(EngineError::Misuse("a sequence is twice in a batch"));
            }
            let vocabulary = self.model.params.vocabulary;
            if feed.tokens.is_empty() || feed.tokens.iter().any(|token| *token as usize >= vocabulary) {
                return Err(EngineError::Misuse("a token is beyond the vocabulary, or there is none"));
            }
            self.make_room(feed.seq, feed.tokens.len()).map_err(|error| error.of(Some(feed.seq)))?;
        }
        if feeds.is_empty() {
            self.board.logits.clear();
            return Ok(());
        }
        let rows = Rows::new(&self.sequences, feeds);
        self.model.forward(&self.team, &mut self.cache, &mut self.board, feeds, &rows);
        for feed in feeds {
            self.sequences.get_mut(feed.seq)?.len += feed.tokens.len();
            self.keep(feed.seq)?;
        }
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        &self.board.logits
    }

    fn reset(&mut self) {
        self.sequences.clear();
        self.blocks.clear();
    }

    fn keeps(&self, seq: Seq) -> bool {
        self.blocks.may_keep() && self.sequences.get(seq).is_ok_and(|sequence| !sequence.prompt.is_empty())
    }

    fn kept_tokens(&self) -> usize {
        self.blocks.n_kept() * BLOCK_TOKENS
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_core::quantized::GgmlDType;
    use candle_core::quantized::gguf_file::Value;

    use super::*;
    use crate::engine::checks::{Model, check_near, cosine, prompt, reference, reference_of};
    use crate::testing::{self, TinyGguf};

    fn load(tiny: &TinyGguf) -> Result<Model<Transformer>, LoadError> {
        load_with(tiny, &Settings::for_tests())
    }

    fn load_with(tiny: &TinyGguf, settings: &Settings) -> Result<Model<Transformer>, LoadError> {
        let (_dir, path) = tiny.write();
        let mut weights = Weights::open(&path, 4096, None)?;
        Transformer::load(&mut weights, settings).map(Model::new)
    }

    #[test]
    fn logits_are_those_of_candles_own_models() {
        for architecture in ["llama", "qwen2", "qwen3"] {
            let tiny = TinyGguf::model(architecture);
            let model = load(&tiny).unwrap();
            let then = [5, 6, 7];
            let expected = reference(architecture, &tiny, &prompt(), &then);
            let mut session = model.start(&prompt(), 1, 3).unwrap();
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
        let mut weights = Weights::open(&path, 256, None).unwrap();
        let model = Model::new(Transformer::load(&mut weights, &Settings::for_tests()).unwrap());
        let tokens = [1, 4093, 198, 504, 3575, 282, 4649, 314];
        let session = model.start(&tokens, 1, 1).unwrap();
        let expected = reference_of("llama", std::fs::File::open(&path).unwrap(), &tokens, &[]);
        let cosine = cosine(session.logits(), &expected[0]);
        assert!(cosine > 0.998, "cosine of {cosine}");
    }

    #[test]
    fn a_continuation_does_not_depend_on_its_batch() {
        let model = load(&TinyGguf::model("llama")).unwrap();
        let texts: [[u32; 3]; 5] = std::array::from_fn(|i| [1, 2, 3].map(|j| (i as u32 + 1) * 10 + j));
        let mut together = model.start(&prompt(), 5, 3).unwrap();
        let mut rows = Vec::new();
        for step in 0..3 {
            let batch: Vec<(usize, u32)> = texts.iter().enumerate().map(|(slot, text)| (slot, text[step])).collect();
            together.step(&batch).unwrap();
            rows.push(together.logits().to_vec());
        }
        for (slot, text) in texts.iter().enumerate() {
            let mut alone = model.start(&prompt(), 1, 3).unwrap();
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
            let rows = model.rows(&tokens, from).unwrap();
            assert_eq!(rows.len(), tokens.len() - from);
            let start = model.start(&tokens[..=from], 1, tokens.len() - from).unwrap();
            assert_eq!(start.logits(), rows[0]);
            let last = model.start(&tokens, 1, 1).unwrap();
            assert_eq!(last.logits(), *rows.last().unwrap());
        }
    }

    #[test]
    fn slots_may_leave_and_grow_apart() {
        let model = load(&TinyGguf::model("llama")).unwrap();
        let mut session = model.start(&prompt(), 3, 4).unwrap();
        session.step(&[(0, 1), (1, 2), (2, 3)]).unwrap();
        session.step(&[(0, 7), (2, 4)]).unwrap();
        session.step(&[(0, 5), (2, 6)]).unwrap();
        let last = session.logits()[testing::VOCABULARY..].to_vec();
        let mut alone = model.start(&prompt(), 1, 4).unwrap();
        for token in [3, 4, 6] {
            alone.step(&[(0, token)]).unwrap();
        }
        assert_eq!(alone.logits(), last);
    }

    #[test]
    fn continuations_grow_over_several_blocks() {
        let model = load(&TinyGguf::model("llama")).unwrap();
        let text: Vec<u32> = (0..2 * BLOCK_TOKENS as u32 + 3).map(|i| i * 31 % 256).collect();
        let mut session = model.start(&[1, 2], 2, text.len()).unwrap();
        for token in &text {
            session.step(&[(0, *token), (1, 255 - token)]).unwrap();
        }
        let whole = [&[1, 2], &text[..]].concat();
        let expected = model.start(&whole, 1, 0).unwrap();
        assert_eq!(&session.logits()[..testing::VOCABULARY], expected.logits());
    }

    #[test]
    fn misuse_is_an_error() {
        let model = load(&TinyGguf::model("llama")).unwrap();
        assert!(model.start(&[], 1, 1).is_err());
        assert!(model.start(&[999], 1, 1).is_err());
        assert!(model.start(&[1; 128], 1, 1).is_err(), "no room in the context");
        let mut session = model.start(&[1], 1, 1).unwrap();
        assert!(session.step(&[(0, 1), (0, 1)]).is_err(), "twice");
        let mut session = model.start(&[1; 127], 1, 1).unwrap();
        session.step(&[(0, 1)]).unwrap();
        assert!(session.step(&[(0, 1)]).is_err(), "beyond the context");
    }

    #[test]
    fn weights_of_every_format_give_nearly_the_same() {
        let mut tiny = TinyGguf::model("llama");
        let exact = load(&tiny).unwrap();
        let exact = exact.start(&prompt(), 1, 1).unwrap().logits().to_vec();
        let values = tiny.tensors.iter().find(|(name, _)| name == "blk.0.ffn_up.weight").unwrap();
        let values = values.1.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        // Floating point numbers are multiplied with activations that were not rounded to bytes.
        let formats = [
            (GgmlDType::F32, 0.04),
            (GgmlDType::F16, 0.04),
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
            let session = model.start(&prompt(), 1, 1).unwrap();
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
        let session = model.start(&prompt(), 1, 1).unwrap();
        assert!(session.logits().iter().any(|logit| !logit.is_finite()));
    }

    #[test]
    fn sequences_of_any_length_grow_together_as_each_would_alone() {
        for architecture in ["llama", "qwen3"] {
            for kv_type in [KvType::F32, KvType::F16, KvType::Q8] {
                let settings = Settings { kv_type, max_kept_bytes: 0, ..Settings::for_tests() };
                let model = load_with(&TinyGguf::model(architecture), &settings).unwrap();
                // Texts of different prompts: one token each of some, beside stretches of others.
                let texts: Vec<Vec<u32>> =
                    (0..5).map(|i| (0..30 + 13 * i).map(|j| (i * 71 + j * 37) % 256).collect()).collect();
                let last = |text: &[u32]| model.start(text, 1, 0).unwrap().logits().to_vec();
                let expected: Vec<Vec<f32>> = texts.iter().map(|text| last(text)).collect();
                let got = model.with(|engine| {
                    let seqs: Vec<Seq> = texts.iter().map(|text| engine.begin(text, 0, 0).unwrap().0).collect();
                    let mut done = vec![0; texts.len()];
                    let mut got = vec![Vec::new(); texts.len()];
                    let mut round = 0;
                    while done.iter().zip(&texts).any(|(done, text)| *done < text.len()) {
                        round += 1;
                        let mut feeds = Vec::new();
                        for (i, text) in texts.iter().enumerate() {
                            let n = [1, 7, 16, 1, 33][(i + round) % 5].min(text.len() - done[i]);
                            let wants = if done[i] + n == text.len() { Wants::Last } else { Wants::Nothing };
                            if n > 0 && (i + round) % 3 != 0 {
                                feeds.push((i, Feed { seq: seqs[i], tokens: &text[done[i]..done[i] + n], wants }));
                                done[i] += n;
                            }
                        }
                        let only: Vec<Feed<'_>> = feeds.iter().map(|(_, feed)| *feed).collect();
                        engine.forward(&only).unwrap();
                        let mut rows = engine.logits().chunks_exact(testing::VOCABULARY);
                        for (i, _) in feeds.iter().filter(|(_, feed)| feed.wants == Wants::Last) {
                            got[*i] = rows.next().unwrap().to_vec();
                        }
                    }
                    seqs.into_iter().for_each(|seq| engine.release(seq));
                    got
                });
                assert_eq!(got, expected, "{architecture} {kv_type:?}");
            }
        }
    }

    #[test]
    fn prompts_that_begin_alike_are_computed_from_where_they_differ() {
        let model = load(&TinyGguf::model("llama")).unwrap();
        let (text, mut other) = (prompt(), prompt());
        other[40] += 1;
        let fresh = load(&TinyGguf::model("llama")).unwrap();
        let expected: Vec<Vec<f32>> =
            [&text, &other].map(|text| fresh.start(text, 1, 0).unwrap().logits().to_vec()).to_vec();
        let found = |text: &[u32], known: usize| {
            model.with(|engine| {
                let (seq, found) = engine.begin(text, known, 0).unwrap();
                engine.release(seq);
                found
            })
        };
        assert_eq!(found(&text, 69), 0);
        assert_eq!(model.start(&text, 1, 0).unwrap().logits(), expected[0]);
        assert_eq!((found(&text, 69), found(&text, 63), found(&other, 69)), (64, 48, 32));
        assert_eq!(found(&text[..64], 63), 48, "a last token is left to compute");
        assert_eq!(model.start(&other, 1, 0).unwrap().logits(), expected[1]);
        assert_eq!(model.start(&text, 1, 0).unwrap().logits(), expected[0], "from what was kept");
        model.with(|engine| assert_eq!(engine.kept_tokens(), 96));
        model.with(Engine::reset);
        assert_eq!(found(&text, 69), 0);
        assert_eq!(model.start(&text, 1, 0).unwrap().logits(), expected[0]);
    }

    #[test]
    fn memory_is_bounded_and_what_is_kept_makes_room() {
        // Room for 128 tokens, 64 of which may be kept.
        let block = 8192;
        let settings = Settings { max_kv_bytes: 8 * block, max_kept_bytes: 4 * block, ..Settings::for_tests() };
        let model = load_with(&TinyGguf::model("llama"), &settings).unwrap();
        for round in 0..20 {
            let text: Vec<u32> = (0..70).map(|i| (i * 37 + round) % 256).collect();
            let mut session = model.start(&text, 4, 10).unwrap();
            for token in 0..9 {
                session.step(&[(0, token), (1, token), (2, token), (3, token)]).unwrap();
            }
            assert!(model.start(&prompt(), 1, 1).is_err(), "no room for another");
        }
        model.with(|engine| assert!(engine.kept_tokens() <= 64));
    }

    #[test]
    fn prompts_are_waited_for_only_while_they_are_kept() {
        let text = prompt();
        let keeps = |max_kept_bytes: u64, fed: usize| {
            let settings = Settings { max_kept_bytes, ..Settings::for_tests() };
            load_with(&TinyGguf::model("llama"), &settings).unwrap().with(|engine| {
                let (seq, _) = engine.begin(&text, 0, 0).unwrap();
                if fed > 0 {
                    engine.forward(&[Feed { seq, tokens: &text[..fed], wants: Wants::Nothing }]).unwrap();
                }
                engine.keeps(seq)
            })
        };
        assert!(!keeps(0, 0), "nothing is kept");
        assert!(keeps(1 << 20, 0) && keeps(1 << 20, 64));
        assert!(keeps(2 * 8192, 32) && !keeps(2 * 8192, 64), "two blocks may be kept, and a third may not");
    }
}
