// How fast the cpu backend's kernels are: products with weights of each format and attention over each type of cache, beside the
// rate at which the same threads can read memory, and fused ops beside their base ops. A table for people, then one JSON line for scripts.
//
//   npm run bench:kernels -- [--threads n] [--variant relaxed|simd|single] [--v8-flags]
//     [--precision exact|high|fast] [--only text] [--list] [--cpu-time]
//
// --only leaves out all rows without that text in their names, --list prints the names and measures nothing. --cpu-time counts the time that the threads ran, not the time that went by: for machines with other work, with --threads 1.
import { parseArgs } from "node:util";
import { type CpuBackend, type CpuOptions, createCpuBackend } from "../backends/cpu/index.ts";
import {
  type FusedOps,
  type KvCache,
  type KvSpec,
  type KvType,
  kvPositionBytes,
  type Ops,
  type Program,
  type Routing,
  type Shape,
  type Step,
  sizeOf,
  type Tensor,
  type Weight,
  type WeightFormat,
  type WeightSource,
} from "../src/backend.ts";
import { median } from "../src/bench/measure.ts";
import { createProbe } from "../src/bench/probe.ts";
import { OptionError } from "../src/errors.ts";
import { lower } from "../src/ops.ts";
import { MAX_THREADS, PRECISIONS } from "../src/options.ts";
import { Taps } from "../src/tap.ts";
import { placed } from "../weights/files.ts";
import { CPU, fastest, inTurn, WALL } from "./timing.ts";
import { choice, orExit, whole } from "./usage.ts";

const VARIANTS = ["auto", "relaxed", "simd", "single"] as const;

const { options, description, only, list, clock } = await orExit("bench:kernels", async () => {
  const { values: flags } = parseArgs({
    options: {
      threads: { type: "string" },
      variant: { type: "string", default: "auto" },
      only: { type: "string", default: "" },
      list: { type: "boolean", default: false },
      precision: { type: "string", default: "high" },
      "v8-flags": { type: "boolean", default: false },
      "cpu-time": { type: "boolean", default: false },
    },
  });
  const options: CpuOptions = {
    threads: flags.threads === undefined ? undefined : whole("--threads", flags.threads, 1, MAX_THREADS),
    variant: choice("--variant", flags.variant, VARIANTS),
    precision: choice("--precision", flags.precision, PRECISIONS),
    allowV8Flags: flags["v8-flags"],
  };
  const backend = await createCpuBackend(options);
  await backend.dispose();
  const clock = flags["cpu-time"] ? CPU : WALL;
  return { options, description: backend.caps.description, only: flags.only, list: flags.list, clock };
});

/** Bytes of a weight per element, scales left out. */
const BYTES: Record<WeightFormat, number> = { f32: 4, f16: 2, bf16: 2, int8: 1, mxfp4: 0.5 };

/** `blocks`: INT8 as a GGUF file has it. */
type Blocks = "q8_0" | "q4_0";
type Format = readonly [format: WeightFormat, blocks?: Blocks];

const Q8_0: Format = ["int8", "q8_0"];
const Q4_0: Format = ["int8", "q4_0"];

function nameOf([format, blocks]: Format): string {
  return blocks ?? format;
}

/** Positions of a page, as the runner has them. */
const PAGE = 64;

/** What does not fit a cache: products over so many bytes of weights read memory, as they do in a model. */
const LARGE = 192 << 20;

// ---------------------------------------------------------------------------------------------- inputs

let seed = 1;
function random(): number {
  seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
  return seed / 2 ** 32;
}

/** A block of plausible values of a format, which weights repeat. */
function block(format: WeightFormat): Uint8Array {
  const bytes = new Uint8Array(1 << 16);
  switch (format) {
    case "f32":
      new Float32Array(bytes.buffer).forEach((_, i, all) => {
        all[i] = random() - 0.5;
      });
      return bytes;
    case "f16":
    case "bf16": // any sign and mantissa, one exponent
      new Uint16Array(bytes.buffer).forEach((_, i, all) => {
        all[i] = (format === "f16" ? 0x3000 : 0x3e00) | (random() * 0x80) | (random() < 0.5 ? 0x8000 : 0);
      });
      return bytes;
    case "int8":
    case "mxfp4":
      return bytes.map(() => random() * 256);
    default:
      return format satisfies never;
  }
}

