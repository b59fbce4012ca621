//! JSON as the documentation prints it: a space after each colon and each comma.

use std::io;

use serde::Serialize;

/// Writes JSON with a space after each colon and comma.
pub(super) fn text<T: Serialize>(value: &T) -> String {
    struct Spaced;
    impl serde_json::ser::Formatter for Spaced {
        fn begin_array_value<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { w.write_all(b", ") }
        }
        fn begin_object_key<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { w.write_all(b", ") }
        }
        fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
            w.write_all(b": ")
        }
    }
    let mut out = Vec::with_capacity(128);
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Spaced);
    // Writing to memory cannot fail, and our types have no map whose keys are not text.
    if value.serialize(&mut serializer).is_err() {
        return r#"{"type": "error", "message": "internal: this answer has no text"}"#.to_owned();
    }
    String::from_utf8(out).unwrap_or_default()
}
