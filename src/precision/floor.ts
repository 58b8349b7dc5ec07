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
  /** NMSE of other taps, by key, where the exporter wrote them. */
  readonly taps?: Readonly<Record<string, number>>;
}

/** Largest ρ that passes: errors of the device over those of the floor, both as root mean squares. */
export const MOST_RHO = 2;

/** Square of f32's unit round-off: what bf16 left exact, nobody else has to compute without rounding. */
const LEAST_FLOOR = 2 ** -48;

/** ρ of an error with this NMSE; below 1 where a device is closer to f32 than PyTorch in bf16. */
export function rhoOf(nmse: number, floor: number): number {
  return nmse === 0 ? 0 : Math.sqrt(nmse / Math.max(floor, LEAST_FLOOR));
}

/** Undefined for a tap without a floor. */
export function tapRho(key: string, nmse: number, floor: Floor | undefined): number | undefined {
  const own = floor?.taps !== undefined && Object.hasOwn(floor.taps, key) ? floor.taps[key] : undefined;
  return own === undefined ? undefined : rhoOf(nmse, own);
}

/** Whether PyTorch's own bf16 holds the project's criterion, so that a device in bf16 has to. */
export function meetsHeadline({ mae, relL1 }: Floor): boolean {
  return mae < HEADLINE.mae && relL1 < HEADLINE.relL1;
}

/** `<name>.f32` has its floor in `<name>.bf16.json`, written by the exporter's second run. */
export async function floorBeside(reference: string): Promise<Floor | undefined> {
  if (!reference.endsWith(".f32")) return undefined;
  let json: { floor_vs_f32?: Partial<Floor>; floor_taps?: unknown };
  try {
    json = JSON.parse(await readFile(`${reference.slice(0, -".f32".length)}.bf16.json`, "utf8"));
  } catch {
    return undefined; // None was made: the class's own floor is shown.
  }
  const { nmse, mae, relL1, one_minus_cos, kl_mean } = json.floor_vs_f32 ?? {};
  if (![nmse, mae, relL1, one_minus_cos, kl_mean].every(isError)) return undefined;
  const listed = json.floor_taps;
  const taps =
    typeof listed === "object" && listed !== null ? Object.entries(listed).filter(([, of]) => isError(of)) : [];
  const floor = { nmse, mae, relL1, one_minus_cos, kl_mean } as Floor;
  return taps.length === 0 ? floor : { ...floor, taps: Object.fromEntries(taps) };
}

function isError(value: unknown): value is number {
  return typeof value === "number" && Number.isFinite(value) && value >= 0;
}
