//! The receiving side of a transfer.

use std::time::Instant;

use sha2::{Digest as _, Sha256};

use super::{
    Chunk, Control, Digest, End, Event, File, Kept, MAX_SIZE, MAX_TRANSFERS, OFFER_LIMIT, Output, PROGRESS_STEP,
    Partial, REMEMBERED, RESUME_LIMIT, STALL_LIMIT, TransferError, TransferId, Transfers, name, reason,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// For this side's decision.
    Offered,
    /// For bytes, or for the connection that they come by.
    Receiving,
    /// For this side's word that it is kept.
    Saving,
}

#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) id: TransferId,
    pub(super) deadline: Option<Instant>,
    file: File,
    phase: Phase,
    /// What names it in chunks; nothing between two connections.
    number: Option<u32>,
    received: u64,
    /// Bytes that the sender was told of.
    told: u64,
    /// The sender has said the end on this connection, and waits for the last word.
    ended: bool,
    hash: Sha256,
}

impl Incoming {
    pub(super) fn cut(&mut self, now: Instant) {
        self.ended = false;
        if self.number.take().is_some() && self.phase != Phase::Saving {
            self.deadline = Some(now + RESUME_LIMIT);
        }
    }

    pub(super) const fn waits_for(&self) -> &'static str {
        match (self.number, self.phase) {
            (None, _) => "no connection came back",
            (_, Phase::Offered) => "nobody answered the offer",
            _ => "the sender sends nothing any more",
        }
    }

    fn digest(&self) -> Digest {
        Digest(self.hash.clone().finalize().into())
    }
}

impl Transfers {
    /// Takes an offered file. `partial`: what is there of it from before, which is not sent again.
    pub fn accept(&mut self, now: Instant, id: &TransferId, partial: Partial) -> Result<(), TransferError> {
        let offered = self.incoming.iter_mut().find(|transfer| transfer.id == *id && transfer.phase == Phase::Offered);
        let Some(transfer) = offered.filter(|transfer| partial.len <= transfer.file.size) else {
            return Err(TransferError::NotNow(id.clone()));
        };
        transfer.phase = Phase::Receiving;
        (transfer.received, transfer.told, transfer.hash) = (partial.len, partial.len, partial.hash);
        // Without a connection it says so when it is offered again.
        if transfer.number.is_some() {
            transfer.deadline = Some(now + STALL_LIMIT);
            self.say(&Control::Accept { id: id.clone(), offset: partial.len });
        }
        Ok(())
    }

    /// Does not take an offered file.
    pub fn refuse(&mut self, id: &TransferId, why: &str) -> Result<(), TransferError> {
        if !self.incoming.iter().any(|transfer| transfer.id == *id && transfer.phase == Phase::Offered) {
            return Err(TransferError::NotNow(id.clone()));
        }
        self.say(&Control::Refuse { id: id.clone(), reason: reason(why) });
        self.end(id, End::Cancelled(reason(why)));
        Ok(())
    }

    /// The file of [`Output::Save`] is kept.
    pub fn saved(&mut self, id: &TransferId) -> Result<(), TransferError> {
        let saving = self.incoming.iter().find(|transfer| transfer.id == *id && transfer.phase == Phase::Saving);
        let Some(transfer) = saving else { return Err(TransferError::NotNow(id.clone())) };
        if self.kept.len() == REMEMBERED {
            self.kept.pop_front();
        }
        let sha256 = transfer.digest();
        self.kept.push_back(Kept { id: id.clone(), size: transfer.file.size, sha256 });
        // After a cut the sender offers it once more, and is told then.
        if transfer.ended {
            self.say(&Control::Done { id: id.clone() });
        }
        self.end(id, End::Done(sha256));
        Ok(())
    }

    /// An incoming file cannot be written or kept.
    pub fn fail(&mut self, id: &TransferId, why: &str) -> Result<(), TransferError> {
        if !self.incoming.iter().any(|transfer| transfer.id == *id) {
            return Err(TransferError::NotNow(id.clone()));
        }
        self.say(&Control::Failed { id: id.clone(), reason: reason(why) });
        self.end(id, End::Failed(reason(why)));
        Ok(())
    }

