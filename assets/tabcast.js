// tabcast in a browser. One file, nothing to install or build:
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

// Tabs that run different versions of this file can talk to each other as long as this is the same.
const PROTOCOL = 'tabcast/1';
// A request that takes longer has failed. The hub gives a body 30 s.
const TIMEOUT_MS = 30_000;
const BACKOFF_MS = 2_000;
const LONGEST_BACKOFF_MS = 30_000;
// Beyond these, emit refuses at once.
const OUTBOX_MESSAGES = 1_000;
const OUTBOX_BYTES = 32 << 20;
// What arrives during a fetch; more is fetched as well.
const WAITING = 1_000;
const TICK_MS = 1_000;
// The tabs that hold a stream are asked for a sign of life when they said nothing for so long …
const QUIET_MS = 2_500;
// … and replaced when they don't answer: by a tab that hears neither; by the second holder, which
// speaks for the first meanwhile, only if that is no passing fault.
const ANSWER_MS = 1_000;
const REPLACE_MS = 10_000;
// The second holder passes on what the first hasn't within this time.
const SECOND_MS = 150;
// A shared worker that no tab has asked anything for so long ends. Hidden tabs ask once a minute.
const UNUSED_MS = 150_000;

/**
 * @typedef {object} Options
 * @property {string | string[]} [channel] the channels to listen to, `main` if left out; `emit` publishes on the first
 * @property {number} [last] how many of the newest kept messages come first; 0 if left out
 * @property {string} [id] the page's own id, for `broadcast`; drawn at random if left out
 *
 * @typedef {object} Message
 * @property {string} id
 * @property {string} channel
 * @property {string} event
 * @property {any} data what was emitted
 * @property {string} time when the hub took it: RFC 3339, UTC
 * @property {string} [except] the id of the page that doesn't get it
 *
 * @typedef {'connecting' | 'live' | 'shared' | 'offline'} State
 * `live`: by a stream of its own; `shared`: by another tab's
 *
 * @typedef {Error & { status: number, detail?: string, field?: string, limit?: number }} Refusal
 * why the hub refused a message; `message` is the problem's title
 */

/**
 * Connects to a hub.
 * @param {string | URL | Options} [url] of the hub; the one this script comes from if left out
 * @param {Options} [options]
 * @returns {Hub}
 */
export function connect(url, options) {
  const isUrl = !url || typeof url === 'string' || url instanceof URL;
  return isUrl ? new Hub(url, options) : new Hub(undefined, url);
}

// --- Hub ---

const OWN = /^(connect|disconnect|tabcast:.*)$/s;

class Hub {
  /** The page's own id. @type {string} */
  id;
  /** @type {State} */
  state = 'connecting';
  /** Publishes to everyone but this page. */
  broadcast = {
    /** @type {Hub['emit']} */
    emit: (event, data, options) => this.#publish(event, data, { ...options, except: this.id }),
  };
  #channels;
  #outbox;
  #feed;
  #peer;
  #listeners = new Map();
  #any = [];
  #joined = false;
  #recovered = 0;

