//! nftables as messages: tables, sets, chains, rules, and a batch of them. Pure, no socket, and of no particular table.

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage,
};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, HookNumber, Immediate,
    ListAttribute, Lookup, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute,
    RuleMessage, SetAttribute, SetElementAttribute, SetElementList, SetElementMessage, SetFlags, SetMessage,
    TableAttribute, TableFlags, TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

// What the crate has no names for (linux/netfilter/nf_tables.h).
pub(super) const NF_DROP: u32 = 0;
pub(super) const NF_ACCEPT: u32 = 1;
pub(super) const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
pub(super) const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_LOOKUP_F_INV: u32 = 1;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;

/// One message to nftables.
pub(super) type Message = NetlinkMessage<NetfilterMessage>;
/// An element of a set.
pub(super) type Element = ListAttribute<SetElementAttribute>;

/// What a set holds: the number that `nft` shows the type by (its own datatype.h), and bytes.
#[derive(Clone, Copy)]
pub(super) struct Kind(u32, u32);

pub(super) const IPV4_ADDR: Kind = Kind(7, 4);
pub(super) const IPV6_ADDR: Kind = Kind(8, 16);
pub(super) const INET_SERVICE: Kind = Kind(13, 2);
pub(super) const MARK: Kind = Kind(19, 4);

/// A message as bytes, with `sequence` as its number.
fn emit(mut packet: Message, sequence: u32, out: &mut Vec<u8>) {
    packet.header.sequence_number = sequence;
    packet.finalize();
    let start = out.len();
    out.resize(start + packet.buffer_len(), 0);
    if let Some(room) = out.get_mut(start..) {
        packet.emit(room);
    }
}

/// One message as bytes.
pub(super) fn single(packet: Message, sequence: u32) -> Vec<u8> {
    let mut out = Vec::new();
    emit(packet, sequence, &mut out);
    out
}

/// All of `packets` as one transaction, all or nothing; the last one is acknowledged, and each that fails.
pub(super) fn batch(packets: Vec<Message>, mut number: impl FnMut() -> u32) -> Vec<u8> {
    /// NFNL_SUBSYS_NFTABLES, as the crate's header has it.
    const SUBSYSTEM: u16 = 10;
    let control = |message| {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM);
        let mut packet = NetlinkMessage::from(NetfilterMessage::new(header, message));
        packet.header.flags = NLM_F_REQUEST;
        packet
    };
    let mut out = Vec::with_capacity(4 << 10);
    emit(control(ControlMessage::BatchBegin), number(), &mut out);
    let last = packets.len().saturating_sub(1);
    for (at, mut packet) in packets.into_iter().enumerate() {
        if at == last {
            packet.header.flags |= NLM_F_ACK;
        }
        emit(packet, number(), &mut out);
    }
    emit(control(ControlMessage::BatchEnd), number(), &mut out);
    out
}

/// A table, as each message about it names it.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) family: NetfilterProtoFamily,
    pub(super) table: &'a str,
}

