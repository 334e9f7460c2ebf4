/**
 * A room: JSON-RPC 2.0 signalling on `/ws` (docs/api.md) and a full mesh of RTCPeerConnections among up to ten peers.
 *
 *     const mesh = new Mesh({ url: 'ws://host:8080/ws', room: 'lab', name: 'Ada' });
 *     mesh.addEventListener('media', ({ detail }) => { video.srcObject = detail.peer.stream; });
 *     await mesh.join();                              // rejects with an {@link RpcError}: the room is full, the id is taken
 *     await mesh.setTracks({ audio, video });         // MediaStreamTracks or null, at any time, also before join
 *     mesh.say('hello');                              // is delivered once to everybody who is there, over reconnections too
 *
 * No element and no style in here; `room.js` is one page around it, a test page is another. What a peer is to the page (its
 * `Peer`, its MediaStream, its name, what was said and not yet acknowledged) outlives the RTCPeerConnection below it.
 *
 * Events of a {@link Mesh}, all CustomEvents
 *   state         {state, reason, retry_in_ms}  of the signalling, {@link MeshState}
 *   peer-joined   {peer}
 *   peer-left     {peer, reason}
 *   peer-state    {peer, state, reason}         {@link PeerState}
 *   peer-changed  {peer}                        its name, microphone or camera
 *   media         {peer, kind}                  a track of it came or was replaced
 *   chat          {from, id, text, at, mine}    `from` is a peer, null for oneself
 *   chat-acked    {id, waiting}                 of mine: so many peers have not acknowledged it yet
 *   channel       {peer, channel}               its files channel is open (again)
 */

/**
 * @typedef {'idle'|'joining'|'joined'|'reconnecting'|'refused'|'left'} MeshState
 *   joining: the first attempt. reconnecting: the server is not there; media and chat go on without it. refused: for good.
 * @typedef {'connecting'|'connected'|'reconnecting'} PeerState
 * @typedef {'nothing'|'wait'|'restart'|'renew'} Repair
 */

/** Ten to twenty times what a call takes on a slow network; a server of ours answers in a millisecond. */
const CALL_MS = 8000;
/** A socket that does not open sooner is tried anew: TCP's own retries double. */
const OPEN_MS = 5000;
/** The server closes who says nothing for five minutes, and a middlebox after one. */
const ALIVE_EVERY_MS = 25_000;
/** Longest wait for that word where there is doubt about the network. */
const DOUBT_MS = 3000;
const BACKOFF_FIRST_MS = 300;
/** Back within five seconds of the network, hence at most this long between two attempts... */
const BACKOFF_MAX_MS = 2500;
/** ...for so many of them; after that somebody pulled the plug. */
const EAGER_ATTEMPTS = 30;
const BACKOFF_LAZY_MS = 15_000;
/** Candidates that come within this time travel in one batch: a page of ten has a budget of 200 messages a second. */
const TRICKLE_MS = 20;
const TICK_MS = 500;

/** In a short radio gap ICE comes back by itself. */
const GRACE_MS = 1000;
/** The polite side waits this much longer, so that as a rule one side alone offers. */
const POLITE_MS = 1500;
/** What a restart of ICE may take, both directions of signalling and the checks. */
const RESTART_MS = 5000;
/** After so many without effect the connection is made anew. */
const RESTARTS = 2;
/** A connection that never was one is made anew after this. */
const FIRST_MS = 15_000;
/** A peer of other make that waits for our offer although its id is the smaller one. */
const OFFER_AFTER_MS = 5000;
/** The server gives up an unanswered offer after ten seconds. */
const OFFER_AGAIN_MS = 10_500;
/** A peer whose socket and path are both gone this long is not coming back. */
const GONE_MS = 20_000;

/** Bytes of one chat message as JSON. */
const MAX_CHAT_LEN = 16 << 10;
/** Bytes of what a mixer says. */
const MAX_MIX_LEN = 4 << 10;
/** Characters of what one says. */
export const MAX_TEXT = 4000;
/** Chat messages kept for one peer that does not acknowledge them; the oldest is given up. */
const MAX_UNACKED = 200;
/** Chat ids remembered of one peer; over a new connection it says at most {@link MAX_UNACKED} again. */
const MAX_SEEN = 512;
/** Messages a second that are taken from one peer. */
const CHAT_PER_SECOND = 50;

/** What may come at once: all that a cut left unsaid on one side and unacknowledged on the other. */
const CHAT_BURST = 512;

const CHAT = /** @type {const} */ ({ label: 'chat', id: 100 });
/** Opened by a peer that mixes the room: who speaks. */
const MIX = 'mix';
const FILES = /** @type {const} */ ({ label: 'files', id: 101 });

/** Refusals that the next attempt would meet as well. */
export const ROOM_FULL = -32001;
const INVALID_PARAMS = -32602;
const PEER_NOT_FOUND = -32000;
const NEGOTIATION_IN_PROGRESS = -32005;

/** An error answer (JSON-RPC 2.0 §5.1), or what became of a call that got none (`code` 0). */
export class RpcError extends Error {
  /** @param {number} code @param {string} message @param {string} [cause] */
  constructor(code, message, cause = '') {
    super(message);
    this.code = code;
    /** `error.data.cause`, such as `peer_id_taken`. */
    this.cause = cause;
  }
}

/** A JSON-RPC 2.0 client on one WebSocket. */
export class Rpc {
  #socket;
  #calls = /** @type {Map<number, {resolve: (value: any) => void, reject: (error: Error) => void, timer: number}>} */ (new Map());
  #next = 1;
  #opened;
  #closed = false;
  /** `performance.now()` of the last message. */
  heardAt = 0;

