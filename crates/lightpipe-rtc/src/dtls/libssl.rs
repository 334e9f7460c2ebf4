//! AWS-LC's libssl, as far as DTLS-SRTP needs it, without sockets and with the caller's clock.
//!
//! It is the library of which the engine uses the cryptography already, and BoringSSL's code, which Chromium speaks DTLS with. A
//! [`Session`] is one end of one association: datagrams go in and come out, each call says what time it is.

#![allow(unsafe_code)] // FFI; each block says what it relies on.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int, c_long, c_ulong, c_void};
use std::ptr::{self, NonNull};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use aws_lc_sys as sys;

/// Forward secrecy and authenticated encryption only. The first one is what everybody has to have (RFC 8827 §6.5); those with RSA
/// are for servers with such a certificate.
const CIPHERS: &CStr = c"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:\
    ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";

const GROUPS: [c_int; 3] = [sys::NID_X25519, sys::NID_X9_62_prime256v1, sys::NID_secp384r1];

/// Signatures that a far end may make: what the library takes by itself, less SHA-1.
const SIGNATURES: [u16; 8] = [
    sys::SSL_SIGN_ECDSA_SECP256R1_SHA256 as u16,
    sys::SSL_SIGN_RSA_PSS_RSAE_SHA256 as u16,
    sys::SSL_SIGN_RSA_PKCS1_SHA256 as u16,
    sys::SSL_SIGN_ECDSA_SECP384R1_SHA384 as u16,
    sys::SSL_SIGN_RSA_PSS_RSAE_SHA384 as u16,
    sys::SSL_SIGN_RSA_PKCS1_SHA384 as u16,
    sys::SSL_SIGN_RSA_PSS_RSAE_SHA512 as u16,
    sys::SSL_SIGN_RSA_PKCS1_SHA512 as u16,
];

/// Shortest RSA key of a far end. A shorter one can be found out, and with it the fingerprint says nothing any more.
const MIN_RSA_BITS: c_int = 2048;

/// SRTP profiles, the preferred first: the engine's order.
const SRTP_PROFILES: &CStr = c"SRTP_AEAD_AES_256_GCM:SRTP_AEAD_AES_128_GCM:SRTP_AES128_CM_SHA1_80";

/// RFC 5764 §4.2.
const EXPORTER_LABEL: &[u8] = b"EXTRACTOR-dtls_srtp";

/// Plaintext of the longest record (RFC 5246 §6.2.1).
pub(super) const MAX_RECORD_LEN: usize = 1 << 14;

/// Why the library gave up.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {reason}")]
pub(super) struct Failure {
    call: &'static str,
    reason: String,
}

impl Failure {
    /// The newest entry of the thread's error queue, and nothing stays in the queue.
    fn of(call: &'static str) -> Self {
        // SAFETY: both calls take no pointers. The text is static, or null for a code that the library does not know.
        let reason = unsafe {
            let text = sys::ERR_reason_error_string(sys::ERR_peek_last_error());
            if text.is_null() { None } else { Some(CStr::from_ptr(text).to_string_lossy().into_owned()) }
        };
        // SAFETY: takes no pointers.
        unsafe { sys::ERR_clear_error() };
        Self { call, reason: reason.unwrap_or_else(|| "for no reason that it tells".to_owned()) }
    }
}

fn check(call: &'static str, code: c_int) -> Result<(), Failure> {
    if code == 1 { Ok(()) } else { Err(Failure::of(call)) }
}

