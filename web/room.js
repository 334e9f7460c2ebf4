/**
 * /room/{room}: up to ten people, browser to browser. The connections are `mesh.js`, the files `transfer.js`; here is what one sees.
 *
 * `?id=ada` enters under this peer id instead of a random one. For tests and for people with a console `window.room` holds the parts:
 *   mesh, transfers     as their modules say
 *   show(stream)        a MediaStream of one's own instead of camera and microphone, before or after joining
 *   tile(id)            the element of a peer; '' for one's own
 */
import { DASH, bitrate, byId, copy, h, milliseconds, number, plural, resolution, setText, size } from './common.js';
import { Mesh, ROOM_FULL, judge } from './mesh.js';
import { Transfers, isOver } from './transfer.js';

/** @typedef {import('./mesh.js').Peer} Peer @typedef {import('./transfer.js').Transfer} Transfer */

const CAMERA = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30, max: 30 } };
const MICROPHONE = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
/** What a home's uplink carries of pictures, all peers together. */
const UPLINK_BPS = 4_000_000;
/** A voice, −34 dBFS and louder, and how long its ring stays between words. */
const SPEAKING = 0.02;
const SPEAKING_HOLD_MS = 450;
const LEVEL_MS = 100;
const QUALITY_MS = 2000;
/** Lines of the log; the oldest go. */
const MAX_LINES = 500;
const SHOWN_IMAGE = 20 << 20;
const NAME_KEY = 'lightpipe-name';

const ICONS = /** @type {const} */ ({
  mic: ['M12 3.5a3 3 0 0 1 3 3v5a3 3 0 0 1-6 0v-5a3 3 0 0 1 3-3z', 'M5.5 11.5a6.5 6.5 0 0 0 13 0', 'M12 18v3'],
  micOff: ['M9 9.5v2a3 3 0 0 0 4.6 2.5M15 11V6.5a3 3 0 0 0-5.6-1.5', 'M5.5 11.5a6.5 6.5 0 0 0 10.3 5.3M18.5 11.500a6.600 6.600 0 0 1-.5 2.500', 'M12 18v3', 'M4 3.500 20 20.500'],
  camera: ['M3.500 7.500a2 2 0 0 1 2-2h8a2 2 0 0 1 2 2v9a2 2 0 0 1-2 2h-8a2 2 0 0 1-2-2z', 'm15.500 10.500 5-3v9l-5-3'],
  cameraOff: ['M9 5.500h4.500a2 2 0 0 1 2 2V12M15.500 16.500a2 2 0 0 1-2 2h-8a2 2 0 0 1-2-2v-9a2 2 0 0 1 1.500-1.900', 'm15.500 10.500 5-3v9l-2.500-1.500', 'M4 3.500 19 20.500'],
  screen: ['M3.500 5.500h17v11h-17z', 'M8.500 20.500h7', 'm9 11.500 3-3 3 3M12 8.700v5'],
  chat: ['M4 5.500h16v11h-9l-4.500 3.500v-3.500H4z'],
  settings: ['M4 7.500h9M17.500 7.500H20M4 16.500h2.500M11 16.500h9', 'M15.200 5.200a2.300 2.300 0 1 1 0 4.600 2.300 2.300 0 0 1 0-4.600z', 'M8.800 14.200a2.300 2.300 0 1 1 0 4.600 2.300 2.300 0 0 1 0-4.600z'],
  leave: ['M3.500 13.800c5-4 12-4 17 0l-1.800 2.900-4-1.500v-2.600M3.500 13.800l1.800 2.900 4-1.500v-2.600'],
  close: ['m6 6 12 12M18 6 6 18'],
  attach: ['m19.500 11.500-7.600 7.600a4.600 4.600 0 0 1-6.500-6.500l8-8a3.100 3.100 0 0 1 4.400 4.400l-8 8a1.500 1.500 0 0 1-2.200-2.200l7.200-7.200'],
  send: ['M12 19.500v-15M5.500 11 12 4.500l6.500 6.500'],
  file: ['M6.500 3.500h7l4.500 4.500v12.500h-11.500z', 'M13.500 3.500v4.500h4.500'],
});

/** @param {keyof typeof ICONS} name */
function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  for (const d of ICONS[name]) {
    const path = document.createElementNS(svg.namespaceURI, 'path');
    path.setAttribute('d', d);
    svg.append(path);
  }
  return svg;
}

/** @param {HTMLElement} button @param {keyof typeof ICONS} name @param {string} label */
function face(button, name, label) {
  if (button.dataset.icon !== name) {
    button.querySelector('svg')?.remove();
    button.prepend(icon(name));
    button.dataset.icon = name;
  }
  button.title = label;
  button.setAttribute('aria-label', label);
}

const roomName = (() => {
  const segment = location.pathname.replace(/\/+$/, '').split('/').pop() ?? '';
  try { return decodeURIComponent(segment); } catch { return segment; }
})();
const query = new URLSearchParams(location.search);
const input = (/** @type {string} */ id) => /** @type {HTMLInputElement} */ (byId(id));

document.title = `${roomName} · lightpipe`;
setText(byId('title'), roomName);
setText(byId('lobby-title'), `Join ${roomName}`);

const mesh = new Mesh({
  url: `${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/ws`, room: roomName, id: query.get('id') ?? undefined, name: 'Guest',
});
const transfers = new Transfers();

