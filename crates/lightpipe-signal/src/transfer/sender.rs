//! The sending side of a transfer.

use std::time::Instant;

use sha2::{Digest as _, Sha256};

use super::{
    Chunk, Control, Digest, End, Event, File, MAX_BUFFERED, MAX_CHUNK_LEN, MAX_SIZE, MAX_TRANSFERS, OFFER_LIMIT,
    Output, RESUME_LIMIT, STALL_LIMIT, TransferError, TransferId, Transfers, WINDOW, name,
};

/// Most bytes of one read: sixteen chunks.
const MAX_READ_LEN: usize = 16 * MAX_CHUNK_LEN;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// For a connection.
    Waiting,
    /// For the receiver's word.
    Offered,
    /// Chunks are on their way.
    Sending,
    /// All is said; for the receiver's last word.
    Ending,
}

#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) id: TransferId,
    pub(super) number: u32,
    pub(super) deadline: Option<Instant>,
    file: File,
    phase: Phase,
    /// Bytes that the receiver says it has.
    acked: u64,
    /// Bytes that were put into chunks.
    sent: u64,
    /// Bytes that were told to this side's user; never less again.
    shown: u64,
    hash: Sha256,
    /// Bytes that the hash has seen. Behind `sent` when a new sender goes on with an old file, before it after a cut.
    hashed: u64,
    /// A read that was asked for.
    reading: Option<(u64, usize)>,
}

impl Outgoing {
    pub(super) fn cut(&mut self, now: Instant) {
        if self.phase != Phase::Waiting {
            self.deadline = Some(now + RESUME_LIMIT);
        }
        self.phase = Phase::Waiting;
        self.reading = None;
    }

    pub(super) const fn waits_for(&self) -> &'static str {
        match self.phase {
            Phase::Waiting => "no connection came back",
            Phase::Offered => "nobody answered the offer",
            Phase::Sending | Phase::Ending => "the receiver says nothing any more",
        }
    }

    fn digest(&self) -> Digest {
        Digest(self.hash.clone().finalize().into())
    }

    /// What to read next, as far as window and buffer go.
    fn wants(&self, room: usize) -> Option<(u64, usize)> {
        if self.phase != Phase::Sending || self.reading.is_some() {
            return None;
        }
        let from = self.hashed.min(self.sent);
        if from < self.sent {
            // Only for the hash: nothing of it goes onto the channel.
            return Some((from, (self.sent - from).min(MAX_READ_LEN as u64) as usize));
        }
        let left = self.file.size - from;
        let may = (self.acked + WINDOW - from).min(room as u64);
        // Whole chunks, but for the last one.
        let len = if left <= may { left } else { may - may % MAX_CHUNK_LEN as u64 }.min(MAX_READ_LEN as u64);
        (len > 0).then_some((from, len as usize))
    }
}

impl Transfers {
    /// Offers a file, now or on the next connection. `id` must be random; a sender that begins anew and wants to go on says the one from before.
    pub fn offer(&mut self, now: Instant, id: TransferId, file: File) -> Result<(), TransferError> {
        if file.size > MAX_SIZE {
            return Err(TransferError::TooLarge(file.size));
        }
        if self.outgoing.len() >= MAX_TRANSFERS {
            return Err(TransferError::TooMany);
        }
        if self.outgoing.iter().any(|t| t.id == id) || self.incoming.iter().any(|t| t.id == id) {
            return Err(TransferError::IdTaken(id));
        }
        let file = File { name: name::safe(&file.name)?.to_owned(), mime: super::reason(&file.mime), ..file };
        self.cancelled.retain(|cancelled| *cancelled != id);
        self.outgoing.push(Outgoing {
            id,
            number: 0,
            deadline: Some(now + RESUME_LIMIT),
            file,
            phase: Phase::Waiting,
            acked: 0,
            sent: 0,
            shown: 0,
            hash: Sha256::new(),
            hashed: 0,
            reading: None,
        });
        if self.connected {
            self.offer_again(now, self.outgoing.len() - 1);
        }
        Ok(())
    }

    /// What was read after [`Output::Read`]. Less than was asked for means that the file is not what was offered, and ends the transfer. What was asked
    /// for before a cut, or of a transfer that is over, is ignored.
    pub fn provide(&mut self, now: Instant, id: &TransferId, offset: u64, bytes: &[u8]) -> Result<(), TransferError> {
        let Some(transfer) = self.outgoing.iter_mut().find(|transfer| transfer.id == *id) else { return Ok(()) };
        let Some((_, len)) = transfer.reading.take_if(|(from, _)| *from == offset) else { return Ok(()) };
        if bytes.len() != len {
            return self.cancel(id, "the file changed meanwhile");
        }
        let end = offset + len as u64;
        if end > transfer.hashed {
            // What is sent again after a cut was hashed before it.
            let known = transfer.hashed.saturating_sub(offset) as usize;
            transfer.hash.update(&bytes[known..]);
            transfer.hashed = end;
        }
        if offset == transfer.sent {
            transfer.sent = end;
            transfer.deadline = Some(now + STALL_LIMIT);
            let chunks = (offset..).step_by(MAX_CHUNK_LEN).zip(bytes.chunks(MAX_CHUNK_LEN));
            let number = transfer.number;
            self.queue.extend(chunks.map(|(offset, data)| Output::Binary(Chunk { number, offset, data }.to_bytes())));
        }
        self.end_if_all_is_sent(id);
        Ok(())
    }