thread_local! {
    /// The time of the call that this thread is in, since an origin of the caller's choice. The library's hook for the time says neither
    /// which association it is for nor takes a pointer of ours.
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

unsafe extern "C" fn current_time(_ssl: *const sys::SSL, out: *mut sys::timeval) {
    let now = NOW.get();
    // All zero means no time to the library.
    let seconds = now.as_secs() + 1;
    // SAFETY: the library passes a structure of its own to be filled.
    unsafe {
        (*out).tv_sec = seconds as _;
        (*out).tv_usec = now.subsec_micros() as _;
    }
}

/// Any certificate will do whose key is long enough: the engine compares its fingerprint with that of the description.
unsafe extern "C" fn verify(ssl: *mut sys::SSL, alert: *mut u8) -> sys::ssl_verify_result_t {
    // SAFETY: the library passes the association and a byte of its own. The certificate is a reference that is ours to free, its key
    // one that lives as long as the certificate.
    unsafe {
        let certificate = sys::SSL_get_peer_certificate(ssl);
        let key = if certificate.is_null() { ptr::null_mut() } else { sys::X509_get0_pubkey(certificate) };
        let good =
            !key.is_null() && (sys::EVP_PKEY_id(key) != sys::EVP_PKEY_RSA || sys::EVP_PKEY_bits(key) >= MIN_RSA_BITS);
        sys::X509_free(certificate);
        if good {
            return sys::ssl_verify_result_t_ssl_verify_ok;
        }
        *alert = sys::SSL_AD_INSUFFICIENT_SECURITY as u8;
    }
    sys::ssl_verify_result_t_ssl_verify_invalid
}

/// Settings and our certificate, for any number of sessions.
#[derive(Debug)]
pub(super) struct Context(NonNull<sys::SSL_CTX>);

// SAFETY: nothing changes it after `new`, and the library counts references to it atomically.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// `certificate` and `private_key` are DER, the key in PKCS#8 or in the form of its kind.
    pub(super) fn new(certificate: &[u8], private_key: &[u8]) -> Result<Self, Failure> {
        // SAFETY: `DTLS_method` is static. The new context is owned by `this` from here on.
        let raw = unsafe { sys::SSL_CTX_new(sys::DTLS_method()) };
        let this = Self(NonNull::new(raw).ok_or_else(|| Failure::of("SSL_CTX_new"))?);
        // SAFETY: the context is live. Lengths are those of the slices; strings and arrays are static, the library copies them all.
        unsafe {
            check(
                "SSL_CTX_set_min_proto_version",
                sys::SSL_CTX_set_min_proto_version(raw, sys::DTLS1_2_VERSION as u16),
            )?;
            check("SSL_CTX_set_strict_cipher_list", sys::SSL_CTX_set_strict_cipher_list(raw, CIPHERS.as_ptr()))?;
            check("SSL_CTX_set1_groups", sys::SSL_CTX_set1_groups(raw, GROUPS.as_ptr(), GROUPS.len()))?;
            let signatures = sys::SSL_CTX_set_verify_algorithm_prefs(raw, SIGNATURES.as_ptr(), SIGNATURES.len());
            check("SSL_CTX_set_verify_algorithm_prefs", signatures)?;
            check("SSL_CTX_set_srtp_profiles", sys::SSL_CTX_set_srtp_profiles(raw, SRTP_PROFILES.as_ptr()))?;
            // Each session is a handshake of its own, and the datagrams' size is ours to say.
            sys::SSL_CTX_set_options(raw, (sys::SSL_OP_NO_TICKET | sys::SSL_OP_NO_QUERY_MTU) as u32);
            sys::SSL_CTX_set_session_cache_mode(raw, sys::SSL_SESS_CACHE_OFF);
            let both_sides = sys::SSL_VERIFY_PEER | sys::SSL_VERIFY_FAIL_IF_NO_PEER_CERT;
            sys::SSL_CTX_set_custom_verify(raw, both_sides, Some(verify));
            sys::SSL_CTX_set_current_time_cb(raw, Some(current_time));
            let taken = sys::SSL_CTX_use_certificate_ASN1(raw, certificate.len(), certificate.as_ptr());
            check("SSL_CTX_use_certificate_ASN1", taken)?;
        }
        let mut der = private_key.as_ptr();
        // SAFETY: the library reads at most so many bytes from there, and moves our copy of the pointer.
        let key = unsafe { sys::d2i_AutoPrivateKey(ptr::null_mut(), &raw mut der, private_key.len() as c_long) };
        if key.is_null() {
            return Err(Failure::of("d2i_AutoPrivateKey"));
        }
        // SAFETY: both are live; the context takes a reference of its own, and ours is freed once.
        let taken = unsafe {
            let taken = sys::SSL_CTX_use_PrivateKey(raw, key);
            sys::EVP_PKEY_free(key);
            taken
        };
        check("SSL_CTX_use_PrivateKey", taken)?;
        Ok(this)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: ours to free; sessions hold references of their own.
        unsafe { sys::SSL_CTX_free(self.0.as_ptr()) }
    }
}

