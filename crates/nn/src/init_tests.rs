//! Tests of the numbers behind initialisers.