    pub(super) fn on_offer(
        &mut self,
        now: Instant,
        id: TransferId,
        number: u32,
        file: File,
    ) -> Result<(), TransferError> {
        if let Some(at) = self.incoming.iter().position(|transfer| transfer.id == id) {
            return self.on_offer_again(now, at, number, &file);
        }
        let refused = |why: &str| Control::Refuse { id: id.clone(), reason: why.to_owned() };
        if let Some(kept) = self.kept.iter().find(|kept| kept.id == id) {
            // The last word was lost with the connection. Nothing is sent again, and nothing is written.
            let answer = if kept.size == file.size {
                Control::Accept { id: id.clone(), offset: kept.size }
            } else {
                refused("id_taken")
            };
            self.say(&answer);
            return Ok(());
        }
        let why = match name::safe(&file.name) {
            Err(_) => "bad_name",
            Ok(_) if self.cancelled.contains(&id) => "cancelled",
            Ok(_) if self.outgoing.iter().any(|transfer| transfer.id == id) => "id_taken",
            Ok(_) if self.incoming.iter().any(|transfer| transfer.number == Some(number)) => "number_taken",
            Ok(_) if file.size > MAX_SIZE => "too_large",
            Ok(_) if self.incoming.len() >= MAX_TRANSFERS => "too_many",
            Ok(safe) => {
                let file = File { name: safe.to_owned(), size: file.size, mime: reason(&file.mime) };
                self.incoming.push(Incoming {
                    id: id.clone(),
                    deadline: Some(now + OFFER_LIMIT),
                    file: file.clone(),
                    phase: Phase::Offered,
                    number: Some(number),
                    received: 0,
                    told: 0,
                    ended: false,
                    hash: Sha256::new(),
                });
                self.tell(Event::Offered { id, file });
                return Ok(());
            }
        };
        self.say(&refused(why));
        Ok(())
    }

    /// After a cut.
    fn on_offer_again(&mut self, now: Instant, at: usize, number: u32, file: &File) -> Result<(), TransferError> {
        let taken = self.incoming.iter().any(|transfer| transfer.number == Some(number));
        let transfer = &mut self.incoming[at];
        let id = transfer.id.clone();
        if transfer.number.is_some() {
            return Err(self.misbehaved(&id, "offered the same twice"));
        }
        let same = transfer.file.size == file.size && name::safe(&file.name) == Ok(&transfer.file.name);
        if taken || !same {
            return Err(self.misbehaved(&id, "offered something else under the same id or number"));
        }
        transfer.number = Some(number);
        transfer.told = transfer.received;
        let offset = transfer.received;
        if transfer.phase == Phase::Offered {
            transfer.deadline = Some(now + OFFER_LIMIT);
        } else {
            if transfer.phase == Phase::Receiving {
                transfer.deadline = Some(now + STALL_LIMIT);
            }
            self.say(&Control::Accept { id, offset });
        }
        Ok(())
    }

    pub(super) fn on_chunk(&mut self, now: Instant, chunk: Chunk<'_>) -> Result<(), TransferError> {
        let found = self.incoming.iter_mut().find(|transfer| transfer.number == Some(chunk.number));
        let Some(transfer) = found else {
            self.stray_chunks += 1;
            return Ok(());
        };
        let id = transfer.id.clone();
        let end = chunk.offset + chunk.data.len() as u64;
        let fault = match transfer.phase {
            Phase::Offered => Some("sends what nobody accepted"),
            Phase::Saving => Some("sends on behind the end"),
            Phase::Receiving if chunk.offset != transfer.received => Some("left a gap"),
            Phase::Receiving if end > transfer.file.size => Some("sends more than it offered"),
            Phase::Receiving => None,
        };
        if let Some(what) = fault {
            return Err(self.misbehaved(&id, what));
        }
        transfer.hash.update(chunk.data);
        transfer.received = end;
        let size = transfer.file.size;
        let due = end - transfer.told >= PROGRESS_STEP;
        if due {
            transfer.told = end;
        }
        for transfer in self.incoming.iter_mut().filter(|t| t.phase == Phase::Receiving && t.number.is_some()) {
            transfer.deadline = Some(now + STALL_LIMIT);
        }
        self.queue.push_back(Output::Write { id: id.clone(), offset: chunk.offset, data: chunk.data.to_vec() });
        if due {
            self.say(&Control::Progress { id: id.clone(), received: end });
        }
        if due || end == size {
            self.tell(Event::Progress { id, bytes: end, size });
        }
        Ok(())
    }

    pub(super) fn on_end(&mut self, id: &TransferId, size: u64, sha256: Digest) -> Result<(), TransferError> {
        if let Some(kept) = self.kept.iter().find(|kept| kept.id == *id) {
            let answer = if (kept.size, kept.sha256) == (size, sha256) {
                Control::Done { id: id.clone() }
            } else {
                Control::Failed { id: id.clone(), reason: "checksum".into() }
            };
            self.say(&answer);
            return Ok(());
        }
        let Some(transfer) = self.incoming.iter_mut().find(|transfer| transfer.id == *id) else { return Ok(()) };
        let again = transfer.phase == Phase::Saving;
        if transfer.phase == Phase::Offered || transfer.number.is_none() {
            return Err(self.misbehaved(id, "ends what nobody accepted"));
        }
        if size != transfer.file.size || transfer.received != size {
            return Err(self.misbehaved(id, "ends before the end: the file is cut off"));
        }
        if transfer.digest() != sha256 {
            return Err(self.misbehaved(id, "sent something else than it read: wrong checksum"));
        }
        transfer.phase = Phase::Saving;
        transfer.ended = true;
        transfer.deadline = None;
        // Offered once more while it is being kept: it is under way.
        if !again {
            self.queue.push_back(Output::Save { id: id.clone() });
        }
        Ok(())
    }
}
