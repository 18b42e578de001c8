//! What the benches share: a server's process, the load put on it, the machine both are on, and how
//! numbers are made and printed.

#![allow(dead_code, reason = "each bench is a program of its own, and uses its part")]

pub(crate) mod files;
pub(crate) mod hub;
pub(crate) mod kept;
pub(crate) mod load;
pub(crate) mod machine;
pub(crate) mod numbers;
pub(crate) mod process;
pub(crate) mod serving;
