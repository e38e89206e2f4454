//! Llama-shaped transformers on candle's tensors, for the devices that candle knows.
//!
//! Weights stay on the device in the file's own formats; keys, values and activations are `f32`. The prompt is computed
//! once, in chunks, and its keys and values are shared: all continuations attend to them in one product. What the
//! continuations own lies in one block per layer, which grows by doubling and shrinks when some of them end. Continuations
//! of one prompt are one batch; those of different prompts are computed one batch after the other.
//!
//! Unlike with the processor's own kernels, the last bits of a row's numbers may depend on its batch, as the libraries
//! below choose their kernels by size.

use candle_core::quantized::QMatMul;
use candle_core::{D, Device, Module, Tensor};
use candle_nn::ops::{rms_norm, silu, softmax_last_dim};
use candle_nn::rotary_emb::{rope, rope_i};
use idiolect_kernels::Team;

use super::params::{Activation, Pairs, Params};
use super::rope::Rope;
use super::slots::Slots;
use super::{Engine, EngineError, Feed, Portion, Seq, Wants};
use crate::device::OpenDevice;
use crate::error::{LoadError, first_line};
use crate::weights::{Part, Role, Weights};

/// Positions that continuations get memory for at first; it doubles when they are full.
const FIRST_ROOM: usize = 32;

type Outcome<T> = Result<T, candle_core::Error>;

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        Self::Device(first_line(&error))
    }
}

/// A loaded model with its sequences.
pub(crate) struct Tensors {
    model: Model,
    /// For the caller's loops.
    team: Team,
    /// For the device, where that is the processor.
    pool: rayon::ThreadPool,
    /// For each sequence the run that it belongs to.
    sequences: Slots<usize>,
    runs: Vec<Option<Run>>,
    logits: Vec<f32>,
}

struct Model {
    params: Params,
    device: Device,
    embeddings: QMatMul,
    /// `None` where the embeddings serve as output, too.
    output: Option<QMatMul>,
    norm: Tensor,
    layers: Vec<Layer>,
}

struct Layer {
    attention_norm: Tensor,
    q: Projection,
    k: Projection,
    v: Projection,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    attention_output: QMatMul,
    post_attention_norm: Option<Tensor>,
    feed_forward_norm: Tensor,
    gate: QMatMul,
    up: QMatMul,
    down: QMatMul,
    post_feed_forward_norm: Option<Tensor>,
}

struct Projection {
    weights: QMatMul,
    bias: Option<Tensor>,
}

impl std::fmt::Debug for Tensors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Model { params, device, .. } = &self.model;
        f.debug_struct("Tensors").field("params", params).field("device", device).finish_non_exhaustive()
    }
}

/// Reads tensors onto a device.
struct Loader<'a> {
    weights: &'a mut Weights,
    device: &'a OpenDevice,
}

impl Loader<'_> {
    fn matrix(&mut self, role: Role) -> Result<QMatMul, LoadError> {
        let tensor = self.weights.quantized(role, self.device)?;
        QMatMul::from_qtensor(tensor).map_err(|e| self.device.error(&e))
    }

    fn vector(&mut self, role: Role) -> Result<Tensor, LoadError> {
        let values = self.weights.vector(role)?;
        let len = values.len();
        Tensor::from_vec(values, len, self.device.handle()).map_err(|e| self.device.error(&e))
    }

    fn vector_if(&mut self, there: bool, role: Role) -> Result<Option<Tensor>, LoadError> {
        there.then(|| self.vector(role)).transpose()
    }

    fn layer(&mut self, p: &Params, index: usize) -> Result<Layer, LoadError> {
        let role = |part: Part| Role::Layer(index, part);
        let mut projection = |weights: Part, bias: Part| {
            Ok::<_, LoadError>(Projection {
                weights: self.matrix(role(weights))?,
                bias: self.vector_if(p.qkv_bias, role(bias))?,
            })
        };
        Ok(Layer {
            q: projection(Part::Query, Part::QueryBias)?,
            k: projection(Part::Key, Part::KeyBias)?,
            v: projection(Part::Value, Part::ValueBias)?,
            attention_norm: self.vector(role(Part::AttentionNorm))?,
            q_norm: self.vector_if(p.qk_norm, role(Part::QueryNorm))?,
            k_norm: self.vector_if(p.qk_norm, role(Part::KeyNorm))?,
            attention_output: self.matrix(role(Part::AttentionOutput))?,
            post_attention_norm: self.vector_if(p.post_norms, role(Part::PostAttentionNorm))?,
            feed_forward_norm: self.vector(role(Part::FeedForwardNorm))?,
            gate: self.matrix(role(Part::Gate))?,
            up: self.matrix(role(Part::Up))?,
            down: self.matrix(role(Part::Down))?,
            post_feed_forward_norm: self.vector_if(p.post_norms, role(Part::PostFeedForwardNorm))?,
        })
    }
}

