// Options that only some devices have: whoever asks another device for them is told so, by name.
import { expect, test } from "vitest";
import { createCpuBackend } from "../backends/cpu/index.ts";
import { createBackend } from "../src/devices.ts";
import { checkLoadOptions, MAX_THREADS } from "../src/options.ts";

test.each([
  ["reference", { threads: 3 }, "threads"],
  ["reference", { threads: 1, allowV8Flags: true }, "threads"],
  ["reference", { allowV8Flags: true }, "allowV8Flags"],
  ["tfjs", { threads: 1 }, "threads"],
  ["tfjs", { allowV8Flags: true }, "allowV8Flags"],
] as const)("%s refuses %j", async (device, options, field) => {
  await expect(createBackend(device, options)).rejects.toMatchObject({
    ...{ code: "OPTION_CONFLICT", field },
    message: `${field}: only cpu has it, and the device is ${device}; leave it out`,
  });
});

test("a permission that is not given asks for nothing", async () => {
  const { backend, name } = await createBackend("reference", { allowV8Flags: false });
  expect(name).toBe("reference");
  await backend.dispose();
});

test("auto takes the CPU, with what only the CPU has", async () => {
  const { backend, name } = await createBackend("auto", { threads: 2, allowV8Flags: true });
  expect({ name, threads: "threads" in backend && backend.threads }).toEqual({ name: "cpu", threads: 2 });
  await backend.dispose();
});

test.each(["auto", "cpu", "reference", "tfjs"] as const)("%s: impossible threads are out of range", async (device) => {
  for (const threads of [0, 1.5, Number.NaN, MAX_THREADS + 1, 9999]) {
    const expected = { code: "OPTION_RANGE", field: "threads", limit: MAX_THREADS, actual: threads };
    await expect(createBackend(device, { threads })).rejects.toMatchObject(expected);
  }
});

test("the limit of threads is the same everywhere", async () => {
  expect(checkLoadOptions({ threads: MAX_THREADS })).toEqual({ threads: MAX_THREADS });
  expect(() => checkLoadOptions({ threads: MAX_THREADS + 1 })).toThrow(`an integer from 1 to ${MAX_THREADS}`);
  await expect(createCpuBackend({ threads: MAX_THREADS + 1 })).rejects.toMatchObject({ limit: MAX_THREADS });
});
