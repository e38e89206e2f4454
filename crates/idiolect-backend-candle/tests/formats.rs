//! The kernels read quantised blocks as candle does.

use candle_core::Device;
use candle_core::quantized::{GgmlDType, ggml_file::qtensor_from_ggml};
use idiolect_kernels::{Format, Matrix, Tier};

const FORMATS: [(Format, GgmlDType); 11] = [
    (Format::F32, GgmlDType::F32),
    (Format::F16, GgmlDType::F16),
    (Format::Bf16, GgmlDType::BF16),
    (Format::Q4_0, GgmlDType::Q4_0),
    (Format::Q4_1, GgmlDType::Q4_1),
    (Format::Q5_0, GgmlDType::Q5_0),
    (Format::Q5_1, GgmlDType::Q5_1),
    (Format::Q8_0, GgmlDType::Q8_0),
    (Format::Q4K, GgmlDType::Q4K),
    (Format::Q5K, GgmlDType::Q5K),
    (Format::Q6K, GgmlDType::Q6K),
];

/// Makes blocks of any bits but with scales that are of a model's size.
fn blocks(format: Format, n: usize) -> Vec<u8> {
    let mut state = 5u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u8
    };
    let mut bytes: Vec<u8> = (0..n * format.block_bytes()).map(|_| next()).collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        // The upper byte of a half precision number between 2^-8 and 2^-3, of either sign.
        let mut scale = |at: usize| block[at + 1] = (next() & 0x80) | (28 + next() % 20);
        match format {
            Format::F32 => block.copy_from_slice(&(f32::from(next()) - 100.0).to_le_bytes()),
            Format::Q6K => scale(208),
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => {
                scale(0);
                scale(2);
            }
            _ => scale(0),
        }
    }
    bytes
}

#[test]
fn blocks_of_every_format_decode_to_what_candle_reads() {
    let (rows, cols) = (21, 512);
    for (format, dtype) in FORMATS {
        let bytes = blocks(format, rows * cols / format.block_len());
        let tensor = qtensor_from_ggml(dtype, &bytes, vec![rows, cols], &Device::Cpu).unwrap();
        let expected = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let matrix = Matrix::pack(format, rows, cols, &bytes, Tier::detect()).unwrap();
        let mut row = vec![0.0; cols];
        for (r, expected) in expected.chunks_exact(cols).enumerate() {
            matrix.decode_row(r, &mut row);
            for (c, (got, expected)) in row.iter().zip(expected).enumerate() {
                // Products are rounded in another order for formats with minima.
                let near = (got - expected).abs() <= 1e-5 * expected.abs().max(0.1);
                assert!(near, "{format} [{r}][{c}]: {got}, expected {expected}");
            }
        }
    }
}
