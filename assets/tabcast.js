// tabcast in a browser: one file, nothing to install or build.
//
//   import { connect } from '/tabcast.js';
//   const hub = connect();
//   hub.on('chat message', (text, message) => { … });
//   hub.emit('chat message', 'Hello World!');
//
// Hub     what a page uses
// Outbox  what was emitted, until the hub keeps it
// Feed    what arrives: each message once, in order, what is missing fetched from the hub
// Stream  an EventSource that is made anew whenever it is dead
// Peer    which tabs hold a stream, and how the others get what it brings

// Of what tabs tell each other. It changes with that.
const PROTOCOL = 'tabcast/1';
// For a stream to open, or a request to be answered; twice as long after each failure. After an outage the browser tries
// old connections first, which may be dead, and what is stuck on them blocks the rest; but a slow network is no outage.
const FIRST_TIMEOUT_MS = 3_000;
const LONGEST_TIMEOUT_MS = 60_000;
// Besides, a body is given the time that the hub gives it.
const BODY_BYTES_PER_MS = 35;
const FIRST_BACKOFF_MS = 2_000;
const LONGEST_BACKOFF_MS = 10_000;
// Beyond these, emit refuses.
const OUTBOX_MESSAGES = 1_000;
const OUTBOX_BYTES = 32 << 20;
// Kept of what arrives during a fetch. What is dropped is fetched as well.
const WAITING = 1_000;
const TICK_MS = 1_000;
// Holders of a stream that are silent for so long are asked for a sign of life, and without one replaced: soon if
// both are silent, and the first alone only if it is no passing fault, for its hung tab keeps a connection.
const QUIET_MS = 2_500;
const ANSWER_MS = 1_000;
const REPLACE_MS = 10_000;
// The second holder passes on what the first hasn't in this time.
const SECOND_MS = 150;

/**
 * @typedef {object} Options
 * @property {string | string[]} [channel] `main` if left out; of several, `emit` publishes on the first
 * @property {number} [last] how many of the newest kept messages come first; 0 if left out
 * @property {string} [id] the page's own, for `broadcast`; random if left out
 *
 * @typedef {{ id: string, channel: string, event: string, data: any, time: string, except?: string }} Message
 * `data` is what was emitted, `time` when the hub took it, `except` the page that doesn't get it
 *
 * @typedef {'connecting' | 'live' | 'shared' | 'offline'} State by a stream of its own, or through another tab
 *
 * @typedef {Error & { status: number, detail?: string, field?: string, limit?: number }} Refusal
 * the hub's problem, with its title as `message`
 */

/**
 * Connects to a hub: the one this script comes from, if no URL is given.
 * @param {string | URL | Options} [url]
 * @param {Options} [options]
 */
export function connect(url, options) {
  const isUrl = !url || typeof url === 'string' || url instanceof URL;
  return isUrl ? new Hub(url, options) : new Hub(undefined, url);
}

// --- Hub ---

// Events that nobody can publish to `on`.
const OWN = /^(connect$|disconnect$|tabcast:)/;

class Hub {
  /** The page's own. @type {string} */
  id;
  /** @type {State} */
  state = 'connecting';
  /** Publishes to everyone but this page. */
  broadcast = {
    /** @type {Hub['emit']} */
    emit: (event, data, options) => this.#publish(event, data, options, this.id),
  };
  #channels;
  #outbox;
  #feed;
  #peer;
  #listeners = [];
  // Ends the watch over the page; undefined while disconnected.
  #watch;
  // It was connected, and is not; and how many messages have come since.
  #isAway = false;
  #recovered = 0;

