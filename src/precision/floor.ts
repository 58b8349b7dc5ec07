// The noise floor of a reference: how far PyTorch's own run in bf16 is from its run in f32, on the same ids. Nobody can ask a device
// that computes in bf16 for less. Node only.
import { readFile } from "node:fs/promises";
import { holdsHeadline } from "./gates.ts";
import type { Metrics } from "./measure.ts";
import type { Stored } from "./metrics.ts";

/** Of one tensor, as the exporter writes them. Relative errors are those of 16 bits (`smallValue`); older exporters wrote none. */
export interface FloorErrors {
  readonly nmse: number;
  readonly mae: number;
  readonly relL1: number;
  readonly mre?: number;
  readonly max_relative?: number;
}

/** Of the logits of all steps. */
export interface LogitsFloor extends FloorErrors {
  readonly one_minus_cos: number;
  readonly kl_mean: number;
}

export interface Floor {
  readonly logits: LogitsFloor;
  /** Of other taps, by key, where the exporter wrote them. */
  readonly taps: ReadonlyMap<string, FloorErrors>;
}

/** Errors of a device over those of the floor; below 1 where it is closer to f32 than PyTorch in bf16. */
export interface Rho {
  /** Of root mean squares. */
  readonly rho: number;
  /** Of the mean and the largest relative error, where they are those of 16 bits on either side. */
  readonly rhoMean?: number;
  readonly rhoMax?: number;
}

/** The largest that pass: msprobe's limits of an NPU beside a GPU, with PyTorch in bf16 on a CPU in the place of the GPU. */
const MOST = { rho: 2, rhoMean: 2, rhoMax: 10 } as const satisfies Required<Rho>;

/** f32's unit round-off: what bf16 left exact, nobody else has to compute without rounding. */
const LEAST_FLOOR = 2 ** -24;

type Compared = Pick<Metrics, "nmse" | "mae" | "mre" | "relL1" | "maxRelative">;

/** @param stored what relative errors are those of. */
export function rhoOf({ nmse, mre, maxRelative }: Compared, floor: FloorErrors, stored: Stored = "f32"): Rho {
  const over = (error: number, least: number) => error / Math.max(least, LEAST_FLOOR);
  const { mre: mean, max_relative: largest } = floor;
  const relative = stored !== "f32" && mean !== undefined && largest !== undefined;
  return {
    rho: over(Math.sqrt(nmse), Math.sqrt(floor.nmse)),
    ...(relative && { rhoMean: over(mre, mean), rhoMax: over(maxRelative, largest) }),
  };
}

/** What is asked of a device in bf16: the project's criterion where PyTorch's own bf16 holds it, else no more than so many times its error. */
export function withinFloor(errors: Compared, floor: FloorErrors): boolean {
  const { mre = 0 } = floor;
  if (holdsHeadline({ ...floor, mre })) return holdsHeadline(errors);
  const { rho, rhoMean = 0, rhoMax = 0 } = rhoOf(errors, floor, "bf16");
  return rho <= MOST.rho && rhoMean <= MOST.rhoMean && rhoMax <= MOST.rhoMax;
}

/** `<name>.f32` has its floor in `<name>.bf16.json`, written by the exporter's second run. */
export async function floorBeside(reference: string): Promise<Floor | undefined> {
  if (!reference.endsWith(".f32")) return undefined;
  let json: { floor_vs_f32?: unknown; floor_taps?: object };
  try {
    json = JSON.parse(await readFile(`${reference.slice(0, -".f32".length)}.bf16.json`, "utf8"));
  } catch {
    return undefined; // None was made: the class's own floor is shown.
  }
  const logits = pick(json.floor_vs_f32, ["nmse", "mae", "relL1", "one_minus_cos", "kl_mean"]);
  if (logits === undefined) return undefined;
  const relative = pick(json.floor_vs_f32, ["mre", "max_relative"]);
  const taps = new Map<string, FloorErrors>();
  for (const [key, listed] of Object.entries(json.floor_taps ?? {})) {
    const errors = pick(listed, ALL);
    if (errors !== undefined) taps.set(key, errors);
  }
  return { logits: { ...logits, ...relative }, taps };
}

const ALL = ["nmse", "mae", "relL1", "mre", "max_relative"] as const satisfies (keyof FloorErrors)[];

/** Undefined where any is not there or no error. */
function pick<K extends string>(from: unknown, names: readonly K[]): Record<K, number> | undefined {
  const values = typeof from === "object" && from !== null ? (from as Record<string, unknown>) : {};
  const found = names.map((name) => [name, values[name]] as const);
  const isError = (value: unknown) => typeof value === "number" && Number.isFinite(value) && value >= 0;
  return found.every(([, value]) => isError(value)) ? (Object.fromEntries(found) as Record<K, number>) : undefined;
}
