//! Networks as people have them, by name.

use std::time::Duration;

use crate::link::{GilbertElliott, Jitter, LinkConfig, QueueLimit};

/// A network from a server to one viewer and back, and what happens to it over time.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Its name in `lightpipe lab --profile`.
    pub name: String,
    /// What it stands for, in a line.
    pub what: String,
    /// Where the figures come from.
    pub source: String,
    /// Towards the viewer.
    pub down: LinkConfig,
    /// Away from the viewer.
    pub up: LinkConfig,
    /// What changes, in the order of time.
    pub events: Vec<Event>,
    /// After this long the events begin again; none for those that happen once.
    pub every: Option<Duration>,
}

/// Something that happens to a network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Event {
    /// Since the beginning of the run, or of its repetition.
    pub at: Duration,
    /// What happens.
    pub kind: EventKind,
}

/// What can happen to a network.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum EventKind {
    /// The narrowest place towards the viewer has another rate, bits per second.
    DownRate(u64),
    /// The same away from the viewer.
    UpRate(u64),
    /// Nothing gets through in either direction, for so long.
    Outage(Duration),
    /// Nothing gets through either, but what is sent waits as far as the queues hold it: a handover between cells.
    Stall(Duration),
    /// The NAT in front of the viewer gives its packets another port and forgets the old one.
    Rebind,
    /// The viewer has another address, from which its player restarts ICE after a round trip.
    Move,
}

impl EventKind {
    /// How long it lasts, for what has an end.
    pub fn lasts(self) -> Duration {
        match self {
            Self::Outage(span) | Self::Stall(span) => span,
            _ => Duration::ZERO,
        }
    }

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::DownRate(_) => "down_rate",
            Self::UpRate(_) => "up_rate",
            Self::Outage(_) => "outage",
            Self::Stall(_) => "stall",
            Self::Rebind => "rebind",
            Self::Move => "move",
        }
    }
}