/// Datagrams on their way between the library and us.
#[derive(Debug, Default)]
struct Wire {
    /// The one that the library may read now.
    incoming: Option<Vec<u8>>,
    /// What it wrote since [`Session::take_datagram`] was last empty. The engine takes everything after each call, which makes at most a flight.
    outgoing: VecDeque<Vec<u8>>,
}

/// The wire that was given to this BIO.
///
/// # Safety
/// `bio` is one that [`Session::new`] made, of a session that lives.
unsafe fn with_wire<T>(bio: *mut sys::BIO, call: impl FnOnce(&mut Wire) -> T) -> T {
    // SAFETY: the data is a pointer to the mutex that the session has boxed, which outlives the BIO.
    let wire = unsafe { &*sys::BIO_get_data(bio).cast::<Mutex<Wire>>() };
    call(&mut wire.lock().unwrap_or_else(PoisonError::into_inner))
}

unsafe extern "C" fn wire_read(bio: *mut sys::BIO, out: *mut c_char, len: c_int) -> c_int {
    // SAFETY: called by the library with a BIO of ours.
    let datagram = unsafe { with_wire(bio, |wire| wire.incoming.take()) };
    let Some(datagram) = datagram else {
        // SAFETY: as above.
        unsafe { sys::BIO_set_retry_read(bio) };
        return -1;
    };
    // A datagram that is longer than the library's buffer is cut, as a socket would.
    let len = datagram.len().min(usize::try_from(len).unwrap_or(0));
    // SAFETY: the library's buffer has room for `len` bytes, and is not ours.
    unsafe { ptr::copy_nonoverlapping(datagram.as_ptr(), out.cast(), len) };
    len as c_int
}

unsafe extern "C" fn wire_write(bio: *mut sys::BIO, data: *const c_char, len: c_int) -> c_int {
    // SAFETY: the library passes `len` readable bytes, and a BIO of ours.
    unsafe {
        let datagram = std::slice::from_raw_parts(data.cast::<u8>(), usize::try_from(len).unwrap_or(0));
        with_wire(bio, |wire| wire.outgoing.push_back(datagram.to_vec()));
    }
    len
}

unsafe extern "C" fn wire_control(_bio: *mut sys::BIO, command: c_int, _: c_long, _: *mut c_void) -> c_long {
    // There is nothing to flush, and nothing else to answer.
    c_long::from(command == sys::BIO_CTRL_FLUSH)
}

/// The functions above, registered once.
struct Method(*const sys::BIO_METHOD);

// SAFETY: nothing changes it after it was made.
unsafe impl Send for Method {}
// SAFETY: as above.
unsafe impl Sync for Method {}

impl Method {
    fn get() -> *const sys::BIO_METHOD {
        static METHOD: OnceLock<Method> = OnceLock::new();
        let make = || {
            // SAFETY: the name is static, and the functions have the types that the library asks for. Null, when there is no
            // memory, is found by the first `BIO_new`.
            unsafe {
                let method = sys::BIO_meth_new(sys::BIO_TYPE_SOURCE_SINK, c"datagrams".as_ptr());
                if !method.is_null() {
                    sys::BIO_meth_set_read(method, Some(wire_read));
                    sys::BIO_meth_set_write(method, Some(wire_write));
                    sys::BIO_meth_set_ctrl(method, Some(wire_control));
                }
                Self(method)
            }
        };
        METHOD.get_or_init(make).0
    }
}

/// What came of a read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// So many bytes, of one record.
    Data(usize),
    /// Nothing yet.
    Nothing,
    /// The far end says that nothing will come any more.
    Closed,
}

