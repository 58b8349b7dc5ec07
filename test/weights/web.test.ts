import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { openBlobs, openUrl } from "../../weights/web.ts";
import { errorOf, readBothWays } from "./memory.ts";

const BIG = Uint8Array.from({ length: 200_000 }, (_, i) => i % 251);

/** What the server does; changed by tests. */
let answer: (request: IncomingMessage, response: ServerResponse) => void;
let log: string[];
let server: Server;
let base: string;

beforeEach(async () => {
  log = [];
  answer = serveRanges({ "big.bin": BIG, "small.json": BIG.slice(0, 10), empty: new Uint8Array(0) });
  server = createServer((request, response) => {
    log.push(`${request.method} ${request.url} ${request.headers.range ?? ""}`.trim());
    answer(request, response);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  base = `http://127.0.0.1:${(server.address() as AddressInfo).port}/model/`;
});
afterEach(async () => {
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});

function serveRanges(files: Record<string, Uint8Array>, headers: () => Record<string, string> = () => ({})) {
  return (request: IncomingMessage, response: ServerResponse): void => {
    const content = files[decodeURIComponent(request.url!.slice("/model/".length))];
    if (content === undefined) return void response.writeHead(404).end();
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "");
    if (range === null)
      return void response.writeHead(200, { "content-length": content.length, ...headers() }).end(content);
    const [from, to] = [Number(range[1]), Math.min(Number(range[2]), content.length - 1)];
    if (from >= content.length)
      return void response.writeHead(416, { "content-range": `bytes */${content.length}` }).end();
    response.writeHead(206, { "content-range": `bytes ${from}-${to}/${content.length}`, ...headers() });
    response.end(content.subarray(from, to + 1));
  };
}

describe("openUrl", () => {
  test("reads ranges, and a small file in one request", async () => {
    const files = openUrl(base);
    const big = await files.open("big.bin");
    expect(big.size).toBe(200_000);
    expect(await big.read(199_990, 10)).toEqual(BIG.slice(199_990));
    expect(await big.read(100, 50)).toEqual(BIG.slice(100, 150));
    expect(await big.read(0, 200_000)).toEqual(BIG);
    const small = await files.open("small.json");
    expect(await small.read(0, small.size)).toEqual(BIG.slice(0, 10));
    expect(log).toEqual([
      "GET /model/big.bin bytes=0-65535",
      "GET /model/big.bin bytes=199990-199999",
      "GET /model/big.bin bytes=0-199999",
      "GET /model/small.json bytes=0-65535",
    ]);
  });

  test("an empty file", async () => {
    const file = await openUrl(base).open("empty");
    expect([file.size, (await file.read(0, 0)).length]).toEqual([0, 0]);
  });

  test("has, and a base without a slash at its end", async () => {
    const files = openUrl(base.slice(0, -1));
    expect([await files.has("big.bin"), await files.has("nope"), files.label]).toEqual([true, false, base]);
  });

  test("names cannot leave the folder", async () => {
    const files = openUrl(base);
    for (const name of ["../x", "/x", "http://elsewhere/x", "//elsewhere/x", "a\\..\\b"]) {
      expect((await errorOf(() => files.open(name))).code).toBe("FILE_NAME");
    }
    await errorOf(() => files.open("%2e%2e?a#b"));
    expect(log).toEqual(["GET /model/%252e%252e%3Fa%23b bytes=0-65535"]);
  });

  test.each(["file:///etc/passwd", "data:,x", "nonsense", ""])("%j is no base", async (address) => {
    expect((await errorOf(() => openUrl(address))).code).toBe("OPTION_URL");
  });

  test.each([
    [404, "FILE_MISSING"],
    [401, "FILE_ACCESS"],
    [403, "FILE_ACCESS"],
    [500, "FILE_READ"],
  ])("status %i", async (status, code) => {
    answer = (_, response) => void response.writeHead(status).end();
    const error = await errorOf(() => openUrl(base).open("x"));
    expect([error.code, error.file]).toEqual([code, "x"]);
  });

  test("no server", async () => {
    const error = await errorOf(() => openUrl("http://127.0.0.1:1/").open("x"));
    expect(error.code).toBe("FILE_READ");
  });

  test("a server that ignores ranges: a small file is kept, a large one is not downloaded", async () => {
    answer = (_, response) => void response.writeHead(200).end(BIG);
    const file = await openUrl(base).open("big.bin");
    expect(await file.read(150_000, 5)).toEqual(BIG.slice(150_000, 150_005));
    expect(log).toHaveLength(1);

    let sent = 0;
    answer = (_, response) => {
      response.writeHead(200, { "content-length": 5e9 });
      response.write(BIG);
      sent++;
    };
    const error = await errorOf(() => openUrl(base).open("huge.bin"));
    expect([error.code, sent]).toEqual(["FILE_RANGE", 1]);
  });

  test("a server that ignores ranges and hides the length is cut off at the limit", async () => {
    const chunk = new Uint8Array(2 ** 20);
    let sent = 0;
    answer = (_, response) => {
      response.writeHead(200);
      const more = (): void => {
        while (!response.destroyed && response.write(chunk)) sent++;
        if (!response.destroyed) response.once("drain", more);
      };
      more();
    };
    expect((await errorOf(() => openUrl(base).open("endless"))).code).toBe("FILE_RANGE");
    expect(sent).toBeLessThan(200);
  });

  test("into a given place, from the first bytes and from the server", async () => {
    const file = await openUrl(base).open("big.bin");
    for (const from of [100, 70_000]) {
      expect(await readBothWays(50, (into) => file.read(from, 50, into))).toEqual(BIG.slice(from, from + 50));
    }
  });

  test("a page that may not see Content-Range asks for the length", async () => {
    const inner = answer;
    const hidden = async (url: URL, init: RequestInit): Promise<Response> => {
      const response = await fetch(url, init);
      const headers = new Headers(response.headers);
      headers.delete("content-range");
      return new Response(response.body, { status: response.status, headers });
    };
    answer = inner;
    const file = await openUrl(base, { fetch: hidden }).open("big.bin");
    expect(file.size).toBe(200_000);
    expect(await file.read(70_000, 5)).toEqual(BIG.slice(70_000, 70_005));
    expect(log[1]).toBe("HEAD /model/big.bin");
  });

  test("too few bytes, too many bytes, a broken connection", async () => {
    const file = await openUrl(base).open("big.bin");
    const range = { "content-range": "bytes 0-99999/200000" };
    answer = (_, response) => void response.writeHead(206, range).end(BIG.slice(0, 10));
    expect((await errorOf(() => file.read(0, 100_000))).code).toBe("FILE_READ");
    answer = (_, response) => void response.writeHead(206, range).end(BIG);
    expect((await errorOf(() => file.read(0, 100_000))).code).toBe("FILE_READ");
    answer = (_, response) => {
      response.writeHead(206, { ...range, "content-length": 100_000 });
      response.write(BIG.slice(0, 10), () => response.destroy());
    };
    expect((await errorOf(() => file.read(0, 100_000))).code).toBe("FILE_READ");
  });

  test("a file that changes on the server", async () => {
    let tag = '"1"';
    answer = serveRanges({ "big.bin": BIG }, () => ({ etag: tag }));
    const file = await openUrl(base).open("big.bin");
    expect(await file.read(70_000, 1)).toEqual(BIG.slice(70_000, 70_001));
    tag = '"2"';
    expect((await errorOf(() => file.read(70_000, 1))).code).toBe("FILE_CHANGED");
    answer = serveRanges({ "big.bin": BIG.slice(0, 199_999) });
    expect((await errorOf(() => file.read(70_000, 1))).code).toBe("FILE_CHANGED");
    answer = (_, response) => void response.writeHead(200).end(BIG);
    expect((await errorOf(() => file.read(70_000, 1))).code).toBe("FILE_CHANGED");
    expect((await errorOf(() => file.read(199_999, 2))).code).toBe("FILE_READ");
  });
});

describe("openBlobs", () => {
  const files = openBlobs(new Map([["a", new Blob([BIG])]]), "dropped files");

  test("reads ranges", async () => {
    const file = await files.open("a");
    expect([file.size, files.label, await files.has("a"), await files.has("b"), await files.list?.()]).toEqual([
      200_000,
      "dropped files",
      true,
      false,
      ["a"],
    ]);
    expect(await readBothWays(7, (into) => file.read(100_000, 7, into))).toEqual(BIG.slice(100_000, 100_007));
  });

  test("errors", async () => {
    const file = await files.open("a");
    expect((await errorOf(() => file.read(199_999, 2))).code).toBe("FILE_READ");
    expect((await errorOf(() => files.open("b"))).code).toBe("FILE_MISSING");
    expect((await errorOf(() => files.open("../b"))).code).toBe("FILE_NAME");
  });

  test("a file that changed on the user's disk", async () => {
    const blob = new Blob(["abc"]);
    blob.slice = () =>
      ({ arrayBuffer: () => Promise.reject(new DOMException("gone", "NotReadableError")) }) as unknown as Blob;
    const file = await openBlobs(new Map([["a", blob]])).open("a");
    expect((await errorOf(() => file.read(0, 3))).code).toBe("FILE_CHANGED");
  });
});
