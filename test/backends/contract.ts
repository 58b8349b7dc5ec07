// What every backend promises besides arithmetic: order, snapshots, bounds, memory, lifetime (src/backend.ts).
import { expect } from "vitest";
import type { Backend, Tensor } from "../../src/backend.ts";
import { DisposedError, InsufficientMemoryError, VernierError } from "../../src/errors.ts";
import { Random, Rig, randomSource } from "../kernels/rig.ts";

export interface ContractTest {
  readonly name: string;
  /** `make` gives a backend that the test may dispose. */
  run(backend: Backend, make: () => Promise<Backend>): Promise<void>;
}

const N = 8;

const bytes = (values: Float32Array | Int32Array) =>
  new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
const filled = (value: number, length = N) => new Float32Array(length).fill(value);

/** The rejection or the exception of a call, whichever way it fails. */
const failing = (call: () => unknown) => expect((async () => call())()).rejects;

/** x [1, N] and a program whose output is x + x. */
async function doubler(rig: Rig) {
  const x = rig.tensor([1, N], filled(1));
  const program = await rig.record((ops) => ({ out: ops.add(x, x) }), "double");
  return { x, program, out: program.outputs.out };
}

/** A test on a rig that is closed afterwards. */
const onRig = (name: string, run: (rig: Rig) => Promise<void>): ContractTest => ({
  name,
  async run(backend) {
    const rig = new Rig(backend, 1);
    await run(rig);
    rig.close();
  },
});