  constructor(url = '.', { channel = 'main', last = 0, id = randomId() } = {}) {
    this.id = id;
    this.#channels = [channel].flat();
    const base = new URL(url, url === '.' ? import.meta.url : globalThis.document?.baseURI ?? location).href.replace(/\/*$/, '/');
    this.#outbox = new Outbox(base);
    const channels = [...new Set(this.#channels)].sort();
    this.#feed = new Feed(base, channels, last, (message) => this.#deliver(message), (gap) => this.#tell('tabcast:gap', gap));
    this.#peer = new Peer(base, channels, this.#feed, (state, reason) => this.#become(state, reason));
    this.#watch();
    this.connect();
  }

  /** Whether messages arrive. @type {boolean} */
  get connected() {
    return this.state === 'live' || this.state === 'shared';
  }

  /** The id up to which every message was delivered. @type {string | undefined} */
  get position() {
    return this.#feed.position;
  }

  /**
   * Calls the listener with each message of this event name; or with what the hub itself has to say: `connect`,
   * `disconnect` (why), `tabcast:state` ({ state, recovered, reason? }), `tabcast:gap` ({ asked, earliest }).
   * @param {string} event
   * @param {(data: any, message: Message) => void} listener
   */
  on(event, listener) {
    return this.#add(event, { listener });
  }

  /** The same, for the next one only. @type {Hub['on']} */
  once(event, listener) {
    return this.#add(event, { listener, once: true });
  }

  /**
   * Forgets a listener; all of an event without one; all of `on` and `once` without an event.
   * @param {string} [event]
   * @param {Function} [listener]
   */
  off(event, listener) {
    if (event === undefined) this.#listeners.clear();
    else this.#listeners.set(event, without(this.#listeners.get(event), listener));
    return this;
  }

  /** Calls the listener with each message. @param {(event: string, data: any, message: Message) => void} listener */
  onAny(listener) {
    this.#any = [...this.#any, { listener }];
    return this;
  }

  /** Forgets it, or all of `onAny`. @param {Function} [listener] */
  offAny(listener) {
    this.#any = without(this.#any, listener);
    return this;
  }

  /**
   * Publishes. The promise is the message's id, once it is kept; until then it is sent again whenever it can be, after what
   * was emitted before it. It is rejected with a {@link Refusal}, or if too much waits already.
   * @param {string} event
   * @param {any} [data] JSON, a Blob, or an ArrayBuffer or view of one, which arrives as a Uint8Array
   * @param {{ channel?: string }} [options]
   * @returns {Promise<string>}
   */
  emit(event, data, options) {
    return this.#publish(event, data, { ...options, except: undefined });
  }

  /** Listens again after `disconnect`, from where it was. */
  connect() {
    if (!this.#joined) {
      this.#joined = true;
      this.#become('connecting');
      this.#peer.join();
    }
    return this;
  }

  /** Stops listening. What was emitted is still sent. */
  disconnect() {
    this.#leave('offline', 'disconnect');
    this.#outbox.open();
    return this;
  }

  #leave(state, reason) {
    this.#joined = false;
    this.#peer.leave();
    this.#become(state, reason);
  }

  #add(event, entry) {
    this.#listeners.set(event, [...this.#listeners.get(event) ?? [], entry]);
    return this;
  }

