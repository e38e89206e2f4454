//! What the tests of the engines compare with.

use std::cell::RefCell;
use std::io::{Read, Seek};

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2, quantized_qwen3};

use super::{Engine, EngineError, Feed, Seq, Wants};
use crate::device::OpenDevice;
use crate::math;
use crate::testing::TinyGguf;

/// A prompt of more than two stretches.
pub(crate) fn prompt() -> Vec<u32> {
    (0..70).map(|i| (i * 37 + 11) % 256).collect()
}

/// Opens the device that engines on tensors are tested on: the processor, or what `IDIOLECT_TEST_DEVICE` names.
pub(crate) fn device() -> OpenDevice {
    let name = std::env::var("IDIOLECT_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    OpenDevice::open(name.parse().expect("IDIOLECT_TEST_DEVICE names a device")).expect("the device opens")
}

type Forward = Box<dyn FnMut(&Tensor, usize) -> candle_core::Result<Tensor>>;

/// Runs candle's own implementation over the prompt and then token after token; returns the logits each time.
pub(crate) fn reference(architecture: &str, tiny: &TinyGguf, prompt: &[u32], then: &[u32]) -> Vec<Vec<f32>> {
    reference_of(architecture, std::io::Cursor::new(tiny.bytes()), prompt, then)
}

/// As [`reference`], of any file.
pub(crate) fn reference_of(
    architecture: &str,
    mut bytes: impl Read + Seek,
    prompt: &[u32],
    then: &[u32],
) -> Vec<Vec<f32>> {
    let content = Content::read(&mut bytes).unwrap();
    let cpu = Device::Cpu;
    let mut forward: Forward = match architecture {
        "llama" => {
            let mut model = quantized_llama::ModelWeights::from_gguf(content, &mut bytes, &cpu).unwrap();
            Box::new(move |x, at| model.forward(x, at))
        }
        "qwen2" => {
            let mut model = quantized_qwen2::ModelWeights::from_gguf(content, &mut bytes, &cpu).unwrap();
            Box::new(move |x, at| model.forward(x, at))
        }
        _ => {
            let mut model = quantized_qwen3::ModelWeights::from_gguf(content, &mut bytes, &cpu).unwrap();
            Box::new(move |x, at| model.forward(x, at))
        }
    };
    let mut inputs = vec![prompt.to_vec()];
    inputs.extend(then.iter().map(|token| vec![*token]));
    let mut at = 0;
    inputs
        .into_iter()
        .map(|tokens| {
            let n = tokens.len();
            let x = Tensor::from_vec(tokens, (1, n), &cpu).unwrap();
            let logits = forward(&x, at).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            at += n;
            logits
        })
        .collect()
}

/// Compares by root mean squares, as random weights magnify what rounding does to single logits. Returns how far off they are.
pub(crate) fn check_near(got: &[f32], expected: &[f32], tolerance: f32, what: &str) -> f32 {
    assert_eq!(got.len(), expected.len());
    let difference: Vec<f32> = got.iter().zip(expected).map(|(a, b)| a - b).collect();
    let off = (math::dot(&difference, &difference) / math::dot(expected, expected)).sqrt();
    assert!(off < tolerance, "{what}: off by {off} of the logits' size");
    off
}

/// Returns the cosine of the angle between two rows of logits.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    math::dot(a, b) / (math::dot(a, a).sqrt() * math::dot(b, b).sqrt())
}

/// A model under test: any number of sessions of it, one call at a time.
#[derive(Debug)]
pub(crate) struct Model<E>(RefCell<E>);

/// A prompt with continuations in numbered slots.
#[derive(Debug)]
pub(crate) struct Session<'a, E: Engine> {
    model: &'a RefCell<E>,
    slots: Vec<Option<Seq>>,
    logits: Vec<f32>,
}

/// Tokens of a prompt that are fed at once: short stretches show their seams.
const STRETCH: usize = 32;

impl<E: Engine> Model<E> {
    pub(crate) fn new(engine: E) -> Self {
        Self(RefCell::new(engine))
    }

    /// Computes a prompt for `slots` continuations of at most `room` tokens each.
    pub(crate) fn start(&self, prompt: &[u32], slots: usize, room: usize) -> Result<Session<'_, E>, EngineError> {
        let mut engine = self.0.borrow_mut();
        let (seq, found) = engine.begin(prompt, prompt.len().saturating_sub(1), room)?;
        let mut session = Session { model: &self.0, slots: vec![Some(seq)], logits: Vec::new() };
        let mut stretches = prompt[found..].chunks(STRETCH).peekable();
        while let Some(tokens) = stretches.next() {
            let wants = if stretches.peek().is_none() { Wants::Last } else { Wants::Nothing };
            if let Err(error) = engine.forward(&[Feed { seq, tokens, wants }]) {
                drop(engine);
                return Err(error);
            }
        }
        session.logits = engine.logits().to_vec();
        for _ in 1..slots {
            session.slots.push(Some(engine.fork(seq)?));
        }
        drop(engine);
        Ok(session)
    }

    /// Gives the logits after each token from position `from` on.
    pub(crate) fn rows(&self, tokens: &[u32], from: usize) -> Result<Vec<Vec<f32>>, EngineError> {
        let mut engine = self.0.borrow_mut();
        let vocabulary = engine.vocabulary();
        let (seq, mut done) = engine.begin(tokens, from, 0)?;
        let mut rows = Vec::new();
        while done < tokens.len() {
            let end = if done < from { from.min(done + STRETCH) } else { tokens.len().min(done + STRETCH) };
            let wants = if done < from { Wants::Nothing } else { Wants::All };
            engine.forward(&[Feed { seq, tokens: &tokens[done..end], wants }])?;
            rows.extend(engine.logits().chunks_exact(vocabulary).map(<[f32]>::to_vec));
            done = end;
        }
        engine.release(seq);
        Ok(rows)
    }

    /// Looks at the engine.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut E) -> T) -> T {
        look(&mut self.0.borrow_mut())
    }
}

impl<E: Engine> Session<'_, E> {
    pub(crate) fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Appends one token to each of the given slots. The others end.
    pub(crate) fn step(&mut self, batch: &[(usize, u32)]) -> Result<(), EngineError> {
        let mut engine = self.model.borrow_mut();
        if batch.iter().any(|(slot, _)| self.slots.get(*slot).is_none_or(Option::is_none)) {
            return Err(EngineError::Misuse("there is no such slot"));
        }
        for (slot, seq) in self.slots.iter_mut().enumerate() {
            if let Some(seq) = seq.take_if(|_| batch.iter().all(|(fed, _)| *fed != slot)) {
                engine.release(seq);
            }
        }
        let mut feeds = Vec::new();
        for (slot, token) in batch {
            let seq = self.slots[*slot];
            feeds.extend(seq.map(|seq| Feed { seq, tokens: std::slice::from_ref(token), wants: Wants::Last }));
        }
        engine.forward(&feeds)?;
        self.logits = engine.logits().to_vec();
        Ok(())
    }
}

impl<E: Engine> Drop for Session<'_, E> {
    fn drop(&mut self) {
        if let Ok(mut engine) = self.model.try_borrow_mut() {
            self.slots.iter().flatten().for_each(|seq| engine.release(*seq));
        }
    }
}
