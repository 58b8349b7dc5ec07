// The integer products of the cpu backend beside their slow twin (test/kernels/quantized.ts): every precision, format and
// grouping, at the edges of all of them; that packed weights come back bit for bit; and W8A8, whose bits the contract fixes.
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type CpuBackend, type CpuOptions, createCpuBackend } from "../../backends/cpu/index.ts";
import { quantizedLinear } from "../../kernels/reference/linear.ts";
import type { BlockEncoding, Tensor, WeightFormat, WeightSource } from "../../src/backend.ts";
import { UnsupportedModelError } from "../../src/errors.ts";
import { lower } from "../../src/ops.ts";
import type { Precision } from "../../src/options.ts";
import { PRECISIONS } from "../../src/options.ts";
import { argmaxRow, type ExactProduct, F32_UNIT } from "../../src/precision/metrics.ts";
import { Taps } from "../../src/tap.ts";
import { decodeWeight } from "../../weights/decode.ts";
import { decodeF16 } from "../../weights/f16.ts";
import { randomExperts } from "../kernels/experts.cases.ts";
import { failure } from "../kernels/gates.ts";
import { BLOCK, exactValues, LARGEST, product, rounded } from "../kernels/quantized.ts";
import { memorySource, Random, Rig, randomSource } from "../kernels/rig.ts";

const bytesOf = (values: Float32Array | Int8Array | Uint16Array) => new Uint8Array(values.slice().buffer);

/** Numbers of threads and instruction sets; with V8's flags, registers may have 256 bits. `halves` and `simd` have no dot product of bytes. */
const MACHINES = {
  "256 bits, 1 thread": { allowV8Flags: true, threads: 1 },
  "256 bits, 2 threads": { allowV8Flags: true, threads: 2 },
  "256 bits, halves, 2 threads": { allowV8Flags: true, halves: true, threads: 2 },
  "relaxed, halves, 1 thread": { variant: "relaxed", halves: true, threads: 1 },
  "relaxed, 1 thread": { variant: "relaxed", threads: 1 },
  "relaxed, 2 threads": { variant: "relaxed", threads: 2 },
  "simd, 1 thread": { variant: "simd", threads: 1 },
  "simd, 2 threads": { variant: "simd", threads: 2 },
} as const satisfies Record<string, CpuOptions>;
type Machine = keyof typeof MACHINES;

interface Weights {
  readonly format: WeightFormat;
  readonly inner: number;
  readonly width: number;
  /** INT8: columns that share a scale. Default: all. */
  readonly group?: number;
}

const WEIGHTS: readonly Weights[] = [
  { format: "int8", inner: 32, width: 33 },
  { format: "int8", inner: 96, width: 45 },
  { format: "int8", inner: 2880, width: 40 },
  { format: "int8", inner: 96, width: 70, group: 32 },
  { format: "int8", inner: 2880, width: 5, group: 32 },
  { format: "int8", inner: 192, width: 31, group: 64 },
  { format: "int8", inner: 2880, width: 64, group: 64 },
  { format: "mxfp4", inner: 32, width: 33 },
  { format: "mxfp4", inner: 96, width: 45 },
  { format: "mxfp4", inner: 2880, width: 40 },
];

const ROWS = [1, 2, 3, 4, 5, 9, 33, 300];

/** How rows of x look: plain, or each row in one of the ways that are hard to quantise. */
function hardRows(random: Random, rows: number, inner: number): Float32Array {
  const x = random.floats(rows * inner);
  for (let t = 0; t < rows; t++) {
    const row = x.subarray(t * inner, (t + 1) * inner);
    switch (t % 10) {
      case 1: // nothing but zeros
        row.fill(0);
        break;
      case 2: // blocks of zeros
        for (let from = 0; from < inner; from += 2 * BLOCK) row.fill(0, from, from + BLOCK);
        break;
      case 3: // one outlier
        row[random.int(inner)] *= 1e4;
        break;
      case 4:
        for (let i = 0; i < inner; i++) row[i] *= 1e30;
        break;
      case 5:
        for (let i = 0; i < inner; i++) row[i] *= 1e-25;
        break;
      case 6: // blocks that count as zero beside others
        for (let i = 0; i < inner; i++) if ((i >> 5) % 2 === 1) row[i] *= 1e-31;
        break;
      case 9: // nothing but such blocks
        for (let i = 0; i < inner; i++) row[i] *= 7e-31;
        break;
      case 7: // the largest integers only
        for (let i = 0; i < inner; i++) row[i] = Math.sign(row[i]) * 0.7;
        break;
      case 8: // halves, which go to even
        for (let i = 0; i < inner; i++) row[i] = i % BLOCK === 0 ? 127 : Math.floor(row[i] * 100) + 0.5;
        break;
      default:
    }
  }
  return x;
}

