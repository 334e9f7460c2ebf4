//! Rooms of the *room* dialect: who is in, who is told.
//!
//! Every stream is a synthetic peer of every room: the default one answers to [`BOT`], each also to its own name. Messages
//! between browsers are handed on verbatim.

use std::collections::HashMap;

use crate::message::ServerMessage;

/// Peer id of the default stream.
pub const BOT: &str = "ffmpeg-bot";

/// Most members of one room, synthetic peers not counted.
pub const MAX_MEMBERS: usize = 10;

/// Most rooms at a time.
pub const MAX_ROOMS: usize = 1000;

/// A connection's number, given by the caller.
pub type PeerId = u64;

/// Why a room operation was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoomError {
    /// Ten are in.
    #[error("room {0:?} is full: {MAX_MEMBERS} members")]
    Full(String),
    /// The name is taken in this room.
    #[error("somebody is {0:?} in this room already")]
    NameTaken(String),
    /// No such member.
    #[error("nobody is {0:?} in this room")]
    NoSuchPeer(String),
    /// Not in a room.
    #[error("join a room first")]
    NotJoined,
    /// `from` is somebody else.
    #[error("messages from {0:?} must say so in \"from\"")]
    WrongSender(String),
    /// Too many rooms.
    #[error("no more than {MAX_ROOMS} rooms at a time")]
    TooManyRooms,
}

impl RoomError {
    /// Machine-readable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Full(_) => "room_full",
            Self::NameTaken(_) => "name_taken",
            Self::NoSuchPeer(_) => "peer_not_found",
            Self::NotJoined => "not_joined",
            Self::WrongSender(_) => "wrong_sender",
            Self::TooManyRooms => "too_many_rooms",
        }
    }
}

/// To whom a message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Another connection.
    Connection(PeerId),
    /// A stream, by its peer id in rooms.
    Stream(String),
}

/// All rooms.
#[derive(Debug, Default)]
pub struct Rooms {
    rooms: HashMap<String, HashMap<String, PeerId>>,
    members: HashMap<PeerId, (String, String)>,
}

impl Rooms {
    /// No rooms.
    pub fn new() -> Self {
        Self::default()
    }

    /// `id` enters `room` as `name` (leaving the room that it was in). Returns what to send to whom. `streams` are the synthetic
    /// peers' ids.
    pub fn join(
        &mut self,
        id: PeerId,
        room: &str,
        name: &str,
        streams: &[String],
    ) -> Result<Vec<(PeerId, ServerMessage)>, RoomError> {
        if name == BOT || streams.iter().any(|s| s == name) {
            return Err(RoomError::NameTaken(name.into()));
        }
        if let Some(members) = self.rooms.get(room) {
            if members.get(name).is_some_and(|other| *other != id) {
                return Err(RoomError::NameTaken(name.into()));
            }
            if members.len() >= MAX_MEMBERS && !members.values().any(|m| *m == id) {
                return Err(RoomError::Full(room.into()));
            }
        } else if self.rooms.len() >= MAX_ROOMS {
            return Err(RoomError::TooManyRooms);
        }
        let mut out = self.leave(id);
        let present = |from: &str| ServerMessage::Join { room: room.into(), from: from.into() };
        let members = self.rooms.entry(room.to_owned()).or_default();
        for peer in std::iter::once(BOT).chain(streams.iter().map(String::as_str)) {
            out.push((id, present(peer)));
        }
        for (member, member_id) in members.iter() {
            out.push((id, present(member)));
            out.push((*member_id, present(name)));
        }
        members.insert(name.to_owned(), id);
        self.members.insert(id, (room.to_owned(), name.to_owned()));
        Ok(out)
    }

    /// `id` leaves, or is gone. Returns what to send to whom.
    pub fn leave(&mut self, id: PeerId) -> Vec<(PeerId, ServerMessage)> {
        let Some((room, name)) = self.members.remove(&id) else { return Vec::new() };
        let Some(members) = self.rooms.get_mut(&room) else { return Vec::new() };
        members.remove(&name);
        let out =
            members.values().map(|m| (*m, ServerMessage::Leave { room: room.clone(), from: name.clone() })).collect();
        if members.is_empty() {
            self.rooms.remove(&room);
        }
        out
    }

