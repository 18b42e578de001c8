// The browser client of tabcast: one file, nothing to install or to build.
//
//   import { connect } from '/tabcast.js';
//   const hub = connect();
//   hub.on('chat message', (text, message) => { … });
//   hub.emit('chat message', 'Hello World!');
//
// Hub             what a page uses: `on`, `emit`, the state
// Access          says to the hub who asks: by the page's token, or the browser's cookies
// Outbox          keeps emitted messages until the hub has them
// Feed            delivers each message once, in order, and fetches what is missing
// Retry           sends a request again until the hub answers
// TokenSource     an EventSource that sends a token
// Stream          an EventSource that is replaced whenever it is dead, or may no longer go on
// Peer            shares streams with other tabs; its role decides who holds one:
//   LockHolder      the tabs that have one of two Web Locks
//   WorkerHolder    a shared worker, where there are no Web Locks
//   InWorker        the peer in that worker
//   Alone           each tab, where nothing can be shared or nothing need be

// --- Types ---

/**
 * @typedef {object} Options
 * @property {string | string[]} [channel] Where to listen, `main` by default: names, and patterns such as
 *   `user.*`. `emit` publishes on the first, which must be a name for that.
 * @property {number} [last] How many of the newest kept messages come first, 0 by default.
 * @property {string} [id] The page's own id, for `broadcast`; random by default.
 * @property {string | (() => string | Promise<string>)} [token] The token to send, or what gives one. It is
 *   called again whenever the last one ends or is refused.
 * @property {boolean} [credentials] Whether the browser's cookies go to a hub of another origin.
 * @property {any} [EventSource] The class of the streams, where the browser's is not there, as in Node.js, or
 *   not wanted. Streams of such a class are not shared with other tabs.
 */

/**
 * `data` is what was emitted, and `time` when the hub took it. `expires` is when the hub no longer keeps it.
 * `except` is the id of the page that is not to get it.
 * @template [Data=any]
 * @template {string} [Name=string]
 * @typedef {{ id: string, channel: string, event: Name, data: Data, time: string, expires?: string,
 *   except?: string }} Message
 */

/**
 * `live`: messages arrive by a stream of this tab's own. `shared`: they arrive through another tab.
 * @typedef {'connecting' | 'live' | 'shared' | 'offline'} State
 */

/**
 * `recovered` is how many messages an outage had held back. `reason` is the hub's, if it refuses the page.
 * @typedef {{ state: State, recovered: number, reason?: string }} StateChange
 */

/**
 * Messages after `asked` are no longer kept. `earliest` is the earliest that is kept, null if none is.
 * @typedef {{ asked: string, earliest: string | null }} Gap
 */

/**
 * Why the hub refused a message. `message` is the detail of the hub's problem. `status` is 0 if the page may
 * not read the hub's answer.
 * @typedef {Error & { status: number, detail?: string, field?: string, limit?: number }} Refusal
 */

/**
 * The client's own events, which nobody can publish, and the arguments of their listeners.
 * @typedef {{
 *   connect: [],
 *   disconnect: [reason: string],
 *   'tabcast:state': [change: StateChange],
 *   'tabcast:gap': [gap: Gap],
 *   'tabcast:expiring': [],
 *   'tabcast:deleted': [deleted: { id: string }, message: Message<{ id: string }, 'tabcast:deleted'>],
 * }} OwnEvents
 */

/**
 * The names of the events that `on` takes.
 * @template Events
 * @typedef {(keyof Events & string) | keyof OwnEvents} Names
 */

/**
 * The arguments of a listener.
 * @template Events, Name
 * @typedef {Name extends keyof OwnEvents ? OwnEvents[Name]
 *   : Name extends keyof Events & string ? [data: Events[Name], message: Message<Events[Name], Name>]
 *   : never} ListenerArguments
 */

/** @typedef {{ channel?: string }} EmitOptions */

/**
 * An acknowledgement: called with the message's id once the hub keeps it.
 * @typedef {(id: string) => void} Acknowledged
 */

/**
 * The arguments of `emit` after its data.
 * @typedef {[options?: EmitOptions | Acknowledged, callback?: Acknowledged]} MoreArguments
 */

/**
 * The arguments of `emit` after an event's name. `data` may be left out if it may be undefined.
 * @template Data
 * @typedef {undefined extends Data ? [data?: Data, ...MoreArguments]
 *   : [data: Data, ...MoreArguments]} DataArguments
 */

/**
 * The arguments of `emit` after this event's name. Of the client's own events, none can be emitted.
 * @template Events, Name
 * @typedef {Name extends keyof OwnEvents | `tabcast:${string}` ? [ownEvent: never]
 *   : Name extends keyof Events ? DataArguments<Events[Name]>
 *   : never} EmitArguments
 */

// --- Place ---

// This file's URL, if it is a hub's. In a package the file has another name, and so it has in a bundle.
const [SCRIPT] = import.meta.url.match(/^http.*\/tabcast(\.src)?\.js(\?.*)?$/) ?? [];
// In Node.js, there is none.
const { reportError = console.error } = globalThis;

// --- Limits ---

// The version of the messages between peers. It is part of the names of their channel, locks and worker, so
// that tabs with another version of this file are no peers.
const PROTOCOL = 'tabcast/2';
// How long a stream may take to open, and the hub to answer a request: the first time, and at most. It
// doubles with each failure. The first is short: after an outage a browser tries its old connections, which
// may be dead, and requests that wait on these block all others. The last is long: a slow network is no
// outage.
const TIMEOUT_MS = [3_000, 60_000];
// A request with a body may take longer. By default, a hub allows 30 s for 1 MiB.
const BODY_BYTES_PER_MS = 35;
// The pause after a failure: the first, and the longest. It doubles with each failure.
const BACKOFF_MS = [2_000, 10_000];
// How long a page may take to give a token. Then it has failed, and is asked again.
const TOKEN_MS = 30_000;
// An outbox that holds more refuses messages.
const OUTBOX_MESSAGES = 1_000;
const OUTBOX_BYTES = 32 << 20;
// How many items a feed keeps while it fetches. It fetches the others, too.
const WAITING_ITEMS = 1_000;
// How often a peer checks its own stream, and the holders it depends on.
const TICK_MS = 1_000;
// A peer that hears nothing from holders for QUIET_MS asks them for a sign of life. It replaces them if none
// comes within ANSWER_MS. The second holder replaces a silent first one only after REPLACE_MS: messages
// arrive meanwhile, the fault may pass, and a tab that hangs keeps its connection.
const QUIET_MS = 2_500;
const ANSWER_MS = 1_000;
const REPLACE_MS = 10_000;
// How long the second holder waits for the first to send an item.
const SECOND_MS = 150;