/// One end of an association.
#[derive(Debug)]
pub(super) struct Session {
    ssl: NonNull<sys::SSL>,
    /// Boxed, because the library keeps its address. A mutex only because the library cannot prove to the compiler what is true: nobody
    /// else is there.
    wire: Box<Mutex<Wire>>,
}

// SAFETY: the library keeps nothing of an association in the thread, and `&mut self` on every call guarantees one thread at a time.
unsafe impl Send for Session {}
// SAFETY: nothing of the library is called with `&self`.
unsafe impl Sync for Session {}

impl Session {
    /// `mtu` is the longest datagram of the handshake, in bytes.
    pub(super) fn new(context: &Context, mtu: usize) -> Result<Self, Failure> {
        let wire = Box::new(Mutex::new(Wire::default()));
        // SAFETY: the context is live. The session takes the only reference of the BIO, for reading and for writing; what the BIO
        // points to is freed after it.
        unsafe {
            let ssl = NonNull::new(sys::SSL_new(context.0.as_ptr())).ok_or_else(|| Failure::of("SSL_new"))?;
            let this = Self { ssl, wire };
            let bio = sys::BIO_new(Method::get());
            if bio.is_null() {
                return Err(Failure::of("BIO_new"));
            }
            sys::BIO_set_data(bio, (&raw const *this.wire).cast_mut().cast());
            sys::BIO_set_init(bio, 1);
            sys::SSL_set_bio(this.ssl.as_ptr(), bio, bio);
            check("SSL_set_mtu", sys::SSL_set_mtu(this.ssl.as_ptr(), u32::try_from(mtu).unwrap_or(u32::MAX)))?;
            Ok(this)
        }
    }

    /// Whether this end begins (a client) or waits (a server). To be said once, before anything else.
    pub(super) fn set_client(&mut self, client: bool) {
        // SAFETY: a live session.
        unsafe {
            if client {
                sys::SSL_set_connect_state(self.ssl.as_ptr());
            } else {
                sys::SSL_set_accept_state(self.ssl.as_ptr());
            }
        }
    }

