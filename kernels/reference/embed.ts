// embed: token ids → rows of the embedding table. Knows nothing of what an id means.

export interface EmbedArgs {
  readonly out: Float32Array; // [T, D]
  readonly tokens: Int32Array; // [T]
  readonly table: Float32Array; // [V, D]
  readonly rows: number; // live rows ≤ T
  readonly width: number; // D
  /** Gemma: √D rounded to the weights' type. 1 copies the bits. */
  readonly scale: number;
}

/** out[t, c] = table[tokens[t], c] · scale */
export function embed({ out, tokens, table, rows, width, scale }: EmbedArgs): void {
  for (let t = 0; t < rows; t++) {
    const from = tokens[t] * width;
    for (let c = 0; c < width; c++) out[t * width + c] = table[from + c] * scale;
  }
}
