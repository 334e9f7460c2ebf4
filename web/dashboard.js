/** The start page: streams with live previews, and who watches them. */
import {
  DASH, bitrate, byId, copy, dropsByReason, duration, embedSnippet, getJson, h, known, milliseconds, number, plural, resolution,
  setText, size, whepUrl, whileVisible,
} from './common.js';

/** @typedef {import('../player.js').LightpipePlayer} LightpipePlayer */

const POLL_MS = 2000;

/** @type {Map<string, Card>} */
const cards = new Map();
/** @type {Map<string, PeerRow>} */
const rows = new Map();
let failures = 0;

whileVisible(POLL_MS, refresh);

async function refresh() {
  try {
    const [streams, peers, info] = await Promise.all([
      getJson('/api/v1/streams'), getJson('/api/v1/peers'), getJson('/api/v1/info').catch(() => null),
    ]);
    failures = 0;
    byId('alert').hidden = true;
    document.body.classList.remove('stale');
    showStreams(streams?.streams ?? []);
    showPeers(peers?.peers ?? []);
    if (info) setText(byId('info'), `${info.name ?? 'lightpipe'} ${info.version ?? ''}, up ${duration(info.uptime_s)}`);
  } catch {
    failures += 1;
    // One lost poll is no news on a Wi-Fi; two are.
    if (failures < 2 && cards.size) return;
    setText(byId('alert'), cards.size
      ? 'lightpipe is not answering; trying again. What you see below may be old.'
      : 'lightpipe is not answering; trying again.');
    // "No streams" would be a guess now.
    byId('no-streams').hidden = byId('no-peers').hidden = true;
    byId('alert').hidden = false;
    document.body.classList.add('stale');
  }
}

/** @param {any[]} streams */
function showStreams(streams) {
  const box = byId('streams');
  box.removeAttribute('aria-busy');
  const names = new Set(streams.map((stream) => String(stream.name)));
  for (const [name, card] of cards) {
    if (names.has(name)) continue;
    card.remove();
    cards.delete(name);
  }
  for (const stream of streams) {
    const name = String(stream.name);
    let card = cards.get(name);
    if (!card) {
      card = new Card(name);
      cards.set(name, card);
      box.append(card.element);
    }
    card.show(stream);
  }
  byId('no-streams').hidden = streams.length > 0;
  box.hidden = streams.length === 0;
  const live = streams.filter((stream) => stream.health === 'live').length;
  const viewers = streams.reduce((total, stream) => total + (known(stream.viewers) ? stream.viewers : 0), 0);
  setText(byId('summary'), streams.length ? `${live} of ${streams.length} live, ${plural(viewers, 'viewer', 'viewers')}` : '');
}

/** @param {any[]} peers */
function showPeers(peers) {
  const ids = new Set(peers.map((peer) => String(peer.id)));
  for (const [id, row] of rows) {
    if (ids.has(id)) continue;
    row.element.remove();
    rows.delete(id);
  }
  for (const peer of peers) {
    const id = String(peer.id);
    let row = rows.get(id);
    if (!row) {
      row = new PeerRow(id);
      rows.set(id, row);
      byId('peers').append(row.element);
    }
    row.show(peer);
  }
  byId('peers-box').hidden = peers.length === 0;
  byId('no-peers').hidden = peers.length > 0;
}

const HEALTH = /** @type {Record<string, string>} */ ({ live: 'Live', starting: 'Starting', failed: 'Failed', idle: 'Idle' });

/** One stream. Its preview plays only while it can be seen. */
class Card {
  #name; #player; #health; #reason; #age; #facts; #placeholder;
  #onScreen = false;
  #playable = false;
  #playing = false;
  #seen;

