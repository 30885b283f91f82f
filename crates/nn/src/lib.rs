//! The Starlark front end, layers and parameters.
