// The null backend: all the plumbing of a device and none of the arithmetic. It counts launches, keeps only the buffers
// that the host writes, and "samples" a token that depends on nothing but its position, so that engines and schedulers
// can be tested in microseconds.
import type {
  Backend,
  BaseOps,
  Capabilities,
  DType,
  FusedOps,
  KvCache,
  KvSpec,
  Program,
  Shape,
  Step,
  Tensor,
  Weight,
  WeightSource,
} from "../../src/backend.ts";
import { sizeOf } from "../../src/backend.ts";
import { assert, DisposedError, InsufficientMemoryError } from "../../src/errors.ts";

/** What was asked of the device so far. */
export interface NullCounters {
  /** Launches per base op, over all runs. */
  readonly launches: Partial<Record<keyof BaseOps, number>>;
  /** Runs per program label. */
  readonly runs: Record<string, number>;
  readonly writes: number;
  readonly reads: number;
  /** Tensors made by `alloc` and not yet freed. */
  readonly liveTensors: number;
  /** Programs recorded and not yet released. */
  readonly livePrograms: number;
}

export interface NullBackend extends Backend {
  readonly counters: NullCounters;
}

export interface NullOptions {
  /** What `caps.asynchronous` says: true makes an engine keep one step in flight. Default false. */
  readonly asynchronous?: boolean;
}

/** The token that follows the one at `position`: what every argmax gives and where every row of logits peaks. */
export function nullToken(position: number, vocabSize: number): number {
  return (position * 7 + 3) % vocabSize;
}

class NullTensor implements Tensor {
  readonly shape: Shape;
  readonly dtype: DType;
  readonly label: string;
  /** Made when the first byte is written. */
  bytes?: Uint8Array;
  /** For outputs of a program: the position behind each row in the latest run. */
  positions?: Int32Array;
  freed = false;

  constructor(shape: Shape, dtype: DType, label: string) {
    this.shape = shape;
    this.dtype = dtype;
    this.label = label;
  }

  get byteLength(): number {
    return sizeOf(this.shape) * 4;
  }

  writable(): Uint8Array {
    this.bytes ??= new Uint8Array(this.byteLength);
    return this.bytes;
  }

  /** Its i32 values, to change. */
  ints(): Int32Array {
    return new Int32Array(this.writable().buffer);
  }
}

interface NullProgram extends Program {
  readonly launches: (keyof BaseOps)[];
  /** Effects that engines rely on: sampled tokens, the next step. */
  readonly effects: (() => void)[];
}

export function createNullBackend({ asynchronous = false }: NullOptions = {}): NullBackend {
  const counters = { launches: {} as Partial<Record<keyof BaseOps, number>>, runs: {} as Record<string, number> };
  const totals = { writes: 0, reads: 0, liveTensors: 0 };
  const programs = new Set<NullProgram>();
  let disposed = false;

  const caps: Capabilities = {
    packedFormats: ["f32", "f16", "bf16", "int8", "mxfp4"],
    fusedOps: [] satisfies (keyof FusedOps)[],
    asynchronous,
    maxBufferBytes: 2 ** 32,
    description: "null: counts launches, computes nothing",
  };

  function alive(): void {
    if (disposed) throw new DisposedError("DISPOSED", "null backend: used after dispose(); make a new one");
  }

  function own(op: string, tensor: Tensor): NullTensor {
    alive();
    assert(tensor instanceof NullTensor && !tensor.freed, `${op}: ${tensor.label} is not a live tensor`);
    return tensor;
  }

  function inside(op: string, tensor: NullTensor, byteOffset: number, byteLength: number): void {
    const fits = byteOffset >= 0 && byteLength >= 0 && byteOffset + byteLength <= tensor.byteLength;
    assert(
      fits,
      `${op}: bytes ${byteOffset} … ${byteOffset + byteLength} of ${tensor.label}, which has ${tensor.byteLength}`,
    );
  }

  function make(shape: Shape, dtype: DType, label: string): NullTensor {
    const elements = sizeOf(shape);
    assert(Number.isInteger(elements) && elements >= 0, `${label}: [${shape}] is no shape`);
    if (elements * 4 > caps.maxBufferBytes) {
      const message = `${label}: needs ${elements * 4} bytes, one buffer holds ${caps.maxBufferBytes}`;
      throw new InsufficientMemoryError("OUT_OF_MEMORY", message, { tensor: label, limit: caps.maxBufferBytes });
    }
    return new NullTensor(shape, dtype, label);
  }

  return {
    name: "null",
    caps,

    get counters() {
      return { ...counters, ...totals, livePrograms: programs.size };
    },

    alloc(shape, dtype, label) {
      alive();
      const tensor = make(shape, dtype, label);
      totals.liveTensors++;
      return tensor;
    },

    write(dst, bytes, byteOffset = 0) {
      const tensor = own("write", dst);
      inside("write", tensor, byteOffset, bytes.byteLength);
      tensor.writable().set(bytes, byteOffset);
      totals.writes++;
    },

    async read(src, byteOffset = 0, byteLength) {
      const tensor = own("read", src);
      const length = byteLength ?? tensor.byteLength - byteOffset;
      inside("read", tensor, byteOffset, length);
      totals.reads++;
      return contents(tensor).slice(byteOffset, byteOffset + length);
    },

    free(...buffers) {
      for (const tensor of buffers) {
        own("free", tensor).freed = true;
        totals.liveTensors--;
      }
    },

    async loadWeight(source: WeightSource): Promise<Weight> {
      alive();
      const { name, shape, format } = source;
      const byteLength = source.byteLength("data") + source.byteLength("scales");
      return { name, shape, format, storedAs: format, byteLength };
    },

    allocKv(spec: KvSpec) {
      alive();
      return { spec };
    },

    async readKv({ spec }: KvCache, _step, _sequence, from, to) {
      alive();
      const size = (to - from) * spec.kvHeads * spec.headDim;
      return { k: new Float32Array(size), v: new Float32Array(size) };
    },

    async record(label, build) {
      alive();
      const { ops, finish } = recorder(make);
      const program: NullProgram = { label, ...finish(build(ops)) };
      programs.add(program);
      return program;
    },

    run(program) {
      const { label, launches, effects } = mine(program);
      counters.runs[label] = (counters.runs[label] ?? 0) + 1;
      for (const op of launches) counters.launches[op] = (counters.launches[op] ?? 0) + 1;
      for (const effect of effects) effect();
    },

    release(program) {
      programs.delete(mine(program));
    },

    async dispose() {
      disposed = true;
      programs.clear();
    },
  };

  function mine(program: Program): NullProgram {
    alive();
    assert(programs.has(program as NullProgram), `${program.label}: released, or a program of another backend`);
    return program as NullProgram;
  }
}

