//! CPU kernels for language models and encoders.