  /**
   * @param {string} url
   * @param {(method: string, params: any) => void} notified
   * @param {(reason: string) => void} closed  Once, however it ends.
   */
  constructor(url, notified, closed) {
    this.#socket = new WebSocket(url);
    this.#opened = new Promise((resolve, reject) => {
      const late = setTimeout(() => this.close('the server does not answer'), OPEN_MS);
      this.#socket.onopen = () => { clearTimeout(late); this.heardAt = performance.now(); resolve(undefined); };
      this.#end = (reason) => {
        clearTimeout(late);
        if (this.#closed) return;
        this.#closed = true;
        this.#socket.onmessage = this.#socket.onclose = null;
        this.#socket.close();
        reject(new RpcError(0, reason));
        for (const call of this.#calls.values()) { clearTimeout(call.timer); call.reject(new RpcError(0, reason)); }
        this.#calls.clear();
        closed(reason);
      };
    });
    this.#opened.catch(() => {}); // whoever calls hears of it
    this.#socket.onclose = ({ code, reason }) => this.#end(reason || (code === 1006 ? 'the connection to the server broke' : `the server closed (${code})`));
    this.#socket.onmessage = ({ data }) => {
      this.heardAt = performance.now();
      let parsed;
      try { parsed = JSON.parse(data); } catch { return; } // the server never does this; nobody could be told
      for (const message of Array.isArray(parsed) ? parsed : [parsed]) this.#take(message, notified);
    };
  }

  #end = (/** @type {string} */ _reason) => {};

  /** Ends it; pending calls reject. @param {string} reason */
  close(reason) { this.#end(reason); }

  /** @param {any} message @param {(method: string, params: any) => void} notified */
  #take(message, notified) {
    if (typeof message !== 'object' || message === null) return;
    if (typeof message.method === 'string') {
      if ('id' in message) this.#say({ jsonrpc: '2.0', id: message.id, error: { code: -32601, message: 'a browser serves no methods' } });
      else notified(message.method, message.params ?? {});
      return;
    }
    const call = this.#calls.get(message.id);
    if (!call) return;
    this.#calls.delete(message.id);
    clearTimeout(call.timer);
    const { error } = message;
    if (error) call.reject(new RpcError(Number(error.code) || 0, String(error.message ?? 'refused'), String(error.data?.cause ?? '')));
    else call.resolve(message.result);
  }

  /** @param {string} method @param {object} [params] @param {number} [longest] @returns {Promise<any>} */
  async call(method, params = {}, longest = CALL_MS) {
    await this.#opened;
    if (this.#closed) throw new RpcError(0, 'the connection to the server is closed');
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      const timer = window.setTimeout(() => { this.#calls.delete(id); reject(new RpcError(0, `${method} was not answered`)); }, longest);
      this.#calls.set(id, { resolve, reject, timer });
      this.#say({ jsonrpc: '2.0', id, method, params });
    });
  }

  /** Several at a time are one batch (§6). @param {{method: string, params: object}[]} notifications */
  notify(notifications) {
    const messages = notifications.map((one) => ({ jsonrpc: '2.0', ...one }));
    if (messages.length) this.#say(messages.length === 1 ? messages[0] : messages);
  }

  /** @param {object} message */
  #say(message) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }
}

/** How long to wait before attempt `attempt` (0, 1, …); `random` in [0, 1) spreads a room that lost its server together.
 * @param {number} attempt @param {number} random */
export function backoff(attempt, random) {
  const most = attempt < EAGER_ATTEMPTS ? BACKOFF_MAX_MS : BACKOFF_LAZY_MS;
  return Math.min(BACKOFF_FIRST_MS * 2 ** Math.min(attempt, 10), most) * (0.6 + 0.4 * random);
}

/**
 * What is to be done about a connection. A pure function, so that it can be tried without a network.
 * @param {object} facts
 * @param {boolean} facts.connected
 * @param {boolean} facts.failed      The browser has given it up.
 * @param {boolean} facts.ever        It has been connected before.
 * @param {boolean} facts.polite
 * @param {boolean} facts.reachable   An offer would arrive: the server is there and so is the peer.
 * @param {number} facts.brokenMs     Since it was connected last, or was made.
 * @param {number} facts.tries        Restarts since then.
 * @param {number} facts.sinceTryMs   Since the last of them; what passed without signalling does not count.
 * @returns {Repair}
 */
export function repair({ connected, failed, ever, polite, reachable, brokenMs, tries, sinceTryMs }) {
  if (connected) return 'nothing';
  if (!reachable) return 'wait';
  const patience = polite ? POLITE_MS : 0;
  if (!ever) return brokenMs >= FIRST_MS + patience || (failed && brokenMs >= RESTART_MS + patience) ? 'renew' : 'wait';
  if (tries === 0) return brokenMs >= (failed ? 0 : GRACE_MS) + patience ? 'restart' : 'wait';
  if (sinceTryMs < RESTART_MS + patience) return 'wait';
  return tries < RESTARTS ? 'restart' : 'renew';
}

/** Of two peers the one with the smaller id makes the first offer and does not step back when both offer at once.
 * @param {string} me @param {string} other */
export const isPolite = (me, other) => me > other;

/** What tells one RTCPeerConnection of a peer from the next: the session id (RFC 8866 §5.2), and the certificate, for engines that count theirs.
 * @param {string} sdp */