impl Place<'_> {
    fn message(self, message: NfTablesMessage, flags: u16) -> Message {
        let header = NetfilterHeader::new(self.family, 0, 0);
        let mut packet = NetlinkMessage::from(NetfilterMessage::new(header, message));
        packet.header.flags = NLM_F_REQUEST | flags;
        packet
    }

    fn name(self) -> TableAttribute {
        TableAttribute::Name(self.table.to_owned())
    }

    /// Whether there is such a table is in the answer.
    pub(super) fn get(self) -> Message {
        let attributes = vec![self.name()];
        self.message(NfTablesMessage::GetTable(TableMessage { attributes }), 0)
    }

    /// Makes the table, with these flags where they are given. One that is there stays.
    pub(super) fn create(self, flags: Option<TableFlags>) -> Message {
        let mut attributes = vec![self.name()];
        attributes.extend(flags.map(TableAttribute::Flags));
        self.message(
            NfTablesMessage::NewTable(TableMessage { attributes }),
            NLM_F_CREATE,
        )
    }

    /// Takes the table away, with all that is in it.
    pub(super) fn delete(self) -> Message {
        let attributes = vec![self.name()];
        self.message(NfTablesMessage::DeleteTable(TableMessage { attributes }), 0)
    }

    /// A set. Its `id` is its own within the transaction.
    pub(super) fn set(self, id: u32, name: &str, kind: Kind, flags: SetFlags) -> Message {
        let attributes = vec![
            SetAttribute::Table(self.table.to_owned()),
            SetAttribute::Name(name.to_owned()),
            SetAttribute::Flags(flags),
            SetAttribute::KeyType(kind.0),
            SetAttribute::KeyLen(kind.1),
            SetAttribute::Id(id),
        ];
        self.message(NfTablesMessage::NewSet(SetMessage { attributes }), NLM_F_CREATE)
    }

    fn elements(self, set: &str, members: Option<Vec<Element>>) -> SetElementMessage {
        let mut attributes = vec![
            SetElementList::Table(self.table.to_owned()),
            SetElementList::Set(set.to_owned()),
        ];
        attributes.extend(members.map(SetElementList::Elements));
        SetElementMessage { attributes }
    }

    /// The elements of a set are in the answer.
    pub(super) fn get_elements(self, set: &str) -> Message {
        self.message(
            NfTablesMessage::GetSetElement(self.elements(set, None)),
            NLM_F_DUMP,
        )
    }

    /// Puts elements into a set. Those that are there stay.
    pub(super) fn put(self, set: &str, members: Vec<Element>) -> Message {
        let message = self.elements(set, Some(members));
        self.message(NfTablesMessage::NewSetElement(message), NLM_F_CREATE)
    }

    /// Takes elements out of a set. One that is not there, or whose time is over, is an error (ENOENT).
    pub(super) fn take(self, set: &str, members: Vec<Element>) -> Message {
        let message = self.elements(set, Some(members));
        self.message(NfTablesMessage::DeleteSetElement(message), 0)
    }

    /// A chain at a hook (of one device, in the family `netdev`) that accepts what its rules do not.
    pub(super) fn chain(
        self,
        name: &str,
        hook: impl Into<HookNumber>,
        priority: i32,
        device: Option<&str>,
    ) -> Message {
        let mut place = vec![
            Hook::Number(hook.into()),
            Hook::Priority(priority.cast_unsigned()),
        ];
        place.extend(device.map(|device| Hook::NetDeviceName(device.to_owned())));
        let attributes = vec![
            ChainAttribute::Table(self.table.to_owned()),
            ChainAttribute::Name(name.to_owned()),
            ChainAttribute::Hook(place),
            ChainAttribute::Policy(NF_ACCEPT),
            ChainAttribute::Type("filter".to_owned()),
        ];
        self.message(
            NfTablesMessage::NewChain(ChainMessage { attributes }),
            NLM_F_CREATE,
        )
    }

    /// A rule after those that the chain has.
    pub(super) fn rule(self, chain: &str, expressions: Vec<Expressions>) -> Message {
        let attributes = vec![
            RuleAttribute::Table(self.table.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(expressions.into_iter().map(Into::into).collect()),
        ];
        self.message(
            NfTablesMessage::NewRule(RuleMessage { attributes }),
            NLM_F_CREATE | NLM_F_APPEND,
        )
    }
}

/// An element, with these attributes after its key.
pub(super) fn element(key: Vec<u8>, more: impl IntoIterator<Item = SetElementAttribute>) -> Element {
    let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(key))];
    attributes.extend(more);
    ListAttribute::Element(attributes)
}

pub(super) fn meta(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)])
}

pub(super) fn payload(base: u32, offset: u32, length: u32) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

pub(super) fn compare(value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(Operator::Equal),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

/// Goes on when what was loaded is in `set`.
pub(super) fn lookup(set: &str) -> Expressions {
    Expressions::Lookup(vec![
        Lookup::Set(set.to_owned()),
        Lookup::SourceRegister(Register::Reg1),
    ])
}

/// Goes on when what was loaded is not in `set`.
pub(super) fn lookup_not(set: &str) -> Expressions {
    Expressions::Lookup(vec![
        Lookup::Set(set.to_owned()),
        Lookup::SourceRegister(Register::Reg1),
        Lookup::Flags(NFT_LOOKUP_F_INV),
    ])
}

pub(super) fn verdict(code: u32) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(
            Verdict::Other(code),
        )])),
    ])
}

pub(super) fn counter() -> Expressions {
    Expressions::Other {
        expression_type: "counter".to_owned(),
        attributes: Vec::new(),
    }
}
