//! Data: reading, tokenizers, splits, deterministic order.
