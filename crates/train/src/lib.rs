//! Training: the experiment, the loop, checkpoints, goals.
