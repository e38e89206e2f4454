//! Who holds which block of keys and values, and which blocks hold what prompts began with.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use idiolect_kernels::BLOCK_TOKENS;

/// What a block's tokens are, so that prompts can be compared token by token.
type Tokens = [u32; BLOCK_TOKENS];

/// Numbers of nodes.
type Node = u32;

/// Counts the holders of blocks, and keeps the blocks of prompts for as long as there is room.
///
/// Kept blocks form a tree: a node is a block's tokens after those of its parent. What was not used for the longest time is
/// given up first, from the leaves; never what a sequence holds.
#[derive(Debug)]
pub(super) struct Blocks {
    /// For each block, how many sequences hold it, plus one where it is kept.
    holders: Vec<u32>,
    /// The first on top: blocks that are taken one after the other should lie so.
    free: BinaryHeap<Reverse<u32>>,
    /// Blocks that there may be.
    most: usize,
    /// Blocks that may be kept.
    most_kept: usize,
    nodes: HashMap<Node, Kept>,
    children: HashMap<(Option<Node>, Tokens), Node>,
    next_node: Node,
    time: u64,
}

#[derive(Clone, Debug)]
struct Kept {
    block: u32,
    parent: Option<Node>,
    tokens: Tokens,
    children: u32,
    used: u64,
}

impl Blocks {
    pub(super) fn new(most: usize, most_kept: usize) -> Self {
        Self {
            holders: Vec::new(),
            free: BinaryHeap::new(),
            most,
            most_kept,
            nodes: HashMap::new(),
            children: HashMap::new(),
            next_node: 0,
            time: 0,
        }
    }

    /// Takes a block for one holder, of those that are free the first; `None` when all are held.
    pub(super) fn take(&mut self) -> Option<u32> {
        if self.free.is_empty() && self.holders.len() < self.most {
            let block = u32::try_from(self.holders.len()).ok()?;
            self.holders.push(1);
            return Some(block);
        }
        if self.free.is_empty() && !self.give_up_one() {
            return None;
        }
        let Reverse(block) = self.free.pop()?;
        self.holders[block as usize] = 1;
        Some(block)
    }

    /// Adds a holder.
    pub(super) fn hold(&mut self, block: u32) {
        self.holders[block as usize] += 1;
    }

    /// Takes a holder away.
    pub(super) fn drop_hold(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        *holders -= 1;
        if *holders == 0 {
            self.free.push(Reverse(block));
        }
    }

    /// Says whether a sequence may write to a block that it holds.
    pub(super) fn is_sole(&self, block: u32) -> bool {
        self.holders[block as usize] == 1
    }

    /// Finds the kept block of some tokens after those of `parent`, and holds it.
    pub(super) fn find(&mut self, parent: Option<Node>, tokens: &[u32]) -> Option<(Node, u32)> {
        let key = (parent, Tokens::try_from(tokens).ok()?);
        let node = *self.children.get(&key)?;
        self.time += 1;
        let kept = self.nodes.get_mut(&node)?;
        kept.used = self.time;
        let block = kept.block;
        self.hold(block);
        Some((node, block))
    }

    /// Keeps a block that holds some tokens after those of `parent`; `None` when there is no room. Returns its node, and
    /// the block that its holder has from now on: another one where such a block is kept already.
    ///
    /// So whoever builds on a node holds its block: what no sequence holds can be given up, sooner or later.
    pub(super) fn keep(&mut self, parent: Option<Node>, tokens: &[u32], block: u32) -> Option<(Node, u32)> {
        let tokens = Tokens::try_from(tokens).ok()?;
        self.time += 1;
        if let Some(node) = self.children.get(&(parent, tokens)).copied() {
            let kept = self.nodes.get_mut(&node)?;
            kept.used = self.time;
            let same = kept.block;
            self.hold(same);
            self.drop_hold(block);
            return Some((node, same));
        }
        if let Some(parent) = parent {
            // Before anything is given up, so that the parent stays.
            self.nodes.get_mut(&parent)?.children += 1;
        }
        if self.nodes.len() >= self.most_kept && !self.give_up_one() {
            if let Some(parent) = parent.and_then(|parent| self.nodes.get_mut(&parent)) {
                parent.children -= 1;
            }
            return None;
        }
        let node = self.next_node;
        self.next_node = self.next_node.wrapping_add(1);
        self.nodes.insert(node, Kept { block, parent, tokens, children: 0, used: self.time });
        self.children.insert((parent, tokens), node);
        self.hold(block);
        Some((node, block))
    }

