/** /watch/{stream}: one stream as large as the window, its age always in sight. */
import { DASH, bitrate, byId, copy, embedSnippet, getJson, h, milliseconds, number, resolution, setText, whepUrl, whileVisible } from './common.js';

/** @typedef {import('../player.js').LightpipePlayer} LightpipePlayer */

const OTHERS_POLL_MS = 5000;

const name = streamName();
const player = /** @type {LightpipePlayer} */ (h('lightpipe-player', { overlay: '' }));

setText(byId('title'), name);
document.title = `${name} · lightpipe`;
player.addEventListener('lightpipe-state', () => showAge());
player.addEventListener('lightpipe-stats', () => { showAge(); showFacts(); });
player.setAttribute('src', whepUrl(name));
byId('stage').append(player);
// The keys work wherever the focus is, not only inside the player.
document.addEventListener('keydown', (event) => {
  const target = /** @type {Element} */ (event.target);
  if (!target.closest('input, textarea, select, dialog')) player.handleKey(event);
});

const dialog = /** @type {HTMLDialogElement} */ (byId('embed'));
setText(byId('snippet'), embedSnippet(name));
byId('share').addEventListener('click', () => dialog.showModal());
byId('copy').addEventListener('click', () => void copy(byId('copy'), embedSnippet(name)));
dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });

const facts = Object.fromEntries(['Picture', 'Frames', 'Bitrate', 'Loss', 'Round trip', 'Viewers'].map((label) => {
  const value = h('dd', {}, DASH);
  byId('facts').append(h('div', {}, h('dt', {}, label), value));
  return [label, value];
}));

whileVisible(OTHERS_POLL_MS, async () => {
  try {
    showOthers((await getJson('/api/v1/streams'))?.streams ?? []);
  } catch { /* the player itself says when the server is gone */ }
});

/** The last path segment, decoded; a stray `%` is taken as it stands. */
function streamName() {
  const segment = location.pathname.replace(/\/+$/, '').split('/').pop() ?? '';
  try { return decodeURIComponent(segment); } catch { return segment; }
}

function showAge() {
  const { state } = player.state ?? { state: 'connecting' };
  const ms = player.stats?.latency_ms.p50 ?? null;
  const words = { connecting: 'Connecting', playing: 'Live', stalled: 'Stalled', reconnecting: 'Reconnecting', failed: 'No picture', ended: 'Stopped' };
  const age = state === 'playing' && ms !== null;
  byId('badge').dataset.state = state;
  byId('badge').title = age ? 'Median time from capture to this screen, last 10 seconds' : '';
  setText(byId('age'), age ? `${Math.round(ms)} ms old` : words[state]);
}

function showFacts() {
  const stats = player.stats;
  setText(facts.Picture, resolution(stats.width, stats.height));
  setText(facts.Frames, stats.fps === null ? DASH : `${number(stats.fps)} fps`);
  setText(facts.Bitrate, bitrate(stats.bitrate_bps));
  setText(facts.Loss, stats.loss_pct === null ? DASH : `${number(stats.loss_pct, stats.loss_pct > 0 ? 1 : 0)} %`);
  setText(facts['Round trip'], milliseconds(stats.rtt_ms));
  setText(facts.Viewers, number(stats.server?.viewers));
}

/** @param {any[]} streams */
function showOthers(streams) {
  const nav = byId('others');
  const names = streams.map((stream) => String(stream.name));
  nav.hidden = names.length < 2;
  const shown = [...nav.children].map((link) => link.textContent);
  if (shown.length === names.length && names.every((other, i) => other === shown[i])) return;
  nav.replaceChildren(...names.map((other) => h('a', {
    href: `/watch/${encodeURIComponent(other)}`, ...(other === name ? { 'aria-current': 'page' } : {}),
  }, other)));
}
