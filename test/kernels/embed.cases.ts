// embed: a gather is exact in every format; a scale rounds once.
import { embed } from "../../kernels/reference/embed.ts";
import type { WeightFormat } from "../../src/backend.ts";
import { type OpCase, opCase } from "./case.ts";
import { FORMATS } from "./rig.ts";

interface EmbedParameters {
  readonly format: WeightFormat;
  readonly rows: number;
  readonly count: number;
  readonly width: number;
  readonly group?: number;
  readonly scale?: number;
  readonly extreme?: boolean;
}

function embedCase(parameters: EmbedParameters): OpCase {
  return opCase("embed", parameters, async (rig, { format, rows, count, width, group, scale, extreme }) => {
    const vocab = 53;
    const table = await rig.weight(format, [vocab, width], { group, extreme });
    const tokens = Int32Array.from({ length: rows }, (_, t) => [0, vocab - 1, rig.random.int(vocab)][t % 3]);
    const step = rig.step(rows, { count, tokens, positions: tokens });
    const out = await rig.once((ops) => ops.embed(step, table.weight, scale === undefined ? undefined : { scale }));
    const expected = new Float32Array(count * width);
    embed({ out: expected, tokens, table: table.values, rows: count, width, scale: scale ?? 1 });
    const kind = scale === undefined ? "exact" : "elementwise";
    return [{ what: "out", actual: out.subarray(0, count * width), expected, width, gate: { kind } }];
  });
}

export const embedCases: readonly OpCase[] = FORMATS.flatMap((format) => [
  embedCase({ format, rows: 1, count: 1, width: 32 }),
  embedCase({ format, rows: 16, count: 11, width: 96 }),
  embedCase({ format, rows: 8, count: 8, width: 288, scale: 59.75 }), // Gemma 2: √3584 in bf16
  ...(format === "mxfp4" ? [] : [embedCase({ format, rows: 5, count: 5, width: 27 })]),
  ...(format === "int8" ? [embedCase({ format, rows: 5, count: 4, width: 96, group: 24 })] : []),
  ...(format === "int8" || format === "mxfp4"
    ? [embedCase({ format, rows: 8, count: 8, width: 64, extreme: true })]
    : []),
]);
