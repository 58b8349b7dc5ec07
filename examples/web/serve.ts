// A folder server for the page next to it, after `npm run build`. It does the two things that a bundler and a web host do
// otherwise: names of packages become addresses, and the page is cross-origin isolated, without which there is no shared
// memory and the cpu device has one thread.
//   node examples/web/serve.ts [port]
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname } from "node:path";

const root = new URL("../../", import.meta.url);
const TYPES: Readonly<Record<string, string>> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".json": "application/json",
  ".wasm": "application/wasm",
};

/** `import … from "@huggingface/jinja"` → the package's file, as an address on this server. */
function resolvePackages(source: string): string {
  return source.replaceAll(/(\bfrom\s*|\bimport\s*)"(@[\w-]+\/[\w-]+)"/g, (_, keyword: string, name: string) => {
    return `${keyword}"/${import.meta.resolve(name).slice(root.href.length)}"`;
  });
}

const server = createServer(async (request, response) => {
  response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
  response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
  const path = new URL(request.url ?? "/", "http://localhost").pathname;
  const file = new URL(`.${path === "/" ? "/examples/web/index.html" : path}`, root);
  try {
    if (!file.href.startsWith(root.href)) throw new Error("outside");
    const bytes = await readFile(file);
    const type = extname(file.pathname);
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "");
    response.setHeader("Content-Type", TYPES[type] ?? "application/octet-stream");
    response.setHeader("Accept-Ranges", "bytes");
    if (TYPES[type] === "text/javascript") response.end(resolvePackages(bytes.toString()));
    else if (range === null) response.end(bytes);
    else {
      const [from, to] = [Number(range[1]), Math.min(Number(range[2]), bytes.length - 1)];
      response.writeHead(206, { "Content-Range": `bytes ${from}-${to}/${bytes.length}` });
      response.end(bytes.subarray(from, to + 1));
    }
  } catch {
    response.writeHead(404).end();
  }
});

server.listen(Number(process.argv[2] ?? 8080), "127.0.0.1", () => {
  const address = server.address();
  if (typeof address === "object") console.log(`http://localhost:${address?.port}/`);
});