// -- one's own picture and sound -------------------------------------------------------------------

const local = {
  /** @type {MediaStreamTrack|null} */ audio: null,
  /** @type {MediaStreamTrack|null} */ video: null,
  /** @type {MediaStreamTrack|null} */ screen: null,
  mic: true, camera: true,
  /** A stream that was given to the page instead of devices. */ given: false,
  shown: new MediaStream(),
};

/** Opens what is wanted and not open. What cannot be had is told, and is no reason not to join. */
async function openDevices() {
  if (local.given) return;
  if (!navigator.mediaDevices) { note('Browsers give a page the camera over HTTPS or on localhost only. You can watch, listen and write.'); return; }
  const wishes = (/** @type {string} */ id, /** @type {object} */ basics) => { const chosen = input(id).value; return chosen ? { ...basics, deviceId: { exact: chosen } } : basics; };
  const audio = local.mic && !local.audio ? wishes('mic-choice', MICROPHONE) : undefined;
  const video = local.camera && !local.video ? wishes('camera-choice', CAMERA) : undefined;
  if (!audio && !video) return;
  const problems = /** @type {string[]} */ ([]);
  const tracks = /** @type {MediaStreamTrack[]} */ ([]);
  try {
    tracks.push(...(await navigator.mediaDevices.getUserMedia({ audio, video })).getTracks());
  } catch (both) {
    // One of them may be there nevertheless.
    for (const one of audio && video ? [{ audio }, { video }] : []) {
      try { tracks.push(...(await navigator.mediaDevices.getUserMedia(one)).getTracks()); } catch (error) { problems.push(deviceProblem(error, 'audio' in one ? 'microphone' : 'camera')); }
    }
    if (!(audio && video)) problems.push(deviceProblem(both, audio ? 'microphone' : 'camera'));
  }
  if (local.given) { for (const track of tracks) track.stop(); return; } // meanwhile
  for (const track of tracks) {
    local[/** @type {'audio'|'video'} */ (track.kind)] = track;
    track.addEventListener('ended', () => { void lost(track); });
  }
  if (!local.audio) local.mic = false;
  if (!local.video) local.camera = false;
  const rest = !local.audio && !local.video ? ' You can join all the same: watch, listen and write.' : '';
  note(problems.length ? [...new Set(problems)].join(' ') + rest : '');
  await present();
  await listDevices();
}

/** A device was pulled out, or a screen is no longer shown. @param {MediaStreamTrack} track */
async function lost(track) {
  if (track === local.audio) { local.audio = null; local.mic = false; toast('The microphone is gone.'); }
  if (track === local.video) { local.video = null; local.camera = false; toast('The camera is gone.'); }
  if (track === local.screen) local.screen = null;
  await present();
}

/** @param {any} error @param {string} device */
function deviceProblem(error, device) {
  const words = {
    NotAllowedError: `The browser was not allowed to use the ${device}.`,
    NotFoundError: `There is no ${device}.`,
    OverconstrainedError: `There is no such ${device}.`,
    NotReadableError: `Another program uses the ${device}.`,
  };
  return words[/** @type {keyof typeof words} */ (error?.name)] ?? `The ${device} could not be opened (${error?.message ?? error}).`;
}

/** @param {string} text */
function note(text) {
  byId('device-note').hidden = !text;
  setText(byId('device-note'), text);
  if (text && document.body.dataset.view === 'room') toast(text);
}

async function listDevices() {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  for (const [ids, kind, word] of /** @type {const} */ ([[['mic-choice', 'mic-choice-2'], 'audioinput', 'Microphone'], [['camera-choice', 'camera-choice-2'], 'videoinput', 'Camera']])) {
    const found = devices.filter((one) => one.kind === kind && one.deviceId);
    const track = kind === 'audioinput' ? local.audio : local.video;
    for (const id of ids) {
      const select = /** @type {HTMLSelectElement} */ (byId(id));
      const value = track?.getSettings().deviceId ?? select.value;
      select.replaceChildren(...(found.length ? found : [{ deviceId: '', label: `No ${word.toLowerCase()}` }]).map((one, n) => h('option', { value: one.deviceId }, one.label || `${word} ${n + 1}`)));
      if (found.some((one) => one.deviceId === value)) select.value = value;
      select.disabled = !found.length;
    }
  }
}

/** Shows the room and the preview what is there now. */
async function present() {
  const video = local.screen ?? (local.camera ? local.video : null);
  const audio = local.audio;
  if (audio) audio.enabled = local.mic;
  for (const track of local.shown.getTracks()) if (track !== video && track !== audio) local.shown.removeTrack(track);
  for (const track of [video, audio]) if (track && !local.shown.getTracks().includes(track)) local.shown.addTrack(track);
  if (video && 'contentHint' in video) video.contentHint = local.screen ? 'detail' : '';
  hear(audio);
  mesh.setState({ muted: !local.mic || !audio, camera: Boolean(video), screen: Boolean(local.screen) });
  own.show();
  preview.show();
  showSwitches();
  await mesh.setTracks({ audio, video });
}

async function switchMic() {
  local.mic = !local.mic;
  if (local.mic && !local.audio) await openDevices();
  await present();
}

