//! The real binaries, driven from outside. One test binary, so that it is linked once.

mod coordinator;