/** Bytes of a block of 32 values, with a scale of two. */
const BLOCK_BYTES: Record<Blocks, number> = { q8_0: 34, q4_0: 18 };

/** Random bytes or nibbles, in each block after a scale of 0.01. */
function blocksOf(blocks: Blocks, byteLength: number): Uint8Array {
  const values = block("int8");
  const size = BLOCK_BYTES[blocks];
  const bytes = new Uint8Array(byteLength);
  for (let at = 0; at < byteLength; at += size) {
    const from = (32 * (at / size)) % values.length;
    bytes.set([0x1f, 0x21], at);
    bytes.set(values.subarray(from, from + size - 2), at + 2);
  }
  return bytes;
}

/** INT8 has a scale for each row, or those of its blocks. */
function source([format, blocks]: Format, shape: Shape): WeightSource {
  const values = block(format);
  const group = blocks === undefined ? shape.at(-1)! : 32;
  const count = sizeOf(shape);
  const scales = { f32: 0, f16: 0, bf16: 0, int8: (4 * count) / group, mxfp4: count / 32 }[format];
  return {
    name: `bench.${format}.weight`,
    shape,
    format,
    group: format === "int8" ? group : undefined,
    blocks,
    byteLength: (plane) =>
      ({ data: count * BYTES[format], scales, blocks: blocks ? (BLOCK_BYTES[blocks] * count) / 32 : 0 })[plane],
    async read(plane, _, byteLength, into) {
      if (plane === "blocks") return placed(blocksOf(blocks!, byteLength), into);
      const bytes = new Uint8Array(byteLength);
      if (plane === "data") {
        for (let at = 0; at < byteLength; at += values.length) {
          bytes.set(values.subarray(0, byteLength - at), at);
        }
      } else if (format === "mxfp4") bytes.fill(120);
      else new Float32Array(bytes.buffer).fill(0.01);
      return placed(bytes, into);
    },
  };
}

/** What a case records; what it returns keeps the rest. */
type Build = (ops: Ops) => Tensor;

/** A backend and what a case puts on it. */
class Bench {
  readonly backend: CpuBackend;

  constructor(backend: CpuBackend) {
    this.backend = backend;
  }

  weight(format: Format, ...shape: number[]): Promise<Weight> {
    return this.backend.loadWeight(source(format, shape));
  }

  /** So many that they do not fit a cache. */
  async weights(
    format: Format,
    shape: Shape,
    copies = Math.ceil(LARGE / source(format, shape).byteLength(format[1] === undefined ? "data" : "blocks")),
  ): Promise<Weight[]> {
    return Promise.all(Array.from({ length: copies }, () => this.backend.loadWeight(source(format, shape))));
  }

  floats(...shape: number[]): Tensor {
    return this.#put(
      shape,
      Float32Array.from({ length: sizeOf(shape) }, () => random() - 0.5),
    );
  }

  ints(values: readonly number[], shape: Shape = [values.length]): Tensor {
    return this.#put(shape, Int32Array.from(values));
  }

  #put(shape: Shape, values: Float32Array | Int32Array): Tensor {
    const tensor = this.backend.alloc(shape, values instanceof Float32Array ? "f32" : "i32", "bench");
    this.backend.write(tensor, new Uint8Array(values.buffer));
    return tensor;
  }

  /** Rows of one sequence from position `from` on, which has `pages` pages in their order. */
  step(from = 0, rows = 1, pages = 1): Step {
    const all = (value: (i: number) => number) => this.ints(Array.from({ length: rows }, (_, i) => value(i)));
    const [tokens, sequences, ropeRows, selected] = [0, 0, 0, 0].map((zero) => all(() => zero));
    const table = this.ints(
      Array.from({ length: pages }, (_, i) => i),
      [1, pages],
    );
    const positions = all((i) => from + i);
    return { rows, count: this.ints([rows]), tokens, positions, sequences, pages: table, ropeRows, selected };
  }

  /** A cache that holds `keys` positions of one sequence. */
  async cache(spec: Pick<KvSpec, "dtype" | "kvHeads" | "headDim" | "ring">, keys: number): Promise<KvCache> {
    const pages = Math.ceil(keys / PAGE);
    const cache = this.backend.allocKv({ label: "bench", sequences: 1, pageSize: PAGE, pages, ...spec });
    const rows = Math.min(keys, 256);
    const x = this.floats(rows, spec.kvHeads * spec.headDim);
    for (let from = 0; from < keys; from += rows) {
      const step = this.step(from, Math.min(rows, keys - from), pages);
      const program = await this.backend.record("fill", (ops) => {
        ops.kvAppend(cache, x, x, step);
        return {};
      });
      this.backend.run(program);
      this.backend.release(program);
    }
    return cache;
  }

  /** Milliseconds of the fastest run. */
  async time(build: Build): Promise<number> {
    const program = await this.#record(build, "on");
    const ms = fastest(() => this.backend.run(program), clock);
    this.backend.release(program);
    return ms;
  }

  /** Medians with the fused ops, and of how many times as long the base ops took beside each such run. */
  async compare(build: Build): Promise<{ ms: number; speedup: number }> {
    const programs = [await this.#record(build, "on"), await this.#record(build, "off")];
    const [native, lowered] = inTurn(
      programs.map((program) => () => this.backend.run(program)),
      clock,
    );
    for (const program of programs) this.backend.release(program);
    return { ms: median(native), speedup: median(lowered.map((ms, round) => ms / native[round])) };
  }

  #record(build: Build, fusion: "on" | "off"): Promise<Program> {
    const lowering = { taps: new Taps(), fusion, headNorms: "perHead", keys: 0 } as const;
    return this.backend.record("bench", (ops) => ({ out: build(lower(ops, lowering)) }));
  }
}

