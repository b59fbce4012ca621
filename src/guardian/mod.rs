//! x
pub mod wait;
