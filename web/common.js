/** What the dashboard and the watch page share. Server data reaches the page as text only. */

/** Shown for every number that is not known. */
export const DASH = '–';

/**
 * @param {string} tag
 * @param {Record<string, string>} [attributes]
 * @param {(Node|string)[]} children
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** The element with this id; a page without it is a mistake of ours. @param {string} id @returns {HTMLElement} */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no #${id}`);
  return element;
}

/** Leaves the node alone when nothing changed, so that selections and screen readers are not disturbed.
 * @param {Node} node @param {string} text */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** @param {unknown} value @returns {value is number} */
export const known = (value) => typeof value === 'number' && Number.isFinite(value);

/** @param {unknown} value @param {number} [digits] */
export function number(value, digits = 0) { return known(value) ? value.toFixed(digits) : DASH; }

/** @param {unknown} bps */
export function bitrate(bps) {
  if (!known(bps)) return DASH;
  return bps >= 1e6 ? `${number(bps / 1e6, bps >= 1e7 ? 0 : 1)} Mbit/s` : `${number(bps / 1e3)} kbit/s`;
}

/** @param {unknown} bytes */
export function size(bytes) {
  if (!known(bytes)) return DASH;
  const step = [[1e9, 'GB', 2], [1e6, 'MB', 1], [1e3, 'kB', 0]].find(([unit]) => bytes >= Number(unit));
  return step ? `${number(bytes / Number(step[0]), Number(step[2]))} ${step[1]}` : `${bytes} B`;
}

/** @param {unknown} ms */
export function milliseconds(ms) { return known(ms) ? `${number(ms, ms < 10 ? 1 : 0)} ms` : DASH; }

/** @param {unknown} seconds */
export function duration(seconds) {
  if (!known(seconds)) return DASH;
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/** @param {unknown} width @param {unknown} height */
export function resolution(width, height) { return known(width) && known(height) && width && height ? `${width}×${height}` : DASH; }

/** @param {number} count @param {string} one @param {string} many */
export function plural(count, one, many) { return `${count} ${count === 1 ? one : many}`; }

/** Counters of things dropped, by reason. @param {unknown} drops @returns {string} */
export function dropsByReason(drops) {
  const counted = Object.entries(drops ?? {}).filter(([, count]) => known(count) && count > 0);
  return counted.map(([reason, count]) => `${count} ${reason.replaceAll('_', ' ')}`).join(', ') || 'none';
}

/** @param {string} name */
export function whepUrl(name) { return new URL(`/whep/${encodeURIComponent(name)}`, location.href).href; }

/** The two lines that put a stream on any page. @param {string} name */
export function embedSnippet(name) {
  return `<script type="module" src="${new URL('/player.js', location.href).href}"></script>\n`
    + `<lightpipe-player src="${whepUrl(name)}"></lightpipe-player>`;
}

/** Copies and says so on the button. @param {HTMLElement} button @param {string} text */
export async function copy(button, text) {
  const label = button.dataset.label ?? button.textContent ?? '';
  button.dataset.label = label;
  button.textContent = await toClipboard(text) ? 'Copied' : 'Press Ctrl+C';
  setTimeout(() => { button.textContent = label; }, 1600);
}

/** @param {string} text @returns {Promise<boolean>} */
async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Plain HTTP has no clipboard API, and on a LAN plain HTTP is the usual case.
    const area = h('textarea', { readonly: '', class: 'offscreen', 'aria-hidden': 'true' });
    area.textContent = text;
    (document.querySelector('dialog[open]') ?? document.body).append(area);
    /** @type {HTMLTextAreaElement} */ (area).select();
    const copied = document.execCommand('copy');
    area.remove();
    return copied;
  }
}

/** @param {string} path @returns {Promise<any>} */
export async function getJson(path) {
  const response = await fetch(path, { headers: { Accept: 'application/json' }, cache: 'no-store', signal: AbortSignal.timeout(5000) });
  if (!response.ok) throw new Error(`${path} answered HTTP ${response.status}`);
  return response.json();
}

/**
 * Runs `task` now and every `intervalMs` while the page is visible; never two at a time.
 * @param {number} intervalMs @param {() => Promise<void>} task
 */
export function whileVisible(intervalMs, task) {
  let timer = 0;
  let running = false;
  const turn = async () => {
    clearTimeout(timer);
    if (running || document.hidden) return;
    running = true;
    try { await task(); } finally { running = false; }
    if (!document.hidden) timer = setTimeout(turn, intervalMs);
  };
  document.addEventListener('visibilitychange', () => { if (document.hidden) clearTimeout(timer); else void turn(); });
  void turn();
}