    fn wire(&mut self) -> &mut Wire {
        self.wire.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives it a datagram, for the next [`Self::handshake`] or [`Self::read`]. One that was not read yet is lost.
    pub(super) fn put_datagram(&mut self, datagram: &[u8]) {
        self.wire().incoming = Some(datagram.to_vec());
    }

    /// The next datagram to send.
    pub(super) fn take_datagram(&mut self) -> Option<Vec<u8>> {
        self.wire().outgoing.pop_front()
    }

    /// Length of the next datagram to send.
    pub(super) fn datagram_len(&self) -> Option<usize> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner).outgoing.front().map(Vec::len)
    }

    /// Goes on with the handshake; true when it is done.
    pub(super) fn handshake(&mut self, now: Duration) -> Result<bool, Failure> {
        NOW.set(now);
        // SAFETY: a live session with a role.
        let code = unsafe { sys::SSL_do_handshake(self.ssl.as_ptr()) };
        match self.error(code) {
            sys::SSL_ERROR_NONE => Ok(true),
            sys::SSL_ERROR_WANT_READ => Ok(false),
            _ => Err(Failure::of("SSL_do_handshake")),
        }
    }

    /// Reads the data of one record.
    pub(super) fn read(&mut self, now: Duration, into: &mut [u8]) -> Result<Read, Failure> {
        NOW.set(now);
        let len = c_int::try_from(into.len()).unwrap_or(c_int::MAX);
        // SAFETY: a live session; the buffer has so much room.
        let code = unsafe { sys::SSL_read(self.ssl.as_ptr(), into.as_mut_ptr().cast(), len) };
        match self.error(code) {
            sys::SSL_ERROR_NONE => Ok(Read::Data(usize::try_from(code).unwrap_or(0))),
            sys::SSL_ERROR_WANT_READ => Ok(Read::Nothing),
            sys::SSL_ERROR_ZERO_RETURN => Ok(Read::Closed),
            _ => Err(Failure::of("SSL_read")),
        }
    }

    /// Writes one record.
    pub(super) fn write(&mut self, now: Duration, data: &[u8]) -> Result<(), Failure> {
        NOW.set(now);
        let len = c_int::try_from(data.len()).unwrap_or(c_int::MAX);
        // SAFETY: a live session; so many bytes are there to read.
        let code = unsafe { sys::SSL_write(self.ssl.as_ptr(), data.as_ptr().cast(), len) };
        if code > 0 { Ok(()) } else { Err(Failure::of("SSL_write")) }
    }

    /// Says that nothing will come any more.
    pub(super) fn shut_down(&mut self, now: Duration) {
        NOW.set(now);
        // SAFETY: a live session.
        if unsafe { sys::SSL_shutdown(self.ssl.as_ptr()) } < 0 {
            // Said already, or broken: nothing that anybody could do about it.
            drop(Failure::of("SSL_shutdown"));
        }
    }

    /// How long until something has to be sent again.
    pub(super) fn timeout(&mut self, now: Duration) -> Option<Duration> {
        NOW.set(now);
        let mut left = sys::timeval { tv_sec: 0, tv_usec: 0 };
        // SAFETY: a live session, and a structure to be filled.
        let running = unsafe { sys::DTLSv1_get_timeout(self.ssl.as_ptr(), &raw mut left) };
        let [seconds, micros] = [u64::try_from(left.tv_sec), u64::try_from(left.tv_usec)].map(|part| part.unwrap_or(0));
        (running == 1).then(|| Duration::from_secs(seconds) + Duration::from_micros(micros))
    }

    /// Sends again what is due, if it is.
    pub(super) fn handle_timeout(&mut self, now: Duration) -> Result<(), Failure> {
        NOW.set(now);
        // SAFETY: a live session.
        let code = unsafe { sys::DTLSv1_handle_timeout(self.ssl.as_ptr()) };
        if code >= 0 { Ok(()) } else { Err(Failure::of("DTLSv1_handle_timeout")) }
    }

    /// The far end's own certificate, DER. `None` before the handshake.
    pub(super) fn peer_certificate(&mut self) -> Option<Vec<u8>> {
        // SAFETY: a live session. The list, and what is in it, live as long as the session; they are copied here.
        unsafe {
            let list = sys::SSL_get0_peer_certificates(self.ssl.as_ptr());
            if list.is_null() || sys::OPENSSL_sk_num(list.cast()) == 0 {
                return None;
            }
            let certificate = sys::OPENSSL_sk_value(list.cast(), 0).cast::<sys::CRYPTO_BUFFER>();
            let (data, len) = (sys::CRYPTO_BUFFER_data(certificate), sys::CRYPTO_BUFFER_len(certificate));
            Some(std::slice::from_raw_parts(data, len).to_vec())
        }
    }

    /// The SRTP profile that was agreed upon, by its number in RFC 5764 §4.1.2 and RFC 7714 §14.2.
    pub(super) fn srtp_profile(&mut self) -> Option<c_ulong> {
        // SAFETY: a live session. The profile is static, or null.
        unsafe { sys::SSL_get_selected_srtp_profile(self.ssl.as_ptr()).as_ref() }.map(|profile| profile.id)
    }

    /// Fills `out` with SRTP keys (RFC 5764 §4.2).
    pub(super) fn export_srtp_keys(&mut self, out: &mut [u8]) -> Result<(), Failure> {
        // SAFETY: a live session; lengths are those of the slices, and no context is used.
        let code = unsafe {
            let label = EXPORTER_LABEL.as_ptr().cast();
            let (out, len) = (out.as_mut_ptr(), out.len());
            sys::SSL_export_keying_material(self.ssl.as_ptr(), out, len, label, EXPORTER_LABEL.len(), ptr::null(), 0, 0)
        };
        check("SSL_export_keying_material", code)
    }

    fn error(&mut self, code: c_int) -> c_int {
        // SAFETY: a live session; right after the call that gave the code.
        unsafe { sys::SSL_get_error(self.ssl.as_ptr(), code) }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: ours to free, with its BIO. The wire, a field, goes after that.
        unsafe { sys::SSL_free(self.ssl.as_ptr()) }
    }
}
