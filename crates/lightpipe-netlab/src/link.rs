//! One direction of a network, in virtual time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use fastrand::Rng;

/// How one direction of a network treats packets. The default is perfect: no delay, no loss, no limit.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LinkConfig {
    /// Time in flight of every packet.
    pub delay: Duration,
    /// Added to the delay: between nothing and this, without changing the order.
    pub jitter: Duration,
    /// How the jitter is distributed.
    pub jitter_shape: Jitter,
    /// Probability that a packet is lost, each for itself.
    pub loss: f64,
    /// Losses that come in bursts, beside `loss`.
    pub bursts: Option<GilbertElliott>,
    /// Probability that a packet arrives twice.
    pub duplicate: f64,
    /// Probability that a packet is held back by `reorder_by`, so that later ones overtake it.
    pub reorder: f64,
    /// How long a reordered packet is held back.
    pub reorder_by: Duration,
    /// Bits per second of the narrowest place, none for a link without one.
    pub rate_bps: Option<u64>,
    /// What may wait before the narrowest place; what does not fit is dropped (drop-tail).
    pub queue: QueueLimit,
}

/// How often a packet gets how much of a link's jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jitter {
    /// Any share as often as any other.
    Uniform,
    /// Normal around the half, cut off at three standard deviations: the bounded delay variation of RFC 8868.
    Normal,
}

/// Room before the narrowest place of a link; only counts where `rate_bps` is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueLimit {
    /// Bytes that wait, the packet in transmission included.
    Bytes(usize),
    /// Time that a new packet would wait before its own transmission begins.
    Time(Duration),
}

/// Losses in bursts: a link that is good or bad, and changes its state with each packet (Gilbert 1960, Elliott 1963).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GilbertElliott {
    /// Probability that a good link is bad for the next packet.
    pub good_to_bad: f64,
    /// Probability that a bad link is good for the next packet; its inverse is the mean length of a burst.
    pub bad_to_good: f64,
    /// Probability of loss while good.
    pub loss_good: f64,
    /// Probability of loss while bad.
    pub loss_bad: f64,
}

impl GilbertElliott {
    /// Loses `share` of the packets in bursts of `length` on average, and none between them (Gilbert's model).
    #[must_use]
    pub fn lossy(share: f64, length: f64) -> Self {
        let bad_to_good = 1.0 / length.max(1.0);
        let good_to_bad = bad_to_good * share / (1.0 - share).max(f64::EPSILON);
        Self { good_to_bad, bad_to_good, loss_good: 0.0, loss_bad: 1.0 }
    }
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            jitter_shape: Jitter::Uniform,
            loss: 0.0,
            bursts: None,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(5),
            rate_bps: None,
            // A home router's buffer: more than a good one has, less than the worst.
            queue: QueueLimit::Time(Duration::from_millis(200)),
        }
    }
}

impl LinkConfig {
    /// Sets [`delay`](Self::delay), in milliseconds.
    #[must_use]
    pub fn with_delay_millis(mut self, millis: u64) -> Self {
        self.delay = Duration::from_millis(millis);
        self
    }

    /// Sets [`jitter`](Self::jitter), in milliseconds.
    #[must_use]
    pub fn with_jitter_millis(mut self, millis: u64) -> Self {
        self.jitter = Duration::from_millis(millis);
        self
    }

    /// Sets [`jitter_shape`](Self::jitter_shape).
    #[must_use]
    pub fn with_jitter_shape(mut self, shape: Jitter) -> Self {
        self.jitter_shape = shape;
        self
    }

    /// Sets [`loss`](Self::loss).
    #[must_use]
    pub fn with_loss(mut self, probability: f64) -> Self {
        self.loss = probability;
        self
    }

    /// Sets [`bursts`](Self::bursts).
    #[must_use]
    pub fn with_bursts(mut self, bursts: GilbertElliott) -> Self {
        self.bursts = Some(bursts);
        self
    }

    /// Sets [`duplicate`](Self::duplicate).
    #[must_use]
    pub fn with_duplicate(mut self, probability: f64) -> Self {
        self.duplicate = probability;
        self
    }

