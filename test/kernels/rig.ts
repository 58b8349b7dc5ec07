// What a conformance case stands on: seeded inputs, weights in any format made of random bytes, steps, and a backend to
// put them on. Knows no op.
import type {
  Backend,
  BaseOps,
  FusedOps,
  KvCache,
  KvSpec,
  Program,
  Shape,
  Step,
  Tensor,
  Weight,
  WeightFormat,
  WeightPlane,
  WeightSource,
} from "../../src/backend.ts";
import { decodeWeight, rowBytes, rowsOf } from "../../weights/decode.ts";
import { placed } from "../../weights/files.ts";
import type { ComputeClass } from "./gates.ts";

/** Seeded numbers (mulberry32): the same on every machine. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** 32 random bits. */
  bits(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  }

  /** Uniform in [from, to). */
  uniform(from = -1, to = 1): number {
    return from + ((to - from) * this.bits()) / 2 ** 32;
  }

  /** A whole number in [0, below). */
  int(below: number): number {
    return Math.floor(this.uniform(0, below));
  }

  /** f32 values uniform in [−scale, scale). */
  floats(length: number, scale = 1): Float32Array {
    return Float32Array.from({ length }, () => this.uniform(-scale, scale));
  }

  bytes(length: number): Uint8Array {
    return Uint8Array.from({ length }, () => this.bits() & 255);
  }

  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.int(i + 1);
      [items[i], items[j]] = [items[j], items[i]];
    }
    return items;
  }
}

export const FORMATS: readonly WeightFormat[] = ["f32", "f16", "bf16", "int8", "mxfp4"];

export interface WeightOptions {
  /** INT8: columns that share a scale. Default: a whole row. */
  readonly group?: number;
  /** Scales at the edges of the format. */
  readonly extreme?: boolean;
  /** Parameter path. Default: one that no engine knows. */
  readonly name?: string;
}

/** A weight of random bytes that decode to values of about ±1 (f32: exactly uniform in ±1). */
export function randomSource(
  random: Random,
  format: WeightFormat,
  shape: Shape,
  options: WeightOptions = {},
): WeightSource {
  const { rows, columns } = rowsOf(shape);
  const group = options.group ?? columns;
  const size = rowBytes(format, columns, group);
  const data = randomData(random, format, rows * columns);
  const scales = randomScales(random, format, rows * size.scales, options.extreme ?? false);
  return memorySource(options.name ?? `test.${format}.weight`, shape, format, { data, scales }, group);
}

/** A weight whose bytes lie in memory. */
export function memorySource(
  name: string,
  shape: Shape,
  format: WeightFormat,
  planes: Partial<Record<WeightPlane, Uint8Array>>,
  group?: number,
): WeightSource {
  const plane = (of: WeightPlane) => planes[of] ?? new Uint8Array(0);
  return {
    name,
    shape,
    format,
    group: format === "int8" ? group : undefined,
    byteLength: (of) => plane(of).byteLength,
    async read(of, byteOffset, byteLength, into) {
      if (byteOffset < 0 || byteOffset + byteLength > plane(of).byteLength) {
        throw new RangeError(`${name}: bytes ${byteOffset} … ${byteOffset + byteLength} of ${plane(of).byteLength}`);
      }
      return placed(plane(of).slice(byteOffset, byteOffset + byteLength), into);
    },
  };
}

function randomData(random: Random, format: WeightFormat, length: number): Uint8Array {
  switch (format) {
    case "f32":
      return new Uint8Array(random.floats(length).buffer);
    case "f16": // any sign and mantissa; exponents of 2^-6 … 1, now and then 0 or a subnormal
      return halves(random, length, (r) => ((r.int(16) === 0 ? 0 : 9 + r.int(7)) << 10) | (r.bits() & 0x83ff));
    case "bf16":
      return halves(random, length, (r) => ((r.int(16) === 0 ? 0 : 121 + r.int(7)) << 7) | (r.bits() & 0x807f));
    case "int8":
    case "mxfp4":
      return random.bytes(format === "int8" ? length : length / 2);
    default:
      return format satisfies never;
  }
}

function halves(random: Random, length: number, make: (random: Random) => number): Uint8Array {
  return new Uint8Array(Uint16Array.from({ length }, () => make(random)).buffer);
}

/**
 * INT8: about 1/127, at the edges one scale in four is 1000 times that, or 0. MXFP4: 2^-3 … 1, at the edges any exponent
 * whose values f32 can hold, 2^-127 among them.
 */
function randomScales(random: Random, format: WeightFormat, bytes: number, extreme: boolean): Uint8Array {
  if (format === "mxfp4") {
    const edges = [0, 1, 2, 60, 127, 160, 180];
    return Uint8Array.from({ length: bytes }, () => (extreme ? edges[random.int(edges.length)] : 124 + random.int(4)));
  }
  const scale = () => random.uniform(0.5, 1.5) / 127;
  const edge = () => [0, 1000, 1, 1][random.int(4)] * scale();
  return new Uint8Array(Float32Array.from({ length: bytes / 4 }, extreme ? edge : scale).buffer);
}

