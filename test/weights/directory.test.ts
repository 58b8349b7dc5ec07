import { execFile } from "node:child_process";
import { appendFile, chmod, mkdir, mkdtemp, rename, rm, symlink, truncate, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { InternalError } from "../../src/errors.ts";
import { openDirectory } from "../../weights/directory.ts";
import { errorOf, readBothWays } from "./memory.ts";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "vernier-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const CONTENT = "0123456789";
const write = (name: string, content = CONTENT) => writeFile(join(folder, name), content);
const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

describe("reading", () => {
  test("ranges, in parallel, into buffers of their own", async () => {
    await write("a");
    const file = await (await openDirectory(folder)).open("a");
    expect(file.size).toBe(10);
    const parts = await Promise.all([file.read(8, 2), file.read(0, 3), file.read(10, 0), file.read(0, 10)]);
    expect(parts.map(text)).toEqual(["89", "012", "", CONTENT]);
    expect(parts.every((part) => part.byteOffset === 0 && part.buffer.byteLength === part.length)).toBe(true);
    expect((await errorOf(() => file.read(9, 2))).code).toBe("FILE_READ");
    await file.close();
  });

  test("into a given place, which must have the length that is read", async () => {
    await write("a");
    const file = await (await openDirectory(folder)).open("a");
    expect(text(await readBothWays(6, (into) => file.read(2, 6, into)))).toBe("234567");
    expect(await errorOf(() => file.read(2, 6, new Uint8Array(7)))).toBeInstanceOf(InternalError);
    await file.close();
  });

  test("has, list, label", async () => {
    await write("a");
    const files = await openDirectory(folder);
    expect([await files.has("a"), await files.has("b"), await files.list?.(), files.label]).toEqual([
      true,
      false,
      ["a"],
      folder,
    ]);
  });
});

describe("names", () => {
  test.each(["../x", "/etc/hostname", "a/../../b", "..", "C:\\x", "http://h/x", "a\0"])(
    "%j is refused, not looked up",
    async (name) => {
      const files = await openDirectory(folder);
      expect((await errorOf(() => files.open(name))).code).toBe("FILE_NAME");
      expect((await errorOf(() => files.has(name))).code).toBe("FILE_NAME");
    },
  );

  test("links inside the folder are followed, links out of it are not", async () => {
    const model = join(folder, "model");
    await mkdir(model);
    await write("secret");
    await writeFile(join(model, "real"), CONTENT);
    await symlink("real", join(model, "inside"));
    await symlink("../secret", join(model, "outside"));
    await symlink("/etc/hostname", join(model, "absolute"));
    await symlink("inside", join(model, "twice"));
    await symlink("outside", join(model, "twice-out"));
    await symlink(`${folder}/model-evil`, join(model, "prefix"));
    await writeFile(join(folder, "model-evil"), CONTENT);
    const files = await openDirectory(model);
    for (const name of ["inside", "twice"]) {
      const file = await files.open(name);
      expect(text(await file.read(0, 10))).toBe(CONTENT);
      await file.close();
    }
    for (const name of ["outside", "absolute", "twice-out", "prefix"]) {
      const error = await errorOf(() => files.open(name));
      expect([error.code, error.file]).toEqual(["FILE_NAME", name]);
    }
  });

  test("the hub's cache: links into the repository's own blobs", async () => {
    const snapshot = join(folder, "models--o--m", "snapshots", "0123abc");
    await mkdir(snapshot, { recursive: true });
    await mkdir(join(folder, "models--o--m", "blobs"));
    await mkdir(join(folder, "models--o--other", "blobs"), { recursive: true });
    await writeFile(join(folder, "models--o--m", "blobs", "f00d"), CONTENT);
    await writeFile(join(folder, "models--o--other", "blobs", "f00d"), CONTENT);
    await symlink("../../blobs/f00d", join(snapshot, "config.json"));
    await symlink("../../../models--o--other/blobs/f00d", join(snapshot, "other"));
    const files = await openDirectory(snapshot);
    const file = await files.open("config.json");
    expect(text(await file.read(0, 10))).toBe(CONTENT);
    await file.close();
    expect((await errorOf(() => files.open("other"))).code).toBe("FILE_NAME");
  });

  test("a link to itself, and one to nothing", async () => {
    await symlink("loop", join(folder, "loop"));
    await symlink("nothing", join(folder, "dangling"));
    const files = await openDirectory(folder);
    expect((await errorOf(() => files.open("loop"))).code).toBe("FILE_NAME");
    expect((await errorOf(() => files.open("dangling"))).code).toBe("FILE_MISSING");
  });
});

describe("what is no readable file", () => {
  test("missing", async () => {
    const error = await errorOf(async () => (await openDirectory(folder)).open("nope"));
    expect([error.code, error.file]).toEqual(["FILE_MISSING", "nope"]);
    expect(error.message).toContain('"nope"');
  });

  test("a folder, a pipe", async () => {
    await mkdir(join(folder, "sub"));
    await promisify(execFile)("mkfifo", [join(folder, "pipe")]);
    const files = await openDirectory(folder);
    expect((await errorOf(() => files.open("sub"))).code).toBe("FILE_KIND");
    expect((await errorOf(() => files.open("pipe"))).code).toBe("FILE_KIND");
  });

  test.skipIf(process.getuid?.() === 0)(
    "a file without permission (root may read all, so not tested as root)",
    async () => {
      await write("a");
      await chmod(join(folder, "a"), 0);
      expect((await errorOf(async () => (await openDirectory(folder)).open("a"))).code).toBe("FILE_ACCESS");
    },
  );

  test("a folder that is missing, or is a file", async () => {
    expect((await errorOf(() => openDirectory(join(folder, "nope")))).code).toBe("FILE_MISSING");
    expect((await errorOf(() => openDirectory("a\0b"))).code).toBe("FILE_MISSING");
    await write("a");
    const error = await errorOf(() => openDirectory(join(folder, "a")));
    expect(error.code).toBe("FILE_KIND");
    expect(error.message).toContain("config.json");
  });
});

describe("FILE_CHANGED", () => {
  const CHANGES: [string, (path: string) => Promise<unknown>][] = [
    ["truncated", (path) => truncate(path, 3)],
    ["longer", (path) => appendFile(path, "x")],
    ["written again with the same size", (path) => writeFile(path, "abcdefghij").then(() => utimes(path, 1, 1))],
    ["removed", (path) => rm(path)],
    [
      "replaced",
      async (path) => {
        await writeFile(`${path}.new`, CONTENT);
        await rename(`${path}.new`, path);
      },
    ],
  ];

  test.each(CHANGES)("%s while open", async (_, change) => {
    await write("a");
    const file = await (await openDirectory(folder)).open("a");
    expect(text(await file.read(0, 10))).toBe(CONTENT);
    await change(join(folder, "a"));
    for (const into of [undefined, new Uint8Array(10)]) {
      const error = await errorOf(() => file.read(0, 10, into));
      expect([error.code, error.file]).toEqual(["FILE_CHANGED", "a"]);
    }
    await file.close();
  });
});

test("too many open files", async () => {
  await write("a");
  const script = `
    import { openDirectory } from ${JSON.stringify(new URL("../../weights/directory.ts", import.meta.url).href)};
    const files = await openDirectory(${JSON.stringify(folder)});
    const opened = [];
    try { for (let i = 0; i < 200; i++) opened.push(await files.open("a")); console.log("none"); }
    catch (error) { console.log(error.code, error.file); }`;
  await write("script.mjs", script);
  const { stdout } = await promisify(execFile)("bash", [
    "-c",
    `ulimit -n 100; "${process.execPath}" "${join(folder, "script.mjs")}"`,
  ]);
  expect(stdout.trim()).toBe("FILE_LIMIT a");
});