    /// Sets [`reorder`](Self::reorder) and [`reorder_by`](Self::reorder_by).
    #[must_use]
    pub fn with_reorder(mut self, probability: f64, by: Duration) -> Self {
        self.reorder = probability;
        self.reorder_by = by;
        self
    }

    /// Sets [`rate_bps`](Self::rate_bps).
    #[must_use]
    pub fn with_rate_bps(mut self, bits_per_second: u64) -> Self {
        self.rate_bps = Some(bits_per_second);
        self
    }

    /// Sets [`queue`](Self::queue).
    #[must_use]
    pub fn with_queue(mut self, limit: QueueLimit) -> Self {
        self.queue = limit;
        self
    }
}

/// Something that travels over a [`Link`].
pub trait Packet: Sized {
    /// Bytes on the wire, for the rate and the queue.
    fn wire_len(&self) -> usize;
    /// A second one like it; `None` for packets that cannot be copied, which are then never duplicated.
    fn duplicate(&self) -> Option<Self>;
}

impl Packet for Vec<u8> {
    fn wire_len(&self) -> usize {
        self.len()
    }

    fn duplicate(&self) -> Option<Self> {
        Some(self.clone())
    }
}

/// What happened on a link so far. Every packet sent is lost, overflowed, delivered or still in flight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Packets given to [`Link::send`].
    pub sent: u64,
    /// Packets that came out of [`Link::poll`], duplicates included.
    pub delivered: u64,
    /// Bytes that came out of [`Link::poll`].
    pub delivered_bytes: u64,
    /// Packets lost at random or in a burst.
    pub lost: u64,
    /// Packets dropped because the queue before the narrowest place was full.
    pub overflowed: u64,
    /// Extra packets made by duplication.
    pub duplicated: u64,
    /// Packets held back so that others overtake them.
    pub reordered: u64,
}

/// One direction of a network. Sans-IO: packets and the time go in, packets come out when their time has come.
///
/// Call [`send`](Self::send) with a `now` that never goes back, and [`poll`](Self::poll) until it answers `None`;
/// [`next_at`](Self::next_at) tells when to come back. The same seed and calls give the same packets at the same times.
#[derive(Debug)]
pub struct Link<P: Packet = Vec<u8>> {
    config: LinkConfig,
    rng: Rng,
    bad: bool,
    /// When the narrowest place has sent all that it holds.
    busy_until: Option<Instant>,
    /// End of transmission and size of what waits before the narrowest place or is being sent.
    waiting: VecDeque<(Instant, usize)>,
    waiting_bytes: usize,
    /// Latest arrival of a packet that kept its place.
    last_arrival: Option<Instant>,
    in_flight: BinaryHeap<Reverse<InFlight<P>>>,
    sequence: u64,
    counters: Counters,
}

impl<P: Packet> Link<P> {
    /// A link with its own source of randomness.
    #[must_use]
    pub fn new(seed: u64, config: LinkConfig) -> Self {
        Self {
            config,
            rng: Rng::with_seed(seed),
            bad: false,
            busy_until: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            last_arrival: None,
            in_flight: BinaryHeap::new(),
            sequence: 0,
            counters: Counters::default(),
        }
    }

    /// Sends a packet. A packet that the link loses comes back at once; for most callers there is nothing to do with it.
    pub fn send(&mut self, now: Instant, packet: P) -> Option<P> {
        self.counters.sent += 1;
        let Some(departure) = self.transmit(now, packet.wire_len()) else {
            self.counters.overflowed += 1;
            return Some(packet);
        };
        // Lost after the narrowest place, as on a radio link: the packet has used up its share of the rate.
        if self.loses() {
            self.counters.lost += 1;
            return Some(packet);
        }
        let arrival = self.arrival(departure);
        if self.chance(self.config.duplicate)
            && let Some(copy) = packet.duplicate()
        {
            self.counters.duplicated += 1;
            self.launch(departure, arrival, copy);
        }
        self.launch(departure, arrival, packet);
        None
    }

