// A page in TypeScript, whose import finds its types by `paths` in tsconfig.json. All of this compiles.
import { connect, type Gap, type Message, type Refusal } from 'http://127.0.0.1:3000/tabcast.js';

// Whether two types are the same. `any` is the same as nothing else.
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const is = <_Same extends true>(): void => {};

// Without a map of events, as in the README.
const loose = connect();
loose.on('chat message', (text) => {
  is<Same<typeof text, any>>();
  console.log(text.length);
});
loose.once('build', ({ ok }, message) => console.log(ok, message.channel));
loose.emit('chat message', 'Hello World!');
loose.broadcast.emit('chat message', 'Hello others!', { channel: 'lobby' });
loose.emit('done');
const name: string = `a name that was ${'made'}`;
loose.on(name, (data, message) => console.log(data, message.id)).emit(name, [1, 2, 3]);
connect('https://hub.example.org', { channel: ['a', 'b'], last: 10, id: 'me' });
connect(new URL('https://hub.example.org')).disconnect().connect();
connect({ token: 'tct_x' });
connect({ token: () => 'tct_x', credentials: true });
connect('https://hub.example.org', { token: async () => (await fetch('/token')).text() });
connect({ channel: 'a' }).off();

// With one. An interface does as well as a type.
interface Events {
  'chat message': string;
  'user joined': { id: number; name: string };
  picture: Blob;
  cleared: undefined;
}
const hub = connect<Events>({ last: 50 });
hub.on('chat message', (text, message) => {
  is<Same<typeof text, string>>();
  is<Same<typeof message, Message<string, 'chat message'>>>();
});
hub.once('user joined', ({ id, name }, { time, except }) => {
  is<Same<typeof id, number>>();
  is<Same<typeof name, string>>();
  is<Same<typeof time, string>>();
  is<Same<typeof except, string | undefined>>();
});
hub.on('cleared', (data) => is<Same<typeof data, undefined>>());
hub.emit('user joined', { id: 1, name: 'Ada' }).then((id) => is<Same<typeof id, string>>());
hub.emit('picture', new Blob(), { channel: 'pictures' });
hub.emit('cleared');
hub.broadcast.emit('chat message', 'Hello others!');
hub.emit('chat message', '').catch((refusal: Refusal) => console.log(refusal.status, refusal.field));

// What is kept.
hub.history({ before: 'e-1', limit: 100 }).then(({ messages: [first], gap }) => {
  is<Same<typeof first, Message>>();
  is<Same<typeof gap, Gap | undefined>>();
});

// The client's own events.
hub.on('connect', () => console.log(hub.state));
hub.on('disconnect', (reason) => is<Same<typeof reason, string>>());
hub.on('tabcast:state', ({ state, recovered, reason }) => {
  is<Same<typeof state, 'connecting' | 'live' | 'shared' | 'offline'>>();
  is<Same<typeof recovered, number>>();
  is<Same<typeof reason, string | undefined>>();
});
hub.on('tabcast:deleted', ({ id }, { channel, expires }) => {
  is<Same<typeof id, string>>();
  is<Same<typeof channel, string>>();
  is<Same<typeof expires, string | undefined>>();
});
hub.on('tabcast:gap', ({ asked, earliest }) => {
  is<Same<typeof asked, string>>();
  is<Same<typeof earliest, string | null>>();
});
hub.on('tabcast:expiring', async (...none) => is<Same<typeof none, []>>());
loose.on('tabcast:gap', (gap) => is<Same<typeof gap, { asked: string; earliest: string | null }>>());

// Everything else.
const listener = (text: string) => console.log(text);
hub.on('chat message', listener).off('chat message', listener).off('picture').off();
hub.onAny((event, data, message) => {
  is<Same<typeof event, string>>();
  is<Same<typeof data, any>>();
  is<Same<typeof message, Message>>();
}).offAny();
is<Same<typeof hub.connected, boolean>>();
is<Same<typeof hub.position, string | undefined>>();
is<Same<typeof hub.id, string>>();
is<Same<typeof hub.disconnected, boolean>>();
hub.emit('chat message', '', (id) => is<Same<typeof id, string>>());
hub.broadcast.emit('cleared', undefined, { channel: 'a' }, (id) => console.log(id));
loose.emit('done', (id: string) => console.log(id));
connect('https://hub.example.org', { EventSource: class {} });
