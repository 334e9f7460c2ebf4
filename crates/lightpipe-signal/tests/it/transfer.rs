//! Files between two peers, whole and cut.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use lightpipe_signal::transfer::{
    Chunk, Control, Digest, End, Event, File, MAX_BUFFERED, MAX_CHUNK_LEN, MAX_SIZE, MAX_TRANSFERS, OFFER_LIMIT,
    Output, PROGRESS_STEP, Partial, RESUME_LIMIT, STALL_LIMIT, TransferError, TransferId, Transfers, WINDOW,
};

use sha2::Digest as _;

use crate::channel::{Message, Pipe};

fn id(text: &str) -> TransferId {
    TransferId::try_from(text.to_owned()).expect("an id")
}

fn file(name: &str, size: u64) -> File {
    File { name: name.into(), size, mime: "application/octet-stream".into() }
}

/// The end of a transfer of these bytes that went well.
fn done(bytes: &[u8]) -> End {
    End::Done(Digest(sha2::Sha256::digest(bytes).into()))
}

/// One peer and its disk.
#[derive(Default)]
struct Side {
    transfers: Transfers,
    /// What it offers.
    own: HashMap<TransferId, Vec<u8>>,
    /// What came, kept or not.
    got: HashMap<TransferId, Vec<u8>>,
    saved: Vec<TransferId>,
    ended: Vec<(TransferId, End)>,
    offered: Vec<(TransferId, File)>,
    accepted: Vec<(TransferId, u64)>,
    shown: HashMap<TransferId, u64>,
    /// Bytes of files that it sent, and that reached it.
    sent: u64,
    heard: u64,
    most_unacked: u64,
}

impl Side {
    fn offer(&mut self, now: Instant, name: &str, bytes: &[u8]) {
        self.own.insert(id(name), bytes.to_vec());
        self.transfers.offer(now, id(name), file(name, bytes.len() as u64)).expect("room for it");
    }

    /// Carries out what the machine asks for; accepts whatever is offered.
    fn work(&mut self, now: Instant, out: &mut Pipe) {
        loop {
            match self.transfers.poll(now, out.buffered()) {
                Output::Text(text) => {
                    crate::schema::check("files", &text);
                    out.send(Message::Text(text));
                }
                Output::Binary(bytes) => {
                    self.sent += Chunk::parse(&bytes).expect("our own").data.len() as u64;
                    out.send(Message::Binary(bytes));
                    assert!(out.buffered() <= MAX_BUFFERED + 16 * 16, "{} bytes wait", out.buffered());
                }
                Output::Read { id, offset, len } => {
                    let from = offset as usize;
                    let bytes = self.own[&id][from..from + len].to_vec();
                    let unacked = (offset + len as u64).saturating_sub(*self.shown.get(&id).unwrap_or(&0));
                    self.most_unacked = self.most_unacked.max(unacked);
                    self.transfers.provide(now, &id, offset, &bytes).expect("asked for");
                }
                Output::Write { id, offset, data } => {
                    let got = self.got.entry(id).or_default();
                    assert_eq!(got.len() as u64, offset, "each follows on the one before");
                    got.extend(data);
                }
                Output::Save { id } => {
                    self.saved.push(id.clone());
                    self.transfers.saved(&id).expect("asked for");
                }
                Output::Event(Event::Offered { id, file }) => {
                    self.offered.push((id.clone(), file));
                    self.transfers.accept(now, &id, Partial::default()).expect("offered");
                }
                Output::Event(Event::Accepted { id, offset }) => self.accepted.push((id, offset)),
                Output::Event(Event::Progress { id, bytes, size }) => {
                    let before = self.shown.insert(id, bytes);
                    assert!(before < Some(bytes) && bytes <= size, "{before:?}, then {bytes} of {size}");
                }
                Output::Event(Event::Ended { id, end }) => self.ended.push((id, end)),
                Output::WakeAt(_) => break,
            }
        }
    }

    fn hear(&mut self, now: Instant, message: &Message) {
        match message {
            Message::Text(text) => self.transfers.text(now, text).expect("a well-behaved peer"),
            Message::Binary(bytes) => {
                self.heard += bytes.len() as u64 - 12;
                self.transfers.binary(now, bytes).expect("a well-behaved peer");
            }
        }
    }
}

