//! Three people who write while their connections come and go.

use std::collections::BTreeMap;

use fastrand::Rng;
use lightpipe_signal::Chat;
use lightpipe_signal::chat::{Event, Output};

use crate::channel::{Message, Pipe};

const NAMES: [&str; 3] = ["ada", "bob", "cyd"];

struct Room {
    ms: u64,
    chats: [Chat; 3],
    /// What each has shown, by whose it is.
    shown: [BTreeMap<String, Vec<String>>; 3],
    heard: [usize; 3],
    /// From and to.
    pipes: BTreeMap<(usize, usize), Pipe>,
}

impl Room {
    fn new(rng: &mut Rng) -> Self {
        let pairs = (0..3).flat_map(|a| (0..3).map(move |b| (a, b))).filter(|(a, b)| a != b);
        let pipes = pairs.map(|pair| (pair, Pipe::new(rng.usize(5..500), rng.u64(0..80)))).collect();
        let mut room = Self { ms: 0, chats: Default::default(), shown: Default::default(), heard: [0; 3], pipes };
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            room.connect(a, b);
        }
        room
    }

    fn connect(&mut self, a: usize, b: usize) {
        self.chats[a].connected(NAMES[b]);
        self.chats[b].connected(NAMES[a]);
    }

    fn cut(&mut self, a: usize, b: usize) {
        self.chats[a].disconnected(NAMES[b]);
        self.chats[b].disconnected(NAMES[a]);
        for pair in [(a, b), (b, a)] {
            self.pipes.get_mut(&pair).expect("a pair").cut();
        }
    }

    fn step(&mut self) {
        self.ms += 1;
        for ((from, to), pipe) in &mut self.pipes {
            for message in pipe.pass(self.ms) {
                let Message::Text(text) = message else { panic!("chat is text") };
                self.chats[*to].text(self.ms, NAMES[*from], &text).expect("a well-behaved peer");
            }
        }
        for me in 0..3 {
            while let Some(output) = self.chats[me].poll() {
                match output {
                    Output::Send { peer, text } => {
                        crate::schema::check("chat", &text);
                        let to = NAMES.iter().position(|name| *name == peer).expect("one of us");
                        self.pipes.get_mut(&(me, to)).expect("a pair").send(Message::Text(text));
                    }
                    Output::Event(Event::Said { peer, text, .. }) => self.shown[me].entry(peer).or_default().push(text),
                    Output::Event(Event::Heard { .. }) => self.heard[me] += 1,
                    Output::Event(other) => panic!("{other:?}"),
                }
            }
        }
    }
}

#[test]
fn everybody_reads_everything_once_and_in_order_however_often_connections_are_cut() {
    for seed in 0..60 {
        let mut rng = Rng::with_seed(seed);
        let mut room = Room::new(&mut rng);
        let mut said: [Vec<String>; 3] = Default::default();
        for round in 0..40 {
            let who = rng.usize(0..3);
            let text = format!("{round}: {}", "é".repeat(rng.usize(0..40)));
            room.chats[who].say(room.ms, &text).expect("said");
            said[who].push(text);
            let pair = [(0, 1), (0, 2), (1, 2)][rng.usize(0..3)];
            (0..rng.u64(0..60)).for_each(|_| room.step());
            if rng.u8(0..3) == 0 {
                room.cut(pair.0, pair.1);
                (0..rng.u64(0..60)).for_each(|_| room.step());
                room.connect(pair.0, pair.1);
            }
        }
        for _ in 0..60_000 {
            if (0..3).all(|me| room.heard[me] == 2 * said[me].len()) {
                break;
            }
            room.step();
        }
        for (me, other) in room.pipes.keys().copied() {
            let shown = room.shown[me].get(NAMES[other]).map_or(&[][..], Vec::as_slice);
            assert_eq!(shown, said[other], "seed {seed}: what {} read of {}", NAMES[me], NAMES[other]);
            assert_eq!(room.chats[me].unacked(NAMES[other]), 0, "seed {seed}");
        }
    }
}
