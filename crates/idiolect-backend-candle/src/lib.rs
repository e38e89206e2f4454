//! Local models on candle: GGUF language models and sentence encoders