// --- Connect ---

/**
 * Connects to a hub: without a URL, to the hub that this script comes from.
 *
 * In TypeScript, `connect<{ 'chat message': string }>()` gives the data of each event its type.
 * @template {Record<string, any>} [Events=Record<string, any>]
 * @param {string | URL | Options} [url]
 * @param {Options} [options]
 * @returns {Hub<Events>}
 */
export function connect(url, options) {
  if (typeof url === 'string' || url instanceof URL) return new Hub(url, options);
  return new Hub(undefined, url || options);
}

// --- Hub ---

const OWN_EVENTS = /^(connect$|disconnect$|tabcast:)/;
// All that `Options` has.
const OPTIONS = ['channel', 'last', 'id', 'token', 'credentials', 'EventSource'];

/** @template {Record<string, any>} [Events=Record<string, any>] */
class Hub {
  /**
   * The page's own id.
   * @type {string}
   */
  id;
  /** @type {State} */
  state = 'connecting';
  /** Publishes to everyone but this page. */
  broadcast = {
    /** @type {Hub<Events>['emit']} */
    emit: (event, ...rest) => this.#publish(this.id, event, ...rest),
  };
  #channels;
  #access;
  #outbox;
  #history;
  #feed;
  #peer;
  #listeners = [];
  // An AbortController that removes the listeners of `#followPage`. Undefined while disconnected.
  #pageListeners;
  // Whether messages arrived once, and do not arrive now.
  #isInterrupted = false;
  // How many messages the last interruption held back.
  #recovered = 0;

  /**
   * @param {string | URL} [url]
   * @param {Options} [options]
   */
  constructor(url, options = {}) {
    const { channel = 'main', last = 0, id = randomId(), EventSource = globalThis.EventSource } = options;
    const unknown = Object.keys(options).find((name) => !OPTIONS.includes(name));
    if (unknown) throw new TypeError(`no option \`${unknown}\`: there are ${OPTIONS.join(', ')}`);
    if (!url && !SCRIPT) throw new TypeError('a copy of this script needs the URL of a hub');
    if (!EventSource && !options.token) {
      throw new TypeError('no EventSource: give one by the option `EventSource`');
    }
    this.id = id;
    this.#channels = [channel].flat();
    const { href } = url ? new URL(url, globalThis.location?.href) : new URL('.', SCRIPT);
    const channels = [...new Set(this.#channels)].sort();
    const access = this.#access = new Access(href.replace(/\/*$/, '/'), { ...options, EventSource });
    access.onexpiring = () => this.#call('tabcast:expiring');
    this.#outbox = new Outbox(access);
    this.#history = new Retry(access);
    this.#feed = new Feed(access, channels, last);
    this.#feed.onmessage = (message) => this.#deliver(message);
    this.#feed.ongap = (gap) => this.#call('tabcast:gap', gap);
    this.#peer = new Peer(access, channels, this.#feed);
    this.#peer.onstate = (state, reason, isRefused) => this.#become(state, reason, isRefused);
    this.connect();
  }

  /** Whether messages arrive. */
  get connected() {
    return this.state === 'live' || this.state === 'shared';
  }

  get disconnected() {
    return !this.connected;
  }

  /**
   * Neither this nor `timeout` is there: a message is sent until the hub keeps it.
   * @returns {never}
   */
  get volatile() {
    throw new TypeError('no `volatile` and no `timeout`: `emit` sends until the hub keeps the message');
  }

  /**
   * @returns {never}
   */
  get timeout() {
    return this.volatile;
  }

  /**
   * The id up to which all messages were delivered.
   * @returns {string | undefined}
   */
  get position() {
    return this.#feed.position;
  }

  /**
   * Calls the listener with the data of each message of this event, and with the message. The client's own
   * events are `connect`, `disconnect` (why), `tabcast:state` ({ state, recovered, reason? }),
   * `tabcast:gap` ({ asked, earliest }), `tabcast:deleted` ({ id }: the message with this id was deleted) and
   * `tabcast:expiring` (the page's token or cookie ends soon, or has ended: what a listener returns is waited
   * for).
   * @template {Names<Events>} Name
   * @param {Name} event
   * @param {(...values: ListenerArguments<Events, Name>) => void} listener
   */
  on(event, listener) {
    return this.#add({ event, listener });
  }

  /**
   * Like `on`, but for the next event only.
   * @template {Names<Events>} Name
   * @param {Name} event
   * @param {(...values: ListenerArguments<Events, Name>) => void} listener
   */
  once(event, listener) {
    return this.#add({ event, listener, once: true });
  }

  /**
   * Removes a listener of an event, or all listeners of the event, or all listeners but those of `onAny`.
   * @param {Names<Events>} [event]
   * @param {Function} [listener]
   */
  off(event, listener) {
    const isOfEvent = (entry) => entry.event !== undefined && entry.event === (event ?? entry.event);
    return this.#remove(isOfEvent, listener);
  }

  /**
   * Calls the listener with each message. Its event may be none of `Events`: anyone can publish any event.
   * @param {(event: string, data: any, message: Message) => void} listener
   */
  onAny(listener) {
    return this.#add({ listener });
  }

  /**
   * Removes a listener of `onAny`, or all of them.
   * @param {Function} [listener]
   */
  offAny(listener) {
    return this.#remove((entry) => entry.event === undefined, listener);
  }

  /**
   * Publishes a message. Sends it as often as it takes; the hub keeps it once. Resolves with the message's id
   * once the hub keeps it. Rejects with a {@link Refusal}, or if too many messages wait. The data is JSON, a
   * Blob, an ArrayBuffer or a view of one. An ArrayBuffer and a view arrive as a Uint8Array. A callback as
   * the last argument is given the id.
   * @template {keyof Events & string} Name
   * @param {Name} event
   * @param {EmitArguments<Events, Name>} rest
   * @returns {Promise<string>}
   */
  emit(event, ...rest) {
    return this.#publish(undefined, event, ...rest);
  }

  /**
   * Reads messages that are kept, oldest first: the newest, or those next to the message with the id `before`
   * or `after`. Fewer than `limit` are all there are. The page's own broadcasts are among them. Asks as often
   * as it takes. Rejects with a {@link Refusal}.
   * @param {{ before?: string, after?: string, limit?: number }} [query]
   * @returns {Promise<{ messages: Message[], gap?: Gap }>}
   */
  async history(query) {
    /** @type {any} */
    const fields = query;
    const path = `messages?${channelQuery(this.#channels)}&${new URLSearchParams(fields)}`;
    const answer = await this.#history.fetch(path, {});
    return { ...answer, messages: answer.messages.map(decoded) };
  }

  /** Listens again after `disconnect`, from `position` on, with a new token. */
  connect() {
    if (!this.#pageListeners) {
      this.#access.forget();
      this.#pageListeners = new AbortController();
      this.#followPage(this.#pageListeners);
      this.#join();
    }
    return this;
  }

  /** Stops listening. Emitted messages are still sent. */
  disconnect() {
    this.#pageListeners?.abort();
    this.#pageListeners = undefined;
    this.#peer.leave();
    this.#become('offline', 'disconnect');
    return this;
  }

  #join(reason) {
    this.#become('connecting', reason);
    this.#peer.join();
  }

  // A page that is left or frozen may come back. Then the feed goes on from `position`.
  #followPage({ signal }) {
    // Undefined in a worker.
    const { document } = globalThis;
    let isAway = false;
    const on = (target, name, act) => target?.addEventListener?.(name, act, { signal });
    const leave = ({ persisted }) => {
      isAway = true;
      this.#peer.leave(persisted);
    };
    const comeBack = () => {
      if (isAway) this.#join('away');
      else this.#peer.wake();
      isAway = false;
    };
    on(globalThis, 'pagehide', leave);
    on(document, 'freeze', leave);
    on(globalThis, 'pageshow', comeBack);
    on(document, 'resume', comeBack);
    on(document, 'visibilitychange', () => document.hidden || comeBack());
    on(globalThis, 'online', () => {
      this.#outbox.wake();
      this.#peer.wake(true);
    });
  }

