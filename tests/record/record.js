// In every page of a tab, before all else: what the client delivers is written down, and each `ping`
// that is for this tab is answered with a `pong`. The tab's number is `window.number`.
if (location.protocol === 'http:') {
  const record = window.record = { ready: false, since: null, newest: 0, delivered: [], asked: 0, acknowledged: [], refused: [], slowest: {} };
  window.answer = (n) => {
    record.asked += 1;
    hub.emit('pong', { n, from: number, at: Date.now() })
      .then((id) => record.acknowledged.push([n, id]), (error) => record.refused.push(String(error)));
  };
  import(`${location.origin}/tabcast.js`).then(({ connect }) => {
    window.hub = connect();
    hub.onAny((event, data, message) => {
      // The client's own, as `tabcast:state`, has no id.
      if (!message?.id) return;
      const delay = Date.now() - data.at;
      record.delivered.push([message.id, event, data.n, data.from ?? null, delay]);
      record.slowest[data.from ?? 'curl'] = Math.max(record.slowest[data.from ?? 'curl'] ?? 0, delay);
      if (event !== 'ping') return;
      record.newest = data.n;
      if (data.to === number) answer(data.n);
    });
    const look = async () => {
      if (record.ready || !['live', 'shared'].includes(hub.state)) return;
      record.ready = true;
      // All that is kept after this, the tab is to get.
      const { messages } = await (await fetch('/messages?last=1')).json();
      record.since = messages[0]?.id ?? '';
    };
    hub.on('tabcast:state', look);
    look();
  });
}
