use super::*;

/// The next rows of a sequence: its seeds by position, its blocks, and which positions.
type Rows<'a> = (&'a dyn Fn(usize) -> u64, &'a [u32], std::ops::Range<usize>);

/// A model's attention and some sequences, with numbers that look random.
struct Setting {
    shape: KvShape,
    heads: usize,
    view: View,
    neighbours: bool,
    rotated: usize,
}

fn noise(seed: u64) -> f32 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
}

impl Setting {
    fn new(kv_type: KvType, heads: usize, kv_heads: usize, head_width: usize) -> Self {
        let shape = KvShape { layers: 2, kv_heads, head_width, kv_type };
        let view = View { heads, window: None, softcap: None };
        Self { shape, heads, view, neighbours: false, rotated: head_width / 4 * 2 }
    }

    fn row_width(&self) -> usize {
        (self.heads + 2 * self.shape.kv_heads) * self.shape.head_width
    }

    /// Queries, keys and values of a token of a sequence.
    fn row(&self, seed: u64, position: usize) -> Vec<f32> {
        let seed = seed * 1000 + position as u64;
        (0..self.row_width()).map(|i| noise(seed * 10_000 + i as u64) * 2.0).collect()
    }

    /// Says whether rows of a token each are refused.
    fn refuses(&self, writes: &[Write], spans: &[Span<'_>]) -> bool {
        let team = Team::new(1).unwrap();
        let mut cache = KvCache::new(self.shape, Tier::detect());
        assert!(cache.grow());
        let (mut qkv, mut out) = (vec![0.5; self.row_width()], vec![0.0; self.row_width()]);
        let rotation = Rotation::default();
        let turn = Turn {
            heads: self.heads,
            bias: None,
            q_norm: None,
            k_norm: None,
            epsilon: 1e-5,
            rotation: &rotation,
            query_scale: 1.0,
        };
        let work = std::panic::AssertUnwindSafe(|| {
            cache.append(&team, 0, &turn, &mut qkv, writes);
            cache.attend(&team, 0, &self.view, &qkv, spans, &mut out);
        });
        std::panic::catch_unwind(work).is_err()
    }

    fn rotation(&self, positions: &[usize]) -> Rotation {
        let mut rotation = Rotation::default();
        rotation.begin(self.neighbours);
        for position in positions {
            let angles = (0..self.rotated / 2).map(|i| (*position as f32 * 0.7f32.powi(i as i32)).sin_cos());
            rotation.push(angles);
        }
        rotation
    }

    /// Computes the next rows of sequences.
    fn forward(&self, cache: &mut KvCache, team: &Team, sequences: &[Rows<'_>]) -> Vec<f32> {
        let mut positions = Vec::new();
        let mut qkv = Vec::new();
        let (mut writes, mut spans) = (Vec::new(), Vec::new());
        for (seed, blocks, range) in sequences {
            spans.push(Span { blocks, row: positions.len(), n: range.len(), position: range.start });
            let mut position = range.start;
            while position < range.end {
                let slot = position % BLOCK_TOKENS;
                let n = (BLOCK_TOKENS - slot).min(range.end - position);
                let row = positions.len() + position - range.start;
                writes.push(Write { block: blocks[position / BLOCK_TOKENS], slot, row, n });
                position += n;
            }
            qkv.extend(range.clone().flat_map(|position| self.row(seed(position), position)));
            positions.extend(range.clone());
        }
        let rotation = self.rotation(&positions);
        let turn = Turn {
            heads: self.heads,
            bias: None,
            q_norm: None,
            k_norm: None,
            epsilon: 1e-5,
            rotation: &rotation,
            query_scale: 0.3,
        };
        cache.append(team, 1, &turn, &mut qkv, &writes);
        let mut out = vec![f32::NAN; positions.len() * self.heads * self.shape.head_width];
        cache.attend(team, 1, &self.view, &qkv, &spans, &mut out);
        out
    }

    /// The same in the plainest way, in double precision.
    fn expected(&self, seed: &dyn Fn(usize) -> u64, position: usize) -> Vec<f64> {
        let (width, group) = (self.shape.head_width, self.heads / self.shape.kv_heads);
        let turned = |position: usize| {
            let mut row: Vec<f64> = self.row(seed(position), position).into_iter().map(f64::from).collect();
            for head in row[..(self.heads + self.shape.kv_heads) * width].chunks_exact_mut(width) {
                let half = self.rotated / 2;
                for i in 0..half {
                    let (a, b) = if self.neighbours { (2 * i, 2 * i + 1) } else { (i, half + i) };
                    let (sin, cos) = (position as f64 * 0.7f64.powi(i as i32)).sin_cos();
                    (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
                }
            }
            row
        };
        let queries = turned(position);
        let first = self.view.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let rows: Vec<Vec<f64>> = (first..=position).map(turned).collect();
        let mut out = Vec::new();
        for head in 0..self.heads {
            let query = &queries[head * width..(head + 1) * width];
            let key = (self.heads + head / group) * width;
            let value = key + self.shape.kv_heads * width;
            let mut weights: Vec<f64> = rows
                .iter()
                .map(|row| {
                    let score = 0.3 * query.iter().zip(&row[key..key + width]).map(|(a, b)| a * b).sum::<f64>();
                    self.view.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()).exp()
                })
                .collect();
            let sum: f64 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= sum);
            out.extend((0..width).map(|d| weights.iter().zip(&rows).map(|(w, row)| w * row[value + d]).sum::<f64>()));
        }
        out
    }

    fn check(&self, tolerance: f64) {
        let seed = |_: usize| 7;
        let expected: Vec<f64> = (0..50).flat_map(|position| self.expected(&seed, position)).collect();
        for tier in Tier::available() {
            for threads in [1, 3] {
                let team = Team::new(threads).unwrap();
                let mut cache = KvCache::new(self.shape, tier);
                (0..9).for_each(|_| assert!(cache.grow()));
                let blocks = [3, 1, 8, 0];
                let whole = self.forward(&mut cache, &team, &[(&seed, &blocks, 0..50)]);
                for (i, (got, expected)) in whole.iter().zip(&expected).enumerate() {
                    let off = (f64::from(*got) - expected).abs();
                    assert!(off < tolerance, "{tier} {:?} {i}: {got}, expected {expected}", self.shape);
                }
                // In pieces, and with blocks that hold other numbers where nothing was written.
                let mut cache = KvCache::new(self.shape, tier);
                (0..9).for_each(|_| assert!(cache.grow()));
                self.forward(&mut cache, &team, &[(&|p| p as u64, &[7, 2, 6, 5], 0..64)]);
                let blocks = [7, 2, 6, 5];
                let mut pieces = Vec::new();
                for range in [0..1, 1..2, 2..17, 17..18, 18..45, 45..46, 46..47, 47..50] {
                    pieces.extend(self.forward(&mut cache, &team, &[(&seed, &blocks, range)]));
                }
                assert_eq!(pieces, whole, "{tier}: bit for bit");
            }
        }
    }
}

#[test]
fn places_that_are_nowhere_are_refused() {
    let setting = Setting::new(KvType::F32, 2, 1, 32);
    let write = |slot, row, n| [Write { block: 0, slot, row, n }];
    let span = |row, n, position| [Span { blocks: &[0], row, n, position }];
    let good = (write(0, 0, 1), span(0, 1, 0));
    assert!(!setting.refuses(&good.0, &good.1));
    const MAX: usize = usize::MAX;
    for (slot, row, n) in [(MAX, 0, 1), (0, MAX, 1), (16, 0, 1), (0, 1, 1), (0, 0, MAX), (1, 0, MAX), (0, 1, MAX)] {
        assert!(setting.refuses(&write(slot, row, n), &good.1), "{slot} {row} {n}");
    }
    for (row, n, position) in [(MAX, 1, 0), (0, 1, MAX), (0, MAX, 0), (1, MAX, 1), (1, 1, 0), (0, 1, 16)] {
        assert!(setting.refuses(&good.0, &span(row, n, position)), "{row} {n} {position}");
    }
}

#[test]
fn outputs_are_those_of_plain_attention() {
    for (heads, kv_heads, width) in [(9, 3, 64), (4, 4, 32), (8, 1, 80), (6, 2, 20), (2, 1, 128), (3, 3, 96)] {
        for (kv_type, tolerance) in [(KvType::F32, 2e-5), (KvType::F16, 3e-3), (KvType::Q8, 5e-2)] {
            let mut setting = Setting::new(kv_type, heads, kv_heads, width);
            setting.check(tolerance);
            setting.view = View { window: Some(19), softcap: Some(1.5), ..setting.view };
            (setting.neighbours, setting.rotated) = (true, width);
            setting.check(tolerance);
        }
    }
}

#[test]
fn sequences_that_share_blocks_compute_what_each_would_alone() {
    for kv_type in [KvType::F32, KvType::F16, KvType::Q8] {
        for window in [None, Some(30), Some(5)] {
            let mut setting = Setting::new(kv_type, 6, 2, 64);
            setting.view.window = window;
            for (tier, threads) in Tier::available().into_iter().flat_map(|tier| [(tier, 1), (tier, 2)]) {
                let team = Team::new(threads).unwrap();
                // A prompt of 40 positions, with the third block copied for each of eleven continuations.
                let seed = |i: u64| move |position: usize| if position < 40 { 3 } else { 100 + i };
                let seeds: Vec<_> = (0..11).map(seed).collect();
                let mut cache = KvCache::new(setting.shape, tier);
                (0..40).for_each(|_| assert!(cache.grow()));
                setting.forward(&mut cache, &team, &[(&seeds[0], &[0, 1, 2], 0..40)]);
                let blocks: Vec<[u32; 4]> = (0..11).map(|i| [0, 1, 3 + i, 20 + i]).collect();
                blocks.iter().for_each(|blocks| cache.copy(2, blocks[2]));
                let mut together = Vec::new();
                for position in 40..52 {
                    let batch: Vec<Rows<'_>> = seeds
                        .iter()
                        .zip(&blocks)
                        .map(|(seed, blocks)| (seed as &dyn Fn(usize) -> u64, &blocks[..], position..position + 1))
                        .collect();
                    together.push(setting.forward(&mut cache, &team, &batch));
                }
                for (i, seed) in seeds.iter().enumerate() {
                    let mut alone = KvCache::new(setting.shape, tier);
                    (0..4).for_each(|_| assert!(alone.grow()));
                    let alone = setting.forward(&mut alone, &team, &[(seed, &[0, 1, 2, 3], 0..52)]);
                    let width = setting.heads * setting.shape.head_width;
                    for (step, together) in together.iter().enumerate() {
                        let (a, b) = (&alone[(40 + step) * width..][..width], &together[i * width..][..width]);
                        assert_eq!(a, b, "{tier} {kv_type:?} {window:?}: continuation {i}, step {step}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_no_number_shows_and_stays_in_its_sequence() {
    let setting = Setting::new(KvType::F16, 2, 1, 16);
    for tier in Tier::available() {
        let team = Team::new(1).unwrap();
        let mut cache = KvCache::new(setting.shape, tier);
        (0..4).for_each(|_| assert!(cache.grow()));
        let rotation = setting.rotation(&[0, 0]);
        let turn = Turn {
            heads: 2,
            bias: None,
            q_norm: None,
            k_norm: None,
            epsilon: 1e-5,
            rotation: &rotation,
            query_scale: 1.0,
        };
        for (at, bad) in [(0, f32::NAN), (33, f32::INFINITY), (50, f32::NAN), (50, 1e9)] {
            let mut qkv = vec![1.0; 2 * setting.row_width()];
            qkv[at] = bad;
            let writes = [Write { block: 0, slot: 0, row: 0, n: 1 }, Write { block: 1, slot: 0, row: 1, n: 1 }];
            cache.append(&team, 0, &turn, &mut qkv, &writes);
            let mut out = vec![0.0; 2 * 32];
            let spans = [0u32, 1].map(|block| [block]);
            let spans = [
                Span { blocks: &spans[0], row: 0, n: 1, position: 0 },
                Span { blocks: &spans[1], row: 1, n: 1, position: 0 },
            ];
            cache.attend(&team, 0, &setting.view, &qkv, &spans, &mut out);
            assert!(out[..32].iter().any(|v| !v.is_finite()), "{tier}: {bad} at {at}: {out:?}");
            assert!(out[32..].iter().all(|v| *v == 1.0), "{tier}: {bad} at {at}");
        }
    }
}

#[test]
fn tiles_cover_every_row_once() {
    let common: Vec<u32> = (0..10).collect();
    let own: Vec<Vec<u32>> = (0..30).map(|i| [&common[..5], &[100 + i]].concat()).collect();
    let mut spans = vec![Span { blocks: &common, row: 0, n: 100, position: 7 }];
    for (i, blocks) in own.iter().enumerate() {
        spans.push(Span { blocks, row: 100 + i, n: 1, position: 80 + i % 10 });
    }
    for (group, kv_heads, threads) in [(1, 1, 1), (3, 3, 2), (4, 8, 3), (40, 2, 16)] {
        let mut next = 0;
        for tile in tiles(&spans, group, kv_heads, threads) {
            for i in 0..tile.rows {
                let row = if tile.spans == 1 { spans[tile.span].row + tile.row + i } else { spans[tile.span + i].row };
                assert_eq!(row, next);
                next += 1;
            }
            assert!(tile.spans == 1 || tile.shared == 5);
        }
        assert_eq!(next, 130);
    }
}
