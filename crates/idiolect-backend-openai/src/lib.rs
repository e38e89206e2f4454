//! Any OpenAI-shaped server as an inference backend