  /** @param {string | URL} [url] @param {Options} [options] */
  constructor(url, { channel = 'main', last = 0, id = randomId() } = {}) {
    this.id = id;
    this.#channels = [channel].flat();
    const { href } = url ? new URL(url, location) : new URL('.', import.meta.url);
    const base = href.replace(/\/*$/, '/');
    const channels = [...new Set(this.#channels)].sort();
    this.#outbox = new Outbox(base);
    this.#feed = new Feed(base, channels, last, (message) => this.#deliver(message), (gap) => this.#tell('tabcast:gap', gap));
    this.#peer = new Peer(base, channels, this.#feed, (state, reason) => this.#become(state, reason));
    this.connect();
  }

  /** Whether messages arrive. */
  get connected() {
    return this.state === 'live' || this.state === 'shared';
  }

  /** The id up to which all was delivered. @returns {string | undefined} */
  get position() {
    return this.#feed.position;
  }

  /**
   * Calls the listener with each message of this event, or with what the client tells: `connect`, `disconnect` (why),
   * `tabcast:state` ({ state, recovered, reason? }), `tabcast:gap` ({ asked, earliest }).
   * @param {string} event
   * @param {(data: any, message: Message) => void} listener
   */
  on(event, listener) {
    this.#listeners.push({ event, listener });
    return this;
  }

  /** `on`, for the next one only. @type {Hub['on']} */
  once(event, listener) {
    this.#listeners.push({ event, listener, once: true });
    return this;
  }

  /**
   * Forgets a listener; or all of an event; or all but those of `onAny`.
   * @param {string} [event]
   * @param {Function} [listener]
   */
  off(event, listener) {
    return this.#forget((entry) => entry.event !== undefined && entry.event === (event ?? entry.event), listener);
  }

  /** Calls the listener with each message. @param {(event: string, data: any, message: Message) => void} listener */
  onAny(listener) {
    this.#listeners.push({ listener });
    return this;
  }

  /** Forgets one listener of `onAny`, or all. @param {Function} [listener] */
  offAny(listener) {
    return this.#forget((entry) => entry.event === undefined, listener);
  }

  /**
   * Publishes, and resolves with the message's id once it is kept, however often it has to be sent for that. Rejects with a
   * {@link Refusal}, or if too much is waiting.
   * @param {string} event
   * @param {any} [data] JSON or a Blob; an ArrayBuffer or a view of one arrives as a Uint8Array
   * @param {{ channel?: string }} [options]
   * @returns {Promise<string>}
   */
  emit(event, data, options) {
    return this.#publish(event, data, options);
  }

  /** Listens again, from where it was. */
  connect() {
    if (!this.#watch) {
      this.#watch = new AbortController();
      this.#watchOver(this.#watch);
      this.#join();
    }
    return this;
  }

  /** Stops listening. What was emitted is still sent. */
  disconnect() {
    this.#watch?.abort();
    this.#watch = undefined;
    this.#peer.leave();
    this.#become('offline', 'disconnect');
    return this;
  }

  #join(reason) {
    this.#become('connecting', reason);
    this.#peer.join();
  }

  // A page that is left or frozen may come back: then it goes on from where it was.
  #watchOver({ signal }) {
    const when = (names, act) => {
      for (const name of names) {
        const target = name.startsWith('page') || name === 'online' ? globalThis : globalThis.document;
        target?.addEventListener(name, act, { signal });
      }
    };
    let away = false;
    when(['pagehide', 'freeze'], ({ persisted }) => {
      away = true;
      this.#peer.leave(persisted);
    });
    when(['pageshow', 'resume', 'visibilitychange'], ({ type }) => {
      if (type === 'visibilitychange' && document.hidden) return;
      if (away) this.#join('away');
      else this.#peer.wake();
      away = false;
    });
    when(['online'], () => {
      this.#outbox.wake();
      this.#peer.wake(true);
    });
  }

  #forget(isMeant, listener) {
    this.#listeners = this.#listeners.filter((entry) => !isMeant(entry) || (listener && entry.listener !== listener));
    return this;
  }

  async #publish(event, data, { channel = this.#channels[0] } = {}, except) {
    if (OWN.test(event)) throw new TypeError(`"${event}" is an event of the client's own`);
    return this.#outbox.send(encode({ event, channel, ...except && { except } }, data));
  }

  #deliver(message) {
    if (message.except === this.id) return;
    const { event, data } = message = { ...message, data: decode(message.data) };
    if (this.#isAway) this.#recovered += 1;
    this.#tell(undefined, event, data, message);
    if (!OWN.test(event)) this.#tell(event, data, message);
  }

  #tell(event, ...values) {
    for (const entry of this.#listeners.filter((entry) => entry.event === event)) {
      if (entry.once) this.#listeners = this.#listeners.filter((other) => other !== entry);
      try {
        entry.listener(...values);
      } catch (error) {
        // Its own problem, not the next listener's.
        reportError(error);
      }
    }
  }

  #become(state, reason) {
    if (state === this.state) return;
    const was = this.connected;
    this.state = state;
    this.#isAway = !this.connected && (was || this.#isAway);
    // What is emitted while it is not known where to begin might not come back.
    if (state !== 'connecting') this.#outbox.open();
    if (this.connected) this.#outbox.wake();
    this.#tell('tabcast:state', { state, recovered: this.#recovered, ...reason && { reason } });
    if (this.connected) this.#recovered = 0;
    if (was && !this.connected) this.#tell('disconnect', reason ?? state);
    if (!was && this.connected) this.#tell('connect');
  }
}