    /// Where a message of `id`, said to be from `from`, to `to` goes.
    pub fn route(&self, id: PeerId, from: &str, to: &str, streams: &[String]) -> Result<Destination, RoomError> {
        let (room, name) = self.members.get(&id).ok_or(RoomError::NotJoined)?;
        if name != from {
            return Err(RoomError::WrongSender(name.clone()));
        }
        if to == BOT || streams.iter().any(|s| s == to) {
            return Ok(Destination::Stream(to.into()));
        }
        let peer = self.rooms.get(room).and_then(|members| members.get(to));
        peer.map(|p| Destination::Connection(*p)).ok_or_else(|| RoomError::NoSuchPeer(to.into()))
    }

    /// The room that `id` is in.
    pub fn room_of(&self, id: PeerId) -> Option<&str> {
        self.members.get(&id).map(|(room, _)| room.as_str())
    }

    /// Rooms with somebody in them.
    pub fn len(&self) -> usize {
        self.rooms.len()
    }

    /// No room has anybody.
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams() -> Vec<String> {
        vec!["cube".into()]
    }

    fn joins(messages: &[(PeerId, ServerMessage)]) -> Vec<(PeerId, String)> {
        let mut all: Vec<_> = messages
            .iter()
            .filter_map(
                |(id, m)| if let ServerMessage::Join { from, .. } = m { Some((*id, from.clone())) } else { None },
            )
            .collect();
        all.sort();
        all
    }

    #[test]
    fn newcomers_learn_who_is_there_and_the_others_learn_of_them() {
        let mut rooms = Rooms::new();
        let first = rooms.join(1, "R", "ann", &streams()).expect("joins");
        assert_eq!(joins(&first), [(1, "cube".into()), (1, BOT.into())]);
        let second = rooms.join(2, "R", "bob", &streams()).expect("joins");
        assert_eq!(joins(&second), [(1, "bob".into()), (2, "ann".into()), (2, "cube".into()), (2, BOT.into())]);
        assert_eq!(rooms.route(1, "ann", "bob", &streams()), Ok(Destination::Connection(2)));
        assert_eq!(rooms.route(1, "ann", BOT, &streams()), Ok(Destination::Stream(BOT.into())));
        assert_eq!(rooms.route(1, "bob", "ann", &streams()), Err(RoomError::WrongSender("ann".into())));
        assert_eq!(rooms.route(1, "ann", "carl", &streams()), Err(RoomError::NoSuchPeer("carl".into())));
        assert_eq!(rooms.route(9, "x", "ann", &streams()), Err(RoomError::NotJoined));
        assert_eq!(rooms.leave(1), [(2, ServerMessage::Leave { room: "R".into(), from: "ann".into() })]);
        assert!(rooms.leave(2).is_empty());
        assert!(rooms.is_empty(), "an empty room is gone");
    }

    #[test]
    fn rooms_are_bounded_and_names_unique() {
        let mut rooms = Rooms::new();
        for id in 0..MAX_MEMBERS as u64 {
            rooms.join(id, "R", &format!("p{id}"), &streams()).expect("joins");
        }
        assert_eq!(rooms.join(99, "R", "late", &streams()), Err(RoomError::Full("R".into())));
        assert_eq!(rooms.join(99, "R", "p0", &streams()), Err(RoomError::NameTaken("p0".into())));
        assert_eq!(rooms.join(99, "R", BOT, &streams()), Err(RoomError::NameTaken(BOT.into())));
        assert!(rooms.join(0, "R", "p0", &streams()).is_ok(), "joining again is no error");
    }

    #[test]
    fn random_operations_keep_the_invariants() {
        let mut random = 12_345u32;
        let mut next = |bound: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 16) % bound
        };
        let mut rooms = Rooms::new();
        for _ in 0..20_000 {
            let id = PeerId::from(next(30));
            match next(3) {
                0 => drop(rooms.join(id, &format!("r{}", next(4)), &format!("n{}", next(25)), &streams())),
                1 => drop(rooms.leave(id)),
                _ => drop(rooms.route(id, &format!("n{}", next(25)), &format!("n{}", next(25)), &streams())),
            }
            let in_rooms: usize = rooms.rooms.values().map(HashMap::len).sum();
            assert_eq!(in_rooms, rooms.members.len(), "every member is in exactly one room");
            assert!(rooms.rooms.values().all(|m| !m.is_empty() && m.len() <= MAX_MEMBERS));
        }
    }
}