  #add(entry) {
    this.#listeners.push(entry);
    return this;
  }

  #remove(isMeant, listener) {
    const isKept = (entry) => !isMeant(entry) || (listener && entry.listener !== listener);
    this.#listeners = this.#listeners.filter(isKept);
    return this;
  }

  async #publish(except, event, ...values) {
    if (OWN_EVENTS.test(event)) throw new TypeError(`"${event}" is an event of the client's own`);
    const callback = typeof values.at(-1) === 'function' && values.pop();
    const [data, options = {}, ...more] = values;
    if (more.length || options?.constructor !== Object || !/^(channel)?$/.test(`${Object.keys(options)}`)) {
      throw new TypeError('`emit` sends one value, as an array or object, and has one option, `channel`');
    }
    const { channel = this.#channels[0] } = options;
    const sent = this.#outbox.send(encode({ event, channel, ...except && { except } }, data));
    if (callback) sent.then(callback, () => {});
    return sent;
  }

  #deliver(message) {
    if (message.except === this.id + (this.#peer.caller ?? '')) return;
    const { event, data } = message = decoded(message);
    if (this.#isInterrupted) this.#recovered += 1;
    this.#call(undefined, event, data, message);
    // Of the events that begin with `tabcast:`, only the hub can publish one.
    if (!/^(dis)?connect$/.test(event)) this.#call(event, data, message);
  }

  // Calls the listeners of the event, or without an event those of `onAny`. Returns what they return.
  #call(event, ...values) {
    return this.#listeners.filter((entry) => entry.event === event).map((entry) => {
      if (entry.once) this.#remove((other) => other === entry);
      try {
        return entry.listener(...values);
      } catch (error) {
        // Reported and not thrown: the other listeners get the message all the same.
        reportError(error);
      }
    });
  }

  /**
   * @param {State} state
   * @param {string} [reason]
   * @param {boolean} [isRefused] Whether the hub refuses the page for this reason.
   */
  #become(state, reason, isRefused) {
    const isNews = isRefused && !this.#outbox.isRefused;
    this.#outbox.refuse(isRefused && reason);
    if (isNews) console.error(`tabcast: ${reason}`);
    else if (state === this.state) return;
    const wasConnected = this.connected;
    this.state = state;
    this.#isInterrupted = !this.connected && (wasConnected || this.#isInterrupted);
    // Not while `connecting`: the feed may not know yet where to begin, and might begin after a message that
    // the outbox sends now.
    if (state !== 'connecting') this.#outbox.open();
    if (this.connected) {
      this.#outbox.wake();
      this.#history.now();
    }
    this.#call('tabcast:state', { state, recovered: this.#recovered, ...reason && { reason } });
    if (this.connected) this.#recovered = 0;
    if (wasConnected && !this.connected) this.#call('disconnect', reason ?? state);
    if (!wasConnected && this.connected) this.#call('connect');
  }
}

// Not `crypto.randomUUID`, which only secure contexts have.
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

// --- Data ---

// The hub keeps JSON to the letter, and any other body as a `data:` URL of the body's type. A parameter `as`
// of BYTES says what else the data was: `uint8array`; `string`, for a string that looks like such a URL; or
// the type of a Blob, if the hub would read a body of that type as something else, or rewrite the type. In
// that type, `_` and two hexadecimal digits stand for a character that a parameter can't have.
const BYTES = 'application/octet-stream';
// The types of which the hub keeps a body and its type as they are.
const KEPT_TYPE =
  /^(?!(multipart|text)\/|application\/(json|x-ndjson|x-www-form-urlencoded)$)[\w!$&.+-]+\/[\w!$&.+-]+$/;

/** @type {(data: any) => data is BlobPart} */
const isBinary = (data) => data instanceof Blob || data instanceof ArrayBuffer || ArrayBuffer.isView(data);

/**
 * Returns a POST's body as a Blob, its type, and its query.
 * @param {Record<string, string>} fields
 * @param {any} [data]
 */
function encode(fields, data = null) {
  const query = `?${new URLSearchParams(fields)}`;
  if (data instanceof Blob) {
    const escaped = data.type.replace(/[^a-z0-9.+-]/g, (char) => `_${char.charCodeAt(0).toString(16)}`);
    const type = KEPT_TYPE.test(data.type) ? data.type : BYTES + (escaped && `;as=${escaped}`);
    return { body: data, type, query };
  }
  if (isBinary(data)) return { body: new Blob([data]), type: `${BYTES};as=uint8array`, query };
  if (typeof data === 'string' && decode(data) !== data) {
    return { body: new Blob([data]), type: `${BYTES};as=string`, query };
  }
  const json = JSON.stringify({ ...fields, data }, (key, value) => {
    if (isBinary(value)) throw new TypeError('binary data is emitted by itself, not in an object');
    return value;
  });
  return { body: new Blob([json]), type: 'application/json', query: '' };
}

