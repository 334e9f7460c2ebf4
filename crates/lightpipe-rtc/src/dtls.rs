//! DTLS for far ends of either kind of certificate.
//!
//! The engine's own DTLS knows ECDSA only. Peers that bring RSA (GStreamer makes nothing else) get theirs from AWS-LC's libssl, in
//! [`libssl`]; what has not to do with DTLS stays the engine's. Which kind a peer has is known only in the middle of the
//! handshake, so that everybody's is made here.

mod libssl;

use std::collections::VecDeque;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
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
        let context = context(cert).map_err(failed)?;
        let session = Session::new(&context, mtu.unwrap_or(DEFAULT_MTU)).map_err(failed)?;
        Ok(Box::new(Association::new(session, now)))
    }
}

/// The context of a certificate. A process has one certificate, so the last one is kept.
fn context(cert: &DtlsCert) -> Result<Arc<Context>, Failure> {
    static LAST: Mutex<Option<(DtlsCert, Arc<Context>)>> = Mutex::new(None);
    let same = |known: &DtlsCert| known.certificate == cert.certificate && known.private_key == cert.private_key;
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, context)) = last.as_ref().filter(|(known, _)| same(known)) {
        return Ok(Arc::clone(context));
    }
    let context = Arc::new(Context::new(&cert.certificate, &cert.private_key)?);
    *last = Some((cert.clone(), Arc::clone(&context)));
    Ok(context)
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
