//! Products of rows with weight matrices.
//!
//! Rows come and go as `f32`. Quantised weights stay quantised, and candle multiplies them as they are. Weights of sixteen
//! bits stay so, too: rows are rounded to their type for the product, which is summed in `f32` and rounded again.

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::{GgmlDType, QMatMul};
use candle_core::{D, DType, Module, Tensor};

use super::Outcome;
use crate::device::OpenDevice;
use crate::error::LoadError;
use crate::weights::{Encoded, Role, Weights};

/// A weight matrix on a device, `[out, in]`.
pub(super) enum Product {
    Quantised(QMatMul),
    Dense(Tensor),
}

impl Product {
    fn new(encoded: &Encoded, device: &OpenDevice) -> Result<Self, LoadError> {
        let shape = [encoded.rows, encoded.layout.cols];
        let dense = match encoded.layout.format {
            GgmlDType::F32 => Some(DType::F32),
            GgmlDType::F16 => Some(DType::F16),
            GgmlDType::BF16 => Some(DType::BF16),
            _ => None,
        };
        let product = match dense {
            Some(dtype) => Tensor::from_raw_buffer(&encoded.bytes, dtype, &shape, device.handle()).map(Self::Dense),
            None => qtensor_from_ggml(encoded.layout.format, &encoded.bytes, shape.to_vec(), device.handle())
                .and_then(QMatMul::from_qtensor)
                .map(Self::Quantised),
        };
        product.map_err(|e| device.error(&e))
    }

    /// Reads a matrix.
    pub(super) fn load(weights: &mut Weights, role: Role, device: &OpenDevice) -> Result<Self, LoadError> {
        Self::new(&weights.encoded(role)?, device)
    }

    /// Multiplies rows.
    pub(super) fn forward(&self, rows: &Tensor) -> Outcome<Tensor> {
        match self {
            Self::Quantised(weights) => weights.forward(rows),
            Self::Dense(weights) => rows.to_dtype(weights.dtype())?.matmul(&weights.t()?)?.to_dtype(DType::F32),
        }
    }

    /// Returns some of the matrix's own rows.
    pub(super) fn rows(&self, which: &Tensor) -> Outcome<Tensor> {
        match self {
            Self::Quantised(weights) => weights.embedding(which),
            Self::Dense(weights) => weights.index_select(which, 0)?.to_dtype(DType::F32),
        }
    }
}

/// Matrices that multiply the same rows, one below the other; those that follow each other in one format are one.
pub(super) struct Joint(Vec<Product>);

impl Joint {
    /// Reads matrices.
    pub(super) fn load(weights: &mut Weights, roles: &[Role], device: &OpenDevice) -> Result<Self, LoadError> {
        let mut joint = Vec::new();
        let mut last: Option<Encoded> = None;
        for role in roles {
            let next = weights.encoded(*role)?;
            last = match last {
                Some(mut same) if same.layout == next.layout => {
                    same.bytes.extend_from_slice(&next.bytes);
                    same.rows += next.rows;
                    Some(same)
                }
                Some(other) => {
                    joint.push(Product::new(&other, device)?);
                    Some(next)
                }
                None => Some(next),
            };
        }
        if let Some(last) = last {
            joint.push(Product::new(&last, device)?);
        }
        Ok(Self(joint))
    }

    /// Multiplies rows; what the matrices give lies side by side.
    pub(super) fn forward(&self, rows: &Tensor) -> Outcome<Tensor> {
        let products = self.0.iter().map(|product| product.forward(rows)).collect::<Outcome<Vec<_>>>()?;
        Tensor::cat(&products, D::Minus1)
    }
}