// ---------------------------------------------------------------------------------------------- cases

interface Row {
  readonly name: string;
  readonly ms: number;
  /** Bytes of weights, or keys and values, read per second, 10⁹. */
  readonly gbs?: number;
  /** Of what the probe reads. */
  readonly share?: number;
  /** Multiply-adds per second, 10⁹. */
  readonly gmacs?: number;
  /** Time of the base ops over the fused op's. */
  readonly speedup?: number;
}

type Measure = (bench: Bench, probeGBs: number) => Promise<Omit<Row, "name">>;

/** By name, in the order in which they run. */
const cases = new Map<string, Measure>();

/** `batch` rows times weights [outs, columns]. */
function product(format: Format, batch: number, outs: number, columns: number): void {
  cases.set(`linear ${nameOf(format)} ${batch} × [${outs}, ${columns}]`, async (bench, probeGBs) => {
    // Many rows are bound by arithmetic: one weight is enough.
    const weights = await bench.weights(format, [outs, columns], batch > 8 ? 1 : undefined);
    const x = bench.floats(batch, columns);
    const all = await bench.time((ops) => weights.map((weight) => ops.linear(x, weight)).at(-1)!);
    const ms = all / weights.length;
    const gbs = weights[0].byteLength / ms / 1e6;
    return { ms, gbs, share: gbs / probeGBs, gmacs: (batch * outs * columns) / ms / 1e6 };
  });
}

/** Fused ops, native and lowered. */
function fused(ops: readonly (keyof FusedOps)[], what: string, make: (bench: Bench) => Promise<Build>): void {
  cases.set(`${ops.join(" + ")} ${what}`, async (bench) => bench.compare(await make(bench)));
}

const FORMATS: readonly Format[] = [["f32"], ["bf16"], ["f16"], ["int8"], Q8_0, Q4_0, ["mxfp4"]];
for (const format of FORMATS) {
  product(format, 1, 3072, 1024); // Qwen3-0.6B, gate and up
  product(format, 1, 4096, 14336); // Llama-3-8B, down
  product(format, 4, 4096, 4096);
  product(format, 8, 4096, 4096);
  product(format, 64, 4096, 4096);
  product(format, 256, 3072, 1024);
}

// Decode steps of one row, in the shapes of Qwen3-0.6B and gpt-oss-20b.
fused(["addNorm"], "1 × 1024", async (bench) => {
  const [x, weight] = [bench.floats(1, 1024), await bench.weight(["f32"], 1024)];
  return (ops) => ops.addNorm(x, x, weight, { eps: 1e-6 })[1];
});