/// Two sides and what is between them.
struct Pair {
    now: Instant,
    ms: u64,
    sides: [Side; 2],
    /// From the side of this index.
    pipes: [Pipe; 2],
}

impl Pair {
    /// A connected one; `rate` in bytes per millisecond.
    fn new(rate: usize, delay_ms: u64) -> Self {
        let mut pair = Self {
            now: Instant::now(),
            ms: 0,
            sides: Default::default(),
            pipes: [Pipe::new(rate, delay_ms), Pipe::new(rate, delay_ms)],
        };
        pair.connect();
        pair
    }

    fn connect(&mut self) {
        self.sides.iter_mut().for_each(|side| side.transfers.connected(self.now));
    }

    fn cut(&mut self) {
        self.pipes.iter_mut().for_each(Pipe::cut);
        self.sides.iter_mut().for_each(|side| side.transfers.disconnected(self.now));
    }

    fn step(&mut self) {
        for at in 0..2 {
            self.sides[at].work(self.now, &mut self.pipes[at]);
        }
        self.ms += 1;
        self.now += Duration::from_millis(1);
        for at in 0..2 {
            for message in self.pipes[at].pass(self.ms) {
                let to = &mut self.sides[1 - at];
                to.hear(self.now, &message);
                to.work(self.now, &mut self.pipes[1 - at]);
            }
        }
    }

    fn run_for(&mut self, ms: u64) {
        (0..ms).for_each(|_| self.step());
    }

    #[track_caller]
    fn run_until(&mut self, what: impl Fn(&Self) -> bool) {
        for _ in 0..600_000 {
            if what(self) {
                return;
            }
            self.step();
        }
        panic!("not within ten minutes: {:?}", self.sides[0].ended);
    }

    fn idle(&self) -> bool {
        self.sides.iter().all(|side| side.transfers.is_empty())
    }
}

fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Rng::with_seed(len as u64).fill(&mut bytes);
    bytes
}

#[test]
fn files_of_every_length_arrive_whole() {
    let edges =
        [0, 1, MAX_CHUNK_LEN - 1, MAX_CHUNK_LEN, MAX_CHUNK_LEN + 1, PROGRESS_STEP as usize, 16 * MAX_CHUNK_LEN + 1];
    for len in edges.into_iter().chain([WINDOW as usize + 7, 3 * WINDOW as usize]) {
        let mut pair = Pair::new(20_000, 20);
        let bytes = random(len);
        pair.sides[0].offer(pair.now, "a", &bytes);
        pair.run_until(Pair::idle);
        let [sender, receiver] = &pair.sides;
        assert!(receiver.got.get(&id("a")).map_or(&[][..], Vec::as_slice) == bytes, "{len} bytes");
        assert_eq!((&receiver.saved, &receiver.ended), (&vec![id("a")], &vec![(id("a"), done(&bytes))]));
        assert_eq!((&sender.ended, sender.sent), (&receiver.ended, len as u64), "nothing is sent twice");
        assert!(sender.most_unacked <= WINDOW, "{len} bytes: {} without a word", sender.most_unacked);
        assert_eq!(len > 0, sender.shown.get(&id("a")) == Some(&(len as u64)), "shown to the end");
    }
}

#[test]
fn after_a_cut_at_half_only_the_rest_is_sent_again() {
    let mut pair = Pair::new(5_000, 20);
    let len = 8 << 20;
    pair.sides[0].offer(pair.now, "a", &random(len));
    pair.run_until(|pair| pair.sides[1].heard >= len as u64 / 2);
    let had = pair.sides[1].heard;
    pair.cut();
    pair.run_for(10_000);
    assert_eq!(pair.sides[1].heard, had, "the channel is gone");
    pair.connect();
    pair.run_until(Pair::idle);
    let [sender, receiver] = &pair.sides;
    assert_eq!(sender.accepted, [(id("a"), 0), (id("a"), had)]);
    assert_eq!(receiver.heard, len as u64, "no byte came twice");
    assert!(receiver.got[&id("a")] == random(len));
    assert_eq!(receiver.offered.len(), 1, "asked once");
}

