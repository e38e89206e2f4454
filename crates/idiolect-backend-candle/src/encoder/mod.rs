//! Sentence encoders.

mod kernels;
mod plan;
mod sentence;
mod tensors;
mod weights;

pub use sentence::SentenceEncoder;
#[cfg(feature = "classifiers")]
pub(crate) use sentence::load_tokenizer;

#[cfg(test)]
mod tests;

/// Why texts could not be encoded.
#[derive(Debug, thiserror::Error)]
enum Fault {
    /// The tokenizer was to cut it.
    #[error("a text of {0} tokens is longer than the model allows")]
    TooLong(usize),
    /// Tokenizer and model do not belong together.
    #[error("token {0} is beyond the vocabulary")]
    UnknownToken(u32),
    /// The weights make no sense.
    #[error("the encoder computed a value that is no number")]
    NotANumber,
    /// The device failed.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

/// Returns the mean of rows, of unit length.
fn pool<'a>(rows: impl Iterator<Item = &'a [f32]>, width: usize) -> Result<Vec<f32>, Fault> {
    let mut sum = vec![0f32; width];
    for row in rows {
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    // The mean and the sum differ by a factor that the normalisation takes out.
    let length = sum.iter().map(|value| value * value).sum::<f32>().sqrt();
    if !length.is_finite() || length == 0.0 {
        return Err(Fault::NotANumber);
    }
    sum.iter_mut().for_each(|value| *value /= length);
    Ok(sum)
}
