//! DTLS for far ends of either kind of certificate.
//!
//! The engine's own DTLS knows ECDSA only. Peers that bring RSA (GStreamer makes nothing else) get theirs from AWS-LC's libssl, in
//! [`libssl`]; what has not to do with DTLS stays the engine's. Which kind a peer has is known only in the middle of the
//! handshake, so that everybody's is made here.

mod libssl;

use std::collections::VecDeque;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use str0m::crypto::dtls::{
    DtlsCert, DtlsImplError, DtlsInstance, DtlsOutput, DtlsProvider, DtlsVersion, KeyingMaterial, ProtocolVersion,
    SrtpProfile,
};
use str0m::crypto::{CryptoError, CryptoProvider};
use tracing::debug;

use libssl::{Context, Failure, Read, Session};

/// Longest datagram of a handshake when the engine names none; its own default.
const DEFAULT_MTU: usize = 1150;

/// When there is nothing to wait for.
const IDLE: Duration = Duration::from_secs(24 * 3600);

/// The engine's cryptography, with this DTLS.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || Arc::new(CryptoProvider { dtls_provider: &Provider, ..str0m::crypto::from_feature_flags() });
    Arc::clone(PROVIDER.get_or_init(make))
}

#[derive(Debug)]
struct Provider;

impl DtlsProvider for Provider {
    fn generate_certificate(&self) -> Option<DtlsCert> {
        str0m::crypto::from_feature_flags().dtls_provider.generate_certificate()
    }

    fn new_dtls(
        &self,
        cert: &DtlsCert,
        now: Instant,
        _: DtlsVersion,
        mtu: Option<usize>,
    ) -> Result<Box<dyn DtlsInstance>, CryptoError> {
        let failed = |failure: Failure| CryptoError::Other(failure.to_string());
        // Making it takes a tenth of our part of a handshake, so nothing is kept.
        let context = Context::new(&cert.certificate, &cert.private_key).map_err(failed)?;
        let session = Session::new(&context, mtu.unwrap_or(DEFAULT_MTU)).map_err(failed)?;
        Ok(Box::new(Association::new(session, now)))
    }
}

/// Something to tell the engine.
#[derive(Debug)]
enum Event {
    PeerCertificate(Vec<u8>),
    Connected,
    SrtpKeys(Vec<u8>, SrtpProfile),
    Data(Vec<u8>),
    CloseNotify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody said yet which end begins.
    WithoutRole,
    Handshaking,
    Established,
    /// We said that nothing will come any more.
    Closed,
    /// The far end broke the protocol, or never answered.
    Failed,
}

/// One session's DTLS, as the engine drives it.
#[derive(Debug)]
struct Association {
    session: Session,
    state: State,
    client: bool,
    /// To tell the engine, which asks after every datagram: no more than one makes.
    events: VecDeque<Event>,
    /// The last time that the engine told.
    now: Instant,
    /// The same on the library's clock, which stands still while we do not know the time.
    clock: Duration,
    /// A datagram came after [`Self::now`], and may have started a timer.
    behind: bool,
}

impl UnwindSafe for Association {}
impl RefUnwindSafe for Association {}

impl Association {
    fn new(session: Session, now: Instant) -> Self {
        let (state, clock) = (State::WithoutRole, Duration::ZERO);
        Self { session, state, client: false, events: VecDeque::new(), now, clock, behind: false }
    }

    /// Goes on with what came.
    fn advance(&mut self) -> Result<(), DtlsImplError> {
        let result = self.try_advance();
        result.map_err(|failure| {
            debug!(%failure, "DTLS failed");
            self.state = State::Failed;
            DtlsImplError::ConnectionClosed
        })
    }

    fn try_advance(&mut self) -> Result<(), Failure> {
        if self.state == State::Handshaking && self.session.handshake(self.clock)? {
            self.established()?;
        }
        if self.state != State::Established {
            return Ok(());
        }
        let mut data = [0; libssl::MAX_RECORD_LEN];
        loop {
            match self.session.read(self.clock, &mut data)? {
                Read::Data(len) => self.events.push_back(Event::Data(data[..len].to_vec())),
                Read::Nothing => return Ok(()),
                Read::Closed => {
                    self.events.push_back(Event::CloseNotify);
                    return Ok(());
                }
            }
        }
    }