    /// The next packet that has arrived by `now`, in order of arrival.
    pub fn poll(&mut self, now: Instant) -> Option<P> {
        if self.next_at()? > now {
            return None;
        }
        let Reverse(InFlight { packet, .. }) = self.in_flight.pop()?;
        self.counters.delivered += 1;
        self.counters.delivered_bytes += packet.wire_len() as u64;
        Some(packet)
    }

    /// When the next packet arrives; `None` when nothing is in flight.
    #[must_use]
    pub fn next_at(&self) -> Option<Instant> {
        self.in_flight.peek().map(|Reverse(next)| next.arrival)
    }

    /// Changes the network under way: a drop in bandwidth, a tunnel. What has passed the narrowest place arrives as planned, what
    /// waits before it goes at the new rate.
    pub fn reconfigure(&mut self, now: Instant, config: LinkConfig) {
        let before = std::mem::replace(&mut self.config, config).rate_bps;
        if let Some(before) = before.filter(|_| self.config.rate_bps != before) {
            self.hurry_or_delay(now, before);
        }
    }

    /// How long a packet that is sent now would wait before its own transmission begins.
    #[must_use]
    pub fn backlog(&self, now: Instant) -> Duration {
        self.busy_until.map_or(Duration::ZERO, |busy| busy.saturating_duration_since(now))
    }

