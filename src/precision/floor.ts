// The noise floor of a reference: how far PyTorch's own run in bf16 is from its run in f32, on the same ids. Nobody can ask a device
// that computes in bf16 for less. Node only.
import { readFile } from "node:fs/promises";
import { HEADLINE } from "./gates.ts";

/** Of the logits of all steps. */
export interface Floor {
  readonly nmse: number;
  readonly mae: number;
  readonly relL1: number;
  readonly one_minus_cos: number;
  readonly kl_mean: number;
}

/** Largest ρ that passes: errors of the device over those of the floor, both as root mean squares. */
export const MOST_RHO = 2;

/** ρ of logits with this NMSE; below 1 where a device is closer to f32 than PyTorch in bf16. */
export function rhoOf(nmse: number, floor: Floor): number {
  return nmse === 0 ? 0 : Math.sqrt(nmse / floor.nmse);
}

/** Whether PyTorch's own bf16 holds the project's criterion, so that a device in bf16 has to. */
export function meetsHeadline({ mae, relL1 }: Floor): boolean {
  return mae < HEADLINE.mae && relL1 < HEADLINE.relL1;
}

/** `<name>.f32` has its floor in `<name>.bf16.json`, written by the exporter's second run. */
export async function floorBeside(reference: string): Promise<Floor | undefined> {
  if (!reference.endsWith(".f32")) return undefined;
  let json: { floor_vs_f32?: Partial<Floor> };
  try {
    json = JSON.parse(await readFile(`${reference.slice(0, -".f32".length)}.bf16.json`, "utf8"));
  } catch {
    return undefined; // None was made: the class's own floor is shown.
  }
  const { nmse, mae, relL1, one_minus_cos, kl_mean } = json.floor_vs_f32 ?? {};
  const known = [nmse, mae, relL1, one_minus_cos, kl_mean].every(
    (value) => typeof value === "number" && Number.isFinite(value) && value >= 0,
  );
  return known ? ({ nmse, mae, relL1, one_minus_cos, kl_mean } as Floor) : undefined;
}