/** A backend of one precision on each machine, for the tests of a group. */
function withBackends(precision: Precision): Record<Machine, CpuBackend> {
  const backends = {} as Record<Machine, CpuBackend>;
  beforeAll(async () => {
    for (const machine of Object.keys(MACHINES) as Machine[]) {
      backends[machine] = await createCpuBackend({ ...MACHINES[machine], precision });
    }
  });
  afterAll(() => Promise.all(Object.values(backends).map((backend) => backend.dispose())));
  return backends;
}

/** Runs the same on each machine; neither the number of threads must show nor the size of the registers. */
async function onAll<T>(backends: Record<Machine, CpuBackend>, run: (rig: Rig) => Promise<T>): Promise<[T, T, T]> {
  const results = {} as Record<Machine, T>;
  for (const [machine, backend] of Object.entries(backends)) {
    const rig = new Rig(backend, 1);
    results[machine as Machine] = await run(rig);
    rig.close();
  }
  expect(results["256 bits, 1 thread"]).toEqual(results["relaxed, 1 thread"]);
  expect(results["256 bits, 2 threads"]).toEqual(results["relaxed, 1 thread"]);
  expect(results["relaxed, 2 threads"]).toEqual(results["relaxed, 1 thread"]);
  expect(results["256 bits, halves, 2 threads"]).toEqual(results["relaxed, halves, 1 thread"]);
  expect(results["simd, 2 threads"]).toEqual(results["simd, 1 thread"]);
  return [results["relaxed, 1 thread"], results["relaxed, halves, 1 thread"], results["simd, 1 thread"]];
}

/** Holds all of them to the twin in class f32, and to each other. */
function judge(
  results: readonly [Float32Array, Float32Array, Float32Array],
  twin: ExactProduct,
  inner: number,
  width: number,
): void {
  for (const [i, actual] of results.entries()) {
    for (let from = 0; from < actual.length; from += width) {
      const row = (values: Float64Array) => values.subarray(from, from + width);
      const of = { exact: row(twin.exact), magnitude: row(twin.magnitude), terms: twin.terms };
      const gate = { kind: "product", product: of, class: "f32" } as const;
      // Row by row, since one of huge values would hide the others.
      const check = {
        what: ["relaxed", "halves", "simd"][i],
        actual: actual.subarray(from, from + width),
        expected: of.exact,
        width,
        gate,
      };
      expect(failure(check), `row ${from / width}`).toBeUndefined();
    }
  }
  const [relaxed, halves, simd] = results;
  // One block: an exact sum and three roundings. More: what a fused multiply-add leaves out, in ulps of the terms together.
  // Three parts are divided otherwise between two halves.
  if (inner === BLOCK) expect(halves).toEqual(simd);
  for (const result of [relaxed, halves]) {
    const apart = result.map((value, i) => Math.abs(value - simd[i]) / (2 * F32_UNIT * twin.magnitude[i] + 2 ** -149));
    expect(Math.max(...apart)).toBeLessThanOrEqual(4);
  }
}