impl Tensors {
    /// Loads all weights onto the device and computes a few tokens to prove that it can.
    pub(crate) fn load(weights: &mut Weights, threads: usize, device: &OpenDevice) -> Result<Self, LoadError> {
        let team = Team::new(threads).map_err(LoadError::Thread)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("tensors-{i}"))
            .build()
            .map_err(|e| LoadError::Thread(std::io::Error::other(e)))?;
        let params = weights.params().clone();
        let mut loader = Loader { weights, device };
        let embeddings = loader.matrix(Role::Embeddings)?;
        let output = (!params.tied).then(|| loader.matrix(Role::Output)).transpose()?;
        let norm = loader.vector(Role::OutputNorm)?;
        let layers = (0..params.layers.len()).map(|i| loader.layer(&params, i)).collect::<Result<_, _>>()?;
        let model = Model { params, device: device.handle().clone(), embeddings, output, norm, layers };
        let (sequences, runs, logits) = (Slots::default(), Vec::new(), Vec::new());
        let mut tensors = Self { model, team, pool, sequences, runs, logits };
        // A device may lack a kernel for one of the file's formats, which shows only when it is used; and kernels for many
        // rows are others than those for few.
        let proof = tensors.prove();
        tensors.reset();
        match proof {
            Err(EngineError::Device(reason)) => Err(device.fault(reason)),
            // A model that computes no numbers says so when it is asked something.
            _ => Ok(tensors),
        }
    }

    fn prove(&mut self) -> Result<(), EngineError> {
        let prompt = [0; 15];
        let (first, _) = self.begin(&prompt, 0, 1)?;
        self.forward(&[Feed { seq: first, tokens: &prompt, wants: Wants::Last }])?;
        let second = self.fork(first)?;
        let feed = |seq| Feed { seq, tokens: &[0], wants: Wants::Last };
        self.forward(&[feed(first), feed(second)])
    }
}

impl Model {
    /// Returns the sines and cosines of the given positions, for each of the model's rotations.
    fn rotations(&self, positions: impl ExactSizeIterator<Item = usize> + Clone) -> Outcome<Vec<Rotation>> {
        self.params.ropes.iter().map(|rope| self.rotation(rope, positions.clone())).collect()
    }

    fn rotation(&self, rope: &Rope, positions: impl ExactSizeIterator<Item = usize>) -> Outcome<Rotation> {
        let shape = (positions.len(), rope.frequencies.len());
        let (mut cos, mut sin) = (Vec::with_capacity(shape.0 * shape.1), Vec::with_capacity(shape.0 * shape.1));
        for position in positions {
            for (s, c) in rope.rotation(position) {
                sin.push(s);
                cos.push(c);
            }
        }
        let tensor = |values| Tensor::from_vec(values, shape, &self.device);
        Ok(Rotation { cos: tensor(cos)?, sin: tensor(sin)? })
    }

    /// Returns what to add to scores so that each row sees what it may: the positions up to its own, of those no more
    /// than the layer's window. One mask for each window that the model has; `first` is the first row's position.
    fn masks(&self, first: usize, rows: usize, seen: usize) -> Outcome<Masks> {
        let mut masks = Masks::default();
        for layer in &self.params.layers {
            if masks.0.iter().any(|(window, _)| *window == layer.window) {
                continue;
            }
            let sees = |row: usize, position: usize| {
                let own = first + row;
                let near = layer.window.is_none_or(|window| own - position < window);
                if near { 0.0 } else { f32::NEG_INFINITY }
            };
            let mask = |row: usize, position: usize| {
                if position <= first + row { sees(row, position) } else { f32::NEG_INFINITY }
            };
            let mask = (0..rows).flat_map(|row| (0..seen).map(move |position| mask(row, position)));
            let mask = Tensor::from_vec(mask.collect::<Vec<f32>>(), (1, 1, rows, seen), &self.device)?;
            masks.0.push((layer.window, mask));
        }
        Ok(masks)
    }

    /// Scales queries, for a product with keys.
    fn scaled(&self, q: &Tensor) -> Outcome<Tensor> {
        q * f64::from(self.params.query_scale)
    }

    /// Caps scores, where the model wants it.
    fn capped(&self, scores: Tensor) -> Outcome<Tensor> {
        match self.params.attention_softcap {
            Some(cap) => (scores / f64::from(cap))?.tanh()? * f64::from(cap),
            None => Ok(scores),
        }
    }

