//! Under construction.

pub mod netlab;