async function switchCamera() {
  local.camera = !local.camera;
  if (!local.camera && local.video && !local.given) {
    // Its light goes out.
    local.video.stop();
    local.video = null;
  }
  if (local.camera && !local.video) await openDevices();
  await present();
}

async function switchScreen() {
  if (local.screen) {
    local.screen.stop();
    local.screen = null;
  } else {
    try {
      const [track] = (await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: { max: 15 } } })).getVideoTracks();
      local.screen = track;
      track.addEventListener('ended', () => void lost(track));
    } catch (error) {
      if (/** @type {any} */ (error)?.name !== 'NotAllowedError') toast('The screen could not be shown.');
      return;
    }
  }
  await present();
}

/** @param {'mic-choice'|'camera-choice'} which @param {string} value */
async function choose(which, value) {
  for (const id of [which, `${which}-2`]) input(id).value = value;
  const kind = which === 'mic-choice' ? 'audio' : 'video';
  local[kind]?.stop();
  local[kind] = null;
  local[kind === 'audio' ? 'mic' : 'camera'] = true;
  await openDevices();
}

function showSwitches() {
  const mic = local.mic && local.audio;
  const camera = local.camera && local.video;
  for (const id of ['mic', 'lobby-mic']) { face(byId(id), mic ? 'mic' : 'micOff', mic ? 'Mute the microphone' : 'Unmute the microphone'); byId(id).classList.toggle('off', !mic); }
  for (const id of ['camera', 'lobby-camera']) { face(byId(id), camera ? 'camera' : 'cameraOff', camera ? 'Turn the camera off' : 'Turn the camera on'); byId(id).classList.toggle('off', !camera); }
  face(byId('screen'), 'screen', local.screen ? 'Stop showing the screen' : 'Show the screen');
  byId('screen').setAttribute('aria-pressed', String(Boolean(local.screen)));
}

// How loud one is oneself.
const ears = { /** @type {AudioContext|null} */ context: null, /** @type {AnalyserNode|null} */ analyser: null, /** @type {AudioNode|null} */ source: null, /** @type {MediaStreamTrack|null} */ track: null };

/** @param {MediaStreamTrack|null} track */
function hear(track) {
  if (track === ears.track) return;
  ears.track = track;
  ears.source?.disconnect();
  ears.source = null;
  if (!track) return;
  ears.context ??= new AudioContext();
  ears.analyser ??= new AnalyserNode(ears.context, { fftSize: 1024 });
  ears.source = ears.context.createMediaStreamSource(new MediaStream([track]));
  ears.source.connect(ears.analyser);
}

const samples = new Float32Array(1024);
function ownLevel() {
  if (!ears.source || !ears.analyser || !local.mic) return 0;
  if (ears.context?.state === 'suspended') void ears.context.resume();
  ears.analyser.getFloatTimeDomainData(samples);
  return Math.sqrt(samples.reduce((sum, s) => sum + s * s, 0) / samples.length);
}

// -- tiles -----------------------------------------------------------------------------------------

/** Two letters. @param {string} name */
function initials(name) {
  const words = name.trim().split(/[\s_.-]+/).filter(Boolean);
  return [words[0], words.length > 1 ? words[words.length - 1] : ''].map((word) => [...(word ?? '')][0] ?? '').join('').toUpperCase() || '?';
}

/** @param {string} text */
const hue = (text) => [...text].reduce((sum, c) => (sum * 31 + (c.codePointAt(0) ?? 0)) % 360, 7);

/** One picture, of a peer or of oneself. */
class Tile {
  #video; #avatar; #name; #muted; #quality; #reasons; #veil; #veilText; #veilReason;
  #loudAt = -Infinity;
  /** @type {import('./mesh.js').Figures|null} */ figures = null;
  /** Of the last three looks, so that one lost packet does not make a badge flicker. @type {import('./mesh.js').Figures[]} */ #recent = [];

