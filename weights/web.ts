// The files of a model on the web (read by HTTP range requests) or as blobs a page was given. For browsers and Node alike.
// Knows nothing of what the files contain.
import { ModelFileError, OptionError, quote } from "../src/errors.ts";
import {
  allocate,
  destination,
  type ModelFile,
  type ModelFiles,
  placed,
  requirePlainName,
  requireRange,
} from "./files.ts";

/** Asked for when a file is opened: a small file then needs no second request, a large one gives its header's length. */
const FIRST_BYTES = 64 * 2 ** 10;

/** A server that ignores ranges sends the whole file: kept when it is at most this large, refused otherwise. */
const WHOLE_LIMIT = 64 * 2 ** 20;

export interface UrlOptions {
  /** In place of the global fetch: to add headers such as a token, to count, to retry. */
  readonly fetch?: (url: URL, init: RequestInit) => Promise<Response>;
}

/**
 * Files below a web address, e.g. `https://huggingface.co/<owner>/<model>/resolve/main/`. The server must answer range
 * requests, except for files of up to 64 MiB. Throws OptionError OPTION_URL.
 */
export function openUrl(base: string | URL, options: UrlOptions = {}): ModelFiles {
  const root = URL.parse(base);
  if (root === null || !/^https?:$/.test(root.protocol)) {
    throw new OptionError("OPTION_URL", `openUrl: an http or https address is needed, got ${quote(String(base))}`, {
      actual: String(base),
    });
  }
  if (!root.pathname.endsWith("/")) root.pathname += "/";
  const send = options.fetch ?? ((url: URL, init: RequestInit) => fetch(url, init));

  async function request(name: string, init: RequestInit): Promise<Response> {
    requirePlainName(name);
    const url = new URL(root!.pathname + encodeURIComponent(name) + root!.search, root!);
    try {
      return await send(url, init);
    } catch (cause) {
      throw failure("FILE_READ", name, `the request failed (${String(cause)})`, cause);
    }
  }

  return {
    label: root.href,

    async has(name) {
      const response = await request(name, { method: "HEAD" });
      if (response.ok) return true;
      if (response.status === 404 || response.status === 410) return false;
      throw refused(name, response);
    },

    open: (name) => openRemote(name, (init) => request(name, init)),
  };
}

async function openRemote(name: string, request: (init: RequestInit) => Promise<Response>): Promise<ModelFile> {
  const range = (from: number, to: number): RequestInit => ({ headers: { Range: `bytes=${from}-${to}` } });

  /** The whole file, when the server sent it and it is small. */
  async function takeWhole(response: Response): Promise<Uint8Array> {
    const declared = Number(response.headers.get("content-length") ?? 0);
    const bytes = declared <= WHOLE_LIMIT ? await upTo(name, response, WHOLE_LIMIT) : undefined;
    if (bytes !== undefined) return bytes;
    if (!response.bodyUsed) await response.body?.cancel();
    const message = `the server ignores range requests and the file has more than ${WHOLE_LIMIT} bytes; use a server that answers them`;
    throw failure("FILE_RANGE", name, message);
  }

  const first = await request(range(0, FIRST_BYTES - 1));
  const tag = first.headers.get("etag");
  let start: Uint8Array; // the first bytes of the file, perhaps all
  let size: number;
  if (first.status === 200) {
    start = await takeWhole(first);
    size = start.length;
  } else if (first.status === 206 || first.status === 416) {
    // 416 answers any range of an empty file. Some servers do not let a page see Content-Range: then ask for the length.
    size = totalOf(first) ?? (await lengthByHead(name, request));
    const expected = Math.min(FIRST_BYTES, size);
    start = first.status === 416 ? new Uint8Array(0) : await exactly(name, first, allocate(expected, name));
    if (start.length !== expected)
      throw failure("FILE_READ", name, `a server error: range refused (416) for ${size} bytes`);
  } else {
    throw refused(name, first);
  }

  const file: ModelFile = {
    name,
    size,

    async read(byteOffset, byteLength, into) {
      requireRange(file, byteOffset, byteLength);
      const bytes = destination(byteLength, name, into);
      const end = byteOffset + byteLength;
      if (end <= start.length) {
        bytes.set(start.subarray(byteOffset, end));
        return bytes;
      }
      const response = await request(range(byteOffset, end - 1));
      const now = { size: totalOf(response) ?? size, tag: response.headers.get("etag") };
      if (response.status !== 206 || now.size !== size || (tag !== null && now.tag !== null && now.tag !== tag)) {
        await response.body?.cancel();
        if (response.status !== 206 && response.status !== 200 && response.status !== 416)
          throw refused(name, response);
        throw failure("FILE_CHANGED", name, "it was changed on the server while it was open; load the model again");
      }
      return exactly(name, response, bytes);
    },

    async close() {},
  };
  return file;
}

