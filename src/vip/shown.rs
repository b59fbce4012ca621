//! What a node shows of itself and of what it knows: for `io-vip status` and `list`.

use std::net::IpAddr;

use serde::Serialize;

/// All of it. Times are milliseconds from the moment that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Shown {
    /// This node's name.
    pub node: String,
    /// How it stands.
    pub state: State,
    /// Why it takes no part, when it does not.
    pub because: Option<String>,
    /// Its lease, as `etcdctl lease list` shows it.
    pub lease: Option<String>,
    /// How long it may hold what it holds without another sign of life.
    pub until_ms: Option<u64>,
    /// What it holds, or is about to drop.
    pub held: Vec<Held>,
    /// The pool, as the store has it.
    pub pool: Vec<Pooled>,
    /// The nodes, as the store has them.
    pub nodes: Vec<Node>,
    /// Nodes that are to hold nothing, and why.
    pub paused: std::collections::BTreeMap<String, String>,
    /// Up to which revision the store is known. None: not at all.
    pub revision: Option<u64>,
    /// Whether what the store tells comes as it happens.
    pub watching: bool,
    /// The last thing that went wrong with the store, and how long ago; it may be over.
    pub last_fault: Option<Fault>,
}

/// How a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It takes part.
    TakesPart,
    /// It would, and the store does not have it yet.
    Joining,
    /// Another instance has its name.
    NameInUse,
    /// It takes no part.
    TakesNoPart,
    /// It gives up everything, to end.
    Stopping,
    /// It has ended.
    Finished,
}

/// An address that is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Held {
    /// Which.
    pub address: IpAddr,
    /// Its fencing token.
    pub token: Option<u64>,
    /// For how long. None: since before this process, or not any more.
    pub since_ms: Option<u64>,
    /// Whether it is on the interface, as far as is known; or on its way there.
    pub up: bool,
    /// Whether it is being dropped.
    pub dropping: bool,
}

/// An address of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Pooled {
    /// Which.
    pub address: IpAddr,
    /// Who has marked it.
    pub owner: Option<String>,
    /// The owner's fencing token.
    pub token: Option<u64>,
    /// Whether the owner has shown a sign of life in time.
    pub owner_alive: bool,
    /// Where an operator wants it.
    pub preferred: Option<String>,
    /// Whose it should be, as this node sees it.
    pub share_of: Option<String>,
    /// How long it will be before anybody may take it, when nobody shows a sign of life for it.
    pub free_in_ms: Option<u64>,
    /// Where it cannot be held, and why.
    pub cannot: std::collections::BTreeMap<String, String>,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Node {
    /// Its name.
    pub node: String,
    /// Its lease, as `etcdctl lease list` shows it.
    pub lease: Option<String>,
    /// Whether it has shown a sign of life in time.
    pub alive: bool,
    /// How long ago that was.
    pub seen_ms: Option<u64>,
    /// How long it asks to be waited for.
    pub ttl_ms: Option<u64>,
}

/// Something that went wrong with the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Fault {
    /// What.
    pub error: String,
    /// How long ago.
    pub ago_ms: u64,
}
