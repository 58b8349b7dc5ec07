// Which devices this build and this machine have, and the backend for a name. Backends are loaded only when they are
// chosen. Knows nothing of models.
import type { Backend } from "./backend.ts";
import { DeviceError, InternalError, OptionError } from "./errors.ts";
import { checkThreads, type DeviceName, type Precision } from "./options.ts";

export interface DeviceInfo {
  name: Exclude<DeviceName, "auto">;
  available: boolean;
  /** Whether `device: "auto"` takes it here. */
  chosen: boolean;
  /** One line: what it is and why it is chosen or not, or why it is missing and how to get it. */
  detail: string;
}

export interface BackendOptions {
  /** See LoadOptions. */
  threads?: number;
  /** At least; default `exact`. */
  precision?: Precision;
  /** See LoadOptions. Default false. */
  allowV8Flags?: boolean;
}

type Name = DeviceInfo["name"];

interface Device {
  /** Why it cannot be used here; undefined when it can. */
  missing?(): string | undefined;
  /** One line; of a missing device what it is for and how to get it. */
  describe(options: Pick<BackendOptions, "allowV8Flags">): Promise<string>;
  create(options: BackendOptions): Promise<Backend>;
}

/** In the order in which `auto` looks at them. `reference` is asked for by name only: it is right, not fast. */
const DEVICES: Readonly<Record<Name, Device>> = {
  ascend: absent("Huawei Ascend NPUs"),
  webgpu: absent("GPUs through WebGPU"),
  cpu: {
    async describe(options) {
      const { describeCpu } = await import("../backends/cpu/index.ts");
      return describeCpu(options);
    },
    async create(options) {
      const { createCpuBackend } = await import("../backends/cpu/index.ts");
      return createCpuBackend(options);
    },
  },
  tfjs: {
    async describe() {
      const { describeTfjs } = await import("../backends/tfjs/index.ts");
      return `a second opinion on numbers, by code that is not ours: ${await describeTfjs()}`;
    },
    async create() {
      const { createTfjsBackend } = await import("../backends/tfjs/index.ts");
      return createTfjsBackend();
    },
  },
  reference: {
    describe: async () => "scalar JavaScript with f64 accumulation, one thread: the judge of the others, slow",
    async create() {
      const { createReferenceBackend } = await import("../backends/reference/index.ts");
      return createReferenceBackend();
    },
  },
};

const AUTO_ORDER: readonly Name[] = ["ascend", "webgpu", "cpu"];

function absent(what: string): Device {
  return {
    missing: () => "not in this build yet",
    describe: async () => `${what}: not in this build yet; a later version of this package will have it`,
    create: () => Promise.reject(new InternalError("INTERNAL", `createBackend: there is no backend for ${what}`)),
  };
}

function chooseAuto(): { chosen: Name; passed: readonly Name[] } {
  const at = AUTO_ORDER.findIndex((name) => DEVICES[name].missing?.() === undefined);
  return { chosen: AUTO_ORDER[at], passed: AUTO_ORDER.slice(0, at) };
}

/** All devices, also those that are missing, as they would be with these options. Loads no model and starts no thread. */
export function listDevices(options: Pick<BackendOptions, "allowV8Flags"> = {}): Promise<DeviceInfo[]> {
  const { chosen } = chooseAuto();
  return Promise.all((Object.keys(DEVICES) as Name[]).map((name) => describeDevice(name, name === chosen, options)));
}

async function describeDevice(
  name: Name,
  chosen: boolean,
  options: Pick<BackendOptions, "allowV8Flags">,
): Promise<DeviceInfo> {
  const device = DEVICES[name];
  try {
    return { name, available: device.missing?.() === undefined, chosen, detail: await device.describe(options) };
  } catch (error) {
    if (!(error instanceof DeviceError)) throw error;
    return { name, available: false, chosen: false, detail: error.message }; // a feature of the machine is missing
  }
}

/** Whether the CPU, which alone has threads and V8's flags, computes there, or may. */
export function mayBeCpu(device: DeviceName): boolean {
  return device === "cpu" || device === "auto";
}

/** Throws for what a device does not have; a permission that is not given asks for nothing. */
function requireOptions(device: Name, { threads, precision, allowV8Flags }: BackendOptions): void {
  if (mayBeCpu(device)) return;
  if (precision === "fast") {
    const message = `precision: only cpu computes with 8-bit activations; use "high" with ${device}`;
    throw new OptionError("OPTION_RANGE", message, { field: "precision", actual: precision });
  }
  for (const [field, actual] of Object.entries({ threads, allowV8Flags })) {
    if (actual === undefined || actual === false) continue;
    const message = `${field}: only cpu has it, and the device is ${device}; leave it out`;
    throw new OptionError("OPTION_CONFLICT", message, { field, actual });
  }
}

/**
 * The backend for a name. `auto` takes the first of ascend, webgpu and cpu that is there, and `why` says in one line what it
 * chose and why the ones before were not.
 * @throws OptionError OPTION_RANGE for impossible threads and for `precision: "fast"` on a device that has no such products,
 * OPTION_CONFLICT for threads and V8's flags on a device that has none,
 * DeviceError DEVICE_UNAVAILABLE when a device that was asked for by name is missing: it is never replaced.
 */
export async function createBackend(
  device: DeviceName,
  options: BackendOptions,
): Promise<{ backend: Backend; name: Name; why?: string }> {
  if (options.threads !== undefined) checkThreads(options.threads, "threads");
  if (device !== "auto") {
    const missing = DEVICES[device].missing?.();
    if (missing !== undefined) {
      const { chosen } = chooseAuto();
      const message = `device: ${device} is ${missing}; use "${chosen}", or "auto" for the best that is there`;
      throw new DeviceError("DEVICE_UNAVAILABLE", message, { field: "device", actual: device });
    }
    requireOptions(device, options);
    return { backend: await DEVICES[device].create(options), name: device };
  }
  const { chosen, passed } = chooseAuto();
  const backend = await DEVICES[chosen].create(options);
  const reasons = passed.map((name) => `${name}: ${DEVICES[name].missing?.()}`);
  return {
    backend,
    name: chosen,
    why: `device: ${chosen} (${backend.caps.description}). Not taken: ${reasons.join("; ")}`,
  };
}