/** Projections, head norms, rope and append of a row. */
async function qkv(bench: Bench, format: Format): Promise<(ops: Ops, x: Tensor) => Tensor> {
  const [q, k, v] = await Promise.all([2048, 1024, 1024].map((outs) => bench.weight(format, outs, 1024)));
  const headNorm = await bench.weight(["f32"], 128);
  const spec = { label: "bench", kvHeads: 8, headDim: 128, sequences: 1, pageSize: 16, pages: 1 };
  const [cache, step] = [bench.backend.allocKv(spec), bench.step()];
  const rope = { cos: bench.floats(1, 64), sin: bench.floats(1, 64), rotaryDim: 128 };
  const heads = { heads: 16, kvHeads: 8, headDim: 128, norm: { eps: 1e-6 } };
  return (ops, x) => ops.qkv(x, { q, k, v, qNorm: headNorm, kNorm: headNorm }, cache, rope, step, heads);
}
const HEADS = "1 × 1024, 16 + 2 · 8 heads";
for (const format of ["bf16", "f16"] as const) {
  fused(["qkv"], `${format} ${HEADS}`, async (bench) => {
    const [project, x] = [await qkv(bench, [format]), bench.floats(1, 1024)];
    return (ops) => project(ops, x);
  });
}
// From the residual to the cache: the norm also gives its row as the integers that the products read.
for (const format of [["int8"], Q8_0, ["mxfp4"]] as const) {
  fused(["addNorm", "qkv"], `${nameOf(format)} ${HEADS}`, async (bench) => {
    const [x, weight] = [bench.floats(1, 1024), await bench.weight(["f32"], 1024)];
    const project = await qkv(bench, format);
    return (ops) => project(ops, ops.addNorm(x, x, weight, { eps: 1e-6 })[1]);
  });
}

for (const format of [["bf16"], ["f16"], ["int8"], Q8_0, ["mxfp4"]] as const) {
  fused(["gateUp"], `${nameOf(format)} 1 × [3072, 1024]`, async (bench) => {
    const [gate, up] = [await bench.weight(format, 3072, 1024), await bench.weight(format, 3072, 1024)];
    const x = bench.floats(1, 1024);
    return (ops) => ops.gateUp(x, gate, up, { activation: "silu" });
  });
}

/** The last `batch` rows of a sequence of `keys` positions; a window's keys are in a ring. */
function attention(
  kvType: KvType,
  batch: number,
  [heads, kvHeads, headDim]: readonly [number, number, number],
  keys: number,
  window?: number,
): void {
  const sliding = window === undefined ? "" : `, window ${window}`;
  cases.set(
    `attention ${kvType} ${batch} × ${heads}/${kvHeads} · ${headDim}, ${keys} keys${sliding}`,
    async (bench, probeGBs) => {
      const spec = { dtype: kvType, kvHeads, headDim, ring: window && window + 255 };
      const seen = Math.min(keys, window ?? keys);
      const bytes = seen * kvPositionBytes(spec);
      // As many layers as do not fit a cache, where they fit the memory; many rows are bound by arithmetic.
      const layers = batch > 1 ? 1 : Math.min(64, Math.ceil(LARGE / bytes));
      const caches: KvCache[] = [];
      for (let i = 0; i < layers; i++) caches.push(await bench.cache(spec, keys));
      const step = bench.step(keys - batch, batch, Math.ceil(keys / PAGE));
      const q = bench.floats(batch, heads * headDim);
      const options = { scale: headDim ** -0.5, window };
      const build: Build = (ops) => caches.map((cache) => ops.attention(q, cache, step, options)).at(-1)!;
      const ms = (await bench.time(build)) / layers;
      // Row i of the batch sees batch − 1 − i keys fewer than the last one.
      const pairs = window === undefined ? batch * (keys - (batch - 1) / 2) : batch * seen;
      const gmacs = (2 * heads * headDim * pairs) / ms / 1e6;
      if (batch > 1) return { ms, gmacs };
      const gbs = bytes / ms / 1e6;
      return { ms, gbs, share: gbs / probeGBs, gmacs };
    },
  );
}

// Of Qwen3-0.6B; then of gpt-oss-20b, whose sliding layers must not care how long the context is.
for (const kvType of ["f32", "f16", "int8"] as const) {
  attention(kvType, 1, [16, 8, 128], 8192);
  attention(kvType, 1, [64, 8, 64], 8192);
  for (const keys of [200, 8192]) attention(kvType, 1, [64, 8, 64], keys, 128);
  for (const keys of [256, 1024]) attention(kvType, 256, [16, 8, 128], keys);
}

