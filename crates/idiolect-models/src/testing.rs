//! The built-in models for tests of other crates.

use crate::{ModelError, ModelFiles, NoProgress, Resolver, ResolverConfig, Spec};

/// Returns a model, fetched once per machine through the user's own settings (see [`ResolverConfig::from_env`]).
///
/// Blocks; works inside and outside an async runtime.
///
/// # Errors
///
/// As [`Resolver::resolve`]; a bad spec too.
pub fn model(spec: &str) -> Result<ModelFiles, ModelError> {
    let spec: Spec = spec.parse()?;
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime needs no more than the test does");
        let resolver = Resolver::new(ResolverConfig::from_env())?;
        runtime.block_on(resolver.resolve(&spec, &NoProgress))
    };
    match std::thread::spawn(work).join() {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
