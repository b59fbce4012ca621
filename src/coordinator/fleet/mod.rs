//! What is known of a fleet while its guardians tell of themselves: for whoever looks for longer than one command.
//!
//! [`view`] is what is known, and decides; [`link`] keeps a connection to each guardian.

pub mod link;
pub mod view;

pub use link::{Followed, follow};
pub use view::{Entry, Event, Fleet, Host, Level, LinkState, State};
