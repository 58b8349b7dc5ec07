// Finds TensorFlow.js and the best of its own backends that run here: the native library, WebAssembly, or plain JavaScript.
// Knows nothing of models or ops.
import type * as Core from "@tensorflow/tfjs-core";
import { DeviceError, OptionError } from "../../src/errors.ts";

export type Tf = typeof Core;

/** What TensorFlow.js computes with, by the names it registers them under; the best first. */
export const FLAVOURS = ["tensorflow", "wasm", "cpu"] as const;
export type Flavour = (typeof FLAVOURS)[number];

export interface TensorFlow {
  readonly tf: Tf;
  readonly flavour: Flavour;
  /** One line: which flavour it is, and why better ones are not used. */
  readonly description: string;
  /** Most bytes of all its tensors together. */
  readonly maxBytes: number;
  /** Makes this flavour the one that computes: TensorFlow.js has one engine for the whole thread. */
  use(): void;
}

const NAMES: Readonly<Record<Flavour, string>> = {
  tensorflow: "native library",
  wasm: "WebAssembly",
  cpu: "plain JavaScript",
};

const PACKAGES: Readonly<Record<Flavour, string>> = {
  tensorflow: "@tensorflow/tfjs-node",
  wasm: "@tensorflow/tfjs-backend-wasm",
  cpu: "@tensorflow/tfjs-backend-cpu",
};

/** The heap of its WebAssembly module is 4 GiB, and XNNPACK keeps a second, packed copy of each matrix in it. */
const MAX_BYTES: Readonly<Record<Flavour, number>> = { tensorflow: 2 ** 40, wasm: 2 ** 31 - 2 ** 27, cpu: 2 ** 40 };

const install = (flavour: Flavour = "wasm") =>
  `npm install @tensorflow/tfjs-core@4.22.0 ${PACKAGES[flavour]}@4.22.0 (docs/tfjs.md)`;

/**
 * @param wanted this flavour or none; default: the best that is there.
 * @throws DeviceError DEVICE_UNAVAILABLE with what to install.
 */
export async function loadTensorFlow(wanted?: Flavour): Promise<TensorFlow> {
  if (wanted !== undefined && !FLAVOURS.includes(wanted)) {
    const message = `tfjs: flavour is "${wanted}"; expected one of ${FLAVOURS.join(", ")}`;
    throw new OptionError("OPTION_RANGE", message, { field: "flavour", actual: wanted });
  }
  const tf = await loadCore();
  const missed: string[] = [];
  for (const flavour of wanted === undefined ? FLAVOURS : [wanted]) {
    const { failed } = await start(tf, flavour);
    if (failed !== undefined) {
      missed.push(`${PACKAGES[flavour]} ${failed}`);
      continue;
    }
    const better = missed.length === 0 ? "" : `; faster: ${missed.join(", ")} (docs/tfjs.md)`;
    const description = `TensorFlow.js ${tf.version_core}, ${NAMES[flavour]}${better}`;
    return { tf, flavour, description, maxBytes: MAX_BYTES[flavour], use: () => use(tf, flavour) };
  }
  const message = `tfjs: nothing to compute with: ${missed.join("; ")}. Install it: ${install(wanted)}`;
  throw new DeviceError("DEVICE_UNAVAILABLE", message, { field: "device", actual: "tfjs" });
}

async function loadCore(): Promise<Tf> {
  try {
    const tf = await import("@tensorflow/tfjs-core");
    tf.enableProdMode(); // no advertisements on the console
    return tf;
  } catch (cause) {
    const message = `tfjs: @tensorflow/tfjs-core ${reason(cause)}. Install it: ${install()}`;
    throw new DeviceError("DEVICE_UNAVAILABLE", message, { field: "device", actual: "tfjs", cause });
  }
}

/** Registers and starts a flavour; where that fails, says why. Bundlers forgive a missing package only inside of `try`. */
async function start(tf: Tf, flavour: Flavour): Promise<{ failed?: string }> {
  try {
    if (flavour === "tensorflow") {
      if (typeof process !== "object" || process.versions?.node === undefined) return { failed: "is for Node" };
      const { loadNative } = await import("./native.ts");
      await loadNative();
    } else if (flavour === "wasm") {
      await import("@tensorflow/tfjs-backend-wasm");
    } else {
      flavour satisfies "cpu";
      await import("@tensorflow/tfjs-backend-cpu");
    }
    return (await tf.setBackend(flavour)) ? {} : { failed: "does not start here" };
  } catch (error) {
    return { failed: reason(error) };
  }
}

/** Takes effect at once: the promise is only for flavours that still have to start. */
function use(tf: Tf, flavour: Flavour): void {
  if (tf.getBackend() === flavour) return;
  void tf.setBackend(flavour);
  if (tf.getBackend() !== flavour) throw new DeviceError("DEVICE_LOST", `tfjs: ${flavour} is not ready any more`);
}

/** The first line of a loader's error, without the paths that follow it. */
function reason(error: unknown): string {
  const { code, message } = error as { code?: string; message?: string };
  if (code === "ERR_MODULE_NOT_FOUND" || code === "MODULE_NOT_FOUND") return "is not installed";
  return `does not load (${(message ?? String(error)).split("\n")[0]})`;
}
