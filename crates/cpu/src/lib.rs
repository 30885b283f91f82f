//! Runs planned graphs on the CPU.