    pub(super) fn offer_again(&mut self, now: Instant, at: usize) {
        let number = self.next_number;
        let Some(transfer) = self.outgoing.get_mut(at) else { return };
        self.next_number = self.next_number.wrapping_add(1);
        transfer.number = number;
        transfer.phase = Phase::Offered;
        transfer.deadline = Some(now + OFFER_LIMIT);
        let File { name, size, mime } = transfer.file.clone();
        let offer = Control::Offer { id: transfer.id.clone(), number, name, size, mime };
        self.say(&offer);
    }

    pub(super) fn on_accept(&mut self, now: Instant, id: &TransferId, offset: u64) -> Result<(), TransferError> {
        let Some(transfer) = self.outgoing.iter_mut().find(|transfer| transfer.id == *id) else { return Ok(()) };
        if transfer.phase != Phase::Offered {
            // It may have been offered again while the receiver's user decided.
            return Ok(());
        }
        if offset > transfer.file.size {
            return Err(self.misbehaved(id, "accepted from behind the end"));
        }
        transfer.phase = Phase::Sending;
        (transfer.acked, transfer.sent) = (offset, offset);
        transfer.deadline = Some(now + STALL_LIMIT);
        self.tell(Event::Accepted { id: id.clone(), offset });
        self.show(id, offset);
        self.end_if_all_is_sent(id);
        Ok(())
    }

    pub(super) fn on_progress(&mut self, now: Instant, id: &TransferId, received: u64) -> Result<(), TransferError> {
        let Some(transfer) = self.outgoing.iter_mut().find(|transfer| transfer.id == *id) else { return Ok(()) };
        if !matches!(transfer.phase, Phase::Sending | Phase::Ending) {
            return Err(self.misbehaved(id, "received before it accepted"));
        }
        if received > transfer.sent {
            return Err(self.misbehaved(id, "received more than was sent"));
        }
        // Less than it accepted from is what it had stored then.
        transfer.acked = received.max(transfer.acked);
        // The files share the channel: while one gets on, the others are not forgotten.
        for transfer in self.outgoing.iter_mut().filter(|t| matches!(t.phase, Phase::Sending | Phase::Ending)) {
            transfer.deadline = Some(now + STALL_LIMIT);
        }
        self.show(id, received);
        Ok(())
    }

    pub(super) fn on_done(&mut self, id: &TransferId) -> Result<(), TransferError> {
        let Some(transfer) = self.outgoing.iter().find(|transfer| transfer.id == *id) else { return Ok(()) };
        if transfer.phase != Phase::Ending {
            return Err(self.misbehaved(id, "was done before the end"));
        }
        let (size, sha256) = (transfer.file.size, transfer.digest());
        self.show(id, size);
        self.end(id, End::Done(sha256));
        Ok(())
    }

    /// Words of a receiver end outgoing transfers only.
    pub(super) fn outgoing_ended(&mut self, id: &TransferId, end: End) -> Result<(), TransferError> {
        if self.outgoing.iter().any(|transfer| transfer.id == *id) {
            self.end(id, end);
        }
        Ok(())
    }

    /// The next read; the files take turns.
    pub(super) fn next_read(&mut self, buffered: usize) -> Option<Output> {
        let room = MAX_BUFFERED.saturating_sub(buffered);
        let count = self.outgoing.len();
        for step in 0..count {
            let at = (self.turn + step) % count;
            if let Some((offset, len)) = self.outgoing[at].wants(room) {
                self.turn = (at + 1) % count;
                self.outgoing[at].reading = Some((offset, len));
                return Some(Output::Read { id: self.outgoing[at].id.clone(), offset, len });
            }
        }
        None
    }

    fn show(&mut self, id: &TransferId, bytes: u64) {
        let Some(transfer) = self.outgoing.iter_mut().find(|transfer| transfer.id == *id) else { return };
        if bytes > transfer.shown {
            transfer.shown = bytes;
            let size = transfer.file.size;
            self.tell(Event::Progress { id: id.clone(), bytes, size });
        }
    }

    fn end_if_all_is_sent(&mut self, id: &TransferId) {
        let Some(transfer) = self.outgoing.iter_mut().find(|transfer| transfer.id == *id) else { return };
        let size = transfer.file.size;
        if transfer.phase == Phase::Sending && transfer.sent == size && transfer.hashed == size {
            transfer.phase = Phase::Ending;
            let sha256 = transfer.digest();
            self.say(&Control::End { id: id.clone(), size, sha256 });
        }
    }
}