  /** @param {Peer|null} peer */
  constructor(peer) {
    this.peer = peer;
    this.#video = /** @type {HTMLVideoElement} */ (h('video', { autoplay: '', playsinline: '' }));
    this.#avatar = h('span');
    this.#name = h('bdi');
    this.#muted = icon('micOff');
    this.#reasons = h('span');
    this.#quality = h('button', { class: 'quality', type: 'button' }, h('i', { class: 'bars', 'aria-hidden': 'true' }, h('i'), h('i'), h('i')), this.#reasons);
    this.#veilText = h('b');
    this.#veilReason = h('small');
    this.#veil = h('div', { class: 'veil' }, h('i', { class: 'spin', 'aria-hidden': 'true' }), this.#veilText, this.#veilReason);
    this.element = h('article', { class: 'tile', 'data-peer': peer?.id ?? '' },
      this.#video, h('div', { class: 'avatar', 'aria-hidden': 'true' }, this.#avatar), this.#quality, this.#veil, h('p', { class: 'plate' }, this.#muted, this.#name));
    this.element.style.setProperty('--hue', String(hue(peer?.id ?? mesh.id)));
    this.#video.muted = !peer;
    this.#quality.hidden = !peer;
    this.#quality.addEventListener('click', () => showDetails(this));
    this.show();
  }

  get name() { return this.peer ? this.peer.name : `${mesh.name} (you)`; }

  show() {
    const { peer } = this;
    const camera = peer ? peer.camera && peer.stream.getVideoTracks().length > 0 : local.shown.getVideoTracks().length > 0;
    const screen = peer ? peer.screen : Boolean(local.screen);
    const muted = peer ? peer.muted : !local.mic || !local.audio;
    const stream = peer ? peer.stream : local.shown;
    // An element with a stream that has nothing to show keeps the page's load event waiting.
    if (stream.getTracks().length && this.#video.srcObject !== stream) this.#video.srcObject = stream;
    setText(this.#name, this.name);
    setText(this.#avatar, initials(peer ? peer.name : mesh.name));
    this.#muted.toggleAttribute('hidden', !muted);
    this.element.classList.toggle('muted', muted);
    this.element.classList.toggle('dark', !camera);
    this.element.classList.toggle('whole', screen);
    this.element.classList.toggle('mirrored', !peer && !screen);
    this.element.setAttribute('aria-label', `${this.name}${muted ? ', muted' : ''}${camera ? '' : ', no camera'}`);
    const state = peer?.state ?? 'connected';
    this.#veil.hidden = state === 'connected';
    setText(this.#veilText, state === 'reconnecting' ? 'Reconnecting' : 'Connecting');
    setText(this.#veilReason, peer?.reason ?? '');
    this.element.dataset.state = state;
    void this.play();
  }

  /** Browsers play sound only after a gesture; then it needs one. */
  async play() {
    if (!this.#video.paused || !this.#video.srcObject) return;
    try {
      await this.#video.play();
    } catch (error) {
      if (/** @type {any} */ (error)?.name !== 'NotAllowedError' || !this.peer) return;
      this.#video.muted = true;
      byId('listen').hidden = false;
      await this.#video.play().catch(() => {});
    }
  }

  listen() {
    if (!this.peer) return;
    this.#video.muted = false;
    void this.play();
  }

  /** @param {number} now */
  level(now) {
    const loud = this.peer ? (this.peer.muted ? 0 : this.peer.level) : ownLevel();
    if (loud >= SPEAKING) this.#loudAt = now;
    this.element.classList.toggle('speaking', now - this.#loudAt < SPEAKING_HOLD_MS);
  }

  /** While somebody mixes the room, all others are in that sound already. @param {boolean} mixed */
  hush(mixed) { this.#video.volume = this.peer && mixed && !this.peer.mixes ? 0 : 1; }

  async look() {
    if (!this.peer) return;
    const figures = (this.figures = await this.peer.figures());
    this.#recent = [...this.#recent, figures].slice(-3);
    const mean = (/** @type {'rtt_ms'|'loss'|'fps'} */ key) => {
      const known = this.#recent.map((one) => one[key]).filter((value) => value !== null);
      return known.length ? known.reduce((sum, value) => Number(sum) + Number(value), 0) / known.length : null;
    };
    const { grade, reasons } = judge({
      ...figures, rtt_ms: mean('rtt_ms'), loss: mean('loss'), fps: mean('fps'), freezes: this.#recent.reduce((sum, one) => sum + one.freezes, 0),
    }, this.peer.camera && !this.peer.screen && this.peer.stream.getVideoTracks().length > 0 && (figures.width ?? 0) > 0);
    this.#quality.dataset.grade = this.peer.state === 'connected' ? grade : 'unknown';
    setText(this.#reasons, reasons.join(', '));
    const words = { unknown: 'The connection is being measured', good: 'A good connection', fair: `A fair connection: ${reasons.join(', ')}`, poor: `A poor connection: ${reasons.join(', ')}` }[grade];
    this.words = words;
    this.#quality.title = words;
    this.#quality.setAttribute('aria-label', `${words}. Numbers`);
    if (details.tile === this) showFacts(this);
  }

  words = '';
}

const preview = new Tile(null);
const own = new Tile(null);
byId('preview').append(preview.element);
/** @type {Map<string, Tile>} */
const tiles = new Map();
const alone = h('div', { class: 'tile alone' }, h('b', {}, 'Nobody else is here yet'), h('p', {}, 'Whoever opens the address of this page comes in.'), (() => {
  const button = h('button', { class: 'button primary', type: 'button' }, 'Copy the address');
  button.addEventListener('click', () => void copy(button, inviteUrl()));
  return button;
})());
byId('tiles').append(own.element, alone);

/** The largest tiles that fit, all of one size. */
function layOut() {
  const box = byId('tiles');
  const shown = [...box.children].filter((one) => !/** @type {HTMLElement} */ (one).hidden).length;
  const { width, height } = box.getBoundingClientRect();
  if (!shown || !width || !height) return;
  const gap = parseFloat(getComputedStyle(box).columnGap) || 0;
  let best = { area: 0, w: 0, h: 0 };
  for (let columns = 1; columns <= shown; columns++) {
    const rows = Math.ceil(shown / columns);
    const cell = { w: (width - gap * (columns - 1)) / columns, h: (height - gap * (rows - 1)) / rows };
    // A face fits anything between a phone held upright and a television; on a desk less of the room behind it need be cut off.
    const aspect = Math.min(Math.max(cell.w / cell.h, width < height ? 0.8 : 4 / 3), 16 / 9);
    const w = Math.min(cell.w, cell.h * aspect);
    const area = w * (w / aspect);
    if (area > best.area * 1.001) best = { area, w, h: w / aspect };
  }
  // Rounded up a column would not fit.
  box.style.setProperty('--tile-w', `${Math.floor(best.w)}px`);
  box.style.setProperty('--tile-h', `${Math.floor(best.h)}px`);
}
new ResizeObserver(layOut).observe(byId('tiles'));

function countPeople() {
  alone.hidden = mesh.peers.size > 0;
  setText(byId('count'), document.body.dataset.view === 'room' ? `${plural(mesh.peers.size + 1, 'person', 'people')}` : '');
  const others = Math.max(1, mesh.peers.size);
  mesh.setLimits({ videoBps: Math.round(Math.min(1_500_000, Math.max(150_000, UPLINK_BPS / others))), height: others <= 2 ? 720 : others <= 5 ? 360 : 240 });
  layOut();
}

mesh.addEventListener('peer-joined', (event) => {
  const { peer } = /** @type {CustomEvent<{peer: Peer}>} */ (event).detail;
  const tile = new Tile(peer);
  tiles.set(peer.id, tile);
  byId('tiles').insertBefore(tile.element, own.element);
  countPeople();
});
mesh.addEventListener('peer-left', (event) => {
  const { peer } = /** @type {CustomEvent<{peer: Peer, reason: string}>} */ (event).detail;
  tiles.get(peer.id)?.element.remove();
  tiles.delete(peer.id);
  transfers.detach(peer.id);
  countPeople();
  if (mesh.joined) line(`${peer.name} has left`);
});
mesh.addEventListener('media', (event) => { tiles.get(/** @type {CustomEvent} */ (event).detail.peer.id)?.show(); });
mesh.addEventListener('peer-state', (event) => { tiles.get(/** @type {CustomEvent} */ (event).detail.peer.id)?.show(); });
mesh.addEventListener('peer-changed', (event) => { tiles.get(/** @type {CustomEvent} */ (event).detail.peer.id)?.show(); });
/** Who is in a mixer's sound is not heard twice. */
function hush() {
  const mixed = [...mesh.peers.values()].some((peer) => peer.mixes && peer.state === 'connected');
  for (const tile of tiles.values()) tile.hush(mixed);
}
for (const what of ['peer-joined', 'peer-left', 'peer-state', 'peer-changed']) mesh.addEventListener(what, hush);
mesh.addEventListener('speaker', (event) => {
  const { id } = /** @type {CustomEvent<{id: string|null, by: Peer}>} */ (event).detail;
  for (const tile of [own, ...tiles.values()]) tile.element.toggleAttribute('data-active', id === (tile.peer?.id ?? mesh.id));
});
mesh.addEventListener('channel', (event) => {
  const { peer, channel } = /** @type {CustomEvent} */ (event).detail;
  transfers.attach(peer.id, channel);
});

setInterval(() => {
  const now = performance.now();
  for (const tile of tiles.values()) tile.level(now);
  (document.body.dataset.view === 'room' ? own : preview).level(now);
}, LEVEL_MS);
setInterval(() => { for (const tile of tiles.values()) void tile.look(); }, QUALITY_MS);

const details = { /** @type {Tile|null} */ tile: null };
const detailsDialog = /** @type {HTMLDialogElement} */ (byId('details'));

/** @param {Tile} tile */
function showDetails(tile) {
  details.tile = tile;
  showFacts(tile);
  detailsDialog.showModal();
}
detailsDialog.addEventListener('close', () => { details.tile = null; });

/** @param {Tile} tile */
function showFacts(tile) {
  const { figures } = tile;
  setText(byId('details-title'), tile.name);
  setText(byId('details-words'), tile.words);
  const facts = [
    ['Picture', resolution(figures?.width, figures?.height)], ['Frames', figures?.fps === null ? DASH : `${number(figures?.fps)} fps`], ['Codec', figures?.codec ?? DASH],
    ['Received', bitrate(figures?.bps)], ['Round trip', milliseconds(figures?.rtt_ms)], ['Loss', figures?.loss === null || !figures ? DASH : `${number(figures.loss * 100, 1)} %`],
  ];
  byId('details-facts').replaceChildren(...facts.map(([label, value]) => h('div', {}, h('dt', {}, label), h('dd', {}, value))));
}

// -- chat and files --------------------------------------------------------------------------------

let unread = 0;
/** @type {Map<number, HTMLElement>} */
const mine = new Map();
const last = { by: '', at: 0 };

/** Whoever reads the end goes on reading the end; who has scrolled up stays there. @param {() => void} change */
function keepEnd(change) {
  const box = byId('log');
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  change();
  if (atEnd) box.scrollTop = box.scrollHeight;
}

/** @param {HTMLElement} element */
function log(element) {
  const box = byId('log');
  keepEnd(() => {
    byId('log-empty').hidden = true;
    box.append(element);
    while (box.children.length > MAX_LINES) box.children[1].remove();
  });
  if (element.classList.contains('mine')) box.scrollTop = box.scrollHeight;
}

/** What happened. @param {string} text */
function line(text) {
  last.by = '';
  log(h('p', { class: 'event' }, text));
}

function notice() {
  if (!byId('panel').hidden) return;
  unread += 1;
  byId('unread').hidden = false;
  setText(byId('unread'), unread > 99 ? '99+' : String(unread));
}

mesh.addEventListener('chat', (event) => {
  const { from, id, text, at, mine: own_ } = /** @type {CustomEvent<{from: Peer|null, id: number, text: string, at: number, mine: boolean}>} */ (event).detail;
  const by = from?.id ?? '';
  const follows = last.by === `${by}:` && at - last.at < 120_000;
  Object.assign(last, { by: `${by}:`, at });
  const clock = new Date(at).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });
  const element = h('div', { class: `said${own_ ? ' mine' : ''}${follows ? ' follows' : ''}`, title: clock });
  if (!follows && from) element.append(h('p', { class: 'by' }, h('bdi', {}, from.name), ` ${clock}`));
  element.append(h('p', { class: 'text', dir: 'auto' }, text));
  if (own_) mine.set(id, element);
  log(element);
  if (!own_) notice();
});
mesh.addEventListener('chat-acked', (event) => {
  const { id, waiting } = /** @type {CustomEvent} */ (event).detail;
  const element = mine.get(id);
  if (!element) return;
  if (!waiting) { element.classList.remove('waiting'); mine.delete(id); return; }
  // On a good path nobody sees it wait.
  setTimeout(() => { if (mine.has(id)) element.classList.add('waiting'); }, 1500);
});

/** @param {boolean} open */
function openPanel(open) {
  byId('panel').hidden = !open;
  byId('chat').setAttribute('aria-pressed', String(open));
  if (!open) return;
  unread = 0;
  byId('unread').hidden = true;
  byId('log').scrollTop = byId('log').scrollHeight;
}

const text = /** @type {HTMLTextAreaElement} */ (byId('text'));
function say() {
  if (text.value.trim()) mesh.say(text.value.trim());
  text.value = '';
}

/** One file: what was sent to several is one card with a row for each. @type {Map<object, FileCard>} */
const cards = new Map();
/** @type {WeakMap<Transfer, FileCard>} */
const cardOf = new WeakMap();

class FileCard {
  #rows = /** @type {Map<Transfer, {element: HTMLElement, who: HTMLElement, bar: HTMLProgressElement, cancel: HTMLElement}>} */ (new Map());
  #what; #about; #actions; #shown = false;

  /** @param {Transfer} first */
  constructor(first) {
    this.first = first;
    this.#what = h('bdi', { class: 'what' }, first.name);
    this.#about = h('span', { class: 'about' });
    this.#actions = h('div', { class: 'row' });
    this.#actions.hidden = true;
    this.element = h('div', { class: `file ${first.direction === 'out' ? 'mine' : ''}` },
      h('div', { class: 'head' }, icon('file'), h('div', {}, this.#what, this.#about)), this.#actions);
    log(this.element);
  }

  /** @param {Transfer} transfer */
  show(transfer) {
    const incoming = transfer.direction === 'in';
    const peer = mesh.peers.get(transfer.peer);
    let row = this.#rows.get(transfer);
    if (!row) {
      const cancel = h('button', { class: 'link', type: 'button' }, 'Cancel');
      cancel.addEventListener('click', () => transfers.cancel(transfer));
      const bar = /** @type {HTMLProgressElement} */ (h('progress', { max: '1', 'aria-label': `Progress of ${transfer.name}` }));
      const who = h('span', { class: 'who' });
      row = { element: h('div', { class: 'way' }, who, cancel, bar), who, bar, cancel };
      row.element.dataset.name = peer?.name ?? transfer.peer;
      this.#rows.set(transfer, row);
      this.#actions.before(row.element);
    }
    const name = row.element.dataset.name ?? '';
    const share = transfer.size ? transfer.done / transfer.size : 1;
    const percent = `${Math.floor(share * 100)} %`;
    const words = /** @type {Record<import('./transfer.js').TransferState, string>} */ ({
      queued: 'waits for its turn', offered: incoming ? '' : 'has not answered yet', running: percent, paused: transfer.done ? `${percent}, waits for the connection` : 'waits for the connection',
      finished: incoming ? 'Received and checked' : 'has it', refused: incoming ? 'Not taken' : 'did not want it', failed: `Failed: ${transfer.reason}`, cancelled: transfer.reason === 'cancelled' ? 'Cancelled' : `Cancelled: ${transfer.reason}`,
    })[transfer.state];
    setText(row.who, incoming ? words : `${name}: ${words}`);
    row.bar.value = share;
    row.bar.hidden = !['running', 'paused'].includes(transfer.state);
    row.cancel.hidden = isOver(transfer) || (incoming && transfer.state === 'offered');
    row.element.classList.toggle('bad', transfer.state === 'failed');
    row.element.dataset.state = transfer.state;
    row.element.hidden = incoming && transfer.state === 'offered';
    setText(this.#what, transfer.name);
    this.#what.title = transfer.name;
    setText(this.#about, incoming ? `${size(transfer.size)} from ${name}` : size(transfer.size));
    if (incoming) this.#act(transfer);
  }

  /** @param {Transfer} transfer */
  #act(transfer) {
    const { state } = transfer;
    if (this.#actions.dataset.state === state) return;
    this.#actions.dataset.state = state;
    this.#actions.replaceChildren();
    if (state === 'offered') {
      const take = h('button', { class: 'button primary', type: 'button' }, 'Accept');
      take.addEventListener('click', () => transfers.accept(transfer));
      const not = h('button', { class: 'button', type: 'button' }, 'No, thanks');
      not.addEventListener('click', () => transfers.refuse(transfer));
      this.#actions.append(take, not);
    } else if (state === 'finished' && transfer.blob) {
      const url = URL.createObjectURL(transfer.blob);
      this.#actions.append(h('a', { class: 'button primary', href: url, download: transfer.name }, 'Save'));
      if (transfer.blob.type.startsWith('image/') && transfer.size <= SHOWN_IMAGE && !this.#shown) {
        this.#shown = true;
        const image = h('img', { src: url, alt: transfer.name });
        // Its height is known then.
        image.addEventListener('load', () => this.element.scrollIntoView({ block: 'nearest' }));
        this.#actions.before(image);
      }
    }
    this.#actions.hidden = !this.#actions.children.length;
  }
}

transfers.addEventListener('transfer', (event) => {
  const { transfer } = /** @type {CustomEvent<{transfer: Transfer}>} */ (event).detail;
  let card = cardOf.get(transfer);
  if (!card) {
    const of = sending ?? transfer;
    card = cards.get(of) ?? new FileCard(transfer);
    cards.set(of, card);
    cardOf.set(transfer, card);
    last.by = '';
    if (transfer.direction === 'in') notice();
  }
  const shown = card;
  keepEnd(() => shown.show(transfer));
});

/** What the next transfers are of. @type {object|null} */
let sending = null;

/** @param {Iterable<File>} files @param {string} [to]  A peer; everybody. */
function send(files, to) {
  const targets = to ? [to] : [...mesh.peers.keys()];
  if (!targets.length) { toast('There is nobody to send it to.'); return; }
  openPanel(true);
  for (const file of files) {
    sending = file;
    for (const peer of targets) transfers.send(peer, file);
    sending = null;
  }
}

// Dropped on a tile it goes to one, elsewhere to everybody.
let dragging = 0;
/** @param {DragEvent} event */
const peerBelow = (event) => /** @type {HTMLElement|null} */ (/** @type {Element} */ (event.target).closest?.('.tile[data-peer]'))?.dataset.peer || undefined;
const carriesFiles = (/** @type {DragEvent} */ event) => document.body.dataset.view === 'room' && event.dataTransfer?.types.includes('Files');
addEventListener('dragenter', (event) => { if (carriesFiles(event)) { dragging += 1; byId('drop').hidden = false; } });
addEventListener('dragleave', (event) => { if (carriesFiles(event) && --dragging <= 0) { dragging = 0; byId('drop').hidden = true; } });
addEventListener('dragover', (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  const id = peerBelow(event);
  for (const tile of tiles.values()) tile.element.classList.toggle('target', tile.peer?.id === id);
  setText(byId('drop-title'), id ? `Send to ${mesh.peers.get(id)?.name}` : 'Send to everybody');
});
addEventListener('drop', (event) => {
  // Else the browser leaves the room to show the file.
  event.preventDefault();
  dragging = 0;
  byId('drop').hidden = true;
  for (const tile of tiles.values()) tile.element.classList.remove('target');
  if (carriesFiles(event)) send([...(event.dataTransfer?.files ?? [])], peerBelow(event));
});

// -- in and out ------------------------------------------------------------------------------------

function inviteUrl() {
  const url = new URL(location.href);
  url.searchParams.delete('id');
  url.hash = '';
  return url.href;
}

let toastTimer = 0;
/** @param {string} words */
function toast(words) {
  setText(byId('toast'), words);
  byId('toast').hidden = false;
  clearTimeout(toastTimer);
  toastTimer = window.setTimeout(() => { byId('toast').hidden = true; }, 4500);
}

/** @param {'lobby'|'room'} view */
function view(view) {
  document.body.dataset.view = view;
  const inside = view === 'room';
  byId('lobby').hidden = inside;
  byId('stage').hidden = byId('dock').hidden = byId('badge').hidden = !inside;
  if (!inside) byId('panel').hidden = true;
  countPeople();
}

mesh.addEventListener('state', (event) => {
  const { state, reason } = /** @type {CustomEvent<{state: string, reason: string}>} */ (event).detail;
  const enter = /** @type {HTMLButtonElement} */ (byId('enter'));
  enter.disabled = state === 'joining';
  setText(enter, state === 'joining' ? (reason ? 'Waiting for the server' : 'Joining') : 'Join');
  byId('badge').dataset.state = { joined: 'playing', reconnecting: 'reconnecting' }[state] ?? 'connecting';
  setText(byId('badge-text'), { joined: 'In the room', reconnecting: 'Server lost' }[state] ?? 'Joining');
  byId('badge').title = state === 'reconnecting' ? `${reason}. Trying again; those who are connected stay connected.` : '';
  if (state === 'joining' && reason) refuse(`${reason.charAt(0).toUpperCase()}${reason.slice(1)}. Trying again.`);
  if (state === 'joined') refuse('');
});

/** @param {string} words */
function refuse(words) {
  byId('refused').hidden = !words;
  setText(byId('refused'), words);
}

/** @param {any} error */
function refusal(error) {
  if (error.code === ROOM_FULL) return 'This room is full: ten people are in it already. Try again when somebody has left, or open another room.';
  if (error.cause === 'peer_id_taken') return `Somebody is in this room as “${mesh.id}” already. Close the other window, or open the page without that id.`;
  return `The server refuses: ${error.message}.`;
}

async function join() {
  const name = input('name').value.trim() || 'Guest';
  rename(name);
  refuse('');
  for (const tile of tiles.values()) tile.listen();
  try {
    await mesh.join();
  } catch (error) {
    if (mesh.state !== 'left') refuse(refusal(error));
    return;
  }
  view('room');
  own.show();
  if (innerWidth > 1000) openPanel(true);
}

/** @param {string} name */
function rename(name) {
  for (const id of ['name', 'name-2']) input(id).value = name === 'Guest' ? '' : name;
  try { localStorage.setItem(NAME_KEY, name === 'Guest' ? '' : name); } catch { /* then it is asked again */ }
  mesh.setState({ name });
  own.show();
  preview.show();
}

function leave() {
  mesh.leave('left');
  if (local.screen) { local.screen.stop(); local.screen = null; }
  view('lobby');
  void present();
}

byId('entry').addEventListener('submit', (event) => { event.preventDefault(); void join(); });
byId('leave').addEventListener('click', leave);
for (const id of ['mic', 'lobby-mic']) byId(id).addEventListener('click', () => void switchMic());
for (const id of ['camera', 'lobby-camera']) byId(id).addEventListener('click', () => void switchCamera());
byId('screen').addEventListener('click', () => void switchScreen());
byId('chat').addEventListener('click', () => { const open = byId('panel').hidden; openPanel(open); if (open && innerWidth > 820) text.focus(); });
byId('panel-close').addEventListener('click', () => openPanel(false));
byId('settings').addEventListener('click', () => { void listDevices(); /** @type {HTMLDialogElement} */ (byId('setup')).showModal(); });
byId('setup').addEventListener('close', () => rename(input('name-2').value.trim() || 'Guest'));
byId('listen').addEventListener('click', () => { byId('listen').hidden = true; for (const tile of tiles.values()) tile.listen(); });
byId('invite').addEventListener('click', () => {
  const phone = matchMedia('(pointer: coarse)').matches;
  if (phone && navigator.share) void navigator.share({ title: `Room ${roomName}`, url: inviteUrl() }).catch(() => {});
  else void copy(byId('invite'), inviteUrl());
});
for (const which of /** @type {const} */ (['mic-choice', 'camera-choice'])) {
  for (const id of [which, `${which}-2`]) byId(id).addEventListener('change', () => void choose(which, input(id).value));
}
byId('compose').addEventListener('submit', (event) => { event.preventDefault(); say(); });
text.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  say();
});
text.addEventListener('paste', (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length) return;
  event.preventDefault();
  send(files);
});
byId('attach').addEventListener('click', () => input('file').click());
input('file').addEventListener('change', () => { send([...(input('file').files ?? [])]); input('file').value = ''; });
document.addEventListener('keydown', (event) => {
  const target = /** @type {Element} */ (event.target);
  if (document.body.dataset.view !== 'room' || event.ctrlKey || event.metaKey || event.altKey || target.closest('input, textarea, select, dialog')) return;
  if (event.key === 'm') void switchMic();
  if (event.key === 'v') void switchCamera();
});
for (const dialog of /** @type {HTMLDialogElement[]} */ ([byId('setup'), detailsDialog])) dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });
navigator.mediaDevices?.addEventListener?.('devicechange', () => void listDevices());
addEventListener('pagehide', () => { if (mesh.state !== 'idle') mesh.leave('the page was closed'); });

face(byId('chat'), 'chat', 'Chat and files');
face(byId('settings'), 'settings', 'Name and devices');
face(byId('leave'), 'leave', 'Leave the room');
face(byId('panel-close'), 'close', 'Close the chat');
face(byId('attach'), 'attach', 'Send files');
face(byId('say'), 'send', 'Send');
byId('screen').hidden = !navigator.mediaDevices?.getDisplayMedia;
let remembered = '';
try { remembered = localStorage.getItem(NAME_KEY) ?? ''; } catch { /* a browser that keeps nothing */ }
rename(remembered || 'Guest');
showSwitches();

Object.assign(window, {
  room: {
    mesh, transfers,
    /** @param {string} id */ tile: (id) => (id ? tiles.get(id)?.element : own.element),
    /** @param {MediaStream} stream */
    async show(stream) {
      if (!local.given) for (const track of [local.audio, local.video]) track?.stop();
      local.given = true;
      local.audio = stream.getAudioTracks()[0] ?? null;
      local.video = stream.getVideoTracks()[0] ?? null;
      local.mic = Boolean(local.audio);
      local.camera = Boolean(local.video);
      note('');
      await present();
    },
  },
});

void iceServers().then((servers) => { mesh.iceServers = servers; });
void openDevices().catch((error) => note(deviceProblem(error, 'camera')));

/** Those that the server tells players of (RFC 9725 §4.6). @returns {Promise<RTCIceServer[]>} */
async function iceServers() {
  const { parseIceServers } = await import('../player.js');
  const answer = await fetch('/whep/room', { method: 'OPTIONS' }).catch(() => null);
  return parseIceServers(answer?.headers.get('Link') ?? null);
}
