/**
 * Files between two peers, over the data channel `files` (docs/api.md): offered, accepted, sent in chunks as fast as the other side stores
 * them, checked by SHA-256, and taken up where they were cut when the peers are connected again.
 *
 *     const transfers = new Transfers();
 *     mesh.addEventListener('channel', ({ detail }) => transfers.attach(detail.peer.id, detail.channel));
 *     mesh.addEventListener('peer-left', ({ detail }) => transfers.detach(detail.peer.id));
 *     transfers.addEventListener('transfer', ({ detail: { transfer } }) => …);       // offered, progress, every change
 *     transfers.send('bob', file);  transfers.accept(transfer);  transfers.cancel(transfer);
 *
 * Nothing is ever held whole: a file is read by slices, what arrives goes to the origin private file system, or where that is missing into
 * Blobs, which browsers keep on disk. Received files are gone with the page unless they are saved.
 */
import { Sha256 } from './sha256.js';

/**
 * @typedef {'queued'|'offered'|'running'|'paused'|'finished'|'refused'|'failed'|'cancelled'} TransferState
 *   queued: waits for another file to end. offered: the receiver has not decided. paused: the connection is lost; it goes on by itself.
 *
 * @typedef {object} Transfer
 * @property {string} id @property {string} peer @property {'in'|'out'} direction
 * @property {string} name @property {number} size @property {string} mime
 * @property {number} done      Bytes that the receiver has.
 * @property {TransferState} state
 * @property {string} reason    Why it was refused, failed or cancelled.
 * @property {Blob|null} blob   What was received, once it is finished.
 * @property {number} sent      Bytes that were put into the channel, those that were sent twice counted twice.
 * @property {string} sha256    Of the whole, once known.
 */

/** Largest file, bytes. */
export const MAX_SIZE = 2 * 2 ** 30;
/** Files under way at a time to one peer, and from one. */
export const MAX_AT_A_TIME = 8;
/** u32 number, u64 offset. */
const HEADER_LEN = 12;
/** Every browser takes messages of this size without fragments of its own making. */
const CHUNK_LEN = (16 << 10) - HEADER_LEN;
/** Read from the file at once: some two milliseconds of hashing, so that the page stays quick. */
const SLICE_LEN = CHUNK_LEN * 16;
/** Sent and not known to be stored. */
const WINDOW = 4 << 20;
/** The channel's own buffer: chat must not wait behind it. */
const BUFFER_HIGH = 1 << 20;
const BUFFER_LOW = 256 << 10;
/** The receiver tells what it has stored after each of these. */
const PROGRESS_EVERY = 256 << 10;
/** Received and not stored yet: a sender that goes beyond ignores the window. */
const MAX_UNSTORED = 2 * WINDOW;
const MAX_CONTROL_LEN = 4 << 10;
const MAX_NAME_LEN = 255;
const MAX_REASON_LEN = 200;
/** Ended transfers that are remembered of one peer, to know them when they are offered again. */
const MAX_ENDED = 64;
const ID = /^[A-Za-z0-9_-]{1,64}$/;
const SHA256 = /^[0-9a-f]{64}$/;
/** What a browser plays or shows without running anything in it; all else is bytes. */
const HARMLESS = /^(image\/(png|jpeg|gif|webp|avif)|(video|audio)\/[\w.+-]{1,60})$/;

/** States that nothing leaves. @param {Transfer} transfer */
export const isOver = ({ state }) => ['finished', 'refused', 'failed', 'cancelled'].includes(state);

/**
 * The name under which a file may be saved, or null where there is none: the last component of a path of any system, without control
 * characters and those that turn the writing direction around.
 * @param {unknown} name
 */
export function safeName(name) {
  if (typeof name !== 'string') return null;
  const last = name.split(/[/\\]/).pop() ?? '';
  if (last.trim() === '' || last === '.' || last === '..') return null;
  if (/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufffd]/.test(last)) return null;
  return new TextEncoder().encode(last).length <= MAX_NAME_LEN ? last : null;
}

