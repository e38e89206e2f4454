//! Local models: [`CandleBackend`] runs language models, [`SentenceEncoder`] encodes sentences.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::path::Path;
//!
//! use idiolect_backend::{Backend, Embedder, Message, Request};
//! use idiolect_backend_candle::{CandleBackend, CandleConfig, SentenceEncoder};
//!
//! let backend = CandleBackend::load(Path::new("SmolLM2-135M-Instruct.Q4_1.gguf"), CandleConfig::default())?;
//! let mut request = Request::new(vec![Message::user("Why is the sky blue?")]);
//! request.n = 4;
//! request.sampling.max_tokens = 64;
//! let completion = backend.complete(request).await?;
//! let texts: Vec<String> = completion.candidates.into_iter().map(|c| c.text).collect();
//!
//! let encoder = SentenceEncoder::load(Path::new("all-MiniLM-L6-v2"))?;
//! let embeddings = encoder.embed(&texts).await?;
//! assert_eq!(embeddings.len(), texts.len());
//! # Ok(())
//! # }
//! ```
//!
//! # Models
//! Dense models of these families, from a GGUF file or from a folder of safetensors as the Hugging Face hub has it
//! (`config.json`, `tokenizer.json` and, if there, `tokenizer_config.json` beside the weights, which may be in several files):
//!
//! | GGUF architecture | `model_type` | models |
//! | --- | --- | --- |
//! | `llama` | `llama`, `mistral` | Llama 2 and 3, Mistral, SmolLM2, TinyLlama … |
//! | `qwen2`, `qwen3` | the same | Qwen 2, 2.5 and 3 |
//! | `phi3` | `phi3` | Phi-3, Phi-4 |
//! | `gemma`, `gemma2`, `gemma3` | the same, `gemma3_text` | Gemma 1 to 3, of which the part that reads text |
//!
//! Others are refused with this list, and so is a file with a tensor that none of these models has. Positions may be
//! stretched linearly, by Llama 3's or Phi-3's factors, or by YaRN; a layer may see all positions or a window of them.
//!
//! Weights stay in the file's format: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K are packed as they
//! are, once, with no second copy beside; Q2_K and Q3_K become Q8_0. [`CandleConfig::quantize`] encodes them anew.
//!
//! Vocabularies are byte-level BPE or SentencePiece, and any BPE that a `tokenizer.json` describes. The chat template is the
//! model's own; without one, control tokens in the vocabulary show which is meant (ChatML's, Llama 3's, Gemma's, Phi-3's or
//! Mistral's), and without those it is plain questions and answers. Where a template refuses system messages, their text
//! goes before the first thing that the user says.
//!
//! Sentence encoders of the shape of BERT (all-MiniLM-L6-v2) and MPNet (all-mpnet-base-v2), from a folder with
//! `model.safetensors`, `tokenizer.json` and `config.json`. On the processor they compute in `f32` with the packed kernels of
//! `idiolect-kernels`; resident is what the file holds, 91 and 438 MB.
//!
//! # Devices
//! [`CandleConfig::device`] says where a language model computes, [`EncoderConfig::device`] where an encoder does.
//!
//! | device | feature | engine | weights |
//! | --- | --- | --- | --- |
//! | `cpu`, the default | none | `idiolect-kernels`, with the instructions that the processor has | the file's own formats, packed |
//! | `cuda`, `cuda:N` | `cuda` | candle's tensors | the file's own formats, on the card |
//! | `metal`, `metal:N` | `metal` | candle's tensors | the file's own formats, on the card |
//!
//! # Serving
//! The candidates of all requests grow side by side, one token a step, beside stretches of the prompts that wait; whose
//! deadline is nearest comes first. A prompt is computed once for all its candidates, and what prompts begin with alike once
//! for all of them, within [`CandleConfig::max_kept_bytes`]. Candidates that end leave the batch.
//!
//! Memory for keys and values is bounded by [`CandleConfig::max_kv_bytes`] for all requests together. A request that could
//! never fit is refused with the numbers; one that fits, but not beside those that run, waits until its deadline.
//!
//! On the processor a candidate's text depends only on the request, its seed and its own number. On the other devices the
//! last bits of its numbers may also depend on what is computed beside it, as the libraries choose kernels by size. There,
//! too, sums, norms and softmax are in `f32`; weights of sixteen bits are multiplied with activations rounded to their type,
//! and keys and values in the type that they are kept in.
//!
//! The feature `cuda` needs the CUDA toolkit (`nvcc`) to build, and the program then needs the libraries of driver and
//! toolkit to start, whatever device is chosen; so build one program for machines with a card and one for those without.
//!
//! # What is tested
//! Both engines, that on kernels on every instruction set that the testing machine has and that on tensors with the
//! processor as its device: logits of random weights in `f32` against candle's own models, within 1e-4 (of up to 15) for
//! every family, from GGUF and from safetensors, computed at a stretch and token by token. Every family in each of F16, BF16,
//! Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K against candle's own models of the same weights in `f32`: on kernels
//! within 3 % of the logits' size (2.3 % was seen; 0.1 % of sixteen bits), on tensors within 4.5 % (3.5 %; 1.2 %); with keys
//! and values in eight bits, too, within 5 % of exact products. SmolLM2 over 2,195 tokens of prose: perplexity within 1 %,
//! log-probabilities within 0.05 in the mean, which is what rounding activations to eight bits costs. With `IDIOLECT_E2E=1`
//! the same tokens beside candle's own products of the same weights, in Q4_0: 0.042 from exact products where candle's are
//! 0.056, and 0.068 from each other; part of them in the file's own format, and with Gemma 3: 0.085 from each other at most.
//! Greedy continuations: 95 % of the tokens are the first choice of candle's own implementation, too (231 of 240), and where
//! they are not, the other is at most 0.35 nats likelier (0.31 was seen). And Gemma 3's logits from exact products within
//! 2e-4 of candle's own (5e-5 was seen, of up to 23).
//! Each candidate against the same one alone, and the conformance suite of `idiolect-backend`. Longer contexts of Phi-3 and YaRN are tested by formula only: candle's own models compute neither.
//! Encoders, on kernels and on tensors: random weights of both shapes against sums in double precision (within 3e-6),
//! and on kernels the recorded embeddings of the Python originals (within 5e-6). What must hold for every engine (forks
//! share, releases free, reserved memory is there, misuse harms nobody …) is proved of both by the same tests. On tensors,
//! weights, keys and values of sixteen bits against exact products of the same weights: within 0.5 % (`f16`) and 4 %
//! (`bf16`) of the logits' size.
//!
//! The features `cuda` and `metal` are neither compiled nor run by default. `.ci/check-cuda` compiles the first without a card
//! and without its toolkit. On a machine with a card this runs everything that computes on tensors, the conformance suite
//! included, on it:
//!
//! ```text
//! IDIOLECT_TEST_DEVICE=cuda cargo test -p idiolect-backend-candle --features cuda
//! ```
//!
//! and this measures best of 8 beside PyTorch's transformers:
//!
//! ```text
//! cargo build --release -p idiolect --features cuda
//! python tests/peers/transformers/model.py DIR && python tests/peers/transformers/measure.py DIR --device cuda -n 1,8
//! ```
//!
//! Loading a model onto a device computes a few tokens first, so that a device which cannot do it is found out then, and
//! not by the first request.
//!
//! # What is not tested
//! No machine was at hand for these; they compile, or are written like what does, and no more is known of them:
//!
//! - **CUDA on a card**, and with it what was measured beside other programs on one. The engine on tensors is tested with the
//!   processor as its device.
//! - **Metal**, which was not compiled either.
//! - **`bf16` on a card**: weights, keys and values of that type are tested on the processor, which has no products of its own
//!   for them.
//! - **AVX-VNNI in its VEX spelling**, which processors without AVX-512 have. That of AVX-512 is tested, and the arithmetic is
//!   the same.
//! - **NEON on a processor**: its kernels ran under an emulator only, which says that they are right and nothing of how fast.
//!
//! # What a message cannot do
//! Its text is data: it is never read as a template, and the names of control tokens in it (`<|im_end|>`, `<s>` …) are
//! tokenised as the characters they are.
//!
//! # Threads
//! Each backend and each encoder has one thread that takes requests and a pool that computes; see
//! [`CandleConfig::threads`]. Neither uses the async runtime's threads.
//!
//! # Unsafe code
//! None; the kernels are in `idiolect-kernels`.

mod assembly;
mod backend;
mod candidate;
#[cfg(feature = "classifiers")]
mod classifier;
mod clock;
mod config;
mod cost;
mod device;
mod encoder;
mod engine;
mod error;
mod forecast;
mod header;
mod intake;
mod kv_type;
mod loader;
mod math;
mod measure;
pub mod metrics;
mod prompt;
mod safetensors;
mod sampling;
mod speed;
mod template;
mod tokenizer;
mod weights;
mod worker;

#[cfg(test)]
mod quality;
#[cfg(test)]
mod testing;

pub use backend::CandleBackend;
#[cfg(feature = "classifiers")]
pub use classifier::SequenceClassifier;
pub use config::{BadSetting, CandleConfig, EncoderConfig};
pub use device::{DeviceChoice, ParseDeviceError};
pub use encoder::SentenceEncoder;
pub use error::LoadError;
pub use idiolect_kernels::Format;
pub use kv_type::KvType;
pub use speed::{DecodeSpeed, Speed};
