/**
 * SHA-256 (FIPS 180-4) of what comes piece by piece. `crypto.subtle.digest` wants everything at once, and is missing where a page came
 * over plain HTTP.
 */

/** First 32 bits of the fractional parts of the `power`th roots of the first primes (§4.2.2, §5.3.3). @param {number} count @param {number} power */
function fractions(count, power) {
  const found = new Uint32Array(count);
  for (let n = 2, i = 0; i < count; n++) {
    let prime = true;
    for (let d = 2; d * d <= n; d++) if (n % d === 0) { prime = false; break; }
    // 53 bits of a root below 8 hold 32 behind the point.
    if (prime) found[i++] = (n ** (1 / power) % 1) * 2 ** 32;
  }
  return found;
}

const K = fractions(64, 3);
const INITIAL = fractions(8, 2);

export class Sha256 {
  #state = new Int32Array(INITIAL);
  #schedule = new Int32Array(64);
  #rest = new Uint8Array(64);
  #restLength = 0;
  #length = 0;

  /** Bytes so far. */
  get length() { return this.#length; }

  /** @param {Uint8Array} bytes */
  update(bytes) {
    this.#length += bytes.length;
    let at = 0;
    if (this.#restLength) {
      at = Math.min(64 - this.#restLength, bytes.length);
      this.#rest.set(bytes.subarray(0, at), this.#restLength);
      this.#restLength += at;
      if (this.#restLength < 64) return;
      this.#blocks(this.#rest, 0, 64);
      this.#restLength = 0;
    }
    const whole = at + ((bytes.length - at) & ~63);
    this.#blocks(bytes, at, whole);
    this.#restLength = bytes.length - whole;
    this.#rest.set(bytes.subarray(whole));
  }

  /** The digest in hexadecimal. Nothing may be added afterwards. */
  hex() {
    const bits = this.#length * 8;
    const padding = new Uint8Array(this.#restLength < 56 ? 64 : 128);
    padding.set(this.#rest.subarray(0, this.#restLength));
    padding[this.#restLength] = 0x80;
    const view = new DataView(padding.buffer);
    view.setUint32(padding.length - 8, Math.floor(bits / 2 ** 32));
    view.setUint32(padding.length - 4, bits % 2 ** 32);
    this.#blocks(padding, 0, padding.length);
    return Array.from(this.#state, (word) => (word >>> 0).toString(16).padStart(8, '0')).join('');
  }

  /** @param {Uint8Array} bytes @param {number} from @param {number} to */
  #blocks(bytes, from, to) {
    const w = this.#schedule;
    let [h0, h1, h2, h3, h4, h5, h6, h7] = this.#state;
    for (let at = from; at < to; at += 64) {
      for (let i = 0, j = at; i < 16; i++, j += 4) w[i] = (bytes[j] << 24) | (bytes[j + 1] << 16) | (bytes[j + 2] << 8) | bytes[j + 3];
      for (let i = 16; i < 64; i++) {
        const x = w[i - 15];
        const y = w[i - 2];
        const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
        const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
        w[i] = (w[i - 16] + s0 + w[i - 7] + s1) | 0;
      }
      let [a, b, c, d, e, f, g, h] = [h0, h1, h2, h3, h4, h5, h6, h7];
      for (let i = 0; i < 64; i++) {
        const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
        const t1 = (h + s1 + (g ^ (e & (f ^ g))) + K[i] + w[i]) | 0;
        const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
        const t2 = (s0 + ((a & b) | (c & (a | b)))) | 0;
        h = g; g = f; f = e; e = (d + t1) | 0;
        d = c; c = b; b = a; a = (t1 + t2) | 0;
      }
      h0 = (h0 + a) | 0; h1 = (h1 + b) | 0; h2 = (h2 + c) | 0; h3 = (h3 + d) | 0;
      h4 = (h4 + e) | 0; h5 = (h5 + f) | 0; h6 = (h6 + g) | 0; h7 = (h7 + h) | 0;
    }
    this.#state.set([h0, h1, h2, h3, h4, h5, h6, h7]);
  }
}
