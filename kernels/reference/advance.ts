// advance: turns the step that was just decoded into the next one, without the host.

export interface AdvanceArgs {
  readonly stepTokens: Int32Array; // [T]
  readonly positions: Int32Array; // [T]
  readonly ropeRows: Int32Array; // [T]
  readonly tokens: Int32Array; // [≥ rows]: what was sampled
  readonly rows: number; // live rows ≤ T
}

/** stepTokens[r] = tokens[r]; positions[r] and ropeRows[r] grow by one. */
export function advance({ stepTokens, positions, ropeRows, tokens, rows }: AdvanceArgs): void {
  for (let r = 0; r < rows; r++) {
    stepTokens[r] = tokens[r];
    positions[r]++;
    ropeRows[r]++;
  }
}