    /// Computes rows of the residual stream through all layers, then normalises them.
    fn forward(
        &self,
        tokens: &[u32],
        rotations: &[Rotation],
        mut attend: impl FnMut(usize, &Heads) -> Outcome<Tensor>,
    ) -> Result<Tensor, EngineError> {
        let p = &self.params;
        if tokens.iter().any(|token| *token as usize >= p.vocabulary) {
            return Err(EngineError::Misuse("a token is beyond the vocabulary"));
        }
        let tokens = Tensor::new(tokens, &self.device)?;
        let mut hidden = self.embeddings.embedding(&tokens)?;
        if p.embedding_scale != 1.0 {
            hidden = (hidden * f64::from(p.embedding_scale))?;
        }
        let normed = |rows: Tensor, norm: &Option<Tensor>| match norm {
            Some(norm) => rms_norm(&rows, norm, p.epsilon),
            None => Ok(rows),
        };
        for (index, layer) in self.layers.iter().enumerate() {
            let input = rms_norm(&hidden, &layer.attention_norm, p.epsilon)?;
            let heads = layer.heads(&input, p, &rotations[p.layers[index].rope])?;
            let attended = layer.attention_output.forward(&attend(index, &heads)?)?;
            hidden = (hidden + normed(attended, &layer.post_attention_norm)?)?;
            let input = rms_norm(&hidden, &layer.feed_forward_norm, p.epsilon)?;
            let gate = layer.gate.forward(&input)?;
            let gate = match p.activation {
                Activation::Silu => silu(&gate)?,
                Activation::GeluTanh => gate.gelu()?,
            };
            let wide = layer.down.forward(&(gate * layer.up.forward(&input)?)?)?;
            hidden = (hidden + normed(wide, &layer.post_feed_forward_norm)?)?;
        }
        // Quantised products may swallow what is no number, the residual stream does not. This also waits until the
        // device is done.
        if !hidden.sqr()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
            return Err(EngineError::NotFinite);
        }
        Ok(rms_norm(&hidden, &self.norm, p.epsilon)?)
    }

    /// Computes the logits of rows that [`forward`](Self::forward) gave.
    fn project(&self, normed: &Tensor) -> Result<Vec<f32>, EngineError> {
        let output = self.output.as_ref().unwrap_or(&self.embeddings);
        let mut logits = output.forward(&normed.contiguous()?)?.flatten_all()?;
        if let Some(cap) = self.params.logit_softcap {
            logits = ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        let logits = logits.to_vec1::<f32>()?;
        if logits.iter().all(|v| v.is_finite()) { Ok(logits) } else { Err(EngineError::NotFinite) }
    }
}

/// What rows see, by the window of the layer.
#[derive(Default)]
struct Masks(Vec<(Option<usize>, Tensor)>);

impl Masks {
    fn of(&self, window: Option<usize>) -> Outcome<&Tensor> {
        let mask = self.0.iter().find(|(of, _)| *of == window);
        mask.map(|(_, mask)| mask).ok_or_else(|| candle_core::Error::msg("a window has no mask"))
    }
}

/// Sines and cosines, `[row, pair]`.
struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// Turns heads, `[row, head, element]`, and puts the heads first: `[head, row, element]`.
    fn turn(&self, heads: &Tensor, pairs: Pairs) -> Outcome<Tensor> {
        let turn = match pairs {
            Pairs::Neighbours => rope_i,
            Pairs::Halves => rope,
        };
        let heads = heads.transpose(0, 1)?.unsqueeze(0)?;
        let (width, rotated) = (heads.dim(D::Minus1)?, 2 * self.cos.dim(1)?);
        let turned = if rotated == width {
            turn(&heads.contiguous()?, &self.cos, &self.sin)?
        } else {
            let turned = turn(&heads.narrow(D::Minus1, 0, rotated)?.contiguous()?, &self.cos, &self.sin)?;
            let rest = heads.narrow(D::Minus1, rotated, width - rotated)?.contiguous()?;
            Tensor::cat(&[&turned, &rest], D::Minus1)?
        };
        turned.squeeze(0)
    }
}

