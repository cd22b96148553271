// Media of messages over HTTP, by PROTOCOL.md: uploads by tus that go on where
// they broke off, and downloads by range. The bytes are the client's: it encrypts
// them, and tells the key and the hash in the message.
import { createCipheriv, createDecipheriv, createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import { buffer } from 'node:stream/consumers';

const retryMs = 100;
const tries = 100;
const mayPass = new Set([408, 409, 423, 429, 500, 502, 503, 504]);
const sha256 = (bytes) => createHash('sha256').update(bytes).digest();
const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

/** Encrypts a picture: what is uploaded, and what the message says of it. */
export function seal(picture) {
  const [key, iv] = [randomBytes(32), randomBytes(16)];
  const cipher = createCipheriv('aes-256-ctr', key, iv);
  const bytes = Buffer.concat([cipher.update(picture), cipher.final()]);
  const [k, v, sum] = [key, iv, sha256(bytes)].map((b) => b.toString('base64'));
  return { bytes, body: JSON.stringify({ key: k, iv: v, sha256: sum }) };
}

/** Checks what was downloaded by the hash in the message, and decrypts it. */
export function unseal(bytes, body) {
  const said = JSON.parse(body);
  if (sha256(bytes).toString('base64') !== said.sha256) throw new Error('this is not what was sent');
  const cipher = createDecipheriv('aes-256-ctr', Buffer.from(said.key, 'base64'), Buffer.from(said.iv, 'base64'));
  return Buffer.concat([cipher.update(bytes), cipher.final()]);
}

/** Media is one user at the media service. */
export class Media {
  constructor({ base, token }) {
    Object.assign(this, { base, token });
    this.offsets = []; // at which interrupted uploads went on
  }

  /** Answers {status, headers, body}. With cut the connection breaks after the body, of which more was announced. */
  async request(method, url, headers = {}, body = Buffer.alloc(0), cut = false) {
    const announced = cut ? body.length + 1 : body.length;
    const request = http.request(new URL(url, this.base), {
      method, headers: { Authorization: `Bearer ${this.token}`, 'Tus-Resumable': '1.0.0', 'Content-Length': announced, ...headers },
    });
    if (cut) {
      request.on('error', () => {}); // it is ours
      await new Promise((resolve) => { request.write(body, resolve); });
      request.destroy();
      return null;
    }
    request.end(body);
    const [response] = await once(request, 'response');
    return { status: response.statusCode, headers: response.headers, body: await buffer(response) };
  }

  /** The same, again while the answer says that it may pass later. */
  async ask(want, ...args) {
    for (let i = 1; ; i++) {
      const answer = await this.request(...args);
      if ([want].flat().includes(answer.status)) return answer;
      if (i === tries || !mayPass.has(answer.status)) throw new Error(`${args[0]} ${args[1]}: ${answer.status} ${answer.body}`);
      await pause(retryMs);
    }
  }

  /** Uploads bytes in pieces and returns the media id. The connection breaks in the middle of piece number cutAt. */
  async upload(kind, bytes, { piece = 1 << 16, cutAt = -1 } = {}) {
    const metadata = { kind, sha256: sha256(bytes).toString('hex') };
    const { headers } = await this.ask(201, 'POST', '/v1/uploads/', {
      'Upload-Length': bytes.length,
      'Upload-Metadata': Object.entries(metadata).map(([k, v]) => `${k} ${Buffer.from(v).toString('base64')}`).join(','),
    });
    const at = headers.location;
    for (let offset = 0, n = 0; offset < bytes.length; n++) {
      const part = bytes.subarray(offset, offset + piece);
      const patch = { 'Upload-Offset': offset, 'Content-Type': 'application/offset+octet-stream' };
      const answer = n === cutAt
        ? await this.request('PATCH', at, patch, part.subarray(0, part.length / 2), true)
        : await this.ask([204, 409], 'PATCH', at, patch, part);
      if (answer?.status === 204) {
        offset = Number(answer.headers['upload-offset']);
      } else { // as after any lost connection; 409: some of what was sent before came after this was asked
        offset = Number((await this.ask(200, 'HEAD', at)).headers['upload-offset']);
        this.offsets.push(offset);
      }
    }
    return Buffer.from(at.split('/').at(-1), 'hex');
  }

  path(message) { return `/v1/media/${Buffer.from(message.media).toString('hex')}`; }

  grant(message) { return { 'Media-Grant': Buffer.from(message.mediaGrant).toString('base64url') }; }

  /** Downloads what a message refers to in two ranges, and says that it is here. */
  async download(message, border) {
    const range = (r) => this.ask(206, 'GET', this.path(message), { ...this.grant(message), Range: `bytes=${r}` });
    const parts = [await range(`0-${border - 1}`), await range(`${border}-`)];
    const bytes = Buffer.concat(parts.map((p) => p.body));
    const said = parts[0].headers['repr-digest']; // of the whole
    if (said !== `sha-256=:${sha256(bytes).toString('base64')}:`) throw new Error(`the service says ${said}`);
    await this.ask(204, 'POST', `${this.path(message)}/fetched`, this.grant(message));
    return bytes;
  }
}