#[test]
fn files_in_both_directions_survive_cuts_at_any_moment() {
    for seed in 0..40 {
        let mut rng = Rng::with_seed(seed);
        let mut pair = Pair::new(rng.usize(200..5000), rng.u64(0..60));
        for n in 0..rng.usize(1..=MAX_TRANSFERS) {
            let bytes = random(rng.usize(0..900_000));
            let (at, now) = (rng.usize(0..2), pair.now);
            pair.sides[at].offer(now, &format!("f{n}"), &bytes);
        }
        for _ in 0..20 {
            pair.run_for(rng.u64(0..200));
            pair.cut();
            pair.run_for(rng.u64(0..20));
            pair.connect();
        }
        pair.run_until(Pair::idle);
        for at in 0..2 {
            let (from, to) = (&pair.sides[at], &pair.sides[1 - at]);
            for (id, bytes) in &from.own {
                assert!(to.got.get(id).map_or(&[][..], Vec::as_slice) == bytes, "seed {seed}, {id}");
                for side in [from, to] {
                    let ends: Vec<_> = side.ended.iter().filter(|(ended, _)| ended == id).map(|(_, end)| end).collect();
                    assert_eq!(ends, [&done(bytes)], "seed {seed}, {id}: told once");
                }
            }
            assert_eq!((to.saved.len(), to.offered.len()), (from.own.len(), from.own.len()), "seed {seed}");
            assert_eq!(
                to.heard,
                from.own.values().map(|bytes| bytes.len() as u64).sum::<u64>(),
                "seed {seed}: no byte came twice"
            );
        }
    }
}

#[test]
fn programs_that_begin_anew_go_on_where_they_were() {
    let bytes = random(3 << 20);
    for restarted in 0..2 {
        let mut pair = Pair::new(5_000, 10);
        pair.sides[0].offer(pair.now, "a", &bytes);
        pair.run_until(|pair| pair.sides[1].heard >= 1 << 20);
        pair.cut();
        // The other side keeps what it has; this one has its disk only.
        pair.sides[restarted].transfers = Transfers::new();
        let had = pair.sides[1].got[&id("a")].clone();
        if restarted == 0 {
            pair.sides[0].shown.clear();
            pair.sides[0].offer(pair.now, "a", &bytes);
            pair.connect();
        } else {
            pair.connect();
            let offer = Control::Offer {
                id: id("a"),
                number: 1,
                name: "a".into(),
                size: bytes.len() as u64,
                mime: String::new(),
            };
            pair.sides[1].transfers.text(pair.now, &offer.to_json()).expect("an offer");
            // The sender's own, which says the same, is what counts; here the accept is looked at.
            let mut partial = Partial::default();
            had.chunks(1000).for_each(|piece| partial.push(piece));
            assert_eq!((partial.len(), partial.is_empty()), (had.len() as u64, false));
            pair.sides[1].transfers.accept(pair.now, &id("a"), partial).expect("offered");
            let Output::Event(Event::Offered { .. }) = pair.sides[1].transfers.poll(pair.now, 0) else {
                panic!("an offer")
            };
            let accept = pair.sides[1].transfers.poll(pair.now, 0);
            assert_eq!(accept, Output::Text(Control::Accept { id: id("a"), offset: had.len() as u64 }.to_json()));
            pair.cut();
            pair.connect();
        }
        pair.run_until(Pair::idle);
        assert!(pair.sides[1].got[&id("a")] == bytes, "restarted {restarted}");
        assert_eq!(pair.sides[1].heard, bytes.len() as u64, "restarted {restarted}: no byte came twice");
        assert_eq!(pair.sides[0].ended, [(id("a"), done(&bytes))]);
    }
}

/// A side by itself, and what it says.
struct Alone {
    now: Instant,
    transfers: Transfers,
}

impl Alone {
    fn new() -> Self {
        let (now, mut transfers) = (Instant::now(), Transfers::new());
        transfers.connected(now);
        Self { now, transfers }
    }

