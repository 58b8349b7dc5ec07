// Byte-pair encoding of one piece of text in O(n log n), whatever the piece. Merges happen in the order of their rank, of
// equal ones the leftmost first, as in the `tokenizers` library. Knows nothing of how text becomes pieces.

export interface BpeSpec {
  /** Token text to id. */
  vocab: ReadonlyMap<string, number>;
  /** Ids of left, right and merged token, 3 per merge, in order of rank. */
  merges: Uint32Array;
  /** What stands for characters that have no token; without it they are dropped. */
  unkId?: number;
  /** Whether a run of unknown characters becomes one unkId. */
  fuseUnk: boolean;
  /** Ids of <0x00> … <0xFF>, -1 where missing; undefined if bytes never stand in for characters. */
  byteIds?: Int32Array;
  /** Whether a piece that is a token is taken whole, though merges might never build it. */
  ignoreMerges: boolean;
}

/** Pieces up to this length (UTF-16 units) are remembered, as words recur. */
const MAX_CACHED_PIECE = 64;
const MAX_CACHED_PIECES = 16_384;
/** Positions per rank in the heap's keys: rank * POSITIONS + position stays below 2^53 for 2^22 merges. */
const POSITIONS = 2 ** 31;

export class Bpe {
  readonly #spec: BpeSpec;
  readonly #pairs: PairTable;
  /** Ids of tokens that are one code point. */
  readonly #charIds = new Map<number, number>();
  readonly #cache = new Map<string, readonly number[]>();

  constructor(spec: BpeSpec) {
    this.#spec = spec;
    this.#pairs = new PairTable(spec.merges);
    for (const [token, id] of spec.vocab) {
      const code = token.codePointAt(0);
      if (code !== undefined && token.length === (code > 0xffff ? 2 : 1)) this.#charIds.set(code, id);
    }
  }

  /** Appends the ids of `piece` to `out`. */
  encode(piece: string, out: number[]): void {
    const whole = this.#spec.ignoreMerges ? this.#spec.vocab.get(piece) : undefined;
    if (whole !== undefined) {
      out.push(whole);
      return;
    }
    const cached = this.#cache.get(piece);
    const ids = cached ?? this.#merge(this.#characters(piece));
    // Not push(...ids): a piece may have more ids than a call can have arguments.
    for (const id of ids) out.push(id);
    if (cached === undefined && piece.length <= MAX_CACHED_PIECE) {
      if (this.#cache.size >= MAX_CACHED_PIECES) this.#cache.clear();
      this.#cache.set(piece, ids);
    }
  }

  #characters(piece: string): number[] {
    const { unkId, fuseUnk, byteIds } = this.#spec;
    const ids: number[] = [];
    // The library writes an unknown character when the next known one comes, or another unknown one if they are not fused.
    let unknown = false;
    const flush = () => {
      if (unknown && unkId !== undefined) ids.push(unkId);
      unknown = false;
    };
    for (let at = 0; at < piece.length; ) {
      const code = piece.codePointAt(at)!;
      at += code > 0xffff ? 2 : 1;
      const id = this.#charIds.get(code);
      if (id !== undefined) {
        flush();
        ids.push(id);
      } else if (byteIds === undefined || !pushBytes(code, byteIds, ids)) {
        if (!fuseUnk) flush();
        unknown = true;
      }
    }
    flush();
    return ids;
  }

