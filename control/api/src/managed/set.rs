//! Sets of fields: who owns what, as a tree of paths.
//!
//! Source: structured-merge-diff, `fieldpath/set.go`.

use std::cmp::Ordering;

use super::path::PathElement;

/// A set of paths. That a path is in it says nothing about the paths above or below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Sorted by element. No node is without a member at or below it.
    nodes: Vec<Node>,
}

/// One step of the paths of a set, and the rest of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub element: PathElement,
    /// Whether the path that ends here is in the set.
    pub member: bool,
    pub below: FieldSet,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl FieldSet {
    /// Adds a path. The empty path is the object itself, which nobody owns.
    pub fn insert(&mut self, path: &[PathElement]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let node = self.at(first.clone());
        if rest.is_empty() {
            node.member = true;
        } else {
            node.below.insert(rest);
        }
    }

    /// The node of an element, made where there is none. The caller must leave a member at or below it.
    fn at(&mut self, element: PathElement) -> &mut Node {
        let index = match self.find(&element) {
            Ok(index) => index,
            Err(index) => {
                let node = Node {
                    element,
                    member: false,
                    below: Self::default(),
                };
                self.nodes.insert(index, node);
                index
            }
        };
        &mut self.nodes[index]
    }

    /// Adds what lies at and below one element; nothing where that is nothing.
    pub(super) fn add(&mut self, element: PathElement, member: bool, below: Self) {
        if !member && below.is_empty() {
            return;
        }
        let node = self.at(element);
        node.member |= member;
        if node.below.is_empty() {
            node.below = below;
        } else {
            node.below = node.below.union(&below);
        }
    }

    /// Where the element is, or where it would be. Elements mostly come in their order, so the end is looked at first.
    fn find(&self, element: &PathElement) -> Result<usize, usize> {
        match self.nodes.last() {
            None => Err(0),
            Some(last) if last.element < *element => Err(self.nodes.len()),
            Some(_) => self
                .nodes
                .binary_search_by(|node| node.element.cmp(element)),
        }
    }

    /// The node of an element.
    pub(super) fn node(&self, element: &PathElement) -> Option<&Node> {
        self.find(element).ok().map(|index| &self.nodes[index])
    }

    /// The first steps of all paths.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Changes nodes in place; `change` must leave each of them a member at or below it.
    pub(super) fn for_each_node(&mut self, change: impl FnMut(&mut Node)) {
        self.nodes.iter_mut().for_each(change);
    }

    /// Whether it has no paths.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether it has this very path.
    pub fn contains(&self, path: &[PathElement]) -> bool {
        let Some((first, rest)) = path.split_first() else {
            return false;
        };
        self.node(first).is_some_and(|node| {
            if rest.is_empty() {
                node.member
            } else {
                node.below.contains(rest)
            }
        })
    }

    /// The paths of either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        join(self, other, &|left, right| match (left, right) {
            (Some(left), Some(right)) => Some(Node {
                element: left.element.clone(),
                member: left.member || right.member,
                below: left.below.union(&right.below),
            }),
            (one, None) | (None, one) => one.cloned(),
        })
    }

    /// The paths of both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        join(self, other, &|left, right| {
            let (left, right) = left.zip(right)?;
            Some(Node {
                element: left.element.clone(),
                member: left.member && right.member,
                below: left.below.intersection(&right.below),
            })
        })
    }

    /// The paths that the other does not have. A path goes alone, without what is below it.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        join(self, other, &|left, right| match (left, right) {
            (Some(left), Some(right)) => Some(Node {
                element: left.element.clone(),
                member: left.member && !right.member,
                below: left.below.difference(&right.below),
            }),
            (left, _) => left.cloned(),
        })
    }

    /// The paths that are neither in the other nor below a path of it.
    #[must_use]
    pub fn recursive_difference(&self, other: &Self) -> Self {
        join(self, other, &|left, right| match (left, right) {
            (Some(_), Some(right)) if right.member => None,
            (Some(left), Some(right)) => Some(Node {
                element: left.element.clone(),
                member: left.member,
                below: left.below.recursive_difference(&right.below),
            }),
            (left, _) => left.cloned(),
        })
    }

    /// All paths in Kubernetes' order: what ends at a level, then what goes on below it.
    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        let mut paths = Vec::new();
        self.collect(&mut Vec::new(), &mut paths);
        paths
    }

    fn collect(&self, prefix: &mut Vec<PathElement>, paths: &mut Vec<Vec<PathElement>>) {
        for node in self.nodes.iter().filter(|node| node.member) {
            prefix.push(node.element.clone());
            paths.push(prefix.clone());
            prefix.pop();
        }
        for node in &self.nodes {
            prefix.push(node.element.clone());
            node.below.collect(prefix, paths);
            prefix.pop();
        }
    }
}

/// A path as messages print it: `.spec.containers[name="web"].image`.
pub fn print_path(path: &[PathElement]) -> String {
    path.iter().map(ToString::to_string).collect()
}

/// What becomes of an element that is in one set or in both.
type Pick = dyn Fn(Option<&Node>, Option<&Node>) -> Option<Node>;

/// Lays two sets beside each other, and keeps what `pick` makes of the nodes of each element.
fn join(left: &FieldSet, right: &FieldSet, pick: &Pick) -> FieldSet {
    let mut nodes = Vec::with_capacity(left.nodes.len());
    let (mut lefts, mut rights) = (left.nodes.iter().peekable(), right.nodes.iter().peekable());
    loop {
        let order = match (lefts.peek(), rights.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => left.element.cmp(&right.element),
        };
        let left = if order.is_le() { lefts.next() } else { None };
        let right = if order.is_ge() { rights.next() } else { None };
        nodes.extend(pick(left, right).filter(|node| !node.is_empty()));
    }
    FieldSet { nodes }
}