/// Queries, keys and values of some rows, `[head, row, element]`.
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Projection {
    fn forward(&self, rows: &Tensor) -> Outcome<Tensor> {
        let product = self.weights.forward(rows)?;
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

impl Layer {
    fn heads(&self, normed: &Tensor, p: &Params, rotation: &Rotation) -> Outcome<Heads> {
        let rows = normed.dim(0)?;
        let turned = |projection: &Projection, heads: usize, norm: &Option<Tensor>| {
            let mut heads = projection.forward(normed)?.reshape((rows, heads, p.head_width))?;
            if let Some(norm) = norm {
                heads = rms_norm(&heads.contiguous()?, norm, p.epsilon)?;
            }
            rotation.turn(&heads, p.pairs)
        };
        let v = self.v.forward(normed)?.reshape((rows, p.kv_heads, p.head_width))?;
        Ok(Heads {
            q: turned(&self.q, p.heads, &self.q_norm)?,
            k: turned(&self.k, p.kv_heads, &self.k_norm)?,
            v: v.transpose(0, 1)?.contiguous()?,
        })
    }
}

/// Keys and values of one layer.
struct Cache {
    keys: Tensor,
    values: Tensor,
}

impl Cache {
    /// Makes room; the dimension before the last counts positions.
    fn new(shape: &[usize], device: &Device) -> Outcome<Self> {
        let zeros = || Tensor::zeros(shape, candle_core::DType::F32, device);
        Ok(Self { keys: zeros()?, values: zeros()? })
    }

    /// Puts keys and values at a position.
    fn store(&self, position: usize, keys: &Tensor, values: &Tensor) -> Outcome<()> {
        self.keys.slice_set(keys, D::Minus2, position)?;
        self.values.slice_set(values, D::Minus2, position)
    }

    /// Returns the first `len` keys, turned to be multiplied with queries.
    fn keys(&self, len: usize) -> Outcome<Tensor> {
        self.keys.narrow(D::Minus2, 0, len)?.t()
    }

    fn values(&self, len: usize) -> Outcome<Tensor> {
        self.values.narrow(D::Minus2, 0, len)
    }

    /// Keeps some of the continuations.
    fn select(&self, kept: &Tensor) -> Outcome<Self> {
        Ok(Self { keys: self.keys.index_select(kept, 0)?, values: self.values.index_select(kept, 0)? })
    }
}

/// A prompt with its growing continuations.
struct Run {
    /// For each layer `[key head, position, element]`.
    prompt: Vec<Cache>,
    /// Tokens that the prompt will have.
    prompt_capacity: usize,
    prompt_len: usize,
    /// The sequences that grow, in the order of the rows of `own`.
    active: Vec<Seq>,
    /// For each layer `[continuation, key head, position, element]`.
    own: Vec<Cache>,
    own_len: usize,
    own_capacity: usize,
    room: usize,
}

impl Run {
    fn new(model: &Model, prompt: usize, room: usize) -> Result<Self, EngineError> {
        let p = &model.params;
        p.check_lengths(prompt, room)?;
        let shape = [p.kv_heads, prompt, p.head_width];
        let caches = (0..p.layers.len()).map(|_| Cache::new(&shape, &model.device)).collect::<Outcome<_>>()?;
        Ok(Self {
            prompt: caches,
            prompt_capacity: prompt,
            prompt_len: 0,
            active: Vec::new(),
            own: Vec::new(),
            own_len: 0,
            own_capacity: 0,
            room,
        })
    }

    /// Computes the next tokens of the prompt; returns their final states.
    fn prefill(&mut self, model: &Model, tokens: &[u32]) -> Result<Tensor, EngineError> {
        let (first, seen) = (self.prompt_len, self.prompt_len + tokens.len());
        let p = &model.params;
        let (rows, group) = (tokens.len(), p.heads / p.kv_heads);
        let rotations = model.rotations(first..seen)?;
        let masks = model.masks(first, rows, seen)?;
        let caches = &self.prompt;
        let states = model.forward(tokens, &rotations, |layer, heads| {
            let cache = &caches[layer];
            cache.store(first, &heads.k, &heads.v)?;
            // All query heads that share a key head are rows of one product.
            let q = model.scaled(&heads.q)?.reshape((p.kv_heads, group * rows, p.head_width))?;
            let scores = model.capped(q.matmul(&cache.keys(seen)?)?)?.reshape((p.kv_heads, group, rows, seen))?;
            let scores = scores.broadcast_add(masks.of(p.layers[layer].window)?)?;
            let weights = softmax_last_dim(&scores)?.reshape((p.kv_heads, group * rows, seen))?;
            let attended = weights.matmul(&cache.values(seen)?)?;
            // [head, row, element] to [row, head x element].
            let attended = attended.reshape((p.heads, rows, p.head_width))?;
            attended.transpose(0, 1)?.contiguous()?.reshape((rows, p.q_width()))
        })?;
        self.prompt_len = seen;
        Ok(states)
    }

    /// Leaves only the given sequences, in the given order.
    fn keep(&mut self, model: &Model, seqs: &[Seq]) -> Result<(), EngineError> {
        if seqs == self.active {
            return Ok(());
        }
        let mut kept = Vec::with_capacity(seqs.len());
        for (i, seq) in seqs.iter().enumerate() {
            let row = self.active.iter().position(|active| active == seq);
            let row = row.ok_or(EngineError::Misuse("there is no such sequence, or it missed a step"))?;
            if seqs[..i].contains(seq) {
                return Err(EngineError::Misuse("a sequence is twice in a batch"));
            }
            #[expect(clippy::cast_possible_truncation, reason = "sequences are few")]
            kept.push(row as u32);
        }
        let kept = Tensor::new(kept, &model.device)?;
        for cache in &mut self.own {
            *cache = cache.select(&kept)?;
        }
        self.active = seqs.to_vec();
        Ok(())
    }

    /// Makes sure of memory for one more position of each continuation.
    fn reserve(&mut self, model: &Model) -> Result<(), EngineError> {
        if self.own_len == self.room {
            return Err(EngineError::Misuse("a continuation is longer than its room"));
        }
        if self.own_len == self.own_capacity {
            let p = &model.params;
            let capacity = (2 * self.own_capacity).max(FIRST_ROOM).min(self.room);
            let shape = [self.active.len(), p.kv_heads, capacity, p.head_width];
            if self.own.is_empty() {
                self.own = (0..p.layers.len()).map(|_| Cache::new(&shape, &model.device)).collect::<Outcome<_>>()?;
            } else {
                for cache in &mut self.own {
                    let larger = Cache::new(&shape, &model.device)?;
                    larger.store(0, &cache.keys, &cache.values)?;
                    *cache = larger;
                }
            }
            self.own_capacity = capacity;
        }
        Ok(())
    }

    /// Computes one token for each continuation; returns their final states.
    fn decode(&self, model: &Model, tokens: &[u32]) -> Result<Tensor, EngineError> {
        let p = &model.params;
        let (n, group, shared, own) = (tokens.len(), p.heads / p.kv_heads, self.prompt_len, self.own_len + 1);
        // All continuations are at the same position, so one row's mask does for all.
        let position = shared + self.own_len;
        let rotations = model.rotations(std::iter::repeat_n(position, n))?;
        let windows = p.layers.iter().any(|layer| layer.window.is_some_and(|window| window <= position));
        let masks = if windows { model.masks(position, 1, shared + own)? } else { Masks::default() };
        model.forward(tokens, &rotations, |layer, heads| {
            let (prompt, cache) = (&self.prompt[layer], &self.own[layer]);
            // [key head, continuation, element] to [continuation, key head, one position, element].
            let by_row = |heads: &Tensor| heads.transpose(0, 1)?.contiguous()?.unsqueeze(2);
            cache.store(self.own_len, &by_row(&heads.k)?, &by_row(&heads.v)?)?;

            // The prompt for all continuations in one product, their own tokens for each alone.
            let q = model.scaled(&heads.q)?.reshape((p.kv_heads, group * n, p.head_width))?;
            let to_prompt = q.matmul(&prompt.keys(shared)?)?.reshape((p.kv_heads, group, n, shared))?;
            let to_prompt = to_prompt.permute((2, 0, 1, 3))?.contiguous()?;
            let own_q = q.reshape((p.kv_heads, group, n, p.head_width))?.permute((2, 0, 1, 3))?.contiguous()?;
            let to_own = own_q.matmul(&cache.keys(own)?)?;
            let mut scores = model.capped(Tensor::cat(&[&to_prompt, &to_own], D::Minus1)?)?;
            if windows {
                scores = scores.broadcast_add(masks.of(p.layers[layer].window)?)?;
            }
            let weights = softmax_last_dim(&scores)?;

            let of_prompt = weights.narrow(D::Minus1, 0, shared)?.permute((1, 2, 0, 3))?.contiguous()?;
            let of_prompt = of_prompt.reshape((p.kv_heads, group * n, shared))?.matmul(&prompt.values(shared)?)?;
            let of_prompt = of_prompt.reshape((p.kv_heads, group, n, p.head_width))?.permute((2, 0, 1, 3))?;
            let of_own = weights.narrow(D::Minus1, shared, own)?.contiguous()?.matmul(&cache.values(own)?)?;
            (of_prompt + of_own)?.contiguous()?.reshape((n, p.q_width()))
        })
    }
}

impl Run {
    /// Computes tokens of the prompt; returns the logits that are wanted.
    fn feed_prompt(&mut self, model: &Model, feed: &Feed<'_>) -> Result<Vec<f32>, EngineError> {
        let n = feed.tokens.len();
        let states = self.prefill(model, feed.tokens)?;
        match feed.wants {
            Wants::Nothing => Ok(Vec::new()),
            Wants::Last => model.project(&states.narrow(0, n - 1, 1)?),
            Wants::All => model.project(&states),
        }
    }

    /// Computes one token of each continuation; returns the logits of all.
    fn step(&mut self, model: &Model, seqs: &[Seq], tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.keep(model, seqs)?;
        self.reserve(model)?;
        let states = self.decode(model, tokens)?;
        self.own_len += 1;
        model.project(&states)
    }

    const fn is_in_prompt(&self) -> bool {
        self.prompt_len < self.prompt_capacity
    }
}

impl Engine for Tensors {
    fn vocabulary(&self) -> usize {
        self.model.params.vocabulary
    }

    fn context(&self) -> usize {
        self.model.params.context
    }

    fn portion(&self) -> Portion {
        Portion { tokens: 1, bytes: self.model.params.kv_bytes_per_token() }
    }

    fn team(&self) -> &Team {
        &self.team
    }

    fn begin(&mut self, prompt: &[u32], _known: usize, room: usize) -> Result<(Seq, usize), EngineError> {
        let run = Run::new(&self.model, prompt.len(), room)?;
        let place = self.runs.iter().position(Option::is_none).unwrap_or(self.runs.len());
        let seq = self.sequences.add(place)?;
        if place == self.runs.len() {
            self.runs.push(None);
        }
        self.runs[place] = Some(Run { active: vec![seq], ..run });
        Ok((seq, 0))
    }

    fn fork(&mut self, seq: Seq) -> Result<Seq, EngineError> {
        let place = *self.sequences.get(seq)?;
        let fork = self.sequences.add(place)?;
        match &mut self.runs[place] {
            Some(run) if run.own.is_empty() => run.active.push(fork),
            _ => {
                self.sequences.remove(fork);
                return Err(EngineError::Misuse("a continuation cannot be forked"));
            }
        }
        Ok(fork)
    }

    fn release(&mut self, seq: Seq) {
        let Some(place) = self.sequences.remove(seq) else { return };
        // Its memory goes with the next step of the others, or with the last of them.
        if !self.sequences.values().any(|other| *other == place) {
            self.runs[place] = None;
        }
    }

    fn forward(&mut self, feeds: &[Feed<'_>]) -> Result<(), EngineError> {
        self.logits.clear();
        let places = feeds.iter().map(|feed| self.sequences.get(feed.seq).copied()).collect::<Result<Vec<_>, _>>()?;
        let mut logits: Vec<Vec<f32>> = vec![Vec::new(); feeds.len()];
        let Self { model, pool, runs, .. } = self;
        pool.install(|| {
            for (i, feed) in feeds.iter().enumerate() {
                if feed.tokens.is_empty() {
                    return Err(EngineError::Misuse("a sequence grows by no token"));
                }
                if places[..i].contains(&places[i]) {
                    // Computed with the first of its run.
                    continue;
                }
                let Some(run) = &mut runs[places[i]] else { continue };
                if run.is_in_prompt() {
                    if run.prompt_len + feed.tokens.len() > run.prompt_capacity {
                        return Err(EngineError::Misuse("a prompt is longer than was said"));
                    }
                    logits[i] = run.feed_prompt(model, feed)?;
                    continue;
                }
                let rows: Vec<usize> = (i..feeds.len()).filter(|row| places[*row] == places[i]).collect();
                if rows.iter().any(|row| feeds[*row].tokens.len() != 1) {
                    return Err(EngineError::Misuse("a continuation grows by one token at a time"));
                }
                let seqs: Vec<Seq> = rows.iter().map(|row| feeds[*row].seq).collect();
                let tokens: Vec<u32> = rows.iter().map(|row| feeds[*row].tokens[0]).collect();
                let all = run.step(model, &seqs, &tokens)?;
                for (row, values) in rows.iter().zip(all.chunks_exact(model.params.vocabulary)) {
                    if feeds[*row].wants != Wants::Nothing {
                        logits[*row] = values.to_vec();
                    }
                }
            }
            Ok(())
        })?;
        self.logits = logits.concat();
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        &self.logits
    }

    fn reset(&mut self) {
        self.sequences.clear();
        self.runs.clear();
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;
    use candle_core::quantized::gguf_file::Value;
    use idiolect_kernels::Format;

    use super::*;
    use crate::device::DeviceChoice;
    use crate::engine::checks::{Model, Session, check_near, cosine, prompt, reference, reference_of};
    use crate::engine::{Settings, Transformer};
    use crate::testing::{self, TinyGguf, VOCABULARY};

    /// Of the logits' size: what candle's own models may be off, which run the same kernels in another order.
    const NEAR_CANDLE: f32 = 1e-3;
    /// Of the logits' size: what the processor's own kernels may be off, which round activations another way.
    const NEAR_KERNELS: f32 = 0.05;
    /// Of the logits' size: what another batch may change.
    const NEAR_ITSELF: f32 = 1e-4;

    const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

    /// The processor stands in for other devices; short chunks show their seams.
    fn load(tiny: &TinyGguf) -> Result<Model<Tensors>, LoadError> {
        let (_dir, path) = tiny.write();
        load_from(&path, None)
    }

    fn load_from(path: &std::path::Path, format: Option<Format>) -> Result<Model<Tensors>, LoadError> {
        let mut weights = Weights::open(path, 4096, format)?;
        Tensors::load(&mut weights, 2, &OpenDevice::open(DeviceChoice::Cpu)?).map(Model::new)
    }

    fn kernels(tiny: &TinyGguf) -> Model<Transformer> {
        let (_dir, path) = tiny.write();
        kernels_from(&path)
    }

    fn kernels_from(path: &std::path::Path) -> Model<Transformer> {
        let mut weights = Weights::open(path, 4096, None).unwrap();
        Model::new(Transformer::load(&mut weights, &Settings::for_tests()).unwrap())
    }

    fn row<'a>(session: &'a Session<'_, Tensors>, row: usize) -> &'a [f32] {
        &session.logits()[row * VOCABULARY..(row + 1) * VOCABULARY]
    }

    #[test]
    fn logits_are_those_of_candles_own_models() {
        for architecture in ARCHITECTURES {
            let mut tiny = TinyGguf::model(architecture);
            // Otherwise candle's qwen3 rounds its rotations to sixteen bits.
            tiny.set("general.dtype", Value::U32(0));
            let model = load(&tiny).unwrap();
            let then = [5, 6, 7];
            let expected = reference(architecture, &tiny, &prompt(), &then);
            let mut session = model.start(&prompt(), 1, 3).unwrap();
            check_near(session.logits(), &expected[0], NEAR_CANDLE, architecture);
            for (token, expected) in then.iter().zip(&expected[1..]) {
                session.step(&[(0, *token)]).unwrap();
                check_near(session.logits(), expected, NEAR_CANDLE, architecture);
            }
        }
    }

    #[test]
    fn logits_are_near_those_of_the_processors_own_kernels() {
        for architecture in ARCHITECTURES {
            let tiny = TinyGguf::model(architecture);
            let (model, kernels) = (load(&tiny).unwrap(), kernels(&tiny));
            let mut session = model.start(&prompt(), 3, 8).unwrap();
            let mut expected = kernels.start(&prompt(), 3, 8).unwrap();
            check_near(session.logits(), expected.logits(), NEAR_KERNELS, architecture);
            for step in 0..8 {
                let batch: Vec<(usize, u32)> = (0..3).map(|slot| (slot, 70 * slot as u32 + step)).collect();
                session.step(&batch).unwrap();
                expected.step(&batch).unwrap();
                check_near(session.logits(), expected.logits(), NEAR_KERNELS, architecture);
            }
        }
    }

    #[test]
    fn heads_that_turn_in_part_are_those_of_the_kernels() {
        for architecture in ARCHITECTURES {
            let mut tiny = TinyGguf::model(architecture);
            let whole = load(&tiny).unwrap().start(&prompt(), 1, 1).unwrap().logits().to_vec();
            tiny.set(&format!("{architecture}.rope.dimension_count"), Value::U32(8));
            let model = load(&tiny).unwrap();
            let session = model.start(&prompt(), 1, 1).unwrap();
            let kernels = kernels(&tiny);
            let expected = kernels.start(&prompt(), 1, 1).unwrap();
            check_near(session.logits(), expected.logits(), NEAR_KERNELS, architecture);
            assert!(cosine(session.logits(), &whole) < 0.99, "{architecture}: it makes a difference");
        }
    }

    #[test]
    fn the_default_model_computes_what_candle_and_the_kernels_compute() {
        let path = testing::smollm2();
        let model = load_from(&path, None).unwrap();
        let kernels = kernels_from(&path);
        let tokens = [1, 4093, 198, 504, 3575, 282, 4649, 314];
        let then = [7042, 30];
        let expected = reference_of("llama", std::fs::File::open(&path).unwrap(), &tokens, &then);
        let mut session = model.start(&tokens, 2, 2).unwrap();
        let mut of_kernels = kernels.start(&tokens, 2, 2).unwrap();
        let check = |ours: &[f32], of_kernels: &[f32], expected: &[f32]| {
            check_near(ours, expected, NEAR_CANDLE, "candle");
            let cosine = cosine(ours, of_kernels);
            // Each rounds activations in its own way, and each is about 0.0015 away from what exact products give.
            assert!(cosine > 0.99, "cosine of {cosine} with the kernels");
        };
        check(session.logits(), of_kernels.logits(), &expected[0]);
        for (token, expected) in then.into_iter().zip(&expected[1..]) {
            session.step(&[(0, 30), (1, token)]).unwrap();
            of_kernels.step(&[(0, 30), (1, token)]).unwrap();
            let second = expected.len()..2 * expected.len();
            check(&session.logits()[second.clone()], &of_kernels.logits()[second], expected);
        }
    }

    #[test]
    fn a_continuation_does_not_depend_on_its_batch() {
        for architecture in ARCHITECTURES {
            let model = load(&TinyGguf::model(architecture)).unwrap();
            let texts: [[u32; 3]; 5] = std::array::from_fn(|i| [1, 2, 3].map(|j| (i as u32 + 1) * 10 + j));
            let mut together = model.start(&prompt(), 5, 3).unwrap();
            let mut rows = Vec::new();
            for step in 0..3 {
                let batch: Vec<(usize, u32)> =
                    texts.iter().enumerate().map(|(slot, text)| (slot, text[step])).collect();
                together.step(&batch).unwrap();
                rows.push(together.logits().to_vec());
            }
            for (slot, text) in texts.iter().enumerate() {
                let mut alone = model.start(&prompt(), 1, 3).unwrap();
                for (token, rows) in text.iter().zip(&rows) {
                    alone.step(&[(0, *token)]).unwrap();
                    let own = &rows[slot * VOCABULARY..(slot + 1) * VOCABULARY];
                    check_near(alone.logits(), own, NEAR_ITSELF, architecture);
                }
            }
        }
    }

    #[test]
    fn slots_may_leave_and_change_places() {
        let model = load(&TinyGguf::model("llama")).unwrap();
        let mut session = model.start(&prompt(), 4, 4).unwrap();
        session.step(&[(0, 1), (1, 2), (2, 3), (3, 7)]).unwrap();
        session.step(&[(3, 8), (0, 9), (2, 4)]).unwrap();
        session.step(&[(2, 6), (3, 5)]).unwrap();
        let last = session.logits().to_vec();
        for (place, text) in [(0, [3, 4, 6]), (1, [7, 8, 5])] {
            let mut alone = model.start(&prompt(), 1, 4).unwrap();
            for token in text {
                alone.step(&[(0, token)]).unwrap();
            }
            check_near(&last[place * VOCABULARY..][..VOCABULARY], alone.logits(), NEAR_ITSELF, "a slot that stayed");
        }
        assert!(matches!(session.step(&[(0, 1)]), Err(EngineError::Misuse(_))), "it left");
        session.step(&[(3, 5)]).unwrap();
    }

    #[test]
    fn slots_may_leave_before_the_first_step() {
        let model = load(&TinyGguf::model("llama")).unwrap();
        let mut session = model.start(&prompt(), 3, 4).unwrap();
        session.step(&[(2, 5)]).unwrap();
        let mut alone = model.start(&prompt(), 1, 4).unwrap();
        alone.step(&[(0, 5)]).unwrap();
        check_near(session.logits(), alone.logits(), NEAR_ITSELF, "the one that stayed");
    }

    #[test]
    fn continuations_grow_beyond_their_first_memory() {
        let model = load(&TinyGguf::model("llama")).unwrap();
        let text: Vec<u32> = (0..2 * FIRST_ROOM as u32 + 3).map(|i| i * 31 % 256).collect();
        let mut session = model.start(&[1, 2], 2, text.len()).unwrap();
        for token in &text {
            session.step(&[(0, *token), (1, 255 - token)]).unwrap();
        }
        let whole = [&[1, 2], &text[..]].concat();
        let expected = model.start(&whole, 1, 0).unwrap();
        check_near(row(&session, 0), expected.logits(), NEAR_ITSELF, "a long continuation");
        assert!(session.step(&[(0, 1)]).is_err(), "no more than its room");
    }

    #[test]
    fn rows_of_a_text_are_those_of_its_steps() {
        let model = load(&TinyGguf::model("qwen3")).unwrap();
        let tokens = prompt();
        for from in [0, 31, 32, 33, 69] {
            let rows = model.rows(&tokens, from).unwrap();
            assert_eq!(rows.len(), tokens.len() - from);
            let start = model.start(&tokens[..=from], 1, tokens.len() - from).unwrap();
            check_near(start.logits(), &rows[0], NEAR_ITSELF, "the first");
            let last = model.start(&tokens, 1, 1).unwrap();
            check_near(last.logits(), rows.last().unwrap(), NEAR_ITSELF, "the last");
        }
    }

    #[test]
    fn weights_of_every_format_are_those_of_candle() {
        let mut tiny = TinyGguf::model("llama");
        let values = |tiny: &TinyGguf, name: &str| {
            let tensor = &tiny.tensors.iter().find(|(n, _)| n == name).unwrap().1;
            tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (up, embeddings) = (values(&tiny, "blk.0.ffn_up.weight"), values(&tiny, "token_embd.weight"));
        use GgmlDType::{BF16, F16, F32, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
        for format in [F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1, Q4_0] {
            tiny.tensor("blk.0.ffn_up.weight", up.clone(), &[96, testing::WIDTH], format);
            tiny.tensor("token_embd.weight", embeddings.clone(), &[VOCABULARY, testing::WIDTH], format);
            let expected = reference("llama", &tiny, &prompt(), &[]).remove(0);
            let model = load(&tiny).unwrap();
            let session = model.start(&prompt(), 1, 1).unwrap();
            check_near(session.logits(), &expected, 0.01, &format!("{format:?}"));
        }
    }

    #[test]
    fn misuse_is_an_error() {
        let model = load(&TinyGguf::model("llama")).unwrap();
        assert!(model.start(&[], 1, 1).is_err());
        assert!(model.start(&[999], 1, 1).is_err());
        assert!(model.start(&[1; 128], 1, 1).is_err(), "no room in the context");
        let mut session = model.start(&[1], 2, 1).unwrap();
        assert!(session.step(&[(0, 1), (1, 1), (1, 1)]).is_err(), "twice");
        session.step(&[(0, 1), (1, 1)]).unwrap();
        assert!(session.step(&[(0, 1)]).is_err(), "no room");
    }

    #[test]
    fn overflow_in_the_model_is_an_error() {
        let mut tiny = TinyGguf::model("llama");
        let mut embeddings = vec![0.5; VOCABULARY * testing::WIDTH];
        embeddings[prompt()[7] as usize * testing::WIDTH + 5] = 3e38;
        tiny.tensor("token_embd.weight", embeddings, &[VOCABULARY, testing::WIDTH], GgmlDType::F32);
        let model = load(&tiny).unwrap();
        assert!(matches!(model.start(&prompt(), 1, 1), Err(EngineError::NotFinite)));
    }

    #[test]
    fn damaged_files_are_refused_like_those_of_the_kernels() {
        let mut tiny = TinyGguf::model("llama");
        tiny.tensors.retain(|(name, _)| name != "blk.1.attn_k.weight");
        assert!(load(&tiny).unwrap_err().to_string().contains("\"blk.1.attn_k.weight\" is missing"));
        tiny.tensor("blk.1.attn_k.weight", vec![0.1; 64 * 64], &[64, 64], GgmlDType::Q8_0);
        assert!(load(&tiny).unwrap_err().to_string().contains("is [64, 64], expected [32, 64]"));
        tiny.set("general.architecture", Value::String("mamba".to_owned()));
        assert!(load(&tiny).unwrap_err().to_string().contains("supported: llama, qwen2, qwen3"));
    }
}
