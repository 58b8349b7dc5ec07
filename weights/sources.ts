// Weight sources made from other weight sources: end to end, transposed, widened. All of them read ranges on demand and
// hold at most one matrix. Knows nothing of files or of where names come from.
import { type Shape, sizeOf, type WeightFormat, type WeightPlane, type WeightSource } from "../src/backend.ts";
import { assert, quote, UnsupportedModelError } from "../src/errors.ts";
import { decodeWeight, rowBytes, rowsOf } from "./decode.ts";

/** Bytes of a plane of a weight. */
export function planeBytes(format: WeightFormat, shape: Shape, plane: WeightPlane, group?: number): number {
  const { rows, columns } = rowsOf(shape);
  return rows * rowBytes(format, columns, group)[plane];
}

/** The rows of the parts one after the other, as one weight of `shape`. All parts have the same format. */
export function concatenated(name: string, shape: Shape, parts: readonly WeightSource[]): WeightSource {
  const [{ format, group, activations }] = parts;
  assert(
    parts.every((part) => part.format === format && part.group === group && part.activations === activations),
    `concatenated: ${name} has parts of different formats`,
  );
  return {
    name,
    shape,
    format,
    group,
    activations,
    byteLength: (plane) => parts.reduce((sum, part) => sum + part.byteLength(plane), 0),
    async read(plane, byteOffset, byteLength) {
      const ranges: { part: WeightSource; from: number; length: number; at: number }[] = [];
      let start = 0; // of the part, in the whole
      for (const part of parts) {
        const end = start + part.byteLength(plane);
        const from = Math.max(start, byteOffset);
        const to = Math.min(end, byteOffset + byteLength);
        if (from < to) ranges.push({ part, from: from - start, length: to - from, at: from - byteOffset });
        start = end;
      }
      assert(
        byteOffset >= 0 && byteOffset + byteLength <= start,
        `${name}: range ${byteOffset} + ${byteLength} of ${start}`,
      );
      if (ranges.length === 1) return ranges[0].part.read(plane, ranges[0].from, ranges[0].length);
      const bytes = new Uint8Array(byteLength);
      await Promise.all(
        ranges.map(async ({ part, from, length, at }) => bytes.set(await part.read(plane, from, length), at)),
      );
      return bytes;
    },
  };
}

/** [.., in, out] seen as [.., out, in], for formats of whole elements. Keeps the matrix that was read last. */
export function transposed(source: WeightSource): WeightSource {
  const { name, format, shape } = source;
  const [inner, outer] = shape.slice(-2); // as stored: in, out
  const elementBytes = rowBytes(format, 1).data;
  assert(shape.length >= 2 && rowBytes(format, 1).scales === 0, `transposed: ${name} is ${format} [${shape}]`);
  const matrixBytes = inner * outer * elementBytes;
  let latest: { index: number; bytes: Promise<Uint8Array> } | undefined;

  function matrix(index: number): Promise<Uint8Array> {
    if (latest?.index !== index) {
      const stored = source.read("data", index * matrixBytes, matrixBytes);
      latest = { index, bytes: stored.then((bytes) => transpose(bytes, inner, outer, elementBytes)) };
    }
    return latest.bytes;
  }

  return {
    name,
    format,
    shape: [...shape.slice(0, -2), outer, inner],
    byteLength: source.byteLength,
    async read(plane, byteOffset, byteLength) {
      assert(plane === "data" && byteOffset >= 0, `transposed: ${name} has no ${plane} at ${byteOffset}`);
      const bytes = new Uint8Array(byteLength);
      for (let done = 0; done < byteLength; ) {
        const at = byteOffset + done;
        const within = at % matrixBytes;
        const part = (await matrix(Math.floor(at / matrixBytes))).subarray(within, within + byteLength - done);
        bytes.set(part, done);
        done += part.length;
      }
      return bytes;
    },
  };
}

/** [rows, columns] → [columns, rows] of elements of 2 or 4 bytes. */
function transpose(bytes: Uint8Array, rows: number, columns: number, elementBytes: number): Uint8Array {
  const Elements = elementBytes === 2 ? Uint16Array : Uint32Array;
  const from = new Elements(new Uint8Array(bytes).buffer);
  const to = new Elements(from.length);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) to[c * rows + r] = from[r * columns + c];
  }
  return new Uint8Array(to.buffer);
}

/** Any format seen as f32: nothing is lost, since what a stored value means is an f32. */
export function widened(source: WeightSource): WeightSource {
  const { name, shape } = source;
  const { columns } = rowsOf(shape);
  const size = sizeOf(shape) * 4;
  return {
    name,
    shape,
    format: "f32",
    byteLength: (plane) => (plane === "data" ? size : 0),
    async read(plane, byteOffset, byteLength) {
      assert(plane === "data", `widened: ${name} has no ${plane}`);
      const rowLength = columns * 4;
      const from = Math.floor(byteOffset / rowLength);
      const values = await decodeWeight(source, from, Math.ceil((byteOffset + byteLength) / rowLength));
      const start = byteOffset - from * rowLength;
      return new Uint8Array(values.buffer, values.byteOffset, values.byteLength).subarray(start, start + byteLength);
    },
  };
}

/** The parts in one format: their own if they agree, f32 if they do not. */
export function alike(parts: readonly WeightSource[]): readonly WeightSource[] {
  const [{ format, group, activations }] = parts;
  const same = (part: WeightSource) =>
    part.format === format && part.group === group && part.activations === activations;
  if (parts.every(same)) return parts;
  const odd = parts.find((part) => part.activations !== undefined);
  if (odd !== undefined) {
    const message = `tensor ${quote(odd.name)} wants INT8 activations (W8A8), those it is joined with do not`;
    throw new UnsupportedModelError("UNSUPPORTED_FORMAT", message, { tensor: odd.name, field: "activations" });
  }
  return parts.map((part) => (part.format === "f32" ? part : widened(part)));
}