    /// Everything but progress, in words.
    fn said(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        loop {
            said.push(match self.transfers.poll(self.now, 0) {
                Output::WakeAt(_) => return said,
                Output::Text(text) => match Control::parse(&text).expect("our own") {
                    Control::Refuse { reason, .. } => format!("refuse {reason}"),
                    Control::Failed { reason, .. } => format!("failed {reason}"),
                    Control::Cancel { reason, .. } => format!("cancel {reason}"),
                    other => text[9..].split('"').next().map(|kind| format!("{kind} {}", other.id())).expect("a type"),
                },
                Output::Event(Event::Ended { end, .. }) => end.to_string(),
                Output::Event(Event::Progress { .. } | Event::Accepted { .. }) => continue,
                Output::Event(Event::Offered { file, .. }) => format!("offered {:?}", file.name),
                Output::Read { offset, len, .. } => format!("read {len} at {offset}"),
                Output::Write { offset, data, .. } => format!("write {} at {offset}", data.len()),
                Output::Save { .. } => "save".into(),
                Output::Binary(bytes) => format!("chunk of {}", bytes.len()),
            });
        }
    }

    fn hear(&mut self, message: &Control) -> Result<(), TransferError> {
        self.transfers.text(self.now, &message.to_json())
    }

    fn hear_offer(&mut self, name: &str, number: u32, size: u64) -> Result<(), TransferError> {
        self.hear(&Control::Offer { id: id("a"), number, name: name.into(), size, mime: String::new() })
    }

    fn hear_chunk(&mut self, offset: u64, len: usize) -> Result<(), TransferError> {
        self.transfers.binary(self.now, &Chunk { number: 5, offset, data: &vec![7; len] }.to_bytes())
    }

    /// Receives a file of 100 bytes.
    fn receiving() -> Self {
        let mut alone = Self::new();
        alone.hear_offer("f", 5, 100).expect("an offer");
        alone.transfers.accept(alone.now, &id("a"), Partial::default()).expect("offered");
        assert_eq!(alone.said(), ["offered \"f\"", "accept a"]);
        alone
    }

    /// Sends one of 100 bytes; nothing is read yet.
    fn sending() -> Self {
        let mut alone = Self::new();
        alone.transfers.offer(alone.now, id("a"), file("f", 100)).expect("room");
        alone.hear(&Control::Accept { id: id("a"), offset: 0 }).expect("offered");
        assert_eq!(alone.said(), ["offer a", "read 100 at 0"]);
        alone
    }
}

#[track_caller]
fn misbehaved(result: Result<(), TransferError>, mut alone: Alone, word: &str) {
    assert!(matches!(&result, Err(TransferError::Misbehaved { what, .. }) if what.contains(word)), "{result:?}");
    let said = alone.said();
    assert!(
        said.iter().any(|said| said.starts_with("failed") || said.starts_with("cancel")),
        "the other side is told: {said:?}"
    );
    assert!(alone.transfers.is_empty(), "it is over");
}

#[test]
fn a_sender_that_breaks_the_protocol_is_told_and_its_transfer_ends() {
    let end = |size: u64, byte: u8| Control::End { id: id("a"), size, sha256: Digest([byte; 32]) };
    type Fault = fn(&mut Alone) -> Result<(), TransferError>;
    for (fault, word) in [
        ((|a| a.hear_chunk(1, 10)) as Fault, "gap"),
        (|a| a.hear_chunk(0, 10).and_then(|()| a.hear_chunk(0, 10)), "gap"),
        (|a| a.hear_chunk(0, 101), "more than it offered"),
        (|a| a.hear_offer("f", 6, 100), "twice"),
    ] {
        let mut alone = Alone::receiving();
        let result = fault(&mut alone);
        misbehaved(result, alone, word);
    }
    // Cut off, of another length, or of other bytes.
    for (chunk, end, word) in
        [(60, end(100, 0), "cut off"), (100, end(99, 0), "cut off"), (100, end(100, 0), "checksum")]
    {
        let mut alone = Alone::receiving();
        alone.hear_chunk(0, chunk).expect("a chunk");
        assert_eq!(alone.said(), [format!("write {chunk} at 0")]);
        let result = alone.hear(&end);
        misbehaved(result, alone, word);
    }
    // Before anybody accepted.
    for fault in [(|a| a.hear_chunk(0, 10)) as Fault, |a| {
        a.hear(&Control::End { id: id("a"), size: 100, sha256: Digest([0; 32]) })
    }] {
        let mut alone = Alone::new();
        alone.hear_offer("f", 5, 100).expect("an offer");
        let result = fault(&mut alone);
        misbehaved(result, alone, "nobody accepted");
    }
    // Something else of the same id after a cut.
    for (name, number, size) in [("g", 5, 100), ("f", 5, 101)] {
        let mut alone = Alone::receiving();
        alone.transfers.disconnected(alone.now);
        alone.transfers.connected(alone.now);
        let result = alone.hear_offer(name, number, size);
        misbehaved(result, alone, "something else");
    }
}

