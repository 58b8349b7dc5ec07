// Weight sources made from other weight sources: end to end, transposed, widened. All of them read ranges on demand and
// hold at most one matrix. Knows nothing of files or of where names come from.
import { type Shape, sizeOf, type WeightFormat, type WeightPlane, type WeightSource } from "../src/backend.ts";
import { assert, quote, UnsupportedModelError } from "../src/errors.ts";
import { decodeWeight, type Planes, rowBytes, rowsOf } from "./decode.ts";
import { destination, placed } from "./files.ts";
import { allSettled, withScratch } from "./scratch.ts";

/** Bytes of a plane of a weight in which values and scales are apart. */
export function planeBytes(format: WeightFormat, shape: Shape, plane: WeightPlane, group?: number): number {
  const { rows, columns } = rowsOf(shape);
  return plane === "blocks" ? 0 : rows * rowBytes(format, columns, group)[plane];
}

/**
 * Reads of planes that are made together, from the same run of rows or blocks. The one that was not asked for is kept until
 * it is: nothing is made twice, and nothing stays.
 */
export function madeTogether(
  make: (from: number, to: number) => Promise<Planes>,
): (plane: "data" | "scales", from: number, to: number) => Promise<Uint8Array> {
  let kept: { missing: string; from: number; to: number; planes: Promise<Planes> } | undefined;
  return async (plane, from, to) => {
    let planes: Promise<Planes>;
    if (kept?.missing === plane && kept.from === from && kept.to === to) {
      planes = kept.planes;
      kept = undefined;
    } else {
      planes = make(from, to);
      kept = { missing: plane === "data" ? "scales" : "data", from, to, planes };
    }
    return (await planes)[plane]!;
  };
}

/** The planes of a weight put together from rows of `parts`: blocks only if they all have the same. */
export function joinedPlanes(parts: readonly WeightSource[]): Pick<WeightSource, "blocks" | "byteLength"> {
  const blocks = parts.every((part) => part.blocks === parts[0].blocks) ? parts[0].blocks : undefined;
  return {
    blocks,
    byteLength(plane) {
      if (plane === "blocks" && blocks === undefined) return 0;
      return parts.reduce((sum, part) => sum + part.byteLength(plane), 0);
    },
  };
}

/** The rows of the parts one after the other, as one weight of `shape`. All parts have the same format. */
export function concatenated(name: string, shape: Shape, parts: readonly WeightSource[]): WeightSource {
  const [{ format, group, activations }] = parts;
  assert(
    parts.every((part) => part.format === format && part.group === group && part.activations === activations),
    `concatenated: ${name} has parts of different formats`,
  );
  const planes = joinedPlanes(parts);
  return {
    name,
    shape,
    format,
    group,
    activations,
    ...planes,
    async read(plane, byteOffset, byteLength, into) {
      const size = planes.byteLength(plane);
      const inside = byteOffset >= 0 && byteOffset + byteLength <= size;
      assert(inside, `${name}: range ${byteOffset} + ${byteLength} of ${size}`);
      const ranges: { part: WeightSource; from: number; length: number; at: number }[] = [];
      let start = 0; // of the part, in the whole
      for (const part of parts) {
        const end = start + part.byteLength(plane);
        const from = Math.max(start, byteOffset);
        const to = Math.min(end, byteOffset + byteLength);
        if (from < to) ranges.push({ part, from: from - start, length: to - from, at: from - byteOffset });
        start = end;
      }
      if (ranges.length === 1) return ranges[0].part.read(plane, ranges[0].from, byteLength, into);
      const bytes = destination(byteLength, name, into);
      await allSettled(
        ranges.map(({ part, from, length, at }) => part.read(plane, from, length, bytes.subarray(at, at + length))),
      );
      return bytes;
    },
  };
}

/** [.., in, out] seen as [.., out, in], for formats of whole elements. Keeps a matrix until its end has been read. */
export function transposed(source: WeightSource): WeightSource {
  const { name, format, shape } = source;
  const [inner, outer] = shape.slice(-2); // as stored: in, out
  const elementBytes = rowBytes(format, 1).data;
  assert(shape.length >= 2 && rowBytes(format, 1).scales === 0, `transposed: ${name} is ${format} [${shape}]`);
  const matrixBytes = inner * outer * elementBytes;
  let latest: { index: number; bytes: Promise<Uint8Array> } | undefined;

  function matrix(index: number): Promise<Uint8Array> {
    if (latest?.index !== index) {
      const bytes = withScratch(matrixBytes, async (stored) => {
        await source.read("data", index * matrixBytes, matrixBytes, stored);
        return transpose(stored, inner, outer, elementBytes);
      });
      latest = { index, bytes };
    }
    return latest.bytes;
  }

  return {
    name,
    format,
    shape: [...shape.slice(0, -2), outer, inner],
    byteLength: source.byteLength,
    async read(plane, byteOffset, byteLength, into) {
      assert(plane === "data" && byteOffset >= 0, `transposed: ${name} has no ${plane} at ${byteOffset}`);
      const bytes = destination(byteLength, name, into);
      for (let done = 0; done < byteLength; ) {
        const at = byteOffset + done;
        const [index, within] = [Math.floor(at / matrixBytes), at % matrixBytes];
        const part = (await matrix(index)).subarray(within, within + byteLength - done);
        bytes.set(part, done);
        done += part.length;
        if (within + part.length === matrixBytes && latest?.index === index) latest = undefined;
      }
      return bytes;
    },
  };
}

/** [rows, columns] → [columns, rows] of elements of 2 or 4 bytes. */
function transpose(bytes: Uint8Array<ArrayBuffer>, rows: number, columns: number, elementBytes: number): Uint8Array {
  const Elements = elementBytes === 2 ? Uint16Array : Uint32Array;
  const from = new Elements(bytes.buffer, bytes.byteOffset, rows * columns);
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
    async read(plane, byteOffset, byteLength, into) {
      assert(plane === "data", `widened: ${name} has no ${plane}`);
      const rowLength = columns * 4;
      const from = Math.floor(byteOffset / rowLength);
      const values = await decodeWeight(source, from, Math.ceil((byteOffset + byteLength) / rowLength));
      const start = byteOffset - from * rowLength;
      return placed(new Uint8Array(values.buffer, values.byteOffset + start, byteLength), into);
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