    /// How it treats packets now.
    #[must_use]
    pub fn config(&self) -> &LinkConfig {
        &self.config
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// End of the packet's transmission, `None` when the queue has no room for it.
    fn transmit(&mut self, now: Instant, len: usize) -> Option<Instant> {
        let Some(rate_bps) = self.config.rate_bps else { return Some(now) };
        self.forget_sent(now);
        let start = self.busy_until.map_or(now, |busy| busy.max(now));
        let full = match self.config.queue {
            QueueLimit::Bytes(limit) => self.waiting_bytes + len > limit,
            QueueLimit::Time(limit) => start - now > limit,
        };
        if full {
            return None;
        }
        let end = start + time_of(len as u64 * 8, rate_bps);
        self.busy_until = Some(end);
        self.waiting.push_back((end, len));
        self.waiting_bytes += len;
        Some(end)
    }

    fn forget_sent(&mut self, now: Instant) {
        while let Some((_, len)) = self.waiting.front().copied().filter(|(sent, _)| *sent <= now) {
            self.waiting.pop_front();
            self.waiting_bytes -= len;
        }
    }

    /// The narrowest place has another rate from `now` on: everything before it leaves sooner or later than planned.
    fn hurry_or_delay(&mut self, now: Instant, rate_before: u64) {
        self.forget_sent(now);
        let mut free = now;
        let mut moved = Vec::with_capacity(self.waiting.len());
        for (departure, len) in &mut self.waiting {
            let whole = *len as u64 * 8;
            // The first is partly out already.
            let rest = ((*departure - now).as_secs_f64() * rate_before as f64) as u64;
            let bits = if moved.is_empty() { rest.min(whole) } else { whole };
            free += self.config.rate_bps.map_or(Duration::ZERO, |rate| time_of(bits, rate));
            moved.push((*departure, free));
            *departure = free;
        }
        self.busy_until = Some(free);
        let mut flying: Vec<_> =
            std::mem::take(&mut self.in_flight).into_iter().map(|Reverse(flying)| flying).collect();
        flying.sort_by_key(|flying| flying.sequence);
        let mut last = None;
        for mut flying in flying {
            if let Ok(at) = moved.binary_search_by_key(&flying.departure, |(planned, _)| *planned) {
                let rest = flying.arrival - flying.departure;
                flying.departure = moved[at].1;
                let arrival = flying.departure + rest;
                flying.arrival = last.map_or(arrival, |last: Instant| last.max(arrival));
            }
            last = last.max(Some(flying.arrival));
            self.in_flight.push(Reverse(flying));
        }
        self.last_arrival = last;
    }

    fn loses(&mut self) -> bool {
        let burst = self.config.bursts.is_some_and(|bursts| {
            let change = if self.bad { bursts.bad_to_good } else { bursts.good_to_bad };
            self.bad ^= self.chance(change);
            self.chance(if self.bad { bursts.loss_bad } else { bursts.loss_good })
        });
        // Drawn in any case, so that two configurations that differ in one value differ in as little as possible.
        self.chance(self.config.loss) || burst
    }

    fn arrival(&mut self, departure: Instant) -> Instant {
        let share = match self.config.jitter_shape {
            Jitter::Uniform => self.rng.f64(),
            Jitter::Normal => {
                // A sum of twelve is normal enough, with a standard deviation of one.
                let normal = (0..12).map(|_| self.rng.f64()).sum::<f64>() - 6.0;
                0.5 + normal.clamp(-3.0, 3.0) / 6.0
            }
        };
        let jitter = self.config.jitter.mul_f64(share);
        let planned = departure + self.config.delay + jitter;
        let in_order = self.last_arrival.map_or(planned, |last| last.max(planned));
        if self.chance(self.config.reorder) {
            self.counters.reordered += 1;
            return in_order + self.config.reorder_by;
        }
        self.last_arrival = Some(in_order);
        in_order
    }

    fn launch(&mut self, departure: Instant, arrival: Instant, packet: P) {
        self.sequence += 1;
        self.in_flight.push(Reverse(InFlight { departure, arrival, sequence: self.sequence, packet }));
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.rng.f64() < probability
    }
}

fn time_of(bits: u64, rate_bps: u64) -> Duration {
    let nanos = u128::from(bits) * 1_000_000_000 / u128::from(rate_bps.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Ordered by arrival; packets that arrive together keep the order in which they were sent.
#[derive(Debug)]
struct InFlight<P> {
    /// When it has passed the narrowest place.
    departure: Instant,
    arrival: Instant,
    sequence: u64,
    packet: P,
}

impl<P> InFlight<P> {
    fn key(&self) -> (Instant, u64) {
        (self.arrival, self.sequence)
    }
}

impl<P> PartialEq for InFlight<P> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<P> Eq for InFlight<P> {}

impl<P> PartialOrd for InFlight<P> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> Ord for InFlight<P> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends numbered packets of that size at a steady interval; answers arrival times since the start and numbers.
    fn run(seed: u64, config: LinkConfig, count: u32, len: usize, every: Duration) -> (Vec<(Duration, u32)>, Counters) {
        let start = Instant::now();
        let mut link = Link::new(seed, config);
        let mut arrived = Vec::new();
        let mut drain = |link: &mut Link, until: Instant| {
            while let Some(at) = link.next_at().filter(|at| *at <= until) {
                let packet: Vec<u8> = link.poll(at).expect("its time has come");
                let number = u32::from_be_bytes(packet[..4].try_into().expect("four bytes"));
                arrived.push((at - start, number));
            }
        };
        for number in 0..count {
            let now = start + every * number;
            drain(&mut link, now);
            let mut packet = number.to_be_bytes().to_vec();
            packet.resize(len, 0);
            _ = link.send(now, packet);
        }
        drain(&mut link, start + Duration::from_secs(3_600));
        let counters = link.counters();
        (arrived, counters)
    }

    const MS: Duration = Duration::from_millis(1);

    fn bad() -> LinkConfig {
        LinkConfig::default()
            .with_delay_millis(30)
            .with_jitter_millis(15)
            .with_loss(0.02)
            .with_bursts(GilbertElliott { good_to_bad: 0.01, bad_to_good: 0.3, loss_good: 0.0, loss_bad: 0.8 })
            .with_duplicate(0.01)
            .with_reorder(0.02, 8 * MS)
            .with_rate_bps(8_000_000)
    }

    #[test]
    fn a_seed_gives_the_same_run_and_another_seed_another() {
        let first = run(7, bad(), 5_000, 900, MS);
        assert_eq!(first, run(7, bad(), 5_000, 900, MS));
        assert_ne!(first.0, run(8, bad(), 5_000, 900, MS).0);
    }

    #[test]
    fn every_packet_is_accounted_for() {
        let (arrived, counters) = run(3, bad(), 5_000, 900, MS);
        assert_eq!(arrived.len() as u64, counters.delivered);
        assert_eq!(counters.delivered_bytes, counters.delivered * 900);
        let came_out = counters.delivered - counters.duplicated;
        assert_eq!(counters.sent, came_out + counters.lost + counters.overflowed);
        assert!(counters.lost > 0 && counters.duplicated > 0 && counters.reordered > 0, "{counters:?}");
    }

    #[test]
    fn a_perfect_link_delivers_at_once_and_all() {
        let (arrived, _) = run(1, LinkConfig::default(), 100, 1_200, MS);
        assert_eq!(arrived, (0..100).map(|n| (MS * n, n)).collect::<Vec<_>>());
    }

    #[test]
    fn loss_is_as_frequent_as_asked() {
        #[track_caller]
        fn check(config: LinkConfig, expected: f64) {
            let (_, counters) = run(11, config, 50_000, 100, MS);
            let share = counters.lost as f64 / counters.sent as f64;
            assert!((share - expected).abs() < expected * 0.1, "{share} lost, {expected} asked");
        }
        check(LinkConfig::default().with_loss(0.02), 0.02);
        check(LinkConfig::default().with_loss(0.5), 0.5);
        // A tenth of the packets meets the bad state, (1/9)/(1/9+1), and half of those are lost.
        let bursts = GilbertElliott { good_to_bad: 0.1 / 9.0, bad_to_good: 0.1, loss_good: 0.0, loss_bad: 0.5 };
        check(LinkConfig::default().with_bursts(bursts), 0.05);
    }

    #[test]
    fn bursts_lose_neighbours() {
        let bursts = GilbertElliott { good_to_bad: 0.005, bad_to_good: 0.2, loss_good: 0.0, loss_bad: 1.0 };
        let (arrived, counters) = run(5, LinkConfig::default().with_bursts(bursts), 50_000, 100, MS);
        let gaps = arrived.windows(2).filter(|pair| pair[1].1 - pair[0].1 > 1).count();
        let mean = counters.lost as f64 / gaps as f64;
        assert!((4.0..6.0).contains(&mean), "mean burst of {mean} packets, five asked");
    }

    #[test]
    fn jitter_keeps_the_order_and_its_bounds() {
        let config = LinkConfig::default().with_delay_millis(20).with_jitter_millis(10);
        let (arrived, _) = run(2, config, 5_000, 100, MS);
        assert!(arrived.is_sorted(), "packets overtook each other");
        let flights = arrived.iter().map(|(at, n)| *at - MS * *n);
        let (least, most) = flights.fold((Duration::MAX, Duration::ZERO), |(a, b), f| (a.min(f), b.max(f)));
        assert!(least >= 20 * MS && most <= 30 * MS && most > 29 * MS, "{least:?}..{most:?}");
        let numbers = arrived.iter().map(|(_, n)| *n);
        assert!(numbers.eq(0..5_000));
    }

    #[test]
    fn a_reordered_packet_is_overtaken_and_not_lost() {
        let config = LinkConfig::default().with_reorder(0.05, 3 * MS);
        let (arrived, counters) = run(2, config, 1_000, 100, MS);
        assert_eq!(arrived.len(), 1_000);
        let overtaken = arrived.windows(2).filter(|pair| pair[1].1 < pair[0].1).count();
        assert!(overtaken > 20 && counters.reordered > 30, "{overtaken} of {counters:?}");
    }

    #[test]
    fn the_rate_limits_and_the_full_queue_drops() {
        // 1 200 bytes each millisecond are 9.6 Mbit/s into a link of 2.4: one in four comes through.
        let limit = 100 * MS;
        let config = LinkConfig::default().with_rate_bps(2_400_000).with_queue(QueueLimit::Time(limit));
        let (arrived, counters) = run(1, config, 10_000, 1_200, MS);
        let took = arrived.last().expect("something came through").0;
        let rate = counters.delivered_bytes as f64 * 8.0 / took.as_secs_f64();
        assert!((2_390_000.0..=2_410_000.0).contains(&rate), "{rate} bit/s");
        let longest = arrived.iter().map(|(at, n)| *at - MS * *n).max().expect("not empty");
        assert!(longest <= limit + 4 * MS && longest >= limit, "waited {longest:?}");
        assert_eq!(counters.overflowed, counters.sent - counters.delivered);
    }

    #[test]
    fn a_queue_in_bytes_holds_that_many() {
        let start = Instant::now();
        let config = LinkConfig::default().with_rate_bps(8_000_000).with_queue(QueueLimit::Bytes(3_000));
        let mut link = Link::new(1, config);
        let lost = (0..10).filter(|_| link.send(start, vec![0; 1_000]).is_some()).count();
        assert_eq!(lost, 7);
        assert_eq!(link.next_at(), Some(start + MS), "a thousand bytes take a millisecond");
        assert!(link.send(start + MS, vec![0; 1_000]).is_none(), "one has left, so one fits");
    }

    #[test]
    fn a_tunnel_begins_and_ends() {
        let start = Instant::now();
        let mut link = Link::new(1, LinkConfig::default());
        assert!(link.send(start, vec![1]).is_none());
        link.reconfigure(start, LinkConfig::default().with_loss(1.0));
        assert!(link.send(start, vec![2]).is_some());
        link.reconfigure(start, LinkConfig::default());
        assert!(link.send(start, vec![3]).is_none());
        assert_eq!((link.poll(start), link.poll(start), link.poll(start)), (Some(vec![1]), Some(vec![3]), None));
    }

    #[test]
    fn what_waits_goes_at_the_new_rate() {
        // Ten packets of a millisecond each wait; after two and a half the rate falls to a tenth, later it is as before.
        let start = Instant::now();
        let at = |rate_bps| LinkConfig::default().with_delay_millis(5).with_rate_bps(rate_bps);
        let mut link = Link::new(1, at(8_000_000));
        for number in 0..10 {
            assert!(link.send(start, vec![number; 1_000]).is_none());
        }
        assert_eq!(link.backlog(start), 10 * MS);
        link.reconfigure(start + MS * 5 / 2, at(800_000));
        assert_eq!(link.backlog(start + MS * 5 / 2), 75 * MS);
        link.reconfigure(start + MS * 35 / 2, at(8_000_000));
        let mut arrived = Vec::new();
        while let Some(next) = link.next_at() {
            arrived.push((link.poll(next).expect("its time has come")[0], next - start));
        }
        let micros = |n| Duration::from_micros(n);
        let slow = [(0, 6 * MS), (1, 7 * MS), (2, micros(12_500))];
        let fast = (3..10).map(|n| (n, micros(22_500) + MS * u32::from(n - 3)));
        assert_eq!(arrived, slow.into_iter().chain(fast).collect::<Vec<_>>());
    }

    #[test]
    fn normal_jitter_is_mostly_in_the_middle() {
        let config = LinkConfig::default().with_jitter_millis(30).with_jitter_shape(Jitter::Normal);
        let (arrived, _) = run(2, config, 5_000, 100, 50 * MS);
        let flights: Vec<Duration> = arrived.iter().map(|(at, n)| *at - 50 * MS * *n).collect();
        let middle = flights.iter().filter(|flight| (10 * MS..20 * MS).contains(*flight)).count();
        assert!((3_200..3_600).contains(&middle), "{middle} of 5000 within one standard deviation");
        assert!(flights.iter().all(|flight| *flight <= 30 * MS));
    }

    #[test]
    fn bursts_of_a_length_lose_the_share_that_was_asked() {
        let (_, counters) =
            run(4, LinkConfig::default().with_bursts(GilbertElliott::lossy(0.02, 8.0)), 50_000, 100, MS);
        let share = counters.lost as f64 / counters.sent as f64;
        assert!((0.017..0.023).contains(&share), "{share}");
    }
}