#[test]
fn a_receiver_that_breaks_the_protocol_is_told_and_its_transfer_ends() {
    let progress = |received: u64| Control::Progress { id: id("a"), received };
    for (messages, word) in
        [(vec![progress(101)], "more than was sent"), (vec![Control::Done { id: id("a") }], "before the end")]
    {
        let mut alone = Alone::sending();
        if word != "before the end" {
            alone.transfers.provide(alone.now, &id("a"), 0, &[7; 100]).expect("asked for");
        }
        alone.said();
        let result = messages.iter().try_for_each(|message| alone.hear(message));
        misbehaved(result, alone, word);
    }
    for (message, word) in
        [(progress(1), "before it accepted"), (Control::Accept { id: id("a"), offset: 101 }, "behind the end")]
    {
        let mut alone = Alone::new();
        alone.transfers.offer(alone.now, id("a"), file("f", 100)).expect("room");
        alone.said();
        let result = alone.hear(&message);
        misbehaved(result, alone, word);
    }
}

#[test]
fn a_receiver_may_say_what_it_has_said() {
    let mut alone = Alone::sending();
    alone.transfers.provide(alone.now, &id("a"), 0, &[7; 100]).expect("asked for");
    for message in [
        Control::Accept { id: id("a"), offset: 0 },
        Control::Progress { id: id("a"), received: 50 },
        Control::Progress { id: id("a"), received: 49 },
        Control::Accept { id: id("a"), offset: 100 },
    ] {
        assert_eq!(alone.hear(&message), Ok(()), "{message:?}");
    }
    assert_eq!(alone.said(), ["chunk of 112", "end a"]);
    alone.hear(&Control::Done { id: id("a") }).expect("a word");
    assert_eq!(alone.said(), ["done"]);
}

#[test]
fn what_is_said_about_nothing_changes_nothing() {
    let mut alone = Alone::receiving();
    let nobody = || id("nobody");
    for message in [
        Control::Accept { id: nobody(), offset: 7 },
        Control::Refuse { id: nobody(), reason: String::new() },
        Control::Progress { id: nobody(), received: 7 },
        Control::End { id: nobody(), size: 7, sha256: Digest([0; 32]) },
        Control::Done { id: nobody() },
        Control::Failed { id: nobody(), reason: String::new() },
        Control::Cancel { id: nobody(), reason: String::new() },
        // A receiver's words about an incoming file.
        Control::Refuse { id: id("a"), reason: String::new() },
        Control::Done { id: id("a") },
        Control::Failed { id: id("a"), reason: String::new() },
        Control::Progress { id: id("a"), received: 7 },
    ] {
        assert_eq!(alone.hear(&message), Ok(()), "{message:?}");
    }
    alone.transfers.binary(alone.now, &Chunk { number: 99, offset: 0, data: &[1] }.to_bytes()).expect("stray");
    assert_eq!((alone.said(), alone.transfers.stray_chunks(), alone.transfers.len()), (vec![], 1, (0, 1)));
    assert!(matches!(alone.transfers.text(alone.now, "hello"), Err(TransferError::Message(_))));
    assert!(matches!(alone.transfers.binary(alone.now, &[0; 12]), Err(TransferError::Message(_))));
    assert_eq!(alone.transfers.len(), (0, 1));
}

