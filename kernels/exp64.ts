// What exponentials in f64 are made of (wasm/math64.ts), for the hosts that put it into their kernels' memory.

/** An f64 by its upper and its lower 32 bits. */
function fromBits(high: number, low: number): number {
  const view = new DataView(new ArrayBuffer(8));
  view.setUint32(0, high);
  view.setUint32(4, low);
  return view.getFloat64(0);
}

/** f64, 17 of them. */
export const EXP64: readonly number[] = [
  // The end of its range on either side.
  700,
  -700,
  // Adding 1.5 · 2^52 rounds to an integer and leaves it in the low bits.
  1.5 * 2 ** 52,
  Math.LOG2E,
  // ln 2 in two parts, of which a whole number below 2^20 times the first is exact (fdlibm).
  fromBits(0x3fe62e42, 0xfee00000),
  fromBits(0x3dea39ef, 0x35793c76),
  // 1 / 11!, … , 1 / 1!
  1 / 39916800,
  1 / 3628800,
  1 / 362880,
  1 / 40320,
  1 / 5040,
  1 / 720,
  1 / 120,
  1 / 24,
  1 / 6,
  1 / 2,
  1,
];
