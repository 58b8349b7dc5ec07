// The smallest part of a set that still fails, where no single element does: Zeller's ddmin. Knows nothing of what fails.

export interface Smallest<T> {
  readonly items: readonly T[];
  /** Without any one of them it no longer fails; false when `most` tests did not suffice to know. */
  readonly minimal: boolean;
}

/**
 * Tries halves, then what is left without each, then quarters, and so on. Elements may fail together only, or cancel each other:
 * nothing is assumed but that all of `items` fail.
 * @param most tests that are made.
 */
export async function ddmin<T>(
  items: readonly T[],
  fails: (part: readonly T[]) => Promise<boolean>,
  most: number,
): Promise<Smallest<T>> {
  let tests = 0;
  let failing = items;
  let parts = 2;
  while (failing.length >= 2) {
    const size = Math.ceil(failing.length / parts);
    const chunks = Array.from({ length: Math.ceil(failing.length / size) }, (_, i) =>
      failing.slice(i * size, (i + 1) * size),
    );
    // Of two halves, each is what is left without the other.
    const rests = parts === 2 ? [] : chunks.map((chunk) => failing.filter((item) => !chunk.includes(item)));
    let smaller: readonly T[] | undefined;
    for (const part of [...chunks, ...rests]) {
      if (tests === most) return { items: failing, minimal: false };
      tests++;
      if (!(await fails(part))) continue;
      smaller = part;
      break;
    }
    if (smaller !== undefined) {
      // What is left without a part has been cut as finely as before, but for that part.
      parts = rests.includes(smaller as T[]) ? Math.max(parts - 1, 2) : 2;
      failing = smaller;
    } else if (parts < failing.length) parts = Math.min(failing.length, 2 * parts);
    else break;
  }
  return { items: failing, minimal: true };
}
