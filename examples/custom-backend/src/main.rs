//! A backend crate of your own
fn main() {}
