/**
 * `<lightpipe-player>`: live video from a lightpipe server (or any WHEP endpoint) on any page.
 *
 *     <script type="module" src="http://host:8080/player.js"></script>
 *     <lightpipe-player src="http://host:8080/whep/cube"></lightpipe-player>
 *
 * One file without imports, so that a foreign page needs nothing else. It owns the whole life of a
 * viewer: WHEP (draft-ietf-wish-whep-03), the data channel `lightpipe` with its clock and statistics,
 * reconnection, the controls, the overlay, and one plain sentence when there is no picture.
 *
 * Attributes
 *   src            WHEP URL. Changing it reconnects.
 *   token          Bearer token for the endpoint, if it wants one.
 *   overlay        The statistics are open. Follows the user's toggling.
 *   controls       "off" hides the control bar; it is there by default.
 *   muted          Mutes. Playing always starts muted (browsers demand it); removing this unmutes.
 *   preview        Picture only, the smallest that there is: no controls, no overlay, no timecode reading.
 *   layer          Name of the layer to get, whatever the network carries. Default: the best that it carries.
 *   source-width   Width the source was captured at, when the server sends it scaled by an odd factor;
 *                  the timecode strip scales with it. Default: full, half and quarter size are tried.
 *
 * Events (bubbling, composed)
 *   lightpipe-state   detail {@link StateDetail}
 *   lightpipe-stats   detail {@link PlayerStats}, once a second while a session exists
 *
 * What "glass to glass" means here. The end is `performance.now()` at the start of the
 * `requestVideoFrameCallback` of a frame, the moment the browser hands the page a frame it gives to
 * its compositor. The beginning is the frame's capture time, either read out of the picture (timecode
 * strip) or looked up by its RTP timestamp in the (rtp, capture_ms) pair the server sends each second.
 * Both clocks are brought together by the offset from {@link ClockSync}. So the figure contains capture,
 * queueing, encoding, sending, network, jitter buffer, decoding and waiting for the compositor; it
 * leaves out the screen: the rest of the current refresh interval, scan-out and the panel itself
 * (8 to 30 ms more on a usual 60 Hz display). Its error is that of the clock offset, at most half the
 * best round trip of the last 30 s, plus under 1 ms because strips carry whole milliseconds.
 */

/**
 * @typedef {'connecting'|'playing'|'stalled'|'reconnecting'|'failed'|'ended'} PlayerState
 *   connecting: first attempt. playing: frames arrive. stalled: connected, no new frame just now.
 *   reconnecting: nothing comes from the server any more, the session was lost, or a retry is running.
 *   failed: an attempt ended without a picture; `retry_in_ms` says when the next starts, null means
 *   only a change or the user helps.
 *   ended: stopped by the page.
 *
 * @typedef {object} StateDetail
 * @property {PlayerState} state
 * @property {string|null} cause  Machine-readable, e.g. `ice_failed`, `signalling_unreachable`, `no_frames`.
 * @property {string} text        One sentence for a human.
 * @property {number|null} retry_in_ms
 *
 * @typedef {{p50: number|null, p95: number|null, p99: number|null}} Quantiles
 *
 * @typedef {object} ServerStats  The server's own message, once a second on the data channel.
 * @property {number} rtp         RTP timestamp of a recent frame.
 * @property {number} capture_ms  Its capture time, Unix milliseconds on the server's clock.
 * @property {number} [clock_rate]
 * @property {Record<'capture'|'queue'|'encode'|'send', Quantiles>} [stages_ms]
 * @property {[number, number]|null} [audio]  RTP timestamp (48 kHz) of a recent frame of sound, and its capture time.
 * @property {number|null} [target_bps]
 * @property {number|null} [estimate_bps]
 * @property {number|null} [rtt_ms]
 * @property {number} [viewers]
 * @property {number} [fps]
 * @property {{rid: string, width: number, height: number, available: boolean}[]} [layers]  Best first; empty without a ladder.
 * @property {string|null} [layer]         The layer that is sent.
 * @property {string|null} [chosen_layer]  The one that this viewer chose; none: what its network carries.
 *
 * @typedef {object} PlayerStats  Every number is null while unknown, never NaN.
 * @property {PlayerState} state
 * @property {number|null} fps                 Frames decoded per second.
 * @property {number|null} width
 * @property {number|null} height
 * @property {number|null} bitrate_bps         Video payload received over the last second.
 * @property {number|null} packets_lost        Of this session.
 * @property {number|null} loss_pct            Over the last 10 s.
 * @property {number|null} jitter_ms           RFC 3550 interarrival jitter.
 * @property {number|null} jitter_buffer_ms    Mean wait per frame in the jitter buffer, last second.
 * @property {number|null} decode_ms           Mean time in the decoder per frame, last second.
 * @property {number|null} rtt_ms              ICE round trip; the data channel's where ICE tells none.
 * @property {number|null} freeze_count
 * @property {number|null} total_freezes_s
 * @property {number|null} frames_decoded
 * @property {number|null} frames_dropped      Decoded or received, yet never shown.
 * @property {number|null} key_frames_decoded
 * @property {number|null} pli_count
 * @property {number|null} nack_count
 * @property {Quantiles & {source: 'timecode'|'rtp'|null}} latency_ms  Glass to glass, last 10 s.
 * @property {number|null} audio_latency_ms    Capture to the sound leaving the jitter buffer; null while muted.
 * @property {Record<Stage, number|null>} stages_ms  Medians; see {@link stageSplit}.
 * @property {ServerStats|null} server
 * @property {string|null} codec               E.g. `H264`.
 * @property {string|null} candidate_type      Local and remote kind of the pair in use, e.g. `host/host udp`.
 *
 * @typedef {'capture'|'queue'|'encode'|'send'|'network'|'jitter_buffer'|'decode'|'render'} Stage
 *
 * @typedef {object} FrameSample  What the player knows about one shown frame.
 * @property {number} at_ms                     `performance.now()` when the callback began.
 * @property {VideoFrameCallbackMetadata & {rtpTimestamp?: number, receiveTime?: number, processingDuration?: number}} metadata
 * @property {number|null} timecode             Strip content, Unix ms mod 2³²; null when none was read.
 * @property {number|null} timecode_latency_ms
 * @property {number|null} rtp_latency_ms
 */

/** The stages in the order a frame passes them. The first four happen on the server. */
export const STAGES = /** @type {const} */ ([
  'capture', 'queue', 'encode', 'send', 'network', 'jitter_buffer', 'decode', 'render',
]);

/** Overlay and events: often enough to feel live, rare enough to cost nothing. */
const STATS_INTERVAL_MS = 1000;
/** Window of the latency quantiles: 300 frames at 30 fps, enough for a p99 that means something. */
const LATENCY_WINDOW_MS = 10_000;
/** Window of clock samples. Crystals drift about 50 ppm, so 30 s hide at most 1.5 ms. */
const CLOCK_WINDOW_MS = 30_000;
/** The first pings come fast: a latency figure within the first second, from several tries. */
const PING_BURST_MS = [0, 50, 120, 250, 500, 1000];
const PING_INTERVAL_MS = 2000;
/** A server of ours says something each second; after this long without a word the network is gone... */
const SILENT_MS = 2500;
/** ...and sooner where ICE says so too. */
const SILENT_BROKEN_MS = 500;
/** How often that is looked at. */
const PATH_LOOK_MS = 250;
/** While nothing is heard the server is asked so often whether it knows the session... */
const ASK_EVERY_MS = 1000;
/** ...and may take so long: TCP, TLS and the request over a satellite. The next one has a connection of its own, which is
 * sooner there than the doubling retransmissions of this one. */
const ASK_TIMEOUT_MS = 2500;
/** A server that answers again is heard over ICE in this time too, if ICE comes back by itself... */
const OWN_RETURN_MS = 700;
/** ...and no sooner after the last word, because a NAT's new port takes the server 2.5 s to believe. */
const RESTART_AFTER_MS = 4000;
/** Longest wait for the answer to a restart of ICE... */
const RESTART_TIMEOUT_MS = 4000;
/** ...and for what it brings. */
const RESTART_EFFECT_MS = 3000;
/** After so many that brought nothing a new session is due. */
const RESTARTS = 2;
/** ICE has this long where it cannot be restarted; in a short radio gap it comes back by itself. */
const DISCONNECTED_GRACE_MS = 3000;
/** No server keeps a session for as long as this. */
const OUTAGE_LIMIT_MS = 60_000;
/** Without a new frame for this long the picture is called stalled. */
const STALLED_AFTER_MS = 2000;
/** Without a frame for this long on a visible page the session is given up. */
const NO_FRAMES_MS = 6000;
/** A page that was hidden gets this long to show a frame: the user is looking at a dead picture. */
const NO_FRAMES_AFTER_WAKE_MS = 3000;
/** Longest wait for the HTTP answer to the offer. */
const SIGNALLING_TIMEOUT_MS = 10_000;
/** Longest wait from answer to connected. Chromium itself takes 15 s and more to say `failed`. */
const CONNECT_TIMEOUT_MS = 12_000;
const BACKOFF_FIRST_MS = 500;
const BACKOFF_MAX_MS = 10_000;
/** A server that cannot be reached is no server that refuses: with the jitter two seconds at most. */
const BACKOFF_UNREACHABLE_MS = 1600;
/** The backoff starts over after this long with a picture, not at the first frame: a server that
 * accepts and drops viewers must not be asked twice a second. */
const STABLE_MS = 5000;
/** Candidates gathered within this time share one PATCH. */
const TRICKLE_BATCH_MS = 30;
/** Reading the strip costs a small read-back, so the overlay does it ten times a second at most... */
const STRIP_EVERY_MS = 100;
/** ...and looks for one now and then where the last look found none. */
const STRIP_SEARCH_EVERY_MS = 2000;
/** Pictures that one look at the display's phase takes: two seconds at 30 fps. */
const PHASE_SAMPLES = 60;
/** After a request the pictures under way still have the old phase. */
const PHASE_SETTLE_MS = 1500;
/** Below this order (mean resultant length) the waits are all over the circle. */
const PHASE_MIN_ORDER = 0.5;
/** A picture should be ready this long before its refresh; the compositor wants it a little ahead... */
const PHASE_MARGIN_MS = 1.5;
/** ...and a busy one much more: where most pictures miss the refresh that they were made for, the margin grows by this... */
const PHASE_MARGIN_STEP_MS = 2;
/** ...and shrinks again by this with each look at which they do not. */
const PHASE_MARGIN_DECAY_MS = 0.02;
/** Smaller moves are not worth a message. */
const PHASE_STEP_MS = 1;
/** What is played is so much older than the packet that the browser names: the decoder's own buffer, 15 ms (measured in Chromium with
 * packets of 10 and 20 ms), less the half of two halves that a packet is played in. */
const AUDIO_BEHIND_MS = 10;
/** Both ages, of the sound that is heard and of the pictures that are shown, are looked at for so long... */
const LIP_WINDOW_MS = 1500;
/** ...in which there must be so many of each... */
const LIP_SAMPLES = 10;
/** ...and after a change not for this long... */
const LIP_SETTLE_MS = 1000;
/** ...before pictures or sound are held back for the other, where they are further apart than this. Nobody notices 45 ms of late sound
 * (ITU-R BT.1359), so this is strict; but pictures move by whole refreshes, and half of one is as near as they come... */
const LIP_TOLERANCE_MS = 9;
/** ...unless their source takes them as much later. The age of sound is known no better than this. */
const LIP_FINE_MS = 3;
/** Held pictures are shown at the first refresh after the time they are held to. Where that time is so near to a refresh that this share of
 * them comes one refresh earlier or later than the others, it is moved by a third of a refresh. */
const LIP_STRAY_SHARE = 0.15;
/** Pictures that are shown so much later than they were at best... */
const BEHIND_MS = 200;
/** ...within this time... */
const BEHIND_WINDOW_MS = 60_000;
/** ...at so many looks in a row, one a second, make the player ask for less; */
const BEHIND_LOOKS = 4;
/** after so many questions that did not help it connects anew, with empty buffers. */
const BEHIND_QUESTIONS = 2;
/** Nothing is held back longer than this for the other. */
const LIP_MAX_MS = 500;
/** A latency outside this range is a clock that stepped or a mapping from before a restart. */
const PLAUSIBLE_LATENCY_MS = { min: -100, max: 60_000 };

// ---------------------------------------------------------------------------------------------
// The element
// ---------------------------------------------------------------------------------------------

// `HTMLElement` is missing where the pure parts below are tested without a browser.
const Base = /** @type {typeof HTMLElement} */ (globalThis.HTMLElement ?? class {});

export class LightpipePlayer extends Base {
  static observedAttributes = ['src', 'muted', 'overlay', 'preview', 'controls', 'layer'];

  /** @type {Session|null} */ #session = null;
  /** @type {PlayerStats} */ #stats = emptyStats('ended');
  /** @type {StateDetail} */ #state = { state: 'ended', cause: null, text: '', retry_in_ms: null };
  /** @type {View|null} */ #view = null;
  #backoff = new Backoff();
  #wanted = false;
  #played = false;
  #retryTimer = 0;
  #retryAt = 0;
  #tickTimer = 0;
  /** @type {Set<(sample: FrameSample) => void>} */ #frameListeners = new Set();
  /** @type {CanvasRenderingContext2D|null} */ #stripContext = null;
  #stripNextAt = 0;
  #stripBlockPx = 16;
  #frameCallback = 0;
  /** @type {AbortController|null} */ #pageEvents = null;

  // -- public API ------------------------------------------------------------------------------

