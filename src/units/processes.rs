//! stub
#![allow(missing_docs)]
use super::*;
#[derive(Clone, Debug, serde::Deserialize)]
pub struct RawProcess {}
#[derive(Clone, Debug)]
pub struct ProcessSpec {}
pub fn validate(_: Vec<RawProcess>, _: std::time::Duration) -> Result<Vec<ProcessSpec>, Vec<String>> {
    Ok(vec![])
}
pub struct Processes(String);
impl Processes {
    pub fn start(target: String, _: Vec<ProcessSpec>) -> Result<Self, std::io::Error> {
        Ok(Self(target))
    }
}
impl Units for Processes {
    fn target(&self) -> &str {
        &self.0
    }
    fn drain(&self, _: Instant) -> BoxFuture<'_, Result<Settled, UnitsError>> {
        Box::pin(async { Ok(Settled::drained("t", vec![], &[], std::time::Duration::ZERO)) })
    }
    fn undrain(&self, _: Instant) -> BoxFuture<'_, Result<Settled, UnitsError>> {
        Box::pin(async {
            Ok(Settled::undrained(
                "t",
                vec![],
                &[],
                &[],
                &[],
                std::time::Duration::ZERO,
            ))
        })
    }
    fn survey(&self) -> BoxFuture<'_, Result<Survey, UnitsError>> {
        Box::pin(async {
            Ok(Survey {
                target_state: "active".into(),
                units: vec![],
            })
        })
    }
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