/** Four experts for one row: gpt-oss-20b's, and as wide as those of Qwen3-30B-A3B. */
const EXPERTS = [
  { format: "mxfp4", width: 2880, inner: 2880, up: { activation: "swiglu_oai", layout: "interleaved" } },
  { format: "f16", width: 2048, inner: 768, up: { activation: "silu", layout: "halves" } },
] as const;
const routing = (bench: Bench): Routing => ({
  weights: bench.floats(1, 4),
  experts: bench.ints([3, 9, 17, 30], [1, 4]),
});
for (const { format, width, inner, up } of EXPERTS) {
  fused(["expertsUp"], `${format} 1 × 4 of [32, ${2 * inner}, ${width}]`, async (bench) => {
    const weight = await bench.weight([format], 32, 2 * inner, width);
    const [x, chosen] = [bench.floats(1, width), routing(bench)];
    return (ops) => ops.expertsUp(x, chosen, weight, up);
  });
  const down = `${format} 1 × 4 of [32, ${width}, ${inner}]`;
  fused(["expertsDown"], down, async (bench) => {
    const weight = await bench.weight([format], 32, width, inner);
    const [x, chosen] = [bench.floats(4, inner), routing(bench)];
    return (ops) => ops.expertsDown(x, chosen, weight);
  });
  // To the residual and the next norm.
  fused(["expertsDown", "addNorm"], down, async (bench) => {
    const [weight, norm] = [await bench.weight([format], 32, width, inner), await bench.weight(["f32"], width)];
    const [residual, x, chosen] = [bench.floats(1, width), bench.floats(4, inner), routing(bench)];
    return (ops) => ops.addNorm(residual, ops.expertsDown(x, chosen, weight), norm, { eps: 1e-5 })[1];
  });
}
for (const format of [["bf16"], ["f16"], Q8_0] as const) {
  fused(["linearArgmax"], `${nameOf(format)} 1 × [151936, 1024]`, async (bench) => {
    const [x, weight] = [bench.floats(1, 1024), await bench.weight(format, 151936, 1024)];
    return (ops) => ops.linearArgmax(x, weight);
  });
}

// ---------------------------------------------------------------------------------------------- measuring

const chosen = await orExit("bench:kernels", () => {
  const found = [...cases].filter(([name]) => name.includes(only));
  if (found.length > 0) return found;
  const message = `--only: no row has ${JSON.stringify(only)} in its name; --list prints the names`;
  throw new OptionError("OPTION_RANGE", message, { field: "--only", actual: only });
});
if (list) {
  for (const [name] of chosen) process.stdout.write(`${name}\n`);
  process.exit();
}

const rows: Row[] = [];

function show(row: Row): void {
  rows.push(row);
  const cells = [
    row.gbs === undefined ? "" : `${row.gbs.toFixed(1)} GB/s`,
    row.share === undefined ? "" : `${(100 * row.share).toFixed(0)} %`,
    row.gmacs === undefined ? "" : `${row.gmacs.toFixed(1)} GMAC/s`,
    row.speedup === undefined ? "" : `× ${row.speedup.toFixed(2)}`,
  ];
  const [label, time] = [row.name.padEnd(56), `${row.ms.toFixed(3)} ms`.padStart(12)];
  process.stdout.write(`${label}${time}${cells.map((cell) => cell.padStart(13)).join("")}\n`);
}

/** 10⁹ bytes a second. */
async function readMemory(): Promise<number> {
  const { threads, variant, allowV8Flags } = options;
  const { kind, pass, byteLength, dispose } = await createProbe({ device: "cpu", threads, variant, allowV8Flags });
  const passes = Math.ceil(clock.shortest / (await pass()));
  let ms = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 16; i++) {
    const start = clock.now();
    for (let k = 0; k < passes; k++) await pass();
    ms = Math.min(ms, (clock.now() - start) / passes);
  }
  await dispose();
  const gbs = byteLength / ms / 1e6;
  show({ name: `probe: ${kind}`, ms, gbs, share: 1 });
  return gbs;
}

process.stdout.write(`cpu: ${description}\n\n`);
const probeGBs = await readMemory();
for (const [name, measure] of chosen) {
  const backend = await createCpuBackend(options);
  show({ name, ...(await measure(new Bench(backend), probeGBs)) });
  await backend.dispose();
}
process.stdout.write(`\n${JSON.stringify({ bench: "kernels", device: description, node: process.version, rows })}\n`);