// `crypto.randomUUID` is there in secure contexts only.
function randomId() {
  return crypto.getRandomValues(new Uint8Array(16)).reduce((id, byte) => id + byte.toString(16).padStart(2, '0'), '');
}

// --- Data ---

// The hub keeps JSON to the letter, and any other body as a `data:` URL of its type. What that can't tell is a parameter
// of BYTES: `as=uint8array`; `as=string`, of one that looks like such a URL; or `as=` a Blob's type that the hub would
// read or rewrite, with `_` and two digits for each character that can't stand there.
const BYTES = 'application/octet-stream';
const KEPT = /^(?!multipart\/|(text\/plain|application\/(json|x-www-form-urlencoded))$)[\w!#$&^.+-]+\/[\w!#$&^.+-]+$/;

const isBinary = (data) => data instanceof Blob || data instanceof ArrayBuffer || ArrayBuffer.isView(data);

// What to POST: the body as a Blob, its type, the query.
function encode(fields, data = null) {
  const query = `?${new URLSearchParams(fields)}`;
  if (data instanceof Blob) {
    const escaped = data.type.replace(/[^a-z0-9.+-]/g, (char) => `_${char.charCodeAt().toString(16)}`);
    return { body: data, type: KEPT.test(data.type) ? data.type : BYTES + (escaped && `;as=${escaped}`), query };
  }
  if (isBinary(data)) return { body: new Blob([data]), type: `${BYTES};as=uint8array`, query };
  if (typeof data === 'string' && decode(data) !== data) return { body: new Blob([data]), type: `${BYTES};as=string`, query };
  const json = JSON.stringify({ ...fields, data }, (key, value) => {
    if (isBinary(value)) throw new TypeError('binary data is emitted by itself, not in an object');
    return value;
  });
  return { body: new Blob([json]), type: 'application/json', query: '' };
}

function decode(data) {
  const [url, type] = (typeof data === 'string' && data.slice(0, 400).match(/^data:([^,;/]+\/[^,]+);base64,/)) || [];
  if (!url) return data;
  let bytes;
  try {
    bytes = Uint8Array.from(atob(data.slice(url.length)), (char) => char.charCodeAt());
  } catch {
    return data;
  }
  const [, as] = type.split(`${BYTES};as=`);
  if (as === 'uint8array') return bytes;
  if (as === 'string') return new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes);
  return new Blob([bytes], { type: as?.replace(/_(..)/g, (_, hex) => String.fromCharCode(`0x${hex}`)) ?? type });
}

// --- Requests ---

// Jitter, so that a restart of the hub doesn't bring everyone back in the same instant.
function backoff(failures) {
  return Math.min(FIRST_BACKOFF_MS * 2 ** failures, LONGEST_BACKOFF_MS) * (0.25 + 0.75 * Math.random());
}

function patience(failures) {
  return Math.min(FIRST_TIMEOUT_MS * 2 ** failures, LONGEST_TIMEOUT_MS);
}

