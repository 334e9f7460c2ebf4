/** /publish/{stream}: camera or screen, and microphone, to the server by WHIP (RFC 9725). */
import { DASH, bitrate, byId, getJson, h, number, resolution, setText, whileVisible } from './common.js';

/** Wishes, not demands: a camera that cannot gives what it has. */
const CAMERA = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } };
/** What a voice filter would do to music and to everything that is not a voice; one can ask for it at the sound card. */
const MICROPHONE = { echoCancellation: true, noiseSuppression: false, autoGainControl: false };
/** The same picture in three sizes (RFC 8853): viewers get what their networks carry. A browser whose own carries less leaves the first ones out. */
const LAYERS = [{ rid: 'f' }, { rid: 'h', scaleResolutionDownBy: 2 }, { rid: 'q', scaleResolutionDownBy: 4 }];
/** Three encoders of these would be too much for most machines. */
const ONE_SIZE_ONLY = ['VP9', 'AV1'];
const STATS_MS = 1000;
const BACKOFF_FIRST_MS = 500;
const BACKOFF_MAX_MS = 10_000;
/** After this long without a path the session is given up and begun anew. */
const CONNECT_MS = 12_000;

const name = decodeURIComponent(location.pathname.replace(/\/+$/, '').split('/').pop() ?? '');
const endpoint = new URL(`/whip/${encodeURIComponent(name)}`, location.href).href;
const pickVideo = /** @type {HTMLSelectElement} */ (byId('video'));
const pickAudio = /** @type {HTMLSelectElement} */ (byId('audio'));
const pickCodec = /** @type {HTMLSelectElement} */ (byId('codec'));
const pickSizes = /** @type {HTMLSelectElement} */ (byId('sizes'));
const token = /** @type {HTMLInputElement} */ (byId('token'));
const preview = /** @type {HTMLVideoElement} */ (byId('preview'));
const go = /** @type {HTMLButtonElement} */ (byId('go'));

/** @type {MediaStream|null} */ let media = null;
/** @type {Session|null} */ let session = null;
let wanted = false;
let retryMs = BACKOFF_FIRST_MS;
let retryTimer = 0;

setText(byId('title'), name);
document.title = `Publish ${name} · lightpipe`;
/** @type {HTMLAnchorElement} */ (byId('watch')).href = `/watch/${encodeURIComponent(name)}`;

const facts = Object.fromEntries(['Picture', 'Sizes', 'Frames', 'Bitrate', 'Sound', 'Loss', 'Round trip', 'Received', 'Viewers'].map((label) => {
  const value = h('dd', {}, DASH);
  byId('facts').append(h('div', {}, h('dt', {}, label), value));
  return [label, value];
}));

/** @param {string} text */
function complain(text) {
  const problem = byId('problem');
  problem.hidden = !text;
  setText(problem, text);
}

/** @param {'ended'|'connecting'|'playing'|'reconnecting'|'failed'} state @param {string} text */
function show(state, text) {
  byId('badge').dataset.state = state;
  setText(byId('state'), text);
  setText(go, wanted ? 'Stop' : 'Go live');
}

/** One WHIP session. */
class Session {
  pc = new RTCPeerConnection({ bundlePolicy: 'max-bundle' });
  /** @type {string|null} */ url = null;
  #etag = /** @type {string|null} */ (null);
  #closed = false;
  #before = { at: 0, video: 0, audio: 0, frames: 0 };

