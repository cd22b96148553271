// Does with the client of chat.js what people do, and checks what arrives.
// Standard input says where, as JSON:
//   {"proto": path of chat.proto, "gateways": ["ws://host:port"], "media": "http://host:port", "group": "id",
//    "people": {"ann": {"user": "id", "token": "..."}, "ben": ..., "cleo": ...}}
// The three are members of the group. Exit code 0: everything held.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { text } from 'node:stream/consumers';
import { Client, loadFrames } from './chat.js';
import { Media, seal, unseal } from './media.js';

const setup = JSON.parse(await text(process.stdin));
const frames = await loadFrames(setup.proto);
const clients = {};
const media = {};
for (const [name, { token }] of Object.entries(setup.people)) {
  clients[name] = new Client({ frames, gateways: setup.gateways, token });
  media[name] = new Media({ base: setup.media, token });
}
const { ann, ben, cleo } = clients;
const toBen = { user: setup.people.ben.user };
const toGroup = { group: setup.group };

const numbered = (name, n) => Array.from({ length: n }, (_, i) => `${name} ${i + 1}`);
const sendAll = (client, to, bodies) => Promise.all(bodies.map((body) => client.send(to, body)));
const got = (client, name) => client.messages.map(({ body }) => body.toString()).filter((body) => body.startsWith(`${name} `));
const receivesAll = async (client, name, want) => {
  await client.until(`all of "${name}"`, () => got(client, name).length >= want.length);
  assert.deepEqual(got(client, name), want);
};

const checks = {
  async 'three devices log in'() {
    for (const client of [ann, ben, cleo]) {
      client.connect();
      await client.until('current', () => client.current);
    }
  },
  async 'direct messages arrive in order, and the sender learns of it'() {
    const want = numbered('direct', 40);
    const receipt = (frame) => frame.kind === 'receipts' && frame.receipts.receipts.some((r) => r.peer === toBen.user && r.deliveredSeq === '40');
    let delivered = false;
    ann.on('frame', (frame) => { delivered ||= receipt(frame); });
    await sendAll(ann, toBen, want);
    await receivesAll(ben, 'direct', want);
    await ann.until('the receipt', () => delivered);
  },
  async 'group messages of two senders arrive in the order of each'() {
    const mine = numbered('by ann', 40);
    const hers = numbered('by cleo', 40);
    await Promise.all([sendAll(ann, toGroup, mine), sendAll(cleo, toGroup, hers)]);
    await receivesAll(ben, 'by ann', mine);
    await receivesAll(ben, 'by cleo', hers);
    await receivesAll(cleo, 'by ann', mine);
  },
  async 'who was away gets it all, in order, and only once'() {
    await ben.close();
    const want = numbered('away', 250);
    await sendAll(ann, toBen, want);
    ben.connect();
    await receivesAll(ben, 'away', want);
    await ben.until('current', () => ben.current);
    const before = ben.messages.length + ben.duplicates;
    await ben.close();
    ben.connect();
    await ben.until('current', () => ben.current);
    assert.equal(ben.messages.length + ben.duplicates, before, 'acknowledged messages came again');
  },
  async 'a connection that is cut loses and repeats nothing'() {
    const want = numbered('cut', 100);
    const sent = sendAll(ann, toBen, want);
    await ann.until('some answers', () => ann.outboxes.get(`user ${toBen.user}`).waiting.length < 90);
    ann.cut();
    ben.cut();
    await sent;
    await receivesAll(ben, 'cut', want);
  },
  async 'a picture is uploaded over an interruption, sent, and downloaded by who gets it'() {
    const picture = randomBytes(400_000);
    const { bytes, body } = seal(picture);
    const id = await media.ann.upload('image', bytes, { cutAt: 3 });
    const [wentOn] = media.ann.offsets;
    assert.ok(wentOn >= 3 << 16 && wentOn < bytes.length, `the upload went on at ${wentOn}`);
    await ann.send(toBen, body, { kind: 'KIND_IMAGE', media: id });
    const its = (m) => id.equals(m.media);
    await ben.until('the picture', () => ben.messages.some(its));
    const message = ben.messages.find(its);
    assert.equal(message.messageKind ?? message.kind, 'KIND_IMAGE');
    await assert.rejects(media.cleo.download(message, 1000), / 403 /); // a grant is nothing in other hands
    assert.deepEqual(unseal(await media.ben.download(message, 150_000), message.body), picture);
  },
  async 'what is not allowed is refused, and costs nothing else'() {
    await assert.rejects(ann.send({ group: '1' }, 'nobody is in this group'), /CODE_/);
    await ann.send(toBen, 'after 1');
    await receivesAll(ben, 'after', ['after 1']);
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`ok: ${name}`);
  } catch (err) {
    failed++;
    console.log(`FAILED: ${name}: ${err.stack}`);
    break; // what follows builds on it
  }
}
await Promise.all(Object.values(clients).map((client) => client.close()));
process.exitCode = failed ? 1 : 0;
