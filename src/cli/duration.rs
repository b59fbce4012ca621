//! Durations as people write them: `500ms`, `5s`, `1m 30s`.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Reads a duration from the command line or the environment: `500ms`, `5s`, `1m 30s`; a bare number is seconds,
/// as for systemd and for the first implementation's `GUARDIAN_TIMEOUT=60`. Zero is refused.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let duration = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        Duration::from_secs(text.parse().map_err(|_| format!("{text} seconds are too many"))?)
    } else {
        parse_with_unit(text)?
    };
    if duration.is_zero() {
        return Err("must be longer than zero; write for example 500ms, 5s or 1m".to_owned());
    }
    if duration > Duration::from_secs(366 * 24 * 3600) {
        return Err("must not be longer than a year".to_owned());
    }
    Ok(duration)
}

fn parse_with_unit(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write for example 500ms, 5s or 1m 30s"))
}

/// A duration in a configuration file: a text with a unit. A bare number is refused, because a file outlives
/// the memory of what its numbers meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigDuration(pub Duration);

impl<'de> Deserialize<'de> for ConfigDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = ConfigDuration;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a duration with a unit, such as \"500ms\", \"5s\" or \"1m 30s\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ConfigDuration, E> {
                if !text.is_empty() && text.trim().bytes().all(|b| b.is_ascii_digit()) {
                    return Err(E::custom(format!(
                        "the duration {text:?} has no unit; write \"{text}s\" for seconds"
                    )));
                }
                parse_duration(text)
                    .map(ConfigDuration)
                    .map_err(|why| E::custom(format!("the duration {text:?}: {why}")))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// A duration with no more than people want to know: whole seconds from ten on.
#[must_use]
pub fn age(ms: u64) -> String {
    let short = if ms < 10_000 { ms } else { ms / 1_000 * 1_000 };
    humantime::format_duration(Duration::from_millis(short)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("60"), Ok(Duration::from_secs(60)));
        for wrong in [
            "",
            "0",
            "0s",
            "-5s",
            "5 parsecs",
            "1.5",
            "99999999999999999999",
            "2years",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_file_must_say_the_unit() {
        #[derive(Deserialize, Debug)]
        struct File {
            after: ConfigDuration,
        }
        let read = |text: &str| {
            toml::from_str::<File>(text)
                .map(|f| f.after.0)
                .map_err(|e| e.to_string())
        };
        assert_eq!(read("after = '5s'"), Ok(Duration::from_secs(5)));
        assert!(read("after = 5").unwrap_err().contains("with a unit"));
        assert!(
            read("after = '5'")
                .unwrap_err()
                .contains("write \"5s\" for seconds")
        );
        assert!(read("after = '0s'").unwrap_err().contains("longer than zero"));
    }
}
