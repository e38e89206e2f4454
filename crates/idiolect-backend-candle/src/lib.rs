//! Local models: [`CandleBackend`] runs GGUF language models, [`SentenceEncoder`] encodes sentences.
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
//! Dense models of the architectures `llama` (SmolLM2, Llama, Mistral, TinyLlama …), `qwen2` and `qwen3`, with byte-level
//! BPE or SentencePiece vocabularies and the chat template that the file carries (ChatML where it carries none). On the
//! processor every weight matrix is held as eight-bit blocks (the precision of Q8_0), whatever the file's format: 1.13
//! bytes a weight.
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
//! | `cpu`, the default | none | this crate's own kernels: AVX2 and VNNI where the processor has them, plain Rust elsewhere | eight-bit blocks |
//! | `cuda`, `cuda:N` | `cuda` | candle's tensors | the file's own formats, on the card |
//! | `metal`, `metal:N` | `metal` | candle's tensors | the file's own formats, on the card |
//!
//! On each of them the prompt is computed once for all candidates, which then grow in one batch; candidates that end leave
//! it. Memory for keys and values grows with the candidates, and [`CandleConfig::max_kv_bytes`] bounds it: a request that
//! might need more is refused before any of it is allocated.
//!
//! On the processor a candidate's text depends only on the request, its seed and its own number. On the other devices the
//! last bits of its numbers may also depend on how many candidates there are, as the libraries choose kernels by size.
//!
//! The feature `cuda` needs the CUDA toolkit (`nvcc`) to build, and the program then needs the libraries of driver and
//! toolkit to start, whatever device is chosen; so build one program for machines with a card and one for those without.
//!
//! # What is tested
//! The processor's kernels, on every instruction set that the testing machine has, against exact products and candle's own
//! models. The engine on tensors, with the processor as its device: logits against candle's own models (within 0.1 %) and
//! against the kernels (within 5 %), on random weights of each architecture and on SmolLM2; each candidate against the
//! same one alone (within 0.01 %); and the conformance suite of `idiolect-backend`. Encoders, on kernels and on tensors:
//! random weights of both shapes against sums in double precision (within 3e-6), and on kernels the recorded embeddings of
//! the Python originals (within 5e-6). With `cuda` the crate is compiled and
//! linked, and fails with a clear error where there is no card; its kernels have not been run by the tests. `metal` has
//! not been compiled by them. Loading a model onto a device computes a few tokens first, so that a device which cannot
//! do it is found out then, and not by the first request.
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
//! Denied in the whole crate but for one module, the x86-64 kernels: vector loads through pointers inside bounds that are
//! asserted before, and instructions whose presence was detected.

mod assembly;
mod backend;
mod candidate;
mod config;
mod device;
mod encoder;
mod engine;
mod error;
mod header;
mod intake;
mod loader;
mod math;
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
pub use config::{CandleConfig, EncoderConfig};
pub use device::{DeviceChoice, ParseDeviceError};
pub use encoder::SentenceEncoder;
pub use error::LoadError;
pub use idiolect_kernels::Format;
pub use idiolect_kernels::KvType;
pub use speed::{DecodeSpeed, Speed};