  #merge(ids: number[]): number[] {
    const count = ids.length;
    if (count < 2) return ids;
    const symbols = Int32Array.from(ids); // -1: merged into the symbol to its left
    const next = new Int32Array(count);
    const previous = new Int32Array(count);
    // Each merge takes one entry out and puts up to two in, so there are never more than two per symbol.
    const heap = new MinHeap(2 * count);
    const offer = (left: number, right: number) => {
      const rank = this.#pairs.rank(symbols[left], symbols[right]);
      if (rank !== -1) heap.push(rank * POSITIONS + left);
    };
    for (let at = 0; at < count; at++) {
      next[at] = at + 1 < count ? at + 1 : -1;
      previous[at] = at - 1;
      if (at > 0) offer(at - 1, at);
    }
    while (heap.size > 0) {
      const key = heap.pop();
      const rank = Math.floor(key / POSITIONS);
      const left = key - rank * POSITIONS;
      const right = next[left];
      // Stale if a neighbour was merged meanwhile: symbols only grow, so the pair here has another rank then.
      if (symbols[left] === -1 || right === -1) continue;
      if (this.#pairs.rank(symbols[left], symbols[right]) !== rank) continue;
      symbols[left] = this.#spec.merges[3 * rank + 2];
      symbols[right] = -1;
      next[left] = next[right];
      if (next[left] !== -1) {
        previous[next[left]] = left;
        offer(left, next[left]);
      }
      if (previous[left] !== -1) offer(previous[left], left);
    }
    return Array.from(symbols.filter((id) => id !== -1));
  }
}

/** Appends the tokens of a character's UTF-8 bytes, or nothing if one of them is missing. */
function pushBytes(code: number, byteIds: Int32Array, out: number[]): boolean {
  const bytes = utf8(code);
  if (bytes.some((byte) => byteIds[byte] === -1)) return false;
  for (const byte of bytes) out.push(byteIds[byte]);
  return true;
}

export function utf8(code: number): number[] {
  if (code < 0x80) return [code];
  if (code < 0x800) return [0xc0 | (code >> 6), 0x80 | (code & 63)];
  if (code < 0x10000) return [0xe0 | (code >> 12), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63)];
  return [0xf0 | (code >> 18), 0x80 | ((code >> 12) & 63), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63)];
}

/** Rank of a pair of ids: open addressing in flat arrays, since a Map of 250,000 entries costs seconds and 30 MB. */
class PairTable {
  readonly #merges: Uint32Array;
  /** Rank per slot, -1 if free. */
  readonly #ranks: Int32Array;
  readonly #mask: number;
  /** Random, so that no file can be made whose pairs all fall into one slot. */
  readonly #seed = (Math.random() * 2 ** 32) | 1;

  constructor(merges: Uint32Array) {
    this.#merges = merges;
    let slots = 16;
    while (slots < merges.length) slots *= 2; // at most two thirds full... there are 3 numbers per merge
    this.#ranks = new Int32Array(slots).fill(-1);
    this.#mask = slots - 1;
    // Of two merges of one pair the later counts, as in the library.
    for (let rank = 0; rank < merges.length / 3; rank++) {
      this.#ranks[this.#slot(merges[3 * rank], merges[3 * rank + 1])] = rank;
    }
  }

  rank(left: number, right: number): number {
    return this.#ranks[this.#slot(left, right)];
  }

  #slot(left: number, right: number): number {
    let hash = Math.imul(left + 0x9e3779b9, this.#seed);
    hash = Math.imul((hash ^ (hash >>> 15)) + right, this.#seed);
    let slot = (hash ^ (hash >>> 13)) & this.#mask;
    for (;;) {
      const rank = this.#ranks[slot];
      if (rank === -1 || (this.#merges[3 * rank] === left && this.#merges[3 * rank + 1] === right)) return slot;
      slot = (slot + 1) & this.#mask;
    }
  }
}

/** A binary heap of numbers, smallest first. */
class MinHeap {
  readonly #keys: Float64Array;
  size = 0;

  constructor(capacity: number) {
    this.#keys = new Float64Array(capacity);
  }

  push(key: number): void {
    const keys = this.#keys;
    let at = this.size++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (keys[parent] <= key) break;
      keys[at] = keys[parent];
      at = parent;
    }
    keys[at] = key;
  }

  pop(): number {
    const keys = this.#keys;
    const top = keys[0];
    const last = keys[--this.size];
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= this.size) break;
      if (child + 1 < this.size && keys[child + 1] < keys[child]) child++;
      if (keys[child] >= last) break;
      keys[at] = keys[child];
      at = child;
    }
    keys[at] = last;
    return top;
  }
}
