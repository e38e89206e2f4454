//! Rows of weights in a file's format, decoded to `f32`, checked, and encoded in another.

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::error::first_line;

/// How rows lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowLayout {
    /// The format, by candle's name.
    pub(crate) format: GgmlDType,
    /// Values of a row.
    pub(crate) cols: usize,
    /// Bytes of a row.
    pub(crate) bytes: usize,
}

impl RowLayout {
    /// Returns `None` where rows do not fill whole blocks.
    pub(crate) fn new(format: GgmlDType, cols: usize) -> Option<Self> {
        let blocks = cols.checked_div(format.block_size())?;
        let whole = cols > 0 && cols.is_multiple_of(format.block_size());
        let bytes = blocks.checked_mul(format.type_size())?;
        whole.then_some(Self { format, cols, bytes })
    }

    /// Decodes rows.
    pub(crate) fn decode(self, bytes: &[u8], values: &mut [f32]) -> Result<(), String> {
        bytes
            .par_chunks_exact(self.bytes)
            .zip(values.par_chunks_exact_mut(self.cols))
            .with_min_len(16)
            .try_for_each(|(bytes, values)| self.decode_row(bytes, values))
    }

    fn decode_row(self, bytes: &[u8], row: &mut [f32]) -> Result<(), String> {
        match self.format {
            GgmlDType::Q4_1 => {
                for (block, out) in bytes.chunks_exact(20).zip(row.chunks_exact_mut(32)) {
                    let (scale, least) = (half_at(block, 0), half_at(block, 2));
                    let (low, high) = out.split_at_mut(16);
                    for ((low, high), byte) in low.iter_mut().zip(high).zip(&block[4..]) {
                        *low = f32::from(byte & 15) * scale + least;
                        *high = f32::from(byte >> 4) * scale + least;
                    }
                }
            }
            GgmlDType::Q8_0 => {
                for (block, out) in bytes.chunks_exact(34).zip(row.chunks_exact_mut(32)) {
                    let scale = half_at(block, 0);
                    for (out, byte) in out.iter_mut().zip(&block[2..]) {
                        *out = f32::from(byte.cast_signed()) * scale;
                    }
                }
            }
            GgmlDType::F32 => {
                for (value, bytes) in row.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            GgmlDType::F16 => {
                for (value, bytes) in row.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            GgmlDType::BF16 => {
                for (value, bytes) in row.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            other => {
                let decoded = qtensor_from_ggml(other, bytes, vec![self.cols], &Device::Cpu)
                    .and_then(|tensor| tensor.dequantize(&Device::Cpu))
                    .and_then(|tensor| tensor.to_vec1::<f32>())
                    .map_err(|e| first_line(&e))?;
                row.copy_from_slice(&decoded);
            }
        }
        Ok(())
    }

    /// Encodes rows, which must be whole; appends to `bytes`.
    pub(crate) fn encode(self, values: Vec<f32>, bytes: &mut Vec<u8>) -> Result<(), String> {
        if self.format == GgmlDType::F32 {
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            return Ok(());
        }
        let rows = values.len() / self.cols;
        let encoded = Tensor::from_vec(values, (rows, self.cols), &Device::Cpu)
            .and_then(|tensor| QTensor::quantize(&tensor, self.format))
            .map_err(|e| first_line(&e))?;
        bytes.extend_from_slice(&encoded.data().map_err(|e| first_line(&e))?);
        Ok(())
    }

    /// Says whether all values of these rows are finite: quantised ones are when their blocks' scales are.
    pub(crate) fn is_finite(self, bytes: &[u8]) -> bool {
        let halves = |size: usize, at: &[usize]| {
            bytes
                .par_chunks(size << 12)
                .all(|bytes| bytes.chunks_exact(size).all(|block| at.iter().all(|at| half_at(block, *at).is_finite())))
        };
        match self.format {
            GgmlDType::F32 => bytes.as_chunks::<4>().0.iter().all(|b| f32::from_le_bytes(*b).is_finite()),
            GgmlDType::F16 => bytes.as_chunks::<2>().0.iter().all(|b| f16::from_le_bytes(*b).is_finite()),
            GgmlDType::BF16 => bytes.as_chunks::<2>().0.iter().all(|b| bf16::from_le_bytes(*b).is_finite()),
            GgmlDType::Q4_0 => halves(18, &[0]),
            GgmlDType::Q4_1 => halves(20, &[0, 2]),
            GgmlDType::Q5_0 => halves(22, &[0]),
            GgmlDType::Q5_1 => halves(24, &[0, 2]),
            GgmlDType::Q8_0 => halves(34, &[0]),
            GgmlDType::Q8_1 => halves(36, &[0, 2]),
            GgmlDType::Q2K => halves(84, &[80, 82]),
            GgmlDType::Q3K => halves(110, &[108]),
            GgmlDType::Q4K => halves(144, &[0, 2]),
            GgmlDType::Q5K => halves(176, &[0, 2]),
            GgmlDType::Q6K => halves(210, &[208]),
            GgmlDType::Q8K => bytes
                .chunks_exact(292)
                .all(|block| f32::from_le_bytes([block[0], block[1], block[2], block[3]]).is_finite()),
        }
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [GgmlDType; 13] = [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];

    #[test]
    fn what_was_encoded_is_decoded_as_candle_does() {
        let values: Vec<f32> = (0..512 * 3).map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0).collect();
        let tensor = Tensor::from_vec(values.clone(), (3, 512), &Device::Cpu).unwrap();
        for format in FORMATS {
            let layout = RowLayout::new(format, 512).unwrap();
            let mut bytes = Vec::new();
            layout.encode(values.clone(), &mut bytes).unwrap();
            assert_eq!(bytes.len(), 3 * layout.bytes, "{format:?}");
            assert!(layout.is_finite(&bytes), "{format:?}");
            let mut decoded = vec![0.0; values.len()];
            layout.decode(&bytes, &mut decoded).unwrap();
            let expected = QTensor::quantize(&tensor, format).unwrap().dequantize(&Device::Cpu).unwrap();
            assert_eq!(decoded, expected.flatten_all().unwrap().to_vec1::<f32>().unwrap(), "{format:?}");
        }
    }

    #[test]
    fn scales_that_are_no_numbers_are_found() {
        let not = f16::NAN.to_le_bytes();
        for format in FORMATS {
            let layout = RowLayout::new(format, 256).unwrap();
            let mut bytes = Vec::new();
            layout.encode(vec![1.0; 512], &mut bytes).unwrap();
            let (size, scale) = match format {
                GgmlDType::Q2K => (84, 80),
                GgmlDType::Q3K => (110, 108),
                GgmlDType::Q6K => (210, 208),
                GgmlDType::F32 => (4, 2),
                other => (other.type_size(), 0),
            };
            let last = bytes.len() - size + scale;
            let bad = if format == GgmlDType::F32 { [0xc0, 0x7f] } else { not };
            bytes[last..last + 2].copy_from_slice(if format == GgmlDType::BF16 { &[0xc0, 0x7f] } else { &bad });
            assert!(!layout.is_finite(&bytes), "{format:?}");
        }
    }

    #[test]
    fn rows_that_fill_no_blocks_have_no_layout() {
        assert!(RowLayout::new(GgmlDType::Q4_0, 33).is_none());
        assert!(RowLayout::new(GgmlDType::Q4K, 128).is_none());
        assert!(RowLayout::new(GgmlDType::F32, 0).is_none());
        assert_eq!(RowLayout::new(GgmlDType::Q4K, 512).unwrap().bytes, 288);
    }
}