    /// Gives up the kept block that nobody else holds, nothing kept builds on, and was not used for the longest time.
    fn give_up_one(&mut self) -> bool {
        let holders = &self.holders;
        let idle = self.nodes.iter().filter(|(_, kept)| kept.children == 0 && holders[kept.block as usize] == 1);
        let Some(node) = idle.min_by_key(|(_, kept)| kept.used).map(|(node, _)| *node) else { return false };
        let Some(kept) = self.nodes.remove(&node) else { return false };
        self.children.remove(&(kept.parent, kept.tokens));
        if let Some(parent) = kept.parent.and_then(|parent| self.nodes.get_mut(&parent)) {
            parent.children -= 1;
        }
        self.drop_hold(kept.block);
        true
    }

    /// Says whether blocks may be kept at all.
    pub(super) const fn may_keep(&self) -> bool {
        self.most_kept > 0
    }

    /// Returns how many blocks are kept.
    pub(super) fn n_kept(&self) -> usize {
        self.nodes.len()
    }

    /// Forgets all holders and all that is kept.
    pub(super) fn clear(&mut self) {
        self.holders.fill(0);
        self.free = (0..u32::try_from(self.holders.len()).unwrap_or(u32::MAX)).map(Reverse).collect();
        self.nodes.clear();
        self.children.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn take(blocks: &mut Blocks) -> u32 {
        blocks.take().unwrap()
    }

    fn tokens(n: u32) -> Tokens {
        [n; BLOCK_TOKENS]
    }

    /// Keeps a block that nothing like it is kept beside.
    fn keep(blocks: &mut Blocks, parent: Option<Node>, n: u32, block: u32) -> Option<Node> {
        let (node, same) = blocks.keep(parent, &tokens(n), block)?;
        assert_eq!(same, block);
        Some(node)
    }

    #[test]
    fn what_nobody_holds_can_always_be_taken() {
        let mut blocks = Blocks::new(3, 3);
        let (a, b) = (take(&mut blocks), take(&mut blocks));
        let first = keep(&mut blocks, None, 1, a);
        // Another prompt that begins alike comes to its end later, and goes on.
        let (node, b) = blocks.keep(None, &tokens(1), b).unwrap();
        assert_eq!((Some(node), b), (first, a));
        let c = take(&mut blocks);
        keep(&mut blocks, Some(node), 2, c).unwrap();
        blocks.drop_hold(a);
        let d = take(&mut blocks);
        assert!(d != b && d != c);
        assert_eq!(blocks.take(), None, "all three are held");
    }

    #[test]
    fn blocks_go_round() {
        let mut blocks = Blocks::new(2, 2);
        assert_eq!(blocks.take(), Some(0));
        assert_eq!(blocks.take(), Some(1));
        assert_eq!(blocks.take(), None);
        blocks.hold(1);
        assert!(!blocks.is_sole(1));
        blocks.drop_hold(1);
        assert!(blocks.is_sole(1));
        blocks.drop_hold(1);
        assert_eq!(blocks.take(), Some(1));
    }

    #[test]
    fn kept_blocks_are_found_by_all_tokens_before_them() {
        let mut blocks = Blocks::new(9, 9);
        let (a, b) = (take(&mut blocks), take(&mut blocks));
        let first = keep(&mut blocks, None, 1, a).unwrap();
        let second = keep(&mut blocks, Some(first), 2, b).unwrap();
        assert_eq!(blocks.find(None, &tokens(1)), Some((first, a)));
        assert_eq!(blocks.find(Some(first), &tokens(2)), Some((second, b)));
        assert_eq!(blocks.find(None, &tokens(2)), None);
        assert_eq!(blocks.find(Some(second), &tokens(2)), None);
        assert_eq!(blocks.find(None, &tokens(1)[1..]), None, "part of a block");
        let other = take(&mut blocks);
        assert_eq!(blocks.keep(None, &tokens(1), other), Some((first, a)), "the first one stays");
        assert_eq!(take(&mut blocks), other, "the second is free");
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_makes_room() {
        let mut blocks = Blocks::new(3, 9);
        let held: Vec<u32> = (0..3).map(|_| take(&mut blocks)).collect();
        let root = keep(&mut blocks, None, 0, held[0]).unwrap();
        keep(&mut blocks, Some(root), 1, held[1]).unwrap();
        keep(&mut blocks, Some(root), 2, held[2]).unwrap();
        assert_eq!(blocks.take(), None, "sequences hold them all");
        held.iter().for_each(|block| blocks.drop_hold(*block));
        let (_, block) = blocks.find(Some(root), &tokens(1)).unwrap();
        blocks.drop_hold(block);
        assert_eq!(take(&mut blocks), held[2]);
        assert_eq!(blocks.find(Some(root), &tokens(2)), None);
        assert_eq!(take(&mut blocks), held[1]);
        assert_eq!(take(&mut blocks), held[0], "the root comes last");
        assert_eq!(blocks.take(), None);
        assert_eq!(blocks.n_kept(), 0);
    }

    #[test]
    fn no_more_is_kept_than_allowed() {
        let mut blocks = Blocks::new(9, 2);
        let held: Vec<u32> = (0..4).map(|_| take(&mut blocks)).collect();
        let first = keep(&mut blocks, None, 1, held[0]);
        let second = keep(&mut blocks, first, 2, held[1]);
        assert!(second.is_some());
        assert_eq!(blocks.keep(second, &tokens(3), held[2]), None, "what is held stays");
        held.iter().for_each(|block| blocks.drop_hold(*block));
        let other = take(&mut blocks);
        assert!(blocks.keep(None, &tokens(4), other).is_some());
        assert_eq!(blocks.n_kept(), 2);
        let (_, block) = blocks.find(None, &tokens(1)).unwrap();
        assert_eq!(block, held[0]);
        assert_eq!(blocks.find(first, &tokens(2)), None);
    }

    proptest! {
        #[test]
        fn every_block_is_free_held_or_kept(steps in prop::collection::vec((0u8..5, 0usize..64, 0u32..3), 0..200)) {
            let mut blocks = Blocks::new(6, 4);
            // Sequences: their blocks, and the node of the last that is kept.
            let mut sequences: Vec<(Vec<u32>, Option<Node>, usize)> = Vec::new();
            for (what, which, token) in steps {
                let n = sequences.len();
                match what {
                    0 => sequences.push((Vec::new(), None, 0)),
                    1 if n > 0 => {
                        let (held, _, _) = sequences.swap_remove(which % n);
                        held.iter().for_each(|block| blocks.drop_hold(*block));
                    }
                    2 if n > 0 => {
                        let (held, node, kept) = &mut sequences[which % n];
                        if *kept == held.len() && let Some((found, block)) = blocks.find(*node, &tokens(token)) {
                            held.push(block);
                            (*node, *kept) = (Some(found), held.len());
                        }
                    }
                    3 if n > 0 => {
                        let (held, node, kept) = &mut sequences[which % n];
                        if let Some(block) = blocks.take() {
                            prop_assert!(blocks.is_sole(block));
                            held.push(block);
                            if *kept + 1 == held.len()
                                && let Some((new, same)) = blocks.keep(*node, &tokens(token), block)
                            {
                                held[*kept] = same;
                                (*node, *kept) = (Some(new), held.len());
                            }
                        }
                    }
                    4 if n > 0 => {
                        let (held, node, kept) = sequences[which % n].clone();
                        held.iter().for_each(|block| blocks.hold(*block));
                        sequences.push((held, node, kept));
                    }
                    _ => {}
                }
                prop_assert!(blocks.n_kept() <= 4);
                let distinct: HashSet<u32> = sequences.iter().flat_map(|(held, ..)| held).copied().collect();
                let more = blocks.take();
                prop_assert_eq!(more.is_some(), distinct.len() < 6, "what no sequence holds is there to be taken");
                more.into_iter().for_each(|block| blocks.drop_hold(block));
                for block in 0..blocks.holders.len() as u32 {
                    let held = sequences.iter().filter(|(held, ..)| held.contains(&block)).count();
                    let kept = blocks.nodes.values().filter(|kept| kept.block == block).count();
                    prop_assert!(kept <= 1);
                    prop_assert_eq!(blocks.holders[block as usize] as usize, held + kept);
                    prop_assert_eq!(blocks.free.iter().any(|free| free.0 == block), held + kept == 0);
                }
                prop_assert_eq!(blocks.nodes.len(), blocks.children.len());
            }
        }
    }
}
