// What the types keep a page from doing. A line after `@ts-expect-error` without an error is an error.
import { connect, type Message } from 'http://127.0.0.1:3000/tabcast.js';

type Events = {
  'chat message': string;
  'user joined': { id: number; name: string };
  cleared: undefined;
};
const hub = connect<Events>();

// Names that are none of the map's.
// @ts-expect-error
hub.on('chat massage', () => {});
// @ts-expect-error
hub.once('chat massage', () => {});
// @ts-expect-error
hub.off('chat massage');
// @ts-expect-error
hub.emit('chat massage', 'Hello World!');
// @ts-expect-error
hub.on('tabcast:start', () => {});

// Data of another type.
// @ts-expect-error
hub.emit('chat message', 1);
// @ts-expect-error
hub.emit('user joined', { id: 1 });
// @ts-expect-error
hub.broadcast.emit('chat message', { text: 'Hello World!' });
// @ts-expect-error
hub.emit('chat message');
// @ts-expect-error
hub.emit('cleared', 'all');
// @ts-expect-error
hub.on('chat message', (text: number) => console.log(text));
// @ts-expect-error
hub.on('user joined', ({ nickname }) => console.log(nickname));
// @ts-expect-error
hub.on('chat message', (text, message: Message<number>) => console.log(message));
// @ts-expect-error
hub.on('connect', (data) => console.log(data));
// @ts-expect-error
hub.on('disconnect', (reason: number) => console.log(reason));
// @ts-expect-error
hub.on('tabcast:gap', (gap) => console.log(gap.latest));
// @ts-expect-error
hub.on('tabcast:state', ({ state }) => state === 'closed');

// The client's own events can't be emitted, with a map or without.
// @ts-expect-error
hub.emit('connect');
// @ts-expect-error
connect().emit('connect');
// @ts-expect-error
connect().emit('disconnect', 'bye');
// @ts-expect-error
connect().emit('tabcast:state', {});
// @ts-expect-error
connect().emit('tabcast:anything', {});
// @ts-expect-error
connect().on('tabcast:state', ({ states }) => console.log(states));

// Options.
// @ts-expect-error
connect({ channels: ['a'] });
// @ts-expect-error
connect({ last: '10' });
// @ts-expect-error
connect(1);
// @ts-expect-error
hub.emit('chat message', 'Hello World!', { channels: 'a' });

// What can't be set.
// @ts-expect-error
hub.connected = true;
// @ts-expect-error
hub.position = 'x-1';

// What Socket.IO's client has.
// @ts-expect-error
hub.emit('chat message', 'one', 'two');
// @ts-expect-error
hub.volatile.emit('chat message', 'one');
// @ts-expect-error
hub.timeout(5000).emit('chat message', 'one');
// @ts-expect-error
connect({ transports: ['websocket'] });