/** Files that the user chose or dropped, or that were kept in the browser. */
export function openBlobs(files: ReadonlyMap<string, Blob>, label = "files"): ModelFiles {
  return {
    label,

    async has(name) {
      requirePlainName(name);
      return files.has(name);
    },

    async open(name) {
      requirePlainName(name);
      const blob = files.get(name);
      if (blob === undefined) throw failure("FILE_MISSING", name, "there is no such file");
      const file: ModelFile = {
        name,
        size: blob.size,
        async read(byteOffset, byteLength, into) {
          requireRange(file, byteOffset, byteLength);
          let content: ArrayBuffer;
          try {
            content = await blob.slice(byteOffset, byteOffset + byteLength).arrayBuffer();
          } catch (cause) {
            throw failure(
              "FILE_CHANGED",
              name,
              "it was changed or removed since it was chosen; choose it again",
              cause,
            );
          }
          return placed(new Uint8Array(content), into);
        },
        async close() {},
      };
      return file;
    },

    list: async () => [...files.keys()],
  };
}

/** The file's size, as Content-Range tells it. */
function totalOf(response: Response): number | undefined {
  const size = /\/(\d{1,15})$/.exec(response.headers.get("content-range") ?? "")?.[1];
  return size === undefined ? undefined : Number(size);
}

async function lengthByHead(name: string, request: (init: RequestInit) => Promise<Response>): Promise<number> {
  const response = await request({ method: "HEAD" });
  if (!response.ok) throw refused(name, response);
  const length = response.headers.get("content-length");
  if (length !== null && /^\d{1,15}$/.test(length)) return Number(length);
  throw failure("FILE_RANGE", name, "the server tells neither Content-Range nor Content-Length; use one that does");
}

/** The body, straight into a buffer of the size that was asked for. */
async function exactly(name: string, response: Response, bytes: Uint8Array): Promise<Uint8Array> {
  const byteLength = bytes.length;
  let length = 0;
  await readBody(name, response, (chunk) => {
    if (length + chunk.length <= byteLength) bytes.set(chunk, length);
    length += chunk.length;
    return length <= byteLength;
  });
  if (length === byteLength) return bytes;
  const sent = length < byteLength ? `only ${length}` : "more";
  throw failure("FILE_READ", name, `${byteLength} bytes were asked for, the server sent ${sent}; try again`);
}

/** The body, or undefined when it is longer than `limit`. Its length is not known before: it may arrive compressed. */
async function upTo(name: string, response: Response, limit: number): Promise<Uint8Array | undefined> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  await readBody(name, response, (chunk) => {
    chunks.push(chunk);
    length += chunk.length;
    return length <= limit;
  });
  if (length > limit) return undefined;
  const bytes = allocate(length, name);
  let at = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, at);
    at += chunk.length;
  }
  return bytes;
}

/** Gives the body piece by piece; when `take` answers false the rest is not downloaded. */
async function readBody(name: string, response: Response, take: (chunk: Uint8Array) => boolean): Promise<void> {
  const reader = response.body?.getReader();
  try {
    for (let part = await reader?.read(); part?.value !== undefined; part = await reader?.read()) {
      if (!take(part.value)) return await reader?.cancel();
    }
  } catch (cause) {
    throw failure("FILE_READ", name, `the connection broke (${String(cause)}); try again`, cause);
  }
}

function refused(name: string, response: Response): ModelFileError {
  const { status } = response;
  if (status === 404 || status === 410) return failure("FILE_MISSING", name, "there is no such file on the server");
  if (status === 401 || status === 403)
    return failure("FILE_ACCESS", name, `the server does not permit it (${status}); is a token needed?`);
  return failure("FILE_READ", name, `the server answered ${status}; try again later`);
}

function failure(code: string, name: string, message: string, cause?: unknown): ModelFileError {
  return new ModelFileError(code, `${quote(name)}: ${message}`, { file: name, cause });
}