#[test]
fn offers_that_nobody_takes_are_refused_with_a_word() {
    let offer = |n: u32, name: &str, size: u64| Control::Offer {
        id: id(&format!("t{n}")),
        number: n,
        name: name.into(),
        size,
        mime: String::new(),
    };
    let mut alone = Alone::new();
    for (name, shown) in [("../../etc/passwd", "passwd"), ("C:\\x\\y.txt", "y.txt")] {
        alone.hear(&offer(0, name, 1)).expect("an offer");
        assert_eq!(alone.said(), [format!("offered {shown:?}")]);
        alone.transfers.refuse(&id("t0"), "no thanks").expect("offered");
        assert_eq!(alone.said(), ["refuse no thanks", "cancelled: no thanks"]);
    }
    for (name, size, word) in
        [("..", 1, "bad_name"), ("a\0", 1, "bad_name"), ("a", MAX_SIZE + 1, "too_large"), ("a", u64::MAX, "too_large")]
    {
        alone.hear(&offer(1, name, size)).expect("an offer");
        assert_eq!(alone.said(), [format!("refuse {word}")], "{name:?}");
    }
    for n in 0..MAX_TRANSFERS as u32 {
        alone.hear(&offer(n, "same name", MAX_SIZE)).expect("an offer");
    }
    alone.said();
    alone.hear(&offer(99, "a", 1)).expect("an offer");
    assert_eq!(alone.said(), ["refuse too_many"]);
    alone.hear(&Control::Cancel { id: id("t3"), reason: "so".into() }).expect("a word");
    assert_eq!(alone.said(), ["cancelled by the other side: so"]);
    alone
        .hear(&Control::Offer { id: id("new"), number: 4, name: "a".into(), size: 1, mime: String::new() })
        .expect("an offer");
    assert_eq!(alone.said(), ["refuse number_taken"]);

    let mut alone = Alone::sending();
    alone.hear_offer("f", 5, 100).expect("an offer");
    assert_eq!(alone.said(), ["refuse id_taken"]);
}

#[test]
fn this_side_offers_no_more_than_the_other_may_take() {
    let mut alone = Alone::new();
    let now = alone.now;
    assert_eq!(
        alone.transfers.offer(now, id("a"), file("f", MAX_SIZE + 1)),
        Err(TransferError::TooLarge(MAX_SIZE + 1))
    );
    assert!(matches!(alone.transfers.offer(now, id("a"), file("..", 1)), Err(TransferError::Name(_))));
    for n in 0..MAX_TRANSFERS {
        alone.transfers.offer(now, id(&format!("t{n}")), file("same name", 1)).expect("room");
    }
    assert_eq!(alone.transfers.offer(now, id("a"), file("f", 1)), Err(TransferError::TooMany));
    alone.transfers.cancel(&id("t0"), "enough").expect("there");
    assert_eq!(alone.transfers.offer(now, id("t1"), file("f", 1)), Err(TransferError::IdTaken(id("t1"))));
    let stranger = Err(TransferError::NotNow(id("x")));
    assert_eq!(alone.transfers.cancel(&id("x"), ""), stranger);
    assert_eq!(alone.transfers.accept(now, &id("x"), Partial::default()), stranger);
    assert_eq!(alone.transfers.refuse(&id("x"), ""), stranger);
    assert_eq!(alone.transfers.saved(&id("x")), stranger);
    assert_eq!(alone.transfers.fail(&id("x"), ""), stranger);
}

#[test]
fn a_file_that_shrinks_while_it_is_read_ends_the_transfer() {
    let mut alone = Alone::sending();
    alone.transfers.provide(alone.now, &id("a"), 0, &[7; 99]).expect("asked for");
    assert_eq!(alone.said(), ["cancel the file changed meanwhile", "cancelled: the file changed meanwhile"]);
}

#[test]
fn a_disk_that_is_full_is_told_to_the_sender() {
    let mut pair = Pair::new(5_000, 5);
    pair.sides[0].offer(pair.now, "a", &random(2 << 20));
    pair.run_until(|pair| pair.sides[1].heard > 0);
    pair.sides[1].transfers.fail(&id("a"), "disk full").expect("there");
    pair.run_until(Pair::idle);
    pair.run_for(200);
    assert_eq!(pair.sides[0].ended, [(id("a"), End::Failed("disk full".into()))]);
    assert!(pair.sides[1].transfers.stray_chunks() > 0, "what was under way goes nowhere");
}