/** `name`, or with ` (2)`, ` (3)` before its extension. @param {string} name @param {Set<string>} taken */
export function freeName(name, taken) {
  const dot = name.lastIndexOf('.');
  const [stem, extension] = dot > 0 ? [name.slice(0, dot), name.slice(dot)] : [name, ''];
  for (let n = 1; ; n++) {
    const one = n === 1 ? name : `${stem} (${n})${extension}`;
    if (!taken.has(one)) return one;
  }
}

export class Transfers extends EventTarget {
  /** In the order in which they began. @type {Running[]} */ all = [];
  #links = /** @type {Map<string, Link>} */ (new Map());
  /** Names of what was received. */ #names = /** @type {Set<string>} */ (new Set());

  /** A peer's files channel is open, for the first time or again. @param {string} peer @param {RTCDataChannel} channel */
  attach(peer, channel) {
    this.#links.get(peer)?.close();
    const link = new Link(this, peer, channel);
    this.#links.set(peer, link);
    for (const one of this.of(peer)) one.paused();
    link.feed();
  }

  /** A peer has left for good. @param {string} peer */
  detach(peer) {
    this.#links.get(peer)?.close();
    this.#links.delete(peer);
    for (const one of this.of(peer)) if (!isOver(one)) one.end('cancelled', 'the other side has left');
  }

  /** Those with one peer. @param {string} peer */
  of(peer) { return this.all.filter((one) => one.peer === peer); }

  /** Offers a file. @param {string} peer @param {File} file @returns {Transfer} */
  send(peer, file) {
    const one = new Outgoing(this, peer, file);
    this.#add(one);
    if (file.size > MAX_SIZE) one.end('failed', 'files of more than 2 GiB are not sent');
    else this.link(peer)?.feed();
    return one;
  }

  /** Takes what is offered. @param {Transfer} transfer */
  accept(transfer) { if (transfer instanceof Incoming) void transfer.accept(); }

  /** Does not. @param {Transfer} transfer @param {string} [reason] */
  refuse(transfer, reason = 'not wanted') {
    if (transfer instanceof Incoming && transfer.state === 'offered') {
      this.link(transfer.peer)?.tell({ type: 'refuse', id: transfer.id, reason });
      transfer.end('refused', reason);
    }
  }

  /** Ends it, on either side. @param {Transfer} transfer @param {string} [reason] */
  cancel(transfer, reason = 'cancelled') {
    const one = /** @type {Running} */ (transfer);
    if (isOver(one)) return;
    this.link(one.peer)?.tell({ type: 'cancel', id: one.id, reason });
    one.end('cancelled', reason);
  }