export const contractTests: readonly ContractTest[] = [
  {
    name: "capabilities are whole",
    async run({ name, caps }) {
      expect(name).toMatch(/^[a-z]+$/);
      expect(caps.description.length).toBeGreaterThan(0);
      expect(caps.maxBufferBytes).toBeGreaterThanOrEqual(2 ** 27);
      expect(new Set(caps.fusedOps).size).toBe(caps.fusedOps.length);
    },
  },

  onRig("alloc is zero-filled, also where memory was used before", async ({ backend }) => {
    for (let i = 0; i < 3; i++) {
      const tensor = backend.alloc([4, 33], "f32", "zeros");
      expect([...(await backend.read(tensor))].every((byte) => byte === 0)).toBe(true);
      backend.write(tensor, new Uint8Array(4 * 33 * 4).fill(0xff));
      backend.free(tensor);
    }
  }),

  onRig("tensors know their shape, type and label", async ({ backend }) => {
    const tensor = backend.alloc([3, 5], "i32", "some label");
    expect({ ...tensor, shape: [...tensor.shape] }).toMatchObject({ shape: [3, 5], dtype: "i32", label: "some label" });
    backend.free(tensor);
  }),

  onRig("write and read take byte ranges", async (rig) => {
    const tensor = rig.tensor(
      [N],
      Int32Array.from({ length: N }, (_, i) => i),
    );
    rig.backend.write(tensor, bytes(Int32Array.of(70, 80)), 8);
    expect([...(await rig.read(tensor))]).toEqual([0, 1, 70, 80, 4, 5, 6, 7]);
    const part = await rig.backend.read(tensor, 12, 8);
    expect([...new Int32Array(new Uint8Array(part).buffer)]).toEqual([80, 4]);
    const rest = await rig.backend.read(tensor, 24);
    expect([...new Int32Array(new Uint8Array(rest).buffer)]).toEqual([6, 7]);
  }),

  onRig("write copies: the caller's bytes may change at once", async (rig) => {
    const { x, program } = await doubler(rig);
    const values = filled(3);
    rig.write(x, values);
    values.fill(99);
    expect((await rig.run<"out">(program)).out).toEqual(filled(6));
  }),

  onRig("write is seen by every later run and by none before", async (rig) => {
    const { x, program, out } = await doubler(rig);
    rig.backend.run(program);
    rig.write(x, filled(5));
    expect(await rig.read(out)).toEqual(filled(2));
    rig.backend.run(program);
    expect(await rig.read(out)).toEqual(filled(10));
  }),

  onRig("read is a snapshot of the moment it was asked for", async (rig) => {
    const { x, program, out } = await doubler(rig);
    rig.backend.run(program);
    const [before, input] = [rig.read(out), rig.read(x)];
    rig.write(x, filled(7));
    rig.backend.run(program);
    const after = rig.read(out);
    rig.write(x, filled(0));
    rig.backend.run(program);
    expect([await before, await input, await after]).toEqual([filled(2), filled(1), filled(14)]);
  }),

  onRig("bytes that were read belong to the caller", async (rig) => {
    const { x } = await doubler(rig);
    (await rig.backend.read(x)).fill(0);
    expect(await rig.read(x)).toEqual(filled(1));
  }),

  onRig("a view, where there is one, is what a read gives", async (rig) => {
    const { backend } = rig;
    const { x, program, out } = await doubler(rig);
    for (const value of [3, 4]) {
      backend.write(x, bytes(filled(value)));
      backend.run(program);
      for (const tensor of [x, out]) {
        const view = backend.view?.(tensor);
        if (view !== undefined) expect([...view]).toEqual([...(await backend.read(tensor))]);
      }
    }
    const freed = backend.alloc([N], "f32", "freed");
    backend.free(freed);
    if (backend.view !== undefined) expect(() => backend.view!(freed)).toThrow(VernierError);
  }),

  onRig("many runs without a read in between keep their order", async (rig) => {
    const x = rig.tensor([1, N], filled(1));
    const step = rig.step(1, { positions: [0] });
    const token = rig.tensor([1], Int32Array.of(5));
    const program = await rig.record((ops) => {
      ops.advance(step, token);
      return { out: ops.add(x, x) };
    });
    for (let i = 0; i < 100; i++) rig.backend.run(program);
    expect([...(await rig.read(step.positions))]).toEqual([100]);
  }),

  onRig("outputs survive other recordings, reads and writes", async (rig) => {
    const { program, out } = await doubler(rig);
    rig.backend.run(program);
    for (let i = 0; i < 4; i++) {
      const big = rig.tensor([16, 64], filled(9, 16 * 64));
      await rig.record((ops) => ({ out: ops.softcap(ops.add(ops.add(big, big), big), 3) }), `other ${i}`);
    }
    expect(await rig.read(out)).toEqual(filled(2));
  }),

  onRig("programs that share scratch do not disturb each other", async (rig) => {
    const chain = async (start: number, rows: number, length: number) => {
      const x = rig.tensor([rows, N], filled(start, rows * N));
      return rig.record((ops) => {
        let sum = ops.add(x, x);
        for (let i = 1; i < length; i++) sum = ops.add(sum, x);
        return { first: ops.add(x, x), out: sum };
      });
    };
    const [a, b] = [await chain(1, 2, 5), await chain(10, 3, 9)];
    for (const [program, start, rows, length] of [
      [a, 1, 2, 5],
      [b, 10, 3, 9],
      [a, 1, 2, 5],
      [b, 10, 3, 9],
    ] as const) {
      const outputs = await rig.run<"first" | "out">(program);
      expect(outputs.out).toEqual(filled(start * (length + 1), rows * N));
      expect(outputs.first).toEqual(filled(2 * start, rows * N));
    }
  }),

  onRig("a tensor that is read twice in one program keeps its value", async (rig) => {
    const x = rig.tensor([3, N], rig.random.floats(3 * N));
    const program = await rig.record((ops) => {
      const first = ops.add(x, x);
      let far: Tensor = first;
      for (let i = 0; i < 12; i++) far = ops.softcap(far, 1);
      return { out: ops.add(ops.softcap(ops.add(far, first), 1e30), first), first };
    });
    const { out, first } = await rig.run<"out" | "first">(program);
    const again = await rig.run<"out">(program);
    expect(first).toEqual((await rig.read(x)).map((value) => 2 * value));
    expect(again.out).toEqual(out);
  }),

  onRig("an output may be an input, and may be named twice", async (rig) => {
    const x = rig.tensor([1, N], filled(4));
    const program = await rig.record((ops) => {
      const sum = ops.add(x, x);
      return { x, a: sum, b: sum };
    });
    expect(await rig.run(program)).toEqual({ x: filled(4), a: filled(8), b: filled(8) });
  }),

  onRig("bounds: reads and writes outside a tensor throw", async (rig) => {
    const tensor = rig.tensor([N], filled(1));
    const { backend } = rig;
    await failing(() => backend.write(tensor, new Uint8Array(4 * N + 4))).toThrow(VernierError);
    await failing(() => backend.write(tensor, new Uint8Array(8), 4 * N - 4)).toThrow(VernierError);
    await failing(() => backend.write(tensor, new Uint8Array(4), -4)).toThrow(VernierError);
    await failing(() => backend.read(tensor, 0, 4 * N + 4)).toThrow(VernierError);
    await failing(() => backend.read(tensor, 4 * N, 4)).toThrow(VernierError);
    await failing(() => backend.read(tensor, -4, 4)).toThrow(VernierError);
    expect(await rig.read(tensor)).toEqual(filled(1));
  }),

  onRig("shapes that do not fit are refused when recorded", async (rig) => {
    const [a, b] = [rig.tensor([2, N], filled(1, 2 * N)), rig.tensor([3, N], filled(1, 3 * N))];
    const weight = (await rig.weight("bf16", [4, N + 1])).weight;
    await failing(() => rig.record((ops) => ({ out: ops.add(a, b) }))).toThrow(VernierError);
    await failing(() => rig.record((ops) => ({ out: ops.linear(a, weight) }))).toThrow(VernierError);
    await failing(() => rig.record((ops) => ({ out: ops.columns(a, 4, N + 1) }))).toThrow(VernierError);
    const { program } = await doubler(rig);
    expect((await rig.run<"out">(program)).out).toEqual(filled(2));
  }),

  onRig("what can never fit is refused before anything is taken", async ({ backend }) => {
    await failing(() => backend.alloc([2 ** 21, 2 ** 21], "f32", "huge")).toThrow(InsufficientMemoryError);
    const spec = { label: "huge", kvHeads: 64, headDim: 128, sequences: 2 ** 16, pageSize: 64, pages: 2 ** 26 };
    await failing(() => backend.allocKv(spec)).toThrow(InsufficientMemoryError);
    backend.free(backend.alloc([N], "f32", "small"));
  }),

  onRig("weights say what they are and what they take", async (rig) => {
    for (const format of ["f32", "f16", "bf16", "int8", "mxfp4"] as const) {
      const { weight } = await rig.weight(format, [6, 64], { name: `model.${format}.weight` });
      expect(weight).toMatchObject({ name: `model.${format}.weight`, format });
      expect([...weight.shape]).toEqual([6, 64]);
      expect(weight.byteLength).toBeGreaterThan(0);
      const packed = rig.backend.caps.packedFormats.includes(format);
      if (packed) expect(weight.storedAs).toBe(format);
      else expect(weight.storedAs).not.toBe(format === "f32" ? undefined : format);
    }
    const vector = await rig.weight("bf16", [64]);
    expect(vector.weight.storedAs).toBe("f32");
  }),

  onRig("a weight that cannot be read is an error, and the backend goes on", async (rig) => {
    const source = randomSource(new Random(1), "bf16", [4, 32]);
    const broken = { ...source, read: () => Promise.reject(new VernierError("FILE_READ", "cut off")) };
    await failing(() => rig.backend.loadWeight(broken)).toThrow("cut off");
    expect((await rig.weight("bf16", [4, 32])).weight.name).toBe(source.name);
  }),

  onRig("a build that throws leaves the backend as it was", async (rig) => {
    const { x, program } = await doubler(rig);
    const build = () => {
      throw new Error("from build");
    };
    await failing(() => rig.record((ops) => ({ out: ops.add(ops.add(x, x), build()) }))).toThrow("from build");
    expect((await rig.run<"out">(program)).out).toEqual(filled(2));
  }),

  onRig("a released program cannot run; others can", async (rig) => {
    const { x, program } = await doubler(rig);
    const other = await rig.backend.record("other", (ops) => ({ out: ops.add(x, x) }));
    rig.backend.run(other);
    rig.backend.release(other);
    await failing(() => rig.backend.run(other)).toThrow(VernierError);
    expect((await rig.run<"out">(program)).out).toEqual(filled(2));
  }),

  {
    name: "dispose is idempotent; everything afterwards throws DisposedError",
    async run(_, make) {
      const backend = await make();
      const rig = new Rig(backend, 1);
      const { x, program } = await doubler(rig);
      const step = rig.step(1, { positions: [0] });
      const spec = { label: "kv", kvHeads: 1, headDim: 8, sequences: 1, pageSize: 4, pages: 1 };
      const cache = rig.kv(spec);
      backend.run(program);
      await rig.read(program.outputs.out);
      await backend.dispose();
      await backend.dispose();
      const calls: (() => unknown)[] = [
        () => backend.alloc([1], "f32", "x"),
        () => backend.write(x, new Uint8Array(4)),
        () => backend.read(x),
        ...(backend.view === undefined ? [] : [() => backend.view!(x)]),
        () => backend.free(x),
        () => backend.loadWeight(randomSource(new Random(1), "f32", [2, 4])),
        () => backend.allocKv(spec),
        () => backend.readKv(cache, step, 0, 0, 1),
        () => backend.record("late", () => ({})),
        () => backend.run(program),
        () => backend.release(program),
      ];
      for (const call of calls) await failing(call).toThrow(DisposedError);
    },
  },

  {
    name: "two backends live side by side",
    async run(backend, make) {
      const other = await make();
      const rigs = [new Rig(backend, 1), new Rig(other, 1)];
      const pairs = await Promise.all(rigs.map(doubler));
      rigs[1].write(pairs[1].x, filled(50));
      rigs.forEach((rig, i) => {
        rig.backend.run(pairs[i].program);
      });
      const results = await Promise.all(rigs.map((rig, i) => rig.read(pairs[i].out)));
      expect(results).toEqual([filled(2), filled(100)]);
      await other.dispose();
      expect((await rigs[0].run<"out">(pairs[0].program)).out).toEqual(filled(2));
      rigs[0].close();
    },
  },
];
