//! The prompt-mutation engine: operators, recipes, routes