  /** @param {string} name */
  constructor(name) {
    this.#name = name;
    const watch = `/watch/${encodeURIComponent(name)}`;
    this.#player = /** @type {LightpipePlayer} */ (h('lightpipe-player', { preview: '', 'aria-hidden': 'true' }));
    this.#health = h('span', { class: 'pill' });
    this.#reason = h('p', { class: 'reason' });
    this.#age = h('span', { class: 'age-chip' });
    this.#facts = h('p', { class: 'meta' });
    this.#placeholder = h('span', { class: 'placeholder' });
    this.#age.hidden = this.#reason.hidden = true;
    const copyButton = h('button', { type: 'button', class: 'button', 'aria-label': `Copy the embed code of ${name}` }, 'Copy embed');
    copyButton.addEventListener('click', () => void copy(copyButton, embedSnippet(name)));
    this.element = h('article', { class: 'card', 'aria-label': name },
      h('a', { class: 'preview', href: watch, tabindex: '-1', 'aria-hidden': 'true' }, this.#player, this.#placeholder, this.#age),
      h('div', { class: 'card-body' },
        h('div', { class: 'card-head' }, h('h3', {}, h('a', { href: watch }, name)), this.#health),
        this.#facts, this.#reason,
        h('div', { class: 'row' }, h('a', { class: 'button primary', href: watch, 'aria-label': `Watch ${name}` }, 'Watch'), copyButton),
        h('details', { class: 'embed' }, h('summary', {}, 'Embed code'),
          h('pre', { class: 'code', tabindex: '0' }, h('code', {}, embedSnippet(name))))));

    this.#player.addEventListener('lightpipe-stats', (event) => this.#showAge(/** @type {CustomEvent} */ (event).detail));
    this.#player.addEventListener('lightpipe-state', (event) => {
      if (/** @type {CustomEvent} */ (event).detail.state !== 'playing') this.#age.hidden = true;
    });
    this.#seen = new IntersectionObserver(([entry]) => {
      this.#onScreen = entry.isIntersecting;
      this.#decide();
    }, { threshold: 0.15 });
    this.#seen.observe(this.#player);
    this.#onVisibility = () => this.#decide();
    document.addEventListener('visibilitychange', this.#onVisibility);
  }

  #onVisibility = () => {};

  /** @param {any} stream */
  show(stream) {
    const health = String(stream.health ?? 'idle');
    this.#health.dataset.health = health;
    setText(this.#health, HEALTH[health] ?? health);
    const parts = [
      resolution(stream.width, stream.height),
      ...encodings(stream, health),
      ...([stream, ...(stream.alternatives ?? [])].some((coding) => coding.adapted) ? ['less for the network'] : []),
      plural(known(stream.viewers) ? stream.viewers : 0, 'viewer', 'viewers'),
    ];
    setText(this.#facts, parts.filter((part) => part !== DASH).join(' · '));
    const reason = typeof stream.reason === 'string' ? stream.reason : '';
    setText(this.#reason, reason);
    this.#reason.hidden = reason === '' || health === 'live';
    // An idle source starts when somebody watches; a failed one has nothing to show but its reason.
    this.#playable = health !== 'failed' && health !== 'starting';
    this.#placeholder.hidden = this.#playable;
    setText(this.#placeholder, health === 'starting' ? 'Starting…' : 'No picture');
    this.#decide();
  }

  remove() {
    this.#seen.disconnect();
    document.removeEventListener('visibilitychange', this.#onVisibility);
    this.element.remove();
  }

  #decide() {
    const play = this.#onScreen && this.#playable && !document.hidden;
    if (play === this.#playing) return;
    this.#playing = play;
    if (!play) this.#player.stop();
    else if (this.#player.hasAttribute('src')) this.#player.start();
    else this.#player.setAttribute('src', whepUrl(this.#name));
  }

  /** @param {import('../player.js').PlayerStats} stats */
  #showAge(stats) {
    const ms = stats.state === 'playing' ? stats.latency_ms.p50 : null;
    this.#age.hidden = ms === null;
    setText(this.#age, ms === null ? '' : `${Math.round(ms)} ms old`);
  }
}

const TRANSPORTS = /** @type {Record<string, string>} */ ({ whip: 'WHIP, publishing', whep: 'WHEP', 'ws-plain': 'WebSocket', 'ws-room': 'Room' });
const COLUMNS = ['Stream', 'State', 'Through', 'Codec', 'Age', 'Round trip', 'Loss', 'Estimate', 'Media', 'Dropped'];

/** @param {string} codec  As the API names it. */
const codecName = (codec) => (codec === 'h264' ? 'H.264' : codec.toUpperCase());

/**
 * What runs of a stream, in each coding and layer that somebody takes: the coding is named where it is not the stream's own alone, a layer
 * where it is not the best alone.
 * @param {any} stream @param {string} health @returns {string[]}
 */
function encodings(stream, health) {
  const running = [stream, ...(stream.alternatives ?? [])]
    .flatMap((coding) => (coding.layers?.length ? coding.layers.map((layer) => ({ ...layer, codec: coding.codec, best: layer === coding.layers[0] })) : [coding]))
    .filter((encoding) => encoding.fps || encoding.bitrate_bps);
  // Zeros of a stream that does not run yet say less than its health does.
  const shown = running.length || health !== 'live' ? running : [stream];
  const named = shown.some((encoding) => encoding.codec !== stream.codec);
  const sized = shown.some((encoding) => encoding.best === false);
  return shown.flatMap((encoding) => [
    [
      named && encoding.codec ? `${codecName(encoding.codec)}:` : '',
      sized && encoding.height ? `${encoding.height}p` : '',
      `${number(encoding.fps)} fps`,
    ].filter(Boolean).join(' '),
    bitrate(encoding.bitrate_bps),
  ]);
}

class PeerRow {
  /** @type {HTMLElement[]} */ #cells;

  /** @param {string} id */
  constructor(id) {
    this.#cells = COLUMNS.map((label, i) => h('td', { 'data-label': label, class: i >= 4 && i <= 8 ? 'n' : '' }));
    this.element = h('tr', { title: `Viewer ${id}` }, ...this.#cells);
  }

  /** @param {any} peer */
  show(peer) {
    const state = String(peer.state ?? '');
    const texts = [
      String(peer.stream ?? DASH),
      state.charAt(0).toUpperCase() + state.slice(1),
      TRANSPORTS[peer.transport] ?? String(peer.transport ?? DASH),
      typeof peer.codec === 'string' ? `${codecName(peer.codec)}${typeof peer.layer === 'string' ? `, ${peer.layer}` : ''}` : DASH,
      duration(peer.age_s),
      milliseconds(peer.rtt_ms),
      // `loss` is a fraction.
      known(peer.loss) ? `${number(peer.loss * 100, peer.loss > 0 ? 1 : 0)} %` : DASH,
      bitrate(peer.estimate_bps),
      size(peer.role === 'publisher' ? peer.received?.bytes : peer.sent_bytes),
      dropsByReason(peer.drops),
    ];
    texts.forEach((text, i) => setText(this.#cells[i], text));
    this.#cells[1].dataset.state = state;
  }
}