describe.each(PRECISIONS)("%s products", (precision) => {
  const backends = withBackends(precision);

  test("the twin's rows are those of x, but for half a step of their block", () => {
    const x = hardRows(new Random(3), 40, 96);
    const twin = rounded(x, precision);
    for (let from = 0; from < x.length; from += BLOCK) {
      const peak = Math.max(...x.subarray(from, from + BLOCK).map(Math.abs));
      const worst = x
        .subarray(from, from + BLOCK)
        .reduce((most, v, i) => Math.max(most, Math.abs(v - twin[from + i])), 0);
      // 24 bits: the product with the reciprocal is rounded as well.
      const steps = precision === "exact" ? 1.5 : 0.51;
      expect(worst, `block ${from / BLOCK}`).toBeLessThanOrEqual(
        peak < 1e-30 ? peak : (steps * peak) / LARGEST[precision],
      );
    }
  });

  test.each(WEIGHTS)(
    "linear $format, K $inner, $width outputs, group $group",
    async ({ format, inner, width, group }) => {
      const random = new Random(inner + width);
      const source = randomSource(random, format, [width, inner], { group });
      const bias = random.floats(width);
      const most = Math.max(...ROWS);
      const x = hardRows(random, most, inner);
      const results = await onAll(backends, async (rig) => {
        const { weight } = await rig.load(source);
        const offset = (await rig.given([width], bias)).weight;
        const all = rig.tensor([most, inner], x);
        const y = (await rig.once((ops) => ops.linear(all, weight, offset))) as Float32Array;
        for (const rows of ROWS) {
          const some = rig.tensor([rows, inner], x.subarray(0, rows * inner));
          expect(await rig.once((ops) => ops.linear(some, weight, offset)), `${rows} rows`).toEqual(
            y.slice(0, rows * width),
          );
        }
        expect(weight.storedAs).toBe(format);
        return y;
      });
      judge(results, product(rounded(x, precision), await exactValues(source), bias, { inner, width }), inner, width);
    },
  );

  test.each([
    ["q8_0", 32, 33],
    ["q8_0", 96, 45],
    ["q8_0", 2880, 64],
    ["q4_0", 32, 33],
    ["q4_0", 96, 45],
    ["q4_0", 2880, 64],
  ] as const)(
    "from blocks of %s, which stay as they are, are those from planes: K %i, %i outputs",
    async (encoding, inner, width) => {
      const random = new Random(inner);
      const source = blockSource(random, encoding, [width, inner]);
      const most = Math.max(...ROWS);
      const x = hardRows(random, most, inner);
      await onAll(backends, async (rig) => {
        const [blocks, planes] = [(await rig.load(source)).weight, (await rig.load(planesOf(source))).weight];
        const rows32 = 32 * Math.ceil(width / 32);
        expect(planes.byteLength).toBe((rows32 * inner * 36) / 32);
        expect(blocks.byteLength).toBe((rows32 * inner * { q8_0: 34, q4_0: 18 }[encoding]) / 32);
        for (const rows of ROWS) {
          const some = rig.tensor([rows, inner], x.subarray(0, rows * inner));
          const y = await rig.once((ops) => ops.linear(some, blocks));
          expect(y, `${rows} rows`).toEqual(await rig.once((ops) => ops.linear(some, planes)));
        }
      });
    },
  );

  // Three parts have no kernels of their own for 4 bits.
  test.each(precision === "exact" ? [] : (["mxfp4", "q4_0"] as const))(
    "the largest values of %s, in every way in which they are multiplied, on any machine",
    async (encoding) => {
      const [outs, bytes] = [48, encoding === "mxfp4" ? 17 : 18];
      const blocks = new Uint8Array(outs * bytes);
      const random = new Random(5);
      for (let row = 0; row < outs; row++) {
        // All as large as can be, up or down, or some of each: sums of 16 bits have no room for more.
        const [up, down] = encoding === "mxfp4" ? [0x77, 0xff] : [0xff, 0x00];
        const code = () => [up, down, random.int(2) === 0 ? up : down, random.int(256)][row % 4];
        blocks.fill(encoding === "mxfp4" ? 120 + (row % 8) : 0x2c, row * bytes, (row + 1) * bytes);
        for (let i = bytes - 16; i < bytes; i++) blocks[row * bytes + i] = code();
      }
      const format = encoding === "mxfp4" ? "mxfp4" : "int8";
      const source = { ...memorySource("test.largest", [outs, BLOCK], format, { blocks }, BLOCK), blocks: encoding };
      const ways = [
        ["simd", {}],
        ["relaxed", { halves: true }],
        ["relaxed", { halves: true, allowV8Flags: true }],
        ["relaxed", { halves: false }],
        ["relaxed", { halves: false, allowV8Flags: true }],
      ] as const;
      const rows = [random.floats(BLOCK), new Float32Array(BLOCK).fill(3), new Float32Array(BLOCK).fill(-5)];
      rows[0].fill(9, 8, 24);
      // More rows work in unpacked bytes, which such small integers do not saturate the dot product of x64 with, either.
      const many = Float32Array.from({ length: 5 * BLOCK }, (_, i) => {
        return i % BLOCK === 7 ? 1 : (256 * (random.int(121) - 60)) / LARGEST.high;
      });
      const results: (Float32Array | Int32Array)[][] = [];
      for (const [variant, options] of ways) {
        const backend = await createCpuBackend({ threads: 1, precision, variant, ...options });
        const rig = new Rig(backend, 1);
        const weight = await backend.loadWeight(source);
        const products: (Float32Array | Int32Array)[] = [];
        for (const row of rows) {
          const x = rig.tensor([1, BLOCK], row);
          products.push(await rig.once((ops) => ops.linear(x, weight)));
        }
        if (process.arch === "x64") {
          const x = rig.tensor([5, BLOCK], many);
          products.push(await rig.once((ops) => ops.linear(x, weight)));
        }
        results.push(products);
        rig.close();
        await backend.dispose();
      }
      for (const result of results) expect(result).toEqual(results[0]);
    },
  );

  test.each([1, 4, 20, 48, 96])("INT8 with a scale for %i columns", async (group) => {
    const [inner, width, rows] = [96 * 5, 40, 10];
    const random = new Random(group);
    const source = randomSource(random, "int8", [width, inner], { group });
    // What does not fit blocks of 32 becomes f32, and so do its products.
    const packed = group % BLOCK === 0;
    const x = hardRows(random, rows, inner);
    const results = await onAll(backends, async (rig) => {
      const { weight } = await rig.load(source);
      expect(weight.storedAs).toBe(packed ? "int8" : "f32");
      const tensor = rig.tensor([rows, inner], x);
      return (await rig.once((ops) => ops.linear(tensor, weight))) as Float32Array;
    });
    const operand = packed ? rounded(x, precision) : Float64Array.from(x);
    judge(results, product(operand, await exactValues(source), undefined, { inner, width }), inner, width);
  });

  test.each(WEIGHTS.filter(({ inner }) => inner < 2880))(
    "linearExperts $format, K $inner, $width outputs, group $group",
    async ({ format, inner, width, group }) => {
      const [experts, k] = [5, 2];
      const random = new Random(inner);
      const source = randomSource(random, format, [experts, width, inner], { group });
      const bias = random.floats(experts * width);
      const weight = await exactValues(source);
      for (const rows of [1, 3, 40]) {
        const x = hardRows(random, rows, inner);
        const chosen = randomExperts(random, rows, experts, k);
        const results = await onAll(backends, async (rig) => {
          const loaded = await rig.load(source);
          const offset = (await rig.given([experts, width], bias)).weight;
          const tensor = rig.tensor([rows, inner], x);
          const routing = {
            weights: rig.tensor([rows, k], random.floats(rows * k)),
            experts: rig.tensor([rows, k], chosen),
          };
          return (await rig.once((ops) => ops.linearExperts(tensor, routing, loaded.weight, offset))) as Float32Array;
        });
        // Slot t · K + j reads row t.
        const operand = rounded(x, precision);
        const slots = new Float64Array(rows * k * inner);
        for (let slot = 0; slot < rows * k; slot++) {
          slots.set(operand.subarray(Math.floor(slot / k) * inner).subarray(0, inner), slot * inner);
        }
        const weightOf = (slot: number) => chosen[slot] * width;
        judge(results, product(slots, weight, bias, { inner, width, weightOf }), inner, width);
      }
    },
  );

  test.each([
    ["int8", "int8"],
    ["mxfp4", "mxfp4"],
    ["int8", "mxfp4"], // one x, read as bytes and as halves
    ["mxfp4", "int8"],
  ] as const)("fused ops of %s, and of %s beside it, are their base ops, bit for bit", async (format, other) => {
    const [inner, width] = [96, 64];
    const glu = { activation: "swiglu_oai" } as const;
    const norm = { eps: 1e-6 };
    for (const rows of [1, 5, 33]) {
      await onAll(backends, async (rig) => {
        const { random } = rig;
        const matrix = async (of: typeof format, outs: number, columns: number) =>
          (await rig.weight(of, [outs, columns])).weight;
        const [gate, up] = [await matrix(format, width, inner), await matrix(other, width, inner)];
        const [next, beside] = [await matrix(format, 45, inner), await matrix(other, 45, inner)];
        const down = await matrix(other, 45, width);
        const [scale, bias] = [
          (await rig.given([inner], random.floats(inner))).weight,
          (await rig.given([45], random.floats(45))).weight,
        ];
        const x = rig.tensor([rows, inner], random.floats(rows * inner));
        const program = await rig.record((ops) => {
          const fused = lower(ops, { taps: new Taps(), fusion: "on", headNorms: "perHead", keys: 0 });
          const hidden = fused.gateUp(x, gate, up, glu);
          const normed = fused.rmsNorm(x, scale, norm);
          const [sum, added] = fused.addNorm(x, normed, scale, norm);
          return {
            hidden,
            normed,
            added,
            sum,
            // These read integers that the op before them made.
            fromHidden: fused.linear(hidden, down),
            fromNormed: fused.linear(normed, next),
            besideNormed: fused.linear(normed, beside),
            fromAdded: fused.linear(added, next, bias),
            token: fused.linearArgmax(added, next, bias),
          };
        });
        const fused = await rig.run<keyof typeof program.outputs>(program);
        const again = (name: string, columns: number) => rig.tensor([rows, columns], fused[name] as Float32Array);
        const [hidden, normed, added] = [again("hidden", width), again("normed", inner), again("added", inner)];
        const base = await rig.run<string>(
          await rig.record((ops) => ({
            hidden: ops.glu(ops.linear(x, gate), ops.linear(x, up), glu),
            fromHidden: ops.linear(hidden, down),
            fromNormed: ops.linear(normed, next),
            besideNormed: ops.linear(normed, beside),
            fromAdded: ops.linear(added, next, bias),
          })),
        );
        for (const [name, values] of Object.entries(base)) expect(fused[name], name).toEqual(values);
        const tokens = Array.from({ length: rows }, (_, t) => argmaxRow(base.fromAdded, 45 * t, 45));
        expect([...fused.token]).toEqual(tokens);
        return fused;
      });
    }
  });

  test("INT8: all −128 times the largest integers, scales of every size", async () => {
    const [rows, inner, width] = [12, 2880, 40];
    const random = new Random(1);
    const scales = Float32Array.from({ length: width }, (_, o) => [1, 0, -0.01, 1e30, 1e-40, 3e-38][o % 6]);
    const data = new Int8Array(width * inner).fill(-128);
    for (let i = 20 * inner; i < data.length; i++) data[i] = [-128, 127, 0, -1][random.int(4)];
    const source = memorySource("w", [width, inner], "int8", { data: bytesOf(data), scales: bytesOf(scales) }, inner);
    const x = random.floats(rows * inner);
    // Row by row: all the same, alternating signs, tiny.
    for (let i = 0; i < 4 * inner; i++) x[i] = 0.3;
    for (let i = 4 * inner; i < 8 * inner; i++) x[i] = i % 2 === 0 ? 5 : -5;
    for (let i = 8 * inner; i < 10 * inner; i++) x[i] *= 1e-20;
    const results = await onAll(backends, async (rig) => {
      const { weight } = await rig.load(source);
      const tensor = rig.tensor([rows, inner], x);
      return (await rig.once((ops) => ops.linear(tensor, weight))) as Float32Array;
    });
    judge(
      results,
      product(rounded(x, precision), await exactValues(source), undefined, { inner, width }),
      inner,
      width,
    );
  });

  test.each([1, 2, 6])("MXFP4: exponents 0 and 254 are numbers, 255 is not; %i rows", async (rows) => {
    const [inner, width] = [64, 40];
    const random = new Random(rows);
    const exponents = Uint8Array.from({ length: (width * inner) / 32 }, (_, i) => (i % 2 === 0 ? 0 : 254));
    const load = (scales: Uint8Array) =>
      memorySource("w", [width, inner], "mxfp4", { data: random.bytes((width * inner) / 2), scales });
    const x = random.floats(rows * inner);
    for (let i = 0; i < x.length; i++) x[i] *= (i >> 5) % 2 === 0 ? 1e20 : 1e-20;
    const multiply = (source: WeightSource) =>
      onAll(backends, async (rig) => {
        const { weight } = await rig.load(source);
        const tensor = rig.tensor([rows, inner], x);
        return (await rig.once((ops) => ops.linear(tensor, weight))) as Float32Array;
      });
    const source = load(exponents);
    const twin = product(rounded(x, precision), await exactValues(source), undefined, { inner, width });
    judge(await multiply(source), twin, inner, width);

    // Output 3 in its first block, output 39 in its second.
    const broken = exponents.map((e, i) => (i === 6 || i === 79 ? 255 : e));
    for (const result of await multiply(load(broken))) {
      for (const [i, value] of result.entries())
        expect(Number.isFinite(value), `${i}`).toBe(![3, 39].includes(i % width));
    }
  });

  test.each(["int8", "mxfp4"] as const)(
    "%s: rows with what is not finite give nothing finite, others what they did",
    async (format) => {
      const [rows, inner, width] = [12, 96, 40];
      const random = new Random(5);
      const source = randomSource(random, format, [width, inner]);
      const x = random.floats(rows * inner);
      const broken = x.slice();
      broken[1 * inner + 7] = Number.NaN;
      broken[4 * inner] = Number.POSITIVE_INFINITY;
      broken[11 * inner + 95] = Number.NEGATIVE_INFINITY;
      await onAll(backends, async (rig) => {
        const { weight } = await rig.load(source);
        const multiply = async (values: Float32Array) => {
          const tensor = rig.tensor([rows, inner], values);
          return await rig.once((ops) => ops.linear(tensor, weight));
        };
        const [good, bad] = [await multiply(x), await multiply(broken)];
        for (const [i, value] of bad.entries()) {
          const wrong = [1, 4, 11].includes(Math.floor(i / width));
          if (wrong) expect(Number.isFinite(value), `${i}`).toBe(false);
          else expect(value, `${i}`).toBe(good[i]);
        }
        return bad;
      });
    },
  );
});

