//! x
#![allow(missing_docs)]
#[derive(clap::Args)]
pub struct DemoArgs {}
pub fn run(_: DemoArgs) -> Result<u8, crate::cli::Failure> {
    Ok(0)
}
pub mod app {
    #[derive(clap::Args)]
    pub struct AppArgs {}
    pub fn run(_: AppArgs) -> Result<u8, crate::cli::Failure> {
        Ok(0)
    }
}
