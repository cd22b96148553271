// A client of the protocol in PROTOCOL.md, on ws and protobufjs. It shares no
// code with throng: chat.proto is loaded at run time.
import { EventEmitter, once } from 'node:events';
import protobuf from 'protobufjs';
import WebSocket from 'ws';

const subprotocol = 'throng.v1+proto';
const inFlight = 16; // sends of one conversation without an answer; the server allows 64 for a connection
const bestRetryMs = 50;
const worstRetryMs = 5000;
const mayPass = new Set(['CODE_RETRY', 'CODE_SEQUENCE', 'CODE_RATE_LIMITED', 'CODE_INTERNAL']);

/** Loads chat.proto and returns the type of frames. */
export async function loadFrames(path) {
  return (await protobuf.load(path)).lookupType('throng.v1.Frame');
}

/**
 * Client is one device. It keeps itself connected until close(), sends again
 * what is not acknowledged, and drops what it has already.
 *
 * Events: "current" (the inbox is empty), "message" (a fresh Deliver), "frame"
 * (every frame), "refused" (a send that can never pass), "gone" (the server said not to
 * connect again).
 */
export class Client extends EventEmitter {
  constructor({ frames, gateways, token }) {
    super();
    Object.assign(this, { frames, gateways, token });
    this.messages = []; // fresh ones, in order
    this.duplicates = 0;
    this.current = false;
    this.connects = 0;
    this.inboxSeq = 0n; // 64 bits: a Number would round it, and the server would forget what never came
    this.nextId = 1;
    this.seen = new Set(); // message ids; a client that runs for long would bound it
    this.outboxes = new Map(); // by conversation
  }

  connect() {
    this.wanted = true;
    this.attempt = 0;
    this.open();
  }

  open() {
    const gateway = this.gateways[Math.floor(Math.random() * this.gateways.length)];
    const socket = new WebSocket(`${gateway}/v1/ws`, subprotocol, { headers: { Authorization: `Bearer ${this.token}` } });
    this.socket = socket;
    this.current = false;
    this.delivered = 0;
    socket.on('open', () => {
      this.connects++;
      this.attempt = 0;
      this.write({ sync: { inboxSeq: String(this.inboxSeq), platform: 'PLATFORM_DESKTOP' } });
      for (const outbox of this.outboxes.values()) {
        outbox.flying = 0;
        outbox.failed = false;
        this.fly(outbox);
      }
    });
    socket.on('message', (data) => this.receive(this.frames.toObject(this.frames.decode(data), { longs: String, enums: String, defaults: true, oneofs: true })));
    socket.on('error', () => {}); // close follows
    socket.on('close', (code) => this.closed(socket, code));
  }

  closed(socket, code) {
    if (socket !== this.socket) return;
    this.socket = null;
    this.current = false;
    this.emit('closed', code);
    if (!this.wanted) return;
    if (code >= 4500 && code < 5000) {
      this.wanted = false;
      this.emit('gone', code);
      return;
    }
    // Full jitter: a gateway that has died has left many clients behind.
    const limit = Math.min(worstRetryMs, bestRetryMs * 2 ** this.attempt++);
    this.retry = setTimeout(() => this.open(), Math.random() * limit);
  }

  /** Ends the connection; connect() can follow. */
  async close() {
    this.wanted = false;
    clearTimeout(this.retry);
    const socket = this.socket;
    if (!socket) return;
    socket.close(1000);
    await once(this, 'closed');
  }

  /** Cuts the connection without a word, as a lost network does. */
  cut() {
    this.socket?.terminate();
  }

  write(frame) {
    if (this.socket?.readyState === WebSocket.OPEN) {
      this.socket.send(this.frames.encode(this.frames.fromObject(frame)).finish());
    }
  }

  receive(frame) {
    switch (frame.kind) {
      case 'deliver': this.deliver(frame.deliver); break;
      case 'sent': this.answered(frame.sent.clientMsgId, frame.sent, null); break;
      case 'error': this.answered(frame.error.clientMsgId, null, frame.error); break;
      case 'current':
        this.current = true;
        this.emit('current');
        break;
      case 'drain': {
        const socket = this.socket;
        setTimeout(() => socket.close(1000), Math.random() * frame.drain.jitterMs);
        break;
      }
    }
    this.emit('frame', frame);
  }