// ---------------------------------------------------------------------------------------------- packing

const finite = (half: number) => ((half & 0x7c00) === 0x7c00 ? half ^ 0x4000 : half);

/** A weight with both views: planes, and the blocks that a GGUF file has. */
function blockSource(random: Random, blocks: BlockEncoding, shape: readonly number[]): WeightSource {
  const count = shape.reduce((n, dim) => n * dim, 1) / BLOCK;
  const half = BLOCK / 2;
  if (blocks !== "mxfp4") {
    // Any finite halves as scales.
    const scales = Uint16Array.from({ length: count }, () => finite(random.bits() & 0xffff));
    const data = random.bytes(count * BLOCK);
    if (blocks === "q4_0") for (let i = 0; i < data.length; i++) data[i] = (data[i] & 15) - 8;
    const size = blocks === "q8_0" ? 34 : 18;
    const bytes = new Uint8Array(count * size);
    for (let i = 0; i < count; i++) {
      const values = data.subarray(BLOCK * i, BLOCK * (i + 1));
      const nibbles = values.subarray(0, half).map((value, j) => ((value + 8) & 15) | ((values[j + half] + 8) << 4));
      bytes.set([scales[i] & 255, scales[i] >> 8], size * i);
      bytes.set(blocks === "q8_0" ? values : nibbles, size * i + 2);
    }
    const planes = { data, scales: bytesOf(decodeF16(scales)), blocks: bytes };
    return { ...memorySource(`test.${blocks}`, shape, "int8", planes, BLOCK), blocks };
  }
  const scales = random.bytes(count);
  const data = new Uint8Array(count * half);
  const bytes = new Uint8Array(count * 17);
  for (let i = 0; i < count; i++) {
    bytes[17 * i] = scales[i];
    const codes = Array.from({ length: BLOCK }, () => random.int(16));
    for (let j = 0; j < half; j++) {
      data[half * i + j] = codes[2 * j] | (codes[2 * j + 1] << 4);
      bytes[17 * i + 1 + j] = codes[j] | (codes[j + half] << 4);
    }
  }
  return { ...memorySource(`test.${blocks}`, shape, "mxfp4", { data, scales, blocks: bytes }), blocks };
}

