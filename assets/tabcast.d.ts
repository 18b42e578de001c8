/**
 * Connects to a hub: without a URL, to the hub that this script comes from.
 *
 * In TypeScript, `connect<{ 'chat message': string }>()` gives the data of each event its type.
 * @template {Record<string, any>} [Events=Record<string, any>]
 * @param {string | URL | Options} [url]
 * @param {Options} [options]
 * @returns {Hub<Events>}
 */
export function connect<Events extends Record<string, any> = Record<string, any>>(url?: string | URL | Options, options?: Options): Hub<Events>;
export type Options = {
    /**
     * Where to listen, `main` by default: names, and patterns such as
     * `user.*`. `emit` publishes on the first, which must be a name for that.
     */
    channel?: string | string[] | undefined;
    /**
     * How many of the newest kept messages come first, 0 by default.
     */
    last?: number | undefined;
    /**
     * The page's own id, for `broadcast`; random by default.
     */
    id?: string | undefined;
    /**
     * The token to send, or what gives one. It is
     * called again whenever the last one ends or is refused.
     */
    token?: string | (() => string | Promise<string>) | undefined;
    /**
     * Whether the browser's cookies go to a hub of another origin.
     */
    credentials?: boolean | undefined;
    /**
     * The class of the streams, where the browser's is not there, as in Node.js, or
     * not wanted. Streams of such a class are not shared with other tabs.
     */
    EventSource?: any;
};
/**
 * `data` is what was emitted, and `time` when the hub took it. `expires` is when the hub no longer keeps it.
 * `except` is the id of the page that is not to get it.
 */
export type Message<Data = any, Name extends string = string> = {
    id: string;
    channel: string;
    event: Name;
    data: Data;
    time: string;
    expires?: string;
    except?: string;
};
/**
 * `live`: messages arrive by a stream of this tab's own. `shared`: they arrive through another tab.
 */
export type State = "connecting" | "live" | "shared" | "offline";
/**
 * `recovered` is how many messages an outage had held back. `reason` is the hub's, if it refuses the page.
 */
export type StateChange = {
    state: State;
    recovered: number;
    reason?: string;
};
/**
 * Messages after `asked` are no longer kept. `earliest` is the earliest that is kept, null if none is.
 */
export type Gap = {
    asked: string;
    earliest: string | null;
};
/**
 * Why the hub refused a message. `message` is the detail of the hub's problem. `status` is 0 if the page may
 * not read the hub's answer.
 */
export type Refusal = Error & {
    status: number;
    detail?: string;
    field?: string;
    limit?: number;
};
/**
 * The client's own events, which nobody can publish, and the arguments of their listeners.
 */
export type OwnEvents = {
    connect: [];
    disconnect: [reason: string];
    "tabcast:state": [change: StateChange];
    "tabcast:gap": [gap: Gap];
    "tabcast:expiring": [];
    "tabcast:deleted": [deleted: {
        id: string;
    }, message: Message<{
        id: string;
    }, "tabcast:deleted">];
};
/**
 * The names of the events that `on` takes.
 */
export type Names<Events> = (keyof Events & string) | keyof OwnEvents;
/**
 * The arguments of a listener.
 */
export type ListenerArguments<Events, Name> = Name extends keyof OwnEvents ? OwnEvents[Name] : Name extends keyof Events & string ? [data: Events[Name], message: Message<Events[Name], Name>] : never;
export type EmitOptions = {
    channel?: string;
};
/**
 * An acknowledgement: called with the message's id once the hub keeps it.
 */
export type Acknowledged = (id: string) => void;
/**
 * The arguments of `emit` after its data.
 */
export type MoreArguments = [options?: EmitOptions | Acknowledged, callback?: Acknowledged];
/**
 * The arguments of `emit` after an event's name. `data` may be left out if it may be undefined.
 */
export type DataArguments<Data> = undefined extends Data ? [data?: Data, ...MoreArguments] : [data: Data, ...MoreArguments];
/**
 * The arguments of `emit` after this event's name. Of the client's own events, none can be emitted.
 */
export type EmitArguments<Events, Name> = Name extends keyof OwnEvents | `tabcast:${string}` ? [ownEvent: never] : Name extends keyof Events ? DataArguments<Events[Name]> : never;
/** @template {Record<string, any>} [Events=Record<string, any>] */
declare class Hub<Events extends Record<string, any> = Record<string, any>> {
    /**
     * @param {string | URL} [url]
     * @param {Options} [options]
     */
    constructor(url?: string | URL, options?: Options);
    /**
     * The page's own id.
     * @type {string}
     */
    id: string;
    /** @type {State} */
    state: State;
    /** Publishes to everyone but this page. */
    broadcast: {
        /** @type {Hub<Events>['emit']} */
        emit: Hub<Events>["emit"];
    };
    /** Whether messages arrive. */
    get connected(): boolean;
    get disconnected(): boolean;
    /**
     * Neither this nor `timeout` is there: a message is sent until the hub keeps it.
     * @returns {never}
     */
    get volatile(): never;
    /**
     * @returns {never}
     */
    get timeout(): never;
    /**
     * The id up to which all messages were delivered.
     * @returns {string | undefined}
     */
    get position(): string | undefined;
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
    on<Name extends Names<Events>>(event: Name, listener: (...values: ListenerArguments<Events, Name>) => void): this;
    /**
     * Like `on`, but for the next event only.
     * @template {Names<Events>} Name
     * @param {Name} event
     * @param {(...values: ListenerArguments<Events, Name>) => void} listener
     */
    once<Name extends Names<Events>>(event: Name, listener: (...values: ListenerArguments<Events, Name>) => void): this;
    /**
     * Removes a listener of an event, or all listeners of the event, or all listeners but those of `onAny`.
     * @param {Names<Events>} [event]
     * @param {Function} [listener]
     */
    off(event?: Names<Events>, listener?: Function): this;
    /**
     * Calls the listener with each message. Its event may be none of `Events`: anyone can publish any event.
     * @param {(event: string, data: any, message: Message) => void} listener
     */
    onAny(listener: (event: string, data: any, message: Message) => void): this;
    /**
     * Removes a listener of `onAny`, or all of them.
     * @param {Function} [listener]
     */
    offAny(listener?: Function): this;
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
    emit<Name extends keyof Events & string>(event: Name, ...rest: EmitArguments<Events, Name>): Promise<string>;
    /**
     * Reads messages that are kept, oldest first: the newest, or those next to the message with the id `before`
     * or `after`. Fewer than `limit` are all there are. The page's own broadcasts are among them. Asks as often
     * as it takes. Rejects with a {@link Refusal}.
     * @param {{ before?: string, after?: string, limit?: number }} [query]
     * @returns {Promise<{ messages: Message[], gap?: Gap }>}
     */
    history(query?: {
        before?: string;
        after?: string;
        limit?: number;
    }): Promise<{
        messages: Message[];
        gap?: Gap;
    }>;
    /** Listens again after `disconnect`, from `position` on, with a new token. */
    connect(): this;
    /** Stops listening. Emitted messages are still sent. */
    disconnect(): this;
    #private;
}
export {};
