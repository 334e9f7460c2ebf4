//! What tests need and the product does not: a virtual network, network namespaces, parsers under random bytes.

pub mod fuzz;
pub mod netlab;