// What asks the hub until it answers.
class Asker extends EventTarget {
  // The JSON of an answer. Throws if the hub refuses; if it can be over, and is then undefined, asks on.
  async ask(url, init, isOver) {
    for (let failures = 0; !isOver?.(); failures += 1) {
      const timeout = patience(failures) + (init.body?.byteLength ?? 0) / BODY_BYTES_PER_MS;
      const answer = await fetch(url, { cache: 'no-store', ...init, signal: AbortSignal.timeout(timeout) }).catch(() => null);
      const body = await answer?.json().catch(() => null);
      if (answer?.ok && body) return body;
      const status = answer?.status;
      if (status >= 400 && status < 500 && status !== 408 && status !== 429) {
        const { title = `HTTP ${status}`, detail, field, limit } = body ?? {};
        const refusal = Object.assign(new Error(title), { name: 'Refusal', status, detail, field, limit });
        if (!isOver) throw refusal;
        reportError(refusal);
      }
      const after = Number(answer?.headers.get('Retry-After')) * 1_000 || 0;
      await new Promise((resolve) => {
        setTimeout(resolve, Math.max(after, backoff(failures)));
        // What the hub has said counts more than a sign that it is back.
        if (!after) this.addEventListener('wake', resolve, { once: true });
      });
    }
    return undefined;
  }

  // Asks again now.
  wake() {
    this.dispatchEvent(new Event('wake'));
  }
}

class Outbox extends Asker {
  #url;
  #queue = [];
  #bytes = 0;
  #isOpen = false;
  #isSending = false;

  constructor(base) {
    super();
    this.#url = `${base}messages`;
  }

  send({ body, type, query }) {
    if (this.#queue.length >= OUTBOX_MESSAGES || this.#bytes + body.size > OUTBOX_BYTES) {
      throw new RangeError(`too much is waiting: ${this.#queue.length} messages, ${this.#bytes} bytes`);
    }
    this.#bytes += body.size;
    return new Promise((resolve, reject) => {
      this.#queue.push({ body, type, query, key: randomId(), resolve, reject });
      this.#run();
    });
  }

  open() {
    this.#isOpen = true;
    this.#run();
  }