#[test]
fn either_side_may_change_its_mind_connected_or_not() {
    for (who, cut) in [(0, false), (1, false), (0, true), (1, true)] {
        let mut pair = Pair::new(1_000, 30);
        pair.sides[0].offer(pair.now, "a", &random(4 << 20));
        pair.run_until(|pair| pair.sides[1].heard > 100_000);
        if cut {
            pair.cut();
        }
        pair.sides[who].transfers.cancel(&id("a"), "enough").expect("there");
        if cut {
            pair.connect();
        }
        pair.run_until(Pair::idle);
        pair.run_for(2_000);
        assert!(pair.idle(), "nothing comes back");
        assert_eq!(pair.sides[who].ended, [(id("a"), End::Cancelled("enough".into()))]);
        let other = &pair.sides[1 - who];
        assert!(
            matches!(&other.ended[..], [(_, End::CancelledByPeer(_) | End::Refused(_))]),
            "{who} {cut}: {:?}",
            other.ended
        );
        assert_eq!(pair.sides[1].offered.len(), 1, "{who} {cut}: asked once");
    }
}

#[test]
fn nobody_waits_for_ever() {
    // An offer that nobody answers, on either side.
    let mut alone = Alone::new();
    alone.transfers.offer(alone.now, id("a"), file("f", 100)).expect("room");
    alone
        .hear(&Control::Offer { id: id("b"), number: 1, name: "g".into(), size: 1, mime: String::new() })
        .expect("an offer");
    assert_eq!(alone.said(), ["offer a", "offered \"g\""]);
    assert_eq!(alone.transfers.poll(alone.now, 0), Output::WakeAt(Some(alone.now + OFFER_LIMIT)));
    alone.now += OFFER_LIMIT;
    let over = "nobody answered the offer";
    assert_eq!(
        alone.said(),
        [format!("cancel {over}"), format!("given up: {over}"), format!("cancel {over}"), format!("given up: {over}")]
    );
    assert_eq!(alone.transfers.poll(alone.now, 0), Output::WakeAt(None));

    // A sender that accepted and sends nothing; a receiver that says nothing.
    let mut alone = Alone::receiving();
    alone.now += STALL_LIMIT;
    assert_eq!(alone.said()[1], "given up: the sender sends nothing any more");
    let mut alone = Alone::sending();
    alone.transfers.provide(alone.now, &id("a"), 0, &[7; 100]).expect("asked for");
    assert_eq!(alone.said(), ["chunk of 112", "end a"]);
    alone.now += STALL_LIMIT;
    assert_eq!(alone.said()[1], "given up: the receiver says nothing any more");

    // A connection that does not come back.
    for mut alone in [Alone::receiving(), Alone::sending()] {
        alone.transfers.disconnected(alone.now);
        alone.now += RESUME_LIMIT - Duration::from_millis(1);
        assert_eq!(alone.said(), [""; 0]);
        alone.now += Duration::from_millis(1);
        assert_eq!(alone.said(), ["given up: no connection came back"]);
    }
}

#[test]
fn a_file_whose_last_word_was_lost_is_not_received_again() {
    let sum = |text: &str| Digest::try_from(text.to_owned()).expect("a sum");
    // SHA-256 of a hundred sevens, by coreutils.
    let sha256 = sum("d876885b7f40eae70bd1f5247a9854914fa5812ce63998e2d894a68e187967cb");
    let mut alone = Alone::receiving();
    alone.hear_chunk(0, 100).expect("a chunk");
    let end = Control::End { id: id("a"), size: 100, sha256 };
    alone.hear(&end).expect("the right sum");
    assert_eq!(alone.said(), ["write 100 at 0", "save"]);
    // It is cut while the file is renamed, and offered again.
    alone.transfers.disconnected(alone.now);
    alone.transfers.connected(alone.now);
    alone.hear_offer("f", 9, 100).expect("an offer");
    assert_eq!(alone.said(), ["accept a"]);
    alone.transfers.saved(&id("a")).expect("asked for");
    assert_eq!(alone.said(), ["done"], "the sender has not said its end on this connection");
    alone.hear(&end).expect("the right sum");
    assert_eq!(alone.said(), ["done a"]);
    alone.transfers.disconnected(alone.now);
    alone.transfers.connected(alone.now);
    alone.hear_offer("f", 3, 100).expect("an offer");
    alone.hear(&end).expect("the right sum");
    assert_eq!(alone.said(), ["accept a", "done a"], "neither asked nor written again");
    alone.hear(&Control::End { id: id("a"), size: 100, sha256: Digest([0; 32]) }).expect("a word");
    assert_eq!(alone.said(), ["failed checksum"]);
}
