// The two sides of bisect as a command line names them: a device, and `key=value,…` for what is special about it. Knows nothing of
// what is compared. Node only.
import type { CpuOptions } from "../../backends/cpu/index.ts";
import type { Backend } from "../backend.ts";
import { createBackend, mayBeCpu } from "../devices.ts";
import { OptionError } from "../errors.ts";
import { type DeviceName, PRECISIONS, type Precision } from "../options.ts";

type Variant = NonNullable<CpuOptions["variant"]>;
const VARIANTS = ["auto", "relaxed", "simd", "single"] as const satisfies readonly Variant[];
const ON_OFF = ["on", "off"] as const;
type OnOff = (typeof ON_OFF)[number];

export interface SideOptions {
  /** Those of the CPU: other devices refuse them. */
  readonly threads?: number;
  readonly precision?: Precision;
  readonly variant?: Variant;
  /** As CpuOptions.allowV8Flags. Default `on`, as for whoever generates; `off` beside tfjs, whose own WebAssembly V8 was not tried with. */
  readonly "v8-flags"?: OnOff;
  /** Default `off`: every operation by itself. */
  readonly fusion?: OnOff;
}

/** What is to be opened. `flag` names its options in messages. */
export interface SideRequest {
  readonly flag: string;
  readonly device: DeviceName;
  readonly options: SideOptions;
}

export interface OpenSide {
  readonly device: Exclude<DeviceName, "auto">;
  readonly backend: Backend;
  readonly fusion: "on" | "off";
  /** One line: what computes there, and how. Sides of one device that would compute the same have the same. */
  readonly description: string;
}

/** `precision=high,threads=2` → options. Throws OptionError for what is unknown, given twice, or not a value of its key. */
export function readSideOptions(flag: string, text: string): SideOptions {
  const options: Record<string, string | number> = {};
  for (const part of text.split(",")) {
    const [key, ...rest] = part.split("=");
    if (Object.hasOwn(options, key)) throw refused(flag, key, "given twice", text);
    options[key] = parse(flag, key, rest.join("="));
  }
  return options;
}

function parse(flag: string, key: string, value: string): string | number {
  const oneOf = (choices: readonly string[]) => {
    if (choices.includes(value)) return value;
    throw refused(flag, key, `expected ${choices.join(", ")}, got ${JSON.stringify(value)}`, value);
  };
  switch (key) {
    case "precision":
      return oneOf(PRECISIONS);
    case "variant":
      return oneOf(VARIANTS);
    case "v8-flags":
    case "fusion":
      return oneOf(ON_OFF);
    case "threads":
      if (/^\d+$/.test(value)) return Number(value);
      throw refused(flag, key, `expected a whole number, got ${JSON.stringify(value)}`, value);
    default:
      throw refused(flag, key, "no such option; there are precision, variant, threads, v8-flags and fusion", key);
  }
}

function refused(flag: string, field: string, what: string, actual: unknown, code = "OPTION_RANGE"): OptionError {
  return new OptionError(code, `${flag}: ${field}: ${what}`, { field, actual });
}

/**
 * Both, or none. Whoever gets them disposes of their backends.
 * @param threads for a CPU whose own options have none.
 * @throws OptionError OPTION_CONFLICT for options that a device does not have, and for two sides that are the same.
 */
export async function openSides(
  good: SideRequest,
  bad: SideRequest,
  threads?: number,
): Promise<{ good: OpenSide; bad: OpenSide }> {
  if (threads !== undefined && ![good, bad].some(({ device }) => mayBeCpu(device))) {
    throw refused("bisect", "threads", "neither side is cpu", threads, "OPTION_CONFLICT");
  }
  const opened: OpenSide[] = [];
  try {
    const beside = [good, bad].some(({ device }) => device === "tfjs");
    for (const request of [good, bad]) opened.push(await openSide(request, beside, threads));
    const [a, b] = opened;
    if (a.device === b.device && a.description === b.description) {
      const what = `both sides are ${a.device} (${a.description}), and nothing differs from itself; take another device, or other options (--bad-options fusion=on)`;
      throw refused("bisect", bad.flag, what, a.description, "OPTION_CONFLICT");
    }
    return { good: a, bad: b };
  } catch (error) {
    await Promise.all(opened.map(({ backend }) => backend.dispose()));
    throw error;
  }
}

/** @param tfjs whether one of the sides is. */
async function openSide({ flag, device, options }: SideRequest, tfjs: boolean, threads?: number): Promise<OpenSide> {
  const { fusion = "off", ...own } = options;
  const { variant, precision = "exact" } = own;
  const [foreign] = Object.keys(own);
  if (device !== "cpu" && foreign !== undefined) {
    throw refused(flag, foreign, `only cpu has it, and the device is ${device}`, device, "OPTION_CONFLICT");
  }
  if (variant === "single" && own.threads !== undefined) {
    throw refused(flag, "threads", "variant=single has one thread; leave it out", own.threads, "OPTION_CONFLICT");
  }
  if (tfjs && own["v8-flags"] === "on") {
    throw refused(
      flag,
      "v8-flags",
      "not beside tfjs, whose own WebAssembly V8 was not tried with",
      "on",
      "OPTION_CONFLICT",
    );
  }
  const { "v8-flags": v8Flags = tfjs ? "off" : "on", ...rest } = own;
  const cpu = { threads, ...rest, allowV8Flags: v8Flags === "on" };
  const { backend, name } =
    device === "cpu" ? await openCpu(cpu) : await createBackend(device, mayBeCpu(device) ? cpu : {});
  if (fusion === "on" && backend.caps.fusedOps.length === 0) {
    await backend.dispose();
    throw refused(flag, "fusion", `${name} has no fused operations`, fusion, "OPTION_CONFLICT");
  }
  const how = [...(name === "cpu" ? [`precision ${precision}`] : []), `fusion ${fusion}`];
  return { device: name, backend, fusion, description: [backend.caps.description, ...how].join(", ") };
}

async function openCpu(options: CpuOptions) {
  const { createCpuBackend } = await import("../../backends/cpu/index.ts");
  return { backend: await createCpuBackend(options), name: "cpu" as const };
}