export function sessionOf(sdp) {
  const origin = /^o=(\S+ \S+)/m.exec(sdp)?.[1] ?? '';
  const print = /^a=fingerprint:(.*)$/m.exec(sdp)?.[1]?.trim().toLowerCase() ?? '';
  return `${origin} ${print}`;
}

/** Any of the forms that the dialect knows; null at the end of candidates, undefined for nonsense.
 * @param {any} params @returns {RTCIceCandidateInit|null|undefined} */
export function candidateOf(params) {
  let { candidate } = params;
  if (typeof candidate === 'string' && candidate.trimStart().startsWith('{')) {
    try { candidate = JSON.parse(candidate); } catch { return undefined; }
  }
  if (candidate === null || candidate === undefined || candidate === '') return null;
  const whole = typeof candidate === 'object' ? candidate : { candidate };
  const line = String(whole.candidate ?? '').replace(/^a=/, '');
  if (!line) return null;
  const index = whole.sdpMLineIndex ?? whole.sdp_m_line_index ?? params.sdp_m_line_index ?? params.sdpMLineIndex;
  const mid = whole.sdpMid ?? whole.sdp_mid ?? params.sdp_mid ?? params.sdpMid;
  const ufrag = whole.usernameFragment ?? / ufrag (\S+)/.exec(line)?.[1];
  // Everything is bundled, so a candidate that does not say where it belongs belongs to the first.
  return { candidate: line, sdpMid: mid ?? null, sdpMLineIndex: index ?? (mid === undefined ? 0 : null), ...(ufrag ? { usernameFragment: ufrag } : {}) };
}

/** Letters and digits, also where a page has no secure context. @param {number} length */
export function randomId(length) {
  const alphabet = 'abcdefghijkmnpqrstuvwxyz23456789'; // 32 of them, none to be mistaken for another
  return Array.from(crypto.getRandomValues(new Uint8Array(length)), (byte) => alphabet[byte % 32]).join('');
}

/** @param {any} value @param {number} most */
const shortText = (value, most) => (typeof value === 'string' ? value.slice(0, most) : '');

export class Mesh extends EventTarget {
  /** By id. @type {Map<string, Peer>} */ peers = new Map();
  /** @type {MeshState} */ state = 'idle';
  /** Why. */ reason = '';
  #url; #user;
  #resume = randomId(24);
  #rpc = /** @type {Rpc|null} */ (null);
  #attempt = 0;
  #retry = 0;
  #ticker = 0;
  #asking = false;
  #said = 0;
  /** Of mine, by id: peers that have not acknowledged it. @type {Map<number, number>} */ #waiting = new Map();
  #trickle = /** @type {{method: string, params: object}[]} */ ([]);
  #trickleTimer = 0;
  /** @type {RTCIceServer[]} */ iceServers;
  /** Tells receivers that both tracks belong together. */
  stream = new MediaStream();
  /** @type {Record<'audio'|'video', MediaStreamTrack|null>} */ tracks = { audio: null, video: null };
  /** What the other side is told about us. */
  mine = { muted: true, camera: false, screen: false };
  /** Per peer and direction. */
  limits = { videoBps: 1_200_000, height: 720 };

  /** @param {{url: string, room: string, id?: string, name?: string, iceServers?: RTCIceServer[]}} options */
  constructor({ url, room, id, name = '', iceServers = [] }) {
    super();
    this.#url = url;
    this.room = room;
    this.id = id || `web-${randomId(8)}`;
    this.#user = { name };
    this.iceServers = iceServers;
  }