/** Bytes of a tensor: what was written, or logits that peak at the null token of each row, or zeros. */
function contents(tensor: NullTensor): Uint8Array {
  if (tensor.bytes !== undefined) return tensor.bytes;
  const values = new Float32Array(sizeOf(tensor.shape));
  const width = tensor.shape[1];
  tensor.positions?.forEach((position, r) => {
    values[r * width + nullToken(position, width)] = 1;
  });
  return new Uint8Array(values.buffer);
}

/** Ops that only note that they were called, and what they would have written for the host to see. */
function recorder(make: (shape: Shape, dtype: DType, label: string) => NullTensor) {
  const launches: (keyof BaseOps)[] = [];
  const effects: (() => void)[] = [];
  /** The step of this program, and which of its rows later tensors have. */
  let step: Step | undefined;
  let selected: Tensor | undefined;

  function output(op: keyof BaseOps, shape: Shape, dtype: DType = "f32"): NullTensor {
    launches.push(op);
    return make(shape, dtype, op);
  }

  function use(of: Step): Step {
    step = of;
    return of;
  }

  /** Position behind each of the first `rows` rows; without a step, row r stands at position r. */
  function positions(rows: number): Int32Array {
    const at = step === undefined ? undefined : (step.positions as NullTensor).ints();
    const chosen = selected === undefined ? undefined : (selected as NullTensor).ints();
    return Int32Array.from({ length: rows }, (_, r) => {
      const row = chosen === undefined ? r : chosen[r];
      return at === undefined ? row : at[row];
    });
  }

  const ops: BaseOps = {
    embed: (of, table) => output("embed", [use(of).rows, table.shape[1]]),
    linear: (x, weight) => output("linear", [x.shape[0], weight.shape[0]]),
    columns: (x, from, to) => output("columns", [x.shape[0], to - from]),
    rmsNorm: (x) => output("rmsNorm", x.shape),
    rope: (x, _table, of) => {
      use(of);
      return output("rope", x.shape);
    },
    kvAppend: (_cache, _k, _v, of) => {
      use(of);
      launches.push("kvAppend");
    },
    attention: (q, _cache, of) => {
      use(of);
      return output("attention", q.shape);
    },
    attentionProbs: (q, { spec }, of, { keys }) =>
      output("attentionProbs", [use(of).rows, q.shape[1] / spec.headDim, keys]),
    glu: (gate) => output("glu", gate.shape),
    gluPacked: (gateUp) => output("gluPacked", [gateUp.shape[0], gateUp.shape[1] / 2]),
    add: (a) => output("add", a.shape),
    softcap: (x) => output("softcap", x.shape),
    route: (logits, { k }) => {
      const weights = output("route", [logits.shape[0], k]);
      return { weights, experts: make([logits.shape[0], k], "i32", "route") };
    },
    linearExperts: (_x, { experts }, weight) => output("linearExperts", [sizeOf(experts.shape), weight.shape[1]]),
    combine: (y, { weights }) => output("combine", [weights.shape[0], y.shape[1]]),
    gatherRows: (x, rows, count) => {
      selected = rows;
      return output("gatherRows", [count, x.shape[1]]);
    },
    argmax: (logits) => {
      const [rows, width] = logits.shape;
      const out = output("argmax", [rows], "i32");
      effects.push(() => out.ints().set(positions(rows).map((position) => nullToken(position, width))));
      return out;
    },
    advance: (of, tokens) => {
      launches.push("advance");
      effects.push(() => {
        const count = Math.min((of.count as NullTensor).ints()[0], tokens.shape[0]);
        (of.tokens as NullTensor).ints().set((tokens as NullTensor).ints().subarray(0, count));
        for (const buffer of [of.positions, of.ropeRows]) {
          const values = (buffer as NullTensor).ints();
          for (let r = 0; r < count; r++) values[r]++;
        }
      });
    },
  };

  function finish(outputs: Record<string, Tensor>) {
    // Reads come after the run, when the host may have written the next step: the positions are noted during the run.
    for (const tensor of Object.values(outputs) as NullTensor[]) {
      if (tensor.dtype !== "f32" || tensor.shape.length !== 2) continue;
      effects.unshift(() => {
        tensor.positions = positions(tensor.shape[0]);
      });
    }
    return { outputs, launches, effects };
  }

  return { ops, finish };
}