  /** @param {() => void} connected @param {(why: string) => void} lost */
  constructor(connected, lost) {
    this.pc.addEventListener('connectionstatechange', () => {
      if (this.#closed) return;
      if (this.pc.connectionState === 'connected') connected();
      if (this.pc.connectionState === 'failed') lost('No network path to the server was found; a firewall may block its UDP port.');
    });
    setTimeout(() => { if (!this.#closed && this.pc.connectionState !== 'connected') lost('The connection took too long.'); }, CONNECT_MS);
  }

  /** @param {MediaStream} from @param {string} codec @param {boolean} layered */
  async open(from, codec, layered) {
    for (const kind of /** @type {const} */ (['video', 'audio'])) {
      const [track] = from.getTracks().filter((t) => t.kind === kind);
      if (!track) continue;
      const sender = this.#add(track, from, kind === 'video' && layered);
      if (kind === 'video' && codec) {
        const all = RTCRtpSender.getCapabilities('video')?.codecs ?? [];
        const first = all.filter((c) => c.mimeType === `video/${codec}`);
        if (first.length) sender.setCodecPreferences?.([...first, ...all.filter((c) => !first.includes(c))]);
      }
    }
    const offer = await this.pc.createOffer();
    const gathered = /** @type {RTCIceCandidate[]} */ ([]);
    this.pc.addEventListener('icecandidate', ({ candidate }) => {
      if (candidate?.candidate) gathered.push(candidate);
      void this.#trickle(gathered, !candidate);
    });
    const response = await fetch(endpoint, { method: 'POST', headers: headers({ 'Content-Type': 'application/sdp' }), body: offer.sdp });
    if (!response.ok) throw await refusal(response);
    this.url = new URL(response.headers.get('Location') ?? '', endpoint).href;
    this.#etag = response.headers.get('ETag');
    if (this.#closed) return this.close();
    await this.pc.setLocalDescription(offer);
    await this.pc.setRemoteDescription({ type: 'answer', sdp: await response.text() });
  }

  /** @param {MediaStreamTrack} track @param {MediaStream} from @param {boolean} layered */
  #add(track, from, layered) {
    const one = /** @type {RTCRtpTransceiverInit} */ ({ direction: 'sendonly', streams: [from] });
    if (!layered) return this.pc.addTransceiver(track, one);
    try {
      return this.pc.addTransceiver(track, { ...one, sendEncodings: LAYERS });
    } catch {
      return this.pc.addTransceiver(track, one); // this browser sends one size
    }
  }

  /** Never fatal: the server learns our address from our checks anyway. @param {RTCIceCandidate[]} gathered @param {boolean} ended */
  async #trickle(gathered, ended) {
    const sdp = this.pc.localDescription?.sdp;
    if (!this.url || !sdp || this.#closed) return;
    const line = (/** @type {RegExp} */ pattern) => sdp.match(pattern)?.[0] ?? '';
    const candidates = gathered.splice(0).map((c) => `a=${c.candidate}`);
    const body = [line(/^a=ice-ufrag:.*$/m), line(/^a=ice-pwd:.*$/m), line(/^m=.*$/m), line(/^a=mid:.*$/m), ...candidates, ...(ended ? ['a=end-of-candidates'] : []), '']
      .map((text) => text.trim()).join('\r\n');
    const extra = this.#etag ? { 'If-Match': this.#etag } : {};
    await fetch(this.url, { method: 'PATCH', headers: headers({ 'Content-Type': 'application/trickle-ice-sdpfrag', ...extra }), body }).catch(() => {});
  }

  /** Numbers of the last second. */
  async stats() {
    const reports = [...(await this.pc.getStats()).values()];
    const out = (/** @type {string} */ kind) => reports.filter((r) => r.type === 'outbound-rtp' && r.kind === kind);
    const sum = (/** @type {any[]} */ of, /** @type {string} */ key) => of.reduce((all, r) => all + (r[key] ?? 0), 0);
    // One report for each size; those that are left out at present have no frame rate.
    const layers = out('video').filter((r) => r.frameWidth && (r.framesPerSecond || !r.rid)).sort((a, b) => b.frameWidth - a.frameWidth);
    const back = reports.find((r) => r.type === 'remote-inbound-rtp' && r.kind === 'video') ?? reports.find((r) => r.type === 'remote-inbound-rtp');
    const now = { at: performance.now(), video: sum(out('video'), 'bytesSent'), audio: sum(out('audio'), 'bytesSent'), frames: Math.max(0, ...out('video').map((r) => r.framesEncoded ?? 0)) };
    const seconds = (now.at - this.#before.at) / 1000;
    const rate = (/** @type {'video'|'audio'|'frames'} */ key) => (this.#before.at ? (now[key] - this.#before[key]) / seconds : null);
    const [video, audio, frames] = [rate('video'), rate('audio'), rate('frames')];
    this.#before = now;
    return {
      width: layers[0]?.frameWidth ?? null, height: layers[0]?.frameHeight ?? null,
      sizes: layers.map((r) => resolution(r.frameWidth, r.frameHeight)),
      videoBps: video === null ? null : video * 8, audioBps: audio === null ? null : audio * 8, fps: frames,
      loss: back?.fractionLost ?? null, rttMs: back?.roundTripTime === undefined ? null : back.roundTripTime * 1000,
    };
  }

  close() {
    this.#closed = true;
    this.pc.close();
    if (!this.url) return;
    const url = this.url;
    this.url = null;
    // `keepalive` lets it survive the page.
    fetch(url, { method: 'DELETE', keepalive: true, headers: headers({}) }).catch(() => {});
  }
}

/** @param {Record<string, string>} more @returns {Record<string, string>} */
function headers(more) { return token.value ? { ...more, Authorization: `Bearer ${token.value}` } : more; }

class Refused extends Error {
  /** @param {string} message @param {boolean} retry */
  constructor(message, retry) { super(message); this.retry = retry; }
}

/** @param {Response} response */
async function refusal(response) {
  const body = await response.json().catch(() => null);
  if (response.status === 401) byId('token-label').hidden = false;
  return new Refused(body?.detail ?? `The server answered ${response.status}.`, response.status >= 500 || response.status === 409 || response.status === 429);
}

// -- devices -------------------------------------------------------------------------------------

async function listDevices() {
  const devices = await navigator.mediaDevices.enumerateDevices();
  const fill = (/** @type {HTMLSelectElement} */ select, /** @type {string} */ kind, /** @type {string} */ word, /** @type {[string, string][]} */ more) => {
    const before = select.value;
    const found = devices.filter((d) => d.kind === kind && d.deviceId).map((d, n) => /** @type {[string, string]} */ ([d.deviceId, d.label || `${word} ${n + 1}`]));
    const options = [...(found.length ? found : [/** @type {[string, string]} */ (['any', word])]), ...more];
    select.replaceChildren(...options.map(([value, label]) => h('option', { value }, label)));
    if (options.some(([value]) => value === before)) select.value = before;
  };
  fill(pickVideo, 'videoinput', 'Camera', [['screen', 'Screen'], ['none', 'No picture']]);
  fill(pickAudio, 'audioinput', 'Microphone', [['none', 'No sound']]);
}

async function openDevices() {
  const device = (/** @type {string} */ id, /** @type {object} */ wishes) => (id === 'none' ? false : id === 'any' || !id ? wishes : { ...wishes, deviceId: { exact: id } });
  const camera = pickVideo.value === 'screen' ? false : device(pickVideo.value, CAMERA);
  const microphone = device(pickAudio.value, MICROPHONE);
  const tracks = [];
  if (pickVideo.value === 'screen') tracks.push(...(await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: 30 } })).getVideoTracks());
  if (camera || microphone) tracks.push(...(await navigator.mediaDevices.getUserMedia({ video: camera, audio: microphone })).getTracks());
  for (const track of media?.getTracks() ?? []) track.stop();
  media = new MediaStream(tracks);
  preview.srcObject = media;
  meter(media);
  await listDevices();
}

/** @type {AudioContext|null} */ let hearing = null;

/** Shows how loud it is. @param {MediaStream} from */
function meter(from) {
  void hearing?.close();
  hearing = null;
  if (!from.getAudioTracks().length) return;
  hearing = new AudioContext();
  const analyser = new AnalyserNode(hearing, { fftSize: 2048 });
  hearing.createMediaStreamSource(from).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  const context = hearing;
  const look = () => {
    if (context.state === 'closed') return;
    analyser.getFloatTimeDomainData(samples);
    const level = Math.sqrt(samples.reduce((sum, s) => sum + s * s, 0) / samples.length);
    /** @type {HTMLMeterElement} */ (byId('level')).value = Math.min(1, Math.sqrt(level));
    setTimeout(look, 60);
  };
  look();
}

/** @param {any} error */
function deviceProblem(error) {
  const words = {
    NotAllowedError: 'The browser was not allowed to use the camera or microphone.',
    NotFoundError: 'There is no such camera or microphone.',
    NotReadableError: 'Another program uses the camera or microphone.',
  };
  return words[/** @type {keyof typeof words} */ (error?.name)] ?? `The camera or microphone could not be opened (${error?.message ?? error}).`;
}

// -- life ----------------------------------------------------------------------------------------

async function connect() {
  clearTimeout(retryTimer);
  if (!wanted || !media) return;
  session?.close();
  show('connecting', 'Connecting');
  const mine = (session = new Session(
    () => { retryMs = BACKOFF_FIRST_MS; complain(''); show('playing', 'Live'); },
    (why) => { if (session === mine) again(why); },
  ));
  try {
    await mine.open(media, pickCodec.value, pickSizes.value !== '1' && !ONE_SIZE_ONLY.includes(pickCodec.value));
  } catch (error) {
    if (session !== mine) return;
    if (error instanceof Refused && !error.retry) { stop(); complain(error.message); show('failed', 'Refused'); } else again(/** @type {Error} */ (error).message);
  }
}

/** @param {string} why */
function again(why) {
  session?.close();
  session = null;
  complain(why);
  show('reconnecting', 'Reconnecting');
  retryTimer = window.setTimeout(() => void connect(), retryMs * (0.8 + 0.4 * Math.random()));
  retryMs = Math.min(retryMs * 2, BACKOFF_MAX_MS);
}

function stop() {
  wanted = false;
  clearTimeout(retryTimer);
  session?.close();
  session = null;
  show('ended', 'Not live');
}

byId('controls').addEventListener('submit', async (event) => {
  event.preventDefault();
  if (wanted) { stop(); return; }
  try {
    if (!media || !media.getTracks().length) await openDevices();
  } catch (error) {
    complain(deviceProblem(error));
    return;
  }
  wanted = true;
  complain('');
  void connect();
});

for (const select of [pickVideo, pickAudio]) {
  select.addEventListener('change', async () => {
    try {
      await openDevices();
      if (wanted) void connect();
    } catch (error) { complain(deviceProblem(error)); }
  });
}
// What the browser cannot send is no choice.
const sendable = new Set((RTCRtpSender.getCapabilities?.('video')?.codecs ?? []).map((codec) => codec.mimeType));
for (const option of sendable.size ? [...pickCodec.options] : []) {
  if (option.value && !sendable.has(`video/${option.value}`)) option.remove();
}
for (const select of [pickCodec, pickSizes]) select.addEventListener('change', () => { if (wanted) void connect(); });
pickCodec.addEventListener('change', () => { pickSizes.disabled = ONE_SIZE_ONLY.includes(pickCodec.value); });
addEventListener('pagehide', () => session?.close());

setInterval(async () => {
  if (!session) return;
  const stats = await session.stats().catch(() => null);
  if (!stats) return;
  setText(facts.Picture, resolution(stats.width, stats.height));
  setText(facts.Sizes, stats.sizes.join(', ') || DASH);
  setText(facts.Frames, stats.fps === null ? DASH : `${number(stats.fps)} fps`);
  setText(facts.Bitrate, bitrate(stats.videoBps));
  setText(facts.Sound, bitrate(stats.audioBps));
  setText(facts.Loss, stats.loss === null ? DASH : `${number(stats.loss * 100, 1)} %`);
  setText(facts['Round trip'], stats.rttMs === null ? DASH : `${number(stats.rttMs)} ms`);
}, STATS_MS);

// What arrives at the other end.
whileVisible(2000, async () => {
  const streams = (await getJson('/api/v1/streams').catch(() => null))?.streams ?? [];
  const mine = streams.find((/** @type {any} */ stream) => stream.name === name);
  setText(facts.Received, mine ? `${number(mine.fps)} fps, ${bitrate(mine.bitrate_bps)}${mine.codec ? `, ${mine.codec.toUpperCase()}` : ''}` : DASH);
  setText(facts.Viewers, mine ? number(mine.viewers) : DASH);
});

if (!navigator.mediaDevices) {
  complain('Browsers give a page the camera over HTTPS or on localhost only.');
  go.disabled = true;
} else {
  listDevices().then(openDevices).catch((error) => complain(deviceProblem(error)));
}
