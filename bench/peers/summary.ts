// One line a model: how Vernier compares with the peer. Knows no engine.

/** A quantity of the table of a file; ratios are Vernier's to the peer's, at `high` and at `fast`. */
export interface Ratios {
  readonly quantity: string;
  readonly ratio: number;
  readonly fastRatio: number;
}

/** Of speeds more is better, of the time to load less. */
export function summary(tables: readonly { readonly file: string; readonly rows: readonly Ratios[] }[]): string {
  const lines = tables.map(({ file, rows }) => {
    const of = (quantity: string) => {
      const { ratio, fastRatio } = rows.find((row) => row.quantity === quantity)!;
      return `${ratio.toFixed(2)} / ${fastRatio.toFixed(2)}`;
    };
    return [file, of("decode"), of("prefill"), of("load, ms")];
  });
  const header = ["Vernier's to the peer's, high / fast", "decode", "prefill", "load"];
  const width = Math.max(...[header, ...lines].map(([first]) => first.length));
  return [header, ...lines]
    .map(([first, ...rest]) => `${first.padEnd(width)}${rest.map((cell) => cell.padStart(14)).join("")}\n`)
    .join("");
}