/** Only the planes of it. */
function planesOf(source: WeightSource): WeightSource {
  return { ...source, blocks: undefined, read: (plane, ...rest) => source.read(plane, ...rest) };
}

/** Some rows of a matrix, as the backend has it. */
async function rowsOf(rig: Rig, source: WeightSource, rows: readonly number[]): Promise<Float32Array> {
  const { weight } = await rig.load(source);
  const step = rig.step(rows.length, { positions: rows.map(() => 0), tokens: rows });
  return (await rig.once((ops) => ops.embed(step, weight))) as Float32Array;
}

async function expectRows(
  backends: Record<Machine, CpuBackend>,
  source: WeightSource,
  rows: readonly number[],
): Promise<void> {
  const columns = source.shape[1];
  const expected = new Float32Array(rows.length * columns);
  for (const [i, row] of rows.entries()) expected.set(await decodeWeight(source, row, row + 1), i * columns);
  // toEqual: −0 is not 0, NaN is NaN.
  for (const result of await onAll(backends, (rig) => rowsOf(rig, source, rows))) expect(result).toEqual(expected);
}

const upTo = (count: number) => Array.from({ length: count }, (_, i) => i);

describe("packed weights come back bit for bit", () => {
  const backends = withBackends("high");

  test.each<[string, (random: Random, rows: number, columns: number) => WeightSource]>([
    ["int8, a scale a row", (random, ...shape) => randomSource(random, "int8", shape, { extreme: true })],
    ["int8, groups of 32", (random, ...shape) => randomSource(random, "int8", shape, { group: 32, extreme: true })],
    ["int8, groups of 96", (random, ...shape) => randomSource(random, "int8", shape, { group: 96, extreme: true })],
    ["int8, groups of 12, widened", (random, ...shape) => randomSource(random, "int8", shape, { group: 12 })],
    ["mxfp4", (random, ...shape) => randomSource(random, "mxfp4", shape, { extreme: true })],
    ["q8_0 blocks", (random, ...shape) => blockSource(random, "q8_0", shape)],
    ["q8_0 as planes", (random, ...shape) => planesOf(blockSource(random, "q8_0", shape))],
    ["q4_0 blocks", (random, ...shape) => blockSource(random, "q4_0", shape)],
    ["mxfp4 blocks", (random, ...shape) => blockSource(random, "mxfp4", shape)],
    ["mxfp4 blocks as planes", (random, ...shape) => planesOf(blockSource(random, "mxfp4", shape))],
  ])("%s", async (_, make) => {
    const shapes = [
      [1, 96],
      [31, 96],
      [32, 288],
      [45, 96],
      [100, 192],
    ];
    for (const [rows, columns] of shapes) {
      await expectRows(backends, make(new Random(rows), rows, columns), upTo(rows));
    }
  });

  test("also of what is read in two pieces", async () => {
    const rows = 1500; // of 2880 bytes: over 4 MiB
    const some = upTo(rows).filter((row) => row % 37 === 0 || row === rows - 1);
    await expectRows(backends, blockSource(new Random(1), "q8_0", [rows, 2880]), some);
  });

  test.each([
    ["q8_0", 0x7c00],
    ["q8_0", 0xfc00],
    ["q8_0", 0x7e01],
    ["q4_0", 0x7c00],
    ["q4_0", 0x7e01],
  ] as const)("but not %s with a scale that is infinite or NaN (%i)", async (encoding, scale) => {
    const whole = blockSource(new Random(3), encoding, [40, 96]);
    const blocks = (await whole.read("blocks", 0, whole.byteLength("blocks"))).slice();
    blocks.set([scale & 255, scale >> 8], (blocks.length / (40 * 3)) * (3 * 37 + 1));
    const source = { ...memorySource(whole.name, [40, 96], "int8", { blocks }, BLOCK), blocks: encoding };
    await onAll(backends, async (rig) => {
      await expect(rig.load(source)).rejects.toThrow(/^test.q[48]_0: some of its int8 values or scales are infinite/);
    });
  });

  test.each(["q8_0", "q4_0", "mxfp4"] as const)(
    "%s: products with experts from blocks are those from planes",
    async (encoding) => {
      const [experts, outs, inner, rows] = [3, 45, 96, 7];
      const source = blockSource(new Random(2), encoding, [experts, outs, inner]);
      await onAll(backends, async (rig) => {
        const x = rig.tensor([rows, inner], rig.random.floats(rows * inner));
        const routing = {
          weights: rig.tensor([rows, 1], new Float32Array(rows).fill(1)),
          experts: rig.tensor(
            [rows, 1],
            Int32Array.from({ length: rows }, (_, t) => t % experts),
          ),
        };
        const multiply = async (from: WeightSource) => {
          const { weight } = await rig.load(from);
          return await rig.once((ops) => ops.linearExperts(x, routing, weight));
        };
        expect(await multiply(source)).toEqual(await multiply(planesOf(source)));
      });
    },
  );
});