function decode(data) {
  const match = typeof data === 'string' && data.slice(0, 400).match(/^data:([^,;/]+\/[^,]+);base64,/);
  if (!match) return data;
  const [url, type] = match;
  let bytes;
  try {
    bytes = Uint8Array.from(atob(data.slice(url.length)), (char) => char.charCodeAt(0));
  } catch {
    return data;
  }
  const [, as] = type.split(`${BYTES};as=`);
  if (as === 'uint8array') return bytes;
  if (as === 'string') return new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes);
  const unescaped = as?.replace(/_(..)/g, (_, hex) => String.fromCharCode(Number(`0x${hex}`)));
  return new Blob([bytes], { type: unescaped ?? type });
}

const decoded = (message) => ({ ...message, data: decode(message.data) });

// --- Requests ---

/** @type {(range: number[], failures: number) => number} */
const doubled = ([first, longest], failures) => Math.min(first * 2 ** failures, longest);

// With jitter, so that not all tabs come back in the same instant after a restart of the hub.
const backoff = (failures) => doubled(BACKOFF_MS, failures) * (0.25 + 0.75 * Math.random());

const channelQuery = (channels) => channels.map((name) => `channel=${encodeURIComponent(name)}`).join('&');

const refusal = (message, more) => Object.assign(new Error(message), { name: 'Refusal', ...more });

// A Refusal, if the hub refuses a request and would refuse it again.
async function refusalOf(answer) {
  const { title, detail, field, limit } = await answer.json().catch(() => null) ?? {};
  const { status } = answer;
  if (status < 400 || status >= 500 || status === 408 || status === 429) return;
  return refusal(detail ?? title ?? `HTTP ${status}`, { status, detail, field, limit });
}

class Access {
  // The hub's URL.
  base;
  // Called when the token or the cookie ends soon, or has ended. Returns an array, of promises or others.
  onexpiring;
  hasToken;
  credentials;
  isAlone;
  #EventSource;
  // Why there is no token, if the page has failed to give one.
  error;
  #ask;
  // A promise of the token. Undefined before it is needed, and once it is of no more use.
  #token;

  /**
   * @param {string} base
   * @param {Options} options
   */
  constructor(base, { token, credentials, EventSource = globalThis.EventSource }) {
    this.base = base;
    this.hasToken = token !== undefined;
    this.credentials = credentials;
    this.#EventSource = EventSource;
    // Tabs share only a stream that each of them could open.
    this.isAlone = !EventSource || EventSource !== globalThis.EventSource;
    this.#ask = typeof token === 'function' ? token : () => token;
  }