  // One at a time, so that they are kept in order.
  async #run() {
    if (!this.#isOpen || this.#isSending) return;
    this.#isSending = true;
    for (; this.#queue.length; this.#queue.shift()) {
      const { body, type, query, key, resolve, reject } = this.#queue[0];
      try {
        // Read first: a file that is gone would seem to be the network's fault.
        const init = { method: 'POST', headers: { 'Content-Type': type, 'Idempotency-Key': key }, body: await body.arrayBuffer() };
        resolve((await this.ask(this.#url + query, init)).id);
      } catch (error) {
        reject(error);
      }
      this.#bytes -= body.size;
    }
    this.#isSending = false;
  }
}

// --- Feed ---

// How far an id is beyond another. NaN, of which every comparison is false, if they are of different journals, or one is missing.
function distance(id = '', from = '-') {
  const [epoch, sequence] = id.split('-');
  const [fromEpoch, fromSequence] = from.split('-');
  return epoch === fromEpoch ? sequence - fromSequence : NaN;
}

// It takes items: { prev?, id?, message?, isEnd? }. Between `prev` and `id` is nothing; without `prev`, something may be. Ids
// alone can't tell, for sequences have holes: other channels' messages. `isEnd` is where the hub says that the journal
// ends, now. Without `id`, the journal may be another one.
class Feed extends Asker {
  // The id up to which all was delivered; undefined until it is known where to begin.
  position;
  // Called with each item, in order; and when nothing is missing any more.
  onstep;
  oncurrent;
  // The last message's id, or where it began: from there to `position` is nothing.
  #quiet;
  #url;
  #last;
  #deliver;
  #gap;
  // What has arrived since a fetch began; undefined if there is none.
  #waiting;

  constructor(base, channels, last, deliver, gap) {
    super();
    this.#url = `${base}messages?${channels.map((name) => `channel=${encodeURIComponent(name)}&`).join('')}`;
    this.#last = last;
    this.#deliver = deliver;
    this.#gap = gap;
  }

  get isBehind() {
    return Boolean(this.#waiting);
  }

  // Its position, as an item for others.
  get item() {
    return this.position && { prev: this.#quiet, id: this.position };
  }

  take(item) {
    const { prev, id, message, isEnd } = item;
    if (this.#waiting) {
      if (this.#waiting.push(item) > WAITING) this.#waiting.shift();
      return;
    }
    if (!this.position && !this.#last) this.#quiet = this.position = prev ?? id;
    const { position } = this;
    if (position && distance(id, position) <= 0) {
      // An end that is behind may be an older journal's, from a backup.
      if (isEnd && id !== position) this.#catchUp({});
    } else if (position && distance(position, prev) >= 0) {
      this.#step(id, message);
    } else if (position || id) {
      this.#catchUp(item);
    }
  }

  stop() {
    this.#waiting = undefined;
    this.wake();
  }

  #step(id, message) {
    const prev = this.position ?? id;
    if (message || !this.position) this.#quiet = id;
    this.position = id;
    this.onstep({ prev, id, message });
    if (message) this.#deliver(message);
  }

  // Fetches what is missing up to this item, and with it what else there is.
  async #catchUp({ id, isEnd }) {
    const waiting = this.#waiting = [];
    // A listener may stop it, too.
    const isOver = () => this.#waiting !== waiting;
    let from;
    do {
      from = this.position;
      const query = from ? `after=${from}` : `last=${this.#last}`;
      const answer = await this.ask(this.#url + query, {}, isOver);
      if (isOver()) return;
      if (answer.gap) {
        this.position = undefined;
        this.onstep({});
        this.#gap(answer.gap);
      }
      for (const message of answer.messages) {
        if (isOver()) return;
        this.#step(message.id, message);
      }
      // The hub gives a page at a time: until the target is reached, or there is no more.
    } while (from && this.position && this.position !== from && !(distance(this.position, id) >= 0));
    if (isOver()) return;
    if (id && (!this.position || (isEnd && distance(id, this.position) > 0))) this.#step(id);
    this.#waiting = undefined;
    for (const item of waiting) this.take(item);
    if (!this.isBehind) this.oncurrent();
  }
}

// --- Stream ---

// A native EventSource gives up on any answer but 200, and can sit on a dead connection for ever.
class Stream {
  // Whether it is open; undefined until the first try is decided. And why not, where the hub says so.
  live;
  reason;
  #url;
  #feed;
  #changed;
  #source;
  #timer;
  // Since it was last open.
  #tries = 0;
  #heard;
  #silence;

  constructor(base, channels, feed, changed) {
    this.#url = `${base}events?format=message${channels.map((name) => `&channel=${encodeURIComponent(name)}`).join('')}`;
    this.#feed = feed;
    this.#changed = changed;
    this.#open();
  }

  close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = undefined;
  }

  check() {
    if (this.#source && Date.now() - this.#heard > this.#silence) this.#lose();
  }

  // Tries now; `anew` even if it is open, for the network may be another.
  wake(anew) {
    this.check();
    if (anew || !this.#source) this.#open();
  }

  #open() {
    this.close();
    const source = this.#source = new EventSource(this.#url);
    let prev;
    const on = (name, act) => source.addEventListener(name, (event) => {
      this.#heard = Date.now();
      if (source === this.#source) act(event, event.data && JSON.parse(event.data));
    });
    const take = ({ lastEventId: id }, message) => {
      this.#feed.take({ prev, id, message });
      prev = id;
    };
    this.#heard = Date.now();
    this.#silence = patience(this.#tries);
    this.#tries += 1;
    on('tabcast:open', (event, { keep_alive_ms }) => {
      this.#silence = keep_alive_ms * 1.5 + 5_000;
      this.#tries = 0;
      this.live = true;
      this.reason = undefined;
      prev = event.lastEventId;
      this.#feed.take({ id: prev, isEnd: true });
      this.#changed();
    });
    on('message', take);
    on('tabcast:keep-alive', (event) => take(event));
    on('tabcast:gap', (event) => { prev = undefined; take(event); });
    on('tabcast:full', (event, { detail }) => this.#lose(detail));
    on('error', () => this.#lose());
  }

  #lose(reason) {
    this.close();
    // To have waited for nothing is a pause as well.
    const waited = this.live ? 0 : Date.now() - this.#heard;
    this.#timer = setTimeout(() => this.#open(), backoff(this.#tries) - waited);
    this.live = false;
    this.reason = reason;
    this.#changed();
  }
}

// --- Peer ---

// Over HTTP/1.1 a browser opens six connections to a host, for all its tabs together. So two tabs hold a stream: those that
// have one of two Web Locks. What arrives, the first passes on over a BroadcastChannel, and the second what the first
// doesn't. A lock goes to the next tab when its holder is closed or crashes; one that hangs is robbed of it. Where there are
// no Web Locks (http on a LAN address), the holder is a shared worker that runs this file, or its next generation.
class Peer {
  #base;
  #channels;
  #feed;
  #changed;
  // The shared worker's; undefined where there is none.
  #generation;
  #isWorker;
  #state;
  #channel;
  #stream;
  // 0 or 1 if it holds a stream for others.
  #slot;
  // For each slot, what lets go of it, or stops waiting for it.
  #letGo = [];
  // What the holder of each slot last told of its stream: { live, reason }.
  #holders = {};
  // What it last told the others of its own.
  #told;
  // How far the other holder has got.
  #spoken;
  // When a holder was last heard; when they were asked for a sign of life, undefined once one came.
  #heard;
  #asked;
  #ticker;

  constructor(base, channels, feed, changed, generation) {
    this.#base = base;
    this.#channels = channels;
    this.#feed = feed;
    this.#changed = changed;
    this.#generation = generation;
    this.#isWorker = generation !== undefined;
    feed.onstep = (item) => this.#share(item);
    feed.oncurrent = () => this.#update();
  }

  join() {
    this.#heard = Date.now();
    this.#ticker = setInterval(() => this.#tick(), TICK_MS);
    if (isMultiplexed(this.#base)) return this.#hold();
    this.#channel = new BroadcastChannel(this.#name());
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    if (this.#isWorker) return this.#hold(0);
    this.#ask();
    if (navigator.locks) return this.#queue();
    // Which generation it is, the tabs that are there know.
    this.#generation = -1;
    setTimeout(() => { if (this.#generation < 0) this.#attach(0); }, SECOND_MS);
  }

  leave(isKept) {
    clearInterval(this.#ticker);
    this.#drop();
    this.#letGo.forEach((letGo) => letGo());
    this.#channel?.postMessage({ leave: true, isKept });
    this.#channel?.close();
    this.#channel = this.#asked = this.#state = undefined;
    this.#holders = {};
    this.#feed.stop();
  }

  wake(anew) {
    this.#feed.wake();
    this.#stream?.wake(anew);
    if (this.#channel) this.#ask();
  }

  #name(...more) {
    return `${PROTOCOL} ${JSON.stringify([this.#base, this.#channels, ...more])}`;
  }

  // Holds a stream; for the others, too, if there is a slot.
  #hold(slot) {
    this.#slot = slot;
    this.#told = undefined;
    delete this.#holders[slot];
    this.#stream ??= new Stream(this.#base, this.#channels, this.#feed, () => {
      if (this.#stream.live) this.#feed.wake();
      this.#update();
    });
    this.#say();
  }

  #drop() {
    this.#stream?.close();
    this.#stream = this.#slot = undefined;
  }

  // A stream for each tab: up to six work.
  #alone(why) {
    if (!this.#channel) return;
    console.warn(`tabcast: each tab needs a connection of its own, of which a browser has six: ${why}`);
    this.#channel.close();
    this.#channel = undefined;
    this.#hold();
  }

  // --- what peers tell each other ---

  #say(item = this.#feed.item) {
    if (this.#slot === undefined) return;
    const { reason } = this.#stream;
    this.#channel.postMessage({ slot: this.#slot, generation: this.#generation, live: this.#live, reason, item });
  }

  #share(item) {
    if (this.#slot === 1 && item.id) {
      setTimeout(() => { if (!(distance(this.#spoken, item.id) >= 0)) this.#say(item); }, SECOND_MS);
    } else {
      this.#say(item);
    }
  }

  #ask() {
    this.#asked = Date.now();
    this.#channel.postMessage({ ask: true });
  }

  #hear({ ask, leave, isKept, slot, generation, live, reason, item }) {
    if (leave) {
      // At once: a worker whose last page is kept for the way back is frozen, soon or already. If there are others, they ask;
      // and for the next worker, since that page could keep this one, frozen with its stream, when they are gone.
      if (this.#isWorker) this.#drop();
      else if (this.#generation >= 0 && isKept) this.#attach(this.#generation + 1);
      else if (this.#generation >= 0) this.#ask();
      return;
    }
    if (ask) {
      if (this.#isWorker && !this.#stream) this.#hold(0);
      else this.#say();
      return;
    }
    if (generation > this.#generation) {
      if (this.#isWorker) return this.#end();
      this.#attach(generation);
    }
    this.#heard = Date.now();
    this.#asked = undefined;
    if (live && !this.#holders[slot]?.live) this.#feed.wake();
    this.#holders[slot] = { live, reason };
    if (item) {
      this.#spoken = item.id;
      this.#feed.take(item);
    }
    this.#update();
  }

  // Whether its own stream brings everything; undefined if that is not known, or there is none.
  get #live() {
    const live = this.#stream?.live;
    return live && this.#feed.isBehind ? undefined : live;
  }

  #update() {
    const own = this.#live;
    const holders = Object.values(this.#holders);
    const all = [own, ...holders.map(({ live }) => live)];
    if (!all.includes(true)) this.#state = all.includes(false) ? 'offline' : this.#state;
    else if (!this.#feed.isBehind) this.#state = own ? 'live' : 'shared';
    if (own !== this.#told) {
      this.#told = own;
      this.#say();
    }
    const reason = this.#state === 'offline' ? this.#stream?.reason ?? holders[0]?.reason : undefined;
    if (this.#state) this.#changed(this.#state, reason);
  }

  #tick() {
    const now = Date.now();
    const asked = this.#asked;
    this.#stream?.check();
    if (!this.#channel || this.#isWorker || (this.#slot === 0 && this.#stream.live)) {
      // There is nobody it depends on.
    } else if (!asked) {
      if (now - this.#heard > QUIET_MS) this.#ask();
    } else if (now - asked > ANSWER_MS) {
      // Later: an answer may be in line behind this, for this tab may have hung itself. At random: one is enough.
      setTimeout(() => { if (asked === this.#asked) this.#unanswered(now - asked); }, 50 + 450 * Math.random());
    }
  }

  #unanswered(since) {
    this.#holders = {};
    this.#update();
    if (this.#slot === 0 || (this.#slot === 1 && since < REPLACE_MS)) return;
    this.#heard = Date.now();
    this.#asked = undefined;
    if (this.#generation === undefined) this.#request(0, { steal: true });
    else this.#attach(this.#generation + 1);
  }

  // --- Web Locks ---

  #queue() {
    this.#request(0);
    this.#request(1);
  }

  async #request(slot, how) {
    this.#letGo[slot]?.();
    const waiting = new AbortController();
    let isOver, release;
    this.#letGo[slot] = () => {
      isOver = true;
      waiting.abort();
      release?.();
    };
    try {
      await navigator.locks.request(this.#name(slot), how ?? { signal: waiting.signal }, () => {
        if (isOver) return undefined;
        // Who has the first needs no other. Who has the second still waits for the first.
        if (slot === 0) this.#letGo[1]?.();
        this.#hold(slot);
        return new Promise((resolve) => { release = resolve; });
      });
    } catch (error) {
      if (isOver) return;
      if (!release) return this.#alone(error.message);
      // Robbed, for it seemed dead. Its stream would be one too many.
      this.#drop();
      this.#queue();
    }
  }

  // --- shared worker ---

  #attach(generation) {
    this.#generation = generation;
    this.#heard = Date.now();
    this.#asked = undefined;
    try {
      const worker = new SharedWorker(import.meta.url, { type: 'module', name: this.#name(generation) });
      worker.onerror = () => this.#alone('the shared worker failed');
    } catch (error) {
      this.#alone(error.message);
    }
  }

  #end() {
    this.leave();
    close();
  }
}

// Over HTTP/2 and later, all streams share one connection.
function isMultiplexed(base) {
  const entries = ['navigation', 'resource'].flatMap((type) => performance.getEntriesByType(type));
  return entries.some(({ name, nextHopProtocol }) => name.startsWith(base) && /^h[23]/.test(nextHopProtocol));
}

if (globalThis.SharedWorkerGlobalScope && name.startsWith(PROTOCOL)) {
  const [base, channels, generation] = JSON.parse(name.slice(PROTOCOL.length));
  const ignore = () => {};
  const peer = new Peer(base, channels, new Feed(base, channels, 0, ignore, ignore), ignore, generation);
  peer.join();
  addEventListener('online', () => peer.wake(true));
}
