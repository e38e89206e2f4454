//! Fetches a model and says what happens: `cargo run -p idiolect-models --example pull -- smollm2-135m`.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::sync::atomic::{AtomicU64, Ordering};

use idiolect_models::{Event, Resolver, ResolverConfig, Spec, gguf::GgufHeader};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let spec: Spec = std::env::args().nth(1).as_deref().unwrap_or("smollm2-135m").parse()?;
    let resolver = Resolver::new(ResolverConfig::from_env())?;
    let shown = AtomicU64::new(0);
    let progress = move |event: Event<'_>| match event {
        // One line every ten megabytes.
        Event::Advanced { done, .. } if done / 10_000_000 == shown.load(Ordering::Relaxed) => {}
        Event::Advanced { done, total, .. } => {
            shown.store(done / 10_000_000, Ordering::Relaxed);
            println!("{done} of {total:?} bytes");
        }
        event => println!("{event:?}"),
    };
    let files = resolver.resolve(&spec, &progress).await?;
    for (name, path) in &files.files {
        println!("{name}: {}", path.display());
    }
    if let Some(weights) = files.weights().filter(|path| path.extension().is_some_and(|ext| ext == "gguf")) {
        println!("{:#?}", GgufHeader::read(weights)?.summary());
    }
    Ok(())
}