    fn established(&mut self) -> Result<(), Failure> {
        self.state = State::Established;
        // First: the engine ends the session here when the fingerprint is not the one of the description.
        self.events.extend(self.session.peer_certificate().map(Event::PeerCertificate));
        self.events.push_back(Event::Connected);
        let profile = match self.session.srtp_profile() {
            Some(0x0001) => SrtpProfile::AES128_CM_SHA1_80,
            Some(0x0007) => SrtpProfile::AEAD_AES_128_GCM,
            Some(0x0008) => SrtpProfile::AEAD_AES_256_GCM,
            _ => return Ok(()),
        };
        let mut keys = vec![0; profile.keying_material_len()];
        self.session.export_srtp_keys(&mut keys)?;
        self.events.push_back(Event::SrtpKeys(keys, profile));
        Ok(())
    }
}

impl DtlsInstance for Association {
    fn set_active(&mut self, active: bool) {
        if self.state == State::WithoutRole {
            self.client = active;
            self.session.set_client(active);
            self.state = State::Handshaking;
        }
    }

    fn handle_packet(&mut self, packet: &[u8]) -> Result<(), DtlsImplError> {
        // An empty one is the engine's way to make a client begin.
        if !packet.is_empty() {
            self.session.put_datagram(packet);
        }
        match self.state {
            State::Handshaking => self.behind = true,
            State::Established => {}
            State::WithoutRole | State::Closed | State::Failed => return Ok(()),
        }
        self.advance()
    }