  /** Latest statistics, refreshed every second. @returns {PlayerStats} */
  get stats() { return this.#stats; }
  /** The state last announced by `lightpipe-state`. @returns {StateDetail} */
  get state() { return this.#state; }
  /** @returns {RTCPeerConnection|null} */
  get peerConnection() { return this.#session?.pc ?? null; }
  /** The `<video>` inside. @returns {HTMLVideoElement|null} */
  get video() { return this.#view?.video ?? null; }
  /** The WHEP session resource. @returns {string|null} */
  get sessionUrl() { return this.#session?.url ?? null; }
  /** Server clock minus page clock (`performance.timeOrigin + performance.now()`). @returns {number|null} */
  get serverOffsetMs() { return this.#session?.clock.offsetMs ?? null; }
  /** Round trip of the sample that gave the offset; half of it bounds the offset's error. @returns {number|null} */
  get clockRttMs() { return this.#session?.clock.rttMs ?? null; }

  /** Starts, or starts over at once. Called by itself when the element has a `src`. */
  start() {
    this.#wanted = true;
    this.#played = false;
    this.#backoff.reset();
    this.#connect();
  }

  /** Ends the session (DELETE) and stays so until {@link start}. */
  stop() {
    this.#wanted = false;
    this.#dropSession();
    this.#setState('ended', null, 'Stopped.');
  }

  /**
   * Calls `listener` for each shown frame; while anyone listens the strip is read on every frame.
   * @param {(sample: FrameSample) => void} listener
   * @returns {() => void} ends it
   */
  onFrame(listener) {
    this.#frameListeners.add(listener);
    return () => { this.#frameListeners.delete(listener); };
  }

  toggleOverlay() { this.toggleAttribute('overlay'); }
  toggleMute() {
    const video = this.video;
    if (!video || !this.#session?.hasAudio) return;
    video.muted = !video.muted;
    this.#session.listen(!video.muted);
    this.#view?.renderMuted();
  }
  async toggleFullscreen() {
    const video = /** @type {any} */ (this.video);
    try {
      if (document.fullscreenElement) await document.exitFullscreen();
      else if (this.requestFullscreen) await this.requestFullscreen();
      else video?.webkitEnterFullscreen?.(); // iPhone: only the video itself goes full screen
    } catch {
      video?.webkitEnterFullscreen?.();
    }
  }
  async togglePictureInPicture() {
    try {
      if (document.pictureInPictureElement) await document.exitPictureInPicture();
      else await this.video?.requestPictureInPicture();
    } catch { /* refused by the browser or by a permissions policy; the picture stays here */ }
  }

  /** Acts on the player's keys (f, i, m). A page may forward its own key events here.
   * @param {KeyboardEvent} event */
  handleKey(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (this.hasAttribute('preview')) return;
    const actions = { f: () => this.toggleFullscreen(), i: () => this.toggleOverlay(), m: () => this.toggleMute() };
    const action = actions[/** @type {'f'|'i'|'m'} */ (event.key.toLowerCase())];
    if (!action) return;
    event.preventDefault();
    action();
  }

  // -- custom element life ---------------------------------------------------------------------

  connectedCallback() {
    if (!this.#view) {
      this.#view = new View(this);
      this.addEventListener('keydown', (event) => this.handleKey(event));
    }
    if (!this.hasAttribute('preview') && !this.hasAttribute('tabindex')) this.tabIndex = 0;
    this.#view.renderAttributes();
    this.#listenToPage();
    if (!this.#session && this.hasAttribute('src')) this.start();
  }

  disconnectedCallback() {
    // Moving the element within the document disconnects and connects it; that must not end the session.
    queueMicrotask(() => {
      if (this.isConnected) return;
      this.#pageEvents?.abort();
      this.#pageEvents = null;
      if (this.#wanted) this.stop();
    });
  }

  /** @param {string} name @param {string|null} before @param {string|null} after */
  attributeChangedCallback(name, before, after) {
    if (!this.#view || before === after) return;
    if (name === 'src' && this.isConnected) {
      if (after) this.start(); else this.stop();
    } else if (name === 'layer') {
      this.#session?.wishLayer(after);
      this.#view.renderStats(this.#stats);
    } else if (name === 'muted') {
      this.#view.video.muted = after !== null;
      this.#session?.listen(after === null);
      this.#view.renderMuted();
    } else {
      this.#view.renderAttributes();
      this.#view.renderStats(this.#stats);
    }
  }

  #listenToPage() {
    if (this.#pageEvents) return;
    this.#pageEvents = new AbortController();
    const { signal } = this.#pageEvents;
    document.addEventListener('visibilitychange', () => { if (!document.hidden) this.#woke(); }, { signal });
    addEventListener('online', () => { this.#retryNow(); this.#session?.hurry(); }, { signal });
    // Also where the page goes into the back/forward cache, which closes connections anyway.
    addEventListener('pagehide', () => this.#dropSession(), { signal });
    addEventListener('pageshow', (event) => { if (event.persisted && this.#wanted) this.start(); }, { signal });
  }

  // -- connecting ------------------------------------------------------------------------------

  #connect() {
    this.#dropSession();
    const retry = this.#played || this.#backoff.attempts > 0;
    if (retry) this.#setState('reconnecting', this.#state.cause, this.#state.text || 'Connecting again.');
    else this.#setState('connecting', null, 'Connecting…');

    const session = new Session({
      track: (track) => { if (this.#session === session) this.#attach(session, track); },
      failed: (failure) => { if (this.#session === session) this.#lost(failure); },
      path: (silent) => { if (this.#session === session) this.#pathChanged(silent); },
    });
    this.#session = session;
    session.wishLayer(this.getAttribute('layer'));
    this.#tickTimer = window.setInterval(() => void this.#tick(session), STATS_INTERVAL_MS);
    void session.open(this.getAttribute('src') ?? '', this.getAttribute('token'));
  }

  #dropSession() {
    clearTimeout(this.#retryTimer);
    clearInterval(this.#tickTimer);
    this.#retryAt = 0;
    this.#session?.close();
    this.#session = null;
  }

  /** @param {Failure} failure */
  #lost(failure) {
    const lostPicture = this.#session?.firstFrameAt != null;
    this.#dropSession();
    const atOnce = failure.atOnce && this.#backoff.attempts === 0;
    let waitMs = null;
    if (failure.retry) waitMs = this.#backoff.next(Math.random(), failure.retryAfterMs, failure.unreachable ? BACKOFF_UNREACHABLE_MS : BACKOFF_MAX_MS);
    if (atOnce) waitMs = 0;
    this.#setState(lostPicture ? 'reconnecting' : 'failed', failure.cause, failure.message, waitMs);
    if (waitMs === null) return;
    this.#retryAt = performance.now() + waitMs;
    this.#retryTimer = window.setTimeout(() => this.#connect(), waitMs);
  }

  /** Nothing comes from the server any more, or something does again. @param {boolean} silent */
  #pathChanged(silent) {
    if (silent) this.#setState('reconnecting', 'connection_lost', 'The connection to the server was lost. The picture comes back with it.');
    else this.#setState('stalled', 'no_frames', 'The connection is back, the picture is on its way.');
  }

  /** Starts the waiting retry at once, if one waits. */
  #retryNow() {
    if (this.#wanted && this.#retryAt) this.#connect();
  }

  #woke() {
    if (!this.#wanted) return;
    const session = this.#session;
    if (!session) {
      this.#retryNow();
    } else {
      session.expectFrameWithin(NO_FRAMES_AFTER_WAKE_MS);
      session.hurry();
      void this.#play();
    }
  }

  /** @param {Session} session @param {MediaStreamTrack} track */
  #attach(session, track) {
    const view = /** @type {View} */ (this.#view);
    session.stream.addTrack(track);
    session.listen(!view.video.muted);
    if (view.video.srcObject !== session.stream) {
      // Until now the last picture of the old session stayed on screen.
      view.video.srcObject = session.stream;
      this.#watchFrames(session);
    }
    view.renderAttributes();
    void this.#play();
  }

  async #play() {
    const view = this.#view;
    if (!view?.video.srcObject || !view.video.paused) return;
    try {
      await view.video.play();
      view.askToPlay(false);
    } catch (error) {
      // Power saving on phones can refuse even muted autoplay; then a tap is all it needs.
      if (/** @type {Error} */ (error).name === 'NotAllowedError') view.askToPlay(true);
    }
  }

  /** Called by the view's buttons. */
  userPlay() {
    if (this.#session && this.video?.srcObject) void this.#play(); else this.start();
  }

  // -- frames and statistics -------------------------------------------------------------------

  /** @param {Session} session */
  #watchFrames(session) {
    const video = /** @type {View} */ (this.#view).video;
    if (!('requestVideoFrameCallback' in video)) return; // #tick then counts decoded frames
    video.cancelVideoFrameCallback(this.#frameCallback);
    /** @type {VideoFrameRequestCallback} */
    const onFrame = (_now, metadata) => {
      const at = performance.now(); // first of all: everything after this line costs time
      if (this.#session !== session) return;
      this.#frameCallback = video.requestVideoFrameCallback(onFrame);
      const timecode = this.#readStrip(video, at);
      const sample = session.meter.frame(at, metadata, timecode);
      session.tellPhase(at, metadata);
      session.syncLips(at, sample);
      for (const listener of this.#frameListeners) listener(sample);
      session.sawFrame(at);
      if (this.#state.state !== 'playing') this.#picture();
    };
    this.#frameCallback = video.requestVideoFrameCallback(onFrame);
  }

  /** @param {HTMLVideoElement} video @param {number} at @returns {number|null} */
  #readStrip(video, at) {
    if (this.#frameListeners.size === 0 && (at < this.#stripNextAt || this.hasAttribute('preview'))) return null;
    this.#stripContext ??= stripContext();
    const timecode = this.#stripContext && this.#readStripAnySize(video, this.#stripContext);
    this.#stripNextAt = at + (timecode === null ? STRIP_SEARCH_EVERY_MS : STRIP_EVERY_MS);
    return timecode;
  }

  /** @param {HTMLVideoElement} video @param {CanvasRenderingContext2D} context @returns {number|null} */
  #readStripAnySize(video, context) {
    const sourceWidth = Number(this.getAttribute('source-width'));
    // Without a hint: as captured, then the half and quarter of the lower simulcast layers; what fitted last goes first.
    const sizes = sourceWidth > 0 ? [(16 * video.videoWidth) / sourceWidth] : [this.#stripBlockPx, 16, 8, 4];
    for (const blockPx of new Set(sizes)) {
      const timecode = readTimecode(video, context, blockPx);
      if (timecode === null) continue;
      this.#stripBlockPx = blockPx;
      return timecode;
    }
    return null;
  }

  #picture() {
    this.#played = true;
    this.#setState('playing', null, 'Live.');
  }

  /** @param {Session} session */
  async #tick(session) {
    const stats = await session.readStats();
    if (this.#session !== session) return;
    const now = performance.now();

    if (session.framesAdvanced && (this.#state.state !== 'playing') && session.stream.getTracks().length) this.#picture();
    if (session.firstFrameAt !== null && now - session.firstFrameAt > STABLE_MS) this.#backoff.reset();

    if (!document.hidden && session.connectedAt !== null && !session.pathSilent) {
      const silentMs = session.silentMs(now);
      // A source that has nothing new (a desktop nobody touches) is no fault, and asking anew would not help.
      // Neither is a microphone that is silent or not plugged in: it will be heard on this very connection.
      const idle = session.soundAlone || (session.firstFrameAt !== null && session.meter.server?.fps === 0);
      if (silentMs > NO_FRAMES_MS && !idle) {
        const text = session.firstFrameAt === null
          ? 'The connection stands, but no picture arrived.'
          : 'The picture stopped arriving although the connection stands.';
        this.#lost(new Failure('no_frames', text));
        return;
      }
      if (silentMs > STALLED_AFTER_MS && this.#state.state === 'playing') {
        const missing = session.soundAlone ? 'gives no sound' : 'has no new picture';
        if (idle) this.#setState('stalled', 'source_idle', `The source ${missing} at the moment.`);
        else this.#setState('stalled', 'no_frames', 'The picture is standing still.');
      }
    }
    this.#stats = { ...stats, state: this.#state.state };
    this.#view?.renderStats(this.#stats);
    const behind = document.hidden ? null : session.guard.look(now, stats.latency_ms.p50);
    if (behind) {
      session.tellBehind(behind);
      if (behind.restart) {
        this.#lost(new Failure('latency', `The picture came ${Math.round(behind.ms)} ms later than at best.`));
        return;
      }
    }
    const layers = this.#stats.server?.layers ?? [];
    if (this.hasAttribute('preview') && !this.hasAttribute('layer') && layers.length > 1) {
      session.wishLayer(layers[layers.length - 1].rid);
    }
    this.dispatchEvent(new CustomEvent('lightpipe-stats', { detail: this.#stats, bubbles: true, composed: true }));
  }

  /** @param {PlayerState} state @param {string|null} cause @param {string} text @param {number|null} [retryInMs] */
  #setState(state, cause, text, retryInMs = null) {
    this.#state = { state, cause, text, retry_in_ms: retryInMs };
    this.#stats = state === 'ended' ? emptyStats('ended') : { ...this.#stats, state };
    this.#view?.renderState(this.#state);
    this.dispatchEvent(new CustomEvent('lightpipe-state', { detail: this.#state, bubbles: true, composed: true }));
  }
}

// ---------------------------------------------------------------------------------------------
// Measuring, for benchmarks and tests
// ---------------------------------------------------------------------------------------------

/**
 * Reads the timecode strip of the frame a video shows: 48 blocks from the top left corner, white 1,
 * black 0, left to right 8 bits 10101010, 32 bits capture time (Unix ms mod 2³², most significant
 * first), 8 bits CRC-8 (polynomial 0x07, start 0, over the four time bytes).
 *
 * @param {CanvasImageSource & {videoWidth?: number, videoHeight?: number}} video
 * @param {CanvasRenderingContext2D} context  Best made with `willReadFrequently`; it is resized when
 *   smaller than 192×4.
 * @param {number} [blockPx]  Block size in pixels of the frame as it arrives.
 * @returns {number|null}  Capture time mod 2³², or null when there is no intact strip.
 */
export function readTimecode(video, context, blockPx = 16) {
  // Four pixels per block: enough to read the middle, a sixteenth of what a full-size copy would cost.
  const width = STRIP_BITS * 4;
  const height = 4;
  if (video.videoWidth !== undefined && (video.videoWidth < STRIP_BITS * blockPx || !video.videoHeight)) return null;
  if (context.canvas.width < width || context.canvas.height < height) {
    context.canvas.width = width;
    context.canvas.height = height;
  }
  try {
    context.drawImage(video, 0, 0, STRIP_BITS * blockPx, blockPx, 0, 0, width, height);
    return decodeStrip(context.getImageData(0, 0, width, height).data);
  } catch {
    return null; // a foreign canvas or video may be tainted; then nothing can be read
  }
}

const STRIP_BITS = 48;

/**
 * @param {Uint8ClampedArray|Uint8Array} rgba  192×4 pixels, the strip at four pixels per block.
 * @returns {number|null}
 */
export function decodeStrip(rgba) {
  const luma = new Array(STRIP_BITS);
  for (let block = 0; block < STRIP_BITS; block++) {
    let sum = 0;
    for (let y = 1; y <= 2; y++) { // only the middle: the edges carry the neighbours' ringing
      for (let x = 1; x <= 2; x++) {
        const at = (y * STRIP_BITS * 4 + block * 4 + x) * 4;
        sum += 0.299 * rgba[at] + 0.587 * rgba[at + 1] + 0.114 * rgba[at + 2];
      }
    }
    luma[block] = sum / 4;
  }
  // The preamble gives both levels, so a dimmed or limited-range picture still reads.
  const white = Math.min(luma[0], luma[2], luma[4], luma[6]);
  const black = Math.max(luma[1], luma[3], luma[5], luma[7]);
  if (white - black < 48) return null;
  const middle = (white + black) / 2;
  const bytes = [0, 0, 0, 0, 0, 0];
  for (let bit = 0; bit < STRIP_BITS; bit++) {
    if (luma[bit] > middle) bytes[bit >> 3] |= 0x80 >> (bit & 7);
  }
  if (bytes[0] !== 0xaa || crc8(bytes.slice(1, 5)) !== bytes[5]) return null;
  return ((bytes[1] << 24) | (bytes[2] << 16) | (bytes[3] << 8) | bytes[4]) >>> 0;
}

/** CRC-8, polynomial 0x07, start 0. @param {ArrayLike<number>} bytes */
export function crc8(bytes) {
  let crc = 0;
  for (let i = 0; i < bytes.length; i++) {
    crc ^= bytes[i];
    for (let bit = 0; bit < 8; bit++) crc = (crc & 0x80 ? (crc << 1) ^ 0x07 : crc << 1) & 0xff;
  }
  return crc;
}

/**
 * @typedef {object} LatencyReport
 * @property {number} frames            Frame callbacks seen.
 * @property {number} decoded_strips    Of those, frames whose strip was intact and measured.
 * @property {{p50: number|null, p95: number|null, p99: number|null, min: number|null, max: number|null, samples: number[]}} latency_ms
 *   Glass to glass from the strip; what it contains is written at the top of this file.
 * @property {Quantiles} rtp_latency_ms The same frames through RTP timestamps, as a cross-check.
 * @property {number} presented_frames  Frames the browser gave its compositor; more than `frames`
 *   when the page was too slow to see each one.
 * @property {number|null} dropped      Frames the browser dropped meanwhile (`framesDropped`).
 * @property {Record<Stage, number|null>} stages
 * @property {number} seconds           Measured duration.
 * @property {number|null} server_offset_ms
 * @property {number|null} clock_rtt_ms The offset is right within half of this.
 * @property {PlayerStats} stats
 */

/** Collects strip latencies of a player between {@link start} and {@link stop}. */
export class LatencyProbe {
  /** @type {LightpipePlayer} */ #player;
  #unsubscribe = () => {};
  #startedAt = 0;
  #frames = 0;
  #droppedBefore = /** @type {number|null} */ (null);
  /** @type {number[]} */ #latencies = [];
  /** @type {number[]} */ #rtpLatencies = [];
  /** @type {number|null} */ #firstPresented = null;
  #lastPresented = 0;

  /** @param {LightpipePlayer} player */
  constructor(player) { this.#player = player; }

  start() {
    this.#unsubscribe();
    this.#startedAt = performance.now();
    this.#frames = 0;
    this.#latencies = [];
    this.#rtpLatencies = [];
    this.#firstPresented = null;
    this.#droppedBefore = this.#player.stats.frames_dropped;
    this.#unsubscribe = this.#player.onFrame((sample) => {
      this.#frames += 1;
      this.#firstPresented ??= sample.metadata.presentedFrames;
      this.#lastPresented = sample.metadata.presentedFrames;
      if (sample.timecode_latency_ms !== null) this.#latencies.push(sample.timecode_latency_ms);
      if (sample.rtp_latency_ms !== null) this.#rtpLatencies.push(sample.rtp_latency_ms);
    });
  }

  /** @returns {LatencyReport} */
  stop() {
    this.#unsubscribe();
    const stats = this.#player.stats;
    const sorted = [...this.#latencies].sort((a, b) => a - b);
    const dropped = stats.frames_dropped === null ? null : stats.frames_dropped - (this.#droppedBefore ?? 0);
    return {
      frames: this.#frames,
      decoded_strips: sorted.length,
      latency_ms: {
        ...quantilesOfSorted(sorted),
        min: sorted[0] ?? null,
        max: sorted[sorted.length - 1] ?? null,
        samples: this.#latencies,
      },
      rtp_latency_ms: quantiles(this.#rtpLatencies),
      presented_frames: this.#firstPresented === null ? 0 : this.#lastPresented - this.#firstPresented + 1,
      dropped,
      stages: stats.stages_ms,
      seconds: (performance.now() - this.#startedAt) / 1000,
      server_offset_ms: this.#player.serverOffsetMs,
      clock_rtt_ms: this.#player.clockRttMs,
      stats,
    };
  }
}

/**
 * Measures a playing `pattern` stream (or any with the strip) for some seconds.
 *
 * @param {LightpipePlayer} player
 * @param {{seconds?: number, timeoutSeconds?: number}} [options]  `timeoutSeconds`: longest wait for
 *   picture and clock before measuring, default 15.
 * @returns {Promise<LatencyReport>}
 * @throws {Error} when no picture or no clock offset came in time; the message carries the cause.
 */
export async function measureTimecodeLatency(player, { seconds = 10, timeoutSeconds = 15 } = {}) {
  const giveUpAt = performance.now() + timeoutSeconds * 1000;
  while (player.state.state !== 'playing' || player.serverOffsetMs === null) {
    if (performance.now() > giveUpAt) {
      const { state, cause, text } = player.state;
      const lack = state === 'playing' ? 'no clock offset: the data channel gave no pong' : `${state} (${cause}): ${text}`;
      throw new Error(`cannot measure: ${lack}`);
    }
    await sleep(50);
  }
  const probe = new LatencyProbe(player);
  probe.start();
  await sleep(seconds * 1000);
  return probe.stop();
}

// ---------------------------------------------------------------------------------------------
// One WHEP session
// ---------------------------------------------------------------------------------------------

/** Why there is no picture. `retry` false: the same request would be refused again. `atOnce`: a session that was there is not any more, and
 * nobody was asked for another. `unreachable`: nobody refused anything. */
class Failure extends Error {
  /** @param {string} cause @param {string} text
   * @param {{retry?: boolean, retryAfterMs?: number|null, atOnce?: boolean, unreachable?: boolean}} [options] */
  constructor(cause, text, { retry = true, retryAfterMs = null, atOnce = false, unreachable = false } = {}) {
    super(text);
    this.cause = cause;
    this.retry = retry;
    this.retryAfterMs = retryAfterMs;
    this.atOnce = atOnce;
    this.unreachable = unreachable;
  }
}

/**
 * From offer to DELETE. `open` once, `close` once; `failed` is called at most once and never after
 * `close`. It never reconnects: that is the element's decision.
 */
class Session {
  /** @type {RTCPeerConnection|null} */ pc = null;
  /** @type {string|null} */ url = null;
  clock = new ClockSync();
  meter = new LatencyMeter(this.clock);
  #phase = new DisplayPhase();
  #lips = new LipSync();
  guard = new LatencyGuard();
  /** @type {string|null} */ #layer = null;
  #listening = false;
  /** @type {RTCRtpReceiver|null} */ #video = null;
  /** @type {RTCRtpReceiver|null} */ #audio = null;
  /** @type {RTCDataChannel|null} */ #channel = null;
  /** @type {number|null} */ connectedAt = null;
  /** @type {number|null} */ firstFrameAt = null;
  hasAudio = false;
  framesAdvanced = false;
  /** Nothing comes from the server any more. */
  pathSilent = false;
  /** The stream has no pictures; its sound is what is waited for. */
  soundAlone = false;

  #on;
  #closed = false;
  #token = /** @type {string|null} */ (null);
  #etag = /** @type {string|null} */ (null);
  #answer = '';
  #outage = new Outage();
  /** @type {AbortController|null} */ #asking = null;
  #trickle = noCandidates();
  #timers = /** @type {Set<number>} */ (new Set());
  #frameDueFrom = 0;
  #frameGraceMs = 0;
  /** @type {StatsReader|null} */ #reader = null;
  /** @type {MediaStream|null} */ #stream = null;

  /** @param {{track: (track: MediaStreamTrack) => void, failed: (failure: Failure) => void, path: (silent: boolean) => void}} on */
  constructor(on) { this.#on = on; }

  /** Our own stream rather than the server's: audio and video need not share one there. */
  get stream() { return (this.#stream ??= new MediaStream()); }

  /** Tells the server how much later pictures may be taken. While they wait for sound, it and not the display is what they are taken for.
   * @param {number} at @param {FrameSample['metadata']} metadata */
  tellPhase(at, metadata) {
    if (!this.#lips.holds) this.#takeLater(this.#phase.frame(at, metadata));
  }

  /** @param {number|null} laterMs */
  #takeLater(laterMs) {
    if (laterMs === null || this.#channel?.readyState !== 'open') return;
    this.#channel.send(JSON.stringify({ type: 'phase', later_ms: laterMs }));
  }

  /** Tells the server that pictures are shown ever later. @param {{ms: number, restart: boolean}} behind */
  tellBehind(behind) {
    if (this.#channel?.readyState === 'open') this.#channel.send(JSON.stringify({ type: 'behind', ...behind }));
  }

  /** Asks for a layer of the stream, or for the one that the network carries. @param {string|null} rid */
  wishLayer(rid) {
    if (rid === this.#layer) return;
    this.#layer = rid;
    if (this.#channel?.readyState === 'open') this.#channel.send(JSON.stringify({ type: 'layer', rid }));
  }

  /** Whether there is anybody to hear it: without, pictures wait for no sound. @param {boolean} listening */
  listen(listening) {
    if (listening === this.#listening) return;
    this.#listening = listening;
    this.#lips = new LipSync();
    for (const receiver of [this.#video, this.#audio]) if (receiver) hold(receiver, 0);
  }

  /** Holds pictures back for the sound, or the sound for them. @param {number} at @param {FrameSample} sample */
  syncLips(at, sample) {
    if (!this.#listening || !this.hasAudio) return;
    const latency = sample.rtp_latency_ms ?? sample.timecode_latency_ms;
    // A busy page is called after the picture was given to the display.
    const shown = latency === null ? null : latency - Math.max(at - sample.metadata.presentationTime, 0);
    const wish = this.#lips.look(at, this.#audioLatency(), shown);
    if (!wish) return;
    if (this.#video) hold(this.#video, wish.videoMs);
    if (this.#audio) hold(this.#audio, wish.audioMs);
    this.#takeLater(wish.takeLaterMs);
  }

  /** How old the sound is that leaves the jitter buffer now, ms. */
  #audioLatency() {
    const source = this.#audio?.getSynchronizationSources()[0];
    const pair = this.meter.server?.audio;
    if (!source || !pair) return null;
    const shown = this.clock.serverTime(source.timestamp - performance.timeOrigin);
    if (shown === null) return null;
    return plausible(shown - (pair[1] + ((source.rtpTimestamp - pair[0]) | 0) / 48) + AUDIO_BEHIND_MS);
  }

  /** @param {string} src @param {string|null} token */
  async open(src, token) {
    this.#token = token;
    try {
      await this.#open(src);
    } catch (error) {
      this.#fail(error instanceof Failure ? error
        : new Failure('negotiation_failed', `The browser could not use the server's answer (${/** @type {Error} */ (error).message}).`));
    }
  }

  close() {
    if (this.#closed) return;
    this.#closed = true;
    for (const timer of this.#timers) clearTimeout(timer);
    clearTimeout(this.#trickle.timer);
    this.#asking?.abort();
    this.pc?.close();
    this.#delete();
  }

  /** @param {number} at */
  sawFrame(at) {
    this.firstFrameAt ??= at;
    this.#frameDueFrom = at;
    this.#frameGraceMs = 0;
    this.#heard();
  }

  /** @param {number} ms */
  expectFrameWithin(ms) {
    this.#frameDueFrom = performance.now();
    this.#frameGraceMs = NO_FRAMES_MS - ms;
  }

  /** How long no frame has come, on the scale of `NO_FRAMES_MS`. @param {number} now */
  silentMs(now) {
    return now - Math.max(this.#frameDueFrom, this.connectedAt ?? now) + this.#frameGraceMs;
  }

  /** @returns {Promise<PlayerStats>} */
  async readStats() {
    const reader = this.#reader;
    const stats = reader ? await reader.read(this.soundAlone) : emptyStats('connecting');
    this.framesAdvanced = reader?.framesAdvanced ?? false;
    if (reader?.heard && !this.#closed) this.#heard();
    // Counting decoded frames too keeps players alive whose callback is throttled or missing.
    if (this.framesAdvanced && !this.#closed) this.sawFrame(performance.now());
    stats.rtt_ms ??= this.clock.rttMs;
    stats.server = this.meter.server;
    const measured = this.meter.summary(performance.now());
    stats.latency_ms = measured.latency;
    stats.stages_ms = stageSplit(measured, stats);
    stats.audio_latency_ms = this.#listening && this.hasAudio ? this.#audioLatency() : null;
    return stats;
  }

  // -- signalling ------------------------------------------------------------------------------

  /** @param {string} src */
  async #open(src) {
    if (typeof RTCPeerConnection !== 'function') {
      throw new Failure('browser_unsupported', 'This browser has no WebRTC, so it cannot show live video.', { retry: false });
    }
    const endpoint = endpointUrl(src);
    const pc = (this.pc = new RTCPeerConnection({ bundlePolicy: 'max-bundle' }));
    this.#reader = new StatsReader(pc);
    const video = pc.addTransceiver('video', { direction: 'recvonly' });
    const audio = pc.addTransceiver('audio', { direction: 'recvonly' });
    this.#video = video.receiver;
    this.#audio = audio.receiver;
    hold(video.receiver, 0);
    hold(audio.receiver, 0);
    this.#openChannel(pc.createDataChannel('lightpipe', { ordered: false, maxRetransmits: 0 }));
    pc.addEventListener('track', ({ track }) => {
      if (this.#closed) return;
      if (track.kind === 'audio') this.hasAudio = true;
      this.#on.track(track);
    });
    pc.addEventListener('icecandidate', ({ candidate }) => this.#gathered(candidate));
    this.#watchConnection(pc);

    const offer = await pc.createOffer();
    offer.sdp = withStereoOpus(offer.sdp ?? '');
    const response = await this.#post(endpoint, offer.sdp);
    this.url = locationUrl(response, endpoint);
    this.#etag = response.headers.get('ETag');
    const answer = await response.text();
    if (this.#closed) { this.#delete(); return; }

    // Only now does gathering start: ICE servers named in the response can no longer be used by a
    // connection that gathers already (RFC 9725 §4.6), and the server's own candidates are in the answer.
    const iceServers = parseIceServers(response.headers.get('Link'));
    if (iceServers.length) useIceServers(pc, iceServers);
    await pc.setLocalDescription(offer);
    this.#answer = withSoundApart(answer);
    await pc.setRemoteDescription({ type: 'answer', sdp: this.#answer });
    this.soundAlone = video.currentDirection !== 'recvonly' && audio.currentDirection === 'recvonly';
    this.#after(CONNECT_TIMEOUT_MS, () => {
      if (this.connectedAt === null) this.#fail(iceFailure());
    });
  }

  /** @param {string} endpoint @param {string} sdp @returns {Promise<Response>} */
  async #post(endpoint, sdp) {
    const timeout = new AbortController();
    const timer = setTimeout(() => timeout.abort(), SIGNALLING_TIMEOUT_MS);
    let response;
    try {
      response = await fetch(endpoint, {
        method: 'POST',
        headers: this.#headers({ 'Content-Type': 'application/sdp', Accept: 'application/sdp' }),
        body: sdp,
        cache: 'no-store',
        signal: timeout.signal,
      });
    } catch {
      throw timeout.signal.aborted
        ? new Failure('signalling_timeout', 'The server did not answer in time.', { unreachable: true })
        : new Failure('signalling_unreachable', `The server at ${new URL(endpoint).host} cannot be reached.`, { unreachable: true });
    } finally {
      clearTimeout(timer);
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }

  /** @param {Record<string, string>} headers @returns {Record<string, string>} */
  #headers(headers) {
    return this.#token ? { ...headers, Authorization: `Bearer ${this.#token}` } : headers;
  }

  #delete() {
    if (!this.url) return;
    const url = this.url;
    this.url = null;
    // `keepalive` lets it survive the page; where it fails the server notices the silence itself.
    fetch(url, { method: 'DELETE', keepalive: true, headers: this.#headers({}) }).catch(() => {});
  }

  // -- trickle ---------------------------------------------------------------------------------

  /** @param {RTCIceCandidate|null} candidate */
  #gathered(candidate) {
    const trickle = this.#trickle;
    if (candidate?.candidate) trickle.queue.push(candidate);
    else trickle.ended = true;
    if (trickle.timer || trickle.refused || this.#closed) return;
    trickle.timer = window.setTimeout(() => void this.#sendCandidates(), trickle.ended ? 0 : TRICKLE_BATCH_MS);
  }

  /** Never fatal: the server learns our address from our checks anyway. */
  async #sendCandidates() {
    const trickle = this.#trickle;
    const candidates = trickle.queue.splice(0);
    const ended = trickle.ended;
    const sdp = this.pc?.localDescription?.sdp;
    const done = () => {
      trickle.timer = 0;
      const more = trickle.queue.length > 0 || trickle.ended !== ended;
      if (more && !trickle.refused && !this.#closed) void this.#sendCandidates();
    };
    if (!this.url || !sdp || this.#closed) return done();
    /** @type {Record<string, string>} */
    const headers = { 'Content-Type': 'application/trickle-ice-sdpfrag' };
    if (this.#etag) headers['If-Match'] = this.#etag;
    try {
      const response = await fetch(this.url, {
        method: 'PATCH',
        headers: this.#headers(headers),
        body: trickleFragment(sdp, candidates.map((candidate) => candidate.candidate), ended),
      });
      if (!response.ok) trickle.refused = true;
    } catch {
      trickle.refused = true;
    }
    done();
  }

  // -- connection and channel ------------------------------------------------------------------

  /** @param {RTCPeerConnection} pc */
  #watchConnection(pc) {
    const look = () => { this.#lookAtPath(); this.#after(PATH_LOOK_MS, look); };
    pc.addEventListener('iceconnectionstatechange', () => {
      const state = pc.iceConnectionState;
      if (state === 'connected' || state === 'completed') {
        const first = this.connectedAt === null;
        this.connectedAt ??= performance.now();
        this.#heard();
        if (first) look();
      } else if (state === 'failed' && this.connectedAt === null) {
        this.#fail(iceFailure());
      }
    });
    pc.addEventListener('connectionstatechange', () => {
      // ICE is looked after above, and in Chromium its failure comes here first.
      const dtls = /** @type {any} */ (this.#video)?.transport?.state;
      if (pc.connectionState !== 'failed' || (dtls ? dtls !== 'failed' : pc.iceConnectionState === 'failed')) return;
      this.#fail(new Failure('dtls_failed', 'The encrypted connection to the server could not be set up.'));
    });
  }

  // -- outages ---------------------------------------------------------------------------------

  /** Something came from the server. */
  #heard() {
    this.#outage.heard(performance.now());
    if (!this.pathSilent) return;
    this.pathSilent = false;
    this.expectFrameWithin(NO_FRAMES_MS);
    this.#on.path(false);
  }

  /** The network may be back, or the page is looked at again: no waiting now. */
  hurry() {
    this.#outage.hurry(performance.now());
    this.#asking?.abort(); // over a network that is gone
    this.#lookAtPath();
  }

  #lookAtPath() {
    if (this.#closed || !this.pc || this.connectedAt === null) return;
    const step = this.#outage.step(performance.now(), this.pc.iceConnectionState, this.url !== null);
    if (this.#outage.silent && !this.pathSilent) {
      this.pathSilent = true;
      this.#on.path(true);
    }
    if (step === 'anew') this.#fail(new Failure('connection_lost', 'The connection to the server was lost.', { atOnce: true }));
    else if (step === 'ask') void this.#ask();
    else if (step === 'restart') void this.#restart(this.pc);
  }

  /** @param {OutageNews} news */
  #tell(news) {
    if (this.#closed) return;
    this.#outage.told(performance.now(), news);
    this.#lookAtPath();
  }

  async #ask() {
    this.#asking = new AbortController();
    const answer = await this.#request('HEAD', {}, undefined, ASK_TIMEOUT_MS, this.#asking);
    this.#asking = null;
    this.#tell(newsOf(answer));
  }

  /** Restarts ICE (RFC 9725 §4.3.2). The browser's own is left alone until the server has agreed. @param {RTCPeerConnection} pc */
  async #restart(pc) {
    /** @type {OutageNews} */ let news = 'refused';
    try {
      const offer = await pc.createOffer({ iceRestart: true });
      offer.sdp = withStereoOpus(offer.sdp ?? '');
      const headers = { 'Content-Type': 'application/trickle-ice-sdpfrag', 'If-Match': '*' };
      const response = await this.#request('PATCH', headers, trickleFragment(offer.sdp, [], false), RESTART_TIMEOUT_MS, new AbortController());
      news = newsOf(response);
      const answer = response?.status === 200 ? restartedAnswer(this.#answer, response.text) : null;
      if (news === 'there') news = answer ? 'restarted' : 'refused';
      if (response && answer && !this.#closed) {
        this.#etag = response.etag;
        clearTimeout(this.#trickle.timer);
        this.#trickle = noCandidates();
        this.#answer = answer;
        await pc.setLocalDescription(offer);
        await pc.setRemoteDescription({ type: 'answer', sdp: answer });
      }
    } catch {
      news = 'refused'; // by this browser; a new session asks less of it
    }
    this.#tell(news);
  }

  /** A request to the session. @param {string} method @param {Record<string, string>} headers @param {string|undefined} body
   * @param {number} ms @param {AbortController} timeout
   * @returns {Promise<{status: number, etag: string|null, text: string}|null>} none when there was no answer in time */
  async #request(method, headers, body, ms, timeout) {
    const timer = setTimeout(() => timeout.abort(), ms);
    try {
      const options = { method, headers: this.#headers(headers), body, signal: timeout.signal };
      const response = await fetch(this.url ?? '', { ...options, cache: 'no-store' });
      return { status: response.status, etag: response.headers.get('ETag'), text: await response.text() };
    } catch {
      return null;
    } finally {
      clearTimeout(timer);
    }
  }

  /** @param {RTCDataChannel} channel */
  #openChannel(channel) {
    this.#channel = channel;
    const ping = () => {
      if (channel.readyState === 'open') channel.send(JSON.stringify({ type: 'ping', t: performance.now() }));
    };
    const pingOn = () => { ping(); this.#after(PING_INTERVAL_MS, pingOn); };
    let opened = false;
    channel.addEventListener('open', () => {
      opened = true;
      if (this.#layer !== null) channel.send(JSON.stringify({ type: 'layer', rid: this.#layer }));
      for (const ms of PING_BURST_MS) this.#after(ms, ping);
      this.#after(PING_BURST_MS[PING_BURST_MS.length - 1], pingOn);
    });
    channel.addEventListener('message', ({ data }) => {
      const now = performance.now();
      this.#heard();
      const message = parseMessage(data);
      if (message?.type === 'pong') {
        this.clock.add(message.t, now, message.server_ms);
      } else if (message?.type === 'stats') {
        this.meter.server = message;
      } else if (message?.type === 'bye') {
        const text = typeof message.text === 'string' && message.text ? message.text : 'The server ended the connection.';
        this.#fail(new Failure(String(message.cause ?? 'bye'), text));
      }
    });
    // A server that goes away closes DTLS first; this is seconds earlier than ICE noticing.
    channel.addEventListener('close', () => {
      if (opened) this.#after(250, () => this.#fail(new Failure('server_closed', 'The server closed the connection.')));
    });
  }

  /** @param {Failure} failure */
  #fail(failure) {
    if (!this.#closed) this.#on.failed(failure);
  }

  /** @param {number} ms @param {() => void} run @returns {number} */
  #after(ms, run) {
    const timer = window.setTimeout(() => {
      this.#timers.delete(timer);
      if (!this.#closed) run();
    }, ms);
    this.#timers.add(timer);
    return timer;
  }
}

const iceFailure = () => new Failure('ice_failed',
  'The server answered, but no media came through: its UDP port is probably blocked by a firewall in between.');
const noCandidates = () => ({ queue: /** @type {RTCIceCandidate[]} */ ([]), timer: 0, ended: false, refused: false });

/** What a session's answer to a request says about it. A proxy answers 5xx for a server that it cannot reach.
 * @param {{status: number}|null} answer @returns {OutageNews} */
function newsOf(answer) {
  if (!answer || answer.status >= 500) return 'unreachable';
  return answer.status === 404 || answer.status === 410 ? 'gone' : 'there';
}

/** One server the browser dislikes (a blocked port, an odd scheme) must not cost the others, nor the session.
 * @param {RTCPeerConnection} pc @param {RTCIceServer[]} iceServers */
function useIceServers(pc, iceServers) {
  /** @type {RTCIceServer[]} */
  const accepted = [];
  for (const server of iceServers) {
    try {
      pc.setConfiguration({ bundlePolicy: 'max-bundle', iceServers: [...accepted, server] });
      accepted.push(server);
    } catch { /* the candidates of the answer and the other servers remain */ }
  }
}

/** Asks the receiver to hold what it receives for so long, 0 for as shortly as it can.
 * @param {RTCRtpReceiver} receiver @param {number} ms */
function hold(receiver, ms) {
  const target = /** @type {any} */ (receiver);
  try {
    if ('jitterBufferTarget' in target) target.jitterBufferTarget = ms;
    else if ('playoutDelayHint' in target) target.playoutDelayHint = ms / 1000;
  } catch { /* an old browser with other limits; it then buffers as it likes */ }
}

/** @param {string} src @returns {string} */
function endpointUrl(src) {
  let url;
  try {
    url = new URL(src, document.baseURI);
  } catch {
    throw new Failure('bad_source', 'The address of the stream is not a valid URL.', { retry: false });
  }
  if (location.protocol === 'https:' && url.protocol === 'http:' && !/^(localhost|127\.|\[::1\])/.test(url.hostname)) {
    throw new Failure('mixed_content', 'This page came over HTTPS, so the browser forbids a stream from a plain HTTP server.', { retry: false });
  }
  return url.href;
}

/** @param {Response} response @param {string} endpoint @returns {string|null} */
function locationUrl(response, endpoint) {
  const location = response.headers.get('Location');
  if (!location) return null; // a foreign server that does not expose it: no trickle, no DELETE
  try {
    return new URL(location, response.url || endpoint).href;
  } catch {
    return null;
  }
}

/** @param {Response} response @returns {Promise<Failure>} */
async function refusal(response) {
  /** @type {{cause?: unknown, detail?: unknown, title?: unknown}} */
  let problem = {};
  try {
    if (/json/.test(response.headers.get('Content-Type') ?? '')) problem = (await response.json()) ?? {};
  } catch { /* the status alone has to do */ }
  const known = REFUSALS[response.status];
  const cause = typeof problem.cause === 'string' ? problem.cause : known?.[0] ?? `http_${response.status}`;
  const text = [problem.detail, problem.title].find((part) => typeof part === 'string' && part !== '');
  const retryAfter = Number(response.headers.get('Retry-After'));
  return new Failure(cause, /** @type {string|undefined} */ (text) ?? known?.[1] ?? `The server refused with HTTP ${response.status}.`, {
    // 404 and 409 pass when the source starts; what we ask wrongly we would ask wrongly again.
    retry: response.status >= 500 || [404, 408, 409, 425, 429].includes(response.status),
    retryAfterMs: retryAfter > 0 ? retryAfter * 1000 : null,
  });
}

/** @type {Record<number, [string, string]>} */
const REFUSALS = {
  401: ['unauthorized', 'The server wants a token to show this stream.'],
  403: ['forbidden', 'The server does not allow this page to show the stream.'],
  404: ['no_such_stream', 'There is no stream with this name.'],
  406: ['no_common_codec', 'Server and browser have no video codec in common.'],
  429: ['too_many_requests', 'The server is asked too often at the moment.'],
  503: ['unavailable', 'The server cannot take another viewer at the moment.'],
};

/**
 * ICE servers from WHEP `Link` headers: `<turn:host>; rel="ice-server"; username="u"; credential="c"`.
 * @param {string|null} header  All `Link` headers, joined by commas as fetch does.
 * @returns {RTCIceServer[]}
 */
export function parseIceServers(header) {
  /** @type {RTCIceServer[]} */
  const servers = [];
  const link = /<([^>]*)>((?:\s*;\s*[\w-]+\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s;,"]+))*)/g;
  const parameter = /([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]+))/g;
  for (const [, url, rest] of (header ?? '').matchAll(link)) {
    /** @type {Record<string, string>} */
    const fields = {};
    for (const [, key, quoted, bare] of rest.matchAll(parameter)) fields[key.toLowerCase()] = quoted?.replace(/\\(.)/g, '$1') ?? bare;
    if (!/(^|\s)ice-server(\s|$)/.test(fields.rel ?? '') || !/^(stuns?|turns?):/.test(url)) continue;
    servers.push(fields.username === undefined ? { urls: url } : { urls: url, username: fields.username, credential: fields.credential ?? '' });
  }
  return servers;
}

/**
 * Candidates as `application/trickle-ice-sdpfrag` (RFC 8840), all under the first section, which
 * carries the bundle.
 * @param {string} sdp  Local description. @param {string[]} candidates @param {boolean} ended
 */
export function trickleFragment(sdp, candidates, ended) {
  const find = (/** @type {RegExp} */ pattern) => sdp.match(pattern)?.[0];
  const kind = sdp.match(/^m=(\w+) \d+ (\S+)/m);
  const lines = [
    find(/^a=group:BUNDLE .*$/m),
    find(/^a=ice-ufrag:.*$/m),
    find(/^a=ice-pwd:.*$/m),
    `m=${kind?.[1] ?? 'video'} 9 ${kind?.[2] ?? 'UDP/TLS/RTP/SAVPF'} 0`,
    find(/^a=mid:.*$/m),
    ...candidates.map((candidate) => `a=${candidate.replace(/^a=/, '')}`),
    ended ? 'a=end-of-candidates' : undefined,
  ];
  return lines.filter((line) => line !== undefined).map((line) => `${line.trim()}\r\n`).join('');
}

/**
 * An answer after a restart of ICE: the old one with the credentials, and the candidates if there are any, of the fragment that
 * answered the restart (RFC 8840 §9).
 * @param {string} sdp @param {string} fragment @returns {string|null}  null for a fragment without credentials
 */
export function restartedAnswer(sdp, fragment) {
  const [ufrag, pwd] = [/^a=ice-ufrag:.+$/m, /^a=ice-pwd:.+$/m].map((line) => fragment.match(line)?.[0].trim());
  if (!ufrag || !pwd) return null;
  const renewed = sdp.replace(/^a=ice-ufrag:.*$/gm, () => ufrag).replace(/^a=ice-pwd:.*$/gm, () => pwd);
  const candidates = [...fragment.matchAll(/^a=candidate:.+$/gm)].map(([line]) => `${line.trim()}\r\n`);
  if (candidates.length === 0) return renewed;
  const sections = renewed.replace(/^a=(?:candidate:.*|end-of-candidates)\r?\n/gm, '').split(/^(?=m=)/m);
  // Under the first section, which carries the bundle.
  if (sections.length > 1) sections[1] += candidates.join('');
  return sections.join('');
}

/** Chromium decodes Opus to mono unless its own offer asks for stereo (RFC 7587 §6.1). @param {string} sdp */
export function withStereoOpus(sdp) {
  const payloadType = sdp.match(/^a=rtpmap:(\d+) opus\/48000/im)?.[1];
  if (!payloadType) return sdp;
  const line = new RegExp(`^(a=fmtp:${payloadType} (?!.*\\bstereo=).*)$`, 'm');
  return sdp.replace(line, (whole) => `${whole.trimEnd()};stereo=1${whole.endsWith('\r') ? '\r' : ''}`);
}

/**
 * Gives the sound of an answer a stream of its own. Browsers hold pictures back for sound of the same stream, muted or not;
 * {@link LipSync} does that only while somebody listens.
 * @param {string} sdp @returns {string}
 */
export function withSoundApart(sdp) {
  const sections = sdp.split(/^(?=m=)/m);
  return sections.map((section) => (section.startsWith('m=audio')
    ? section.replace(/^(a=(?:ssrc:\d+ )?msid:)\S+/gm, '$1lightpipe-sound')
    : section)).join('');
}

/**
 * Decides how long pictures or sound are held back for the other.
 *
 * A display shows pictures at its refreshes only, so holding them longer moves them by whole refreshes. What is left is moved away by a
 * source that takes its pictures so much later, held so much less; one that does not follow (others look at it too) is asked once.
 */
export class LipSync {
  /** @type {number[]} */ #audio = [];
  /** @type {number[]} */ #video = [];
  /** @type {number|null} */ #since = null;
  /** How much longer pictures are held than sound; negative the other way. */
  #lead = 0;
  /** Moves away from a refresh since all pictures last kept to theirs; ten looks later one more is tried. */
  #moves = 0;
  /** What the source was asked for: by so much pictures should be older than they were then. @type {{byMs: number, fromMs: number}|null} */
  #asked = null;
  #follows = true;
  #interval;

  /** @param {number} [intervalMs] refresh interval of the display */
  constructor(intervalMs = 1000 / 60) { this.#interval = intervalMs; }

  /** Whether pictures wait for sound. */
  get holds() { return this.#lead > 0; }

  /** One look at both ages, ms, with each picture. @param {number} at @param {number|null} audioMs @param {number|null} videoMs
   * @returns {{videoMs: number, audioMs: number, takeLaterMs: number|null}|null} how long to hold each from now on, and how much later the
   *   source may take its pictures */
  look(at, audioMs, videoMs) {
    this.#since ??= at;
    if (audioMs === null || videoMs === null || at < this.#since) return null;
    this.#audio.push(audioMs);
    this.#video.push(videoMs);
    if (at - this.#since < LIP_WINDOW_MS || this.#audio.length < LIP_SAMPLES) return null;
    const [audio, video] = [this.#audio, this.#video].map((ages) => ages.sort((a, b) => a - b));
    this.#audio = [];
    this.#video = [];
    this.#since = at;
    const { by, take } = this.#change(middle(audio), video);
    if (by === 0) return null;
    this.#since = at + LIP_SETTLE_MS;
    this.#lead = Math.max(-LIP_MAX_MS, Math.min(LIP_MAX_MS, this.#lead + by));
    return {
      videoMs: Math.max(this.#lead, 0),
      audioMs: Math.max(-this.#lead, 0),
      takeLaterMs: take ? ((-by % this.#interval) + this.#interval) % this.#interval : null,
    };
  }

  /** By how much longer pictures are to be held, and whether the source is to take them earlier by as much. @param {number} sound @param {number[]} ages */
  #change(sound, ages) {
    const shown = ages[ages.length >> 1];
    const strays = Math.floor(ages.length * LIP_STRAY_SHARE);
    const [first, last] = [ages[strays], ages[ages.length - 1 - strays]];
    const torn = last - first > this.#interval / 2;
    const asked = this.#asked;
    this.#asked = null;
    this.#moves = torn ? Math.max(this.#moves - 0.1, 0) : 0;
    if (asked && !torn && Math.abs(shown - asked.fromMs - asked.byMs) > Math.abs(asked.byMs) / 2) {
      this.#follows = false;
      return { by: -asked.byMs, take: false };
    }
    const late = sound - shown;
    // A frame rate that does not divide the refresh rate tears pictures apart wherever they are held to.
    if (torn && this.#lead > 0 && this.#moves < 2 && Math.abs(late) <= this.#interval + LIP_TOLERANCE_MS) {
      this.#moves += 1;
      return { by: Math.abs(sound - first) <= Math.abs(sound - last) ? -this.#interval / 3 : this.#interval / 3, take: false };
    }
    if (Math.abs(late) > LIP_TOLERANCE_MS) {
      const whole = this.#lead > 0 && !torn;
      return { by: whole ? Math.round(late / this.#interval) * this.#interval : late, take: false };
    }
    if (Math.abs(late) <= LIP_FINE_MS || !this.#follows || torn || this.#lead <= 0) return { by: 0, take: false };
    this.#asked = { byMs: late, fromMs: shown };
    return { by: late, take: true };
  }
}

/** Mean without the outer fifths. @param {number[]} sorted */
function middle(sorted) {
  const cut = Math.floor(sorted.length / 5);
  const kept = sorted.slice(cut, sorted.length - cut);
  return kept.reduce((sum, value) => sum + value, 0) / kept.length;
}

/** Notices pictures that are shown ever later: a device too slow for them, a buffer that grew and stays. */
export class LatencyGuard {
  /** @type {{at: number, ms: number}[]} Latency of the last minute. */ #seen = [];
  #looks = 0;
  #questions = 0;

  /** One look at the latency. @param {number} at @param {number|null} ms
   * @returns {{ms: number, restart: boolean}|null} how much more than at best, and what is to be done: ask for less, or connect anew */
  look(at, ms) {
    if (ms === null) return null;
    this.#seen = this.#seen.filter((old) => at - old.at < BEHIND_WINDOW_MS);
    const best = Math.min(ms, ...this.#seen.map((old) => old.ms));
    this.#seen.push({ at, ms });
    if (ms - best < BEHIND_MS) {
      this.#looks = 0;
      if (ms - best < BEHIND_MS / 2) this.#questions = 0;
      return null;
    }
    this.#looks += 1;
    if (this.#looks < BEHIND_LOOKS) return null;
    this.#looks = 0;
    const restart = this.#questions >= BEHIND_QUESTIONS;
    this.#questions = restart ? 0 : this.#questions + 1;
    return { ms: ms - best, restart };
  }
}

/** @param {unknown} data @returns {any} */
function parseMessage(data) {
  if (typeof data !== 'string') return null;
  try {
    return JSON.parse(data);
  } catch {
    return null; // a message we do not know disturbs nothing
  }
}

// ---------------------------------------------------------------------------------------------
// Pure parts: time goes in, numbers come out
// ---------------------------------------------------------------------------------------------

/** @typedef {'there'|'gone'|'unreachable'|'restarted'|'refused'} OutageNews  What was learnt of the session: the server knows it, or does
 *   not; nobody answered; ICE was restarted, or will not be. */

/**
 * What to do about a server of which nothing is heard any more: time and news go in, the next step comes out.
 *
 * The session is worth keeping: its picture is back as soon as the network is, and mostly ICE comes back by itself. So the server is asked whether
 * it still knows the session, again and again, and only when it answers and ICE has not come back, ICE is restarted. The question is not the
 * restart itself: one that was given up may still reach the server later, and would end what has just come back.
 */
export class Outage {
  #heardAt = 0;
  /** @type {number|null} */ #since = null;
  /** @type {'ask'|'restart'|'anew'} */ #step = 'ask';
  #dueAt = 0;
  #askedAt = -Infinity;
  #restarts = 0;
  #busy = false;

  /** Whether there is one. */
  get silent() { return this.#since !== null; }

  /** Something came from the server. @param {number} at */
  heard(at) {
    this.#heardAt = at;
    this.#since = null;
  }

  /** There is reason to believe that the network is back. @param {number} at */
  hurry(at) {
    this.#askedAt = -Infinity;
    if (this.#step === 'ask') this.#dueAt = at;
  }

  /**
   * @param {number} at @param {RTCIceConnectionState} ice
   * @param {boolean} asks  Whether the session has an address; a foreign server may hide it.
   * @returns {'ask'|'restart'|'anew'|null}  Ask for the session, restart its ICE (then {@link told} is due), or make a new one.
   */
  step(at, ice, asks) {
    const broken = ice === 'disconnected' || ice === 'failed';
    if (this.#since === null) {
      if (at - this.#heardAt < (broken ? SILENT_BROKEN_MS : SILENT_MS)) return null;
      this.#since = at;
      this.#restarts = 0;
      this.#next('ask', at);
    }
    const lasts = at - this.#since;
    if (!asks) return ice === 'failed' || (broken && lasts >= DISCONNECTED_GRACE_MS) ? 'anew' : null;
    if (lasts >= OUTAGE_LIMIT_MS) return 'anew';
    // Where ICE has given up there is nothing to wait for.
    const waits = at < this.#dueAt && !(this.#step === 'restart' && ice === 'failed');
    if (this.#busy || waits) return null;
    this.#busy = this.#step !== 'anew';
    this.#askedAt = at;
    return this.#step;
  }

  /** What came of the last step. @param {number} at @param {OutageNews} news */
  told(at, news) {
    this.#busy = false;
    if (news === 'gone') this.#next('anew', at);
    else if (news === 'refused') this.#next('anew', at + DISCONNECTED_GRACE_MS);
    else if (news === 'unreachable') this.#next('ask', Math.max(at, this.#askedAt + ASK_EVERY_MS));
    else if (news === 'there' && this.#restarts < RESTARTS) this.#next('restart', Math.max(at + OWN_RETURN_MS, this.#heardAt + RESTART_AFTER_MS));
    else if (news === 'there') this.#next('anew', at);
    else {
      this.#restarts += 1;
      this.#next('ask', at + RESTART_EFFECT_MS);
    }
  }

  /** @param {'ask'|'restart'|'anew'} step @param {number} dueAt */
  #next(step, dueAt) {
    this.#step = step;
    this.#dueAt = dueAt;
  }
}

/** Exponential backoff with ±25 % jitter, so that all viewers of a restarted server do not return at once. */
export class Backoff {
  attempts = 0;
  reset() { this.attempts = 0; }
  /** @param {number} random  0 to 1. @param {number|null} [atLeastMs] @param {number} [atMostMs]  Without the jitter. @returns {number} */
  next(random, atLeastMs = null, atMostMs = BACKOFF_MAX_MS) {
    const base = Math.min(atMostMs, BACKOFF_FIRST_MS * 2 ** this.attempts);
    this.attempts += 1;
    return Math.max(base * (0.75 + random / 2), atLeastMs ?? 0);
  }
}

/**
 * Offset between the server's clock and the page's, from ping and pong.
 *
 * The true offset lies within half a round trip of each sample, so the sample with the smallest round
 * trip of the last 30 s wins. Two samples whose ranges do not touch mean that a clock stepped (the
 * laptop slept, NTP jumped): then only the newer one counts.
 */
export class ClockSync {
  /** @type {{at: number, rtt: number, offset: number}[]} */ #samples = [];
  #origin;

  /** @param {number} [timeOriginMs] */
  constructor(timeOriginMs = performance.timeOrigin) { this.#origin = timeOriginMs; }

  /** @param {unknown} sentMs @param {number} receivedMs @param {unknown} serverMs */
  add(sentMs, receivedMs, serverMs) {
    if (typeof sentMs !== 'number' || typeof serverMs !== 'number') return;
    const rtt = receivedMs - sentMs;
    if (!(rtt >= 0 && rtt < 10_000)) return;
    const offset = serverMs - (this.#origin + (sentMs + receivedMs) / 2);
    this.#samples = this.#samples.filter((old) => receivedMs - old.at < CLOCK_WINDOW_MS
      && Math.abs(old.offset - offset) <= (old.rtt + rtt) / 2 + 5);
    this.#samples.push({ at: receivedMs, rtt, offset });
  }

  get #best() {
    return this.#samples.reduce((best, sample) => (best && best.rtt <= sample.rtt ? best : sample),
      /** @type {{rtt: number, offset: number}|null} */ (null));
  }
  /** @returns {number|null} */
  get offsetMs() { return this.#best?.offset ?? null; }
  /** @returns {number|null} */
  get rttMs() { return this.#best?.rtt ?? null; }

  /** Server's Unix milliseconds at a `performance.now()` instant. @param {number} at @returns {number|null} */
  serverTime(at) {
    const offset = this.offsetMs;
    return offset === null ? null : this.#origin + at + offset;
  }
}

/**
 * How much earlier than needed pictures arrive for this display.
 *
 * A picture that is ready just after a refresh waits for the next one: up to 16.7 ms, half of all the
 * latency on a LAN. A source that draws its pictures itself can take them that much later instead, if
 * it is told. The wait is an angle on the circle of one refresh interval; its circular mean is moved to
 * just above zero, by twice its spread, so that few pictures miss their refresh. Where the frame rate
 * does not divide the refresh rate the waits are spread all over the circle, and nothing is asked for.
 */
export class DisplayPhase {
  /** @type {number[]} */ #waits = [];
  #quietUntil = 0;
  #interval;
  #margin = PHASE_MARGIN_MS;

  /** @param {number} [intervalMs] refresh interval of the display */
  constructor(intervalMs = 1000 / 60) { this.#interval = intervalMs; }

  /** @param {number} at @param {FrameSample['metadata']} metadata @returns {number|null} ask for this much later, ms */
  frame(at, metadata) {
    const { presentationTime, receiveTime, processingDuration } = metadata;
    if (typeof receiveTime !== 'number' || typeof processingDuration !== 'number' || at < this.#quietUntil) return null;
    const wait = presentationTime - receiveTime - processingDuration * 1000;
    if (!(wait > -5 && wait < 100)) return null;
    this.#waits.push(wait);
    if (this.#waits.length < PHASE_SAMPLES) return null;
    const later = this.#later(this.#waits);
    this.#waits = [];
    if (later !== null) this.#quietUntil = at + PHASE_SETTLE_MS;
    return later;
  }

  /** @param {number[]} waits @returns {number|null} */
  #later(waits) {
    // A compositor that is behind takes a picture one refresh later than it could; on the circle both are the same.
    const median = waits.slice().sort((a, b) => a - b)[waits.length >> 1];
    this.#margin = median > this.#interval
      ? Math.min(this.#margin + PHASE_MARGIN_STEP_MS, this.#interval / 2)
      : Math.max(this.#margin - PHASE_MARGIN_DECAY_MS, PHASE_MARGIN_MS);
    const turn = (2 * Math.PI) / this.#interval;
    let x = 0;
    let y = 0;
    for (const wait of waits) {
      x += Math.cos(wait * turn);
      y += Math.sin(wait * turn);
    }
    const length = Math.hypot(x, y) / waits.length;
    if (length < PHASE_MIN_ORDER) return null;
    const mean = Math.atan2(y, x) / turn;
    const spread = Math.sqrt(-2 * Math.log(Math.min(length, 1))) / turn;
    const wanted = Math.min(this.#margin + 2 * spread, this.#interval / 2);
    // Between 0 and one interval: a source can wait, it cannot hurry.
    const later = (((mean - wanted) % this.#interval) + this.#interval) % this.#interval;
    const distance = Math.min(later, this.#interval - later);
    return distance < PHASE_STEP_MS ? null : later;
  }
}

/** Latency of the frames of one session, last 10 s. */
export class LatencyMeter {
  /** The server's last message; its (rtp, capture_ms) pair maps RTP time to capture time.
   * @type {ServerStats|null} */
  server = null;
  #clock;
  /** @type {{at: number, timecode: number|null, rtp: number|null, toReceive: number|null, afterReceive: number|null}[]} */
  #window = [];

  /** @param {ClockSync} clock */
  constructor(clock) { this.#clock = clock; }

  /** @param {number} at @param {FrameSample['metadata']} metadata @param {number|null} timecode @returns {FrameSample} */
  frame(at, metadata, timecode) {
    const shown = this.#clock.serverTime(at);
    const byTimecode = shown === null || timecode === null ? null : plausible(wrap32(shown - timecode));
    const byRtp = shown === null ? null : this.#rtpLatency(shown, metadata.rtpTimestamp);
    const latency = byRtp ?? byTimecode;
    const afterReceive = typeof metadata.receiveTime === 'number' ? plausible(at - metadata.receiveTime) : null;
    this.#window.push({
      at,
      timecode: byTimecode,
      rtp: byRtp,
      toReceive: latency === null || afterReceive === null ? null : latency - afterReceive,
      afterReceive,
    });
    this.#forget(at);
    return { at_ms: at, metadata, timecode, timecode_latency_ms: byTimecode, rtp_latency_ms: byRtp };
  }

  /** @param {number} at */
  summary(at) {
    this.#forget(at);
    const pick = (/** @type {'timecode'|'rtp'|'toReceive'|'afterReceive'} */ key) => /** @type {number[]} */ (
      this.#window.map((sample) => sample[key]).filter((value) => value !== null));
    const timecodes = pick('timecode');
    const rtps = pick('rtp');
    // The strip is the better witness: it was in the picture itself. A few lucky CRCs are not a strip.
    const source = timecodes.length >= 5 ? 'timecode' : rtps.length ? 'rtp' : null;
    return {
      latency: {
        ...quantiles(source === 'timecode' ? timecodes : rtps),
        source: /** @type {'timecode'|'rtp'|null} */ (source),
      },
      toReceive: quantiles(pick('toReceive')).p50,
      afterReceive: quantiles(pick('afterReceive')).p50,
      server: this.server,
    };
  }

  /** @param {number} shown @param {number|undefined} rtp @returns {number|null} */
  #rtpLatency(shown, rtp) {
    const pair = this.server;
    if (typeof rtp !== 'number' || typeof pair?.rtp !== 'number' || typeof pair.capture_ms !== 'number') return null;
    const ticks = (rtp - pair.rtp) | 0; // signed difference modulo 2³²
    return plausible(shown - (pair.capture_ms + ticks / ((pair.clock_rate || 90_000) / 1000)));
  }

  /** @param {number} at */
  #forget(at) {
    const from = at - LATENCY_WINDOW_MS;
    let old = 0;
    while (old < this.#window.length && this.#window[old].at < from) old += 1;
    if (old) this.#window.splice(0, old);
  }
}

/**
 * Where the time goes, in medians.
 *
 * capture, queue, encode and send are the server's own. With `receiveTime` (Chromium) network is what
 * lies between sending and the last packet of a frame, and render what lies between decoder and callback;
 * without it network is half the round trip and render the remainder. Medians of parts need not add
 * up to the median of the whole to the last tenth.
 *
 * @param {ReturnType<LatencyMeter['summary']>} measured
 * @param {Pick<PlayerStats, 'jitter_buffer_ms'|'decode_ms'|'rtt_ms'>} stats
 * @returns {Record<Stage, number|null>}
 */
export function stageSplit(measured, stats) {
  const at = (/** @type {'capture'|'queue'|'encode'|'send'} */ stage) => finite(measured.server?.stages_ms?.[stage]?.p50);
  const server = { capture: at('capture'), queue: at('queue'), encode: at('encode'), send: at('send') };
  const onServer = sum(Object.values(server));
  const network = measured.toReceive !== null
    ? Math.max(0, measured.toReceive - onServer)
    : stats.rtt_ms === null ? null : stats.rtt_ms / 2;
  const inBrowser = sum([stats.jitter_buffer_ms, stats.decode_ms]);
  const after = measured.afterReceive
    ?? (measured.latency.p50 === null ? null : measured.latency.p50 - onServer - (network ?? 0));
  return {
    ...server,
    network,
    jitter_buffer: stats.jitter_buffer_ms,
    decode: stats.decode_ms,
    render: after === null ? null : Math.max(0, after - inBrowser),
  };
}

/** `getStats` once a second, as differences where a total alone says nothing. */
class StatsReader {
  framesAdvanced = false;
  /** Whether anything came from the server since the last look, by candidate pairs. */
  heard = false;
  /** @type {Map<string, number>} */ #pairs = new Map();
  #pc;
  /** @type {any} */ #before = null;
  #heard = 0;
  /** @type {{lost: number, received: number}[]} */ #losses = [];

  /** @param {RTCPeerConnection} pc */
  constructor(pc) { this.#pc = pc; }

  /** @param {boolean} soundAlone  What counts as a frame is sound then. @returns {Promise<PlayerStats>} */
  async read(soundAlone) {
    const stats = emptyStats('connecting');
    this.heard = false;
    let report;
    try {
      report = await this.#pc.getStats();
    } catch {
      this.framesAdvanced = false;
      return stats;
    }
    /** @type {any} */ let video = null;
    /** @type {any} */ let audio = null;
    /** @type {any} */ let transport = null;
    /** @type {any} */ let pair = null;
    report.forEach((/** @type {any} */ entry) => {
      if (entry.type === 'candidate-pair') this.#hear(entry);
      if (entry.type === 'inbound-rtp' && (entry.kind ?? entry.mediaType) === 'video') video = entry;
      else if (entry.type === 'inbound-rtp') audio = entry;
      else if (entry.type === 'transport') transport = entry;
      else if (entry.type === 'candidate-pair' && (entry.selected || (entry.nominated && entry.state === 'succeeded'))) pair ??= entry;
    });
    pair = (transport?.selectedCandidatePairId && report.get(transport.selectedCandidatePairId)) || pair;
    this.#pairStats(stats, report, pair);
    if (soundAlone) {
      const heard = finite(audio?.packetsReceived) ?? 0;
      this.framesAdvanced = heard > this.#heard;
      this.#heard = heard;
    } else if (video) {
      this.#videoStats(stats, report, video);
    }
    return stats;
  }

  /** @param {any} pair */
  #hear(pair) {
    const came = sum([pair.bytesReceived, pair.requestsReceived, pair.responsesReceived]);
    if (came > (this.#pairs.get(pair.id) ?? 0)) this.heard = true;
    this.#pairs.set(pair.id, came);
  }

  /** @param {PlayerStats} stats @param {RTCStatsReport} report @param {any} pair */
  #pairStats(stats, report, pair) {
    if (!pair) return;
    stats.rtt_ms = milliseconds(pair.currentRoundTripTime);
    /** @type {any} */ const local = report.get(pair.localCandidateId);
    /** @type {any} */ const remote = report.get(pair.remoteCandidateId);
    if (local?.candidateType && remote?.candidateType) {
      stats.candidate_type = `${local.candidateType}/${remote.candidateType} ${local.protocol ?? ''}`.trim();
    }
  }

  /** @param {PlayerStats} stats @param {RTCStatsReport} report @param {any} video */
  #videoStats(stats, report, video) {
    // A new SSRC (the server restarted its stream) starts the totals over.
    const before = this.#before?.ssrc === video.ssrc ? this.#before : null;
    this.#before = video;
    const delta = (/** @type {string} */ key) => finite(video[key] - (before?.[key] ?? 0));
    const seconds = before ? (video.timestamp - before.timestamp) / 1000 : 0;
    const frames = delta('framesDecoded');
    this.framesAdvanced = (frames ?? 0) > 0;

    stats.width = finite(video.frameWidth);
    stats.height = finite(video.frameHeight);
    stats.fps = seconds > 0 ? perUnit(frames, seconds) : finite(video.framesPerSecond);
    stats.bitrate_bps = seconds > 0 ? perUnit((delta('bytesReceived') ?? NaN) * 8, seconds) : null;
    stats.packets_lost = finite(video.packetsLost);
    stats.loss_pct = this.#lossPct(delta('packetsLost'), delta('packetsReceived'));
    stats.jitter_ms = milliseconds(video.jitter);
    stats.jitter_buffer_ms = milliseconds(perUnit(delta('jitterBufferDelay'), delta('jitterBufferEmittedCount')));
    stats.decode_ms = milliseconds(perUnit(delta('totalDecodeTime'), frames));
    stats.freeze_count = finite(video.freezeCount);
    stats.total_freezes_s = finite(video.totalFreezesDuration);
    stats.frames_decoded = finite(video.framesDecoded);
    stats.frames_dropped = finite(video.framesDropped ?? video.discardedPackets);
    stats.key_frames_decoded = finite(video.keyFramesDecoded);
    stats.pli_count = finite(video.pliCount);
    stats.nack_count = finite(video.nackCount);
    /** @type {any} */ const codec = report.get(video.codecId);
    stats.codec = codec?.mimeType?.split('/')[1] ?? null;
  }

  /** @param {number|null} lost @param {number|null} received @returns {number|null} */
  #lossPct(lost, received) {
    if (lost === null || received === null) return null;
    this.#losses.push({ lost, received });
    if (this.#losses.length > 10) this.#losses.shift();
    const missing = Math.max(0, sum(this.#losses.map((second) => second.lost)));
    const total = missing + sum(this.#losses.map((second) => second.received));
    return total > 0 ? (100 * missing) / total : null;
  }
}

/** @param {PlayerState} state @returns {PlayerStats} */
function emptyStats(state) {
  return {
    state, fps: null, width: null, height: null, bitrate_bps: null, packets_lost: null, loss_pct: null, jitter_ms: null,
    jitter_buffer_ms: null, decode_ms: null, rtt_ms: null, freeze_count: null, total_freezes_s: null, frames_decoded: null,
    frames_dropped: null, key_frames_decoded: null, pli_count: null, nack_count: null,
    latency_ms: { p50: null, p95: null, p99: null, source: null },
    stages_ms: { capture: null, queue: null, encode: null, send: null, network: null, jitter_buffer: null, decode: null, render: null },
    audio_latency_ms: null, server: null, codec: null, candidate_type: null,
  };
}

/** @param {number[]} values @returns {Quantiles} */
export function quantiles(values) { return quantilesOfSorted([...values].sort((a, b) => a - b)); }

/** Nearest rank, so each figure is one that was really seen. @param {number[]} sorted @returns {Quantiles} */
function quantilesOfSorted(sorted) {
  const at = (/** @type {number} */ q) => sorted[Math.max(0, Math.ceil(q * sorted.length) - 1)] ?? null;
  return { p50: at(0.5), p95: at(0.95), p99: at(0.99) };
}

/** Difference of two times of which one is known modulo 2³², as a signed number near zero. @param {number} difference */
export function wrap32(difference) {
  const range = 2 ** 32;
  return difference - Math.round(difference / range) * range;
}

/** @param {number} latencyMs @returns {number|null} */
function plausible(latencyMs) {
  return latencyMs > PLAUSIBLE_LATENCY_MS.min && latencyMs < PLAUSIBLE_LATENCY_MS.max ? latencyMs : null;
}

/** @param {unknown} value @returns {number|null} */
function finite(value) { return typeof value === 'number' && Number.isFinite(value) ? value : null; }
/** @param {unknown} seconds @returns {number|null} */
function milliseconds(seconds) { const value = finite(seconds); return value === null ? null : value * 1000; }
/** @param {number|null} total @param {number|null} count @returns {number|null} */
function perUnit(total, count) { return total === null || !count || count < 0 ? null : finite(total / count); }
/** Unknown parts count as nothing. @param {(number|null)[]} values */
function sum(values) { return values.reduce((/** @type {number} */ total, value) => total + (value ?? 0), 0); }
/** @param {number} ms @returns {Promise<void>} */
function sleep(ms) { return new Promise((resolve) => { setTimeout(resolve, ms); }); }

function stripContext() {
  const canvas = document.createElement('canvas');
  canvas.width = STRIP_BITS * 4;
  canvas.height = 4;
  return canvas.getContext('2d', { willReadFrequently: true, alpha: false });
}

// ---------------------------------------------------------------------------------------------
// What the viewer sees
// ---------------------------------------------------------------------------------------------

/** @type {Record<Stage, {label: string, colour: string}>} Server in greens, the wire amber, the browser in blues. */
const STAGE_LOOK = {
  capture: { label: 'Capture', colour: '#0f9f86' },
  queue: { label: 'Queue', colour: '#2fc4a6' },
  encode: { label: 'Encode', colour: '#6fdcc5' },
  send: { label: 'Pace, send', colour: '#b5efe2' },
  network: { label: 'Network', colour: '#f2b84b' },
  jitter_buffer: { label: 'Jitter buffer', colour: '#4f7fe8' },
  decode: { label: 'Decode', colour: '#7fa4f4' },
  render: { label: 'Render', colour: '#b9cdfb' },
};

/** 24×24 stroke paths. */
const ICONS = {
  muted: 'M4 9.5v5h3.5L12 18.5v-13L7.5 9.5zM16 9.5l5 5M21 9.5l-5 5',
  audible: 'M4 9.5v5h3.5L12 18.5v-13L7.5 9.5zM15.5 9a4.2 4.2 0 0 1 0 6M18 6.5a7.8 7.8 0 0 1 0 11',
  overlay: 'M4 19.5h16M6.5 16v-4M11 16V6M15.5 16v-6.5M20 16v-2.5',
  pip: 'M4 5.5h16v13H4zM12.5 12.5h5v3.5h-5z',
  fullscreen: 'M4 9V4.5h4.5M15.5 4.5H20V9M20 15v4.5h-4.5M8.5 19.5H4V15',
};

const DASH = '–';

/** The shadow tree: video, message, overlay, controls. Shows what it is told and decides nothing. */
class View {
  /** @type {HTMLVideoElement} */ video;
  #player;
  #message; #sentence; #when; #again; #spinner;
  #overlay; #big; #quantiles; #source; #spark; #bar; #split; #facts;
  #controls; #badge; #mute; #pip; #quality;
  #root;
  #idleTimer = 0;
  #countdown = 0;
  /** @type {(number|null)[]} Median latency of the last minute, one per second. */ #history = [];
  /** @type {Record<string, {item: HTMLElement, value: HTMLElement, segment: HTMLElement}>} */ #stages = {};
  #awaitingTap = false;

  /** @param {LightpipePlayer} player */
  constructor(player) {
    this.#player = player;
    const shadow = player.attachShadow({ mode: 'open' });
    adoptStyle(shadow);

    this.video = /** @type {HTMLVideoElement} */ (h('video', { part: 'video', tabindex: '-1' }));
    this.video.muted = true; // the only autoplay all browsers grant
    this.video.autoplay = true;
    this.video.playsInline = true;
    this.video.disableRemotePlayback = true;

    this.#spinner = h('span', { class: 'spinner', 'aria-hidden': 'true' });
    this.#sentence = h('p', { class: 'sentence' });
    this.#when = h('p', { class: 'when', 'aria-hidden': 'true' });
    this.#again = h('button', { type: 'button', class: 'again' }, 'Try now');
    this.#message = h('div', { class: 'message', part: 'message' },
      this.#spinner, h('div', { role: 'status' }, this.#sentence), this.#when, this.#again);

    this.#big = h('span', { class: 'big' }, DASH);
    this.#quantiles = h('span', { class: 'quantiles' });
    this.#source = h('p', { class: 'source' });
    this.#spark = svg('polyline', { points: '', 'vector-effect': 'non-scaling-stroke' });
    this.#bar = h('div', { class: 'bar', 'aria-hidden': 'true' });
    this.#split = h('ul', { class: 'split' });
    for (const stage of STAGES) {
      const { label, colour } = STAGE_LOOK[stage];
      const segment = h('i', {});
      const swatch = h('i', { class: 'swatch', 'aria-hidden': 'true' });
      segment.style.background = swatch.style.background = colour;
      const value = h('b', {}, DASH);
      const item = h('li', {}, swatch, h('span', {}, label), value);
      this.#bar.append(segment);
      this.#split.append(item);
      this.#stages[stage] = { item, value, segment };
    }
    this.#facts = new Facts(['Frames', 'Picture', 'Bitrate', 'Loss', 'Round trip', 'Freezes', 'Codec', 'Viewers', 'Path']);
    this.#overlay = h('aside', { class: 'overlay', part: 'overlay', 'aria-label': 'Statistics' },
      h('p', { class: 'headline' }, this.#big, this.#quantiles),
      this.#source,
      svg('svg', { class: 'spark', viewBox: '0 0 60 20', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, this.#spark),
      this.#bar, this.#split, this.#facts.list);

    this.#badge = h('span', { class: 'badge' }, h('i', { 'aria-hidden': 'true' }), h('span', {}, 'Live'));
    this.#mute = button('muted', 'Unmute (m)', () => player.toggleMute());
    this.#quality = /** @type {HTMLSelectElement} */ (h('select', { class: 'quality', 'aria-label': 'Picture quality', title: 'Picture quality' }));
    this.#quality.hidden = true;
    this.#quality.addEventListener('change', () => {
      if (this.#quality.value) player.setAttribute('layer', this.#quality.value); else player.removeAttribute('layer');
    });
    this.#pip = button('pip', 'Picture in picture', () => void player.togglePictureInPicture());
    this.#controls = h('div', { class: 'controls', part: 'controls', role: 'group', 'aria-label': 'Player controls' },
      this.#badge, h('span', { class: 'space' }), this.#quality, this.#mute,
      button('overlay', 'Statistics (i)', () => player.toggleOverlay()),
      this.#pip,
      button('fullscreen', 'Full screen (f)', () => void player.toggleFullscreen()));

    this.#root = h('div', { class: 'root' }, this.video, this.#overlay, this.#message, this.#controls);
    shadow.append(this.#root);

    this.#again.addEventListener('click', () => player.userPlay());
    this.video.addEventListener('dblclick', () => void player.toggleFullscreen());
    this.video.addEventListener('volumechange', () => this.renderMuted());
    for (const type of ['pointermove', 'pointerdown', 'focusin', 'keydown']) {
      player.addEventListener(type, () => this.#wake(), { passive: true });
    }
    player.addEventListener('pointerleave', () => { this.#root.classList.remove('awake'); });
    this.renderState(player.state);
    this.renderMuted();
  }

  renderAttributes() {
    const player = this.#player;
    const preview = player.hasAttribute('preview');
    const overlay = player.hasAttribute('overlay') && !preview;
    this.#root.classList.toggle('preview', preview);
    this.#overlay.hidden = !overlay;
    this.#controls.hidden = preview || player.getAttribute('controls') === 'off';
    this.#controls.querySelector('[data-icon=overlay]')?.setAttribute('aria-pressed', String(overlay));
    this.#mute.hidden = !this.video.srcObject || !(/** @type {MediaStream} */ (this.video.srcObject)).getAudioTracks().length;
    this.#pip.hidden = !document.pictureInPictureEnabled || !('requestPictureInPicture' in this.video);
    if (!player.hasAttribute('aria-label')) {
      const name = decodeName((player.getAttribute('src') ?? '').split(/[?#]/)[0].split('/').pop() ?? '');
      player.setAttribute('aria-label', name ? `Live video: ${name}` : 'Live video');
      if (!player.hasAttribute('role')) player.setAttribute('role', 'region');
    }
  }

  renderMuted() {
    const muted = this.video.muted;
    const label = muted ? 'Unmute (m)' : 'Mute (m)';
    this.#mute.setAttribute('aria-label', label);
    this.#mute.title = label;
    this.#mute.querySelector('path')?.setAttribute('d', muted ? ICONS.muted : ICONS.audible);
  }

  /** @param {boolean} ask */
  askToPlay(ask) {
    this.#awaitingTap = ask;
    this.renderState(this.#player.state);
  }

  /** @param {StateDetail} detail */
  renderState(detail) {
    const { state, text } = detail;
    const busy = state === 'connecting' || state === 'reconnecting';
    const clear = (state === 'playing' || state === 'stalled') && !this.#awaitingTap;
    this.#root.dataset.state = state;
    this.#message.hidden = clear;
    this.#spinner.hidden = !busy || this.#awaitingTap;
    this.#sentence.textContent = this.#awaitingTap ? 'The browser wants a tap before it plays.' : text;
    this.#again.hidden = busy && !this.#awaitingTap && detail.retry_in_ms === null;
    this.#again.textContent = this.#awaitingTap ? 'Play' : state === 'ended' ? 'Start' : 'Try now';
    const label = { playing: 'Live', stalled: 'Stalled', ended: 'Stopped', failed: 'No picture', connecting: 'Connecting', reconnecting: 'Reconnecting' }[state];
    /** @type {HTMLElement} */ (this.#badge.lastChild).textContent = label;

    clearInterval(this.#countdown);
    this.#when.textContent = '';
    if (detail.retry_in_ms !== null) {
      const due = performance.now() + detail.retry_in_ms;
      const show = () => {
        const seconds = Math.ceil((due - performance.now()) / 1000);
        this.#when.textContent = seconds > 0 ? `Trying again in ${seconds} s` : 'Trying again…';
      };
      show();
      this.#countdown = window.setInterval(show, 500);
    }
  }

  /** @param {PlayerStats} stats */
  renderStats(stats) {
    this.#history.push(stats.latency_ms.p50);
    if (this.#history.length > 60) this.#history.shift();
    this.#renderQuality(stats.server);
    if (this.#overlay.hidden) return;

    const { p50, p95, p99, source } = stats.latency_ms;
    this.#big.textContent = p50 === null ? DASH : `${Math.round(p50)} ms`;
    this.#quantiles.textContent = `p95 ${number(p95, 0)}   p99 ${number(p99, 0)}`;
    this.#source.textContent = source === 'timecode' ? 'Glass to glass, measured in the picture'
      : source === 'rtp' ? 'Glass to glass, from capture timestamps' : 'Glass to glass, waiting for the clock';

    const known = /** @type {number[]} */ (this.#history.filter((value) => value !== null));
    const top = Math.max(20, ...known) * 1.1;
    this.#spark.setAttribute('points', this.#history
      .map((value, i) => (value === null ? '' : `${60 - this.#history.length + i + 0.5},${(20 - (Math.max(0, value) / top) * 20).toFixed(2)}`))
      .filter(Boolean).join(' '));

    for (const stage of STAGES) {
      const ms = stats.stages_ms[stage];
      const { value, segment } = this.#stages[stage];
      value.textContent = withUnit(ms, 1, 'ms');
      segment.style.flexGrow = String(Math.max(0, ms ?? 0));
    }
    const loss = stats.loss_pct;
    this.#facts.set({
      Frames: stats.fps === null ? DASH : `${number(stats.fps, 0)} fps`,
      Picture: stats.width && stats.height ? `${stats.width}×${stats.height}` : DASH,
      Bitrate: bitrate(stats.bitrate_bps),
      Loss: loss === null ? DASH : `${number(loss, loss > 0 && loss < 10 ? 1 : 0)} %`,
      'Round trip': withUnit(stats.rtt_ms, 1, 'ms'),
      Freezes: number(stats.freeze_count, 0),
      Codec: stats.codec ?? DASH,
      Viewers: number(stats.server?.viewers ?? null, 0),
      Path: stats.candidate_type ?? DASH,
    });
  }

  /** @param {ServerStats|null} server */
  #renderQuality(server) {
    const layers = server?.layers ?? [];
    this.#quality.hidden = layers.length < 2;
    if (this.#quality.hidden) return;
    const sent = layers.find(({ rid }) => rid === server?.layer);
    const rows = [['', sent && !server?.chosen_layer ? `Auto (${sent.height}p)` : 'Auto', true],
      ...layers.map(({ rid, height, available }) => [rid, `${height}p`, available])];
    const options = this.#quality.options;
    while (options.length > rows.length) options.remove(options.length - 1);
    rows.forEach(([value, label, available], i) => {
      const option = options[i] ?? this.#quality.appendChild(h('option', {}));
      // Only what changed: an open list must not jump.
      if (option.getAttribute('value') !== value) option.setAttribute('value', String(value));
      if (option.textContent !== label) option.textContent = String(label);
      if (option.disabled === available) option.disabled = !available;
    });
    const wish = this.#player.getAttribute('layer') ?? '';
    if (this.#quality.value !== wish) this.#quality.value = rows.some(([value]) => value === wish) ? wish : '';
  }

  #wake() {
    this.#root.classList.add('awake');
    clearTimeout(this.#idleTimer);
    this.#idleTimer = window.setTimeout(() => this.#root.classList.remove('awake'), 2500);
  }
}

/** A definition list that keeps its nodes. */
class Facts {
  list = h('dl', {});
  /** @type {Record<string, HTMLElement>} */ #values = {};
  /** @param {string[]} names */
  constructor(names) {
    for (const name of names) {
      const value = h('dd', {}, DASH);
      this.#values[name] = value;
      this.list.append(h('div', {}, h('dt', {}, name), value));
    }
  }
  /** @param {Record<string, string>} values */
  set(values) { for (const [name, text] of Object.entries(values)) this.#values[name].textContent = text; }
}

/** @param {number|null} value @param {number} digits */
function number(value, digits) { return value === null || !Number.isFinite(value) ? DASH : value.toFixed(digits); }
/** @param {number|null} value @param {number} digits @param {string} unit */
function withUnit(value, digits, unit) { return value === null ? DASH : `${number(value, digits)} ${unit}`; }
/** @param {number|null} bps */
function bitrate(bps) {
  if (bps === null) return DASH;
  return bps >= 1e6 ? `${(bps / 1e6).toFixed(bps >= 1e7 ? 0 : 1)} Mbit/s` : `${(bps / 1e3).toFixed(0)} kbit/s`;
}
/** @param {string} text */
function decodeName(text) { try { return decodeURIComponent(text); } catch { return text; } }

/** @param {string} tag @param {Record<string, string>} attributes @param {(Node|string)[]} children @returns {HTMLElement} */
function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
/** @param {string} tag @param {Record<string, string>} attributes @param {Node[]} children @returns {SVGElement} */
function svg(tag, attributes, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
/** @param {keyof typeof ICONS} icon @param {string} label @param {() => void} run */
function button(icon, label, run) {
  const element = h('button', { type: 'button', 'aria-label': label, title: label, 'data-icon': icon },
    svg('svg', { viewBox: '0 0 24 24', 'aria-hidden': 'true' }, svg('path', { d: ICONS[icon] })));
  element.addEventListener('click', run);
  return element;
}

const STYLE = `
:host { display: block; position: relative; aspect-ratio: 16 / 9; overflow: hidden; background: #07090b; color: #f2f5f4;
  container-type: inline-size; outline: none;
  font: 13px/1.4 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; -webkit-font-smoothing: antialiased; }
:host([hidden]) { display: none; }
:host(:focus-visible) { outline: 2px solid #3ad0b4; outline-offset: 2px; }
:host(:fullscreen) { width: 100vw; height: 100vh; aspect-ratio: auto; border-radius: 0 !important; }
[hidden] { display: none !important; }
.root { position: absolute; inset: 0; }
.root[data-state=playing]:not(.awake):not(:focus-within) { cursor: none; }
.root.preview { cursor: inherit !important; }
video { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; background: transparent; }
.root[data-state=stalled] video { opacity: .75; }
p, ul, dl, dd { margin: 0; padding: 0; }

.message { position: absolute; inset: 0; display: flex; flex-direction: column; align-items: center; justify-content: center;
  gap: 10px; padding: 24px; text-align: center; background: rgb(7 9 11 / .74); }
.sentence { max-width: 44ch; font-size: 15px; text-wrap: balance; }
.when { min-height: 1.4em; color: #a9b4b1; font-variant-numeric: tabular-nums; }
.when:empty { display: none; }
.preview .message { padding: 12px; gap: 6px; }
.preview .sentence { font-size: 13px; max-width: 34ch; }
.preview .again { display: none; }
.preview[data-state=ended] .message { display: none; }
.spinner { width: 22px; height: 22px; border-radius: 50%; border: 2px solid rgb(255 255 255 / .18); border-top-color: #3ad0b4;
  animation: turn 1s linear infinite; }
@keyframes turn { to { transform: rotate(1turn); } }
@media (prefers-reduced-motion: reduce) { .spinner { animation: none; } .controls { transition: none !important; } }

button { font: inherit; color: inherit; background: none; border: 0; cursor: pointer; border-radius: 8px; }
button:focus-visible { outline: 2px solid #3ad0b4; outline-offset: 1px; }
.again { margin-top: 4px; padding: 8px 16px; background: rgb(255 255 255 / .12); font-weight: 550; }
.again:hover { background: rgb(255 255 255 / .2); }

.controls { position: absolute; inset: auto 0 0; display: flex; align-items: center; gap: 4px; padding: 28px 10px 8px 14px;
  background: linear-gradient(transparent, rgb(0 0 0 / .62)); opacity: 0; transition: opacity .18s; pointer-events: none; }
.awake .controls, .root:not([data-state=playing]) .controls, .controls:focus-within { opacity: 1; }
.awake .controls, .controls:focus-within { pointer-events: auto; }
.space { flex: 1; }
.controls button { width: 40px; height: 40px; display: grid; place-items: center; }
.controls button:hover { background: rgb(255 255 255 / .16); }
.controls button[aria-pressed=true] { color: #56e0c6; }
.quality { font: inherit; font-size: 12.5px; color: inherit; background: transparent; border: 0; border-radius: 8px; height: 40px; padding: 0 6px; cursor: pointer; }
.quality:hover { background: rgb(255 255 255 / .16); }
.quality:focus-visible { outline: 2px solid #3ad0b4; outline-offset: 1px; }
.quality option { color: #f2f5f4; background: #10171a; }
.controls svg { width: 22px; height: 22px; fill: none; stroke: currentColor; stroke-width: 1.7; stroke-linecap: round; stroke-linejoin: round; }
.badge { display: inline-flex; align-items: center; gap: 7px; font-weight: 600; font-size: 12.5px; }
.badge i { width: 8px; height: 8px; border-radius: 50%; background: #8d9794; }
[data-state=playing] .badge i { background: #3ad0b4; }
[data-state=stalled] .badge i, [data-state=reconnecting] .badge i, [data-state=connecting] .badge i { background: #f2b84b; }
[data-state=failed] .badge i { background: #ff7a6b; }

.overlay { position: absolute; top: 12px; right: 12px; width: 336px; box-sizing: border-box; padding: 12px 14px 13px; border-radius: 12px;
  background: rgb(9 13 14 / .8); box-shadow: 0 0 0 1px rgb(255 255 255 / .08); font-size: 12px; pointer-events: none;
  font-variant-numeric: tabular-nums; max-height: calc(100% - 24px); overflow: hidden; }
.root:not([data-state=playing], [data-state=stalled]) .overlay { display: none; }
.headline { display: flex; align-items: baseline; justify-content: space-between; gap: 10px; }
.big { font-size: 25px; font-weight: 640; letter-spacing: -.02em; line-height: 1.15; white-space: nowrap; }
.quantiles { color: #c6cfcc; white-space: pre; }
.source { color: #9aa5a2; }
.spark { display: block; width: 100%; height: 26px; margin: 7px 0 8px; overflow: visible; }
.spark polyline { fill: none; stroke: #3ad0b4; stroke-width: 1.5; stroke-linejoin: round; stroke-linecap: round; }
.bar { display: flex; height: 8px; border-radius: 4px; overflow: hidden; background: rgb(255 255 255 / .1); }
.bar i { flex: 0 0 0; min-width: 0; }
.split { list-style: none; display: grid; grid: repeat(4, auto) / auto-flow 1fr; gap: 2px 18px; margin: 9px 0 10px; }
.split li { white-space: nowrap; display: flex; align-items: center; gap: 7px; color: #c6cfcc; }
.split b { margin-left: auto; font-weight: 560; color: #f2f5f4; }
.swatch { width: 8px; height: 8px; border-radius: 2px; flex: none; }
dl { display: grid; grid-template-columns: 1fr 1fr; gap: 2px 18px; padding-top: 9px; border-top: 1px solid rgb(255 255 255 / .1); }
dl div { display: flex; justify-content: space-between; gap: 8px; min-width: 0; }
dl div:last-child { grid-column: 1 / -1; }
dt { color: #9aa5a2; white-space: nowrap; }
dd { font-weight: 560; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
/* Small pictures keep to one line and the bar: an overlay that hides the video explains nothing. */
@container (max-width: 560px) {
  .overlay { top: 8px; right: 8px; width: min(236px, calc(100% - 16px)); padding: 8px 10px 9px; border-radius: 10px; }
  .big { font-size: 18px; }
  .source, .spark, .split, dl { display: none; }
  .bar { height: 6px; margin-top: 7px; }
  .sentence { font-size: 14px; }
  .message { padding: 14px; gap: 6px; }
  .controls { padding: 18px 4px 2px 10px; }
}
`;

/** A constructed sheet is shared by all players of a page and passes a strict `style-src`. */
let sharedSheet = /** @type {CSSStyleSheet|null} */ (null);
/** @param {ShadowRoot} shadow */
function adoptStyle(shadow) {
  try {
    if (!sharedSheet) {
      sharedSheet = new CSSStyleSheet();
      sharedSheet.replaceSync(STYLE);
    }
    shadow.adoptedStyleSheets = [sharedSheet];
  } catch {
    shadow.append(h('style', {}, STYLE));
  }
}

// Two script tags for the same element are common on pages put together from parts.
if (globalThis.customElements && !customElements.get('lightpipe-player')) {
  customElements.define('lightpipe-player', LightpipePlayer);
}