  /** @param {string} peer */
  link(peer) { return this.#links.get(peer); }

  /** @param {string} name */
  claimName(name) {
    const free = freeName(name, this.#names);
    this.#names.add(free);
    return free;
  }

  /** @param {Running} one */
  #add(one) {
    this.all.push(one);
    const ended = this.of(one.peer).filter(isOver);
    if (ended.length > MAX_ENDED) this.all.splice(this.all.indexOf(ended[0]), 1);
    this.changed(one);
  }

  /** @param {Running} one */
  add(one) { this.#add(one); }

  /** @param {Running} transfer */
  changed(transfer) { this.dispatchEvent(new CustomEvent('transfer', { detail: { transfer } })); }
}

/** One channel's life: what goes over it and whose it is. */
class Link {
  #transfers; #peer; #channel; #stop = new AbortController();
  /** @type {Map<number, Incoming>} */ numbers = new Map();

  /** @param {Transfers} transfers @param {string} peer @param {RTCDataChannel} channel */
  constructor(transfers, peer, channel) {
    this.#transfers = transfers;
    this.#peer = peer;
    this.#channel = channel;
    channel.binaryType = 'arraybuffer';
    channel.bufferedAmountLowThreshold = BUFFER_LOW;
    const { signal } = this.#stop;
    channel.addEventListener('message', ({ data }) => this.#onMessage(data), { signal });
    channel.addEventListener('bufferedamountlow', () => { for (const one of transfers.of(peer)) one.wake(); }, { signal });
    channel.addEventListener('close', () => { for (const one of transfers.of(peer)) one.paused(); }, { signal });
  }

  get open() { return !this.#stop.signal.aborted && this.#channel.readyState === 'open'; }

  get full() { return this.#channel.bufferedAmount > BUFFER_HIGH - CHUNK_LEN - HEADER_LEN; }

  close() { this.#stop.abort(); }

  /** @param {object} message */
  tell(message) {
    // A channel that is gone comes back by a new offer.
    if (this.open) try { this.#channel.send(JSON.stringify(message)); } catch { /* just closed */ }
  }

  /** @param {ArrayBuffer} chunk */
  put(chunk) { this.#channel.send(chunk); }

  /** Offers what waits and what was cut. */
  feed() {
    if (!this.open) return;
    const mine = this.#transfers.of(this.#peer).filter((one) => one instanceof Outgoing);
    let running = mine.filter((one) => one.state === 'offered' || one.state === 'running').length;
    for (const one of mine) {
      if (running >= MAX_AT_A_TIME) break;
      if (one.state === 'queued' || one.state === 'paused') { one.offer(this); running += 1; }
    }
  }

  /** @param {string|ArrayBuffer} data */
  #onMessage(data) {
    if (typeof data !== 'string') { this.#onChunk(data); return; }
    if (data.length > MAX_CONTROL_LEN) return;
    let message;
    try { message = JSON.parse(data); } catch { return; }
    if (typeof message?.id !== 'string' || !ID.test(message.id)) return;
    if (message.type === 'offer') { this.#onOffer(message); return; }
    const one = this.#transfers.of(this.#peer).find(({ id }) => id === message.id);
    const reason = typeof message.reason === 'string' ? message.reason.slice(0, MAX_REASON_LEN) : '';
    if (!one || isOver(one)) {
      // Its `done` may have been lost with the connection.
      if (message.type === 'end' && one?.state === 'finished' && one instanceof Incoming) this.tell({ type: 'done', id: one.id });
      return;
    }
    if (message.type === 'cancel') { one.end('cancelled', reason || 'cancelled by the other side'); return; }
    if (one instanceof Outgoing) one.onMessage(this, message, reason);
    else if (message.type === 'end') void one.onEnd(this, message);
  }

  /** @param {any} message */
  #onOffer({ id, number, name, size, mime }) {
    const refuse = (/** @type {string} */ reason) => this.tell({ type: 'refuse', id, reason });
    const known = this.#transfers.of(this.#peer).find((one) => one.id === id);
    if (!Number.isInteger(number) || number < 0 || number >= 2 ** 32) return refuse('the number is none');
    if (known) {
      if (!(known instanceof Incoming) || known.size !== size) return refuse('this id is another file’s');
      if (isOver(known) && known.state !== 'finished') return refuse(known.reason || known.state);
      this.numbers.set(number, known);
      return known.resume(this);
    }
    const safe = safeName(name);
    if (safe === null) return refuse('the name is not allowed');
    if (!Number.isSafeInteger(size) || size < 0) return refuse('the size is none');
    if (size > MAX_SIZE) return refuse('files of more than 2 GiB are not taken');
    const running = this.#transfers.of(this.#peer).filter((one) => one instanceof Incoming && !isOver(one));
    if (running.length >= MAX_AT_A_TIME) return refuse('too many files at a time');
    const one = new Incoming(this.#transfers, this.#peer, { id, name: safe, size, mime: typeof mime === 'string' ? mime : '' });
    this.numbers.set(number, one);
    this.#transfers.add(one);
    return undefined;
  }

  /** @param {ArrayBuffer} data */
  #onChunk(data) {
    if (data.byteLength < HEADER_LEN) return;
    const view = new DataView(data);
    const one = this.numbers.get(view.getUint32(0));
    // What was cancelled here is still under way there.
    if (one?.state === 'running') one.onChunk(this, Number(view.getBigUint64(4)), new Uint8Array(data, HEADER_LEN));
  }
}

/** What both directions have in common. @implements {Transfer} */
class Running {
  done = 0;
  sent = 0;
  reason = '';
  sha256 = '';
  /** @type {Blob|null} */ blob = null;
  /** @type {TransferState} */ state = 'queued';
  hash = new Sha256();

  /** @param {Transfers} transfers @param {string} peer @param {'in'|'out'} direction @param {{id: string, name: string, size: number, mime: string}} file */
  constructor(transfers, peer, direction, { id, name, size, mime }) {
    this.transfers = transfers;
    this.peer = peer;
    this.direction = direction;
    this.id = id;
    this.name = name;
    this.size = size;
    this.mime = mime;
  }

  /** @param {TransferState} state */
  become(state) {
    this.state = state;
    this.transfers.changed(this);
  }

  /** @param {TransferState} state @param {string} reason */
  end(state, reason) {
    if (isOver(this)) return;
    this.reason = reason;
    this.become(state);
    this.wake();
    this.transfers.link(this.peer)?.feed();
  }

  /** The connection is lost, or new. */
  paused() {}

  /** Something that it waits for may have happened. */
  wake() {}
}

class Outgoing extends Running {
  static #next = 1;
  #file;
  #number = Outgoing.#next++;
  #at = 0;
  #turn = 0;
  #wake = () => {};

  /** @param {Transfers} transfers @param {string} peer @param {File} file */
  constructor(transfers, peer, file) {
    const id = Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, '0')).join('');
    super(transfers, peer, 'out', { id, name: file.name, size: file.size, mime: file.type });
    this.#file = file;
  }

  /** @param {Link} link */
  offer(link) {
    this.become('offered');
    link.tell({ type: 'offer', id: this.id, number: this.#number, name: this.name, size: this.size, mime: this.mime.slice(0, 100) });
  }

  paused() {
    this.#turn += 1;
    this.wake();
    if (this.state === 'offered' || this.state === 'running') this.become('paused');
  }

  wake() { this.#wake(); }

  /** @param {Link} link @param {any} message @param {string} reason */
  onMessage(link, message, reason) {
    switch (message.type) {
      case 'accept': {
        const { offset } = message;
        if (this.state !== 'offered') return;
        if (!Number.isSafeInteger(offset) || offset < 0 || offset > this.size) {
          link.tell({ type: 'cancel', id: this.id, reason: 'the offset lies outside of the file' });
          this.end('failed', 'the other side asked for what lies outside of the file');
          return;
        }
        this.done = this.#at = offset;
        this.become('running');
        void this.#run(link, ++this.#turn);
        return;
      }
      case 'progress':
        if (this.state === 'running' && Number.isSafeInteger(message.received) && message.received > this.done && message.received <= this.#at) {
          this.done = message.received;
          this.transfers.changed(this);
          this.wake();
        }
        return;
      case 'refuse': this.end('refused', reason || 'refused'); return;
      case 'failed': this.end('failed', reason || 'the other side could not store it'); return;
      case 'done':
        // Before `end` it is about something else.
        if (this.state === 'running' && this.sha256) { this.done = this.size; this.end('finished', ''); }
    }
  }

  /** @param {Link} link @param {number} turn */
  async #run(link, turn) {
    const current = () => turn === this.#turn && this.state === 'running' && link.open;
    try {
      // The hash is of the whole; what the receiver has already it has from us, as a rule hashed when it was sent.
      while (this.hash.length < this.#at && current()) {
        this.hash.update(await this.#read(this.hash.length, Math.min(this.hash.length + SLICE_LEN, this.#at)));
      }
      while (this.#at < this.size && current()) {
        const from = this.#at;
        const slice = await this.#read(from, Math.min(from + SLICE_LEN, this.size));
        if (!current()) return;
        const known = this.hash.length - from;
        if (known < slice.length) this.hash.update(slice.subarray(Math.max(0, known)));
        for (let at = 0; at < slice.length; at += CHUNK_LEN) {
          while (current() && (link.full || this.#at - this.done > WINDOW - CHUNK_LEN)) await new Promise((resolve) => { this.#wake = () => resolve(undefined); });
          if (!current()) return;
          link.put(this.#chunk(slice.subarray(at, at + CHUNK_LEN)));
        }
      }
      if (!current()) return;
      this.sha256 ||= this.hash.hex();
      link.tell({ type: 'end', id: this.id, size: this.size, sha256: this.sha256 });
    } catch (error) {
      if (!link.open || !current()) return; // it is offered again
      link.tell({ type: 'cancel', id: this.id, reason: 'the file can no longer be read' });
      this.end('failed', `The file can no longer be read (${/** @type {Error} */ (error).message}).`);
    }
  }

  /** @param {number} from @param {number} to */
  async #read(from, to) {
    const bytes = new Uint8Array(await this.#file.slice(from, to).arrayBuffer());
    if (bytes.length !== to - from) throw new Error('it became shorter');
    return bytes;
  }

  /** @param {Uint8Array} bytes */
  #chunk(bytes) {
    const chunk = new Uint8Array(HEADER_LEN + bytes.length);
    const view = new DataView(chunk.buffer);
    view.setUint32(0, this.#number);
    view.setBigUint64(4, BigInt(this.#at));
    chunk.set(bytes, HEADER_LEN);
    this.#at += bytes.length;
    this.sent += bytes.length;
    return chunk.buffer;
  }
}

class Incoming extends Running {
  /** @type {Promise<Sink>|null} */ #sink = null;
  #received = 0;
  /** Not yet given to the sink. @type {Uint8Array[]} */ #waiting = [];
  #waitingLength = 0;
  /** What is being stored, one after the other. */ #storing = Promise.resolve();

  /** @param {Transfers} transfers @param {string} peer @param {{id: string, name: string, size: number, mime: string}} file */
  constructor(transfers, peer, file) {
    super(transfers, peer, 'in', file);
    this.state = 'offered';
  }

  async accept() {
    if (this.state !== 'offered') return;
    this.name = this.transfers.claimName(this.name);
    this.#sink = openSink();
    this.become('paused');
    await this.#sink;
    const link = this.transfers.link(this.peer);
    if (link?.open) this.resume(link);
  }

  /** It was offered again. @param {Link} link */
  resume(link) {
    if (this.state === 'finished') { link.tell({ type: 'accept', id: this.id, offset: this.size }); return; }
    if (this.state === 'offered' || !this.#sink) return; // nobody has decided yet
    link.tell({ type: 'accept', id: this.id, offset: this.#received });
    if (this.state === 'paused') this.become('running');
  }

  paused() { if (this.state === 'running') this.become('paused'); }

  /** @param {Link} link @param {number} offset @param {Uint8Array} bytes */
  onChunk(link, offset, bytes) {
    if (offset !== this.#received || offset + bytes.length > this.size) { this.#fail(link, 'the pieces do not fit together'); return; }
    if (this.#received - this.done > MAX_UNSTORED) { this.#fail(link, 'more was sent than was agreed'); return; }
    this.hash.update(bytes);
    this.#received += bytes.length;
    this.#waiting.push(bytes);
    this.#waitingLength += bytes.length;
    if (this.#waitingLength >= PROGRESS_EVERY) this.#store(link);
  }

  /** @param {Link} link */
  #store(link) {
    const parts = this.#waiting.splice(0);
    const length = this.#waitingLength;
    this.#waitingLength = 0;
    if (!length) return;
    this.#storing = this.#storing.then(async () => {
      if (isOver(this)) return;
      await (await this.#sink)?.write(parts);
      this.done += length;
      link.tell({ type: 'progress', id: this.id, received: this.done });
      this.transfers.changed(this);
    }).catch((error) => this.#fail(link, `it cannot be stored here (${error.message})`));
  }

  /** @param {Link} link @param {any} message */
  async onEnd(link, { size, sha256 }) {
    this.#store(link);
    await this.#storing;
    if (this.state !== 'running') return;
    if (size !== this.size || this.#received !== this.size) { this.#fail(link, `${this.#received} of ${this.size} bytes came`); return; }
    const mine = this.hash.hex();
    if (typeof sha256 !== 'string' || !SHA256.test(sha256.toLowerCase()) || sha256.toLowerCase() !== mine) { this.#fail(link, 'the checksum is wrong'); return; }
    try {
      this.blob = await /** @type {Sink} */ (await this.#sink).finish(HARMLESS.test(this.mime) ? this.mime : 'application/octet-stream');
    } catch (error) {
      this.#fail(link, `it cannot be stored here (${/** @type {Error} */ (error).message})`);
      return;
    }
    this.sha256 = mine;
    link.tell({ type: 'done', id: this.id });
    this.end('finished', '');
  }

  /** @param {Link} link @param {string} reason */
  #fail(link, reason) {
    if (isOver(this)) return;
    link.tell({ type: 'failed', id: this.id, reason });
    this.end('failed', reason);
  }

  /** @param {TransferState} state @param {string} reason */
  end(state, reason) {
    const discard = !isOver(this) && state !== 'finished';
    super.end(state, reason);
    this.#waiting = [];
    if (discard) void this.#storing.finally(async () => (await this.#sink)?.discard()).catch(() => {});
  }
}

// -- where received bytes go -----------------------------------------------------------------------

/** @typedef {{write: (parts: Uint8Array[]) => Promise<void>, finish: (type: string) => Promise<Blob>, discard: () => Promise<void>}} Sink */

/** @returns {Sink} */
function blobSink() {
  /** @type {Blob[]} */ let blobs = [];
  return {
    async write(parts) { blobs.push(new Blob(/** @type {BlobPart[]} */ (parts))); },
    async finish(type) { return new Blob(blobs, { type }); },
    async discard() { blobs = []; },
  };
}

const FOLDER = 'lightpipe-received-';

/** This page's folder, made with the first file; those of pages that are gone are removed. @type {Promise<FileSystemDirectoryHandle>|null} */
let folder = null;

async function openFolder() {
  const root = await navigator.storage.getDirectory();
  const name = FOLDER + Math.random().toString(36).slice(2);
  // Held for as long as the page lives; another page takes files without a holder for rubbish.
  await new Promise((resolve, reject) => {
    navigator.locks.request(name, () => { resolve(undefined); return new Promise(() => {}); }).catch(reject);
  });
  const held = new Set((await navigator.locks.query()).held?.map((lock) => lock.name));
  for await (const other of /** @type {any} */ (root).keys()) {
    if (other.startsWith(FOLDER) && !held.has(other)) await root.removeEntry(other, { recursive: true }).catch(() => {});
  }
  return root.getDirectoryHandle(name, { create: true });
}

let files = 0;

/** @returns {Promise<Sink>} */
async function openSink() {
  try {
    folder ??= openFolder();
    const place = await folder;
    // The sender's words are no part of it; without an extension the browser makes no type of its own for it.
    const name = String(++files);
    const file = await place.getFileHandle(name, { create: true });
    const writable = await file.createWritable();
    return {
      async write(parts) { await writable.write(new Blob(/** @type {BlobPart[]} */ (parts))); },
      async finish(type) { await writable.close(); return new Blob([await file.getFile()], { type }); },
      async discard() { await writable.abort(); await place.removeEntry(name); },
    };
  } catch {
    return blobSink(); // plain HTTP, a private window, an older browser
  }
}