  get name() { return this.#user.name; }

  get joined() { return this.state === 'joined'; }

  /** Enters the room, and stays in it until `leave`. Resolves when the server has said yes; a server that is not there is waited for.
   * @returns {Promise<void>} */
  join() {
    if (this.state !== 'idle' && this.state !== 'refused' && this.state !== 'left') return Promise.reject(new Error('in the room already'));
    this.#attempt = 0;
    this.#ticker = window.setInterval(() => this.#tick(), TICK_MS);
    addEventListener('online', this.#doubt);
    this.#setState('joining', '');
    return new Promise((resolve, reject) => {
      const decided = () => {
        if (this.joined) resolve();
        else if (this.state === 'refused') reject(this.#refusal);
        else if (this.state === 'left') reject(new RpcError(0, 'left before it was in'));
        else return;
        this.removeEventListener('state', decided);
      };
      this.addEventListener('state', decided);
      void this.#connect();
    });
  }

  #refusal = new RpcError(0, '');

  /** Leaves, and says so. @param {string} [reason] */
  leave(reason = 'left') {
    this.#rpc?.notify([{ method: 'peer.disconnect', params: { reason } }]);
    this.#stop('left', reason);
  }

  /** @param {'left'|'refused'} state @param {string} reason */
  #stop(state, reason) {
    clearInterval(this.#ticker);
    clearTimeout(this.#retry);
    removeEventListener('online', this.#doubt);
    const rpc = this.#rpc;
    this.#rpc = null;
    rpc?.close(reason);
    for (const peer of [...this.peers.values()]) this.#remove(peer, reason);
    this.#setState(state, reason);
  }

  /** Shows these to everybody, instead of what was shown before; null shows nothing. @param {{audio?: MediaStreamTrack|null, video?: MediaStreamTrack|null}} tracks */
  async setTracks(tracks) {
    for (const kind of /** @type {const} */ (['audio', 'video'])) {
      const track = tracks[kind];
      if (track === undefined || track === this.tracks[kind]) continue;
      this.tracks[kind] = track;
      for (const old of this.stream.getTracks().filter((one) => one.kind === kind)) this.stream.removeTrack(old);
      if (track) this.stream.addTrack(track);
    }
    await Promise.all([...this.peers.values()].map((peer) => peer.show()));
  }

  /** Tells everybody, also those that come later. @param {{muted?: boolean, camera?: boolean, screen?: boolean, name?: string}} state */
  setState({ name, ...rest }) {
    Object.assign(this.mine, rest);
    if (name !== undefined) this.#user.name = name;
    for (const peer of this.peers.values()) peer.tellState();
  }

  /** Video to each peer at most so large. @param {{videoBps: number, height: number}} limits */
  setLimits(limits) {
    this.limits = limits;
    for (const peer of this.peers.values()) void peer.limit();
  }

  /** Says something to everybody who is here. @param {string} text @returns {number} its id */
  say(text) {
    // Cut in the middle of a pair of surrogates it would be no text any more.
    const message = { type: 'chat', id: ++this.#said, text: text.slice(0, MAX_TEXT).toWellFormed(), at: Date.now() };
    this.#waiting.set(message.id, this.peers.size);
    this.#tell('chat', { from: null, mine: true, ...message });
    for (const peer of this.peers.values()) peer.say(message);
    this.acked(message.id, 0);
    return message.id;
  }

  /** @param {number} id @param {number} count  Peers that have acknowledged it, or that left. */
  acked(id, count) {
    const waiting = (this.#waiting.get(id) ?? 0) - count;
    if (waiting > 0) this.#waiting.set(id, waiting); else this.#waiting.delete(id);
    this.#tell('chat-acked', { id, waiting: Math.max(0, waiting) });
  }

  /** @param {string} type @param {object} detail */
  #tell(type, detail) { this.dispatchEvent(new CustomEvent(type, { detail })); }

  /** @param {string} type @param {object} detail */
  tell(type, detail) { this.#tell(type, detail); }

  /** @param {MeshState} state @param {string} reason @param {number|null} [retryInMs] */
  #setState(state, reason, retryInMs = null) {
    this.state = state;
    this.reason = reason;
    this.#tell('state', { state, reason, retry_in_ms: retryInMs });
  }

  // -- signalling ----------------------------------------------------------------------------------

  async #connect() {
    clearTimeout(this.#retry);
    const rpc = (this.#rpc = new Rpc(
      this.#url,
      (method, params) => { if (rpc === this.#rpc) this.#onNotification(method, params); },
      (reason) => { if (rpc === this.#rpc) this.#lost(reason); },
    ));
    try {
      const { peers } = await rpc.call('peer.announce', {
        peer_id: this.id, room: this.room, capabilities: ['audio', 'video', 'data'], user_data: { name: this.#user.name }, resume: this.#resume,
      });
      if (rpc !== this.#rpc) return;
      this.#attempt = 0;
      const present = new Set(peers.map((/** @type {any} */ peer) => peer.peer_id));
      for (const peer of this.peers.values()) peer.setPresent(present.has(peer.id));
      this.#setState('joined', '');
      for (const info of peers) this.#meet(info);
    } catch (error) {
      if (rpc !== this.#rpc) return;
      const { code, message } = /** @type {RpcError} */ (error);
      // Who was in may find its own shadow there, or its place taken for the moment.
      if (this.state === 'joining' && (code === ROOM_FULL || code === INVALID_PARAMS)) {
        this.#refusal = /** @type {RpcError} */ (error);
        this.#stop('refused', message);
      } else rpc.close(message);
    }
  }

  /** @param {string} reason */
  #lost(reason) {
    this.#rpc = null;
    const pause = backoff(this.#attempt++, Math.random());
    this.#setState(this.state === 'joining' ? 'joining' : 'reconnecting', reason, pause);
    this.#retry = window.setTimeout(() => void this.#connect(), pause);
  }

  /** Something makes us doubt the network: whether the server still hears us is known in {@link DOUBT_MS}. */
  #doubt = () => {
    if (this.#rpc && this.joined) void this.#ask(DOUBT_MS);
    else if (!this.#rpc) void this.#connect();
  };

  /** @param {number} longest */
  async #ask(longest) {
    const rpc = this.#rpc;
    if (!rpc || this.#asking) return;
    this.#asking = true;
    try {
      await rpc.call('peer.list', {}, longest);
    } catch (error) {
      if (/** @type {RpcError} */ (error).code === 0) rpc.close('the server does not answer');
    } finally {
      this.#asking = false;
    }
  }

  /** @param {string} method @param {object} params @returns {Promise<any>} */
  call(method, params) {
    if (!this.#rpc || !this.joined) return Promise.reject(new RpcError(0, 'the server is not there'));
    return this.#rpc.call(method, params);
  }

  /** @param {object} params */
  trickle(params) {
    this.#trickle.push({ method: 'peer.ice_candidate', params });
    this.#trickleTimer ||= window.setTimeout(() => {
      this.#trickleTimer = 0;
      this.#rpc?.notify(this.#trickle.splice(0));
    }, TRICKLE_MS);
  }

  /** @param {string} method @param {any} params */
  #onNotification(method, params) {
    const peer = this.peers.get(params.from ?? params.peer_id);
    switch (method.replace(/^peer\./, '')) {
      case 'joined': this.#meet(params); break;
      case 'left': if (peer) this.#remove(peer, params.reason || 'left'); break;
      case 'disconnected': peer?.setPresent(false); break;
      case 'offer': (peer ?? this.#meet({ peer_id: params.from }))?.onOffer(String(params.sdp)); break;
      case 'answer': peer?.onAnswer(String(params.sdp)); break;
      case 'ice_candidate': peer?.onCandidate(params); break;
    }
  }

  /** @param {any} info @returns {Peer|null} */
  #meet(info) {
    const id = info.peer_id;
    if (typeof id !== 'string' || id === this.id) return null;
    const known = this.peers.get(id);
    if (known) { known.back(info.user_data); return known; }
    const peer = new Peer(this, id, info.user_data);
    this.peers.set(id, peer);
    this.#tell('peer-joined', { peer });
    peer.begin();
    return peer;
  }

  /** @param {Peer} peer @param {string} reason */
  #remove(peer, reason) {
    if (!this.peers.delete(peer.id)) return;
    peer.end();
    this.#tell('peer-left', { peer, reason });
  }

  #tick() {
    const now = performance.now();
    const broken = [...this.peers.values()].filter((peer) => peer.tick(now));
    for (const peer of broken) if (peer.goneMs(now) > GONE_MS) this.#remove(peer, 'the connection was lost');
    const quiet = this.#rpc && this.joined ? now - this.#rpc.heardAt : 0;
    if (quiet > ALIVE_EVERY_MS) void this.#ask(CALL_MS);
    else if (broken.length && quiet > DOUBT_MS) void this.#ask(DOUBT_MS);
  }
}

/** One other peer of the room. */
export class Peer {
  /** @type {PeerState} */ state = 'connecting';
  /** Why it is not connected, a sentence; empty while it is. */ reason = '';
  name = '';
  muted = false;
  camera = true;
  screen = false;
  /** All the others are in its sound, without us. */ mixes = false;
  /** Its tracks, the same object over all connections. */
  stream = new MediaStream();
  /** @type {RTCDataChannel|null} */ chat = null;
  /** @type {RTCDataChannel|null} */ files = null;
  #pc = /** @type {RTCPeerConnection|null} */ (null);
  #mesh;
  #polite;
  /** The server knows it. */ #present = true;
  #absentSince = 0;
  #ended = false;
  /** One after the other: descriptions and candidates. @type {Promise<void>} */ #turn = Promise.resolve();
  /** The connection of the other side that ours is with. */ #session = '';
  /** Those that are over; what they still say is not for this one. @type {Set<string>} */ #over = new Set();
  #mayOffer = false;
  /** Our present offer is at the other side. */ #asked = false;
  #offeredAt = 0;
  #sending = 0;
  #madeAt = 0;
  #brokenAt = 0;
  #ever = false;
  #tries = 0;
  #triedAt = 0;
  /** @type {{type: string, id: number, text: string, at: number}[]} */ #unacked = [];
  /** @type {Map<number, number>} */ #seen = new Map();
  #budget = { at: 0, left: CHAT_BURST };
  #before = { at: 0, packets: 0, lost: 0, freezes: 0, frames: 0, bytes: 0 };

  /** @param {Mesh} mesh @param {string} id @param {any} user */
  constructor(mesh, id, user) {
    this.#mesh = mesh;
    this.id = id;
    this.#polite = isPolite(mesh.id, id);
    this.#setUser(user);
  }

  /** @param {any} user */
  #setUser(user) {
    this.name = shortText(user?.name, 64).trim() || this.name || this.id;
    this.mixes = user?.mixes === true;
  }

  /** The present one; another after a loss. */
  get connection() { return this.#pc; }

  begin() { this.#open(!this.#polite); }

  end() {
    this.#ended = true;
    this.#pc?.close();
    for (const message of this.#unacked.splice(0)) this.#mesh.acked(message.id, 1);
    for (const track of this.stream.getTracks()) this.stream.removeTrack(track);
  }

  /** It announced itself again: its network or the server was gone. @param {any} user */
  back(user) {
    this.#setUser(user);
    this.setPresent(true);
    this.#tries = 0;
    this.#resend();
    this.#mesh.tell('peer-changed', { peer: this });
  }

  /** @param {boolean} present */
  setPresent(present) {
    if (present === this.#present) return;
    this.#present = present;
    this.#absentSince = performance.now();
  }

  /** Since when neither server nor path know it. @param {number} now */
  goneMs(now) { return this.#present || !this.#mesh.joined ? 0 : now - Math.max(this.#absentSince, this.#brokenAt); }

  // -- the connection ------------------------------------------------------------------------------

  /** Makes a connection, also instead of one that is lost. @param {boolean} offering */
  #open(offering) {
    this.#pc?.close();
    if (this.#session) this.#over.add(this.#session);
    this.#session = '';
    this.#mayOffer = offering;
    this.#asked = false;
    this.#ever = false;
    this.#tries = 0;
    this.#madeAt = this.#brokenAt = performance.now();
    const pc = (this.#pc = new RTCPeerConnection({ bundlePolicy: 'max-bundle', iceServers: this.#mesh.iceServers }));
    const mine = (/** @type {(event: any) => void} */ handler) => (/** @type {any} */ event) => { if (pc === this.#pc && !this.#ended) handler(event); };
    pc.addEventListener('negotiationneeded', mine(() => { if (this.#mayOffer) this.#do(() => this.#offer(pc)); }));
    pc.addEventListener('icecandidate', mine(({ candidate }) => {
      this.#mesh.trickle({ to: this.id, candidate: candidate?.candidate ?? null, sdp_mid: candidate?.sdpMid ?? undefined, sdp_m_line_index: candidate?.sdpMLineIndex ?? undefined });
    }));
    pc.addEventListener('track', mine(({ track }) => this.#onTrack(track)));
    pc.addEventListener('connectionstatechange', mine(() => this.#onConnection(pc.connectionState)));
    pc.addEventListener('datachannel', mine(({ channel }) => {
      if (channel.label === MIX && this.mixes) channel.addEventListener('message', mine(({ data }) => this.#onMix(data)));
    }));
    this.#openChannels(pc, mine);
    if (offering) {
      for (const kind of /** @type {const} */ (['audio', 'video'])) pc.addTransceiver(kind, { direction: 'sendrecv', streams: [this.#mesh.stream] });
      void this.show();
    }
  }

  /** @param {RTCPeerConnection} pc @param {(handler: (event: any) => void) => (event: any) => void} mine */
  #openChannels(pc, mine) {
    // Agreed on beforehand, so that no message that opens one can be lost (RFC 8832 §2).
    const chat = (this.chat = pc.createDataChannel(CHAT.label, { negotiated: true, id: CHAT.id }));
    const files = (this.files = pc.createDataChannel(FILES.label, { negotiated: true, id: FILES.id }));
    files.binaryType = 'arraybuffer';
    chat.addEventListener('open', mine(() => {
      this.tellState();
      for (const message of this.#unacked) this.#send(message);
    }));
    chat.addEventListener('message', mine(({ data }) => this.#onChat(data)));
    files.addEventListener('open', mine(() => this.#mesh.tell('channel', { peer: this, channel: files })));
    // Closed by the other side: sooner than ICE would notice.
    chat.addEventListener('close', mine(() => this.#onConnection('closed')));
  }

  /** Who speaks, as one says who hears all. @param {unknown} data */
  #onMix(data) {
    if (typeof data !== 'string' || data.length > MAX_MIX_LEN) return;
    let said;
    try { said = JSON.parse(data); } catch { return; }
    if (said?.type !== 'speaker') return;
    this.#mesh.tell('speaker', { id: typeof said.peer === 'string' ? said.peer : null, by: this });
  }

  /** @param {MediaStreamTrack} track */
  #onTrack(track) {
    for (const old of this.stream.getTracks().filter((one) => one.kind === track.kind && one !== track)) this.stream.removeTrack(old);
    this.stream.addTrack(track);
    this.#mesh.tell('media', { peer: this, kind: track.kind });
  }

  /** @param {RTCPeerConnectionState} state */
  #onConnection(state) {
    if (state === 'connected') {
      this.#ever = true;
      this.#tries = 0;
      this.#brokenAt = 0;
      this.#setState('connected', '');
      void this.limit();
    } else if (state === 'disconnected' || state === 'failed' || state === 'closed') {
      this.#brokenAt ||= performance.now();
      const reason = state === 'closed' ? 'The other side has closed the connection.' : state === 'failed' ? 'No network path was found.' : 'Nothing arrives any more.';
      this.#setState(this.#ever || this.state === 'reconnecting' ? 'reconnecting' : 'connecting', reason);
    }
  }

  /** @param {PeerState} state @param {string} reason */
  #setState(state, reason) {
    if (state === this.state && reason === this.reason) return;
    this.state = state;
    this.reason = reason;
    this.#mesh.tell('peer-state', { peer: this, state, reason });
  }

  /** Looks after the connection; whether it is broken. @param {number} now */
  tick(now) {
    const pc = this.#pc;
    if (!pc) return false;
    const reachable = this.#present && this.#mesh.joined;
    if (reachable && this.#asked && pc.signalingState === 'have-local-offer' && now - this.#offeredAt > OFFER_AGAIN_MS) this.#resend();
    if (!this.#ever && !this.#mayOffer && !pc.remoteDescription && reachable && now - this.#madeAt > OFFER_AFTER_MS) this.#open(true);
    const connected = pc.connectionState === 'connected' && this.chat?.readyState !== 'closed';
    if (!reachable) this.#triedAt = now;
    const what = repair({
      connected, failed: pc.connectionState === 'failed' || this.chat?.readyState === 'closed', ever: this.#ever, polite: this.#polite, reachable,
      brokenMs: now - (this.#brokenAt || now), tries: this.#tries, sinceTryMs: now - this.#triedAt,
    });
    if (what === 'restart' || what === 'renew') {
      this.#triedAt = now;
      const tries = this.#tries + 1;
      // A closed channel does not open again.
      if (what === 'renew' || this.chat?.readyState === 'closed') this.#open(true); else pc.restartIce();
      this.#tries = what === 'renew' ? 0 : tries;
      this.#setState(this.state === 'connecting' ? 'connecting' : 'reconnecting', what === 'renew' ? 'A new connection is tried.' : 'Another network path is looked for.');
    }
    return !connected;
  }

  // -- negotiation ---------------------------------------------------------------------------------

  /** @param {() => Promise<void>} step */
  #do(step) {
    this.#turn = this.#turn.then(() => (this.#ended ? undefined : step())).catch((error) => {
      this.#setState(this.state, `The peers do not understand each other: ${error?.message ?? error}`);
    });
  }

  /** @param {RTCPeerConnection} pc */
  async #offer(pc) {
    // In any other state the browser asks again when it is stable.
    if (pc !== this.#pc || pc.signalingState !== 'stable') return;
    this.#asked = false;
    await pc.setLocalDescription();
    if (pc.signalingState === 'have-local-offer') void this.#sendOffer(pc);
  }

  /** The present offer once more: nobody answered it, or it could not be sent. */
  #resend() {
    const pc = this.#pc;
    if (pc?.signalingState === 'have-local-offer') void this.#sendOffer(pc);
  }

  /** @param {RTCPeerConnection} pc */
  async #sendOffer(pc) {
    const turn = ++this.#sending;
    while (turn === this.#sending && pc === this.#pc && pc.signalingState === 'have-local-offer') {
      this.#asked = false;
      this.#offeredAt = performance.now();
      try {
        await this.#mesh.call('peer.offer', { to: this.id, sdp: pc.localDescription?.sdp });
        this.#asked = true;
        return;
      } catch (error) {
        const { code } = /** @type {RpcError} */ (error);
        if (code === PEER_NOT_FOUND) this.setPresent(false);
        // The last offer is not answered yet; else `back`, or being joined again, sends it.
        if (code !== NEGOTIATION_IN_PROGRESS) { this.#asked = true; return; }
        await new Promise((resolve) => { setTimeout(resolve, 400); });
      }
    }
  }

  /** @param {string} sdp */
  onOffer(sdp) {
    this.#do(async () => {
      const session = sessionOf(sdp);
      if (this.#over.has(session)) return;
      if (this.#session && session !== this.#session) this.#open(false);
      const pc = /** @type {RTCPeerConnection} */ (this.#pc);
      const collision = pc.signalingState !== 'stable';
      if (collision && !this.#polite) return;
      await pc.setRemoteDescription({ type: 'offer', sdp });
      this.#session = session;
      // Ours from the offer that was rolled back; the other side's take their place.
      if (collision) for (const one of pc.getTransceivers()) if (one.mid === null) one.stop();
      for (const one of this.#media(pc)) one.direction = 'sendrecv';
      await this.show();
      await pc.setLocalDescription();
      this.#mayOffer = true;
      await this.#mesh.call('peer.answer', { to: this.id, sdp: pc.localDescription?.sdp }).catch(() => {}); // it offers again
    });
  }

  /** @param {string} sdp */
  onAnswer(sdp) {
    this.#do(async () => {
      const pc = /** @type {RTCPeerConnection} */ (this.#pc);
      const session = sessionOf(sdp);
      if (pc.signalingState !== 'have-local-offer' || !this.#asked || this.#over.has(session)) return;
      if (this.#session && session !== this.#session) { this.#open(true); return; }
      await pc.setRemoteDescription({ type: 'answer', sdp });
      this.#session = session;
      void this.limit();
    });
  }

  /** @param {any} params */
  onCandidate(params) {
    this.#do(async () => {
      const candidate = candidateOf(params);
      // Of an offer that was not taken, or of a kind that this browser does not know: the others remain.
      if (candidate && this.#pc?.remoteDescription) await this.#pc.addIceCandidate(candidate).catch(() => {});
    });
  }

  /** The transceivers of the first audio and the first video section. @param {RTCPeerConnection} pc */
  #media(pc) {
    const all = pc.getTransceivers().filter((one) => !one.stopped && one.direction !== 'stopped');
    return /** @type {const} */ (['audio', 'video']).flatMap((kind) => all.find((one) => one.receiver.track.kind === kind) ?? []);
  }

  /** Sends what is to be seen and heard of us. */
  async show() {
    const pc = this.#pc;
    if (!pc) return;
    await Promise.all(this.#media(pc).map(async ({ sender, receiver }) => {
      const track = this.#mesh.tracks[/** @type {'audio'|'video'} */ (receiver.track.kind)];
      sender.setStreams?.(this.#mesh.stream);
      if (sender.track !== track) await sender.replaceTrack(track).catch(() => {}); // closed meanwhile
    }));
    await this.limit();
  }

  /** Shares the uplink among the peers, and leaves out pixels rather than sharpness. */
  async limit() {
    const sender = this.#pc && this.#media(this.#pc).find((one) => one.receiver.track.kind === 'video')?.sender;
    if (!sender?.track) return;
    const { videoBps, height } = this.#mesh.limits;
    const real = sender.track.getSettings().height ?? height;
    const parameters = sender.getParameters();
    if (!parameters.encodings?.length) return;
    const [encoding] = parameters.encodings;
    const scale = Math.max(1, real / height);
    if (encoding.maxBitrate === videoBps && encoding.scaleResolutionDownBy === scale) return;
    Object.assign(encoding, { maxBitrate: videoBps, scaleResolutionDownBy: scale });
    await sender.setParameters(parameters).catch(() => {}); // negotiating just now: it comes again when that is done
  }

  // -- chat ----------------------------------------------------------------------------------------

  /** @param {object} message */
  #send(message) {
    if (this.chat?.readyState !== 'open') return;
    try { this.chat.send(JSON.stringify(message)); } catch { /* full or just closed: what is not acknowledged is said again */ }
  }

  /** @param {{type: string, id: number, text: string, at: number}} message */
  say(message) {
    this.#unacked.push(message);
    if (this.#unacked.length > MAX_UNACKED) this.#mesh.acked(/** @type {any} */ (this.#unacked.shift()).id, 1);
    this.#send(message);
  }

  tellState() { this.#send({ type: 'state', ...this.#mesh.mine, name: this.#mesh.name }); }

  /** @param {unknown} data */
  #onChat(data) {
    const now = performance.now();
    const left = Math.min(CHAT_BURST, this.#budget.left + (now - this.#budget.at) / 1000 * CHAT_PER_SECOND);
    this.#budget = { at: now, left: left < 1 ? left : left - 1 };
    // What is not acknowledged it says again later.
    if (left < 1 || typeof data !== 'string' || data.length > MAX_CHAT_LEN) return;
    let message;
    try { message = JSON.parse(data); } catch { return; }
    if (message?.type === 'chat' && Number.isSafeInteger(message.id) && typeof message.text === 'string') {
      this.#send({ type: 'ack', id: message.id });
      const at = Number(message.at) || Date.now();
      // Who left and came back under the same id counts from one again, at another time.
      if (this.#seen.get(message.id) === at) return;
      this.#seen.set(message.id, at);
      if (this.#seen.size > MAX_SEEN) this.#seen.delete(/** @type {number} */ (this.#seen.keys().next().value));
      this.#mesh.tell('chat', { from: this, mine: false, id: message.id, text: message.text.slice(0, MAX_TEXT), at });
    } else if (message?.type === 'ack') {
      const index = this.#unacked.findIndex((one) => one.id === message.id);
      if (index >= 0) this.#mesh.acked(this.#unacked.splice(index, 1)[0].id, 1);
    } else if (message?.type === 'state') {
      this.muted = message.muted === true;
      this.camera = message.camera !== false;
      this.screen = message.screen === true;
      this.#setUser(message);
      this.#mesh.tell('peer-changed', { peer: this });
    }
  }

  // -- figures -------------------------------------------------------------------------------------

  /** How loud it is now, 0 to 1 (RFC 6464, or the decoder's own figure). */
  get level() {
    const receiver = this.#pc && this.#media(this.#pc).find((one) => one.receiver.track.kind === 'audio')?.receiver;
    const [source] = receiver?.getSynchronizationSources() ?? [];
    return source && performance.timeOrigin + performance.now() - source.timestamp < 1000 ? source.audioLevel ?? 0 : 0;
  }

  /** What arrived since the last call; numbers are null while unknown. @returns {Promise<Figures>} */
  async figures() {
    const reports = [...(await this.#pc?.getStats().catch(() => new Map()) ?? new Map()).values()];
    const inbound = reports.filter((one) => one.type === 'inbound-rtp');
    const video = inbound.find((one) => one.kind === 'video');
    const transport = reports.find((one) => one.type === 'transport');
    const pair = reports.find((one) => one.id === transport?.selectedCandidatePairId)
      ?? reports.find((one) => one.type === 'candidate-pair' && one.nominated && one.state === 'succeeded');
    const sum = (/** @type {string} */ key) => inbound.reduce((all, one) => all + (one[key] ?? 0), 0);
    const now = { at: performance.now(), packets: sum('packetsReceived'), lost: sum('packetsLost'), freezes: video?.freezeCount ?? 0, frames: video?.framesDecoded ?? 0, bytes: sum('bytesReceived') };
    const before = this.#before;
    this.#before = now;
    // A new connection counts from zero.
    const fresh = before.at === 0 || now.packets < before.packets;
    const seconds = (now.at - before.at) / 1000;
    const [packets, lost] = [now.packets - before.packets, Math.max(0, now.lost - before.lost)];
    return {
      rtt_ms: pair?.currentRoundTripTime === undefined ? null : pair.currentRoundTripTime * 1000,
      loss: fresh || packets + lost === 0 ? null : lost / (packets + lost),
      freezes: fresh ? 0 : Math.max(0, now.freezes - before.freezes),
      fps: fresh ? null : (now.frames - before.frames) / seconds,
      bps: fresh ? null : ((now.bytes - before.bytes) * 8) / seconds,
      width: video?.frameWidth ?? null, height: video?.frameHeight ?? null,
      codec: reports.find((one) => one.id === video?.codecId)?.mimeType?.replace('video/', '') ?? null,
    };
  }
}

/**
 * @typedef {object} Figures
 * @property {number|null} rtt_ms @property {number|null} loss  0 to 1. @property {number} freezes
 * @property {number|null} fps @property {number|null} bps @property {number|null} width @property {number|null} height @property {string|null} codec
 */

/**
 * A grade and its reasons, in words. Limits: G.114 calls 400 ms round trip the end of comfort; Opus with FEC and NACK hide 2 % of loss.
 * @param {Figures} figures @param {boolean} camera  It shows something.
 * @returns {{grade: 'unknown'|'good'|'fair'|'poor', reasons: string[]}}
 */
export function judge({ rtt_ms, loss, freezes, fps }, camera) {
  /** @type {[number, string][]} */
  const found = [];
  if (loss !== null && loss >= 0.02) found.push([loss >= 0.08 ? 2 : 1, `${(loss * 100).toFixed(loss < 0.1 ? 1 : 0)} % of the packets are lost`]);
  if (rtt_ms !== null && rtt_ms >= 200) found.push([rtt_ms >= 400 ? 2 : 1, `${Math.round(rtt_ms)} ms to there and back`]);
  if (freezes > 0) found.push([freezes > 1 ? 2 : 1, freezes === 1 ? 'the picture froze' : `the picture froze ${freezes} times`]);
  if (camera && fps !== null && fps < 8) found.push([fps < 3 ? 2 : 1, `${fps.toFixed(fps < 3 ? 1 : 0)} pictures a second`]);
  if (rtt_ms === null && loss === null) return { grade: 'unknown', reasons: [] };
  const worst = Math.max(0, ...found.map(([weight]) => weight));
  return { grade: /** @type {const} */ (['good', 'fair', 'poor'])[worst], reasons: found.map(([, words]) => words) };
}