// ---------------------------------------------------------------------------------------------- W8A8

interface W8a8 {
  readonly source: WeightSource;
  readonly data: Int8Array;
  readonly scales: Float32Array;
}

function w8a8(random: Random, width: number, inner: number): W8a8 {
  const data = new Int8Array(random.bytes(width * inner).buffer);
  const scales = Float32Array.from({ length: width }, () => random.uniform(0.5, 1.5) / 127);
  const planes = { data: bytesOf(data), scales: bytesOf(scales) };
  const source = { ...memorySource("test.w8a8", [width, inner], "int8", planes, inner), activations: "int8" } as const;
  return { source, data, scales };
}

/** Rows that are hard to quantise with one scale, such as numbers below the normal range and what is not finite. */
function w8a8Rows(random: Random, rows: number, inner: number): Float32Array {
  const x = hardRows(random, rows, inner);
  const put = (t: number, make: (i: number) => number) => {
    for (let i = 0; t < rows && i < inner; i++) x[t * inner + i] = make(i);
  };
  put(10, () => random.uniform() * 1e-43);
  put(11, () => (1 + random.int(300)) * 2 ** -149);
  put(12, (i) => (i === 5 ? Number.POSITIVE_INFINITY : 1));
  put(13, (i) => (i === inner - 1 ? Number.NaN : 1));
  put(14, (i) => (i % 2 === 0 ? 3e38 : -3e38));
  return x;
}

