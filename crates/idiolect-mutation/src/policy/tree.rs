//! What is known of each arm in each context.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most arms that are kept in one context.
const MAX_ARMS: usize = 1024;

/// Something known of an arm.
pub(crate) trait Known: Clone {
    /// How much is known; what has least is given up first.
    fn amount(&self) -> f64;

    /// Says what is wrong with it, if anything.
    fn check(&self) -> Result<(), String>;
}

/// The contexts, by path, the root first. It always has a root.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound(deserialize = "A: Deserialize<'de>"))]
pub(crate) struct Tree<A> {
    nodes: Vec<Node<A>>,
}

/// One context.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound(deserialize = "A: Deserialize<'de>"))]
pub(crate) struct Node<A> {
    path: Vec<String>,
    /// The number of the last update that was about it.
    used: u64,
    /// The arms by operator; that of the empty name is the no-op.
    pub(crate) arms: BTreeMap<String, A>,
}

impl<A> Default for Tree<A> {
    fn default() -> Self {
        Self { nodes: vec![Node { path: Vec::new(), used: 0, arms: BTreeMap::new() }] }
    }
}

impl<A: Known> Tree<A> {
    fn find(&self, path: &[String]) -> Result<usize, usize> {
        self.nodes.binary_search_by(|node| node.path.as_slice().cmp(path))
    }

    /// Returns the nodes on a path that there are, the root first.
    pub(crate) fn along<'a>(&'a self, path: &'a [String]) -> impl Iterator<Item = &'a Node<A>> {
        (0..=path.len()).filter_map(|n| self.find(&path[..n]).ok()).map(|i| &self.nodes[i])
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Changes the nodes on a path, the root first. One that is new has the arms that `begin` makes of its parent's.
    pub(crate) fn change(
        &mut self,
        path: &[String],
        used: u64,
        begin: impl Fn(&BTreeMap<String, A>) -> BTreeMap<String, A>,
        mut change: impl FnMut(&mut BTreeMap<String, A>),
    ) {
        // Before any of them changes, so that the new ones do not learn twice.
        for n in 1..=path.len() {
            if let Err(place) = self.find(&path[..n]) {
                let parent = self.find(&path[..n - 1]).map(|i| begin(&self.nodes[i].arms));
                let node = Node { path: path[..n].to_vec(), used, arms: parent.unwrap_or_default() };
                self.nodes.insert(place, node);
            }
        }
        for n in 0..=path.len() {
            let Ok(i) = self.find(&path[..n]) else { continue };
            let node = &mut self.nodes[i];
            node.used = used;
            change(&mut node.arms);
            while node.arms.len() > MAX_ARMS {
                let least = node.arms.iter().min_by(|a, b| a.1.amount().total_cmp(&b.1.amount()));
                let Some(name) = least.map(|(name, _)| name.clone()) else { break };
                node.arms.remove(&name);
            }
        }
    }

    /// Leaves out the contexts that were not used for longest. Their parents had all that was learnt in them as it came, so
    /// that is how they are merged into them.
    pub(crate) fn keep(&mut self, max_contexts: usize) {
        while self.nodes.len() > max_contexts.max(1) {
            // A parent is used whenever a child is; the deeper of two goes first.
            let oldest = |(_, node): &(usize, &Node<A>)| (node.used, Reverse(node.path.len()));
            let nodes = self.nodes.iter().enumerate().filter(|(_, node)| !node.path.is_empty());
            let Some((i, _)) = nodes.min_by_key(oldest) else { return };
            self.nodes.remove(i);
        }
    }

    /// Says what is wrong, if anything.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !self.nodes.first().is_some_and(|root| root.path.is_empty()) {
            return Err("the context of all requests is missing".to_owned());
        }
        if !self.nodes.is_sorted_by(|a, b| a.path < b.path) {
            return Err("its contexts are out of order".to_owned());
        }
        for node in &self.nodes {
            for (name, arm) in &node.arms {
                let name = if name.is_empty() { "no-op" } else { name };
                arm.check().map_err(|problem| format!("{name} in context {:?}: {problem}", node.path.join("/")))?;
            }
        }
        Ok(())
    }
}