/** A weight on a backend and what its bytes mean. */
export interface LoadedWeight {
  readonly weight: Weight;
  readonly values: Float32Array;
}

export interface StepData {
  /** Default: all rows. */
  readonly count?: number;
  readonly tokens?: ArrayLike<number>;
  readonly positions: ArrayLike<number>;
  /** Default: all 0. */
  readonly sequences?: ArrayLike<number>;
  readonly ropeRows?: ArrayLike<number>;
  readonly selected?: ArrayLike<number>;
}

/** Records with base ops and with whatever the backend fuses. */
export type Build = (ops: BaseOps & Partial<FusedOps>) => Record<string, Tensor>;

export interface RigOptions {
  /** Compute class of products with weights of a format. Default: f32. */
  readonly classes?: Partial<Record<WeightFormat, ComputeClass>>;
}

/** One case's things on one backend; `close` gives back what can be given back. */
export class Rig {
  readonly backend: Backend;
  readonly random: Random;
  readonly #classes: Partial<Record<WeightFormat, ComputeClass>>;
  readonly #tensors: Tensor[] = [];
  readonly #programs: Program[] = [];

  constructor(backend: Backend, seed: number, { classes = {} }: RigOptions = {}) {
    this.backend = backend;
    this.random = new Random(seed);
    this.#classes = classes;
  }

  classOf(format: WeightFormat): ComputeClass {
    return this.#classes[format] ?? "f32";
  }

  tensor(shape: Shape, values: Float32Array | Int32Array, label = "input"): Tensor {
    const tensor = this.backend.alloc(shape, values instanceof Float32Array ? "f32" : "i32", label);
    this.#tensors.push(tensor);
    this.write(tensor, values);
    return tensor;
  }

  write(tensor: Tensor, values: Float32Array | Int32Array): void {
    this.backend.write(tensor, new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  }

  async load(source: WeightSource): Promise<LoadedWeight> {
    return { weight: await this.backend.loadWeight(source), values: await decodeWeight(source) };
  }

  weight(format: WeightFormat, shape: Shape, options?: WeightOptions): Promise<LoadedWeight> {
    return this.load(randomSource(this.random, format, shape, options));
  }

  /** An f32 weight of given values: biases, norms, sinks. */
  given(shape: Shape, values: Float32Array, name = "test.given.weight"): Promise<LoadedWeight> {
    const data = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    return this.load(memorySource(name, shape, "f32", { data }));
  }

  kv(spec: KvSpec): KvCache {
    return this.backend.allocKv(spec);
  }

  /** A step of `rows` rows; `pages` is [sequences, pagesPerSequence]. */
  step(rows: number, data: StepData, pages: { shape: Shape; values: Int32Array } = ONE_PAGE): Step {
    const buffer = (label: string, length = rows) => this.tensor([length], new Int32Array(length), label);
    const step = {
      rows,
      count: buffer("count", 1),
      tokens: buffer("tokens"),
      positions: buffer("positions"),
      sequences: buffer("sequences"),
      pages: this.tensor(pages.shape, pages.values, "pages"),
      ropeRows: buffer("ropeRows"),
      selected: buffer("selected"),
    };
    this.fill(step, data);
    return step;
  }

  /** The contents of the next run. */
  fill(step: Step, { count = step.rows, tokens, positions, sequences, ropeRows, selected }: StepData): void {
    const put = (tensor: Tensor, values: ArrayLike<number> = []) => {
      const padded = new Int32Array(step.rows);
      padded.set(values);
      this.write(tensor, padded);
    };
    this.write(step.count, Int32Array.of(count));
    put(step.tokens, tokens);
    put(step.positions, positions);
    put(step.sequences, sequences);
    put(step.ropeRows, ropeRows ?? positions);
    put(step.selected, selected);
  }

  async record(build: Build, label = "case"): Promise<Program> {
    const program = await this.backend.record(label, build);
    this.#programs.push(program);
    return program;
  }

  async read(tensor: Tensor): Promise<Float32Array | Int32Array> {
    const { buffer } = new Uint8Array(await this.backend.read(tensor));
    return tensor.dtype === "f32" ? new Float32Array(buffer) : new Int32Array(buffer);
  }

  /** Runs a program and reads its outputs. */
  async run<K extends string>(program: Program): Promise<Record<K, Float32Array | Int32Array>> {
    this.backend.run(program);
    const names = Object.keys(program.outputs);
    const values = await Promise.all(names.map((name) => this.read(program.outputs[name])));
    return Object.fromEntries(names.map((name, i) => [name, values[i]])) as Record<K, Float32Array | Int32Array>;
  }

  /** Records `build` with one output, runs it once and reads it. */
  async once(build: (ops: Parameters<Build>[0]) => Tensor): Promise<Float32Array | Int32Array> {
    const program = await this.record((ops) => ({ out: build(ops) }));
    return (await this.run<"out">(program)).out;
  }

  close(): void {
    for (const program of this.#programs) this.backend.release(program);
    this.backend.free(...this.#tensors);
  }
}

const ONE_PAGE = { shape: [1, 1], values: Int32Array.of(0) } as const;
