//! Which queries attend together.

use super::{BLOCK_TOKENS, Span};

/// Queries that attend together, where there are as many.
const TILE_QUERIES: usize = 24;

/// Queries that attend together: some rows of one span, or spans of one row each that begin with the same blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) span: usize,
    pub(super) spans: usize,
    /// The first row inside the span, where it is one.
    pub(super) row: usize,
    pub(super) rows: usize,
    /// Blocks that all spans share.
    pub(super) shared: usize,
}

/// Divides rows into tiles.
pub(super) fn tiles(spans: &[Span<'_>], group: usize, kv_heads: usize, threads: usize) -> Vec<Tile> {
    let most = (TILE_QUERIES / group).max(1);
    let mut tiles = Vec::new();
    let mut at = 0;
    while at < spans.len() {
        let span = &spans[at];
        if span.n != 1 {
            for row in (0..span.n).step_by(most) {
                tiles.push(Tile { span: at, spans: 1, row, rows: most.min(span.n - row), shared: 0 });
            }
            at += 1;
            continue;
        }
        let alike =
            |other: &Span<'_>| other.n == 1 && other.blocks[0] == span.blocks[0] && other.position >= BLOCK_TOKENS;
        let family =
            1 + spans[at + 1..].iter().take_while(|other| span.position >= BLOCK_TOKENS && alike(other)).count();
        // As few tiles as keep all threads busy.
        let fewest = family.div_ceil(most);
        let even = (fewest..=family).find(|n| (n * kv_heads).is_multiple_of(threads) || n * kv_heads >= 3 * threads);
        let each = family.div_ceil(even.unwrap_or(family));
        for first in (at..at + family).step_by(each) {
            let members = &spans[first..(first + each).min(at + family)];
            let limit = members.iter().map(|member| member.position / BLOCK_TOKENS).min().unwrap_or(0);
            let is_shared = |block: &usize| members.iter().all(|m| m.blocks[*block] == members[0].blocks[*block]);
            let shared = if members.len() > 1 { (0..limit).take_while(is_shared).count() } else { 0 };
            tiles.push(Tile { span: first, spans: members.len(), row: 0, rows: members.len(), shared });
        }
        at += family;
    }
    tiles
}