    fn poll_output<'a>(&mut self, buf: &'a mut [u8]) -> DtlsOutput<'a> {
        fn fill<'a>(buf: &'a mut [u8], from: &[u8]) -> &'a [u8] {
            let filled = &mut buf[..from.len()];
            filled.copy_from_slice(from);
            filled
        }
        if let Some(Event::PeerCertificate(bytes) | Event::Data(bytes)) = self.events.front()
            && bytes.len() > buf.len()
        {
            return DtlsOutput::BufferTooSmall { needed: bytes.len() };
        }
        // Before what happened: the handshake's last flight leaves ahead of media that is sealed with its keys.
        if let Some(len) = self.session.datagram_len() {
            if len > buf.len() {
                return DtlsOutput::BufferTooSmall { needed: len };
            }
            let datagram = self.session.take_datagram().unwrap_or_default();
            return DtlsOutput::Packet(fill(buf, &datagram));
        }
        match self.events.pop_front() {
            Some(Event::PeerCertificate(bytes)) => DtlsOutput::PeerCert(fill(buf, &bytes)),
            Some(Event::Connected) => DtlsOutput::Connected,
            Some(Event::SrtpKeys(keys, profile)) => DtlsOutput::KeyingMaterial(KeyingMaterial::new(&keys), profile),
            Some(Event::Data(bytes)) => DtlsOutput::ApplicationData(fill(buf, &bytes)),
            Some(Event::CloseNotify) => DtlsOutput::CloseNotify,
            None if self.behind => DtlsOutput::Timeout(self.now),
            None => DtlsOutput::Timeout(self.now + self.session.timeout(self.clock).unwrap_or(IDLE)),
        }
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsImplError> {
        let passed = now.saturating_duration_since(self.now);
        self.now = self.now.max(now);
        // Timers that a datagram started run from when it came, which is about now.
        if !std::mem::take(&mut self.behind) {
            self.clock += passed;
        }
        if self.state != State::Handshaking {
            return Ok(());
        }
        if let Err(failure) = self.session.handle_timeout(self.clock) {
            debug!(%failure, "DTLS failed");
            self.state = State::Failed;
            return Err(DtlsImplError::ConnectionClosed);
        }
        self.advance()
    }

    fn send_application_data(&mut self, data: &[u8]) -> Result<usize, DtlsImplError> {
        match self.state {
            State::WithoutRole | State::Handshaking => return Ok(0),
            State::Established => {}
            State::Closed | State::Failed => return Err(DtlsImplError::ConnectionClosed),
        }
        if !data.is_empty() {
            self.session.write(self.clock, data).map_err(|failure| {
                debug!(%failure, "DTLS failed");
                self.state = State::Failed;
                DtlsImplError::ConnectionClosed
            })?;
        }
        Ok(data.len())
    }

    fn is_active(&self) -> bool {
        self.client
    }

    fn protocol_version(&self) -> Option<ProtocolVersion> {
        matches!(self.state, State::Established | State::Closed).then_some(ProtocolVersion::DTLS1_2)
    }

    fn is_closing(&self) -> bool {
        self.state == State::Closed && self.session.datagram_len().is_some()
    }

    fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed | State::Failed) && self.session.datagram_len().is_none()
    }

    fn close(&mut self) -> Result<(), DtlsImplError> {
        if self.state == State::Established {
            self.session.shut_down(self.clock);
        }
        self.state = State::Closed;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    // Associations on a wire of the test's, in virtual time: with each other, and with the DTLS that the engine brings.

    use fastrand::Rng;
    use rcgen::{
        CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RsaKeySize,
    };

    use super::*;

    /// A key of 1024 bits; nothing here makes one.
    const SHORT_RSA: (&[u8], &[u8]) =
        (include_bytes!("dtls/testdata/rsa-1024.certificate.der"), include_bytes!("dtls/testdata/rsa-1024.key.der"));

    fn certificate(key: Result<KeyPair, rcgen::Error>) -> DtlsCert {
        let key = key.unwrap();
        let certificate = CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        DtlsCert { certificate: certificate.der().to_vec(), private_key: key.serialize_der() }
    }

    fn p256() -> DtlsCert {
        certificate(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256))
    }

    fn rsa(size: RsaKeySize) -> DtlsCert {
        certificate(KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size))
    }

    /// One end, and what it told.
    struct End {
        dtls: Box<dyn DtlsInstance>,
        certificate: Vec<u8>,
        wake_at: Instant,
        connected: bool,
        seen: Option<Vec<u8>>,
        keys: Option<(Vec<u8>, SrtpProfile)>,
        data: Vec<Vec<u8>>,
        closed: bool,
        failed: bool,
    }

    impl End {
        fn new(provider: &dyn DtlsProvider, certificate: &DtlsCert, now: Instant) -> Self {
            let dtls = provider.new_dtls(certificate, now, DtlsVersion::Dtls12, None).unwrap();
            let certificate = certificate.certificate.clone();
            let (seen, keys, data) = (None, None, Vec::new());
            Self { dtls, certificate, wake_at: now, connected: false, seen, keys, data, closed: false, failed: false }
        }

        fn ours(certificate: &DtlsCert, now: Instant) -> Self {
            Self::new(&Provider, certificate, now)
        }

        fn engines(certificate: &DtlsCert, now: Instant) -> Self {
            Self::new(str0m::crypto::from_feature_flags().dtls_provider, certificate, now)
        }

        /// As the engine begins.
        fn start(&mut self, client: bool, now: Instant) {
            self.dtls.set_active(client);
            self.dtls.handle_timeout(now).unwrap();
            if client {
                self.dtls.handle_packet(&[]).unwrap();
            }
        }

        /// What it has to send.
        fn poll(&mut self) -> Vec<Vec<u8>> {
            let (mut out, mut buf) = (Vec::new(), vec![0; 2000]);
            loop {
                match self.dtls.poll_output(&mut buf) {
                    DtlsOutput::Packet(packet) => out.push(packet.to_vec()),
                    DtlsOutput::Connected => self.connected = true,
                    DtlsOutput::PeerCert(der) => {
                        assert!(self.keys.is_none(), "keys of somebody unknown");
                        self.seen = Some(der.to_vec());
                    }
                    DtlsOutput::KeyingMaterial(keys, profile) => self.keys = Some((keys.to_vec(), profile)),
                    DtlsOutput::ApplicationData(data) => self.data.push(data.to_vec()),
                    DtlsOutput::CloseNotify => self.closed = true,
                    DtlsOutput::Timeout(at) => {
                        self.wake_at = at;
                        return out;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    /// A client and a server, 10 ms apart.
    struct Pair {
        now: Instant,
        ends: [End; 2],
        /// Arrival, to whom, what.
        wire: Vec<(Instant, usize, Vec<u8>)>,
        sent: usize,
        /// Which datagram takes a second longer.
        slow: Option<usize>,
    }

    impl Pair {
        /// Nobody begins.
        fn waiting(now: Instant, client: End, server: End) -> Self {
            Self { now, ends: [client, server], wire: Vec::new(), sent: 0, slow: None }
        }

        fn new(now: Instant, client: End, server: End) -> Self {
            let mut pair = Self::waiting(now, client, server);
            pair.ends[0].start(true, now);
            pair.ends[1].start(false, now);
            pair
        }

        fn connected(&self) -> bool {
            self.ends.iter().all(|end| end.connected)
        }

        /// Lets virtual time pass. `carry` makes of each datagram, by its number, what arrives of it.
        fn run(&mut self, span: Duration, mut carry: impl FnMut(usize, Vec<u8>) -> Vec<Vec<u8>>) {
            let until = self.now + span;
            loop {
                for from in 0..2 {
                    for datagram in self.ends[from].poll() {
                        let millis = if self.slow == Some(self.sent) { 1015 } else { 10 };
                        let arrives = self.now + Duration::from_millis(millis);
                        let parts = carry(self.sent, datagram);
                        self.wire.extend(parts.into_iter().map(|part| (arrives, 1 - from, part)));
                        self.sent += 1;
                    }
                }
                let wakes = self.ends.iter().filter(|end| !end.failed).map(|end| end.wake_at);
                let next = self.wire.iter().map(|(at, ..)| *at).chain(wakes).min();
                let Some(next) = next.filter(|at| *at <= until) else { break };
                self.now = self.now.max(next);
                let now = self.now;
                for end in self.ends.iter_mut().filter(|end| !end.failed && end.wake_at <= now) {
                    end.failed = end.dtls.handle_timeout(now).is_err();
                }
                let (due, later) = std::mem::take(&mut self.wire).into_iter().partition(|(at, ..)| *at <= now);
                self.wire = later;
                let due: Vec<(Instant, usize, Vec<u8>)> = due;
                for (_, to, datagram) in due {
                    let end = &mut self.ends[to];
                    end.failed |= end.dtls.handle_packet(&datagram).is_err();
                }
            }
            self.now = until;
        }

        #[track_caller]
        fn check_connected(&self) {
            let [client, server] = &self.ends;
            assert!(self.connected(), "after {} datagrams", self.sent);
            assert_eq!(client.seen.as_ref(), Some(&server.certificate));
            assert_eq!(server.seen.as_ref(), Some(&client.certificate));
            assert_eq!(client.keys, server.keys);
            assert_eq!(client.keys.as_ref().unwrap().1, SrtpProfile::AEAD_AES_256_GCM);
        }
    }

    fn whole(_: usize, datagram: Vec<u8>) -> Vec<Vec<u8>> {
        vec![datagram]
    }

    #[track_caller]
    fn check(make: impl Fn(Instant) -> (End, End)) {
        let now = Instant::now();
        let (client, server) = make(now);
        let mut pair = Pair::new(now, client, server);
        pair.run(Duration::from_millis(100), whole);
        pair.check_connected();
        for (from, text) in [(0, b"up".as_slice()), (1, b"down")] {
            assert_eq!(pair.ends[from].dtls.send_application_data(text).unwrap(), text.len());
        }
        pair.run(Duration::from_millis(20), whole);
        assert_eq!((&pair.ends[1].data, &pair.ends[0].data), (&vec![b"up".to_vec()], &vec![b"down".to_vec()]));
        pair.ends[0].dtls.close().unwrap();
        pair.run(Duration::from_millis(20), whole);
        assert!(pair.ends[0].dtls.is_closed() && pair.ends[1].closed && !pair.ends[1].failed);
    }

    #[test]
    fn each_certificate_connects_in_both_roles() {
        let ours = p256();
        let p384 = certificate(KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384));
        for theirs in [p256(), p384, rsa(RsaKeySize::_2048), rsa(RsaKeySize::_4096)] {
            check(|now| (End::ours(&ours, now), End::ours(&theirs, now)));
            check(|now| (End::ours(&theirs, now), End::ours(&ours, now)));
        }
        let rsa = rsa(RsaKeySize::_2048);
        check(|now| (End::ours(&rsa, now), End::ours(&rsa, now)));
    }

    #[test]
    fn the_engines_own_dtls_connects_in_both_roles() {
        let (ours, theirs) = (p256(), p256());
        check(|now| (End::ours(&ours, now), End::engines(&theirs, now)));
        check(|now| (End::engines(&theirs, now), End::ours(&ours, now)));
    }

    #[test]
    fn any_datagram_of_a_handshake_may_get_lost_or_come_twice_or_late() {
        let (ours, theirs) = (p256(), rsa(RsaKeySize::_2048));
        let pair = |ours_begins: bool| {
            let now = Instant::now();
            let (a, b) = (End::ours(&ours, now), End::ours(&theirs, now));
            if ours_begins { Pair::new(now, a, b) } else { Pair::new(now, b, a) }
        };
        let mut perfect = pair(true);
        perfect.run(Duration::from_secs(1), whole);
        perfect.check_connected();
        assert!(perfect.sent >= 4, "four flights");
        for (ours_begins, at) in
            [true, false].into_iter().flat_map(|role| (0..perfect.sent + 2).map(move |at| (role, at)))
        {
            let mut lossy = pair(ours_begins);
            lossy.run(Duration::from_millis(3500), |n, datagram| if n == at { vec![] } else { vec![datagram] });
            lossy.check_connected();
            let mut doubling = pair(ours_begins);
            doubling.run(Duration::from_millis(100), |n, datagram| vec![datagram; 1 + usize::from(n == at)]);
            doubling.check_connected();
            // Behind what is sent instead of it, and behind the other end's answer to that.
            let mut late = pair(ours_begins);
            late.slow = Some(at);
            late.run(Duration::from_millis(3500), whole);
            late.check_connected();
        }
    }

    /// A timer that ran since before the peer was there would send everything twice.
    #[test]
    fn a_client_that_comes_late_is_answered_once() {
        let now = Instant::now();
        let (ours, theirs) = (p256(), p256());
        let mut pair = Pair::waiting(now, End::ours(&theirs, now), End::ours(&ours, now));
        pair.ends[1].start(false, now);
        pair.run(Duration::from_secs(5), whole);
        assert_eq!(pair.sent, 0);
        let late = pair.now;
        pair.ends[0].start(true, late);
        pair.run(Duration::from_millis(900), whole);
        pair.check_connected();
        let mut prompt = Pair::new(now, End::ours(&theirs, now), End::ours(&ours, now));
        prompt.run(Duration::from_millis(900), whole);
        assert_eq!(pair.sent, prompt.sent);
    }

    #[test]
    fn nobody_there_is_asked_less_and_less_often() {
        let now = Instant::now();
        let mut pair = Pair::new(now, End::ours(&p256(), now), End::ours(&p256(), now));
        pair.run(Duration::from_secs(14), |_, _| vec![]);
        assert_eq!(pair.sent, 4, "at 0, 1, 3 and 7 seconds");
        assert!(!pair.ends[0].failed);
    }

    #[test]
    fn a_short_rsa_key_is_refused() {
        let short = DtlsCert { certificate: SHORT_RSA.0.to_vec(), private_key: SHORT_RSA.1.to_vec() };
        let ours = p256();
        for ours_begins in [true, false] {
            let now = Instant::now();
            let (a, b) = (End::ours(&ours, now), End::ours(&short, now));
            let mut pair = if ours_begins { Pair::new(now, a, b) } else { Pair::new(now, b, a) };
            pair.run(Duration::from_secs(1), whole);
            let [ours, theirs] = if ours_begins { [0, 1] } else { [1, 0] };
            assert!(pair.ends[ours].failed && pair.ends[ours].keys.is_none());
            assert!(pair.ends[theirs].failed, "it is told");
        }
    }

    #[test]
    fn a_certificate_that_is_none_is_an_error() {
        let good = p256();
        let other = p256();
        for (certificate, private_key) in [
            (&good.certificate[..], &b"no key"[..]),
            (&b"no certificate"[..], &good.private_key[..]),
            (&good.certificate, &other.private_key),
        ] {
            let cert = DtlsCert { certificate: certificate.to_vec(), private_key: private_key.to_vec() };
            let made = Provider.new_dtls(&cert, Instant::now(), DtlsVersion::Dtls12, None);
            assert!(made.is_err(), "{:?}", made.map(|_| ()));
        }
    }

    /// Whatever a peer makes of its datagrams, its session fails or goes on, and no keys come of a broken one.
    #[test]
    fn mutated_datagrams_end_a_session_at_worst() {
        let (ours, theirs) = (p256(), rsa(RsaKeySize::_2048));
        let mut rng = Rng::with_seed(5);
        let (mut connected, mut failed) = (0, 0);
        for round in 0..300 {
            let now = Instant::now();
            let (a, b) = (End::ours(&ours, now), End::ours(&theirs, now));
            let mut pair = if round % 2 == 0 { Pair::new(now, a, b) } else { Pair::new(now, b, a) };
            pair.run(Duration::from_secs(8), |_, mut datagram| {
                let mut out = Vec::new();
                if rng.u8(..4) == 0 {
                    for _ in 0..rng.usize(1..4) {
                        let at = rng.usize(..datagram.len());
                        match rng.u8(..5) {
                            0 => datagram.truncate(at.max(1)),
                            1 => datagram.extend_from_within(at..),
                            2 => datagram[at] = rng.u8(..),
                            3 => datagram[at] ^= 1 << rng.u8(..8),
                            _ => out.push((0..rng.usize(1..200)).map(|_| rng.u8(20..26)).collect()),
                        }
                    }
                }
                out.push(datagram);
                out
            });
            for end in &pair.ends {
                assert!(end.keys.is_none() || end.seen.is_some());
            }
            if pair.connected() {
                pair.check_connected();
            }
            connected += u32::from(pair.connected());
            failed += u32::from(pair.ends.iter().any(|end| end.failed));
        }
        assert!(
            connected > 30 && failed > 30,
            "{connected} connected, {failed} failed of 300: both ends of the matter"
        );
    }
}