  async #publish(event, data, { channel = this.#channels[0], except }) {
    if (OWN.test(event)) throw new TypeError(`${event} is an event of the hub's own`);
    return this.#outbox.send(encode(data, { event, channel, ...except && { except } }));
  }

  #deliver(message) {
    if (message.except === this.id) return;
    const { event, data } = message = { ...message, data: decode(message.data) };
    if (this.state === 'offline') this.#recovered += 1;
    for (const { listener } of this.#any) call(listener, event, data, message);
    if (!OWN.test(event)) this.#tell(event, data, message);
  }

  #tell(event, ...values) {
    for (const { listener, once } of this.#listeners.get(event) ?? []) {
      if (once) this.off(event, listener);
      call(listener, ...values);
    }
  }

  #become(state, reason) {
    // Only now is it sure that what is emitted comes back.
    if (this.position || reason) this.#outbox.open();
    if (state === this.state) return;
    const was = this.connected;
    this.state = state;
    if (state === 'offline') this.#recovered = 0;
    if (this.connected) this.#outbox.wake();
    this.#tell('tabcast:state', { state, recovered: this.#recovered, ...reason && { reason } });
    if (this.connected) this.#recovered = 0;
    if (this.connected !== was) this.#tell(was ? 'disconnect' : 'connect', ...was ? [reason ?? 'offline'] : []);
  }

  // A page that is left or frozen may come back: it then goes on from where it was.
  #watch() {
    let left = false;
    const leave = () => {
      left ||= this.#joined;
      if (this.#joined) this.#leave('connecting', 'hidden');
    };
    const back = () => {
      if (left) this.connect();
      else this.#peer.wake();
      left = false;
    };
    addEventListener('pagehide', leave);
    addEventListener('pageshow', back);
    addEventListener('online', () => { this.#outbox.wake(); this.#peer.wake(true); });
    const { document } = globalThis;
    document?.addEventListener('freeze', leave);
    document?.addEventListener('resume', back);
    document?.addEventListener('visibilitychange', () => { if (!document.hidden) this.#peer.wake(); });
  }
}

// A listener that throws is its own page's problem, not the next listener's.
function call(listener, ...values) {
  try {
    listener(...values);
  } catch (error) {
    reportError(error);
  }
}

const without = (entries = [], listener) => entries.filter((entry) => listener && entry.listener !== listener);

// `crypto.randomUUID` is there in secure contexts only.
const randomId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');

// --- Data ---

// The hub keeps JSON to the letter, and a body of any other type as a `data:` URL. What neither can tell goes in a
// parameter of `application/octet-stream`: `as=uint8array`, `as=string`, or a Blob's type that the hub reads or writes in
// another way, with `_` and two digits for each character that can't stand there.

const BYTES = 'application/octet-stream';
const KEPT = /^(?!multipart\/|(?:text\/plain|application\/json|application\/x-www-form-urlencoded)(?:;|$)|.*;as=)[\w!#$&^.+-]+\/[\w!#$&^.+-]+(;[\w!#$&^.+-]+=[\w!#$&^.+-]+)*$/;

const isBinary = (data) => data instanceof Blob || data instanceof ArrayBuffer || ArrayBuffer.isView(data);

// The body to POST, its type, and the query.
function encode(data = null, fields) {
  // A string that would be taken for binary.
  const isUrl = typeof data === 'string' && decode(data) !== data;
  if (!isUrl && !isBinary(data)) {
    const refuse = (key, value) => {
      if (isBinary(value)) throw new TypeError('binary data has to be emitted by itself, not in an object');
      return value;
    };
    return { body: new Blob([JSON.stringify({ ...fields, data }, refuse)]), type: 'application/json', query: '' };
  }
  const query = `?${new URLSearchParams(fields)}`;
  if (!(data instanceof Blob)) return { body: new Blob([data]), type: `${BYTES};as=${isUrl ? 'string' : 'uint8array'}`, query };
  const escaped = data.type.replace(/[^a-z0-9.+-]/g, (char) => `_${char.charCodeAt().toString(16)}`);
  return { body: data, type: KEPT.test(data.type) ? data.type : escaped ? `${BYTES};as=${escaped}` : BYTES, query };
}

// What was emitted, of what the hub keeps.
function decode(data) {
  const [url, type] = typeof data === 'string' && data.slice(0, 400).match(/^data:([^,]+);base64,/) || [];
  if (!url) return data;
  let bytes;
  try {
    bytes = Uint8Array.from(atob(data.slice(url.length)), (char) => char.charCodeAt());
  } catch {
    return data;
  }
  const as = type.startsWith(`${BYTES};as=`) && type.slice(BYTES.length + 4);
  if (as === 'uint8array') return bytes;
  if (as === 'string') return new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes);
  return new Blob([bytes], { type: as ? as.replace(/_(..)/g, (_, hex) => String.fromCharCode(parseInt(hex, 16))) : type });
}

// --- Requests ---

// Jitter, so that a restart of the hub doesn't bring everyone back in the same instant.
const backoff = (failures) => Math.min(BACKOFF_MS * 2 ** failures, LONGEST_BACKOFF_MS) * (1 / 4 + Math.random() * 3 / 4);

// Pauses that can be cut short.
class Pauses {
  #wakes = new Set();

  pause(ms) {
    return new Promise((resolve) => {
      const wake = () => { clearTimeout(timer); this.#wakes.delete(wake); resolve(); };
      const timer = setTimeout(wake, ms);
      this.#wakes.add(wake);
    });
  }

  wake() {
    for (const wake of [...this.#wakes]) wake();
  }
}

// Asks until there is an answer, and returns its JSON; throws if the hub refuses.
async function ask(url, init, pauses) {
  for (let failures = 0; ; failures += 1) {
    const answer = await fetch(url, { ...init, signal: AbortSignal.timeout(TIMEOUT_MS) }).catch(() => null);
    const body = await answer?.json().catch(() => null);
    if (answer?.ok && body) return body;
    const status = answer?.status;
    if (status >= 400 && status < 500 && status !== 408 && status !== 429) {
      const { title = `HTTP ${status}`, detail, field, limit } = body ?? {};
      throw Object.assign(new Error(title), { name: 'Refusal', status, detail, field, limit });
    }
    const after = Number(answer?.headers.get('Retry-After')) * 1_000;
    if (after > 0) await new Promise((resolve) => { setTimeout(resolve, after + backoff(0) / 4); });
    else await pauses.pause(backoff(failures));
  }
}

class Outbox {
  #url;
  #queue = [];
  #bytes = 0;
  #pauses = new Pauses();
  #isOpen = false;
  #running = false;

  constructor(base) {
    this.#url = `${base}messages`;
  }

  send({ body, type, query }) {
    if (this.#queue.length >= OUTBOX_MESSAGES || this.#bytes + body.size > OUTBOX_BYTES) {
      throw new RangeError(`too much waits to be sent: ${this.#queue.length} messages, ${this.#bytes} bytes`);
    }
    this.#bytes += body.size;
    return new Promise((resolve, reject) => {
      this.#queue.push({ body, type, query, key: randomId(), resolve, reject });
      this.#run();
    });
  }

  // Nothing is sent before.
  open() {
    this.#isOpen = true;
    this.#run();
  }

  wake() {
    this.#pauses.wake();
  }

  // One at a time, so that they are kept in order.
  async #run() {
    if (!this.#isOpen || this.#running) return;
    this.#running = true;
    for (; this.#queue.length; this.#queue.shift()) {
      const { body, type, query, key, resolve, reject } = this.#queue[0];
      try {
        const headers = { 'Content-Type': type, 'Idempotency-Key': key };
        // Read first: a file that can't be read any more is not the network's fault.
        const init = { method: 'POST', headers, body: await body.arrayBuffer() };
        resolve((await ask(this.#url + query, init, this.#pauses)).id);
      } catch (error) {
        reject(error);
      }
      this.#bytes -= body.size;
    }
    this.#running = false;
  }
}

// --- Feed ---

// How far `id` is beyond `from`; NaN, of which every comparison is false, if they are of different journals.
function distance(id, from) {
  const [[epoch, sequence], [fromEpoch, fromSequence]] = [id.split('-'), from.split('-')];
  return epoch === fromEpoch ? sequence - fromSequence : NaN;
}

// Holes in the sequence are other channels' messages, so an item tells what it comes after: { prev?, id, message? }
// is a message, or none, and that nothing else is between `prev` and `id`. Without `prev`, something may be.
class Feed {
  /** The id up to which everything was delivered; undefined until it is known where to begin. */
  position;
  /** Told of each step: an item. */
  onstep = () => {};
  /** Told when nothing is missing any more. */
  oncurrent = () => {};
  #url;
  #last;
  #deliver;
  #gap;
  #pauses = new Pauses();
  // What has arrived since a fetch began; undefined if none is on its way.
  #waiting;

  constructor(base, channels, last, deliver, gap) {
    this.#url = `${base}messages?${channels.map((name) => `channel=${encodeURIComponent(name)}&`).join('')}`;
    this.#last = last;
    this.#deliver = deliver;
    this.#gap = gap;
  }

  get isBehind() {
    return Boolean(this.#waiting);
  }

  take(item) {
    if (this.#waiting) {
      this.#waiting.push(item);
      if (this.#waiting.length > WAITING) this.#waiting.shift();
      return;
    }
    if (!this.#last) this.position ??= item.prev ?? item.id;
    if (this.position && distance(item.id, this.position) <= 0) return;
    if (this.position && item.prev && distance(this.position, item.prev) >= 0) this.#step(item.id, item.message);
    else this.#catchUp(item);
  }

  stop() {
    this.#waiting = undefined;
  }

  wake() {
    this.#pauses.wake();
  }

  #step(id, message) {
    const prev = this.position ?? id;
    this.position = id;
    this.onstep({ prev, id, message });
    if (message) this.#deliver(message);
  }

  // Fetches what is missing up to `target`, and with it whatever else there is.
  async #catchUp(target) {
    const waiting = this.#waiting = [target];
    let from;
    do {
      from = this.position;
      const query = from ? `after=${from}` : `last=${this.#last}`;
      let answer;
      try {
        answer = await ask(this.#url + query, {}, this.#pauses);
      } catch (error) {
        reportError(error);
        answer = { messages: [] };
      }
      // Stopped meanwhile; a listener can do that too.
      if (this.#waiting !== waiting) return;
      if (answer.gap) {
        this.position = undefined;
        this.#gap(answer.gap);
      }
      for (const message of answer.messages) {
        if (this.#waiting !== waiting) return;
        this.#step(message.id, message);
      }
      if (this.#waiting !== waiting) return;
      // A page of the history is full at a number the hub knows: go on until there is no more.
    } while (from && this.position && this.position !== from && !(distance(this.position, target.id) >= 0));
    if (!this.position || distance(target.id, this.position) > 0) this.#step(target.id);
    this.#waiting = undefined;
    for (const item of waiting) this.take(item);
    if (!this.isBehind) this.oncurrent();
  }
}

// --- Stream ---

// A native EventSource gives up on any answer but 200, and can sit on a dead connection for ever.
class Stream {
  /** Whether it is open; undefined as long as the first try is undecided. */
  live;
  /** Why it is not, where the hub said so. */
  reason;
  #url;
  #take;
  #changed;
  #source;
  #timer;
  #failures = 0;
  #heard;
  #silence;

  constructor(base, channels, take, changed) {
    this.#url = `${base}events?${new URLSearchParams([['format', 'message'], ...channels.map((name) => ['channel', name])])}`;
    this.#take = take;
    this.#changed = changed;
    this.#open();
  }

  close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = undefined;
  }

  /** Makes it anew if it has been silent for too long. */
  check() {
    if (this.#source && Date.now() - this.#heard > this.#silence) this.#lose();
  }

  /** Tries at once, if it is not open or its connection may be another network's. */
  wake(anew) {
    this.check();
    if (anew || !this.#source) this.#open();
  }

  #open() {
    this.close();
    const source = this.#source = new EventSource(this.#url);
    this.#heard = Date.now();
    this.#silence = TIMEOUT_MS;
    let position;
    const on = (name, act) => source.addEventListener(name, (event) => {
      if (source !== this.#source) return;
      this.#heard = Date.now();
      act(event);
    });
    const take = (event, message) => {
      const id = event.lastEventId;
      if (id) this.#take({ prev: position, id, message });
      position = id;
    };
    on('tabcast:open', (event) => {
      this.#silence = JSON.parse(event.data).keep_alive_ms * 2 + 5_000;
      this.#failures = 0;
      this.live = true;
      this.reason = undefined;
      take(event);
      this.#changed();
    });
    on('message', (event) => take(event, JSON.parse(event.data)));
    on('tabcast:keep-alive', take);
    on('tabcast:gap', (event) => { position = undefined; take(event); });
    on('tabcast:full', (event) => this.#lose(JSON.parse(event.data).detail));
    source.onerror = () => { if (source === this.#source) this.#lose(); };
  }

  // A browser would connect again by itself, but without a limit, and not always.
  #lose(reason) {
    this.close();
    this.live = false;
    this.reason = reason;
    this.#timer = setTimeout(() => this.#open(), backoff(this.#failures));
    this.#failures += 1;
    this.#changed();
  }
}

// --- Peer ---

// Over HTTP/1.1 a browser opens six connections to a host, for all its tabs together. So two of them hold a stream: those that
// have one of two Web Locks. What arrives there they pass on over a BroadcastChannel: the first at once, the second what
// the first doesn't, and each serves itself. The browser gives a lock on when its tab is closed or crashes; one that
// hangs is robbed of it. Without Web Locks (http on a LAN address), a shared worker that runs this same file is the first and only
// holder; one that dies is replaced by its next generation.
class Peer {
  /** @type {State} */
  state;
  #base;
  #channels;
  #feed;
  #changed;
  #name;
  #channel;
  #stream;
  // 0 or 1 if it holds a stream for others; undefined if not.
  #slot;
  // Lets go of each slot, or stops waiting for it.
  #letGo = [];
  // Of the shared worker; undefined where there is none.
  #generation;
  #isWorker;
  // What each slot's holder last said of its stream.
  #holders = {};
  #heard = 0;
  // When the holders were asked for a sign of life; undefined once they gave one.
  #asked;
  #ticked = 0;
  #ticker;
  // How far the other holder has got.
  #spoken = '';
  // What the others were last told of its stream.
  #told;

  constructor(base, channels, feed, changed, generation) {
    this.#base = base;
    this.#channels = channels;
    this.#feed = feed;
    this.#changed = changed;
    this.#generation = generation;
    this.#isWorker = generation !== undefined;
    this.#name = `${PROTOCOL} ${base} ${channels}`;
    feed.onstep = (item) => this.#share(item);
    feed.oncurrent = () => this.#update();
  }

  join() {
    this.state = undefined;
    this.#heard = this.#ticked = Date.now();
    this.#ticker = setInterval(() => this.#tick(), TICK_MS);
    if (isMultiplexed(this.#base)) return this.#hold();
    this.#channel = new BroadcastChannel(this.#name);
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    if (this.#isWorker) return this.#hold(0);
    this.#ask();
    if (navigator.locks) {
      this.#request(0);
      this.#request(1);
    } else {
      // The tabs that are there know which generation it is.
      this.#generation = -1;
      setTimeout(() => { if (this.#generation < 0) this.#attach(0); }, SECOND_MS);
    }
  }

  leave() {
    clearInterval(this.#ticker);
    this.#drop();
    this.#letGo.forEach((letGo) => letGo());
    this.#channel?.close();
    this.#channel = undefined;
    this.#holders = {};
    this.#feed.stop();
  }

  /** Looks whether all is well, now. */
  wake(anew) {
    this.#feed.wake();
    this.#stream?.wake(anew);
    if (this.#channel) this.#ask();
  }

  // Holds a stream, for the others too if it has a slot.
  #hold(slot) {
    this.#slot = slot;
    delete this.#holders[slot];
    this.#stream ??= new Stream(this.#base, this.#channels, (item) => this.#feed.take(item), () => this.#update());
    this.#say();
  }

  #drop() {
    this.#stream?.close();
    this.#stream = this.#slot = undefined;
  }

  // Each tab a stream of its own: better than none.
  #alone(why) {
    console.warn(`tabcast: ${why}, so this tab can't share its stream with others; a browser opens six at most`);
    this.#channel.close();
    this.#channel = this.#generation = undefined;
    this.#hold();
  }

  // --- between peers ---

  #say(item = this.#feed.position && { id: this.#feed.position }) {
    if (this.#slot === undefined) return;
    const { reason } = this.#stream;
    this.#channel.postMessage({ slot: this.#slot, generation: this.#generation, live: this.#isLive, reason, item });
  }

  #share(item) {
    if (this.#slot === 0) this.#say(item);
    if (this.#slot === 1) setTimeout(() => { if (!(distance(this.#spoken, item.id) >= 0)) this.#say(item); }, SECOND_MS);
  }

  #ask() {
    this.#asked = Date.now();
    this.#channel.postMessage({ ask: true });
  }

  #hear({ ask, slot, generation, live, reason, item }) {
    if (this.#isWorker) this.#heard = Date.now();
    if (ask) return this.#say();
    if (generation > this.#generation) {
      if (this.#isWorker) return this.#end();
      this.#attach(generation);
    }
    this.#heard = Date.now();
    this.#asked = undefined;
    this.#holders[slot] = { live, reason };
    if (item) {
      this.#spoken = item.id;
      this.#feed.take(item);
    }
    this.#update();
  }

  // Whether its own stream brings everything; undefined if that is not known, or there is none.
  get #isLive() {
    return this.#stream?.live && this.#feed.isBehind ? undefined : this.#stream?.live;
  }

  #update() {
    const own = this.#isLive;
    const holders = Object.values(this.#holders);
    const lives = [own, ...holders.map(({ live }) => live)];
    let { state } = this;
    if (!lives.includes(true)) state = lives.includes(false) ? 'offline' : state;
    else if (!this.#feed.isBehind) state = own ? 'live' : 'shared';
    if (own !== this.#told) {
      this.#told = own;
      this.#say();
    }
    this.state = state;
    if (state) this.#changed(state, state === 'offline' ? this.#stream?.reason ?? holders[0]?.reason : undefined);
  }

  #tick() {
    const now = Date.now();
    // Then it was this tab that slept, and the others may well have said something.
    const slept = now - this.#ticked > 3 * TICK_MS;
    this.#ticked = now;
    this.#stream?.check();
    if (this.#isWorker) return now - this.#heard > UNUSED_MS ? this.#end() : undefined;
    if (!this.#channel || (this.#slot === 0 && this.#stream.live)) return;
    if (slept || (!this.#asked && now - this.#heard > QUIET_MS)) return this.#ask();
    const unanswered = now - this.#asked;
    if (!(unanswered > ANSWER_MS * (1 + Math.random()))) return;
    this.#holders = {};
    this.#update();
    if (this.#slot === undefined || (this.#slot === 1 && unanswered > REPLACE_MS)) this.#replace();
  }

  #replace() {
    this.#heard = Date.now();
    this.#asked = undefined;
    if (this.#generation === undefined) this.#request(0, { steal: true });
    else this.#attach(this.#generation + 1);
  }

  // --- Web Locks ---

  async #request(slot, how) {
    this.#letGo[slot]?.();
    const waiting = new AbortController();
    let release, isOver;
    this.#letGo[slot] = () => { isOver = true; waiting.abort(); release?.(); };
    try {
      await navigator.locks.request(`${this.#name} ${slot}`, how ?? { signal: waiting.signal }, () => {
        if (isOver) return undefined;
        // The first slot's holder needs no other. It still waits for the first if it has the second.
        if (slot === 0) this.#letGo[1]?.();
        this.#hold(slot);
        return new Promise((resolve) => { release = resolve; });
      });
    } catch (error) {
      if (isOver) return;
      if (!release) return this.#alone(error.message);
      // Robbed, because it seemed dead. Its stream would be one too many.
      this.#drop();
      this.#request(0);
      this.#request(1);
    }
  }

  // --- shared worker ---

  #attach(generation) {
    this.#generation = generation;
    this.#heard = Date.now();
    const options = { type: 'module', name: `${PROTOCOL} ${JSON.stringify([this.#base, this.#channels, generation])}` };
    try {
      new SharedWorker(import.meta.url, options).onerror = () => { if (this.#channel) this.#alone('its worker failed'); };
    } catch {
      this.#alone('there is no shared worker');
    }
  }

  #end() {
    this.leave();
    close();
  }
}

// Over HTTP/2 and later all streams share one connection.
function isMultiplexed(base) {
  const entries = ['navigation', 'resource'].flatMap((type) => performance.getEntriesByType(type));
  return entries.some(({ name, nextHopProtocol }) => name.startsWith(base) && /^h[23]/.test(nextHopProtocol));
}

if (globalThis.SharedWorkerGlobalScope && name.startsWith(PROTOCOL)) {
  const [base, channels, generation] = JSON.parse(name.slice(PROTOCOL.length));
  const nothing = () => {};
  new Peer(base, channels, new Feed(base, channels, 0, nothing, nothing), nothing, generation).join();
}
