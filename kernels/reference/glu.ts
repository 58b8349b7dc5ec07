// glu: gated linear units, with gate and up in two tensors or packed in one.

export interface GluUnit {
  readonly activation: "silu" | "gelu_tanh" | "swiglu_oai";
  /** swiglu_oai only: gate ≤ limit, |up| ≤ limit. */
  readonly limit: number;
}

export interface GluArgs {
  readonly out: Float32Array; // [T, F]
  readonly gate: Float32Array; // [T, F]
  readonly up: Float32Array; // [T, F]
  readonly size: number; // live rows · F
  readonly unit: GluUnit;
}

export interface GluPackedArgs {
  readonly out: Float32Array; // [T, F]
  readonly gateUp: Float32Array; // [T, 2F]
  readonly rows: number; // live rows ≤ T
  readonly width: number; // F
  /** `halves`: gate | up; `interleaved`: even columns gate, odd columns up. */
  readonly layout: "halves" | "interleaved";
  readonly unit: GluUnit;
}

/** out[i] = act(gate[i], up[i]) */
export function glu({ out, gate, up, size, unit }: GluArgs): void {
  for (let i = 0; i < size; i++) out[i] = activate(gate[i], up[i], unit);
}

export function gluPacked({ out, gateUp, rows, width, layout, unit }: GluPackedArgs): void {
  const [step, upAt] = layout === "halves" ? [1, width] : [2, 1];
  for (let t = 0; t < rows; t++) {
    for (let c = 0; c < width; c++) {
      const at = 2 * t * width + c * step;
      out[t * width + c] = activate(gateUp[at], gateUp[at + upAt], unit);
    }
  }
}

const SQRT_2_OVER_PI = Math.sqrt(2 / Math.PI);

function activate(gate: number, up: number, { activation, limit }: GluUnit): number {
  switch (activation) {
    case "silu": // gate · σ(gate) · up
      return (gate / (1 + Math.exp(-gate))) * up;
    case "gelu_tanh": // torch's gelu(approximate="tanh"); Hendrycks and Gimpel 2016, arXiv 1606.08415
      return 0.5 * gate * (1 + Math.tanh(SQRT_2_OVER_PI * (gate + 0.044715 * gate ** 3))) * up;
    case "swiglu_oai": {
      // openai/gpt-oss, torch/model.py `swiglu`: the gate is clamped from above only; α = 1.702
      const g = Math.min(gate, limit);
      const u = Math.min(Math.max(up, -limit), limit);
      return (g / (1 + Math.exp(-1.702 * g))) * (u + 1);
    }
    default:
      return activation satisfies never;
  }
}
