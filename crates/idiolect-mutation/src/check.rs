//! What is wrong with operators: each by itself, and with one another.

use crate::{Operator, Task};

/// Seeds with which texts are tried out, so that a bad element of a pick list comes to light.
const TRIALS: u64 = 16;

/// Checks one operator beside those above it. `note` gets the key and what is wrong with it.
pub(crate) fn check_operator(operator: &Operator, others: &[Operator], note: &mut impl FnMut(&str, String)) {
    let Operator { name, slot, weight, .. } = operator;
    let well_formed = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    for (key, value) in [("name", name), ("slot", slot)] {
        if !well_formed(value) {
            note(key, format!("{key} is {value:?}, expected letters, digits, dots, dashes and underscores"));
        }
    }
    if others.iter().any(|other| other.name == *name) {
        note("name", format!("name {name:?} is taken by an operator above, expected one of its own"));
    }
    // The bound keeps sums of weights finite.
    if !(0.0..=1e9).contains(weight) {
        note("weight", format!("weight is {weight}, expected 0 to 1000000000"));
    }
    if let Err(idiolect_backend::Error::InvalidRequest(reason)) = operator.sampling.validate() {
        note("sampling", format!("sampling: {reason}"));
    }
    for (key, patterns) in [("excludes", &operator.excludes), ("requires", &operator.requires)] {
        if let Some(pattern) = patterns.iter().find(|pattern| pattern.matches(name)) {
            note(key, format!("{key} holds {:?}, which {name:?} is itself, expected others", pattern.as_str()));
        }
    }
    for (key, chosen) in [("backend", &operator.backend), ("model", &operator.model)] {
        if let Some(chosen) = chosen.as_ref().filter(|name| name.trim().is_empty() || name.contains(char::is_control)) {
            note(key, format!("{key} is {chosen:?}, expected the name of a {key}"));
        }
    }
    if operator.forbid.iter().any(|text| text.trim().is_empty()) {
        note("forbid", "forbid holds a text of white space, expected something to be seen".to_owned());
    }
    let tasks = if operator.tasks.is_empty() { &Task::ALL[..] } else { &operator.tasks };
    let trials = tasks.iter().flat_map(|&task| (0..TRIALS).map(move |seed| (task, seed)));
    if let Some(error) = trials.into_iter().find_map(|(task, seed)| operator.render(task, seed).err()) {
        note("text", format!("text: {error}"));
    }
}

/// Checks what operators require of one another: returns the place of an operator, the key, and what is wrong.
pub(crate) fn check_relations(operators: &[Operator], max_operators: usize) -> Vec<(usize, &'static str, String)> {
    let mut problems = Vec::new();
    // An operator stands for each of its requirements by the first that fits; a circle is one of those edges.
    let edges: Vec<Vec<usize>> = operators
        .iter()
        .enumerate()
        .map(|(i, operator)| {
            let mut edges = Vec::new();
            for pattern in &operator.requires {
                let is_it = |(j, other): &(usize, &Operator)| *j != i && pattern.matches(&other.name);
                let named: Vec<(usize, &Operator)> = operators.iter().enumerate().filter(is_it).collect();
                let said = format!("requires holds {:?}", pattern.as_str());
                if named.is_empty() {
                    if !pattern.matches(&operator.name) {
                        problems.push((
                            i,
                            "requires",
                            format!("{said}, which no other operator is, expected names or patterns of some"),
                        ));
                    }
                } else if !named.iter().any(|(_, other)| operator.goes_with(other)) {
                    problems.push((
                        i,
                        "requires",
                        format!("{said}, which is of its own slot or excluded, expected what goes with it"),
                    ));
                }
                edges.extend(named.iter().map(|(j, _)| *j));
            }
            edges
        })
        .collect();
    for i in 0..operators.len() {
        if let Some(circle) = circle(i, &edges) {
            // Told once, by its first operator.
            if circle.iter().min() == Some(&i) {
                let names: Vec<&str> = circle.iter().chain([&i]).map(|&j| operators[j].name.as_str()).collect();
                problems.push((
                    i,
                    "requires",
                    format!("requires goes in a circle: {}, expected an end", names.join(" > ")),
                ));
            }
        } else if operators[i].requires.len() >= max_operators {
            let n = operators[i].requires.len();
            let message = format!("requires holds {n} names, expected fewer than max_operators, {max_operators}");
            problems.push((i, "requires", message));
        }
    }
    problems
}

/// Returns the way from an operator through what is required back to it, if there is one.
fn circle(from: usize, edges: &[Vec<usize>]) -> Option<Vec<usize>> {
    let mut came_from = vec![None; edges.len()];
    let mut open = vec![from];
    while let Some(i) = open.pop() {
        for &next in &edges[i] {
            if next == from {
                let mut way = vec![i];
                while let Some(before) = came_from[way[way.len() - 1]] {
                    way.push(before);
                }
                way.reverse();
                return Some(way);
            }
            if came_from[next].is_none() {
                came_from[next] = Some(i);
                open.push(next);
            }
        }
    }
    None
}