  // Fetches what is at this path. If the hub refuses the token, fetches it once more with another.
  /** @type {(path: string, init: RequestInit, isAgain?: boolean) => Promise<Response>} */
  async fetch(path, init, isAgain) {
    const token = this.hasToken ? this.#token ??= this.#get() : undefined;
    const headers = { ...init.headers, ...token && { Authorization: `Bearer ${await token}` } };
    const credentials = this.credentials ? 'include' : 'same-origin';
    const answer = await fetch(this.base + path, { cache: 'no-store', ...init, headers, credentials });
    if (answer.status !== 401 || !token || isAgain) return answer;
    if (token === this.#token) this.forget();
    return this.fetch(path, init, true);
  }

  // Opens an EventSource, or what is like one.
  open(path) {
    if (this.hasToken) return new TokenSource(this, path);
    return new this.#EventSource(this.base + path, { withCredentials: this.credentials });
  }

  forget() {
    this.#token = undefined;
  }

  // Resolves once the page has renewed its cookie, if it does. A new token is asked for when it is needed.
  async renew() {
    this.forget();
    await Promise.all(this.onexpiring()).catch(reportError);
  }

  // Asks the page once for all that need the token meanwhile.
  async #get() {
    const late = new Promise((resolve) => { setTimeout(resolve, TOKEN_MS); });
    try {
      const token = await Promise.race([Promise.resolve().then(this.#ask), late]);
      // Never taken for nobody's: a page that has lost its login is to hear of it.
      if (!token) throw new TypeError('`token` gives no token');
      this.error = undefined;
      return token;
    } catch (error) {
      this.error = error;
      this.#token = undefined;
      throw error;
    }
  }
}

class Retry {
  #access;
  // Why no answer can be read, if that is known: a Refusal.
  refusal;
  #pauses = new EventTarget();

  constructor(access) {
    this.#access = access;
  }

  // Resolves with the JSON of the hub's answer. Rejects with a Refusal if the hub refuses the request. With
  // `isOver`, a refusal is only reported, and the request sent again, until `isOver` returns true.
  async fetch(path, init, isOver) {
    for (let failures = 0; !isOver?.(); failures += 1) {
      const bodyMs = Math.ceil((init.body?.byteLength ?? 0) / BODY_BYTES_PER_MS);
      const signal = AbortSignal.timeout(doubled(TIMEOUT_MS, failures) + bodyMs);
      const answer = await this.#access.fetch(path, { ...init, signal }).catch(() => null);
      const body = answer?.ok && await answer.json().catch(() => null);
      if (body) return body;
      const refused = answer ? !answer.ok && await refusalOf(answer) : this.refusal;
      if (refused) {
        if (!isOver) throw refused;
        reportError(refused);
      }
      const retryAfter = Number(answer?.headers.get('Retry-After')) * 1_000 || 0;
      await new Promise((resolve) => {
        setTimeout(resolve, Math.max(retryAfter, backoff(failures)));
        // A pause that the hub asks for is never cut short.
        if (!retryAfter) this.#pauses.addEventListener('end', resolve, { once: true });
      });
    }
  }

  // Ends the pauses.
  now() {
    this.#pauses.dispatchEvent(new Event('end'));
  }
}

class Outbox {
  #retry;
  #queue = [];
  #bytes = 0;
  #isOpen = false;
  #isSending = false;

  constructor(access) {
    this.#retry = new Retry(access);
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

  wake() {
    this.#retry.now();
  }

  get isRefused() {
    return Boolean(this.#retry.refusal);
  }

  // With a reason, rejects messages that get no answer: no try will get one. Without, sends them again.
  refuse(reason) {
    if (reason && !this.isRefused) this.wake();
    this.#retry.refusal = reason && refusal(reason, { status: 0 });
  }

  // Sends one message at a time, so that the hub keeps the messages in order.
  async #run() {
    if (!this.#isOpen || this.#isSending) return;
    this.#isSending = true;
    for (; this.#queue.length; this.#queue.shift()) {
      const { body: blob, type, query, key, resolve, reject } = this.#queue[0];
      try {
        // Read here: if `fetch` read the Blob of a deleted file, its error would look like one of the
        // network.
        const body = await blob.arrayBuffer();
        const headers = { 'Content-Type': type, 'Idempotency-Key': key };
        resolve((await this.#retry.fetch(`messages${query}`, { method: 'POST', headers, body })).id);
      } catch (error) {
        reject(error);
      }
      this.#bytes -= blob.size;
    }
    this.#isSending = false;
  }
}

// --- Feed ---

// How far `id` is beyond `from`. NaN, with which every comparison is false, if one is missing or their epochs
// differ.
function distance(id = '', from = '-') {
  const [epoch, sequence] = id.split('-');
  const [fromEpoch, fromSequence] = from.split('-');
  return epoch === fromEpoch ? Number(sequence) - Number(fromSequence) : NaN;
}

// A feed takes items from its stream and from other peers: { prev?, id?, message?, isEnd? }.
// - `id` is the id of `message`; without `message`, the id that the journal has reached.
// - `prev`: no message lies between `prev` and `id`. Without `prev`, there may be some. Ids alone don't tell,
//   because the messages of other channels leave holes in the sequence.
// - `isEnd`: the hub says that the journal now ends at `id`.
// - An item without `id` says that the journal may be another one.
class Feed {
  // The id up to which all messages were delivered. Undefined until the feed knows where to begin.
  position;
  // Called with each message.
  onmessage;
  // Called with each gap.
  ongap;
  // Called with each item, in order.
  onstep;
  // Called when no message is missing any more.
  oncurrent;
  // The id of the last message, or where the feed began. No message lies between that and `position`.
  #lastMessage;
  #path;
  #last;
  #retry;
  // The items that came since a fetch began. Undefined while nothing is fetched.
  #waiting;

  constructor(access, channels, last) {
    this.#path = `messages?${channelQuery(channels)}&`;
    this.#last = last;
    this.#retry = new Retry(access);
  }

  // Whether messages are missing.
  get isBehind() {
    return this.#waiting !== undefined;
  }

  // The position, as an item for other peers.
  get item() {
    return this.position && { prev: this.#lastMessage, id: this.position };
  }

  /** @param {{ prev?: string, id?: string, message?: Message, isEnd?: boolean }} item */
  take(item) {
    const { prev, id, message, isEnd } = item;
    if (this.#waiting) {
      if (this.#waiting.push(item) > WAITING_ITEMS) this.#waiting.shift();
      return;
    }
    if (!this.position && !this.#last) this.#lastMessage = this.position = prev ?? id;
    const { position } = this;
    if (position && distance(id, position) <= 0) {
      // A journal that ends before `position` may be an older one, restored from a backup.
      if (isEnd && id !== position) this.#catchUp({});
    } else if (position && distance(position, prev) >= 0) {
      this.#step(id, message);
    } else if (position || id) {
      this.#catchUp(item);
    }
  }

  wake() {
    this.#retry.now();
  }

  stop() {
    this.#waiting = undefined;
    this.wake();
  }

  #step(id, message) {
    const prev = this.position ?? id;
    if (message || !this.position) this.#lastMessage = id;
    this.position = id;
    this.onstep({ prev, id, message });
    if (message) this.onmessage(message);
  }

  /**
   * Fetches the messages up to the item, and what else the hub sends with them.
   * @param {{ id?: string, isEnd?: boolean }} item
   */
  async #catchUp({ id, isEnd }) {
    const waiting = this.#waiting = [];
    // Checked after each message, because a listener may disconnect.
    const isOver = () => this.#waiting !== waiting;
    let from;
    do {
      from = this.position;
      const query = from ? `after=${from}` : `last=${this.#last}`;
      const answer = await this.#retry.fetch(this.#path + query, {}, isOver);
      if (isOver()) return;
      if (answer.gap) {
        this.position = undefined;
        this.onstep({});
        this.ongap(answer.gap);
      }
      for (const message of answer.messages) {
        if (isOver()) return;
        this.#step(message.id, message);
      }
      // An answer is one page of messages. The last page reaches `id`, or is empty.
    } while (from && this.position && this.position !== from && !(distance(this.position, id) >= 0));
    if (isOver()) return;
    if (id && (!this.position || (isEnd && distance(id, this.position) > 0))) this.#step(id);
    this.#waiting = undefined;
    for (const item of waiting) this.take(item);
    if (!this.isBehind) this.oncurrent();
  }
}

// --- Stream ---

// The `readyState` of an EventSource that does not reconnect.
const CLOSED = 2;

// What Stream needs of an EventSource, with a token, which no EventSource sends. It does not reconnect.
class TokenSource extends EventTarget {
  // As an EventSource has it when there is an error: CLOSED unless there was a stream.
  /** @type {number} */
  readyState = CLOSED;
  #over = new AbortController();

  constructor(access, path) {
    super();
    this.#read(access, path);
  }

  close() {
    this.#over.abort();
  }

  async #read(access, path) {
    const { signal } = this.#over;
    try {
      const { ok, body } = await access.fetch(path, { headers: { Accept: 'text/event-stream' }, signal });
      if (ok) {
        this.readyState = 0;
        await this.#parse(body.pipeThrough(new TextDecoderStream()).getReader());
      }
    } catch {
      // The network's error, or the page's: Stream finds out.
    }
    if (!signal.aborted) this.dispatchEvent(new Event('error'));
  }

  // The hub ends lines by LF, and has the data of an event on one line.
  async #parse(reader) {
    let text = '', lastEventId = '';
    for (let part; !(part = await reader.read()).done;) {
      const blocks = (text + part.value).split('\n\n');
      text = /** @type {string} */ (blocks.pop());
      for (const block of blocks) {
        const { id = lastEventId, event = 'message', data } =
          Object.fromEntries(block.split('\n').map((line) => line.split(/: (.*)/s)));
        lastEventId = id;
        if (this.#over.signal.aborted) return;
        if (data) this.dispatchEvent(new MessageEvent(event, { data, lastEventId }));
      }
    }
  }
}

// An EventSource alone gives up on any answer but 200, and can wait on a dead connection for ever.
class Stream {
  // Whether the stream is open. Undefined until the first try has succeeded or failed.
  live;
  // Why the stream is not open, if that is known.
  reason;
  // Whether the hub refuses the stream.
  isRefused;
  #access;
  #path;
  #feed;
  #oncaller;
  #onchange;
  #source;
  // Opened beside the source, to replace it once it is open.
  #next;
  // Of the next try to open the stream, or to replace it.
  #timer;
  // The number of tries since the stream was last open.
  #tries = 0;
  // When the last event came, or the last try began.
  #lastEventAt;
  // The stream is dead if nothing came for longer.
  #longestSilenceMs;

  constructor(access, channels, feed, oncaller, onchange) {
    this.#access = access;
    this.#path = `events?format=message&${channelQuery(channels)}`;
    this.#feed = feed;
    this.#oncaller = oncaller;
    this.#onchange = onchange;
    this.#open();
  }

  close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#next?.close();
    this.#source = this.#next = undefined;
  }

  // Closes the stream if it is dead.
  check() {
    if (this.#source && Date.now() - this.#lastEventAt > this.#longestSilenceMs) this.#lose();
  }

  // Opens the stream now. With `isNetworkNew`, opens it anew: a new network may not carry the old connection.
  wake(isNetworkNew) {
    this.check();
    if (isNetworkNew || !this.#source) this.#open();
  }

  // With `isBeside`, what is open stays open until the new source is.
  #open(isBeside) {
    if (!isBeside) {
      this.close();
      this.#lastEventAt = Date.now();
      this.#longestSilenceMs = doubled(TIMEOUT_MS, this.#tries);
    }
    const source = this.#access.open(this.#path);
    if (isBeside) this.#next = source;
    else this.#source = source;
    this.#tries += 1;
    let prev, stream;
    const isOver = () => source !== this.#source && source !== this.#next;
    const on = (name, act) => source.addEventListener(name, (event) => {
      this.#lastEventAt = Date.now();
      if (!isOver()) act(event, event.data && JSON.parse(event.data));
    });
    const take = ({ lastEventId: id }, message) => {
      this.#feed.take({ prev, id, message });
      prev = id;
    };
    const fail = (reason) => {
      if (source === this.#source) return this.#lose(reason);
      source.close();
      this.#next = undefined;
      this.#timer = setTimeout(() => this.#open(true), backoff(this.#tries));
    };
    on('tabcast:open', (event, opening) => {
      if (source === this.#next) {
        this.#source.close();
        this.#source = source;
        this.#next = undefined;
      }
      this.#longestSilenceMs = opening.keep_alive_ms * 1.5 + 5_000;
      this.#tries = 0;
      this.live = true;
      this.reason = this.isRefused = undefined;
      stream = opening.stream;
      // Before anything is taken: from here on the items are that caller's.
      this.#oncaller(opening.caller ?? null);
      prev = event.lastEventId;
      this.#feed.take({ id: prev, isEnd: true });
      this.#onchange();
    });
    on('message', take);
    on('tabcast:keep-alive', (event) => take(event));
    on('tabcast:gap', (event) => { prev = undefined; take(event); });
    on('tabcast:full', (event, { detail }) => fail(detail));
    on('tabcast:expiring', () => this.#renew(source, `events/${stream}`));
    on('tabcast:expired', async (event, { reason }) => {
      source.close();
      // Opened again at once, but with pauses if the hub says so each time.
      const isFirst = source === this.#source && this.#tries < 2;
      // If the page takes longer to renew its cookie, `check` goes on without.
      if (isFirst) this.#longestSilenceMs = TIMEOUT_MS[0];
      await this.#access.renew();
      if (isOver()) return;
      if (isFirst) this.#open();
      else fail(reason);
    });
    on('error', () => {
      const { error } = this.#access;
      if (error || source !== this.#source || source.readyState !== CLOSED) fail(error?.message);
      else if (this.isRefused) this.#lose(this.reason, true);
      else this.#findReason(source);
    });
  }

  // Has the hub let the stream go on with a new token or cookie, or else opens another.
  async #renew(source, path) {
    await this.#access.renew();
    const signal = AbortSignal.timeout(TOKEN_MS);
    const answer = await this.#access.fetch(path, { method: 'POST', signal }).catch(() => null);
    if (source === this.#source && !this.#next && answer?.status !== 204) this.#open(true);
  }

  // An EventSource that has closed for good does not say why. A fetch does, unless the page may not read its
  // answer. Then the hub is there all the same if it serves this script, which every page may read.
  async #findReason(source) {
    const signal = AbortSignal.timeout(TIMEOUT_MS[0]);
    const answer = await this.#access.fetch(this.#path, { signal }).catch(() => null);
    const isThere = () =>
      fetch(`${this.#access.base}tabcast.js`, { method: 'HEAD', signal }).then(({ ok }) => ok, () => false);
    let reason;
    if (answer?.ok) {
      answer.body?.cancel();
    } else if (answer) {
      reason = (await refusalOf(answer))?.message;
    } else if (await isThere()) {
      const { origin } = location;
      reason = `pages of ${origin} may not listen; if they may, start the hub with --allow-origin ${origin}`;
    }
    if (source === this.#source) this.#lose(reason, Boolean(reason));
  }

  #lose(reason, isRefused) {
    this.close();
    // The time that a failed try has taken counts towards the pause.
    const waited = this.live ? 0 : Date.now() - this.#lastEventAt;
    this.#timer = setTimeout(() => this.#open(), backoff(this.#tries) - waited);
    this.live = false;
    this.reason = reason;
    this.isRefused = isRefused;
    this.#onchange();
  }
}

// --- Peer ---

// Over HTTP/1.1, a browser opens six connections to a host, for all its tabs together. So tabs share streams.
// The tabs with the same hub and channels are peers, and so is a shared worker among them. One or two peers
// are holders: they hold a stream, and send its items to the others over a BroadcastChannel. A holder has a
// slot: the first has 0. The second has 1, and sends only what the first does not.
//
// Peers have the same caller: the hub's name for whoever a stream is for. A hub that is open to all has none.
// A tab learns its caller by a stream of its own. Until then, a tab with a token is by itself, and a tab
// without is among others that may have a cookie, where no item is sent. Then it goes on among its peers, and
// gives up its stream if they have two.
//
// A peer has a role, which decides when the peer holds a stream. A role has `start(peer)`, and may have:
// - stop(), when the peer leaves
// - onholder(generation), when a holder has sent something; the generation is that of InWorker
// - onask(), when another peer asks for a sign of life; without it, a holder gives one
// - onleave(isKept), when another peer leaves, whose page may be kept for the way back
// - onmove(), when the stream brings another caller; without it, the peer goes on with a new role
// - replace(silentMs), when no holder has answered for so long; without it, the peer depends on no other
class Peer {
  // Called with the state, and if it is `offline` with the reason, and whether the hub refuses the page.
  onstate;
  // The holder's slot. Undefined if the peer is no holder.
  slot;
  // The caller. Null for none, or as long as none is known; undefined if the peer is by itself until it is.
  caller;
  #access;
  #channels;
  #feed;
  #role;
  #state;
  #channel;
  #stream;
  // What the holder of each slot has last said of its stream: { live, reason, isRefused }.
  #holders = {};
  // The `live` that this peer has last sent.
  #sentLive;
  // The id of the last item from another holder.
  #receivedId;
  // When a holder last gave a sign of life.
  #lastSignAt;
  // When this peer asked the holders for a sign of life. Undefined once there was one.
  #askedAt;
  #ticker;

  constructor(access, channels, feed) {
    this.#access = access;
    this.#channels = channels;
    this.#feed = feed;
    feed.onstep = (item) => this.#pass(item);
    feed.oncurrent = () => this.#settle();
  }

  join(caller = this.#access.hasToken ? undefined : null, role) {
    this.#ticker = setInterval(() => this.#tick(), TICK_MS);
    this.#moveTo(caller, role);
  }

  leave(isKept) {
    clearInterval(this.#ticker);
    this.drop();
    this.send({ leave: true, isKept });
    this.#part();
    this.#state = undefined;
    this.#feed.stop();
  }

  wake(isNetworkNew) {
    this.#feed.wake();
    this.#stream?.wake(isNetworkNew);
    if (this.#channel) this.ask();
  }

  // For roles:

  // The name of the channel, of a slot's lock, or of a generation's worker.
  name(...more) {
    const { base, credentials } = this.#access;
    const parts = [base, this.#channels, credentials, this.caller, ...more];
    return `${PROTOCOL} ${JSON.stringify(parts)}`;
  }

  // Sends a message to the other peers.
  send(message) {
    this.#channel?.postMessage(message);
  }

  // Where a worker finds this file.
  get script() {
    return SCRIPT ?? `${this.#access.base}tabcast.js`;
  }

  // Opens the channel to other peers. Without the channel, nothing is shared.
  open() {
    this.#channel = new BroadcastChannel(this.name());
    this.#channel.onmessage = ({ data }) => this.#receive(data);
  }

  // Holds a stream. With a slot, the peer is a holder for the others.
  hold(slot) {
    this.slot = slot;
    delete this.#holders[slot];
    this.#stream ??= new Stream(this.#access, this.#channels, this.#feed, (caller) => {
      if (caller === this.caller) return;
      if (this.#role.onmove) this.#role.onmove();
      else this.#moveTo(caller);
    }, () => {
      if (this.#stream.live) this.#feed.wake();
      this.#settle();
    });
    this.say();
  }

  drop() {
    this.#stream?.close();
    this.#stream = this.slot = undefined;
  }

  // Shares nothing any more, because sharing does not work here.
  fallBack(why) {
    if (!this.#channel) return;
    console.warn(`tabcast: each tab needs a connection of its own, of which a browser has six: ${why}`);
    this.#part();
    this.#play(new Alone());
  }

  // Asks the holders for a sign of life.
  ask() {
    this.#askedAt = Date.now();
    this.send({ ask: true });
  }

  // Gives the other peers a sign of life, with an item. Only a holder does.
  say(item = this.#feed.item) {
    if (this.slot === undefined) return;
    const live = this.#sentLive = this.#live;
    const { reason, isRefused } = this.#stream;
    const { generation } = this.#role;
    this.send({ slot: this.slot, generation, live, reason, isRefused, item });
  }

  // After a sign of life, and to give a new holder time for one.
  resetSilence() {
    this.#lastSignAt = Date.now();
    this.#askedAt = undefined;
  }

  // For the peer itself:

  // Goes on among the peers with this caller, with the stream that there is.
  #moveTo(caller, role) {
    this.#part();
    this.caller = caller;
    this.#play(role ?? chooseRole(this.#access, caller));
  }

  #part() {
    this.#role?.stop?.();
    this.#channel?.close();
    this.#channel = this.slot = undefined;
    this.#holders = {};
    this.resetSilence();
  }

  #play(role) {
    this.#role = role;
    role.start(this);
  }

  #pass(item) {
    if (this.slot === 1 && item.id) {
      setTimeout(() => { if (!(distance(this.#receivedId, item.id) >= 0)) this.say(item); }, SECOND_MS);
    } else {
      this.say(item);
    }
  }

  #receive({ ask, leave, isKept, moved, expiring, slot, generation, live, reason, isRefused, item }) {
    if (moved) return this.#learn();
    if (expiring) return this.#access.onexpiring();
    if (leave) return this.#role.onleave?.(isKept);
    if (ask) return this.#role.onask ? this.#role.onask() : this.say();
    this.#role.onholder?.(generation);
    if (!this.#channel) return;
    this.resetSilence();
    if (live && !this.#holders[slot]?.live) this.#feed.wake();
    this.#holders[slot] = { live, reason, isRefused };
    // Not after the first: a lock for the other slot may be on its way.
    const isHeld = Object.values(this.#holders).filter((holder) => holder.live !== false).length > 1;
    if (this.slot === undefined && isHeld) this.drop();
    if (item) {
      this.#receivedId = item.id;
      this.#feed.take(item);
    }
    this.#settle();
  }

  // Asks the hub for the caller: the stream is a worker's.
  async #learn() {
    const channel = this.#channel;
    const answer = await this.#access.fetch('caller', {}).then((answer) => answer.json()).catch(() => ({}));
    if (answer.caller !== undefined && channel === this.#channel) this.#moveTo(answer.caller);
  }

  // Whether the peer's own stream brings every message. Undefined if that is unknown, or if there is no
  // stream.
  get #live() {
    const live = this.#stream?.live;
    return live && this.#feed.isBehind ? undefined : live;
  }

  // Derives the state from the peer's own stream, and from those of the holders.
  #settle() {
    const live = this.#live;
    const holders = Object.values(this.#holders);
    const all = [live, ...holders.map((holder) => holder.live)];
    if (!all.includes(true)) this.#state = all.includes(false) ? 'offline' : this.#state;
    else if (!this.#feed.isBehind) this.#state = live ? 'live' : 'shared';
    if (live !== this.#sentLive) this.say();
    const isOffline = this.#state === 'offline';
    const why = isOffline && [this.#stream, ...holders].find((holder) => holder?.reason);
    if (this.#state) this.onstate?.(this.#state, why?.reason, why?.isRefused);
  }

  #tick() {
    this.#stream?.check();
    if (!this.#role.replace || (this.slot === 0 && this.#stream.live)) return;
    const now = Date.now();
    const askedAt = this.#askedAt;
    if (!askedAt) {
      if (now - this.#lastSignAt > QUIET_MS) this.ask();
    } else if (now - askedAt > ANSWER_MS) {
      // Later, because an answer may be queued behind this call, if this tab itself has hung. At a random
      // time, so that one peer replaces the holders for all.
      setTimeout(() => {
        if (askedAt !== this.#askedAt) return;
        this.#holders = {};
        this.#settle();
        this.#role.replace?.(now - askedAt);
      }, 50 + 450 * Math.random());
    }
  }
}

function chooseRole({ base, hasToken, isAlone }, caller) {
  if (isAlone || caller === undefined) return new Alone();
  // Over HTTP/2 and later, all streams share one connection.
  /** @type {(entry: any) => boolean} */
  const isMultiplexed = (entry) => entry.name.startsWith(base) && /^h[23]/.test(entry.nextHopProtocol);
  const types = ['navigation', 'resource'];
  if (types.some((type) => performance.getEntriesByType(type).some(isMultiplexed))) return new Alone();
  if (navigator.locks) return new LockHolder();
  // A worker could not ask the page for its token.
  return hasToken ? new Alone() : new WorkerHolder();
}

// A tab. It holds a stream while it has one of two Web Locks: there is one for each slot. If a holder is
// closed or crashes, the lock goes to the next tab. If the holders hang, a tab steals the first lock.
class LockHolder {
  #peer;
  // For each slot, a function that releases the lock, or ends the wait for it.
  #release = [];

  start(peer) {
    this.#peer = peer;
    peer.open();
    peer.ask();
    this.#request();
  }

  stop() {
    this.#release.forEach((release) => release());
  }

  replace(silentMs) {
    const { slot } = this.#peer;
    if (slot === 0 || (slot === 1 && silentMs < REPLACE_MS)) return;
    this.#peer.resetSilence();
    this.#lock(0, { steal: true });
  }

  #request() {
    this.#lock(0);
    this.#lock(1);
  }

  async #lock(slot, how) {
    this.#release[slot]?.();
    const waiting = new AbortController();
    let isOver, release;
    this.#release[slot] = () => {
      isOver = true;
      waiting.abort();
      release?.();
    };
    try {
      await navigator.locks.request(this.#peer.name(slot), how ?? { signal: waiting.signal }, () => {
        if (isOver) return;
        // The first holder does not wait for the second lock. The second still waits for the first.
        if (slot === 0) this.#release[1]?.();
        this.#peer.hold(slot);
        return new Promise((resolve) => { release = resolve; });
      });
    } catch (error) {
      if (isOver) return;
      if (!release) return this.#peer.fallBack(error.message);
      // Another tab stole the lock, because this one seemed dead, and holds a stream instead.
      this.#peer.drop();
      this.#request();
    }
  }
}

// A tab where there are no Web Locks, as over plain http on a LAN address. It keeps a shared worker alive,
// which runs this file and holds the stream. If the worker hangs, the tabs go on to a worker of the next
// generation.
class WorkerHolder {
  #peer;
  // The generation of the worker: 0 for the first, -1 while it is unknown.
  #generation = -1;
  #timer;

  start(peer) {
    this.#peer = peer;
    peer.open();
    // A worker that is there already answers with its generation.
    peer.ask();
    this.#timer = setTimeout(() => this.#attach(0), SECOND_MS);
  }

  stop() {
    clearTimeout(this.#timer);
  }

  onholder(generation) {
    if (generation > this.#generation) this.#attach(generation);
  }

  // Whenever a tab leaves, InWorker drops its stream until it is asked for a sign of life. A page that leaves
  // but is kept still counts as the worker's. If it became the last one, the worker would be frozen with its
  // stream. So the other tabs go on to the next generation, which that page does not have.
  onleave(isKept) {
    if (this.#generation < 0) return;
    if (isKept) this.replace();
    else this.#peer.ask();
  }

  replace() {
    this.#attach(this.#generation + 1);
  }

  #attach(generation) {
    clearTimeout(this.#timer);
    this.#generation = generation;
    this.#peer.resetSilence();
    try {
      const name = this.#peer.name(generation);
      const worker = new SharedWorker(this.#peer.script, { type: 'module', name });
      worker.onerror = () => this.#peer.fallBack('the shared worker failed');
    } catch (error) {
      this.#peer.fallBack(error.message);
    }
  }
}

// The shared worker of WorkerHolder. It holds the stream for all tabs.
class InWorker {
  generation;
  #peer;

  constructor(generation) {
    this.generation = generation;
  }

  start(peer) {
    this.#peer = peer;
    peer.open();
    peer.hold(0);
  }

  onask() {
    this.#peer.hold(0);
  }

  // The tabs ask the hub for their caller, and go on to a worker of that caller's.
  onmove() {
    this.#peer.send({ moved: true });
    this.#peer.slot = undefined;
    close();
  }

  // The stream is dropped at once: a worker whose last page is kept for the way back is frozen, soon or
  // already. If there are other pages, they ask for a sign of life, and the worker holds a stream again.
  onleave() {
    this.#peer.drop();
  }

  // The worker ends when there is a newer one.
  onholder(generation) {
    if (generation > this.generation) {
      this.#peer.leave();
      close();
    }
  }
}

// A tab that holds a stream for itself. Over HTTP/2 any number of tabs can, over HTTP/1.1 six.
class Alone {
  start(peer) {
    peer.hold();
  }
}

if (globalThis.SharedWorkerGlobalScope && self.name.startsWith(PROTOCOL)) {
  const [base, channels, credentials, caller, generation] = JSON.parse(self.name.slice(PROTOCOL.length));
  const access = new Access(base, { credentials });
  const feed = new Feed(access, channels, 0);
  feed.onmessage = feed.ongap = () => {};
  const peer = new Peer(access, channels, feed);
  access.onexpiring = () => [peer.send({ expiring: true })];
  peer.join(caller, new InWorker(generation));
  addEventListener('online', () => peer.wake(true));
}
