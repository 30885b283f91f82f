//! Tenon as a library.