describe.each(["exact", "fast"] as const)("W8A8 on a backend of precision %s", (precision) => {
  const backends = withBackends(precision);

  test.each([
    [32, 33],
    [96, 45],
    [160, 5],
    [2880, 64],
  ])("linear, K %i, %i outputs: the bits of the contract", async (inner, width) => {
    const random = new Random(inner);
    const { source, data, scales } = w8a8(random, width, inner);
    const bias = random.floats(width);
    const most = Math.max(...ROWS);
    const x = w8a8Rows(random, most, inner);
    const out = new Float32Array(most * width);
    quantizedLinear({ out, x, data, scales, bias, rows: most, inner, width });
    await onAll(backends, async (rig) => {
      const { weight } = await rig.load(source);
      expect(weight.storedAs).toBe("int8");
      const offset = (await rig.given([width], bias)).weight;
      for (const rows of ROWS) {
        const some = rig.tensor([rows, inner], x.subarray(0, rows * inner));
        expect(await rig.once((ops) => ops.linear(some, weight, offset)), `${rows} rows`).toEqual(
          out.slice(0, rows * width),
        );
      }
    });
  });

  test("sums beyond 2^24 and intermediate ones beyond 2^31", async () => {
    const [inner, width, rows] = [98_304, 4, 5];
    const data = new Int8Array(width * inner).fill(-128);
    data.fill(127, inner, 2 * inner);
    for (let i = 2 * inner; i < data.length; i++) data[i] = (i * 37) % 256;
    const scales = new Float32Array(width).fill(0.01);
    const planes = { data: bytesOf(data), scales: bytesOf(scales) };
    const source = { ...memorySource("w", [width, inner], "int8", planes, inner), activations: "int8" } as const;
    const x = Float32Array.from({ length: rows * inner }, (_, i) => (i < 4 * inner ? 1 : (i % 255) - 127));
    const out = new Float32Array(rows * width);
    quantizedLinear({ out, x, data, scales, rows, inner, width });
    await onAll(backends, async (rig) => {
      const { weight } = await rig.load(source);
      const tensor = rig.tensor([rows, inner], x);
      expect(await rig.once((ops) => ops.linear(tensor, weight))).toEqual(out);
    });
  });

  test("gateUp, linearArgmax and qkv are their base ops, also beside weights without activations", async () => {
    const [rows, inner, width] = [7, 96, 64];
    const [heads, kvHeads, headDim] = [4, 2, 16];
    await onAll(backends, async (rig) => {
      const { random } = rig;
      const load = async (outs: number, columns = inner) => (await rig.load(w8a8(random, outs, columns).source)).weight;
      const [gate, up, head] = [await load(width), await load(width), await load(45)];
      const plain = (await rig.weight("int8", [width, inner])).weight;
      const next = (await rig.weight("int8", [45, width])).weight;
      const weights = {
        q: await load(heads * headDim),
        k: await load(kvHeads * headDim),
        v: await load(kvHeads * headDim),
      };
      const packed = { qkv: await load((heads + 2 * kvHeads) * headDim) };
      const x = rig.tensor([rows, inner], random.floats(rows * inner));
      const angles = random.floats(rows * (headDim / 2), Math.PI);
      const table = (of: (angle: number) => number) => rig.tensor([rows, headDim / 2], angles.map(of), "rope");
      const rope = { cos: table(Math.cos), sin: table(Math.sin), rotaryDim: headDim };
      const step = rig.step(rows, { positions: Array.from({ length: rows }, (_, t) => t) });
      const caches = Array.from({ length: 4 }, (_, i) =>
        rig.kv({ label: `cache ${i}`, kvHeads, headDim, sequences: 1, pageSize: 16, pages: 1 }),
      );
      const build = (fusion: "on" | "off") => (native: Parameters<Parameters<typeof rig.record>[0]>[0]) => {
        const ops = lower(native, { taps: new Taps(), fusion, headNorms: "perHead", keys: 0 });
        const glu = { activation: "silu" } as const;
        const outputs: Record<string, Tensor> = {};
        outputs.both = ops.gateUp(x, gate, up, glu);
        outputs.one = ops.gateUp(x, gate, plain, glu);
        outputs.other = ops.gateUp(x, plain, up, glu);
        outputs.next = ops.linear(outputs.both, next);
        outputs.token = ops.linearArgmax(x, head);
        const [first, second] = fusion === "on" ? caches : caches.slice(2);
        outputs.q = ops.qkv(x, weights, first, rope, step, { heads, kvHeads, headDim });
        outputs.qkv = ops.qkv(x, packed, second, rope, step, { heads, kvHeads, headDim });
        return outputs;
      };
      const fused = await rig.run<string>(await rig.record(build("on")));
      const base = await rig.run<string>(await rig.record(build("off")));
      expect(fused).toEqual(base);
      const kv = await Promise.all(caches.map((cache) => rig.backend.readKv(cache, step, 0, 0, rows)));
      expect(kv.slice(0, 2)).toEqual(kv.slice(2));
      expect(kv[0].k.some((value) => value !== 0)).toBe(true);
      return fused;
    });
  });

  test("the same integers serve as a table, decoded", async () => {
    await expectRows(backends, w8a8(new Random(4), 45, 96).source, upTo(45));
  });

  test.each<[string, Partial<WeightSource> & Pick<WeightSource, "shape">]>([
    ["experts", { shape: [2, 32, 32] }],
    ["a vector", { shape: [64] }],
    ["two scales a row", { shape: [4, 64], group: 32 }],
    ["columns that do not fill blocks", { shape: [4, 40] }],
    ["sums that do not fit 32 bits", { shape: [1, 2 ** 17 + 32] }],
  ])("%s are refused", async (_, { shape, group = shape.at(-1)! }) => {
    const source = { ...randomSource(new Random(1), "int8", shape, { group }), activations: "int8" } as const;
    const error = await backends["relaxed, 1 thread"].loadWeight(source).catch((caught) => caught);
    expect(error).toBeInstanceOf(UnsupportedModelError);
    expect(error).toMatchObject({
      code: "UNSUPPORTED_SHAPE",
      message: expect.stringContaining('use device "reference"'),
    });
  });
});
