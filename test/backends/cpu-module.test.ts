import { readFileSync } from "node:fs";
import { afterEach, describe, expect, test, vi } from "vitest";
import { canPair, features, loadModule } from "../../backends/cpu/module.ts";

afterEach(() => {
  vi.unstubAllGlobals();
});

/** Ids of a module's sections, in order. */
function sections(bytes: Uint8Array): number[] {
  const ids: number[] = [];
  for (let at = 8; at < bytes.length; ) {
    ids.push(bytes[at++]);
    let size = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[at++];
      size |= (byte & 127) << shift;
      if (byte < 128) break;
    }
    at += size;
  }
  return ids;
}

describe.each([
  [true, "relaxed"],
  [true, "simd"],
  [false, "relaxed"],
  [false, "simd"],
] as const)("kernels with shared memory %s, %s", (shared, arithmetic) => {
  test("import nothing but memory, and are compiled once", async () => {
    const module = await loadModule(shared, arithmetic);
    expect(WebAssembly.Module.imports(module)).toEqual([{ module: "env", name: "memory", kind: "memory" }]);
    expect(await loadModule(shared, arithmetic)).toBe(module);
  });

  test("write nothing when a thread instantiates them", () => {
    const name = `kernels.${shared ? "threads" : "single"}-${arithmetic}.wasm`;
    const ids = sections(readFileSync(new URL(`../../backends/cpu/${name}`, import.meta.url)));
    const [code, start, data] = [10, 8, 11];
    expect(ids).toContain(code);
    expect(ids).not.toContain(start);
    expect(ids).not.toContain(data);
  });
});

test("this machine has what the fastest variant needs", () => {
  expect(features()).toEqual({ simd: true, relaxed: true, threads: true });
});

test("vectors are paired where V8 is known", () => {
  expect(canPair()).toBe(process.arch === "x64" && process.versions.v8.startsWith("14.6."));
  const elsewhere = (changed: object) => {
    vi.stubGlobal("process", {
      arch: "x64",
      release: { name: "node" },
      versions: { v8: "14.6.202.34-node.34" },
      ...changed,
    });
    return canPair();
  };
  expect(elsewhere({})).toBe(true);
  expect(elsewhere({ versions: { v8: "14.7.1" } })).toBe(false);
  expect(elsewhere({ versions: { v8: "14.6.2", electron: "42.0.0" } })).toBe(false);
  expect(elsewhere({ arch: "arm64" })).toBe(false);
  expect(elsewhere({ release: { name: "bun" } })).toBe(false);
  vi.stubGlobal("process", undefined);
  expect(canPair()).toBe(false);
});

test("no threads without shared memory, nor where waiting is forbidden", () => {
  vi.stubGlobal("document", {});
  expect(features().threads).toBe(false);
  vi.unstubAllGlobals();
  vi.stubGlobal("SharedArrayBuffer", undefined);
  expect(features().threads).toBe(false);
});