  deliver(message) {
    this.delivered++;
    if (BigInt(message.inboxSeq) > this.inboxSeq) this.inboxSeq = BigInt(message.inboxSeq);
    const id = Buffer.from(message.messageId).toString('hex');
    if (this.seen.has(id)) {
      this.duplicates++;
    } else {
      this.seen.add(id);
      this.messages.push(message);
      this.emit('message', message);
    }
    // The application has it: only now may the server forget it.
    this.write({ ack: { upto: this.delivered } });
  }

  /**
   * Sends to {user} or {group}. The promise is fulfilled with the server's
   * Sent once the message is durable, whatever connections are lost until then.
   */
  send(to, body, fields = {}) {
    const key = to.group ? `group ${to.group}` : `user ${to.user}`;
    if (!this.outboxes.has(key)) this.outboxes.set(key, { seq: 0, chain: null, waiting: [], flying: 0, failed: false });
    const outbox = this.outboxes.get(key);
    return new Promise((resolve, reject) => {
      const send = { ...to, ...fields, clientMsgId: this.nextId++, seq: ++outbox.seq, body: Buffer.from(body) };
      outbox.waiting.push({ send, resolve, reject });
      if (!outbox.failed) this.fly(outbox);
    });
  }

  /** Writes what is not in flight. The first one proves what is before it. */
  fly(outbox) {
    while (this.socket?.readyState === WebSocket.OPEN && outbox.flying < Math.min(inFlight, outbox.waiting.length)) {
      const { send } = outbox.waiting[outbox.flying];
      this.write({ send: outbox.flying === 0 && outbox.chain ? { ...send, chain: outbox.chain } : send });
      outbox.flying++;
    }
  }

  answered(clientMsgId, sent, error) {
    for (const outbox of this.outboxes.values()) {
      const i = outbox.waiting.findIndex(({ send }) => send.clientMsgId === Number(clientMsgId));
      if (i < 0) continue;
      outbox.flying--;
      if (sent) {
        outbox.chain = sent.chain;
        outbox.waiting.splice(i, 1)[0].resolve(sent);
      } else {
        outbox.failed = true;
        if (!mayPass.has(error.code)) this.refuse(outbox, i, error);
      }
      this.settle(outbox);
      return;
    }
  }

  /** A refused message has used up its sequence number if the error has a chain, else not. */
  refuse(outbox, i, error) {
    const [{ reject }] = outbox.waiting.splice(i, 1);
    if (error.chain?.length) {
      outbox.chain = error.chain;
    } else {
      outbox.seq--;
      for (const { send } of outbox.waiting.slice(i)) send.seq--;
    }
    this.emit('refused', error);
    reject(new Error(`${error.code}: ${error.detail}`));
  }

  /** After an error everything unacknowledged goes again, in order, once all in flight is answered. */
  settle(outbox) {
    if (!outbox.failed) {
      this.fly(outbox);
    } else if (outbox.flying === 0) {
      const socket = this.socket;
      setTimeout(() => {
        if (socket !== this.socket) return; // a new connection has sent it all again
        outbox.failed = false;
        this.fly(outbox);
      }, bestRetryMs);
    }
  }

  /** Waits until ok() is true, looking again after each frame. */
  until(what, ok, limitMs = 30_000) {
    return new Promise((resolve, reject) => {
      const finish = (settle) => {
        clearTimeout(timer);
        this.off('frame', look);
        settle();
      };
      const look = () => { if (ok()) finish(resolve); };
      const late = () => new Error(`after ${limitMs / 1000} s: ${what} (${this.messages.length} messages, current: ${this.current}, ${this.connects} connects)`);
      const timer = setTimeout(() => finish(() => reject(late())), limitMs);
      this.on('frame', look);
      look();
    });
  }
}
