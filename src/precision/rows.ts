// Logits of whole sequences, cut into steps in any way and mixed with other sequences: what metamorphic checks compare.
import type { Runner } from "../runner.ts";

/** What is to be computed of one sequence: rows from … to − 1 of its ids. */
export interface Rows {
  readonly slot: number;
  readonly ids: readonly number[];
  readonly from: number;
  readonly to: number;
}

/**
 * One step with the rows of some sequences; logits [V] of each row, in their order.
 * @param rotation how much further than its position each row is rotated.
 */
export async function stepRows(runner: Runner, parts: readonly Rows[], rotation = 0): Promise<Float32Array[]> {
  const batch = {
    tokens: [] as number[],
    positions: [] as number[],
    rotations: [] as number[],
    sequences: [] as number[],
    lengths: [] as number[],
  };
  for (const { slot, ids, from, to } of parts) {
    const own = Array.from({ length: runner.pagesPerSequence }, (_, i) => slot * runner.pagesPerSequence + i);
    if (runner.hasFullLayers) runner.assignPages(slot, own);
    for (let position = from; position < to; position++) {
      batch.tokens.push(ids[position]);
      batch.positions.push(position);
      batch.rotations.push(position + rotation);
      batch.sequences.push(slot);
      batch.lengths.push(ids.length);
    }
  }
  const rows = batch.tokens.length;
  const program = await runner.step({ ...batch, selected: batch.tokens.map((_, i) => i) }, "logits");
  const values = (await runner.read(program.outputs.logits, rows)) as Float32Array;
  return batch.tokens.map((_, i) => values.slice(i * runner.vocabSize, (i + 1) * runner.vocabSize));
}

/** Logits of all positions, the ids cut into steps of these sizes (the last one repeats). */
export async function sequenceRows(
  runner: Runner,
  ids: readonly number[],
  sizes: readonly number[],
  slot = 0,
  rotation = 0,
): Promise<Float32Array[]> {
  const rows: Float32Array[] = [];
  for (let i = 0; rows.length < ids.length; i++) {
    const to = Math.min(ids.length, rows.length + sizes[Math.min(i, sizes.length - 1)]);
    rows.push(...(await stepRows(runner, [{ slot, ids, from: rows.length, to }], rotation)));
  }
  return rows;
}

/** The rows that are not the same, bit for bit. */
export function changedRows(actual: readonly Float32Array[], expected: readonly Float32Array[]): number[] {
  return expected.flatMap((row, i) => (row.every((value, v) => Object.is(value, actual[i][v])) ? [] : [i]));
}
