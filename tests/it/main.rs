//! The real binaries, driven from outside. One test binary, so that it is linked once.

// `cfg(test)` is always true here; it tells clippy that helpers beside the test functions may unwrap, too.
#[cfg(test)]
mod coordinator;