/// Mbit/s, of which profiles are made.
const fn mbit(tenths: u64) -> u64 {
    tenths * 100_000
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A direction with half of a round trip, and a rate in tenths of a Mbit/s before which 200 ms wait.
fn direction(rtt_millis: u64, tenths: u64) -> LinkConfig {
    LinkConfig { delay: ms(rtt_millis) / 2, ..LinkConfig::default() }.with_rate_bps(mbit(tenths))
}

const WEB_PAGE_TEST: &str = "rates and round trip of WebPageTest's profile of that name; queue ours";
const LOADERO: &str = "Loadero's table of network conditions; queue ours";
const OURS: &str = "ours";

impl Profile {
    /// A network that changes nothing, of which the builder methods make another.
    pub fn perfect() -> Self {
        Self::new("perfect", "no delay, no loss, no limit", OURS, LinkConfig::default(), LinkConfig::default())
    }

    fn new(name: &str, what: &str, source: &str, down: LinkConfig, up: LinkConfig) -> Self {
        let (name, what, source) = (name.to_owned(), what.to_owned(), source.to_owned());
        Self { name, what, source, down, up, events: Vec::new(), every: None }
    }

    /// The profile of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|profile| profile.name == name)
    }

    /// Adds an event; they may come in any order.
    #[must_use]
    pub fn with_event(mut self, at: Duration, kind: EventKind) -> Self {
        self.events.push(Event { at, kind });
        self.events.sort_by_key(|event| event.at);
        self
    }

    /// Changes the direction towards the viewer.
    #[must_use]
    pub fn with_down(mut self, change: impl FnOnce(LinkConfig) -> LinkConfig) -> Self {
        self.down = change(self.down);
        self
    }

    /// Changes both directions.
    #[must_use]
    pub fn with_both(mut self, change: impl Fn(LinkConfig) -> LinkConfig) -> Self {
        self.down = change(self.down);
        self.up = change(self.up);
        self
    }

    /// The same network under another name.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What happens until `end`, repetitions unrolled.
    pub fn events_until(&self, end: Duration) -> Vec<Event> {
        let mut all = Vec::new();
        let mut begin = Duration::ZERO;
        while begin < end {
            let these = self.events.iter().map(|event| Event { at: begin + event.at, ..*event });
            all.extend(these.filter(|event| event.at < end));
            let Some(every) = self.every.filter(|every| !every.is_zero()) else { break };
            begin += every;
        }
        all.sort_by_key(|event| event.at);
        all
    }

    /// Bits per second that get through towards the viewer at `at`; none where nothing limits them.
    pub fn capacity_at(&self, at: Duration) -> Option<u64> {
        let mut capacity = self.down.rate_bps;
        for event in self.events_until(at + Duration::from_nanos(1)) {
            match event.kind {
                EventKind::DownRate(rate) => capacity = Some(rate),
                EventKind::Outage(span) | EventKind::Stall(span) if event.at + span > at => return Some(0),
                _ => {}
            }
        }
        capacity
    }

    /// Every profile that has a name, from the best to the worst of its kind.
    pub fn all() -> Vec<Self> {
        let wifi = |rtt, jitter, tenths| direction(rtt, tenths).with_jitter_millis(jitter);
        let lte = |tenths, jitter| direction(90, tenths).with_jitter_millis(jitter);
        let queue = |millis| QueueLimit::Time(ms(millis));
        vec![
            Self::perfect(),
            Self::new("lan", "a wired network of a gigabit", OURS, direction(1, 10_000), direction(1, 10_000)),
            Self::new("wifi-good", "Wi-Fi in the same room", OURS, wifi(4, 3, 1_000), wifi(4, 3, 1_000)),
            Self::new(
                "wifi-bad",
                "Wi-Fi two walls away beside a microwave oven",
                OURS,
                wifi(10, 25, 60).with_bursts(GilbertElliott::lossy(0.03, 4.0)),
                wifi(10, 25, 30).with_bursts(GilbertElliott::lossy(0.03, 4.0)),
            ),
            Self::new("fibre", "fibre to the home (FIOS)", WEB_PAGE_TEST, direction(4, 200), direction(4, 50)),
            Self::new("cable", "cable television's network", WEB_PAGE_TEST, direction(28, 50), direction(28, 10)),
            Self::new("dsl", "an old telephone line", WEB_PAGE_TEST, direction(50, 15), direction(50, 4)),
            Self::new("lte", "4G (LTE)", WEB_PAGE_TEST, direction(70, 120), direction(70, 120)),
            Self::new(
                "lte-good",
                "4G with good reception",
                LOADERO,
                direction(90, 1_000).with_jitter_millis(5).with_loss(0.002),
                direction(90, 500).with_jitter_millis(15).with_loss(0.002),
            ),
            Self::new(
                "lte-weak",
                "4G with poor reception",
                "our limits for such a network: 8 Mbit/s, 90 ms, 15 ms of jitter, 2 % lost in bursts of eight; up and queue ours",
                lte(80, 15).with_bursts(GilbertElliott::lossy(0.02, 8.0)).with_queue(queue(400)),
                lte(20, 15).with_loss(0.002).with_queue(queue(400)),
            ),
            Self::new("3g-fast", "good 3G, poor 4G", WEB_PAGE_TEST, direction(150, 16), direction(150, 8)),
            Self::new("3g", "3G", WEB_PAGE_TEST, direction(300, 16), direction(300, 8)),
            Self::new(
                "train",
                "4G beside a track: cells change every half minute, a tunnel of four seconds every two minutes",
                OURS,
                lte(60, 30).with_bursts(GilbertElliott::lossy(0.01, 6.0)).with_queue(queue(800)),
                lte(20, 30).with_loss(0.005).with_queue(queue(800)),
            )
            .with_event(secs(20), EventKind::Stall(ms(300)))
            .with_event(secs(21), EventKind::DownRate(mbit(25)))
            .with_event(secs(50), EventKind::Stall(ms(500)))
            .with_event(secs(51), EventKind::DownRate(mbit(60)))
            .with_event(secs(80), EventKind::Outage(secs(4)))
            .with_event(secs(84), EventKind::DownRate(mbit(15)))
            .with_event(secs(100), EventKind::DownRate(mbit(60)))
            .with_period(secs(120)),
            Self::new(
                "satellite-leo",
                "satellites nearby, another one every 15 s",
                "the intervals of 15 s of published Starlink measurements (for instance arXiv:2310.09242); the rest ours",
                direction(50, 500).with_jitter_millis(8).with_bursts(GilbertElliott::lossy(0.005, 5.0)),
                direction(50, 80).with_jitter_millis(8).with_bursts(GilbertElliott::lossy(0.005, 5.0)),
            )
            .with_event(secs(12), EventKind::Stall(ms(120)))
            .with_period(secs(15)),
            Self::new(
                "satellite-geo",
                "a satellite that stands still",
                "twice up to 35 786 km and down again; rates ours",
                direction(600, 100).with_jitter_millis(5).with_queue(queue(500)),
                direction(600, 20).with_jitter_millis(5).with_queue(queue(500)),
            ),
            Self::new(
                "step",
                "3, 0.8 and 3 Mbit/s again behind a queue of 300 ms",
                "our limits for a change of capacity",
                direction(40, 30).with_queue(queue(300)),
                direction(40, 100),
            )
            .with_event(secs(20), EventKind::DownRate(mbit(8)))
            .with_event(secs(50), EventKind::DownRate(mbit(30))),
            Self::rmcat("rfc8867-5.1", "variable capacity, one flow: 1, 2.5, 0.6 and 1 Mbit/s", 10)
                .with_event(secs(40), EventKind::DownRate(mbit(25)))
                .with_event(secs(60), EventKind::DownRate(mbit(6)))
                .with_event(secs(80), EventKind::DownRate(mbit(10))),
            Self::rmcat("rfc8867-5.2", "variable capacity, several flows: 4, 2, 3.5, 1 and 2 Mbit/s", 40)
                .with_event(secs(25), EventKind::DownRate(mbit(20)))
                .with_event(secs(50), EventKind::DownRate(mbit(35)))
                .with_event(secs(75), EventKind::DownRate(mbit(10)))
                .with_event(secs(100), EventKind::DownRate(mbit(20))),
            Self::rmcat("rfc8867-5.3", "a congested way back: 2, 1, 0.5 and 2 Mbit/s, back 2, 0.8 and 2", 20)
                .with_up_rate(mbit(20))
                .with_event(secs(20), EventKind::DownRate(mbit(10)))
                .with_event(secs(35), EventKind::UpRate(mbit(8)))
                .with_event(secs(40), EventKind::DownRate(mbit(5)))
                .with_event(secs(60), EventKind::DownRate(mbit(20)))
                .with_event(secs(70), EventKind::UpRate(mbit(20))),
            Self::rmcat("rfc8867-5.6", "2 Mbit/s, for a flow beside a long TCP transfer", 20).with_up_rate(mbit(20)),
        ]
    }

    /// RFC 8867 §4: 50 ms each way, up to 30 ms of jitter, a drop-tail queue of 300 ms, no loss.
    fn rmcat(name: &str, what: &str, tenths: u64) -> Self {
        let path = LinkConfig::default()
            .with_delay_millis(50)
            .with_jitter_millis(30)
            .with_jitter_shape(Jitter::Normal)
            .with_queue(QueueLimit::Time(ms(300)));
        Self::new(name, what, "RFC 8867 §4 and §5", path.clone().with_rate_bps(mbit(tenths)), path)
    }

    fn with_up_rate(mut self, bps: u64) -> Self {
        self.up = self.up.with_rate_bps(bps);
        self
    }

    fn with_period(mut self, every: Duration) -> Self {
        self.every = Some(every);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        let all = Profile::all();
        for profile in &all {
            assert_eq!(Profile::named(&profile.name).as_ref(), Some(profile));
            assert_eq!(all.iter().filter(|other| other.name == profile.name).count(), 1, "{}", profile.name);
            assert!(profile.events.is_sorted_by_key(|event| event.at), "{}", profile.name);
            let last = profile.events.last().map_or(Duration::ZERO, |event| event.at + event.kind.lasts());
            assert!(profile.every.is_none_or(|every| last < every), "{}: an event outlasts its period", profile.name);
        }
        assert_eq!(Profile::named("nothing of that kind"), None);
    }

    #[test]
    fn events_repeat_and_the_capacity_follows_them() {
        let train = Profile::named("train").expect("it is in the table");
        let at = |seconds| train.capacity_at(secs(seconds));
        assert_eq!([at(0), at(21), at(51), at(82), at(84), at(119)], [60, 25, 60, 0, 15, 60].map(|t| Some(mbit(t))));
        assert_eq!([at(120), at(141), at(202)], [60, 25, 0].map(|t| Some(mbit(t))));
        assert_eq!(train.events_until(secs(240)).len(), 2 * train.events.len());
        assert_eq!(Profile::perfect().capacity_at(secs(1)), None);
    }
}
