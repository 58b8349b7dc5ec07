// How fast a device's threads can read memory at all: what speeds are compared with. Which way of reading is the fastest differs
// from machine to machine, so several are tried and the best is kept. Knows no model.
import type { CpuOptions } from "../../backends/cpu/index.ts";
import { allocate } from "../../weights/files.ts";
import type { Backend, Program, WeightSource } from "../backend.ts";
import { createBackend, type DeviceInfo } from "../devices.ts";

/** Larger than most caches. */
const PROBE_BYTES = 256 << 20;
/** Of argmax: enough that every thread has some. */
const ROWS = 64;
/** Of products: what one row of x takes is next to nothing. */
const COLUMNS = 4096;
/** Written at once, again and again. */
const CHUNK = 1 << 20;
/** Passes by which the kinds are compared, after one that brings their code and memory in. */
const TRIES = 3;

export interface ProbeOptions extends Pick<CpuOptions, "threads" | "variant" | "allowV8Flags"> {
  readonly device: DeviceInfo["name"];
  /** How much to read in a pass, a multiple of 1 MiB. Default 256 MiB. */
  readonly bytes?: number;
  readonly signal?: AbortSignal;
}

export interface Probe {
  /** The kind that read the fastest. */
  readonly kind: string;
  /** All kinds that were tried, 10⁹ bytes a second. */
  readonly tried: readonly { readonly kind: string; readonly gbs: number }[];
  readonly byteLength: number;
  /** Reads all of it once; milliseconds. */
  pass(): Promise<number>;
  dispose(): Promise<void>;
}

interface Kind {
  readonly name: string;
  /** See CpuOptions. */
  readonly streams?: number;
  record(backend: Backend, bytes: number): Promise<Program>;
}

/** argmax does next to nothing with what it reads, on every device. */
const ARGMAX: Kind = {
  name: "argmax of f32",
  record(backend, bytes) {
    const x = backend.alloc([ROWS, bytes / ROWS / 4], "f32", "probe");
    const chunk = someFloats(new Uint8Array(CHUNK));
    for (let at = 0; at < bytes; at += CHUNK) backend.write(x, chunk, at);
    return backend.record("probe", (ops) => ({ out: ops.argmax(x) }));
  },
};

/** One row times a weight, as in decode steps: what reads memory in them has to be among what they are compared with. */
function oneRow(format: "f32" | "int8", streams: number): Kind {
  return {
    name: `one row of ${format}, ${streams === 1 ? "1 stream" : `${streams} streams`} a thread`,
    streams,
    async record(backend, bytes) {
      const weight = await backend.loadWeight(someWeight(format, bytes));
      const x = backend.alloc([1, COLUMNS], "f32", "probe");
      backend.write(x, someFloats(new Uint8Array(4 * COLUMNS)));
      return backend.record("probe", (ops) => ({ out: ops.linear(x, weight) }));
    },
  };
}

const CPU_KINDS = [ARGMAX, oneRow("f32", 1), oneRow("f32", 4), oneRow("int8", 4)];

/** Tries each kind in a backend of its own, one after the other, and opens the fastest again: all at once would take much memory. */
export async function createProbe({ bytes = PROBE_BYTES, ...options }: ProbeOptions): Promise<Probe> {
  const kinds = options.device === "cpu" ? CPU_KINDS : [ARGMAX];
  const tried = [];
  for (const kind of kinds) {
    const { pass, dispose } = await open(kind, bytes, options);
    try {
      await pass();
      let fastest = Number.POSITIVE_INFINITY;
      for (let i = 0; i < TRIES; i++) fastest = Math.min(fastest, await pass());
      tried.push({ kind: kind.name, gbs: bytes / fastest / 1e6 });
    } finally {
      await dispose();
    }
    options.signal?.throwIfAborted();
  }
  const best = tried.reduce((best, one) => (one.gbs > best.gbs ? one : best));
  const kind = kinds.find(({ name }) => name === best.kind)!;
  return { kind: kind.name, tried, byteLength: bytes, ...(await open(kind, bytes, options)) };
}

async function open(
  kind: Kind,
  bytes: number,
  { device, threads, variant, allowV8Flags }: ProbeOptions,
): Promise<Pick<Probe, "pass" | "dispose">> {
  const backend = await create(device, { threads, variant, allowV8Flags, streams: kind.streams });
  try {
    const program = await kind.record(backend, bytes);
    return {
      async pass() {
        const start = performance.now();
        backend.run(program);
        await backend.read(program.outputs.out, 0, 4);
        return performance.now() - start;
      },
      dispose: () => backend.dispose(),
    };
  } catch (error) {
    await backend.dispose();
    throw error;
  }
}

async function create(device: ProbeOptions["device"], options: CpuOptions): Promise<Backend> {
  if (device !== "cpu") return (await createBackend(device, {})).backend;
  const { createCpuBackend } = await import("../../backends/cpu/index.ts");
  // INT8 with the least arithmetic.
  return createCpuBackend({ ...options, precision: "fast" });
}

// ---------------------------------------------------------------------------------------------- what is read

/** Fills with numbers from 0 to 1: memory that was never written may be one page of zeros, over and over. */
function someFloats(bytes: Uint8Array): Uint8Array {
  new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4).forEach((_, i, all) => {
    all[i] = (i * 0.618) % 1;
  });
  return bytes;
}

function someWeight(format: "f32" | "int8", bytes: number): WeightSource {
  const outs = bytes / COLUMNS / (format === "f32" ? 4 : 1);
  const sizes = { data: bytes, scales: format === "f32" ? 0 : 4 * outs, blocks: 0 };
  const floats = someFloats(new Uint8Array(CHUNK));
  return {
    name: "probe.weight",
    shape: [outs, COLUMNS],
    format,
    group: format === "f32" ? undefined : COLUMNS,
    byteLength: (plane) => sizes[plane],
    async read(_plane, _byteOffset, byteLength, into = allocate(byteLength, "probe")) {
      for (let at = 0; at < byteLength; at += floats.length) into.set(floats.subarray(0, byteLength - at), at);
      return into;
    },
  };
}
