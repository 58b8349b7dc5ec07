// Makes safetensors files that are wrong in a way that matters: a seed gives a sound structure, then up to three of its
// fields are changed, then it is written out. The same seed always gives the same bytes.
import { DTYPE_BITS, type SafetensorsDType } from "../../weights/safetensors.ts";

/** Mulberry32: 32 bits of state are enough, and the same numbers come out everywhere. */
function generator(seed: number): (below: number) => number {
  let state = (seed * 2654435761) >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return Math.floor((((x ^ (x >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

/** A tensor's texts, so that they can be anything. */
interface Draft {
  name: string;
  dtype: string;
  shape: string[];
  offsets: string[];
  /** More members, as text. */
  extra: string;
}

const COUNTS = [
  "0",
  "1",
  "2",
  "3",
  "7",
  "-1",
  "-0",
  "1.0",
  "1e2",
  "01",
  '"1"',
  "null",
  "true",
  "[]",
  "{}",
  "4294967296",
  "9007199254740991",
];
const HUGE = [
  "9007199254740993",
  "18446744073709551614",
  "18446744073709551616",
  "9223372036854775807",
  `1${"0".repeat(40)}`,
];
const NAMES = [
  '"__proto__"',
  '"__metadata__"',
  '""',
  '"\\u0061"',
  '"\\ud83d\\ude00"',
  '"\\ud800"',
  '"a\\u0000"',
  '"é"',
  `"${"n".repeat(5000)}"`,
  '"\\q"',
  "a",
  "5",
];
const DTYPES = ['"F31"', '"f32"', "5", "null", '"U8 "', '"toString"', '["U8"]', '"F8_E4M3FN"', '"\\u0055\\u0038"'];
const JUNK = [
  "",
  " ",
  "\t\n\r",
  ",",
  "}",
  "]",
  "{",
  "[",
  ":",
  '"',
  "null",
  "\\",
  "\u00a0",
  "\u0001",
  "/**/",
  "NaN",
  '"x":1',
  "x",
];
const EXTRAS = [
  ',"x":1',
  ',"x":[[],{},"\\n",-1.5e+3]',
  ',"dtype":"U8"',
  ',"shape":[1]',
  ',"data_offsets":[0,1]',
  ',"x":[1 2]',
  ',"x":01',
  ",",
];
const METADATA = [
  "{}",
  '{"a":"b"}',
  '{"a":1}',
  "null",
  "[]",
  '{"a":"b","a":"c"}',
  '{"a":null}',
  '{"é":"\\u0000"}',
  '{"a":{"b":"c"}}',
];

export function mutatedFile(seed: number): Uint8Array {
  const next = generator(seed);
  const pick = <T>(from: readonly T[]): T => from[next(from.length)];
  const dtypes = Object.keys(DTYPE_BITS) as SafetensorsDType[];

  const drafts: Draft[] = [];
  let size = 0;
  for (let i = next(4); i >= 0; i--) {
    const dtype = pick(dtypes);
    const shape = Array.from({ length: next(4) }, () => next(4));
    if (DTYPE_BITS[dtype] < 8) shape.push(8);
    const bytes = shape.reduce((n, dim) => n * dim, DTYPE_BITS[dtype]) / 8;
    drafts.push({
      name: `"t${i}"`,
      dtype: `"${dtype}"`,
      shape: shape.map(String),
      offsets: [`${size}`, `${size + bytes}`],
      extra: "",
    });
    size += bytes;
  }
  if (next(2) === 0) drafts.reverse();

  let metadata = next(4) === 0 ? pick(METADATA) : undefined;
  let space = "";
  let [before, after] = ["", ""];
  let dataBytes = size;
  let lengthError = 0n;
  const edits: ((bytes: Uint8Array) => Uint8Array)[] = [];

  const mutations: (() => void)[] = [
    () => (pick(drafts).offsets[next(2)] = pick(COUNTS)),
    () => (pick(drafts).offsets[next(2)] = pick(HUGE)),
    () => {
      const { offsets } = pick(drafts);
      const shift = next(5) - 2;
      for (const end of [0, 1]) if (next(3) > 0) offsets[end] = String(Number(offsets[end]) + shift);
    },
    () => (pick(drafts).offsets = [...pick(drafts).offsets]),
    () => pick(drafts).offsets.reverse(),
    () => pick(drafts).offsets.splice(next(3), next(2), ...[pick(COUNTS)].slice(next(2))),
    () => pick(drafts).shape.splice(next(2), next(2), pick(COUNTS)),
    () => pick(drafts).shape.splice(next(2), next(2), pick(HUGE)),
    () => pick(drafts).shape.push(...new Array(pick([1, 31, 33, 65])).fill("1")),
    () => (pick(drafts).shape = ["0", ...pick(drafts).shape, pick(["0", ...HUGE])]),
    () => (pick(drafts).dtype = `"${pick(dtypes)}"`),
    () => (pick(drafts).dtype = pick(DTYPES)),
    () => (pick(drafts).name = pick(NAMES)),
    () => (pick(drafts).name = pick(drafts).name),
    () => (pick(drafts).extra = pick(EXTRAS)),
    () => (pick(drafts).extra = `,"x":${"[".repeat(pick([20, 40, 200]))}`),
    () => {
      const depth = pick([20, 28, 40, 100, 200]);
      pick(drafts).extra = `,"x":${"[".repeat(depth)}${"]".repeat(depth)}`;
    },
    () => drafts.splice(next(drafts.length), drafts.length > 1 ? 1 : 0),
    () => drafts.push({ ...pick(drafts) }),
    () => (metadata = pick(METADATA)),
    () => (space = pick([" ", "\n", "\t \r"])),
    () => (before = pick(JUNK)),
    () => (after = pick(JUNK)),
    () => (dataBytes = Math.max(0, dataBytes + pick([-2, -1, 1, 2, 8, 1000]))),
    () => (lengthError = pick([-9n, -1n, 1n, 8n, 1000n, 100_000_000n, 2n ** 63n, 2n ** 64n - 200n])),
    () => edits.push((bytes) => Object.assign(bytes, { [next(bytes.length)]: next(256) })),
    () =>
      edits.push((bytes) =>
        Object.assign(bytes, {
          [8 + next(Math.max(1, bytes.length - 8))]: pick([0x22, 0x5c, 0x7b, 0x5d, 0x2c, 0x30, 0x80, 0xc3]),
        }),
      ),
    () => edits.push((bytes) => bytes.slice(0, next(bytes.length + 1))),
  ];
  for (let i = next(4); i > 0 && drafts.length > 0; i--) pick(mutations)();

  const entries = drafts.map(({ name, dtype, shape, offsets, extra }) => {
    const fields = [`"dtype":${dtype}`, `"shape":[${shape}]`, `"data_offsets":[${offsets}]`];
    if (next(8) === 0) fields.reverse();
    if (next(60) === 0) fields.pop();
    return `${name}:${space}{${fields.join(`,${space}`)}${extra}}`;
  });
  if (metadata !== undefined) entries.splice(next(entries.length + 1), 0, `"__metadata__":${metadata}`);
  const json = new TextEncoder().encode(`${before}{${entries.join(",")}}${after}`);
  let bytes: Uint8Array = new Uint8Array(8 + json.length + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, BigInt.asUintN(64, BigInt(json.length) + lengthError), true);
  bytes.set(json, 8);
  for (const edit of edits) bytes = edit(bytes);
  return bytes;
}
